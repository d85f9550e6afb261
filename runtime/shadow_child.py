"""The canary in a process of its own: how long it takes, and how it may end, is nobody else's trouble.

It takes frames on its standard input and answers each on its standard output. ``runtime.shadow_start`` begins
it, ``runtime.shadow_process`` is the other end. Its first answer is a line of JSON: ``{"ready": true}``, or
why it is not.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import EngineError, GoldenMismatchError, PipelineError, WindowError
from runtime.contract.motifs import MotifHead, MotifScorer
from runtime.contract.release_directory import Release, open_release
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE, FloatArray, Window
from runtime.engines import Engine, open_engine
from runtime.golden import GoldenWindow, compare_golden
from runtime.plausibility import is_probe

WINDOW_FRAME: Final = b"W"
"""Followed by float32 (100, 9), then float32 (64,), what stable said of it."""

GOLDEN_FRAME: Final = b"G"
"""Followed by a number, unsigned and 32 bits: run that golden window, modulo how many there are."""

REPLY: Final = struct.Struct("<Bddb")
"""Outcome; 1 - cosine of the latents; CPU seconds in the engine; whether motifs agree: -1 not compared."""

COMPARED, PROBE, FAILED, GOLDEN_MISSED, UNFIT = range(5)
"""Outcomes: compared; known probe traffic; could not be run; a golden one gave something else; a client's
window with a value that stable can normalize and the canary cannot, which is no failure."""

CLEAR_MARGIN: Final = 0.3
"""Probability by which stable's first motif leads its second, for a disagreement to mean something."""

WINDOW_BYTES: Final = 4 * WINDOW_SHAPE[0] * WINDOW_SHAPE[1]
LATENT_BYTES: Final = 4 * LATENT_SIZE
_INDEX: Final = struct.Struct("<I")
HANG_SECONDS: Final = 20
_REFUSED: Final = 3


