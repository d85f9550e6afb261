"""The store: releases appear whole, channels move one at a time, and no flipped bit passes."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.contract.audit import store_problems
from runtime.contract.errors import (
    DigestMismatchError,
    NoManifestError,
    PublicationRefusedError,
    ReleaseNotFoundError,
    StoreError,
    store_errors,
)
from runtime.contract.files import read_bounded, write_directory
from runtime.contract.store import Release, open_release
from runtime.contract.writers_lock import LOCK_NAME
from tests.keys import BUILD, a_store
from tests.simulators import ARTIFACT, GOLDEN, REPORT, ReleaseSimulator, flip_bit, parity


def test_a_published_release_is_read_back(tmp_path: Path) -> None:
    simulator = ReleaseSimulator()
    release = simulator.publish(tmp_path, "canary")
    store = a_store(tmp_path)
    again = store.resolve("emulator", "canary")
    assert again.id == release.id
    assert again.manifest == release.manifest
    assert again.read(ARTIFACT) == simulator.contents()[ARTIFACT]
    assert store_problems(store) == []


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    first = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    before = kept(tmp_path)
    second = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    assert second.id == first.id
    assert kept(tmp_path) == before


def kept(root: Path) -> list[tuple[Path, int]]:
    """What is in a store and when it was written; the writers' lock says nothing that is kept."""
    return [(path, path.stat().st_mtime_ns) for path in sorted(root.rglob("*")) if path.name != LOCK_NAME]


def test_the_id_depends_on_the_inputs_alone(tmp_path: Path) -> None:
    assert ReleaseSimulator().publish(tmp_path / "a").id == ReleaseSimulator().publish(tmp_path / "b").id
    assert ReleaseSimulator(version="v2").publish(tmp_path / "c").id != open_only(tmp_path / "a").id


def open_only(root: Path) -> Release:
    store = a_store(root)
    (identifier,) = store.identifiers()
    return store.open(identifier)


def test_a_failed_write_leaves_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes, mode: int) -> None:
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
        a_store(tmp_path).publish(manifest, {ARTIFACT: contents[ARTIFACT]}, BUILD)
    with pytest.raises(DigestMismatchError, match=REPORT):
        a_store(tmp_path).publish(manifest, contents | {REPORT: b"x" * len(contents[REPORT])}, BUILD)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([ARTIFACT, GOLDEN, REPORT]), where=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_every_flipped_bit_is_named(tmp_path: Path, name: str, where: float, bit: int) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    path = release.directory / name
    byte = int(where * path.stat().st_size)
    flip_bit(path, byte, bit)
    try:
        (problem,) = store_problems(a_store(tmp_path))
        assert str(path) in problem
        with pytest.raises(DigestMismatchError):
            release.verify()
    finally:
        flip_bit(path, byte, bit)
    release.verify()


@pytest.mark.parametrize("change", ["flip", "shorten", "lengthen", "remove", "directory", "pipe"])
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
    elif change == "pipe":
        os.mkfifo(path)
    with pytest.raises(DigestMismatchError):
        release.verify()
    (problem,) = store_problems(a_store(tmp_path))
    assert str(path) in problem


