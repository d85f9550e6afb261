"""The runtime on a ``full_precision`` release, put together around the gate. Only for ``bench``.

``BENCH_RELEASE`` names the release directory; the runtime itself has no such setting.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from runtime.active_model import ActiveModel, ModelHolder
from runtime.app import App, create_app
from runtime.contract.release_directory import open_release
from runtime.engines.emulator import EmulatorEngine
from runtime.metrics import RuntimeMetrics


def compose() -> App:
    """The runtime's app on that release, verified."""
    logging.getLogger("runtime").setLevel(logging.WARNING)
    release = open_release(Path(os.environ["BENCH_RELEASE"]))
    release.verify()
    model = ActiveModel(release, EmulatorEngine(release))
    metrics = RuntimeMetrics()
    metrics.show_model(model)
    return create_app(ModelHolder(model), metrics)


app = compose()
