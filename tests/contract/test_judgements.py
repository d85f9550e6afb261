"""A history is verified once by whoever asks for it twice, and again where anything of it changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.contract import channels
from runtime.contract.errors import ManifestError
from runtime.contract.promotion import Decision, promote, roll_back
from runtime.contract.trust import Root, Verified, verify
from tests.keys import BUILD, MANAGER, a_store, resign
from tests.moves import NEW, channel, next_root, point, published
from tests.verdicts import judged_well

WHY = Decision(actor="Ada", reason="looked at it")


@pytest.fixture(name="verified")
def entries_that_are_verified(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each entry's signature was verified, by ``<channel>/<number>.json``."""
    counted: Counter[str] = Counter()

    def counting(data: bytes, payload_type: str, root: Root, role: str, where: str) -> Verified:
        counted[f"{Path(where).parent.name}/{Path(where).name}"] += 1
        return verify(data, payload_type, root, role, where)

    monkeypatch.setattr(channels, "verify", counting)
    return counted


def test_a_move_verifies_the_history_before_it_once(tmp_path: Path, verified: Counter[str]) -> None:
    first, second = published(tmp_path, "v1", "v2")
    for number in range(6):
        point(tmp_path, (first, second)[number % 2])
    moves: list[Callable[[], object]] = [
        lambda: a_store(tmp_path).point("stable", first, actor="a", reason="b", key=MANAGER),
        lambda: promote(a_store(tmp_path), "emulator", second.id, WHY, MANAGER),
        lambda: roll_back(a_store(tmp_path), "emulator", "stable", WHY, MANAGER, to=first.id),
    ]
    for move in moves:
        judged_well(a_store(tmp_path), second)
        before = len(a_store(tmp_path).chain("emulator", "stable"))
        verified.clear()
        move()
        # What the channel names now is looked at more often: it decides, and is one entry.
        old = {name: count for name, count in verified.items() if name < f"stable/{before:08}.json"}
        assert old
        assert {count for name, count in old.items() if name.startswith("stable/")} == {1}, old


def test_the_same_store_verifies_no_old_entry_again(tmp_path: Path, verified: Counter[str]) -> None:
    releases = published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    assert len(store.chain("emulator", "stable")) == 2
    verified.clear()
    for number in range(5):
        store.point("stable", releases[number % 2], actor="a", reason="b", key=MANAGER)
    assert verified["stable/00000001.json"] == 0
    assert [each.entry.sequence for each in store.chain("emulator", "stable")] == [1, 2, 3, 4, 5, 6, 7]


def test_an_entry_that_was_changed_meanwhile_is_judged_again(tmp_path: Path) -> None:
    releases = published(tmp_path, "v1", "v2", "v3")
    store = a_store(tmp_path)
    assert store.history_problems("emulator", "stable") == []
    path = channel(tmp_path) / "00000002.json"
    kept = path.read_bytes()
    resign(path, MANAGER, reason="another one")
    with pytest.raises(ManifestError, match="the history before it does not hold"):
        store.point("stable", releases[0], actor="a", reason="b", key=MANAGER)
    resign(path, BUILD)
    assert "whose role is release and canary" in store.history_problems("emulator", "stable")[0]
    path.write_bytes(kept)
    assert store.history_problems("emulator", "stable") == []


def test_under_another_root_everything_is_judged_again(tmp_path: Path, verified: Counter[str]) -> None:
    published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    chain = store.chain("emulator", "stable")
    store.add_root(next_root(manager=NEW))
    verified.clear()
    assert store.chain("emulator", "stable") == chain
    assert verified["stable/00000001.json"] == 2  # by the new root, which refuses it, and by its own
