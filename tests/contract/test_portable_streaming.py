"""An import is read piece by piece: large, changed meanwhile, over what is there; what its entries say."""

from __future__ import annotations

import contextlib
import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.contract.audit import store_problems
from runtime.contract.channels import sign_entry
from runtime.contract.errors import DigestMismatchError, ManifestError
from runtime.contract.export_file import CHUNK, ExportFile, ExportFileError
from runtime.contract.portable import export, import_file
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import Trust
from tests.exports import an_export, members, repacked
from tests.keys import MANAGER, TRUST_ROOT, a_store
from tests.moves import tip, tree
from tests.simulators import ARTIFACT, ReleaseSimulator

LARGE = 48 * CHUNK
STABLE = "channels/emulator/stable/00000002.json"


@pytest.fixture(name="carried")
def a_carried_release(tmp_path: Path) -> tuple[Release, Path]:
    return an_export(tmp_path)


@pytest.fixture(name="large", scope="module")
def a_large_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("large")
    release = ReleaseSimulator(files={"large.bin": bytes(LARGE)}).publish(folder / "store", "canary")
    export(a_store(folder / "store"), release.id, folder / "release.tar")
    return release.id, folder / "release.tar"


def test_memory_does_not_grow_with_what_is_carried(tmp_path: Path, large: tuple[str, Path]) -> None:
    store = a_store(tmp_path)
    tracemalloc.start()
    try:
        found = import_file(store, large[1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.release.id == large[0]
    assert (found.release.directory / "large.bin").stat().st_size == LARGE
    assert peak < 8 * CHUNK


class Slow(ReleaseStore):
    """Somebody does something to the export after all of it was verified, before it is copied."""

    def __init__(self, root: Path, export: Path, *, shorter: bool) -> None:
        super().__init__(root, Trust(TRUST_ROOT, "root"))
        self._export, self._shorter = export, shorter

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        with super().writing(), self._export.open("r+b") as file:
            if self._shorter:
                file.truncate(LARGE // 2)
            else:
                file.seek(LARGE // 2)
                file.write(b"X")
                file.flush()
            yield


@pytest.mark.parametrize("shorter", [True, False])
def test_what_is_changed_while_it_is_read_is_refused(
    tmp_path: Path, large: tuple[str, Path], shorter: bool
) -> None:
    path = tmp_path / "release.tar"
    path.write_bytes(large[1].read_bytes())
    kind, words = (
        (ExportFileError, "ends before its contents do")
        if shorter
        else (DigestMismatchError, "was changed while it was read")
    )
    with pytest.raises(kind, match=words):
        import_file(Slow(tmp_path / "store", path, shorter=shorter), path)
    assert tree(tmp_path / "store") == {}
    assert {each.name for each in (tmp_path / "store").rglob("*")} <= {".lock", "releases"}


def test_a_damaged_release_is_put_back(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    release, path = carried
    store = a_store(tmp_path / "new")
    artifact = import_file(store, path).release.directory / ARTIFACT
    whole = artifact.read_bytes()
    artifact.chmod(0o644)
    artifact.write_bytes(whole[:-1])
    assert import_file(store, path).release.id == release.id
    assert artifact.read_bytes() == whole
    assert store_problems(store) == []


def test_a_closed_export_is_read_no_more(carried: tuple[Release, Path]) -> None:
    with ExportFile(carried[1]) as arrived:
        name = next(iter(arrived.parts))
        assert arrived.read(name) == members(carried[1])[name]
    with pytest.raises(ValueError, match="closed file"):
        arrived.read(name)


def test_what_a_channel_named_before_need_not_be_there(tmp_path: Path, carried: tuple[Release, Path]) -> None:
    """The entry of v1 says that v0 was named before; only v1 comes along."""
    store = a_store(tmp_path / "new")
    import_file(store, carried[1])
    entry = tip(tmp_path / "new").entry
    assert (entry.release, store.holds(entry.previous)) == (carried[0].id, False)
    assert store_problems(store) == []


def test_an_entry_that_tells_the_past_otherwise_is_refused(
    tmp_path: Path, carried: tuple[Release, Path]
) -> None:
    """By the right key, after the right entry: nobody could continue the history with it."""
    files = members(carried[1])
    entry = dataclasses.replace(tip(tmp_path / "store").entry, previous="c" * 64)
    files[STABLE] = sign_entry(entry, MANAGER)
    with pytest.raises(
        ManifestError, match=r"previous is cccccccccccccccc, the entry before is .* and names"
    ):
        import_file(a_store(tmp_path / "new"), repacked(tmp_path / "bad.tar", files))
    assert tree(tmp_path / "new") == {}
