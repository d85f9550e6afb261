"""From the release that is served to the one that the channel names, while requests go on.

Tried in a child, verified, loaded beside the old one, made to repeat its golden windows; then one assignment.
Whatever fails, the old one serves on, and the new one is tried again with growing waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.active_model import ActiveModel
from runtime.contract.errors import DeviceError, PipelineError
from runtime.contract.files import read_bounded, write_document
from runtime.contract.release import check_digest
from runtime.contract.release_directory import Release
from runtime.release_choice import Choice, ReleaseChoice
from runtime.trial import CrashedOnLoadError, try_release

LOOK_SECONDS: Final = 0.5
"""Between two looks at the store's signs."""

FULL_LOOK_SECONDS: Final = 60.0
"""Between two looks at the store itself, whatever its signs say."""

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 300.0
LONGEST_WAIT_FOR_A_COPY: Final = 2.0

MEMORY_FD: Final = "RUNTIME_MEMORY_FD"
"""Set by gunicorn.conf.py: a file in memory that its workers inherit, one after the other."""

_NAME: Final = "loading.json"
_UNREADABLE: Final = (
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
    PipelineError,
)
_MOST_BYTES: Final = 4096
_LOGGER: Final = logging.getLogger("runtime.model")


@dataclass(frozen=True, kw_only=True)
class SwitchProblem:
    """Why what is served is not what the channel names.

    Args:
        release: The one that is wanted; empty where it cannot be told.
        sequence: The channel's entry that names it; 0 where it cannot be told.
        error: Why not.
        attempts: How many failed.
        due: When the next one is, on the clock of the ``Switch``.
    """

    release: str
    sequence: int
    error: PipelineError
    attempts: int
    due: float


class LoadMemory:
    """Which release is being loaded just now, so that who comes after a crash knows.

    Args:
        folder: ``STATE_DIR``: outlives everything; None for what gunicorn's workers inherit.
        descriptor: The file in memory that they do; None where there is none either.
    """

    def __init__(self, folder: Path | None, descriptor: int | None = None) -> None:
        self._path = folder / _NAME if folder else None
        self._descriptor = descriptor
        self.left, self.crashes = "", 0
        """The release at whose loading the process before this one ended, and how often in a row."""
        self.serving = ""
        """What that process served; empty where ``STATE_DIR`` knows it."""
        with contextlib.suppress(*_UNREADABLE):
            known = json.loads(self._read())
            if known.get("serving") and folder is None:
                check_digest(known["serving"], "serving")
                self.serving = known["serving"]
            if known["loading"]:
                check_digest(known["loading"], "loading")
                self.left, self.crashes = known["loading"], int(known["crashes"])

    @classmethod
    def of_process(cls, folder: Path | None) -> LoadMemory:
        """As gunicorn.conf.py left it in the environment."""
        text = os.environ.get(MEMORY_FD, "")
        return cls(folder, int(text) if text.isdecimal() else None)

    @contextlib.contextmanager
    def loading(self, release: str) -> Iterator[None]:
        """Remember it while it is loaded."""
        self._note(release, (self.crashes if release == self.left else 0) + 1)
        try:
            yield
            self.serving = release
        finally:
            self.forget()

    def forget(self) -> None:
        """Nothing is being loaded: also what is still under way where the process ends in its own order."""
        self._note("", 0)

    def _note(self, loading: str, crashes: int) -> None:
        self._write(json.dumps({"loading": loading, "crashes": crashes, "serving": self.serving}).encode())

    def _read(self) -> bytes:
        if self._path is not None:
            return read_bounded(self._path, _MOST_BYTES)
        return b"{}" if self._descriptor is None else os.pread(self._descriptor, _MOST_BYTES, 0)

    def _write(self, data: bytes) -> None:
        # Serving matters more than remembering: what cannot be noted is not, as with the rest of STATE_DIR.
        with contextlib.suppress(OSError):
            if self._path is not None:
                write_document(self._path, data)
            elif self._descriptor is not None:
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, data, 0)


class NotTakenError(PipelineError):
    """A release that failed while another one was served; ``code`` is the failure's own."""

    def __init__(self, error: PipelineError) -> None:
        super().__init__(error.what, where=error.where, hint=error.hint)
        self.code = error.code  # type: ignore[misc]


