"""Windows that are worth a look, kept on the disk: uncertain, far from calibration, implausible, disputed.

The answering path decides and puts into a short line what is kept; it never waits and never fails because of
it. A thread writes. What is dropped on the way is counted.
"""

from __future__ import annotations

import logging
import math
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.active_model import ActiveModel
from runtime.config import VERSION, RuntimeConfig
from runtime.contract.cpu import this_machine
from runtime.contract.telemetry import (
    DISAGREEMENT,
    FAR,
    LOW_MARGIN,
    KeptWindow,
    Origin,
    Scored,
    encode_file,
    encode_window,
    printable,
    time_text,
)
from runtime.contract.window import FloatArray, Window
from runtime.infer_answer import Scores
from runtime.plausibility import is_probe
from runtime.telemetry_folder import TelemetryFolder
from runtime.telemetry_metrics import TelemetryCounts

MOST_WAITING: Final = 64
MOST_IN_A_FILE: Final = 64
"""Windows: about 250 kB, a quarter of the smallest bound."""

LOOK_SECONDS: Final = 1.0
WRITE_SECONDS: Final = 30.0
"""After which what was kept is written: so much is lost where the process is killed."""

STOP_SECONDS: Final = 3.0
_LOGGER: Final = logging.getLogger("runtime.telemetry")


@dataclass(frozen=True, slots=True)
class _Waiting:
    seconds: float
    model: ActiveModel
    reasons: tuple[str, ...]
    window: Window
    latent: FloatArray
    scores: Scores


