"""From the release that is served to the one that the channel names, while requests go on.

Tried in a child, verified, loaded beside the old one, made to repeat its golden windows; then one assignment.
Whatever fails, the old one serves on, and the new one is tried again with growing waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from runtime.active_model import ActiveModel
from runtime.contract.errors import DeviceError, PipelineError
from runtime.contract.release_directory import Release
from runtime.load_memory import LoadMemory
from runtime.release_choice import Choice, ReleaseChoice
from runtime.trial import CrashedOnLoadError, TrialCutShortError, try_release

LOOK_SECONDS: Final = 0.5
"""Between two looks at the store's signs."""

FULL_LOOK_SECONDS: Final = 60.0
"""Between two looks at the store itself, whatever its signs say."""

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 300.0
LONGEST_WAIT_FOR_A_COPY: Final = 2.0

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


class NotTakenError(PipelineError):
    """A release that failed while another one was served; ``code`` is the failure's own."""

    def __init__(self, error: PipelineError) -> None:
        super().__init__(error.what, where=error.where, hint=error.hint)
        self.code = error.code  # type: ignore[misc]


class OvertakenError(PipelineError):
    """A release that the channel no longer named when it was loaded: nothing is known against it."""

    code = "overtaken"


class Switch:
    """Decides when a release is loaded in place of the one that is served, and remembers what failed.

    Args:
        choice: What finds the release that the channel names.
        load: Loads a release that was found; remembers nothing.
        memory: What outlives a crash.
        attempt: Tries a release where its crash does no harm; asks, while it does, why it is to end.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        choice: ReleaseChoice,
        load: Callable[[Choice], ActiveModel],
        memory: LoadMemory,
        attempt: Callable[[Release, Callable[[], str]], None] = try_release,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choice = choice
        self._load = load
        self._memory = memory
        self._attempt = attempt
        self._clock = clock
        self._signs: tuple[object, ...] = ()
        self._seen: tuple[object, ...] = ()
        self._named = ""
        self._trying: tuple[Choice, float] | None = None
        self.called_away: Callable[[], str] = lambda: ""
        """Why whoever looks has something else to do; empty where nothing comes first."""
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
        self._seen = self._signs
        try:
            chosen = self._choice.find()
        except PipelineError as error:
            self.failed("", 0, error)
            self._alarm(model)
            return None
        self._failures.pop(("", 0), None)
        self._named = chosen.release.id
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
        self._trying = chosen, self._clock()
        try:
            if release not in self._passed:
                self._attempt(chosen.release, lambda: self._cut_short(chosen))
                self._passed.add(release)
            if why := self._cut_short(chosen):
                raise TrialCutShortError(why, where=release)
            model = self.guarded(self._load_named)(chosen)
        except (TrialCutShortError, OvertakenError) as error:
            self._put_off(chosen, error)
            return None
        except PipelineError as error:
            if isinstance(error, DeviceError) and self._is_of_device(chosen, error):
                self._put_off(chosen, error)
            else:
                self.failed(release, chosen.sequence, error)
            return None
        except Exception as error:
            _LOGGER.exception("while loading", extra={"fields": {"event": "internal"}})
            what = PipelineError(f"{type(error).__name__} while loading", hint="the log has the traceback")
            self.failed(release, chosen.sequence, what)
            return None
        finally:
            self._trying = None
        self.problem = None
        return model

    def _is_of_device(self, chosen: Choice, error: DeviceError) -> bool:
        """Whether it says nothing of the release.

        Nor does a device that a window lost meanwhile, but only once: a release that breaks it is soon seen
        by a window, too, perhaps before it is looked here.
        """
        known = (chosen.release.id, chosen.sequence) in self._failures
        return not error.of_release or (bool(self.called_away()) and not known)

    def _load_named(self, chosen: Choice) -> ActiveModel:
        """Load, and look once more: loading takes as long as it takes, and the channel may have moved."""
        model = self._load(chosen)
        if not self._is_named(chosen):
            model.close()
            raise OvertakenError(_OVERTAKEN, where=chosen.release.id)
        # Only now: what was never served is nothing to fall back on.
        self._choice.serves(chosen)
        model.memory = self._choice.memory
        return model

    def _cut_short(self, chosen: Choice) -> str:
        """Why a release is not to be tried any longer; empty where it is."""
        return self.called_away() or ("" if self._is_named(chosen) else _OVERTAKEN)

    def _is_named(self, chosen: Choice) -> bool:
        """Whether the channel still names a release; the store is read only where its signs have changed.

        Where it cannot be told any more, the next look says why.
        """
        signs = self._choice.signs()
        if signs != self._seen:
            self._seen = signs
            try:
                self._named = self._choice.find().release.id
            except PipelineError:
                self._named = ""
        return self._named == chosen.release.id

    def _put_off(self, chosen: Choice, error: PipelineError) -> None:
        """Nothing is known against the release: it is neither counted as failed nor kept waiting for long."""
        self._signs = ()  # The next look is a full one.
        fields = {"event": "switch_cut_short", "release": chosen.release.id}
        _LOGGER.info("not switched: %s", error.what, extra={"fields": fields})
        if not self.called_away():
            return
        # Where a device is opened anew meanwhile, this one is not loaded there without having been tried.
        known = self._failures.get((chosen.release.id, chosen.sequence))
        self.problem = SwitchProblem(
            release=chosen.release.id,
            sequence=chosen.sequence,
            error=_of_the_switch(error),
            attempts=known.attempts if known else 0,
            due=self._clock() + FIRST_WAIT,
        )
        self._failures[chosen.release.id, chosen.sequence] = self.problem

    def guarded(self, load: Callable[[Choice], ActiveModel]) -> Callable[[Choice], ActiveModel]:
        """The same, and remembered meanwhile for who comes after a crash."""

        def guarded_load(chosen: Choice) -> ActiveModel:
            with self._memory.loading(chosen.release.id):
                return load(chosen)

        return guarded_load

    def told_problem(self) -> dict[str, object] | None:
        """For ``/healthz``: what is wanted, and how long it is being tried or why it is not served."""
        trying, problem = self._trying, self.problem
        if trying is not None:
            chosen, since = trying
            known = self._failures.get((chosen.release.id, chosen.sequence))
            return _told(chosen.release.id, chosen.sequence, known) | {
                "trying_for_s": round(self._clock() - since, 1)
            }
        if problem is None:
            return None
        return _told(problem.release, problem.sequence, problem) | {
            "next_attempt_s": round(max(0.0, problem.due - self._clock()), 1)
        }

    def failed(self, release: str, sequence: int, error: PipelineError) -> None:
        """Remember that a release, named by this entry, was not loaded: it is not tried again at once."""
        known = self._failures.get((release, sequence))
        attempts = known.attempts + 1 if known else 1
        longest = LONGEST_WAIT_FOR_A_COPY if error.code in _OF_A_COPY else LONGEST_WAIT
        # Each attempt that breaks the device takes it from who is served for seconds: few of them.
        first = LONGEST_WAIT if isinstance(error, DeviceError) else FIRST_WAIT
        wait = min(longest, first * 2.0 ** min(attempts - 1, 20))
        self.problem = SwitchProblem(
            release=release,
            sequence=sequence,
            error=_of_the_switch(error),
            attempts=attempts,
            due=self._clock() + wait,
        )
        while len(self._failures) >= _MOST_FAILURES:
            del self._failures[next(iter(self._failures))]
        self._failures[release, sequence] = self.problem
        self._told(release, error.code)
        if known is None or known.error.code != error.code:
            fields = {"event": "switch_failed", "release": release or None, "reason": error.code}
            _LOGGER.error("not switched: %s", error, extra={"fields": fields})


def _of_the_switch(error: PipelineError) -> PipelineError:
    """Not the device's own error: with another release, served before, the device may do."""
    return NotTakenError(error) if isinstance(error, DeviceError) else error


def _told(release: str, sequence: int, problem: SwitchProblem | None) -> dict[str, object]:
    """One shape, whether it failed, is being tried for the first time, or once more."""
    return {
        "wanted": release or None,
        "entry": max(sequence, 0) or None,
        "reason": problem.error.code if problem else None,
        "message": str(problem.error) if problem else None,
        "attempts": problem.attempts if problem else 0,
        "next_attempt_s": None,
        "trying_for_s": None,
    }


_OVERTAKEN: Final = "the channel names another release by now"
_OF_A_COPY: Final = ("not_there_yet", "store", "store_missing")
_ANY_ENTRY: Final = -1
_MOST_FAILURES: Final = 64
_AFTER_CRASHES: Final = (15.0, 60.0, LONGEST_WAIT)
"""Seconds by crashes in a row: one may have been the power, which says nothing of the release."""

_CRASHED_HINT: Final = "the artifact does not go with what runs it here: choose another release"
