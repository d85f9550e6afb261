"""BentoML, as its documentation's first page: ``bentoml serve bench.peers.bentoml_service:Service``."""

from __future__ import annotations

import bentoml
import numpy as np

from bench.peers.encoder import Encoder


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Service:
    """One window a request."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    @bentoml.api(route="/infer")
    def infer(self, x: list[list[float]]) -> dict[str, list[float]]:
        """Run it."""
        latent, scores = self.encoder(np.asarray(x, np.float32))
        return {"latent": latent.tolist(), "motif_scores": scores.tolist()}
