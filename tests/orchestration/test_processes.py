"""Children end with their parent, whatever happens; each start's logs have a folder of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestration.processes import KEPT_LOG_FOLDERS, Child, Children, Stopped, log_folder
from tests.chain import ROOT
from tests.simulators import wait_for

pytestmark = pytest.mark.build


def say(children: Children, folder: Path, words: str) -> Child:
    child = children.start("it", ["echo", words], environment={}, log=folder / "it.log")
    assert child.wait() == 0
    return child


def test_two_at_once_keep_their_own_lines(tmp_path: Path) -> None:
    with log_folder(tmp_path, "run") as first, log_folder(tmp_path, "run") as second, Children() as children:
        one, two = say(children, first, "one"), say(children, second, "two")
        assert (one.last_lines(), two.last_lines()) == ("  it: one", "  it: two")


def test_a_log_is_never_written_over(tmp_path: Path) -> None:
    with log_folder(tmp_path, "run") as folder, Children() as children:
        say(children, folder, "one")
        with pytest.raises(FileExistsError):
            say(children, folder, "two")


def test_the_newest_folders_are_kept(tmp_path: Path) -> None:
    made = []
    for number in range(KEPT_LOG_FOLDERS + 2):
        with log_folder(tmp_path, "smoke") as folder:
            (folder / "ui.log").write_text("lines\n")
        os.utime(folder, (number, number))
        made.append(folder)
    assert folder.name.startswith(f"smoke-{os.getpid()}-")
    assert sorted(tmp_path.iterdir()) == sorted(made[2:])


def test_a_folder_in_use_is_never_cleared_away(tmp_path: Path) -> None:
    with log_folder(tmp_path, "run") as mine:
        os.utime(mine, (0, 0))
        for _ in range(KEPT_LOG_FOLDERS + 2):
            with log_folder(tmp_path, "smoke"):
                assert mine.is_dir()
    with log_folder(tmp_path, "smoke"):
        assert not mine.exists()


def test_what_is_no_log_folder_is_left_alone(tmp_path: Path) -> None:
    foreign = [tmp_path / "notes.txt", tmp_path / "kept"]
    foreign[0].write_text("mine\n")
    foreign[1].mkdir()
    for path in foreign:
        os.utime(path, (0, 0))
    for _ in range(KEPT_LOG_FOLDERS + 2):
        with log_folder(tmp_path, "smoke"):
            pass
    assert all(path.exists() for path in foreign)


GRANDCHILD = "sleep 300 & echo $!; exec sleep 300"
DEAF = (
    "import signal\nfor number in (2, 15):\n signal.signal(number, signal.SIG_IGN)\n"
    "print('deaf', flush=True)\nwhile True: signal.pause()"
)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def first_line(log: Path) -> str:
    return wait_for(lambda: log.read_text().partition("\n")[0] if "\n" in log.read_text() else "", "a line")


@pytest.mark.parametrize("ended_by_itself", [False, True])
def test_a_childs_children_end_too(tmp_path: Path, ended_by_itself: bool) -> None:
    with Children() as children:
        child = children.start("it", ["sh", "-c", GRANDCHILD], environment={}, log=tmp_path / "log")
        grandchild = int(first_line(tmp_path / "log"))
        if ended_by_itself:
            child.process.kill()
            assert child.wait() != 0
    wait_for(lambda: gone(grandchild), "the grandchild's end")


def test_what_does_not_hear_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.processes.TOLD_SECONDS", 0.2)
    with Children() as children:
        command = [sys.executable, "-c", DEAF]
        child = children.start("it", command, environment={}, log=tmp_path / "log", grace=0.2)
        assert first_line(tmp_path / "log") == "deaf"
    assert child.process.returncode == -signal.SIGKILL


def test_who_misses_a_question_is_told(tmp_path: Path) -> None:
    """As a build does when Python drops the KeyboardInterrupt in a callback."""
    script = (
        "import signal, sys\nsignal.signal(signal.SIGINT, lambda *_: None)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('listens', flush=True)\n"
        "while True: signal.pause()"
    )
    command = [sys.executable, "-c", script]
    with Children() as children:
        child = children.start("it", command, environment={}, log=tmp_path / "log", grace=0.1)
        assert first_line(tmp_path / "log") == "listens"
    assert child.process.returncode == 7


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom orchestration.processes import Children\n"
        "with Children() as children:\n"
        " child = children.start('it', ['sleep', '300'], environment={}, log=Path(sys.argv[1]))\n"
        " print(child.process.pid, flush=True)\n child.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.communicate()
    wait_for(lambda: gone(pid), "the child's end")


class Swallows:
    """Is asked to stop while it is being destroyed, where Python drops what is raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the handler runs between two of these
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["wait", "wait_for", "wait_for_first"])
def test_a_stop_that_python_dropped_is_seen_while_waiting(tmp_path: Path, how: str) -> None:
    with Children() as children:
        child = children.start("it", ["sleep", "300"], environment={}, log=tmp_path / "log")
        waits: dict[str, Callable[[], object]] = {
            "wait": child.wait,
            "wait_for": lambda: child.wait_for(lambda: False, 300),
            "wait_for_first": lambda: children.wait_for_first([child]),
        }
        swallowed = Swallows()
        del swallowed
        with pytest.raises(Stopped):
            waits[how]()
    assert child.process.returncode is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    with Children() as children:
        one, other = (children.start(name, ["sleep", "600"], environment={}) for name in ("one", "other"))
        children.end(one)
        assert one.process.poll() is not None
        assert other.process.poll() is None


def test_a_group_is_asked_by_the_signal_that_was_named(tmp_path: Path) -> None:
    """Worker and server get it, so that a build marks its run before its server waits for it."""
    told = tmp_path / "told"
    worker = f"trap 'echo worker >> {told}; exit' TERM; echo up > {tmp_path}/up; sleep 600 & wait"
    script = f"trap 'wait; echo server >> {told}; exit' TERM; ({worker}) & wait"
    with Children() as children:
        child = children.start("it", ["sh", "-c", script], environment={})
        child.asked_by(signal.SIGTERM, all_of_it=True)
        assert child.wait_for((tmp_path / "up").exists, 30)
        children.end(child)
    assert told.read_text().split() == ["worker", "server"]
