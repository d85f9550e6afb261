"""A rotation that is cut off anywhere leaves the old state or the new one, and can be finished."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.contract.audit import store_problems
from runtime.contract.keys import load_key, write_key
from runtime.contract.release_directory import sign_release
from runtime.contract.store import ReleaseStore
from tests.contract.crash import KILLED, counted, in_child, kill_at, no_sync, watched
from tests.keys import KEY_OF, a_store, key_folder
from tests.moves import NEW, STRANGER, floor_of, published, put
from tests.simulators import ARTIFACT, flip_bit

Capture = pytest.CaptureFixture[str]
CHANNELS = ("canary", "stable")
CHANNEL_OF = {"build": "canary", "release-manager": "stable", "root": "stable"}


def keys(root: Path, what: str, holder: str) -> int:
    """`releasectl keys` on a folder that holds a store and gets the new key."""
    arguments = [str(key_folder()), "--holder", holder, "--new", str(root / "new.pem")]
    return main(["keys", what, *arguments, "--store", str(root / "store"), "--json"])


def rotate(root: Path, holder: str) -> None:
    assert keys(root, "rotate", holder) == 0


@pytest.fixture(name="before")
def a_store_before(tmp_path: Path) -> Path:
    before = tmp_path / "before"
    published(before / "store", "v1", "v2")
    return before


@pytest.mark.parametrize("holder", ["build", "release-manager", "root"])
def test_killed_at_any_call_it_leaves_what_verifies(
    tmp_path: Path, before: Path, holder: str, capsys: Capture
) -> None:
    with no_sync():
        floors = {name: floor_of(before / "store", name) for name in CHANNELS}
        named = a_store(before / "store").resolve("emulator", "stable").id
        done = tmp_path / "done"
        shutil.copytree(before, done)
        calls = counted(watched(lambda: rotate(done, holder)))
        steps = [n for n, call in enumerate(calls) if call.name in ("link", "rename", "replace")]
        assert len(steps) == {"build": 4, "release-manager": 2, "root": 1}[holder]
        for number in sorted({*steps, *(step + 1 for step in steps)}):
            root = tmp_path / str(number)
            shutil.copytree(before, root)
            work = functools.partial(rotate, root, holder)
            assert in_child(functools.partial(watched, work, kill_at(number))) == KILLED
            store = a_store(root / "store")
            for name, floor in floors.items():
                assert store.follow("emulator", name, floor).release.id == named, calls[number]
            moved_by_the_old_key(root, holder, store)
            assert keys(root, "resign", holder) == 0, calls[number]
            assert store.trust.root.version == 2
            for name, floor in floors.items():
                store.follow("emulator", name, floor).release.verify()
            assert store_problems(store) == []
    capsys.readouterr()


def moved_by_the_old_key(root: Path, holder: str, store: ReleaseStore) -> None:
    """Where the root did not change yet, the old key goes on as if nothing had happened."""
    if store.trust.root.version == 1:
        name = CHANNEL_OF[holder]
        release = next(r for r in store.identifiers() if r != store.resolve("emulator", name).id)
        store.point(name, store.open(release), actor="x", reason="y", key=KEY_OF[name])
        assert store.resolve("emulator", name).id == release


def test_the_new_root_is_the_last_that_is_written(tmp_path: Path, before: Path, capsys: Capture) -> None:
    root = tmp_path / "it"
    shutil.copytree(before, root)
    calls = counted(watched(lambda: rotate(root, "build")))
    last = [call for call in calls if call.name in ("link", "rename", "replace")][-1]
    assert "2.root.json" in repr(last)
    capsys.readouterr()


# A store in which not everything can be signed again.


@pytest.mark.parametrize("damage", ["altered", "unsigned", "stranger"])
def test_a_release_that_cannot_be_signed_again_stops_nothing(
    tmp_path: Path, capsys: Capture, damage: str
) -> None:
    (bad,) = published(tmp_path / "store", "v1", channels=())
    (good,) = published(tmp_path / "store", "v2")
    signature = bad.directory / "manifest.dsse.json"
    if damage == "altered":
        flip_bit(bad.directory / ARTIFACT)
    elif damage == "unsigned":
        signature.unlink()
    else:
        put(signature, sign_release((bad.directory / "manifest.json").read_bytes(), STRANGER))
    for what in ("rotate", "resign"):
        assert keys(tmp_path, what, "build") == 1
        out, err = capsys.readouterr()
        shown = json.loads(out)
        assert shown["signed_again"] == [good.id, "emulator/canary"]
        (problem,) = shown["problems"]
        assert str(bad.directory) in problem
        assert err == f"releasectl: not signed again: {problem}\n"
    store = a_store(tmp_path / "store")
    assert store.trust.root.version == 2
    assert store.resolve("emulator", "canary").id == good.id


def test_a_rotation_that_never_switched_needs_the_root_key_to_be_finished(
    tmp_path: Path, before: Path, capsys: Capture
) -> None:
    write_key(tmp_path / "new.pem", NEW)
    arguments = ("--holder", "build", "--new", str(tmp_path / "new.pem"), "--store", str(before / "store"))
    assert main(["keys", "resign", *arguments]) == 1
    assert "needs the folder with root.pem" in capsys.readouterr().err
    assert main(["keys", "resign", str(key_folder()), *arguments]) == 0
    assert load_key(tmp_path / "new.pem").keyid in a_store(before / "store").trust.root.roles["canary"].keyids
    capsys.readouterr()


def test_what_lies_beyond_a_gap_is_said(tmp_path: Path, capsys: Capture) -> None:
    """Signing again what was before it would take a channel back unseen."""
    first, *_ = published(tmp_path / "store", "v1", "v2", "v3")
    (tmp_path / "store/channels/emulator/stable/00000002.json").unlink()
    assert keys(tmp_path, "rotate", "release-manager") == 1
    out, err = capsys.readouterr()
    assert "not signed again: emulator/stable: entry 3 counts, but the history before it does not hold" in err
    assert json.loads(out)["signed_again"] == ["emulator/stable"]
    assert a_store(tmp_path / "store").resolve("emulator", "stable").id == first.id
