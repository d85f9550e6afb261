"""The runtime whose engine answers at once: what serving alone costs. Only for ``bench``.

The model is a release that a test's simulator makes, and its answers are a constant that is no latent.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from runtime.active_model import ActiveModel, ModelHolder
from runtime.app import App, create_app
from runtime.contract.window import LATENT_SIZE, FloatArray, Window
from runtime.engines import Engine
from runtime.metrics import RuntimeMetrics
from tests.simulators import ReleaseSimulator

_CONSTANT: Final = np.linspace(-1, 1, LATENT_SIZE, dtype=np.float32)


class InstantEngine(Engine):
    """Runs nothing: what is measured is everything around it."""

    def infer(self, window: Window) -> FloatArray:
        """The constant."""
        return _CONSTANT

    def infer_batch(self, windows: FloatArray, first: int = 0) -> FloatArray:
        """The constant, for each."""
        return np.broadcast_to(_CONSTANT, (len(windows), LATENT_SIZE))

    @property
    def kernel_family(self) -> str:
        """None."""
        return "none"

    @property
    def program(self) -> str:
        """None either."""
        return "nothing"

    def _infer(self, tensor: FloatArray) -> FloatArray:
        return _CONSTANT

    def _close(self) -> None:
        pass


def compose() -> App:
    """The runtime's app on a constant."""
    logging.getLogger("runtime").setLevel(logging.WARNING)
    release = ReleaseSimulator().publish(Path(tempfile.mkdtemp(prefix="bench-instant-")))
    return create_app(ModelHolder(ActiveModel(release, InstantEngine(release.manifest))), RuntimeMetrics())


app = compose()
