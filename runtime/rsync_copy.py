"""rsync as a child: what is copied is named, and time, sizes and free space are bounded.

Nothing that comes is believed: who calls verifies it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from runtime.contract.errors import ConfigError, PipelineError, ReleaseNotFoundError, StoreError, store_errors
from runtime.contract.files import is_directory

STALLED_SECONDS: Final = 60
"""Where nothing changed in the folder for so long, rsync is ended. It writes 256 KiB at a time: a line of
less than 5 kB/s is none."""
LEFT_FREE_BYTES: Final = 64 * 1024 * 1024
"""What a copy leaves free, whatever the source sends: the Pi has to go on writing its logs and state."""
VANISHED: Final = 24
"""rsync's exit status where a file was gone before it was copied: what came is judged, not what did not."""
_LOOK_SECONDS: Final = 0.1
_END_SECONDS: Final = 5.0
_MOST_WORDS: Final = 600
_PR_SET_PDEATHSIG: Final = 1
_ADDRESS: Final = re.compile(r"(?!-)[^/:\s]+:(?!:|//).*", re.S)


class NoRsyncError(PipelineError):
    """rsync is not installed here."""

    code = "no_rsync"


class TransferError(PipelineError):
    """rsync ended without having copied what was asked for; says what it said."""

    code = "transfer"


class TransferTimeoutError(TransferError):
    """It took longer than it may."""

    code = "transfer_timeout"


