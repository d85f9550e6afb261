"""EdgeInfer as a client: how the Swift service on the Pi asks, and what it makes of an answer.

Written from its public sources: pooled connections that stay idle for a minute, 45 ms to read, no retries;
whatever is not 200 with 64 and 12 numbers in time becomes random numbers, status 200, for its own users.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import numpy as np

from runtime.contract.window import WINDOW_LENGTH, FloatArray

READ_SECONDS: Final = 0.045
"""Its HTTP client's own; ``BACKEND_TIMEOUT_MS`` around it cannot extend it."""

POOL_IDLE_SECONDS: Final = 60.0
PROBE_SECONDS: Final = 15.0
"""Between two health checks, each a GET and a window of noise; docker's own come as often."""

SCRAPE_SECONDS: Final = 10.0
LATENT, MOTIFS = 64, 12


@dataclass
class EdgeInferClient:
    """One EdgeInfer.

    Args:
        backend_url: ``MODEL_BACKEND_URL``: inference is posted to it as it is.
        base_url: The server, for health and metrics.
        read_seconds: How long it reads; a test of what is answered, not when, gives more.
    """

    backend_url: str
    base_url: str
    read_seconds: float = READ_SECONDS
    stubbed: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=8, keepalive_expiry=POOL_IDLE_SECONDS)
        self._client = httpx.Client(timeout=httpx.Timeout(5.0, read=self.read_seconds), limits=limits)
        self._random = random.Random(7)

    def close(self) -> None:
        """Let the pool go."""
        self._client.close()

    def infer(self, rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
        """What its users get for a window: the answer, or random numbers, which are counted by reason."""
        answer, reason = self._posted(self.backend_url, rows)
        if answer is None:
            self.stubbed.append(reason)
            return {
                "latent": [self._random.gauss(0, 1) for _ in range(LATENT)],
                "motif_scores": [self._random.random() for _ in range(MOTIFS)],
            }
        return answer

    def _posted(self, url: str, rows: Sequence[Sequence[float]]) -> tuple[dict[str, list[float]] | None, str]:
        try:
            answer = self._client.post(
                url, content=json.dumps({"x": rows}), headers={"Content-Type": "application/json"}
            )
        except httpx.TransportError as error:
            return None, type(error).__name__
        self.latencies.append(answer.elapsed.total_seconds())
        if answer.status_code != 200:
            return None, f"status {answer.status_code}"
        return _decoded(answer)

    def probe(self) -> bool:
        """Its health check: both must be 200. Noise in ±1 is posted to its address plus ``/infer``."""
        try:
            health = self._client.get(f"{self.base_url}/healthz")
        except httpx.TransportError:
            return False
        noise = [[self._random.uniform(-1, 1) for _ in range(9)] for _ in range(WINDOW_LENGTH)]
        answer, _ = self._posted(f"{self.backend_url}/infer", noise)
        return health.status_code == 200 and answer is not None

    def synchrony(self, rows: int) -> int:
        """Its route that posts as many rows as it was given; the status."""
        window = [[0.25 * channel for channel in range(9)] for _ in range(rows)]
        return self._client.post(self.backend_url, json={"x": window}).status_code

    def scrape(self) -> str:
        """What its smoke test looks into."""
        return self._client.get(f"{self.base_url}/metrics").text


def _decoded(answer: httpx.Response) -> tuple[dict[str, list[float]] | None, str]:
    """Swift's decoder takes numbers and nothing else; further keys are left alone."""
    try:
        told: dict[str, Any] = answer.json()
        latent, scores = told["latent"], told["motif_scores"]
    except (ValueError, KeyError, TypeError) as error:
        return None, f"not decoded: {error!r}"
    for name, values, size in (("latent", latent, LATENT), ("motif_scores", scores, MOTIFS)):
        if len(values) != size or not all(type(value) in (int, float) for value in values):
            return None, f"{name} is not {size} numbers"
        if not np.isfinite(values).all():
            return None, f"{name} is not finite"
    return {"latent": latent, "motif_scores": scores}, ""


def run_for(
    seconds: float, client: EdgeInferClient, windows: FloatArray, sleep: Callable[[float], None]
) -> list[tuple[int, dict[str, list[float]]]]:
    """Its traffic on a clock of the caller's: a window a tick of 50 ms, probes and scrapes between.

    Returns:
        For each answer the number of its window.
    """
    answers = []
    for tick in range(int(seconds / 0.05)):
        number = tick % len(windows)
        answers.append((number, client.infer(windows[number].tolist())))
        if tick % int(PROBE_SECONDS / 0.05) == 7:
            assert client.probe()
        if tick % int(SCRAPE_SECONDS / 0.05) == 11:
            assert "hailo_build_info" in client.scrape()
        sleep(0.05)
    return answers
