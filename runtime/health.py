"""``GET /healthz``: what is served, or why nothing is; and whether its engine runs anything."""

from __future__ import annotations

from typing import Final

import msgspec
from falcon.asgi import Request, Response

from runtime.active_model import ModelHolder
from runtime.answers import JSON
from runtime.contract.errors import PipelineError

_ENCODER: Final = msgspec.json.Encoder()


def health_of(holder: ModelHolder) -> dict[str, object]:
    """What is served with ``ok: true``; ``ok: false`` and why where nothing is, or every window fails."""
    state = holder.state
    if isinstance(state, PipelineError):
        told = {"error": "model_unavailable", "reason": state.code, "message": str(state)}
        return {"ok": False, **told} | ({"hint": state.hint} if state.hint else {})
    failing: dict[str, object] = {}
    if state.failures.alarm:
        reason, message = state.failures.reason, state.failures.message
        failing = {"error": "engine_failing", "reason": reason, "message": message}
    return {
        "ok": not failing,
        **failing,
        "model": state.artifact,
        "release": state.release_id,
        "target": state.target,
        "numbers": state.numbers,
        "calibration_origin": state.calibration_origin,
        "motif_head": state.motif_head,
        "motifs": state.motifs,
        "keys": state.keys,
        "runs_on": state.runs_on,
        "engine": state.failures.told(),
        "switch": holder.switch(),
        "shadow": holder.shadow(),
        "drift": holder.drift(),
        "telemetry": holder.telemetry(),
        "store": {"alarm": state.alarm or None, "entry": state.sequence, "memory": state.memory},
    }


class HealthResource:
    """``GET /healthz``."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with ``ok: true``, or 503 with ``ok: false`` and the reason."""
        health = health_of(self._holder)
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = JSON
        if not health["ok"]:
            resp.status = 503
            resp.set_header("Retry-After", "1")
        resp.data = _ENCODER.encode(health)

    on_head = on_get
