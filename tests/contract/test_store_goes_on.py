"""What a reader takes although it saw another store before, and copies that are still under way."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from runtime.contract.channel_log import (
    Floor,
    JumpError,
    NotThereYetError,
    ReplayedError,
)
from runtime.contract.channels import LAST_SEQUENCE, entry_name
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import (
    IncompleteError,
    ManifestError,
    PipelineError,
    StoreError,
)
from runtime.contract.keys import PrivateKey
from runtime.contract.promotion import Decision, promote, roll_back
from runtime.contract.release import manifest_bytes
from runtime.contract.release_directory import sign_release
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import UnknownKeyError
from runtime.key_commands import sign_again
from tests.keys import BUILD, MANAGER, ROOT_KEY, a_key, a_store
from tests.moves import (
    NEW,
    after,
    an_entry,
    channel,
    floor_of,
    head_of,
    next_root,
    point,
    published,
    put,
    put_entry,
    refused,
    tip,
)
from tests.simulators import ARTIFACT
from tests.verdicts import judged_well

WHY = Decision(actor="Ada", reason="looked at it")


# What is allowed.


def test_a_roll_back_is_a_newer_entry_that_names_the_older_release(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floor = floor_of(tmp_path)
    roll_back(a_store(tmp_path), "emulator", "stable", WHY, MANAGER)
    found = a_store(tmp_path).follow("emulator", "stable", floor)
    assert (found.release.id, found.head.entry.sequence, found.head.refused) == (first.id, 3, ())
    assert first.id != second.id


def rotated(store: ReleaseStore, holder: str, document: bytes, key: PrivateKey) -> list[str]:
    with store.rotating(document) as pending:
        done, problems = sign_again(pending, holder, key, "Ada")
    assert problems == []
    return done


def test_the_managers_key_is_rotated(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floor, store = floor_of(tmp_path), a_store(tmp_path)
    shutil.copytree(channel(tmp_path), tmp_path / "old")
    assert rotated(store, "release-manager", next_root(manager=NEW), NEW) == ["emulator/stable"]
    found = store.follow("emulator", "stable", floor)
    assert (found.release.id, found.head.entry.action) == (second.id, "reaffirm")
    assert store.history_problems("emulator", "stable") == []
    with pytest.raises(UnknownKeyError, match="is not in root 2"):
        store.point("stable", first, actor="x", reason="y", key=MANAGER)
    put_entry(tmp_path, after(store.chain("emulator", "stable")[-1], release=first.id), MANAGER)
    head = store.head("emulator", "stable", Floor.at(found.head.signed))
    assert head is not None
    assert head.entry.release == second.id
    assert "which root 2 does not name" in head.refused[0]
    shutil.rmtree(channel(tmp_path))
    shutil.copytree(tmp_path / "old", channel(tmp_path))
    with pytest.raises(ReplayedError, match="ends at entry 0, entry 3 was seen here"):
        store.head("emulator", "stable", Floor.at(found.head.signed))


def test_the_build_key_is_rotated(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floors, store = {name: floor_of(tmp_path, name) for name in ("canary", "stable")}, a_store(tmp_path)
    done = rotated(store, "build", next_root(build=NEW), NEW)
    assert done == [*sorted([first.id, second.id]), "emulator/canary"]
    for name, floor in floors.items():
        assert store.follow("emulator", name, floor).release.id == second.id
    assert set(second.check_signature(store.trust.root)) == {NEW.keyid}
    # Whoever has not seen the new root yet still reads the releases.
    shutil.rmtree(tmp_path / "trust")
    assert a_store(tmp_path).follow("emulator", "stable", floors["stable"]).release.id == second.id


def test_the_root_key_is_rotated(tmp_path: Path) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    floor, store, new = floor_of(tmp_path), a_store(tmp_path), a_key("new root")
    assert rotated(store, "root", next_root(root=new, signers=(ROOT_KEY, new)), new) == []
    point(tmp_path, first)
    assert head_of(tmp_path, floor).entry.release == first.id
    assert store.trust.root.version == 2


def test_after_a_theft_that_used_up_all_numbers_a_rotation_sets_all_right(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floor = floor_of(tmp_path)
    stolen = an_entry(sequence=LAST_SEQUENCE, previous_entry="a" * 64, release=first.id)
    put_entry(tmp_path, stolen, MANAGER)
    spoiled = floor_of(tmp_path)  # of a reader that never saw the channel before
    assert spoiled.sequence == LAST_SEQUENCE
    refused(tmp_path, JumpError, "keys rotate", floor)
    with pytest.raises(PipelineError):
        point(tmp_path, first)
    store = a_store(tmp_path)
    rotated(store, "release-manager", next_root(manager=NEW), NEW)
    for seen in (floor, spoiled, None):
        assert store.follow("emulator", "stable", seen).release.id == second.id
    head = store.head("emulator", "stable")
    store.move("emulator", "stable", first.id, action="roll_back", actor="x", reason="y", key=NEW, seen=head)
    judged_well(store, second)
    promote(store, "emulator", second.id, WHY, NEW)
    for seen in (floor, spoiled, None):
        resolved = store.follow("emulator", "stable", seen)
        assert (resolved.release.id, resolved.head.entry.sequence) == (second.id, 5)


def test_after_a_theft_within_the_chain_a_rotation_sets_all_right(tmp_path: Path) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    put_entry(tmp_path, after(tip(tmp_path), release=first.id, reason="stolen"), MANAGER)
    floor, store = floor_of(tmp_path), a_store(tmp_path)
    rotated(store, "release-manager", next_root(manager=NEW), NEW)
    roll_back(store, "emulator", "stable", WHY, NEW)
    assert store.follow("emulator", "stable", floor).head.entry.sequence == 5
    assert store.history_problems("emulator", "stable") == []


# Copies that are under way.


def half_copied(root: Path) -> tuple[Path, Release, Floor]:
    """A copy with two moves, and beside it the store with a third."""
    published(root / "store", "v1", "v2")
    shutil.copytree(root / "store", root / "copy")
    floor = floor_of(root / "copy")
    (third,) = published(root / "store", "v3")
    return root / "copy", third, floor


def copy_entry(root: Path, number: int, length: int | None = None) -> None:
    data = (channel(root / "store") / entry_name(number)).read_bytes()
    put(channel(root / "copy") / entry_name(number), data[:length])


def test_an_entry_without_its_release_is_not_there_yet(tmp_path: Path) -> None:
    copy, third, floor = half_copied(tmp_path)
    copy_entry(tmp_path, 3)
    refused(copy, NotThereYetError, f"release {third.id[:16]}... is not there", floor)


@pytest.mark.parametrize(
    ("missing", "kind", "words"),
    [
        ("manifest.json", NotThereYetError, "no manifest.json"),
        ("manifest.dsse.json", NotThereYetError, "has no signature: No such file"),
        (ARTIFACT, IncompleteError, "cannot be read: No such file"),
    ],
)
def test_a_release_without_all_its_files_is_not_there_yet(
    tmp_path: Path, missing: str, kind: type[PipelineError], words: str
) -> None:
    copy, third, floor = half_copied(tmp_path)
    copy_entry(tmp_path, 3)
    shutil.copytree(third.directory, copy / "releases" / third.id)
    (copy / "releases" / third.id / missing).unlink()
    assert kind.code == "not_there_yet"
    refused(copy, kind, words, floor)


def test_an_entry_after_a_gap_is_not_there_yet(tmp_path: Path) -> None:
    copy, third, floor = half_copied(tmp_path)
    published(tmp_path / "store", "v4", "v5")
    shutil.rmtree(copy / "releases")  # its files are read-only, and only root writes over them
    shutil.copytree(tmp_path / "store/releases", copy / "releases")
    copy_entry(tmp_path, 5)
    refused(copy, NotThereYetError, "00000004.json: is not there yet, a later entry is", floor)
    copy_entry(tmp_path, 4, 100)
    refused(copy, NotThereYetError, "00000004.json: is not there yet, a later entry is", floor)
    copy_entry(tmp_path, 4)
    copy_entry(tmp_path, 3)
    assert head_of(copy, floor).entry.sequence == 5
    assert third.id != head_of(copy).entry.release


@pytest.mark.parametrize("length", [0, 1, 100, 500])
def test_a_cut_off_newest_entry_leaves_the_one_before(tmp_path: Path, length: int) -> None:
    copy, third, floor = half_copied(tmp_path)
    copy_entry(tmp_path, 3, length)
    found = a_store(copy).follow("emulator", "stable", floor)
    assert (found.head.entry.sequence, len(found.head.refused)) == (2, 1)
    assert found.release.id != third.id


def test_what_the_disk_refuses_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, "v1", "v2")

    def broken(path: Path, limit: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("runtime.contract.channels.read_bounded", broken)
    with pytest.raises(StoreError, match=r"00000002\.json: Input/output error"):
        head_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minimum_runtime": "99.0.0"}, "99.0.0"),
        ({"schema": 9}, "schema 9, this version reads 1, 2, 3"),
    ],
)
def test_a_release_for_a_newer_runtime_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    (release,) = published(tmp_path, "v1")
    document = json.loads(manifest_bytes(release.manifest)) | change
    data = to_json(document)
    folder = tmp_path / "releases" / sha256_bytes(data)
    shutil.copytree(release.directory, folder)
    put(folder / "manifest.json", data)
    put(folder / "manifest.dsse.json", sign_release(data, BUILD))
    put_entry(tmp_path, after(tip(tmp_path), release=folder.name), MANAGER)
    with pytest.raises(ManifestError, match=words):
        a_store(tmp_path).resolve("emulator", "stable")


@pytest.mark.parametrize("kind", ["garbage", "folder"])
def test_junk_in_a_roots_place_stops_nobody(tmp_path: Path, kind: str) -> None:
    (first,) = published(tmp_path, "v1")
    path = tmp_path / "trust/2.root.json"
    path.parent.mkdir()
    if kind == "garbage":
        path.write_bytes(b"[" * 100_000)
    else:
        path.mkdir()
    store = a_store(tmp_path)
    assert len(store.trust.refused) == 1
    assert store.resolve("emulator", "stable").id == first.id
    if kind == "garbage":
        assert rotated(store, "release-manager", next_root(manager=NEW), NEW) == ["emulator/stable"]
        assert store.trust.refused == []
