"""Channels: they move one at a time, and their history holds together."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from runtime.contract.audit import store_problems
from runtime.contract.channel_log import ChannelLog, Floor, Head
from runtime.contract.channels import ENTRY_TYPE, MOST_WORDS, EvidenceRecord
from runtime.contract.document import to_json
from runtime.contract.errors import (
    ChannelMovedError,
    ManifestError,
    ReleaseNotFoundError,
    TargetMismatchError,
)
from runtime.contract.promotion import Decision, PromotionRefusedError, promote
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import UnknownKeyError, WrongRoleError, sign
from tests.keys import BUILD, MANAGER, a_key, a_store, a_trust, entry_payload, resign, write_entry
from tests.moves import an_entry
from tests.simulators import ReleaseSimulator, flip_bit


def test_a_channel_remembers_every_move(tmp_path: Path) -> None:
    first = ReleaseSimulator().publish(tmp_path, "canary")
    second = ReleaseSimulator(version="v2").publish(tmp_path, "canary")
    store = a_store(tmp_path)
    store.point("canary", second, actor="nobody", reason="already there", key=BUILD)
    history = store.history("emulator", "canary")
    assert [(entry.sequence, entry.release, entry.previous) for entry in history] == [
        (1, first.id, ""),
        (2, second.id, first.id),
    ]
    assert history[1].actor == "test"
    assert history[1].reason == "simulated"


def test_of_two_writers_one_is_told(tmp_path: Path) -> None:
    first = ReleaseSimulator().publish(tmp_path, "canary")
    second = ReleaseSimulator(version="v2").publish(tmp_path)
    third = ReleaseSimulator(version="v3").publish(tmp_path)

    class Late(ReleaseStore):
        """Reads the channel before the other writer moves it."""

        looked = False

        def head(self, target: str, channel: str, floor: Floor | None = None) -> Head | None:
            found = super().head(target, channel, floor)
            if not self.looked:
                self.looked = True
                a_store(tmp_path).point("canary", second, actor="quick", reason="first", key=BUILD)
            return found

    with pytest.raises(ChannelMovedError, match="quick moved it first"):
        Late(tmp_path, a_trust()).point("canary", third, actor="late", reason="second", key=BUILD)
    assert first.id != second.id
    assert a_store(tmp_path).resolve("emulator", "canary").id == second.id


def _race(root: Path, identifier: str, actor: str, start: Barrier, results: Queue[tuple[str, int]]) -> None:
    store = a_store(root)
    release = store.open(identifier)
    start.wait()
    try:
        entry = store.point("stable", release, actor=actor, reason="race", key=MANAGER)
        results.put((actor, entry.sequence))
    except ChannelMovedError:
        results.put((actor, 0))


def test_racing_processes_never_share_a_move(tmp_path: Path) -> None:
    releases = [ReleaseSimulator(version=f"v{i}").publish(tmp_path) for i in range(4)]
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=_race, args=(tmp_path, release.id, f"actor{i}", start, results))
        for i, release in enumerate(releases)
    ]
    for worker in workers:
        worker.start()
    outcome = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    moves = sorted(sequence for _, sequence in outcome if sequence)
    assert moves == list(range(1, len(moves) + 1))
    history = a_store(tmp_path).history("emulator", "stable")
    assert [entry.sequence for entry in history] == moves
    assert {entry.actor for entry in history} == {actor for actor, sequence in outcome if sequence}
    assert all(a.release == b.previous for a, b in itertools.pairwise(history))


def test_a_copied_channel_entry_is_refused(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "canary")
    folder = tmp_path / "channels"
    shutil.copytree(folder / "emulator", folder / "hailo8")
    with pytest.raises(ManifestError, match="copied"):
        a_store(tmp_path).current("hailo8", "canary")
    shutil.copytree(folder / "emulator" / "canary", folder / "emulator" / "stable")
    with pytest.raises(WrongRoleError, match="takes a key of role stable"):
        a_store(tmp_path).current("emulator", "stable")
    # Nor where the right key signed it: what is signed says where it belongs.
    resign(folder / "emulator" / "stable" / "00000001.json", MANAGER)
    with pytest.raises(ManifestError, match="copied"):
        a_store(tmp_path).current("emulator", "stable")


def test_a_channel_to_a_pruned_release_is_named(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    shutil.rmtree(release.directory)
    (problem,) = store_problems(a_store(tmp_path))
    assert release.id[:16] in problem


@pytest.mark.parametrize(
    ("target", "channel"), [("hailo15", "canary"), ("emulator", "beta"), ("..", "canary")]
)
def test_unknown_places_are_refused(tmp_path: Path, target: str, channel: str) -> None:
    with pytest.raises(ReleaseNotFoundError, match="one of"):
        a_store(tmp_path).current(target, channel)


def test_a_channel_for_one_target_never_serves_anothers_release(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "canary")
    entry = entry_payload(tmp_path / "channels/emulator/canary/00000001.json")
    write_entry(tmp_path, entry | {"target": "hailo8"})
    with pytest.raises(TargetMismatchError, match="names a release for emulator"):
        a_store(tmp_path).resolve("hailo8", "canary")
    assert len(store_problems(a_store(tmp_path))) == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", 1, "schema: schema 1, this version reads 2"),
        ("schema", 3, "schema: schema 3, this version reads 2"),
        ("release", "../../x", "release: "),
        ("previous", "nothing", "previous: 'nothing' is not a SHA-256"),
        ("at", "yesterday", "at: 'yesterday' is no time in ISO 8601"),
        ("at", "2026-11-23T10:00:00", "at: '2026-11-23T10:00:00' is not in UTC"),
        ("at", "2026-11-23T10:00:00+02:00", "is not in UTC"),
    ],
)
def test_an_entry_that_says_nonsense_is_refused(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    ReleaseSimulator().publish(tmp_path, "canary")
    path = tmp_path / "channels/emulator/canary/00000001.json"
    resign(path, BUILD, **{field: value})
    with pytest.raises(ManifestError) as caught:
        a_store(tmp_path).resolve("emulator", "canary")
    assert message in str(caught.value)
    assert caught.value.where.startswith(str(path))
    assert store_problems(a_store(tmp_path)) == [str(caught.value)]


@pytest.mark.parametrize("text", ["\x1b[2J", "two\nlines", "x" * (MOST_WORDS + 1)])
@pytest.mark.parametrize("field", ["actor", "reason", "overridden"])
def test_an_entry_that_a_terminal_would_obey_is_none(field: str, text: str) -> None:
    """Also one that is signed: a stolen key does not reach the screen of whoever looks for it."""
    with pytest.raises(ManifestError, match=f"{field}: is not one line of at most 2000 characters"):
        an_entry(**{field: (text,) if field == "overridden" else text})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"at": "2026-11-27\x1b10:00:00+00:00"}, "at"),
        ({"evidence": (EvidenceRecord(kind="\x1bc", sha256="a" * 64),)}, "evidence"),
        ({"evidence": (EvidenceRecord(kind="parity", sha256="\x1bc"),)}, "evidence"),
    ],
)
def test_nothing_else_that_is_shown_of_an_entry_is_obeyed(change: dict[str, object], field: str) -> None:
    with pytest.raises(ManifestError, match=f"{field}: "):
        an_entry(**change)


def three_moves(root: Path) -> list[Path]:
    for version in ("v1", "v2", "v3"):
        ReleaseSimulator(version=version).publish(root, "canary")
    assert store_problems(a_store(root)) == []
    return sorted((root / "channels/emulator/canary").iterdir())


def test_a_missing_move_is_named(tmp_path: Path) -> None:
    moves = three_moves(tmp_path)
    moves[1].unlink()
    (problem,) = store_problems(a_store(tmp_path))
    assert "00000002.json is missing" in problem


def test_what_follows_a_missing_move_is_judged_too(tmp_path: Path) -> None:
    moves = three_moves(tmp_path)
    ReleaseSimulator(version="v4").publish(tmp_path, "canary")
    resign(moves[2], a_key("stranger"))
    moves[1].unlink()
    missing, foreign = store_problems(a_store(tmp_path))
    assert "00000002.json is missing" in missing
    assert foreign.startswith(f"{moves[2]}: key ")


@pytest.mark.parametrize("forged", [(0, 1, 2), (1, 2)])
def test_a_new_move_takes_the_place_of_those_that_do_not_hold(
    tmp_path: Path, forged: tuple[int, ...]
) -> None:
    """As a store of the time before signatures has them, or one that a stranger wrote to."""
    moves = three_moves(tmp_path)
    for number in forged:
        resign(moves[number], a_key("stranger"))
    release = ReleaseSimulator(version="v4").publish(tmp_path, "canary")
    store = a_store(tmp_path)
    assert store.resolve("emulator", "canary").id == release.id
    assert len(store.history("emulator", "canary")) == 4 - len(forged)
    (kept,) = moves[0].parent.glob(".refused-*/*")
    assert kept.name == moves[forged[0]].name


def test_a_person_may_promote_where_nothing_of_stable_holds(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary", "stable")
    resign(tmp_path / "channels/emulator/stable/00000001.json", a_key("stranger"))
    store = a_store(tmp_path)
    with pytest.raises(UnknownKeyError):
        store.resolve("emulator", "stable")
    with pytest.raises(PromotionRefusedError, match="marks may be missing"):
        promote(store, "emulator", release.id, Decision(actor="Ada", reason="good"), MANAGER)
    forced = Decision(actor="Ada", reason="good", force=True)
    entry = promote(store, "emulator", release.id, forced, MANAGER)
    assert (entry.sequence, entry.actor) == (1, "Ada")
    assert store.resolve("emulator", "stable").id == release.id
    assert store_problems(store) == []


def test_a_rewritten_move_is_named(tmp_path: Path) -> None:
    moves = three_moves(tmp_path)
    first = entry_payload(moves[0])
    digest = entry_payload(moves[2])["previous_entry"]
    resign(moves[1], BUILD, reason="what nobody said")
    (problem,) = store_problems(a_store(tmp_path))
    assert problem.startswith(f"{moves[2]}: continues {digest[:16]} and previous is ")
    resign(moves[1], BUILD, release=first["release"])
    (problem,) = store_problems(a_store(tmp_path))
    assert problem.startswith(f"{moves[2]}: continues {digest[:16]} and previous is ")
    assert problem.endswith(f" and names {first['release'][:16]}")
    resign(moves[0], BUILD, previous=first["release"])
    (problem,) = store_problems(a_store(tmp_path))
    assert problem == (
        f"{moves[0]}: continues nothing and previous is {first['release'][:16]}, "
        "the entry before is none and names nothing"
    )


@pytest.mark.parametrize("place", ["releases", "channels", "channels/emulator", "channels/emulator/canary"])
@pytest.mark.parametrize("kind", ["file", "circle", "link to nothing"])
def test_a_folder_that_is_none_is_a_problem(tmp_path: Path, place: str, kind: str) -> None:
    (tmp_path / "releases").mkdir()
    path = tmp_path / place
    if path.is_dir():
        path.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_bytes(b"")
    else:
        path.symlink_to(path.name if kind == "circle" else "nowhere")
    problems = store_problems(a_store(tmp_path))
    assert problems
    assert all(place in problem for problem in problems)
    if place in ("releases", "channels"):
        assert len(problems) == 1


def test_an_entry_number_zero_is_none(tmp_path: Path) -> None:
    """Names sort: it would come before the first entry and hide all that follow."""
    three_moves(tmp_path)
    folder = tmp_path / "channels" / "emulator" / "canary"
    (folder / "00000000.json").write_text("{}")
    store = a_store(tmp_path)
    assert len(store.history("emulator", "canary")) == 3
    ReleaseSimulator(version="v4").publish(tmp_path, "canary")
    assert len(store.history("emulator", "canary")) == 4


def test_half_a_history_decides_nothing(tmp_path: Path) -> None:
    """Who was marked bad in an entry that is damaged now is not known: nothing is promoted meanwhile."""
    moves = three_moves(tmp_path)
    store = a_store(tmp_path)
    release = store.resolve("emulator", "canary")
    flip_bit(moves[0], 5)
    with pytest.raises(ManifestError, match="the history before it does not hold"):
        store.is_marked_bad(release)
    (moves[0].parent / "00000099.json").write_text("junk above the head is nobody's")
    flip_bit(moves[0], 5)
    assert store.is_marked_bad(release) is None


@pytest.mark.parametrize("step", ["head", "_walk"])
def test_a_history_is_read_while_another_one_writes(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added between two looks is seen at the next reading, and is no break of the history."""
    ReleaseSimulator(version="v1").publish(tmp_path, "canary")
    store, later = a_store(tmp_path), ["v3", "v2"]
    looked, writing = getattr(ChannelLog, step), False

    def looks(log: ChannelLog, *arguments: Any) -> Any:
        nonlocal writing
        found = looked(log, *arguments)
        if log.channel == "canary" and later and not writing:
            writing = True
            ReleaseSimulator(version=later.pop()).publish(tmp_path, "canary")
            writing = False
        return found

    monkeypatch.setattr(ChannelLog, step, looks)
    seen = [len(store.whole_history("emulator", "canary")) for _ in range(3)]
    assert seen[0] in (1, 2)
    assert seen[-1] == 3


def test_what_a_newer_version_signed_is_not_moved_aside(tmp_path: Path) -> None:
    """Moving on without it would fork the history for everybody who has seen it."""
    moves = three_moves(tmp_path)
    payload = entry_payload(moves[2]) | {"schema": 3, "sequence": 4, "colour": "new"}
    path = moves[2].with_name("00000004.json")
    path.write_bytes(sign(to_json(payload), ENTRY_TYPE, [BUILD]))
    with pytest.raises(ManifestError, match="a newer version wrote it"):
        ReleaseSimulator(version="v4").publish(tmp_path, "canary")
    assert path.exists()
