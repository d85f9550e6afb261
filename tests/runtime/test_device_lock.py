"""The lock that lets one process on the chip: taken once, told who has it, given back by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.engines import device_lock
from runtime.engines.device_lock import NAME, DeviceLock
from runtime.engines.hailo_errors import DeviceBusyError, DeviceLockError
from tests.simulators import ROOT

HOLDER = """
import sys
from pathlib import Path
from runtime.engines.device_lock import DeviceLock
lock = DeviceLock.take(Path(sys.argv[1]))
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_second_one_is_told_who_has_it(tmp_path: Path) -> None:
    lock = DeviceLock.take(tmp_path)
    with pytest.raises(
        DeviceBusyError, match=f"process {os.getpid()} has the chip; this one waits"
    ) as caught:
        DeviceLock.take(tmp_path)
    assert caught.value.where == str(tmp_path / NAME)
    lock.release()
    lock.release()
    DeviceLock.take(tmp_path).release()


@pytest.mark.parametrize("end", ["kill", "end of input"])
def test_the_end_of_a_process_gives_it_back(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        with pytest.raises(DeviceBusyError, match=f"process {holder.pid} has"):
            DeviceLock.take(tmp_path)
        if end == "kill":
            holder.kill()
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait(30)
        DeviceLock.take(tmp_path).release()


def test_no_child_inherits_it(tmp_path: Path) -> None:
    """A reader of temperatures, or whatever else a worker starts, must not hold the chip after it."""
    lock = DeviceLock.take(tmp_path)
    command, pipe = [sys.executable, "-c", "print(input(), flush=True); input()"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, close_fds=False) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        print("runs", file=child.stdin, flush=True)
        assert child.stdout.readline() == "runs\n"
        lock.release()
        DeviceLock.take(tmp_path).release()
        child.communicate("end\n")


def test_a_folder_that_cannot_be_written_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a read-only root, where only /tmp is mounted to be written."""
    monkeypatch.setattr(device_lock, "FOLDERS", (tmp_path / "missing", tmp_path))
    lock = DeviceLock.take()
    assert lock.path == tmp_path / NAME
    lock.release()


def test_no_place_at_all_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DeviceLockError, match="No such file") as caught:
        DeviceLock.take(tmp_path / "missing")
    assert "HAILO_LOCK_DIR" in caught.value.hint


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """/tmp is everybody's: a link there must not make us write into a file of ours."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / NAME).symlink_to(precious)
    with pytest.raises(DeviceLockError, match="symbolic links"):
        DeviceLock.take(tmp_path)
    assert precious.read_text() == "kept"


def test_somebody_elses_file_locks_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read only for us, as another user's: the test's own user may be root, who may write all."""
    path = tmp_path / NAME
    path.write_text("12\n")
    opened = os.open

    def as_another_user(name: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", as_another_user)
    lock = DeviceLock.take(tmp_path)
    with pytest.raises(DeviceBusyError, match="process 12 has"):
        DeviceLock.take(tmp_path)
    lock.release()
