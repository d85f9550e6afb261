"""After a device failed: let go of what used it, and open it again with growing waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from runtime.active_model import ActiveModel, ModelHolder, load_chosen, load_state
from runtime.config import RuntimeConfig
from runtime.contract.channel_log import ForkError, ReplayedError
from runtime.contract.errors import (
    DeviceError,
    DigestMismatchError,
    ManifestError,
    PipelineError,
    ReleaseNotFoundError,
    StoreError,
)
from runtime.contract.release_directory import Release
from runtime.contract.trust import SignatureError
from runtime.engines.hailo_errors import DeviceBusyError
from runtime.event_loop import EventLoop
from runtime.follower import Follower
from runtime.load_memory import LoadMemory
from runtime.metrics import RuntimeMetrics
from runtime.release_choice import Choice, ReleaseChoice
from runtime.switching import LOOK_SECONDS, Switch
from runtime.trial import CrashedOnLoadError, try_release

_LOGGER: Final = logging.getLogger("runtime.model")
FIRST_WAIT: Final = 0.25
"""Seconds until the first attempt; each further one waits twice as long, up to the error's own limit."""

STEADY: Final = 60.0
"""Seconds of serving after which a loss counts as a new one: a device that is lost soon after
each opening is not opened four times a second."""

STOP_WAIT: Final = 3.0
"""How long the end of the process waits for an attempt that hangs in the driver."""

_MAY_COME: Final = (
    DeviceError,
    StoreError,
    DigestMismatchError,
    ManifestError,
    ReleaseNotFoundError,
    SignatureError,
    ReplayedError,
    ForkError,
    CrashedOnLoadError,
)
"""What another moment may mend: a device that comes back, a store that is still being copied."""


class Recovery:
    """Loads again while what is held is a device's failure, in a thread of its own.

    Opening, verifying and closing take seconds, and may hang in a driver: none of it is done in the
    event loop, which goes on answering 503 with the reason. So is what a store lacks, which may still be
    being copied. Other failures (a wrong setting, an artifact that does not run) are left alone until a
    device failed: then whatever comes is tried again.

    While a model is served it follows the channel: see ``Switch``.

    Args:
        holder: What is served; watched and replaced.
        load: Loads once more; is told the reason that is known, to log only another one.
        show: Told what is served, or that nothing is.
        clock: Seconds that only grow.
        follower: Takes the release that the channel names; None where nothing is followed.
    """

    def __init__(
        self,
        holder: ModelHolder,
        load: Callable[[str], ActiveModel | PipelineError],
        show: Callable[[ActiveModel | None], None],
        clock: Callable[[], float] = time.monotonic,
        follower: Follower | None = None,
    ) -> None:
        self._follower = follower
        self._holder = holder
        self._load = load
        self._show = show
        self._clock = clock
        self._asked = self._failed = 0
        """Attempts since the device was lost; those of them that were more than waiting for a busy one."""
        self._lost_soon = 0
        """Losses in a row that came soon after an opening."""
        self._served_since = clock()
        self._recovering = isinstance(holder.state, _MAY_COME)
        self._due = clock() + FIRST_WAIT
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)
        if follower is not None:
            follower.switch.called_away = self._called_away

    def step(self) -> float | None:
        """Let go of what failed, and open anew where it is time.

        Returns:
            Seconds until the next look is due; None where there is nothing to do until a device fails.
        """
        self._holder.trouble.clear()  # What it stands for is looked at now; what comes later sets it again.
        self._let_go()
        state = self._holder.state
        if isinstance(state, ActiveModel):
            return self._follow(state)
        follower = self._follower
        new = follower is not None and follower.switch.anything_new()
        if not self._recovering and not new:
            return LOOK_SECONDS if follower else None
        now = self._clock()
        # A device that failed has its own waits: a store that changes is no reason to open it again.
        if now < self._due and not (new and not isinstance(state, DeviceError)):
            return min(self._due - now, LOOK_SECONDS) if follower else self._due - now
        self._asked += 1
        found = self._load(state.code)
        self._holder.replace(found)
        self._show(self._holder.model)
        now = self._clock()
        if isinstance(found, ActiveModel):
            self._recovering, self._served_since = False, now
            self._asked = self._failed = 0  # It is well: what comes next is another failure.
            return LOOK_SECONDS if follower else None
        self._due = now + self._wait_after(found)
        return min(self._due - now, LOOK_SECONDS) if follower else self._due - now

    def _follow(self, model: ActiveModel) -> float | None:
        if self._follower is None:
            return None
        failure = self._follower.follow(self._holder, model)
        self._show(self._holder.model)
        if failure is not None:
            # A window reported it first, or it was lost before: a device that needs its time.
            by_itself = self._holder.trouble.is_set() or not failure.of_release
            self._holder.lost(model, failure)
            self._let_go()
            if not by_itself:
                # The new release broke the device that both are on: the old one's is opened anew at once.
                self._due = self._clock()
            return 0.0
        return LOOK_SECONDS

    def start(self) -> None:
        """Go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and close what is served: the device is let go in its own order, not by the kernel."""
        self._stopping.set()
        self._holder.trouble.set()
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT)
        if not self._thread.is_alive() and self._holder.model is not None:
            self._holder.model.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                wait = self.step()
            except Exception:
                _LOGGER.exception("recovery", extra={"fields": {"event": "recovery"}})
                wait = STEADY
            if not self._stopping.is_set():  # Which may have been set before ``step`` cleared the other.
                self._holder.trouble.wait(wait)

    def _called_away(self) -> str:
        """Why a trial of a release is not to be waited for."""
        if self._stopping.is_set():
            return "the runtime ends"
        return "a device failed meanwhile" if self._holder.trouble.is_set() else ""

    def _let_go(self) -> None:
        failed = self._holder.take_failed()
        if failed is None:
            return
        self._show(None)
        now = self._clock()
        self._lost_soon = self._lost_soon + 1 if now - self._served_since < STEADY else 0
        self._recovering = True
        failed.close()
        self._due = now + _wait(max(0, self._lost_soon - 1))

    def _wait_after(self, error: PipelineError) -> float:
        """How long after an attempt that ended so the next one is due."""
        if isinstance(error, DeviceBusyError):  # Says nothing of how the device is.
            return _wait(self._asked, error.longest_wait)
        self._failed += 1
        return _wait(self._failed, error.longest_wait if isinstance(error, DeviceError) else None)


