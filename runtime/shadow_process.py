"""The canary's process as its parent sees it: started, asked, found to be dead, hung or starved, ended."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.errors import PipelineError
from runtime.shadow_child import REPLY, Reply
from runtime.shadow_start import IGNORED

STOP_SECONDS: Final = 3.0
_MOST_LINE: Final = 4096
_LOOKS: Final = 4
"""The process is looked at after so large a part of the time that it has: an answer comes long before."""

_ITS_OWN: Final = 0.5
"""Share of a core from which on a silent process has worked, rather than waited for a core."""

_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Else BLAS starts a thread for each core, which spins before it sleeps."""


class ShadowError(PipelineError):
    """A canary that could not be run beside stable; ``code`` is the reason's own."""

    def __init__(self, what: str, code: str) -> None:
        super().__init__(what, where="shadow", hint="stable is not touched; it is tried again")
        self.code = code  # type: ignore[misc]


class _SilentError(ShadowError):
    """No answer came in time."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the system says of a process: seconds on any core so far, and the main thread's state."""

    cpu: float
    state: str
    at: float


class Child:
    """A process that answers frames; one at a time."""

    def __init__(self, command: list[str]) -> None:
        with _held_back():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parent.parent,
                env=os.environ | _ONE_THREAD,
                bufsize=0,
            )
        assert self._process.stdout is not None
        # No select(): it takes no descriptor above 1023, and a runtime may have more connections.
        self._output = select.poll()
        self._output.register(self._process.stdout, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def ready(self, seconds: float) -> None:
        """Wait until it has loaded; ShadowError where it does not."""
        try:
            line = self._read(_MOST_LINE, seconds, until=b"\n")
        except _SilentError as error:
            # Reading and importing wait for a disk, too: which of all it is nobody can tell.
            raise ShadowError(error.what, "slow_to_load") from error
        with contextlib.suppress(ValueError, TypeError, LookupError):
            told = json.loads(line)
            if told["ready"]:
                return
            raise ShadowError(str(told["message"]), str(told["code"]))
        raise ShadowError("what it said when it had loaded cannot be read", "shadow_protocol")

    def ask(self, frame: bytes, seconds: float) -> Reply:
        """Send a frame and wait for the answer.

        Raises:
            ShadowError: None comes. ``died``: its process ended. ``stalled``: it slept, was stopped, or
                worked all the time. ``starved``: it wanted to work and had no core; not its fault.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame)
        except OSError as error:
            raise self._died() from error
        return Reply.unpacked(self._read(REPLY.size, seconds))

    def _read(self, size: int, seconds: float, until: bytes = b"") -> bytes:
        assert self._process.stdout is not None
        descriptor, deadline, data = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while len(data) < size and not (until and data.endswith(until)):
            self._wait(deadline, seconds)
            piece = os.read(descriptor, 1 if until else size - len(data))
            if not piece:
                raise self._died()
            data += piece
        return data

    def _wait(self, deadline: float, seconds: float) -> None:
        """Until there is something to read; the system is asked about a silent process only."""
        if self.has_said_something((deadline - time.monotonic()) / _LOOKS):
            return
        before = self.look()
        if self.has_said_something(deadline - time.monotonic()):
            return
        problem = _why_silent(before, self.look(), seconds)
        # What it said since, while it was looked at, is an answer.
        if not self.has_said_something(0.0):
            raise problem

    def has_said_something(self, seconds: float) -> bool:
        """Whether there is something to read within so many seconds; looks, though none are left."""
        return bool(self._output.poll(math.ceil(1000 * max(0.0, seconds))))

    def look(self) -> Look | None:
        """What the system says of it now; None where it says nothing, as of one that has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            # A name may have blanks and brackets in it.
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            return Look(cpu=ticks / os.sysconf("SC_CLK_TCK"), state=fields[0], at=time.monotonic())
        return None

    def _died(self) -> ShadowError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1)
            return ShadowError(f"its process ended with status {code}", "died")
        return ShadowError("its process closed its output", "died")

    def kill(self) -> None:
        """Let it end; whoever waits for its answer hears that it died."""
        self._process.kill()

    def end(self) -> None:
        """End it, and wait until it has: not for ever, since what waits for a disk ends when that answers."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _why_silent(before: Look | None, now: Look | None, seconds: float) -> _SilentError:
    """Its own fault, or that of busy cores: it wants to run (``R``), and was not let."""
    silent = f"said nothing for {seconds:g} s"
    if before is None or now is None:
        return _SilentError(f"{silent}; the system does not say what it did", "starved")
    worked, waited = now.cpu - before.cpu, now.at - before.at
    told = f"{silent}; of the last {waited:.2g} s it worked {worked:.2g} s, state {now.state}"
    hung = now.state != "R" or worked >= _ITS_OWN * waited
    return _SilentError(told, "stalled" if hung else "starved")


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """A process begins with these signals blocked: one that comes before it ignores them must not end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_child(canary: Path, stable: Path) -> Child:
    """The process that runs a release; it ends when the calling thread does."""
    return Child([sys.executable, "-m", "runtime.shadow_start", str(canary), str(stable)])
