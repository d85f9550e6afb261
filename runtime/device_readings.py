"""Temperature, power and identity of the chip for ``/metrics``, on a slow schedule of their own."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOGGER: Final = logging.getLogger("runtime.device")
INTERVAL: Final = 30.0
"""Seconds between readings; Prometheus asks every 10 s, a chip warms up in minutes."""

DEADLINE: Final = 10.0
"""Seconds for one reading, the start of the reader among them; then the reader is killed."""

END_SECONDS: Final = 1.0
"""Seconds that a killed reader is waited for."""

COMMAND: Final = (sys.executable, "-m", "runtime.engines.hailo_readings")


class ReadingError(Exception):
    """No reading this time; says why."""


@dataclass(frozen=True, kw_only=True)
class DeviceReading:
    """What was read of the chip.

    Args:
        architecture: ``hailo8`` or ``hailo8l``.
        firmware: Version of the firmware.
        serial: Serial number; empty where the board has none.
        celsius: Temperature of each sensor in the chip.
        watts: Power; None where the board does not measure it.
    """

    architecture: str
    firmware: str
    serial: str
    celsius: tuple[float, ...]
    watts: float | None

    @classmethod
    def parse(cls, line: str) -> DeviceReading:
        """Read the reader's line; ReadingError where it is no reading."""
        try:
            found = json.loads(line)
            if "error" in found:
                raise ReadingError(str(found["error"]))
            reading = cls(**{**found, "celsius": tuple(found["celsius"])})
            numbers = [*reading.celsius, *([] if reading.watts is None else [reading.watts])]
            if not all(math.isfinite(number) for number in numbers):
                raise ReadingError(f"not finite: {line.strip()[:200]}")
        except (ValueError, TypeError, KeyError) as error:
            raise ReadingError(f"no reading: {line.strip()[:200]!r}") from error
        return reading


class DeviceReadings:
    """Reads every ``INTERVAL`` seconds while a chip is served; never in this process.

    A reading that fails is counted, and logged once until one succeeds; what was read before then is
    no longer shown. Nothing of it touches inference: the chip's calls are made by a child process,
    and waited for by a thread that holds nothing.

    Args:
        wanted: Whether a chip is served now.
        show: Told each reading, and None where there is none any more.
        failed: Told of each reading that failed.
        command: The reader.
        deadline: Seconds for one reading.
    """

    def __init__(
        self,
        wanted: Callable[[], bool],
        show: Callable[[DeviceReading | None], None],
        failed: Callable[[], None],
        command: Sequence[str] = COMMAND,
        deadline: float = DEADLINE,
    ) -> None:
        self._wanted = wanted
        self._show = show
        self._failed = failed
        self._command = command
        self._deadline = deadline
        self._child: subprocess.Popen[bytes] | None = None
        self._told = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-readings", daemon=True)

    def step(self) -> None:
        """Read once, where a chip is served; else let the reader go."""
        if not self._wanted():
            self._end_child()
            self._show(None)
            return
        try:
            reading = DeviceReading.parse(self._ask())
        except (ReadingError, OSError) as error:
            self._end_child()
            self._show(None)
            self._failed()
            if not self._told and not self._stopping.is_set():
                _LOGGER.warning("no reading of the device: %s", error)
            self._told = True
            return
        self._told = False
        self._show(reading)

    def start(self) -> None:
        """Go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and the reader; a reading that runs is cut short."""
        self._stopping.set()
        child = self._child
        if child is not None:
            child.kill()
        if self._thread.is_alive():
            self._thread.join(1.0)
        self._end_child()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.step()
            self._stopping.wait(INTERVAL)

    def _ask(self) -> str:
        child = self._child
        if child is None or child.poll() is not None:
            root = str(Path(__file__).resolve().parent.parent)
            paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            child = self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
                bufsize=0,
            )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"\n")
        found, end = b"", time.monotonic() + self._deadline
        while not found.endswith(b"\n"):
            if not select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise ReadingError(f"no answer within {self._deadline:g} s")
            part = os.read(child.stdout.fileno(), 65536)
            if not part:
                # It may have closed its output and live on: it is not waited for.
                raise ReadingError(f"the reader gives no more answers (exit status {child.poll()})")
            found += part
        return found.decode("utf-8", "replace")

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that the kernel does not let go of ends when it can; nobody waits for it here.
            child.wait(END_SECONDS)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