def _wait(times: int, longest: float | None = None) -> float:
    """Seconds, twice as long each time; at most ``longest``, else the limit of any device's error."""
    return min(DeviceError.longest_wait if longest is None else longest, FIRST_WAIT * 2.0 ** min(times, 10))


def follow(
    config: RuntimeConfig,
    metrics: RuntimeMetrics,
    loop: EventLoop,
    *,
    memory: LoadMemory | None = None,
    load: Callable[[RuntimeConfig, Choice], ActiveModel] = load_chosen,
    attempt: Callable[[Release, Callable[[], str]], None] = try_release,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[ModelHolder, Recovery]:
    """Load what the settings name, and make what keeps it up to date; not started yet.

    Args:
        config: The settings.
        metrics: Told what is served, and of switches.
        loop: Where requests are answered.
        memory: What outlives a crash; that of this process where none is given.
        load: Loads one release; verifies all of it.
        attempt: Tries one where its crash does no harm.
        clock: Seconds that only grow.
    """
    choice, memory = ReleaseChoice(config), memory or LoadMemory.of_process(config.state_dir)
    choice.served_before = memory.serving

    def load_watched(chosen: Choice) -> ActiveModel:
        return follower.loading(lambda wanted: load(config, wanted), chosen)

    switch = Switch(choice, load_watched, memory, attempt, clock)
    follower = Follower(switch, loop, metrics)

    def first(chosen: Choice) -> ActiveModel:
        try:
            return switch.guarded(lambda wanted: load(config, wanted))(chosen)
        except DeviceError as error:
            # Of what is served anyway, or where no device was open, no switch failed.
            if error.of_release and choice.served not in ("", chosen.release.id):
                # Perhaps it is this release that the device does not bear: the one before is served then.
                switch.failed(chosen.release.id, chosen.sequence, error)  # Which tells the metrics, too.
            raise
        except PipelineError as error:
            metrics.switch_failed(chosen.release.id, error.code)
            raise

    def load_any(known: str) -> ActiveModel | PipelineError:
        return load_state(config, known, choice, switch.refused, first)

    holder = ModelHolder(load_any(""))
    holder.switch = switch.told_problem

    def show(model: ActiveModel | None) -> None:
        metrics.show_model(model, holder.alarm_kind)

    show(holder.model)
    return holder, Recovery(holder, load_any, show, clock, follower if choice.follows else None)
