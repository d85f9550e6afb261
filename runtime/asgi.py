"""Composition root: reads the environment once, loads the model, and puts the app together.

``gunicorn -c runtime/gunicorn.conf.py runtime.asgi:app``
"""

from __future__ import annotations

import atexit
import os
import sys

from runtime.active_model import ModelHolder
from runtime.app import App, create_app
from runtime.config import RuntimeConfig
from runtime.contract.errors import ConfigError
from runtime.device_readings import DeviceReadings
from runtime.drift import Drift
from runtime.event_loop import EventLoop
from runtime.garbage import settle
from runtime.limits import Limits
from runtime.load_memory import LoadMemory
from runtime.logs import configure_logging, configure_server_logging
from runtime.loop_lag import LoopLag
from runtime.metrics import RuntimeMetrics
from runtime.recovery import follow
from runtime.replay import Replay
from runtime.shadow import Shadow
from runtime.telemetry import Telemetry

WORKER_BOOT_ERROR = 3
"""gunicorn's exit code for a worker that cannot start: the arbiter stops instead of retrying."""


def compose() -> App:
    """The app that the environment asks for; a wrong setting ends the process with one line."""
    try:
        config = RuntimeConfig.from_environment(os.environ)
    except ConfigError as error:
        print(f"runtime: {error}", file=sys.stderr, flush=True)
        sys.exit(WORKER_BOOT_ERROR)
    log, server_log = configure_logging(config.log_level), configure_server_logging()
    metrics = RuntimeMetrics(
        "" if config.hef_path else config.release_channel, lambda: log.dropped + server_log.dropped
    )
    loop = EventLoop()
    memory = LoadMemory.of_process(config.state_dir)
    atexit.register(memory.forget)  # Before anything is loaded, and run last: an end in order is no crash.
    holder, recovery = follow(config, metrics, loop, memory=memory)
    recovery.start()
    atexit.register(recovery.stop)
    readings = DeviceReadings(
        lambda: holder.model is not None and holder.model.target != "emulator",
        metrics.show_device,
        metrics.reading_failed,
    )
    readings.start()
    atexit.register(readings.stop)
    app = create_app(holder, metrics, Limits(request_seconds=config.request_timeout))
    app.at_start.append(settle)
    app.at_start.append(loop.attach)
    app.at_start.append(LoopLag(metrics.registry).begin)
    app.at_start.append(Replay(holder, metrics).begin)
    drift = Drift(holder, app.infer.ask)
    metrics.drift(drift)
    holder.drift = drift.told
    drift.start()
    atexit.register(drift.stop)
    telemetry = _telemetry(config, holder, metrics, app)
    if config.canary_mode == "shadow":
        shadow = Shadow(config, holder, metrics.shadow(), lambda: app.queue.waiting > 0)
        holder.shadow, app.infer.answered = shadow.told, shadow.offer
        if telemetry is not None:
            shadow.disagreed = lambda *found: telemetry.disagreement(holder.model, *found)
        shadow.start()
        atexit.register(shadow.stop)
    return app


def _telemetry(
    config: RuntimeConfig, holder: ModelHolder, metrics: RuntimeMetrics, app: App
) -> Telemetry | None:
    """What keeps windows, running; None where nothing is to be kept."""
    if config.telemetry_dir is None:
        return None
    telemetry = Telemetry(config, config.telemetry_dir, metrics.telemetry())
    holder.telemetry, app.infer.looked_at = telemetry.told, telemetry.offer
    telemetry.start()
    atexit.register(telemetry.stop)
    return telemetry


app = compose()
