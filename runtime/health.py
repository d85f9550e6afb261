"""``GET /healthz``: what is served, or why nothing is."""

from __future__ import annotations

from typing import Final

import msgspec
from falcon.asgi import Request, Response

from runtime.active_model import ModelHolder
from runtime.answers import JSON
from runtime.contract.errors import PipelineError

_ENCODER: Final = msgspec.json.Encoder()


class HealthResource:
    """``GET /healthz``."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with ``ok: true``, or 503 with ``ok: false`` and the reason."""
        state = self._holder.state
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = JSON
        health: dict[str, object]
        if isinstance(state, PipelineError):
            resp.status = 503
            health = {"ok": False, "error": "model_unavailable", "reason": state.code, "message": str(state)}
            if state.hint:
                health["hint"] = state.hint
        else:
            health = {
                "ok": True,
                "model": state.artifact,
                "release": state.release_id,
                "target": state.target,
                "numbers": state.numbers,
                "calibration_origin": state.calibration_origin,
                "motif_head": state.motif_head,
                "motifs": state.motifs,
                "keys": state.keys,
                "switch": self._holder.switch(),
                "store": {"alarm": state.alarm or None, "entry": state.sequence, "memory": state.memory},
            }
        resp.data = _ENCODER.encode(health)

    on_head = on_get