def test_a_manifest_that_was_changed_is_named(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    flip_bit(release.directory / "manifest.json", 40)
    with pytest.raises(DigestMismatchError, match="the directory is named"):
        a_store(tmp_path).resolve("emulator", "canary")
    assert len(store_problems(a_store(tmp_path))) == 1


def test_a_directory_of_another_name_is_refused(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    copy = shutil.copytree(release.directory, tmp_path / "copy")
    with pytest.raises(DigestMismatchError, match="keep its directory's name"):
        open_release(copy)
    link = tmp_path / "current"
    link.symlink_to(release.directory)
    assert open_release(link).id == release.id
    wrong = tmp_path / "link" / release.id
    wrong.parent.mkdir()
    wrong.symlink_to(copy)
    with pytest.raises(DigestMismatchError, match="keep its directory's name"):
        open_release(wrong)


def test_where_a_path_says_its_name_it_is_not_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That looks at every folder above it, for each release of a list."""
    release = ReleaseSimulator().publish(tmp_path)
    monkeypatch.chdir(release.directory)
    assert open_release(Path()).id == release.id
    (release.directory / "sub").mkdir()
    assert open_release(Path("sub/..")).id == release.id
    monkeypatch.delattr(Path, "resolve")
    assert open_release(release.directory).id == release.id


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
    store = a_store(tmp_path)
    assert store.identifiers() == [release.id]
    assert store.resolve("emulator", "canary").id == release.id
    assert store_problems(store) == []


def test_an_empty_or_missing_store_holds_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path / "none")
    assert store.identifiers() == []
    assert store.targets() == []
    with pytest.raises(ReleaseNotFoundError, match="names no release"):
        store.resolve("emulator", "stable")


def test_a_read_only_copy_is_read(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store", "canary")
    copy = shutil.copytree(tmp_path / "store", tmp_path / "moved")
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        store = a_store(copy)
        assert store.resolve("emulator", "canary").id == release.id
        assert store_problems(store) == []
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


@pytest.mark.parametrize("change", ["pipe", "directory", "missing"])
def test_a_manifest_that_is_no_file_is_no_manifest(tmp_path: Path, change: str) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary")
    path = release.directory / "manifest.json"
    path.unlink()
    if change == "pipe":
        os.mkfifo(path)
    elif change == "directory":
        path.mkdir()
    with pytest.raises(NoManifestError, match=r"no manifest\.json: "):
        open_release(release.directory)


def in_a_circle(path: Path) -> None:
    """What no user can open, root included."""
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("name", [ARTIFACT, "manifest.json"])
def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    in_a_circle(release.directory / name)
    with pytest.raises(StoreError, match=name):
        open_release(release.directory).verify()
    # It is nobody's file: publishing again puts one in its place, and keeps the rest aside.
    ReleaseSimulator().publish(tmp_path).verify()
    aside = [path.name for path in (tmp_path / "releases").iterdir() if path.name != release.id]
    assert [name.startswith(".damaged-") for name in aside] == [True]


def test_a_claimed_size_allocates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest may claim 1 GiB; a file of 30 bytes is read as one."""
    release = ReleaseSimulator().publish(tmp_path)
    asked: list[int] = []

    class Spy(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(-1 if size is None else size)
            return super().read(size)

    def open_spied(path: Path, mode: str, opener: Callable[[str, int], int]) -> io.BufferedReader:
        return Spy(io.FileIO(path, mode, opener=opener))

    monkeypatch.setattr("runtime.contract.files.open", open_spied, raising=False)
    path = release.directory / REPORT
    assert read_bounded(path, 2**30) == path.read_bytes()
    assert read_bounded(path, 3) == path.read_bytes()[:4]
    assert asked == [path.stat().st_size + 1, 4]


def test_publishing_verifies_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_a_byte(directory: Path, files: Mapping[str, bytes]) -> None:
        write_directory(directory, dict(files) | {GOLDEN: files[GOLDEN][:-1]})

    monkeypatch.setattr("runtime.contract.store.write_directory", lose_a_byte)
    with pytest.raises(DigestMismatchError, match=GOLDEN):
        ReleaseSimulator().publish(tmp_path)


def test_everything_published_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file before its directory gets its name, and each directory that got a new one."""
    synced: list[tuple[int, int]] = []
    sync = os.fsync

    def remember(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_dev, status.st_ino))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    store = tmp_path / "new" / "store"
    release = ReleaseSimulator().publish(store, "canary")
    made = [tmp_path, *(path for path, _ in kept(tmp_path))]
    missing = [path for path in made if (path.stat().st_dev, path.stat().st_ino) not in synced]
    assert missing == []
    order = [synced.index((path.stat().st_dev, path.stat().st_ino)) for path in release.directory.iterdir()]
    directory = (release.directory.stat().st_dev, release.directory.stat().st_ino)
    assert max(order) < synced.index(directory)


def test_an_extra_file_in_a_release_is_a_problem(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    extra = release.directory / "notes.txt"
    extra.write_text("hello")
    (problem,) = store_problems(a_store(tmp_path))
    assert problem == f"{extra}: is not named by the manifest"
    release.verify()


def test_a_release_that_came_around_the_gate_is_a_problem(tmp_path: Path) -> None:
    release = ReleaseSimulator(changes={"parity": parity(b"another artifact")}).place(tmp_path)
    (problem,) = store_problems(a_store(tmp_path))
    assert problem.startswith(f"{release.directory / 'manifest.json'}.parity.artifact_sha256: ")


def test_a_place_that_is_not_utf_8_can_still_be_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, store_errors(Path(os.fsdecode(b"/store/\xff"))):
        raise OSError(5, "Input/output error")
    assert str(caught.value).encode().startswith(b"/store/\\udcff: Input/output error")
    assert caught.value.where.encode() == b"/store/\\udcff"