class StableUnreadableError(PipelineError):
    """Stable's files, which the canary is compared with, are not what they were when stable was loaded."""

    code = "stable_unreadable"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of one window."""

    outcome: int
    distance: float = 0.0
    seconds: float = 0.0
    agrees: int = -1

    def packed(self) -> bytes:
        """As ``REPLY``."""
        return REPLY.pack(self.outcome, self.distance, self.seconds, self.agrees)

    @classmethod
    def unpacked(cls, data: bytes) -> Reply:
        """The reverse."""
        outcome, distance, seconds, agrees = REPLY.unpack(data)
        return cls(outcome=outcome, distance=distance, seconds=seconds, agrees=agrees)


class Comparison:
    """Holds the canary's answer to a window against stable's.

    Args:
        engine: The canary's.
        canary, stable: The verified releases.

    Raises:
        StableUnreadableError: Stable's golden windows are not there any more.
        PipelineError: The canary's are not.
    """

    def __init__(self, engine: Engine, canary: Release, stable: Release) -> None:
        self._engine = engine
        ours, theirs = canary.manifest.motif_head, stable.manifest.motif_head
        self._ours, self._theirs = MotifScorer(ours), MotifScorer(theirs)
        self._same_motifs = _names(ours) == _names(theirs)
        self._own = GoldenWindow.all_of(canary)
        with _of_stable():
            self._golden = GoldenWindow.all_of(stable)

    def window(self, window: Window, stable: FloatArray) -> Reply:
        """Run float32 (100, 9); hold its latent against float32 (64,)."""
        if is_probe(window):
            return Reply(outcome=PROBE)
        try:
            return self._compared(window, stable)
        except WindowError:
            # One value of a client, about as large as float32 goes, must not roll a release back.
            return Reply(outcome=UNFIT)

    def golden(self, number: int) -> Reply:
        """Run a golden window of the canary's own, then compare on one of stable's."""
        own, theirs = self._own[number % len(self._own)], self._golden[number % len(self._golden)]
        try:
            own.check(self._engine.infer(own.window), self._engine.kernel_family)
            return self._compared(theirs.window, theirs.expected)
        except GoldenMismatchError:
            return Reply(outcome=GOLDEN_MISSED)
        except (EngineError, WindowError):
            return Reply(outcome=FAILED)

    def _compared(self, window: Window, stable: FloatArray) -> Reply:
        """Run a window that stable answered; WindowError where it cannot be normalized."""
        # Its own work: at the lowest priority, a clock on the wall would tell how busy everybody else is.
        begin = time.process_time()
        try:
            latent = self._engine.infer(window)
            _check_finite(latent)
            scores = self._ours.scores(latent)
            seconds = time.process_time() - begin
            distance = _distance(latent, stable)
        except EngineError:
            return Reply(outcome=FAILED)
        agrees = self._agrees(scores, self._theirs.scores(stable)) if self._same_motifs else -1
        return Reply(outcome=COMPARED, distance=distance, seconds=seconds, agrees=agrees)

    @staticmethod
    def _agrees(scores: npt.NDArray[np.float64], stable: npt.NDArray[np.float64]) -> int:
        if len(stable) < 2:
            return -1
        second, first = np.sort(stable)[-2:]
        if first - second < CLEAR_MARGIN:
            return -1
        return int(scores.argmax() == stable.argmax())


def _names(head: MotifHead) -> tuple[str, ...]:
    return tuple(head.names)


def _check_finite(latent: FloatArray) -> None:
    """Whoever computed it, and whatever was checked there: no NaN becomes a distance, or an agreement."""
    if not np.isfinite(latent).all():
        raise EngineError("not finite", where="latent")


def _distance(a: FloatArray, b: FloatArray) -> float:
    """1 - cosine of two latents, from 0 to 2; 1 where one of them is nothing but zeros.

    Raises:
        EngineError: A number of them is not finite.
    """
    _check_finite(a)
    _check_finite(b)
    lengths = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    if lengths == 0.0:
        return 0.0 if not a.any() and not b.any() else 1.0
    return min(2.0, max(0.0, 1.0 - float(np.dot(a.astype(np.float64), b.astype(np.float64))) / lengths))


def answer_all(comparison: Comparison, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer each frame, until there are no more."""
    while kind := source.read(1):
        # Who asks ends what hangs; where that one has ended, nobody does.
        signal.alarm(HANG_SECONDS)
        if kind == WINDOW_FRAME:
            window = np.frombuffer(source.read(WINDOW_BYTES), "<f4").reshape(WINDOW_SHAPE)
            reply = comparison.window(window, np.frombuffer(source.read(LATENT_BYTES), "<f4"))
        else:
            reply = comparison.golden(_INDEX.unpack(source.read(_INDEX.size))[0])
        signal.alarm(0)
        sink.write(reply.packed())
        sink.flush()


def window_frame(window: Window, stable: FloatArray) -> bytes:
    """A frame that asks for a comparison."""
    return WINDOW_FRAME + window.astype("<f4").tobytes() + stable.astype("<f4").tobytes()


def golden_frame(number: int) -> bytes:
    """A frame that asks for a golden window."""
    return GOLDEN_FRAME + _INDEX.pack(number % 2**32)


@contextlib.contextmanager
def _of_stable() -> Iterator[None]:
    """Stable serves from memory whatever became of its files, and the canary has no part in that."""
    try:
        yield
    except PipelineError as error:
        raise StableUnreadableError(error.what, where=error.where, hint=error.hint) from error


def _opened(directory: Path) -> Release:
    release = open_release(directory, directory.name)
    release.verify()
    release.check_publishable()
    release.check_artifact()
    return release


def main(arguments: Sequence[str]) -> int:
    """Load, say so, and answer."""
    try:
        canary = _opened(Path(arguments[0]))
        with _of_stable():
            stable = _opened(Path(arguments[1]))
        engine = open_engine(canary)
        compare_golden(engine, canary).check(canary.manifest.artifact)
        comparison = Comparison(engine, canary, stable)
    except PipelineError as error:
        print(json.dumps({"ready": False, "code": error.code, "message": str(error)[:1000]}), flush=True)
        return _REFUSED
    signal.alarm(0)  # runtime.shadow_start set it for loading
    print(json.dumps({"ready": True}), flush=True)
    with engine, contextlib.suppress(BrokenPipeError, struct.error, ValueError):
        answer_all(comparison, sys.stdin.buffer, sys.stdout.buffer)
    return 0