class Switch:
    """Decides when a release is loaded in place of the one that is served, and remembers what failed.

    Args:
        choice: What finds the release that the channel names.
        load: Loads a release that was found.
        memory: What outlives a crash.
        attempt: Tries a release where its crash does no harm.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        choice: ReleaseChoice,
        load: Callable[[Choice], ActiveModel],
        memory: LoadMemory,
        attempt: Callable[[Release], None] = try_release,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choice = choice
        self._load = load
        self._memory = memory
        self._attempt = attempt
        self._clock = clock
        self._signs: tuple[object, ...] = ()
        self._full_look = clock()
        self._passed: set[str] = set()
        self._failures: dict[tuple[str, int], SwitchProblem] = {}
        self.problem: SwitchProblem | None = None
        self._told: Callable[[str, str], None] = lambda release, reason: None
        if memory.left:
            what = f"the process that loaded it ended before it was served, {memory.crashes} times in a row"
            error = CrashedOnLoadError(what, where=memory.left, hint=_CRASHED_HINT)
            wait = _AFTER_CRASHES[min(memory.crashes, len(_AFTER_CRASHES)) - 1]
            self._failures[memory.left, _ANY_ENTRY] = SwitchProblem(
                release=memory.left, sequence=_ANY_ENTRY, error=error, attempts=1, due=clock() + wait
            )

    def tell(self, told: Callable[[str, str], None]) -> None:
        """Tell from now on of each failure, its release and its code.

        Of the ends of processes at its loading at once, where they were more than one: one may have been the
        power's.
        """
        self._told = told
        if self._memory.crashes > 1:
            told(self._memory.left, CrashedOnLoadError.code)

    def refused(self, chosen: Choice) -> PipelineError | None:
        """Why a release is not to be loaded now; None where it may be."""
        refused = self._refused(chosen)
        return refused.error if refused else None

    def _refused(self, chosen: Choice) -> SwitchProblem | None:
        for sequence in (chosen.sequence, _ANY_ENTRY):
            problem = self._failures.get((chosen.release.id, sequence))
            if sequence == _ANY_ENTRY and self._served_before(chosen):
                continue
            if problem and self._clock() < problem.due:
                return problem
        return None

    def _served_before(self, chosen: Choice) -> bool:
        """Whether it was, so that one end at its loading was rather the power's."""
        return self._memory.crashes < 2 and self._choice.served == chosen.release.id

    def anything_new(self) -> bool:
        """Whether the store may name something else than at the last look."""
        if not self._choice.follows:
            return False
        now, signs = self._clock(), self._choice.signs()
        new = signs != self._signs or now >= self._full_look
        if new:
            self._signs, self._full_look = signs, now + FULL_LOOK_SECONDS
        return new

    def look(self, model: ActiveModel) -> ActiveModel | None:
        """Load what the channel names, where that is another release than the one that is served.

        Returns:
            The model to be served from now on; None where the present one is. Where it is not the one that
            the channel names, ``problem`` says why, and so does the model's alarm.
        """
        problem = self.problem
        due = problem is not None and self._clock() >= problem.due
        if not self.anything_new() and not due:
            return None
        try:
            chosen = self._choice.find()
        except PipelineError as error:
            self.failed("", 0, error)
            self._alarm(model)
            return None
        self._failures.pop(("", 0), None)
        if chosen.release.id == model.release_id:
            model.sequence, model.keys = chosen.sequence, chosen.keys
            model.alarm, model.alarm_kind = chosen.alarm, chosen.alarm_kind
            self._choice.serves(chosen)
            self.problem = None
            return None
        if refused := self._refused(chosen):
            self.problem = refused
            taken = None
        else:
            taken = self._taken(chosen)
        if taken is None:
            self._alarm(model)
        return taken

    def _alarm(self, model: ActiveModel) -> None:
        if self.problem is not None:
            model.alarm, model.alarm_kind = str(self.problem.error), self.problem.error.code

    def _taken(self, chosen: Choice) -> ActiveModel | None:
        release = chosen.release.id
        try:
            if release not in self._passed:
                self._attempt(chosen.release)
                self._passed.add(release)
            model = self.guarded(self._load)(chosen)
        except PipelineError as error:
            self.failed(release, chosen.sequence, error)
            return None
        except Exception as error:
            _LOGGER.exception("while loading", extra={"fields": {"event": "internal"}})
            what = PipelineError(f"{type(error).__name__} while loading", hint="the log has the traceback")
            self.failed(release, chosen.sequence, what)
            return None
        self.problem = None
        return model

    def guarded(self, load: Callable[[Choice], ActiveModel]) -> Callable[[Choice], ActiveModel]:
        """The same, and remembered meanwhile for who comes after a crash."""

        def guarded_load(chosen: Choice) -> ActiveModel:
            with self._memory.loading(chosen.release.id):
                return load(chosen)

        return guarded_load

    def told_problem(self) -> dict[str, object] | None:
        """For ``/healthz``: what is wanted, why it is not served, and when that is tried again."""
        problem = self.problem
        if problem is None:
            return None
        return {
            "wanted": problem.release or None,
            "entry": max(problem.sequence, 0) or None,
            "reason": problem.error.code,
            "message": str(problem.error),
            "attempts": problem.attempts,
            "next_attempt_s": round(max(0.0, problem.due - self._clock()), 1),
        }

    def failed(self, release: str, sequence: int, error: PipelineError) -> None:
        """Remember that a release, named by this entry, was not loaded: it is not tried again at once."""
        known = self._failures.get((release, sequence))
        attempts = known.attempts + 1 if known else 1
        longest = LONGEST_WAIT_FOR_A_COPY if error.code in _OF_A_COPY else LONGEST_WAIT
        # Each attempt that breaks the device takes it from who is served for seconds: few of them.
        first = LONGEST_WAIT if isinstance(error, DeviceError) else FIRST_WAIT
        wait = min(longest, first * 2.0 ** min(attempts - 1, 20))
        # Not the device's own error: with another release, served before, the device may do.
        told = NotTakenError(error) if isinstance(error, DeviceError) else error
        self.problem = SwitchProblem(
            release=release, sequence=sequence, error=told, attempts=attempts, due=self._clock() + wait
        )
        while len(self._failures) >= _MOST_FAILURES:
            del self._failures[next(iter(self._failures))]
        self._failures[release, sequence] = self.problem
        self._told(release, error.code)
        if known is None or known.error.code != error.code:
            fields = {"event": "switch_failed", "release": release or None, "reason": error.code}
            _LOGGER.error("not switched: %s", error, extra={"fields": fields})


_OF_A_COPY: Final = ("not_there_yet", "store", "store_missing")
_ANY_ENTRY: Final = -1
_MOST_FAILURES: Final = 64
_AFTER_CRASHES: Final = (15.0, 60.0, LONGEST_WAIT)
"""Seconds by crashes in a row: one may have been the power, which says nothing of the release."""

_CRASHED_HINT: Final = "the artifact does not go with what runs it here: choose another release"
