"""LitServe, as its documentation's first page: ``python -m bench.peers.litserve_app PORT``."""

import sys
from typing import Any

import litserve as ls
import numpy as np

from bench.peers.encoder import Encoder


class EncoderApi(ls.LitAPI):  # type: ignore[misc]
    """One window a request."""

    def setup(self, device: str) -> None:
        """Load once, in the worker."""
        self.encoder = Encoder()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """JSON to an array."""
        return np.asarray(request["x"], np.float32)

    def predict(self, x: Any) -> Any:
        """Run it."""
        return self.encoder(x)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """Arrays to JSON."""
        latent, scores = output
        return {"latent": latent.tolist(), "motif_scores": scores.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(
        EncoderApi(api_path="/infer"), accelerator="cpu", workers_per_device=1, healthcheck_path="/healthz"
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        num_api_servers=1,
    )
