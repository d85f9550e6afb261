"""Files that no export is, or that somebody changed on the way: refused, and nothing is written."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.contract.channel_log import ForkError, NotThereYetError
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import (
    DigestMismatchError,
    ManifestError,
    PipelineError,
    PublicationRefusedError,
    StoreError,
)
from runtime.contract.export_file import BLOCK, ExportFileError
from runtime.contract.keys import sign_root
from runtime.contract.portable import export, import_file
from runtime.contract.promotion import Decision
from runtime.contract.release_directory import sign_release
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import AlteredError, Trust, TrustRootError, UnknownKeyError
from tests.exports import Files, a_member, an_export, members, packed, refused, repacked
from tests.keys import MANAGER, a_key, a_root, a_store
from tests.moves import NEW, STRANGER, after, channel, next_root, point, published, put_entry, tip, tree
from tests.simulators import ARTIFACT, ReleaseSimulator

WHY = Decision(actor="Ada", reason="looked at it")
ENTRY = "channels/emulator/stable/00000001.json"


@pytest.fixture(name="carried")
def a_carried_release(tmp_path: Path) -> tuple[Release, Path]:
    return an_export(tmp_path)


BAD_NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "releases/../../x",
    "releases/" + "a" * 64 + "/../x",
    "releases/" + "a" * 64 + "/.hidden",
    "releases/" + "a" * 64 + "/a/b",
    "releases/" + "A" * 64 + "/x",
    "./releases/" + "a" * 64 + "/x",
    "channels/emulator/beta/00000001.json",
    "channels/emulator/stable/1.json",
    "trust/0.root.json",
    "requests/" + "a" * 64 + ".json",
    ".lock",
    "releases/" + "a" * 64 + "/x\ny",
)
NAME = "releases/" + "a" * 64 + "/x"
KINDS = {
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
    "contiguous": tarfile.CONTTYPE,
    "old style": tarfile.AREGTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "pax": tarfile.XHDTYPE,
    "global pax": tarfile.XGLTYPE,
    "Solaris pax": tarfile.SOLARIS_XHDTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_other_name_is_taken(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / "bad.tar", a_member(name, b"x"))
    refused(tmp_path, path, ExportFileError, "is no name that an export has")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("link", ["", "/etc/passwd"])
def test_nothing_but_regular_files_is_taken(tmp_path: Path, kind: bytes, link: str) -> None:
    path = packed(tmp_path / "bad.tar", a_member(NAME, type=kind, linkname=link))
    refused(tmp_path, path, ExportFileError, "is no regular file|is no name")


def test_a_regular_file_with_a_link_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.tar", a_member(NAME, linkname="/etc/passwd"))
    refused(tmp_path, path, ExportFileError, "is no regular file")


def test_extended_headers_are_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    files = members(carried[1])
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = packed(tmp_path / "long.tar", a_member("x" * 300, b"x"), form=form)
        refused(tmp_path, path, ExportFileError, "is no regular file")
    headers = {"path": "/etc/passwd"}
    made = [a_member(name, data, pax_headers=headers) for name, data in files.items()]
    path = packed(tmp_path / "pax.tar", *made, form=tarfile.PAX_FORMAT)
    refused(tmp_path, path, ExportFileError, "is no regular file")


def test_compression_is_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    path = tmp_path / "release.tar.gz"
    data = gzip.compress(carried[1].read_bytes())
    path.write_bytes(data)
    refused(tmp_path, path, ExportFileError, "bytes cannot be an export")
    path.write_bytes(data + bytes(-len(data) % BLOCK))
    refused(tmp_path, path, ExportFileError, "is no export")


@pytest.mark.parametrize("size", [-1, 2, 2**20, 2**33 - 1, 2**62])
def test_a_claimed_size_allocates_nothing(tmp_path: Path, size: int) -> None:
    member, _ = a_member(NAME)
    member.size = size
    header = member.tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "bad.tar"
    path.write_bytes(header + bytes(2 * BLOCK) * (size < BLOCK) + bytes(BLOCK))
    words = "bytes, at most|ends before its contents do|holds no manifest|is no regular"
    refused(tmp_path, path, ExportFileError, words)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    files = members(carried[1])
    made = [a_member(name, data) for name, data in files.items()]
    for again in (0, len(made) - 1):
        path = packed(tmp_path / "bad.tar", *made, made[again])
        refused(tmp_path, path, ExportFileError, "a name comes twice")


Change = Callable[[Files, Release], None]


def _alter(part: str) -> Change:
    def change(files: Files, release: Release) -> None:
        (name,) = [name for name in files if name.startswith(part) or name.endswith(part)]
        files[name] = files[name][:-5] + b"X" + files[name][-4:]

    return change


def _drop(part: str) -> Change:
    def change(files: Files, release: Release) -> None:
        for name in [name for name in files if part in name]:
            del files[name]

    return change


def _extra(files: Files, release: Release) -> None:
    files[f"releases/{release.id}/extra.txt"] = b"x"


def _second_release(files: Files, release: Release) -> None:
    files["releases/" + "a" * 64 + "/manifest.json"] = b"{}"


def _foreign_evidence(files: Files, release: Release) -> None:
    files["evidence/" + "a" * 64 + "/parity-" + sha256_bytes(b"x") + ".json"] = b"x"


def _by_a_stranger(files: Files, release: Release) -> None:
    prefix = f"releases/{release.id}/manifest"
    files[f"{prefix}.dsse.json"] = sign_release(files[f"{prefix}.json"], STRANGER)


def _foreign_root(files: Files, release: Release) -> None:
    files["trust/2.root.json"] = next_root(root=STRANGER, manager=NEW, signers=(STRANGER,))


def _root_after_a_gap(files: Files, release: Release) -> None:
    files["trust/3.root.json"] = next_root(version=3, manager=NEW)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (_alter(ARTIFACT), DigestMismatchError, "the manifest says"),
        (_alter("manifest.json"), DigestMismatchError, "the manifest's sha256 is"),
        (_alter("evidence/"), DigestMismatchError, "is not what its name says"),
        (_alter("manifest.dsse.json"), ManifestError, "not JSON"),
        (_alter(ENTRY), ManifestError, "not JSON"),
        (_drop(ARTIFACT), ExportFileError, "holds other files than the manifest's"),
        (_drop("manifest.json"), ExportFileError, "holds no manifest.json"),
        (_drop("dsse"), ExportFileError, "holds no manifest.dsse.json"),
        (_drop("releases/"), ExportFileError, "holds 0 releases"),
        (_drop(ENTRY), NotThereYetError, "entry 2 has nothing before it"),
        (_extra, ExportFileError, "holds other files than the manifest's"),
        (_second_release, ExportFileError, "holds 2 releases"),
        (_foreign_evidence, DigestMismatchError, "is not what its name says"),
        (_by_a_stranger, UnknownKeyError, "which root 1 does not name"),
        (_foreign_root, UnknownKeyError, "which root 1 does not name"),
        (_root_after_a_gap, TrustRootError, "version 3 cannot follow 1"),
    ],
)
def test_what_was_changed_on_the_way_is_refused(
    tmp_path: Path, carried: tuple[Release, Path], change: Change, kind: type[PipelineError], words: str
) -> None:
    release, path = carried
    files = members(path)
    change(files, release)
    shutil.rmtree(tmp_path / "known", ignore_errors=True)
    with pytest.raises(kind, match=words) as caught:
        import_file(a_store(tmp_path / "new"), repacked(tmp_path / "bad.tar", files))
    assert type(caught.value) is kind
    assert tree(tmp_path / "new") == {}


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, path = carried
    data = path.read_bytes()
    whole = len(data.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    cut, store = tmp_path / "cut.tar", a_store(tmp_path / "new")
    for length in [*range(0, whole + 1, BLOCK), 1, 700, whole - 1, len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ExportFileError):
            import_file(store, cut)
    assert tree(tmp_path / "new") == {}
    cut.write_bytes(data[: whole + BLOCK])  # what tells the end is there
    assert import_file(store, cut).release.id == release.id


@pytest.mark.parametrize("data", [b"", b"x", bytes(BLOCK), bytes(10 * BLOCK), b"\xff" * 2 * BLOCK])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(data)
    refused(tmp_path, tmp_path / "bad.tar", ExportFileError)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "nowhere.tar", StoreError, "No such file")
    refused(tmp_path, tmp_path, StoreError, "Is a directory")


def test_an_export_under_another_root_is_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    theirs = a_root(root=STRANGER, build=a_key("their build"), manager=NEW)
    store = ReleaseStore(tmp_path / "theirs", Trust(sign_root(theirs, [STRANGER]), "their root"))
    with pytest.raises(UnknownKeyError, match="the store is of another root of trust"):
        import_file(store, carried[1])
    with pytest.raises(TrustRootError, match="no root of trust was given"):
        import_file(ReleaseStore(tmp_path / "theirs", None), carried[1])
    assert tree(tmp_path / "theirs") == {}


def test_another_history_is_a_fork(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    published(tmp_path / "known", "other")
    before = tree(tmp_path / "known")
    with pytest.raises(ForkError, match="entry 1 is another one than the store's"):
        import_file(a_store(tmp_path / "known"), carried[1])
    assert tree(tmp_path / "known") == before


def test_a_history_that_forks_at_its_end_is_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, _ = carried
    mine = shutil.copytree(tmp_path / "store", tmp_path / "mine")
    point(mine, a_store(mine).open(a_store(mine).history("emulator", "stable")[0].release))
    put_entry(tmp_path / "store", after(tip(tmp_path / "store"), release=release.id), MANAGER)
    export(a_store(tmp_path / "store"), release.id, tmp_path / "fork.tar")
    before = tree(mine)
    with pytest.raises(ForkError, match="entry 3 is another one than the store's"):
        import_file(a_store(mine), tmp_path / "fork.tar")
    assert tree(mine) == before


def test_an_altered_entry_is_refused(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    files = members(carried[1])
    head = channel(tmp_path / "store") / "00000002.json"
    files["channels/emulator/stable/00000002.json"] = head.read_bytes().replace(b'"ewog', b'"ewoK')
    with pytest.raises(AlteredError):
        import_file(a_store(tmp_path / "new"), repacked(tmp_path / "bad.tar", files))
    assert tree(tmp_path / "new") == {}


def test_an_older_export_takes_nothing_back(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    (third,) = published(tmp_path / "store", "v3")
    store = a_store(tmp_path / "store")
    assert set(import_file(store, carried[1]).entries.values()) == {0}
    assert store.resolve("emulator", "stable").id == third.id


def test_a_doubles_release_is_not_imported(tmp_path: Path) -> None:
    release = ReleaseSimulator(target="hailo8").publish(tmp_path / "store", "canary")
    export(a_store(tmp_path / "store"), release.id, tmp_path / "double.tar")
    with pytest.raises(PublicationRefusedError, match="a test double of the compiler wrote it"):
        import_file(a_store(tmp_path / "new"), tmp_path / "double.tar")
    assert tree(tmp_path / "new") == {}
