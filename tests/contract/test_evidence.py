"""Evidence beside releases: named by its bytes, outside of the release's digest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.contract import evidence, files
from runtime.contract.audit import store_problems
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import DigestMismatchError, ManifestError, ReleaseNotFoundError, StoreError
from runtime.contract.evidence import evidence_kind, read_evidence
from runtime.contract.store import Release, ReleaseStore
from tests.keys import a_store
from tests.simulators import ReleaseSimulator, flip_bit

PAGE = b"<!doctype html><title>parity</title>"


@pytest.fixture(name="store")
def the_store(tmp_path: Path) -> ReleaseStore:
    return a_store(tmp_path)


@pytest.fixture(name="release")
def a_release(tmp_path: Path) -> Release:
    return ReleaseSimulator().publish(tmp_path, "canary", judged=False)


def test_it_is_named_by_its_bytes(store: ReleaseStore, release: Release) -> None:
    path = store.add_evidence(release, "parity", "html", PAGE)
    assert path == store.root / "evidence" / release.id / f"parity-{sha256_bytes(PAGE)}.html"
    assert read_evidence(path) == PAGE
    assert evidence_kind(path) == "parity"
    other = store.add_evidence(release, "parity", "json", b"{}")
    assert store.evidence(release.id) == sorted([path, other])
    assert store_problems(store) == store_problems(store, release.id) == []


def test_the_release_does_not_change(store: ReleaseStore, release: Release) -> None:
    before = sorted(release.directory.iterdir())
    store.add_evidence(release, "parity", "html", PAGE)
    assert sorted(release.directory.iterdir()) == before
    assert store.identifiers() == [release.id]
    assert store.open(release.id).manifest == release.manifest


def test_the_same_again_changes_nothing(store: ReleaseStore, release: Release) -> None:
    path = store.add_evidence(release, "parity", "html", PAGE)
    before = path.stat()
    assert store.add_evidence(release, "parity", "html", PAGE) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_a_damaged_one_is_put_right(store: ReleaseStore, release: Release) -> None:
    path = store.add_evidence(release, "parity", "html", PAGE)
    flip_bit(path)
    store.add_evidence(release, "parity", "html", PAGE)
    assert read_evidence(path) == PAGE


def test_without_any_there_is_none(store: ReleaseStore, release: Release) -> None:
    assert store.evidence(release.id) == []
    with pytest.raises(ManifestError):
        store.evidence("../escape")


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("", "html"),
        ("Parity", "html"),
        ("../x", "html"),
        ("a/b", "json"),
        ("parity", "exe"),
        ("parity", ".html"),
    ],
)
def test_another_name_is_refused(store: ReleaseStore, release: Release, kind: str, suffix: str) -> None:
    with pytest.raises(ManifestError):
        store.add_evidence(release, kind, suffix, PAGE)
    assert not (store.root / "evidence").exists()


def test_too_much_is_refused(store: ReleaseStore, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MAX_EVIDENCE_BYTES", 10)
    with pytest.raises(ManifestError, match="at most 10"):
        store.add_evidence(release, "parity", "html", PAGE)


def test_it_needs_its_release(store: ReleaseStore, release: Release) -> None:
    shutil.rmtree(release.directory)
    with pytest.raises(ReleaseNotFoundError):
        store.add_evidence(release, "parity", "html", PAGE)


def test_it_appears_whole_or_not_at_all(
    store: ReleaseStore, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        path.chmod(0o600)
        path.write_bytes(data[:5])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_synced", full)
    with pytest.raises(StoreError, match="No space left"):
        store.add_evidence(release, "parity", "html", PAGE)
    assert list((store.root / "evidence" / release.id).iterdir()) == []
    assert store_problems(store) == []


def changed(path: Path) -> Path:
    flip_bit(path)
    return path


def renamed(path: Path) -> Path:
    return path.rename(path.with_name("report.html"))


def of_another_kind_of_file(path: Path) -> Path:
    path.unlink()
    path.mkdir()
    return path


@pytest.mark.parametrize("spoil", [changed, renamed, of_another_kind_of_file])
def test_verify_names_what_is_wrong(
    store: ReleaseStore, release: Release, spoil: Callable[[Path], Path]
) -> None:
    path = spoil(store.add_evidence(release, "parity", "html", PAGE))
    for problems in (store_problems(store), store_problems(store, release.id)):
        (problem,) = problems
        assert str(path) in problem


def test_what_belongs_to_no_release_is_a_problem(store: ReleaseStore, release: Release) -> None:
    path = store.add_evidence(release, "parity", "html", PAGE)
    moved = path.parent.rename(path.parent.with_name("a" * 64))
    (problem,) = store_problems(store)
    assert problem == f"{moved}: belongs to no release of this store"
    assert store_problems(store, release.id) == []
    moved.rename(moved.with_name("old"))
    assert "old: belongs to no release" in store_problems(store)[0]


def test_a_file_in_the_folders_place_is_one_problem(store: ReleaseStore, release: Release) -> None:
    (store.root / "evidence").write_text("")
    assert len(store_problems(store)) == 1
    with pytest.raises(StoreError):
        store.evidence(release.id)


def test_one_folder_that_cannot_be_read_hides_no_other(store: ReleaseStore, release: Release) -> None:
    path = store.add_evidence(release, "parity", "html", PAGE)
    flip_bit(path)
    (store.root / "evidence" / ("0" * 64)).write_text("a file")
    problems = store_problems(store)
    assert len(problems) == 2
    assert any(str(path) in problem for problem in problems)


def test_reading_is_verified(store: ReleaseStore, release: Release) -> None:
    path = store.add_evidence(release, "parity", "html", PAGE)
    flip_bit(path)
    with pytest.raises(DigestMismatchError, match="the name says"):
        read_evidence(path)
    with pytest.raises(ManifestError, match="no name of evidence"):
        read_evidence(release.directory / "manifest.json")
