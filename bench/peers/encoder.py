"""The model as all peers have it: one onnxruntime thread, the same statistics, the same head.

``BENCH_MODEL`` names a folder with ``model.onnx`` and ``model.json``; with ``BENCH_INSTANT`` set, an answer
is there at once, for what serving alone costs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

INSTANT = bool(os.environ.get("BENCH_INSTANT"))


class Encoder:
    """float32 (100, 9) in, latent and motif scores out."""

    def __init__(self) -> None:
        folder = Path(os.environ["BENCH_MODEL"])
        told = json.loads((folder / "model.json").read_text())
        self._mean = np.asarray(told["mean"], np.float32)
        self._std = np.asarray(told["std"], np.float32)
        self._weight = np.asarray(told["weight"], np.float64).T.copy()
        self._bias = np.asarray(told["bias"], np.float64)
        self._instant = np.linspace(-1, 1, 64, dtype=np.float32)
        if not INSTANT:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session: Any = ort.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, window: Any) -> tuple[Any, Any]:
        """Latent float32 (64,) and scores float64 (M,)."""
        if INSTANT:
            latent = self._instant
        else:
            normalized = (window - self._mean) / self._std
            tensor = np.ascontiguousarray(normalized.T).reshape(1, 9, 1, 100)
            latent = self._session.run(["latent"], {"imu_window": tensor})[0].reshape(64)
        logits = latent.astype(np.float64) @ self._weight + self._bias
        scores = np.exp(logits - logits.max())
        return latent, scores / scores.sum()
