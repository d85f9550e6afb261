"""The canary beside stable: it runs on windows that stable has answered, in a child, and is compared.

No request waits for it: a window is put into a short line after its answer, or dropped and counted. The
child runs at the lowest priority; where it fails, dies or hangs, it is ended, and started again with growing
waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from runtime.active_model import ActiveModel, ModelHolder
from runtime.config import RuntimeConfig
from runtime.contract.errors import PipelineError, ReleaseNotFoundError
from runtime.contract.window import FloatArray, Window
from runtime.release_choice import Choice, ReleaseChoice
from runtime.shadow_child import COMPARED, Reply, golden_frame, window_frame
from runtime.shadow_process import STOP_SECONDS, Child, ShadowError, start_child

MOST_WAITING: Final = 16
MOST_A_SECOND: Final = 50
"""Windows that the canary runs in one second; the rest is dropped. EdgeInfer sends about 20."""

GOLDEN_SECONDS: Final = 5.0
"""Between two golden windows, with traffic and without: whether the canary still repeats is always known."""

LOAD_SECONDS: Final = 120.0
WINDOW_SECONDS: Final = 5.0
"""The longest that one window may take: at the lowest priority it may have to wait for a core."""

LOOK_SECONDS: Final = 1.0
FIRST_WAIT: Final = 5.0
LONGEST_WAIT: Final = 300.0
_LOGGER: Final = logging.getLogger("runtime.shadow")


class ShadowWatcher(Protocol):
    """Who counts."""

    def compared(self, canary: str, stable: str, reply: Reply, *, golden: bool) -> None:
        """One window was run."""

    def dropped(self, canary: str, reason: str) -> None:
        """One was not."""

    def failed(self, canary: str, reason: str) -> None:
        """The canary could not be loaded, died or hung; ``reason`` is a code."""

    def running(self, canary: str, stable: str) -> None:
        """What runs beside what from now on; both empty where nothing does."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    canary: str
    stable: str
    canary_directory: Path
    stable_directory: Path