class NoSpaceError(StoreError):
    """The disk would be full."""

    code = "no_space"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a store is copied from.

    Args:
        place: A directory, or ``[user@]host:path`` for rsync over ssh.
        rsh: The command in place of ssh, as rsync's ``-e`` takes it; empty for ``RSYNC_RSH``, else ssh.
    """

    place: str
    rsh: str = ""

    def check(self) -> None:
        """Refuse what is neither.

        Raises:
            ConfigError: It has another form.
            ReleaseNotFoundError: It is a directory's name, and none is there.
            StoreError: That cannot be told.
        """
        if _ADDRESS.fullmatch(self.place):
            return
        if "::" in self.place or "://" in self.place or not self.place or self.place.startswith("-"):
            raise ConfigError(
                "is neither a directory nor host:path",
                where=self.place or "SOURCE",
                hint="rsync's own server is not spoken to: it is not encrypted; use ssh",
            )
        with store_errors(Path(self.place)):
            there = is_directory(Path(self.place))
        if not there:
            raise ReleaseNotFoundError(
                "is no directory", where=self.place, hint="a directory with a release store, or host:path"
            )


class Copier:
    """Copies from one source into one folder, within one deadline.

    Args:
        source: Checked.
        to: The folder; there.
        seconds: For everything that this copier is asked for.
        lock: A descriptor that rsync inherits: where this process is killed, what it locks stays locked
            until rsync has ended, too.
    """

    def __init__(self, source: Source, to: Path, seconds: float, lock: int) -> None:
        self._source, self._to, self._lock = source, to, lock
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        found = shutil.which("rsync")
        if found is None:
            raise NoRsyncError("is not installed", where="rsync", hint="apt-get install rsync")
        self._rsync = found

    def mirror(self, folder: str, patterns: Sequence[str], largest: int) -> None:
        """Make the files of a folder that match be those of the source, and no others.

        Args:
            folder: In the store.
            patterns: As rsync's, from the store's root; folders that lead there are named before.
            largest: Bytes of the largest file that is taken; larger ones are left out.

        Raises:
            TransferError: As ``files``.
        """
        (self._to / folder).mkdir(exist_ok=True)
        chosen = [f"--include=/{each}" for each in patterns]
        self._run(
            # By content: one that another of its size was put in place of in the same second is copied, too.
            # What is excluded is not deleted.
            ["--delete", "--checksum", f"--max-size={largest}", f"--include=/{folder}/", *chosen],
            ["--exclude=*"],
        )

    def files(self, names: Sequence[str], largest: int, *, resume: bool) -> None:
        """Copy files by name. What the source lacks is left out.

        Args:
            names: From the store's root.
            largest: As ``mirror``.
            resume: Of files that are there in part, copy the rest; those that are there and not shorter stay.

        Raises:
            TransferTimeoutError: It took too long, or nothing came for ``STALLED_SECONDS``.
            NoSpaceError: The disk was about to be full.
            TransferError: rsync failed otherwise, the connection among it; says what it said.
            StoreError: The folder cannot be written.
        """
        if not names:
            return
        with tempfile.NamedTemporaryFile(dir=self._to, prefix=".names-") as listed:
            listed.write(b"".join(os.fsencode(name) + b"\0" for name in names))
            listed.flush()
            how = ["--from0", f"--files-from={listed.name}", "--ignore-missing-args", f"--max-size={largest}"]
            # In place: a temporary file of a killed rsync is nobody's, and would be copied from its start.
            self._run([*how, "--append-verify" if resume else "--checksum"], [])

    def _run(self, options: Sequence[str], last: Sequence[str]) -> None:
        command = [self._rsync, "--recursive", "--times", "--chmod=D755,F644"]
        command += [f"--timeout={STALLED_SECONDS}", "--no-motd", *options, *last]
        command += [f"--rsh={self._source.rsh}"] if self._source.rsh else []
        command += ["--", f"{self._source.place.rstrip('/') or '/'}/", f"{self._to}/"]
        if self._source.place.endswith(":"):
            command[-2] = self._source.place  # the account's own folder, not the root
        with store_errors(self._to), tempfile.TemporaryFile(dir=self._to, prefix=".said-") as said:
            libc = ctypes.CDLL(None)  # loaded here: the child does nothing but call it
            # This process has one thread: the child is born without a lock that nobody gives back.
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, "LC_ALL": "C"},
                pass_fds=(self._lock,),
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            ) as process:
                try:
                    self._wait(process)
                finally:
                    _end(process)
            self._judge(process.returncode, _words(said))

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        # rsync's own --timeout does not see it: what its two halves here say to each other, and what it sends
        # into the pipe of ssh, counts as life.
        state, since = _state(self._to), time.monotonic()
        looked = since
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
                return
            if time.monotonic() > self._deadline:
                raise TransferTimeoutError(
                    f"is not done after {self._seconds:g} s",
                    where=self._source.place,
                    hint="what came is kept: the next pull goes on from there; --seconds allows more",
                )
            check_space(self._to, 0)
            if time.monotonic() > looked + STALLED_SECONDS / 10:
                was, state, looked = state, _state(self._to), time.monotonic()
                since = since if was == state else looked
                if looked > since + STALLED_SECONDS:
                    raise TransferTimeoutError(
                        f"nothing came for {STALLED_SECONDS} s",
                        where=self._source.place,
                        hint="does the host answer? what came is kept: the next pull goes on from there",
                    )

    def _judge(self, code: int, words: str) -> None:
        if code in (0, VANISHED):
            return
        if "No space left on device" in words or "Disk quota exceeded" in words:
            raise NoSpaceError(f"the disk is full: {words}", where=str(self._to), hint=_MAKE_ROOM)
        kind = TransferTimeoutError if code in (30, 35) else TransferError
        raise kind(
            f"rsync ended with {code}: {words or 'it said nothing'}",
            where=self._source.place,
            hint="is the host reached, and rsync there, too? the next pull goes on where this ended",
        )


_MAKE_ROOM: Final = "`releasectl prune` takes away releases that no channel needs"


def check_space(folder: Path, wanted: int) -> None:
    """NoSpaceError where writing so many bytes would not leave ``LEFT_FREE_BYTES``."""
    with store_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < wanted + LEFT_FREE_BYTES:
        raise NoSpaceError(
            f"{wanted / 2**20:.1f} MiB are to come and {LEFT_FREE_BYTES / 2**20:.0f} MiB stay free, "
            f"but {free / 2**20:.1f} MiB are",
            where=str(folder),
            hint=_MAKE_ROOM,
        )


def _state(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Names, sizes and times of all files below: changes with whatever is written."""
    found = set()
    with store_errors(folder):
        for where, _, names in os.walk(folder):
            for path in (Path(where) / name for name in names):
                with contextlib.suppress(FileNotFoundError):  # rsync is at work
                    status = path.lstat()
                    found.add((str(path), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()  # rsync tells the other side
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    if process.poll() is None:
        process.kill()


def _words(said: IO[bytes]) -> str:
    """The beginning of what it said, in one line."""
    said.seek(0)
    lines = said.read(_MOST_WORDS).decode(errors="replace").splitlines()
    return "; ".join(line.strip() for line in lines if line.strip())
