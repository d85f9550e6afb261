"""Export and import: the same bytes again, and files that an attacker made."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from runtime.contract.audit import store_problems
from runtime.contract.errors import (
    DigestMismatchError,
    ReleaseNotFoundError,
    StoreError,
)
from runtime.contract.export_file import ExportFileError
from runtime.contract.portable import export, import_file
from runtime.contract.promotion import Decision, mark_bad, promote
from runtime.contract.store import Release
from runtime.contract.trust import UnsignedError
from runtime.key_commands import sign_again
from tests.exports import an_export
from tests.keys import MANAGER, a_store
from tests.moves import NEW, next_root, published, tree
from tests.simulators import ARTIFACT, ReleaseSimulator

WHY = Decision(actor="Ada", reason="looked at it")
ENTRY = "channels/emulator/stable/00000001.json"


@pytest.fixture(name="carried")
def a_carried_release(tmp_path: Path) -> tuple[Release, Path]:
    return an_export(tmp_path)


def test_the_same_store_gives_the_same_bytes(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, path = carried
    export(a_store(tmp_path / "store"), release.id, tmp_path / "again.tar")
    assert path.read_bytes() == (tmp_path / "again.tar").read_bytes()
    copied = shutil.copytree(tmp_path / "store", tmp_path / "copy")
    export(a_store(copied), release.id, tmp_path / "copied.tar")
    assert path.read_bytes() == (tmp_path / "copied.tar").read_bytes()
    with tarfile.open(path) as archive:
        assert {(m.type, m.mode, m.mtime, m.uid, m.uname) for m in archive} == {
            (tarfile.REGTYPE, 0o444, 0, 0, "")
        }


def test_into_an_empty_store(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, path = carried
    found = import_file(a_store(tmp_path / "new"), path)
    assert (found.release.id, found.roots) == (release.id, 0)
    assert found.entries == {"emulator/canary": 2, "emulator/stable": 2}
    store = a_store(tmp_path / "new")
    assert store.resolve("emulator", "stable").id == release.id
    assert [each.name for each in store.evidence(release.id)] == [
        each.name for each in a_store(tmp_path / "store").evidence(release.id)
    ]
    before = tree(tmp_path / "new")
    assert set(import_file(store, path).entries.values()) == {0}
    assert tree(tmp_path / "new") == before
    export(store, release.id, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == path.read_bytes()


def test_into_a_store_with_part_of_the_history(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    store = a_store(shutil.copytree(tmp_path / "store", tmp_path / "part"))
    release, _ = carried
    (third,) = published(tmp_path / "store", "v3")
    mark_bad(a_store(tmp_path / "store"), release.id, "stable", WHY, MANAGER)
    export(a_store(tmp_path / "store"), third.id, tmp_path / "third.tar")
    assert import_file(store, tmp_path / "third.tar").entries == {"emulator/canary": 1, "emulator/stable": 2}
    assert store.resolve("emulator", "stable").id == third.id
    assert store.is_marked_bad(release)
    assert store_problems(store) == []


def test_new_roots_come_along(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, _ = carried
    store = a_store(tmp_path / "store")
    store.add_root(next_root(manager=NEW))
    assert sign_again(store, "release-manager", NEW, "Ada")[1] == []
    export(store, release.id, tmp_path / "rotated.tar")
    target = a_store(tmp_path / "new")
    assert import_file(target, tmp_path / "rotated.tar").roots == 1
    assert target.trust.root.version == 2
    assert store_problems(target) == []
    assert import_file(a_store(tmp_path / "new"), tmp_path / "rotated.tar").roots == 0


def test_a_release_that_no_channel_names_is_carried_alone(
    tmp_path: Path, carried: tuple[Release, Path]
) -> None:
    (other,) = published(tmp_path / "store", "v9", channels=())
    export(a_store(tmp_path / "store"), other.id, tmp_path / "other.tar")
    assert set(import_file(a_store(tmp_path / "new"), tmp_path / "other.tar").entries.values()) == {0}


def test_an_imported_canary_is_promoted_there(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "store", "v1", channels=("canary",))
    export(a_store(tmp_path / "store"), release.id, tmp_path / "release.tar")
    store = a_store(tmp_path / "new")
    import_file(store, tmp_path / "release.tar")
    assert promote(store, "emulator", release.id, WHY, MANAGER).release == release.id


def test_what_is_not_to_be_trusted_is_not_exported(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, _ = carried
    store, out = a_store(tmp_path / "store"), tmp_path / "out.tar"
    with pytest.raises(ReleaseNotFoundError):
        export(store, "a" * 64, out)
    with pytest.raises(StoreError):
        export(store, release.id, tmp_path / "release.tar" / "below.tar")
    (release.directory / ARTIFACT).unlink()
    with pytest.raises(DigestMismatchError):
        export(store, release.id, out)
    (release.directory / "manifest.dsse.json").unlink()
    with pytest.raises(UnsignedError):
        export(store, release.id, out)
    assert not out.exists()


@pytest.mark.parametrize("there", ["file", "folder", "link to nothing"])
def test_what_is_there_is_not_written_over(tmp_path: Path, carried: tuple[Release, Path], there: str) -> None:
    store, out = a_store(tmp_path / "store"), tmp_path / "out.tar"
    if there == "file":
        out.write_bytes(b"somebody's")
    elif there == "folder":
        out.mkdir()
    else:
        out.symlink_to("nowhere")
    with pytest.raises(ExportFileError, match="is there already"):
        export(store, carried[0].id, out)
    if there == "file":
        assert out.read_bytes() == b"somebody's"
        export(store, carried[0].id, out, force=True)
        assert out.read_bytes() == carried[1].read_bytes()


def test_a_name_that_does_not_fit_is_our_error(tmp_path: Path) -> None:
    name = "x" * 150
    release = ReleaseSimulator(files={name: b"x"}).publish(tmp_path / "store", "canary")
    with pytest.raises(ExportFileError, match="its name is too long"):
        export(a_store(tmp_path / "store"), release.id, tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()
