"""Several runtimes with one STATE_DIR: what one saw, no other takes back."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from runtime.contract.channel_log import Floor
from runtime.contract.trust import Trust
from runtime.contract.writers_lock import writing
from runtime.store_state import STATE_NAME, StoreState
from tests.contract.crash import at_once
from tests.keys import BUILD, MANAGER, TRUST_ROOT
from tests.moves import NEW, next_root

PROCESSES = 8


def trust(*roots: bytes) -> Trust:
    found = Trust(TRUST_ROOT, "root")
    for document in roots:
        found.add(document, "next")
    return found


def floor(sequence: int, key: str = MANAGER.keyid, digest: str = "a") -> Floor:
    return Floor(sequence=sequence, digest=digest * 64, keyids=(key,))


def test_what_two_saw_is_kept_of_both(tmp_path: Path) -> None:
    one, two = StoreState.load(tmp_path, trust()), StoreState.load(tmp_path, trust())
    one.saw("emulator", "stable", floor(7), trust())
    two.saw("emulator", "canary", floor(3, BUILD.keyid), trust())
    one.serves("emulator", "stable", "b" * 64)
    two.serves("emulator", "canary", "c" * 64)
    known = StoreState.load(tmp_path, trust())
    assert (known.of("emulator", "stable").floor, known.of("emulator", "stable").serving) == (
        floor(7),
        "b" * 64,
    )
    assert known.of("emulator", "canary").floor == floor(3, BUILD.keyid)
    assert known.of("emulator", "canary").serving == "c" * 64


def test_of_one_channel_the_newest_entry_stays(tmp_path: Path) -> None:
    ahead, behind = StoreState.load(tmp_path, trust()), StoreState.load(tmp_path, trust())
    ahead.saw("emulator", "stable", floor(9), trust())
    behind.saw("emulator", "stable", floor(4), trust())
    assert StoreState.load(tmp_path, trust()).of("emulator", "stable").floor == floor(9)
    assert behind.of("emulator", "stable").floor == floor(9)  # and it asks for that from now on


def test_a_root_that_one_saw_is_not_taken_back(tmp_path: Path) -> None:
    """A thief's high number is void under the root that followed, whoever writes last."""
    behind = StoreState.load(tmp_path, trust())
    rotated = trust(next_root(manager=NEW))
    StoreState.load(tmp_path, trust()).saw("emulator", "stable", floor(5, NEW.keyid), rotated)
    behind.saw("emulator", "stable", floor(999), trust())
    known = StoreState.load(tmp_path, trust())
    assert known.of("emulator", "stable").floor == floor(5, NEW.keyid)
    assert len(known.trust_since(trust()).roots) == 2


def _sees(folder: Path, number: int) -> None:
    state = StoreState.load(folder, trust())
    for sequence in range(number, 40, PROCESSES):
        state.saw("emulator", "stable", floor(sequence), trust())
        state.saw(f"target{number}", "canary", floor(sequence, BUILD.keyid), trust())


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    at_once([functools.partial(_sees, tmp_path, number) for number in range(1, PROCESSES + 1)])
    known = StoreState.load(tmp_path, trust())
    assert known.of("emulator", "stable").floor == floor(39)
    for number in range(1, PROCESSES + 1):
        last = max(range(number, 40, PROCESSES))
        assert known.of(f"target{number}", "canary").floor == floor(last, BUILD.keyid)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", STATE_NAME]


def test_a_file_of_before_is_read(tmp_path: Path) -> None:
    """As it was written before several shared it."""
    seen = {"digest": "a" * 64, "keyids": [MANAGER.keyid], "sequence": 6}
    document = {
        "anchor": trust().anchor_digest,
        "channels": {"emulator/stable": {"floor": seen, "serving": "b" * 64}},
        "roots": [],
        "schema": 1,
    }
    (tmp_path / STATE_NAME).write_text(json.dumps(document))
    known = StoreState.load(tmp_path, trust()).of("emulator", "stable")
    assert (known.floor, known.serving) == (floor(6), "b" * 64)


def test_what_another_damaged_is_not_written_over(tmp_path: Path) -> None:
    state = StoreState.load(tmp_path, trust())
    (tmp_path / STATE_NAME).write_bytes(b"{")
    state.saw("emulator", "stable", floor(7), trust())
    assert state.problem.startswith("STATE_DIR cannot be read: ")
    assert (tmp_path / STATE_NAME).read_bytes() == b"{"
    assert state.of("emulator", "stable").floor == floor(7)


def test_one_that_holds_the_lock_for_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.store_state._PATIENCE_SECONDS", 0.05)
    state = StoreState.load(tmp_path, trust())
    with writing(tmp_path):
        state.saw("emulator", "stable", floor(7), trust())
    assert state.problem.startswith("STATE_DIR cannot be written: process ")
    state.saw("emulator", "stable", floor(8), trust())
    assert state.problem == ""
