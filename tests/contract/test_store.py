"""The store: releases appear whole, channels move one at a time, and no flipped bit passes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import shutil
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.contract.errors import (
    ChannelMovedError,
    DigestMismatchError,
    ManifestError,
    NoManifestError,
    PublicationRefusedError,
    ReleaseNotFoundError,
    StoreError,
)
from runtime.contract.store import ChannelEntry, Release, ReleaseStore, open_release
from tests.simulators import ARTIFACT, GOLDEN, REPORT, ReleaseSimulator, flip_bit, parity


def test_a_published_release_is_read_back(tmp_path: Path) -> None:
    simulator = ReleaseSimulator()
    release = simulator.publish(tmp_path, "canary")
    store = ReleaseStore(tmp_path)
    again = store.resolve("emulator", "canary")
    assert again.id == release.id
    assert again.manifest == release.manifest
    assert again.read(ARTIFACT) == simulator.contents()[ARTIFACT]
    assert store.problems() == []
    assert store.channels_of(release.id) == [("emulator", "canary")]


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    first = ReleaseSimulator().publish(tmp_path, "canary")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    second = ReleaseSimulator().publish(tmp_path, "canary")
    assert second.id == first.id
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_the_id_depends_on_the_inputs_alone(tmp_path: Path) -> None:
    assert ReleaseSimulator().publish(tmp_path / "a").id == ReleaseSimulator().publish(tmp_path / "b").id
    assert ReleaseSimulator(version="v2").publish(tmp_path / "c").id != open_only(tmp_path / "a").id


def open_only(root: Path) -> Release:
    store = ReleaseStore(root)
    (identifier,) = store.identifiers()
    return store.open(identifier)


def test_a_failed_write_leaves_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == GOLDEN:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(data)

    monkeypatch.setattr("runtime.contract.files.write_synced", full)
    with pytest.raises(StoreError, match="No space left"):
        ReleaseSimulator().publish(tmp_path)
    assert list((tmp_path / "releases").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parity": parity(b"another artifact")}, "parity was computed on"),
        ({"parity": dataclasses.replace(parity(b""), passed=False)}, "parity"),
    ],
)
def test_publishing_is_gated(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(PublicationRefusedError, match=message):
        ReleaseSimulator(changes=changes).publish(tmp_path)
    assert not (tmp_path / "releases").exists()


def test_other_files_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    simulator = ReleaseSimulator()
    contents = simulator.contents()
    manifest = simulator.manifest(contents)
    with pytest.raises(PublicationRefusedError, match="are not the manifest's"):
        ReleaseStore(tmp_path).publish(manifest, {ARTIFACT: contents[ARTIFACT]})
    with pytest.raises(DigestMismatchError, match=REPORT):
        ReleaseStore(tmp_path).publish(manifest, contents | {REPORT: b"x" * len(contents[REPORT])})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([ARTIFACT, GOLDEN, REPORT]), where=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_every_flipped_bit_is_named(tmp_path: Path, name: str, where: float, bit: int) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    path = release.directory / name
    byte = int(where * path.stat().st_size)
    flip_bit(path, byte, bit)
    try:
        (problem,) = ReleaseStore(tmp_path).problems()
        assert str(path) in problem
        with pytest.raises(DigestMismatchError):
            release.verify()
    finally:
        flip_bit(path, byte, bit)
    release.verify()


@pytest.mark.parametrize("change", ["flip", "shorten", "lengthen", "remove", "directory"])
def test_every_other_damage_is_named(tmp_path: Path, change: str) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    path = release.directory / GOLDEN
    path.chmod(0o644)
    data = path.read_bytes()
    if change == "flip":
        path.write_bytes(b"x" + data[1:])
    elif change == "shorten":
        path.write_bytes(data[:-1])
    elif change == "lengthen":
        path.write_bytes(data + b"x")
    else:
        path.unlink()
    if change == "directory":
        path.mkdir()
    (problem,) = ReleaseStore(tmp_path).problems()
    assert str(path) in problem


def test_a_manifest_that_was_changed_is_named(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    flip_bit(release.directory / "manifest.json", 40)
    with pytest.raises(DigestMismatchError, match="the directory is named"):
        ReleaseStore(tmp_path).resolve("emulator", "canary")
    assert len(ReleaseStore(tmp_path).problems()) == 1


def test_a_directory_of_another_name_is_refused(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    copy = shutil.copytree(release.directory, tmp_path / "copy")
    with pytest.raises(DigestMismatchError, match="keep its directory's name"):
        open_release(copy)
    link = tmp_path / "current"
    link.symlink_to(release.directory)
    assert open_release(link).id == release.id


def test_a_folder_without_manifest_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(NoManifestError):
        open_release(tmp_path)


def test_junk_in_the_store_is_ignored(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    (tmp_path / "releases" / ".incoming-x").mkdir()
    (tmp_path / "releases" / "README").write_text("hello")
    (tmp_path / "releases" / ("A" * 64)).mkdir()
    folder = tmp_path / "channels" / "emulator" / "canary"
    (folder / ".entry-x").write_text("")
    (folder / "00000002.json.swp").write_text("")
    (tmp_path / "lost+found").mkdir()
    store = ReleaseStore(tmp_path)
    assert store.identifiers() == [release.id]
    assert store.resolve("emulator", "canary").id == release.id
    assert store.problems() == []


def test_an_empty_or_missing_store_holds_nothing(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "none")
    assert store.identifiers() == []
    assert store.targets() == []
    with pytest.raises(ReleaseNotFoundError, match="names no release"):
        store.resolve("emulator", "stable")


def test_a_channel_remembers_every_move(tmp_path: Path) -> None:
    first = ReleaseSimulator().publish(tmp_path, "canary")
    second = ReleaseSimulator(version="v2").publish(tmp_path, "canary")
    store = ReleaseStore(tmp_path)
    store.point("canary", second, actor="nobody", reason="already there")
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

        def current(self, target: str, channel: str) -> ChannelEntry | None:
            entry = super().current(target, channel)
            if not self.looked:
                self.looked = True
                ReleaseStore(tmp_path).point("canary", second, actor="quick", reason="first")
            return entry

    with pytest.raises(ChannelMovedError, match="quick moved it first"):
        Late(tmp_path).point("canary", third, actor="late", reason="second")
    assert first.id != second.id
    assert ReleaseStore(tmp_path).resolve("emulator", "canary").id == second.id


def _race(root: Path, identifier: str, actor: str, start: Barrier, results: Queue[tuple[str, int]]) -> None:
    store = ReleaseStore(root)
    release = store.open(identifier)
    start.wait()
    try:
        entry = store.point("stable", release, actor=actor, reason="race")
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
    history = ReleaseStore(tmp_path).history("emulator", "stable")
    assert [entry.sequence for entry in history] == moves
    assert {entry.actor for entry in history} == {actor for actor, sequence in outcome if sequence}
    assert all(a.release == b.previous for a, b in itertools.pairwise(history))


def test_a_copied_channel_entry_is_refused(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "canary")
    folder = tmp_path / "channels" / "emulator"
    shutil.copytree(folder / "canary", folder / "stable")
    with pytest.raises(ManifestError, match="copied"):
        ReleaseStore(tmp_path).current("emulator", "stable")


def test_a_channel_to_a_pruned_release_is_named(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    shutil.rmtree(release.directory)
    (problem,) = ReleaseStore(tmp_path).problems()
    assert release.id[:16] in problem


@pytest.mark.parametrize(
    ("target", "channel"), [("hailo15", "canary"), ("emulator", "beta"), ("..", "canary")]
)
def test_unknown_places_are_refused(tmp_path: Path, target: str, channel: str) -> None:
    with pytest.raises(ReleaseNotFoundError, match="one of"):
        ReleaseStore(tmp_path).current(target, channel)


def test_a_read_only_copy_is_read(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store", "canary")
    copy = shutil.copytree(tmp_path / "store", tmp_path / "moved")
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        store = ReleaseStore(copy)
        assert store.resolve("emulator", "canary").id == release.id
        assert store.problems() == []
        if os.geteuid() != 0:
            with pytest.raises(StoreError):
                ReleaseSimulator(version="v2").publish(copy)
    finally:
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_release_is_written_read_only(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in release.directory.iterdir()}
    assert modes == {0o444}