class Shadow:
    """Follows ``canary``, and runs it on what stable answers, in a thread of its own.

    Args:
        config: The settings; its channel is stable's.
        holder: What is served.
        watcher: Who counts.
        busy: Whether requests wait: then nothing is compared.
        start: Starts a child for two directories.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        holder: ModelHolder,
        watcher: ShadowWatcher,
        busy: Callable[[], bool] = lambda: False,
        start: Callable[[Path, Path], Child] = start_child,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = replace(config, release_channel="canary")
        self._choice: ReleaseChoice | None = None
        self._store = config.release_store
        self._holder = holder
        self._watcher = watcher
        self.busy = busy
        self.disagreed: Callable[[str, Window, FloatArray], None] | None = None
        """Told each window of traffic on which canary's first motif is another than stable's, which leads
        clearly: stable's id, the window and stable's latent. The thread's own; must not wait or raise."""
        self._start, self._clock = start, clock
        self._line: deque[tuple[str, Window, FloatArray]] = deque()
        self._stopping = threading.Event()
        self._child: Child | None = None
        self._left: Child | None = None  # what was killed and has not ended yet
        self._pair: _Pair | None = None
        self._taking: _Pair | None = None  # what windows are taken for: the pair, once its canary has loaded
        self._failures: dict[str, int] = {}
        self._due = 0.0
        self._looked = float("-inf")
        self._signs: tuple[object, ...] = ()
        self._found: Choice | None = None
        self._golden, self._golden_due = 0, 0.0
        self._next = 0.0
        self._state = "nothing to compare"
        self._problem: PipelineError | None = None
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def offer(self, model: ActiveModel, window: Window, latent: FloatArray) -> None:
        """Put an answered window into the line, where there is room; the event loop's, which does not wait.

        Args:
            model: What answered.
            window: float32 (100, 9), which nobody changes any more.
            latent: float32 (64,), what it answered.
        """
        pair = self._taking
        if pair is None or model.release_id != pair.stable:
            return
        if len(self._line) >= MOST_WAITING:
            self._watcher.dropped(pair.canary, "line_full")
        elif self.busy():
            self._watcher.dropped(pair.canary, "busy")
        else:
            # Nobody is woken: a thread that begins now wants the interpreter while the answer is written.
            self._line.append((pair.stable, window, latent))

    def told(self) -> Mapping[str, object]:
        """For ``/healthz``."""
        pair, problem = self._pair, self._problem
        told: dict[str, object] = {"state": self._state, "canary": pair.canary if pair else None}
        if problem is not None:
            told |= {"reason": problem.code, "message": str(problem)}
        return told

    def start(self) -> None:
        """Go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the child."""
        self._stopping.set()
        if (child := self._child) is not None:
            child.kill()  # Whoever waits for its answer hears of it at once.
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._end()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step()
            except Exception as error:
                _LOGGER.exception("shadow", extra={"fields": {"event": "shadow"}})
                self._failed(ShadowError(f"{type(error).__name__}: a mistake of ours", "internal"))
            self._stopping.wait(1 / MOST_A_SECOND if self._child is not None else LOOK_SECONDS)

    def step(self) -> None:
        """Look at the channel where that is due, and run what is in line."""
        now = self._clock()
        model = self._holder.model
        if now >= self._looked + LOOK_SECONDS or (
            self._pair and model and model.release_id != self._pair.stable
        ):
            self._looked = now
            self._follow(model)
        if self._child is None or self._pair is None:
            self._line.clear()
            return
        try:
            self._work(self._child, self._pair)
        except ShadowError as error:
            self._failed(error)

    def _work(self, child: Child, pair: _Pair) -> None:
        while not self._stopping.is_set() and self._clock() < self._looked + LOOK_SECONDS:
            now = self._clock()
            if now < self._next:
                return
            if now >= self._golden_due:
                # Before what is in line: traffic and health checks never end, and would put it off for ever.
                self._next, self._golden_due = now + 0.9 / MOST_A_SECOND, now + GOLDEN_SECONDS
                reply = child.ask(golden_frame(self._golden), WINDOW_SECONDS)
                self._golden += 1
                self._watcher.compared(pair.canary, pair.stable, reply, golden=True)
            elif self._line:
                stable, window, latent = self._line.popleft()
                if stable != pair.stable:
                    continue
                self._next = now + 0.9 / MOST_A_SECOND
                reply = child.ask(window_frame(window, latent), WINDOW_SECONDS)
                self._watcher.compared(pair.canary, pair.stable, reply, golden=False)
                if self.disagreed is not None and reply.outcome == COMPARED and reply.agrees == 0:
                    self.disagreed(stable, window, latent)
            else:
                return

    def _follow(self, model: ActiveModel | None) -> None:
        found = self._wanted(model)
        wanted = found if isinstance(found, _Pair) else None
        if wanted != self._pair:
            self._end()
            self._pair, self._due = wanted, 0.0
        if wanted is None:
            self._state = str(found)
        elif self._child is None and self._clock() >= self._due:
            if self._left is not None and not self._left.has_ended:
                self._state = "the canary's process was killed and has not ended yet"
            else:
                self._left = None
                self._begin(wanted)

    def _wanted(self, model: ActiveModel | None) -> _Pair | str:
        """What is to run beside what, or why nothing is."""
        if model is None:
            return "nothing is served"
        if model.target != "emulator":
            # One process has the chip: a canary beside stable would wait for it, and be waited for.
            return "not beside a chip: only one process can have it"
        if self._choice is None or self._config.target != model.target:
            # Of stable's own target: with canaries for several, which one is meant is known.
            self._config = replace(self._config, target=model.target)
            self._choice, self._found = ReleaseChoice(self._config), None
        try:
            signs = self._choice.signs()
            if signs != self._signs or self._found is None:
                self._found, self._signs = self._choice.find(), signs
        except PipelineError as error:
            self._found = None
            self._problem = None if error.code == ReleaseNotFoundError.code else error
            return "canary names no release that can be taken"
        canary = self._found.release
        if canary.id == model.release_id:
            return "canary names what stable serves"
        stable = self._store / "releases" / model.release_id
        return _Pair(
            canary=canary.id,
            stable=model.release_id,
            canary_directory=canary.directory,
            stable_directory=stable,
        )

    def _begin(self, pair: _Pair) -> None:
        self._state = "loading"
        child = self._start(pair.canary_directory, pair.stable_directory)
        self._child = child
        try:
            child.ready(LOAD_SECONDS)
        except ShadowError as error:
            self._failed(error)
            return
        self._state, self._problem, self._golden_due = "running", None, self._clock()
        self._line.clear()
        self._taking = pair
        self._watcher.running(pair.canary, pair.stable)
        fields = {"event": "shadow_running", "canary": pair.canary, "stable": pair.stable}
        _LOGGER.info("canary runs beside stable", extra={"fields": fields})

    def _failed(self, error: ShadowError) -> None:
        pair = self._pair
        self._end()
        self._line.clear()
        if self._stopping.is_set():
            return
        canary = pair.canary if pair else ""
        attempts = self._failures[canary] = self._failures.get(canary, 0) + 1
        self._due = self._clock() + min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempts - 1, 10))
        self._state, self._problem = "failed, is tried again", error
        self._watcher.failed(canary, error.code)
        fields = {"event": "shadow_failed", "canary": canary or None, "reason": error.code}
        _LOGGER.error("canary does not run beside stable: %s", error, extra={"fields": fields})

    def _end(self) -> None:
        child, self._child, self._taking = self._child, None, None
        if child is not None:
            child.end()
            self._left = child
            self._watcher.running("", "")
