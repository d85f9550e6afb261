"""Exports for tests: read and made by another program than ours, and what must change nothing."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from runtime.contract.errors import (
    PipelineError,
)
from runtime.contract.portable import export, import_file
from runtime.contract.store import Release
from tests.keys import a_store
from tests.moves import published, tree

Files = dict[str, bytes]


def members(path: Path) -> Files:
    """What an export holds, read by another reader than ours."""
    with tarfile.open(path, "r:") as archive:
        found = {}
        for each in archive:
            file = archive.extractfile(each)
            assert file is not None
            found[each.name] = file.read()
    return found


def packed(path: Path, *files: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for member, data in files:
            archive.addfile(member, io.BytesIO(data))
    return path


def a_member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def repacked(path: Path, files: Files) -> Path:
    return packed(path, *(a_member(name, data) for name, data in files.items()))


def an_export(tmp_path: Path) -> tuple[Release, Path]:
    """A promoted release with evidence, and its export."""
    published(tmp_path / "store", "v0")
    (release,) = published(tmp_path / "store", "v1", judged=False)
    store = a_store(tmp_path / "store")
    store.add_evidence(release, "parity", "json", b"{}")
    export(store, release.id, tmp_path / "release.tar")
    return release, tmp_path / "release.tar"


def refused(tmp_path: Path, path: Path, kind: type[PipelineError], words: str = ".") -> None:
    """It is refused, and neither an empty store nor one with a history changes by a byte."""
    published(tmp_path / "known", "other")
    for name in ("empty", "known"):
        root = tmp_path / name
        before = tree(root)
        with pytest.raises(kind, match=words) as caught:
            import_file(a_store(root), path)
        assert type(caught.value) is kind
        assert tree(root) == before
        if name == "empty":
            shutil.rmtree(root, ignore_errors=True)
