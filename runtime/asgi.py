"""Composition root: reads the environment once, loads the model, and puts the app together.

``gunicorn -c runtime/gunicorn.conf.py runtime.asgi:app``
"""

from __future__ import annotations

import atexit
import os
import sys

from runtime.active_model import ActiveModel, ModelHolder, load_chosen, load_state
from runtime.app import App, create_app
from runtime.config import RuntimeConfig
from runtime.contract.errors import ConfigError, PipelineError
from runtime.device_readings import DeviceReadings
from runtime.event_loop import EventLoop
from runtime.follower import Follower
from runtime.logs import configure_logging
from runtime.metrics import RuntimeMetrics
from runtime.protocol import Limits
from runtime.recovery import Recovery
from runtime.release_choice import Choice, ReleaseChoice
from runtime.switching import LoadMemory, Switch

WORKER_BOOT_ERROR = 3
"""gunicorn's exit code for a worker that cannot start: the arbiter stops instead of retrying."""


def compose() -> App:
    """The app that the environment asks for; a wrong setting ends the process with one line."""
    try:
        config = RuntimeConfig.from_environment(os.environ)
    except ConfigError as error:
        print(f"runtime: {error}", file=sys.stderr, flush=True)
        sys.exit(WORKER_BOOT_ERROR)
    log = configure_logging(config.log_level)
    choice, channel = ReleaseChoice(config), "" if config.hef_path else config.release_channel
    metrics, loop = RuntimeMetrics(channel, lambda: log.dropped), EventLoop()

    def load_and_remember(chosen: Choice) -> ActiveModel:
        model = load_chosen(config, chosen)
        choice.serves(chosen)
        model.memory = choice.memory
        return model

    def load_watched(chosen: Choice) -> ActiveModel:
        return follower.loading(load_and_remember, chosen)

    memory = LoadMemory.of_process(config.state_dir)
    choice.served_before = memory.serving
    switch = Switch(choice, load_watched, memory)
    follower = Follower(switch, loop, metrics)
    first = switch.guarded(lambda chosen: load_chosen(config, chosen))

    def load(known: str) -> ActiveModel | PipelineError:
        return load_state(config, known, choice, switch.refused, first)

    holder = ModelHolder(load(""))
    holder.switch = switch.told_problem

    def show(model: ActiveModel | None) -> None:
        metrics.show_model(model, holder.alarm_kind)

    show(holder.model)
    recovery = Recovery(holder, load, show, follower=follower if choice.follows else None)
    recovery.start()
    atexit.register(memory.forget)  # after the one below: an end in order is no crash
    atexit.register(recovery.stop)
    readings = DeviceReadings(
        lambda: holder.model is not None and holder.model.target != "emulator",
        metrics.show_device,
        metrics.reading_failed,
    )
    readings.start()
    atexit.register(readings.stop)
    app = create_app(holder, metrics, Limits(request_seconds=config.request_timeout))
    app.at_start.append(loop.attach)
    return app


app = compose()
