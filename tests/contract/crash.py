"""Every call that changes a directory, watched: counted, logged with its bytes, failed, or the last one.

``disk.py`` says what a loss of power leaves of a log; here a process is killed, or hears an error.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

CHANGES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TWO_PATHS: Final = ("rename", "replace", "link")
ONE_PATH: Final = ("unlink", "remove", "mkdir", "rmdir", "chmod")
DESCRIPTOR: Final = ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "fchmod")
EVENT_OF: Final = {
    "open": "open",
    "rename": "os.rename",
    "replace": "os.rename",
    "link": "os.link",
    "unlink": "os.remove",
    "remove": "os.remove",
    "mkdir": "os.mkdir",
    "rmdir": "os.rmdir",
    "chmod": "os.chmod",
    "fchmod": "os.chmod",
    "ftruncate": "os.truncate",
}
"""What the interpreter itself reports of a call, in C: write and fsync it does not report."""
HARMLESS_EVENTS: Final = ("os.listdir", "os.scandir", "os.walk")


@dataclass(frozen=True)
class Call:
    """One call that changes something.

    Args:
        path: Of the file; for a call on a descriptor, the one that it was opened by.
        to: The second path, where there is one.
        handle: Which ``open`` the descriptor is of; for an ``open``, its own.
        data: What is written.
        number: Offset, mode, size or flags.
        done: Whether it succeeded.
    """

    name: str
    path: str
    to: str = ""
    handle: int = 0
    data: bytes = field(default=b"", repr=False)
    number: int = 0
    done: bool = True


Act = Callable[[int, Call, Callable[[], object]], object]
"""Called before each call with its index, the call, and, for a write, what writes half of it."""


def do_nothing(_index: int, _call: Call, _half: Callable[[], object]) -> None:
    """Let every call happen."""


class Watch:
    """Between ``__enter__`` and ``__exit__``, os's functions that change something pass here.

    fsync is counted and not done: nothing here loses power but in the model of ``disk.py``.
    """

    def __init__(self, act: Act = do_nothing) -> None:
        self.calls: list[Call] = []
        self._act = act
        self._real: dict[str, Callable[..., Any]] = {}
        self._paths: dict[int, tuple[str, int]] = {}
        self._handles = 0

    def __enter__(self) -> Watch:
        for name in ("open", *TWO_PATHS, *ONE_PATH, *DESCRIPTOR):
            self._real[name] = getattr(os, name)
            setattr(os, name, self._wrapper(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _wrapper(self, name: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **named: Any) -> Any:
            if name == "open":
                return self._open(*args, **named)
            call = self._call(name, args, named)
            return self._pass(call, lambda: self._do(name, args, named))

        return wrapper

    def _do(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return None if name in ("fsync", "fdatasync") else self._real[name](*args, **named)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        self._handles += 1
        call = Call("open", self._path(path, dir_fd), handle=self._handles, data=b"%o" % mode, number=flags)

        def really() -> int:
            descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            self._paths[descriptor] = (call.path, call.handle)
            return descriptor

        if flags & CHANGES:
            return int(self._pass(call, really))
        descriptor = really()
        self.calls.append(call)  # so that a replay knows what a later fsync is of; not counted
        return descriptor

    def _pass(self, call: Call, really: Callable[[], Any]) -> Any:
        place = len(self.calls)
        self.calls.append(call)
        done = False
        try:
            self._act(len(counted(self.calls)) - 1, call, lambda: self._half(call))
            result = really()
            done = True
        finally:
            data = call.data[:result] if done and call.name in ("write", "pwrite") else call.data
            self.calls[place] = Call(call.name, call.path, call.to, call.handle, data, call.number, done)
        return result

    def _half(self, call: Call) -> None:
        descriptor = next(fd for fd, (_, handle) in self._paths.items() if handle == call.handle)
        half = call.data[: len(call.data) // 2]
        if call.name == "pwrite":
            self._real["pwrite"](descriptor, half, call.number)
        else:
            self._real["write"](descriptor, half)

    def _call(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Call:
        if name in TWO_PATHS:
            source = self._path(args[0], named.get("src_dir_fd"))
            return Call(name, source, to=self._path(args[1], named.get("dst_dir_fd")))
        number = int(args[-1]) if name in ("pwrite", "ftruncate", "fchmod") else 0
        if name in ONE_PATH:
            number = int(args[1]) if len(args) > 1 else named.get("mode", 0o777)
            return Call(name, self._path(args[0], named.get("dir_fd")), number=number)
        path, handle = self._paths[args[0]]
        data = bytes(args[1]) if name in ("write", "pwrite") else b""
        return Call(name, path, handle=handle, data=data, number=number)

    def _path(self, path: Any, descriptor: int | None) -> str:
        folder = Path(self._paths[descriptor][0]) if descriptor is not None else Path.cwd()
        return str(folder / os.fsdecode(path))


def counted(calls: list[Call]) -> list[Call]:
    """Without the opens that only read."""
    return [call for call in calls if call.name != "open" or call.number & CHANGES]


class ChildError(AssertionError):
    """What a child raised, as text."""


KILLED: Final = "killed"


def in_child(work: Callable[[], object]) -> Any:
    """What ``work`` returns in a forked process, or ``KILLED`` where SIGKILL ended it."""
    return _start(work)()


def at_once(works: Sequence[Callable[[], object]]) -> list[Any]:
    """What each returns, every one in a process of its own, all let go together."""
    waiting, going = os.pipe()

    def told(work: Callable[[], object]) -> object:
        os.close(going)
        os.read(waiting, 1)  # ends when nobody holds the other end any more
        return work()

    answers = [_start(functools.partial(told, work)) for work in works]
    os.close(going)
    os.close(waiting)
    return [answer() for answer in answers]


def _start(work: Callable[[], object]) -> Callable[[], Any]:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests: the child needs none
        child = os.fork()
    if child == 0:
        _child(work, reading, writing)
    os.close(writing)
    return functools.partial(_answer, child, reading)


def _answer(child: int, reading: int) -> Any:
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return KILLED
    good, value = pickle.loads(answer)
    if not good:
        raise ChildError(value)
    return value


def _child(work: Callable[[], object], reading: int, writing: int) -> NoReturn:
    write, code = os.write, 1  # os.write may be watched when this ends
    try:
        os.close(reading)
        try:
            answer = pickle.dumps((True, work()))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        rest = memoryview(answer)
        while rest:
            rest = rest[write(writing, rest) :]
        code = 0
    finally:
        os._exit(code)


def kill_at(number: int, *, half: bool = False) -> Act:
    """SIGKILL to this very process just before a call, or in the middle of a write."""

    def act(index: int, call: Call, write_half: Callable[[], object]) -> None:
        if index == number:
            if half:
                write_half()
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail_at(number: int, code: int) -> Act:
    """An OSError instead of a call."""

    def act(index: int, call: Call, _half: Callable[[], object]) -> None:
        if index == number:
            raise OSError(code, os.strerror(code), call.path)

    return act


def watched(work: Callable[[], object], act: Act = do_nothing) -> list[Call]:
    """Calls of ``work``, in this process."""
    with Watch(act) as watch:
        work()
    return watch.calls


def audited(work: Callable[[], object]) -> tuple[list[Call], list[tuple[str, str]]]:
    """Calls of ``work``, and what the interpreter reports by itself. For a child: a hook stays for good."""
    events: list[tuple[str, str]] = []
    listening = [False]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not listening[0] or event in HARMLESS_EVENTS:
            return
        if event == "open" and not args[2] & CHANGES:
            return
        if event == "open" or event.startswith("os."):
            events.append((event, _last(args[0])))

    sys.addaudithook(hook)
    with Watch() as watch:
        listening[0] = True
        work()
        listening[0] = False
    return watch.calls, events


def expected_events(calls: list[Call]) -> list[tuple[str, str]]:
    """What the interpreter must have reported of these calls."""
    return [
        (EVENT_OF[call.name], "" if call.name in DESCRIPTOR else _last(call.path))
        for call in counted(calls)
        if call.name in EVENT_OF
    ]


def _last(path: Any) -> str:
    return "" if isinstance(path, int) else Path(os.fsdecode(path)).name


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Without waiting for the disk, where no loss of power is asked about."""
    real = os.fsync
    os.fsync = lambda fd: None
    try:
        yield
    finally:
        os.fsync = real
