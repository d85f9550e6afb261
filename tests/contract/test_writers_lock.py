"""The writers' lock: who may take it, and that it keeps threads of one process apart, too."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from runtime.contract.errors import StoreBusyError, StoreError
from runtime.contract.writers_lock import LOCK_NAME, writing
from tests.keys import a_store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("folder", "lock"),
    [(0o755, 0o644), (0o775, 0o664), (0o2775, 0o664), (0o700, 0o600), (0o770, 0o660), (0o777, 0o666)],
)
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whoever_may_write_into_the_folder_may_take_it(
    tmp_path: Path, folder: int, lock: int, umask: int
) -> None:
    tmp_path.chmod(folder)
    before = os.umask(umask)
    try:
        for _ in range(2):
            with writing(tmp_path):
                assert mode(tmp_path / LOCK_NAME) == lock
    finally:
        os.umask(before)
    assert (tmp_path / LOCK_NAME).stat().st_gid == tmp_path.stat().st_gid


def test_a_lock_that_an_earlier_version_left_is_opened_to_the_group(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch(0o644)
    tmp_path.chmod(0o775)
    with writing(tmp_path):
        assert mode(tmp_path / LOCK_NAME) == 0o664


def test_no_other_file_is_opened_to_the_group(tmp_path: Path) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    store.mkdir(0o775)
    store.chmod(0o775)
    other.write_text("mine")
    other.chmod(0o600)
    (store / LOCK_NAME).symlink_to(other)
    with pytest.raises(StoreError, match=r"\.lock"), writing(store):
        pass
    assert other.read_text() == "mine"
    (store / LOCK_NAME).unlink()
    os.link(other, store / LOCK_NAME)
    with pytest.raises(StoreError, match="another file"), writing(store):
        pass
    assert (other.read_text(), mode(other)) == ("mine", 0o600)


def test_threads_that_share_a_store_write_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.__wrapped__, "__defaults__", (0.1,))  # type: ignore[attr-defined]
    store = a_store(tmp_path)
    told: list[BaseException | None] = []

    def write() -> None:
        try:
            with store.writing():
                told.append(None)
        except StoreBusyError as error:
            told.append(error)

    with store.writing(), store.writing():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert isinstance(told[0], StoreBusyError)
    write()
    assert told[1:] == [None]