class Telemetry:
    """Decides which windows are kept, and writes them in a thread of its own.

    Args:
        config: ``telemetry_*`` of the settings.
        folder: Where they are kept.
        counts: Who counts.
        clock: Seconds that only grow.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        folder: Path,
        counts: TelemetryCounts,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._margin, self._farthest = config.telemetry_margin, config.telemetry_distance**2
        self._spacing = 60.0 / config.telemetry_per_minute
        self._folder = TelemetryFolder(folder, config.telemetry_max_mb * 10**6, wall)
        self._counts, self._clock, self._wall = counts, clock, wall
        self._due: dict[str, float] = {}
        self._line: deque[_Waiting] = deque()
        self._encoded: list[tuple[bytes, tuple[str, ...]]] = []
        self._first = 0.0
        self._problem = ""
        self._mistaken = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._origin = Origin(
            runtime_version=VERSION, machine=printable(platform.node()), cpu=printable(this_machine())
        )

    def offer(
        self, model: ActiveModel, window: Window, latent: FloatArray, scores: Scores, kinds: tuple[str, ...]
    ) -> None:
        """Keep an answered window where there is a reason to; the event loop's, which does not wait.

        Args:
            model: What answered.
            window: float32 (100, 9), physical units, no probe.
            latent: float32 (64,).
            scores: float64 (M,).
            kinds: Its implausible kinds.
        """
        try:
            reasons = self._reasons(model, latent, scores, kinds)
            if reasons:
                self._keep(model, reasons, window, latent, scores)
        except Exception as error:
            self._mistake(error)

    def _reasons(
        self, model: ActiveModel, latent: FloatArray, scores: Scores, kinds: tuple[str, ...]
    ) -> tuple[str, ...]:
        ranked = scores.tolist()
        if len(ranked) > 1:
            ranked.sort()
            if ranked[-1] - ranked[-2] < self._margin:
                kinds = (LOW_MARGIN, *kinds)
        if model.distance is not None and model.distance.squared(latent) > self._farthest:
            kinds = (FAR, *kinds)
        return kinds

    def disagreement(
        self, model: ActiveModel | None, release: str, window: Window, latent: FloatArray
    ) -> None:
        """Keep a window on which canary and stable disagree; the shadow's thread.

        With whatever else is a reason: a window that cannot be right is no candidate for being disputed.

        Args:
            model: What is served.
            release: What answered: where it is another by now, the window is dropped.
            window: float32 (100, 9), physical units.
            latent: float32 (64,), what was answered.
        """
        try:
            if model is None or model.release_id != release:
                self._counts.drop("switched")
            elif not is_probe(window):
                scores = model.scores(latent)
                others = self._reasons(model, latent, scores, model.plausibility.kinds(window))
                self._keep(model, (DISAGREEMENT, *others), window, latent, scores)
        except Exception as error:
            self._mistake(error)

    def _keep(
        self, model: ActiveModel, reasons: tuple[str, ...], window: Window, latent: FloatArray, scores: Scores
    ) -> None:
        now = self._clock()
        # Spread over the minute: the first ten of one are ten copies of one movement.
        if all(now < self._due.get(reason, now) for reason in reasons):
            self._counts.drop("rate")
        elif len(self._line) >= MOST_WAITING:
            self._counts.drop("queue_full")
        else:
            self._due.update(dict.fromkeys(reasons, now + self._spacing))
            # Copies: one of a batch would keep all of its body, and an engine may use its buffer again.
            copies = window.copy(), latent.copy(), scores.copy()
            # Nobody is woken: a thread that begins now wants the interpreter while the answer is written.
            self._line.append(_Waiting(self._wall(), model, reasons, *copies))

    def _mistake(self, error: Exception) -> None:
        self._counts.drop("internal")
        if not self._mistaken:
            self._mistaken = True
            _LOGGER.error("telemetry", exc_info=error, extra={"fields": {"event": "telemetry"}})

    def told(self) -> Mapping[str, object]:
        """For ``/healthz``."""
        counts = self._counts
        told: dict[str, object] = {
            "state": "failing" if self._problem else "keeping",
            "kept": dict(counts.kept),
            "dropped": dict(counts.dropped),
            "bytes": counts.size,
        }
        return told | ({"message": self._problem} if self._problem else {})

    def start(self) -> None:
        """Go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is still there, and end the thread; a disk that hangs is not waited for long."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        self._work(self._look)
        while not self._stopping.wait(LOOK_SECONDS):
            self._work(self.step)
        self._work(lambda: self.step(last=True))

    def _work(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:
            self._encoded.clear()
            self._mistake(error)

    def _look(self) -> None:
        try:
            found = self._folder.look()
        except OSError as error:
            self._failed(error)
        else:
            self._counts.size, self._counts.files = found.size, found.files

    def step(self, *, last: bool = False) -> None:
        """Take up what is in line; write it where it is enough, or waited long enough, or is the last."""
        while self._line:
            waiting = self._line.popleft()
            if not self._encoded:
                self._first = self._clock()
            self._encoded.append((encode_window(_kept(waiting)), waiting.reasons))
            if len(self._encoded) >= MOST_IN_A_FILE:
                self._write()
        if self._encoded and (last or self._clock() >= self._first + WRITE_SECONDS):
            self._write()

    def _write(self) -> None:
        encoded, self._encoded = self._encoded, []
        data = encode_file([line for line, _ in encoded], self._origin)
        try:
            kept = self._folder.write(data, len(encoded))
        except OSError as error:
            self._counts.drop("not_written", len(encoded))
            self._failed(error)
            return
        self._counts.size, self._counts.files = kept.size, kept.files
        self._counts.drop("rotated", kept.removed)
        for _, reasons in encoded:
            self._counts.keep(reasons)
        if self._problem:
            self._problem = ""
            _LOGGER.info("telemetry is written again", extra={"fields": {"event": "telemetry_written"}})

    def _failed(self, error: OSError) -> None:
        """Said once until it is written again: what is lost is counted."""
        before, self._problem = self._problem, f"cannot be written: {error.strerror or error}"
        if not before:
            fields = {"event": "telemetry_failed", "errno": error.errno}
            _LOGGER.error("telemetry %s", self._problem, extra={"fields": fields})


def _kept(waiting: _Waiting) -> KeptWindow:
    names, scores, distance = waiting.model.manifest.motif_head.names, waiting.scores, waiting.model.distance
    first = sorted(range(len(names)), key=lambda place: -scores[place])[:2]
    return KeptWindow(
        time=time_text(waiting.seconds),
        release=waiting.model.release_id,
        reasons=waiting.reasons,
        window=waiting.window,
        latent=waiting.latent,
        motifs=tuple(Scored(motif=printable(names[i]), score=min(1.0, float(scores[i]))) for i in first),
        distance=None if distance is None else math.sqrt(distance.squared(waiting.latent)),
    )
