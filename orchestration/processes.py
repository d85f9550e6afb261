"""Child processes that never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

from orchestration.settings import ROOT

GRACE_SECONDS: Final = 10.0
TOLD_SECONDS: Final = 5.0
KEPT_LOG_FOLDERS: Final = 10
_POLL_SECONDS: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked this process to end."""


def _prepare_child() -> None:
    """Runs in the child: signals as by default, and an end when the parent is killed.

    A shell that starts us in the background ignores SIGINT for us and so for the child; Dagster
    then ignores SIGTERM too.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def log_folder(logs: Path, verb: str) -> Iterator[Path]:
    """A new folder below ``logs`` for this process alone; of the older ones the newest are kept.

    It is locked meanwhile, so that another process does not clear it away.
    """
    logs.mkdir(parents=True, exist_ok=True)
    # The random end: process ids repeat, also between containers that share the folder.
    folder = Path(tempfile.mkdtemp(prefix=f"{verb}-{os.getpid()}-", dir=logs))
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        ours = [path for path in logs.iterdir() if re.fullmatch(r"[a-z]+-\d+-\w+", path.name)]
        for old in sorted(ours, key=_changed)[:-KEPT_LOG_FOLDERS]:
            with contextlib.suppress(OSError), _opened(old) as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
        yield folder


def _changed(folder: Path) -> int:
    # Another process may be clearing away too.
    with contextlib.suppress(FileNotFoundError):
        return folder.stat().st_mtime_ns
    return 0


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Child:
    """A running child, in a process group of its own.

    Args:
        name: How messages call it.
        process: What was started.
        log: Where its output goes; None where it goes to ours.
        check: Called while it is waited for; raises to break the wait off.
        grace: Seconds from being asked to end until it is told.
    """

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        log: Path | None,
        check: Callable[[], None],
        grace: float,
    ) -> None:
        self.name = name
        self.process = process
        self.log = log
        self._check = check
        self._grace = grace
        self._asked_by, self._asked_all = signal.SIGINT, False

    def asked_by(self, number: signal.Signals, *, all_of_it: bool = False) -> Child:
        """By which signal it is to be asked to end, and whether its whole group is; returns the child."""
        self._asked_by, self._asked_all = number, all_of_it
        return self

    def wait(self) -> int:
        """Its exit status, when it ends."""
        while (status := self.process.poll()) is None:
            self._check()
            time.sleep(_POLL_SECONDS)
        return status

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true before the child ended or the time was up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check()
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(_POLL_SECONDS)
        return False

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, for an error message."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join(f"  {self.name}: {line}" for line in lines)

    def ask(self) -> None:
        """Ask it to end; returns at once."""
        if not self._asked_all:
            self._signal(self._asked_by)
        elif self.process.poll() is None:
            os.killpg(self.process.pid, self._asked_by)

    def end(self) -> None:
        """Wait for what ``ask`` asked; then tell it, then kill it and its whole group."""
        self._wait_at_most(self._grace)
        self._signal(signal.SIGTERM)
        self._wait_at_most(TOLD_SECONDS)
        # Also where it ended by itself: a child of its own may have stayed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def _wait_at_most(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)


class Children:
    """Starts children and ends them all on leaving, on a signal too.

    Inside the context SIGINT, SIGTERM and SIGHUP raise ``Stopped`` once; while the children are
    being ended they are ignored. Python drops what is raised in a destructor or in a weak reference's
    callback, so whoever waits for a child also asks ``check``.
    """

    def __init__(self) -> None:
        self._asked = False
        self._children: list[Child] = []
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Children:
        for number in _STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Only once: a second one would break off the ending that the first one began.
        if not self._asked:
            self._asked = True
            raise Stopped

    def check(self) -> None:
        """Raise ``Stopped`` where somebody asked to end."""
        if self._asked:
            raise Stopped

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        log: Path | None = None,
        grace: float = GRACE_SECONDS,
    ) -> Child:
        """Start a child in the project's root; its output goes to ``log``, a new file, or here.

        ``grace`` is what it gets between being asked to end and being told.
        """
        with contextlib.ExitStack() as files:
            out = files.enter_context(log.open("xb")) if log else None
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
                preexec_fn=_prepare_child,
            )
        child = Child(name, process, log, self.check, grace)
        self._children.append(child)
        return child

    def end(self, child: Child) -> None:
        """End one of the children now, and what it left of its group where it ended by itself."""
        child.ask()
        child.end()
        self._children.remove(child)

    def wait_for_first(self, children: Sequence[Child]) -> Child:
        """The first of the children to end."""
        while True:
            self.check()
            for child in children:
                if child.process.poll() is not None:
                    return child
            time.sleep(_POLL_SECONDS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # All at once: while one takes its time, another one would go on with what it does. A build has
        # the shortest grace and is waited for first.
        for child in self._children:
            child.ask()
        for child in self._children:
            child.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
