"""Logs of children: one folder for each start, the old ones cleared away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestration.processes import KEPT_LOG_FOLDERS, Child, Children, log_folder

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
