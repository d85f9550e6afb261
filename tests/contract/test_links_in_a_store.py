"""Links that somebody without a key puts into a store: they lead to nothing that nobody signed or meant."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from runtime.config import RuntimeConfig
from runtime.contract.audit import store_problems
from runtime.contract.errors import DigestMismatchError, PipelineError
from runtime.contract.portable import export, import_file
from runtime.contract.promotion import Decision, promote
from runtime.contract.release import SIGNATURE_NAME
from runtime.contract.release_directory import Release
from runtime.release_choice import ReleaseChoice
from tests.keys import MANAGER, TRUST_ROOT, a_store
from tests.simulators import ReleaseSimulator


def swapped(root: Path, release: Release, other: Release) -> None:
    """Let the one's name lead to the other."""
    release.directory.rename(root / "elsewhere")
    release.directory.symlink_to(other.id)


@pytest.fixture(name="two")
def two_releases(tmp_path: Path) -> tuple[Path, Release, Release]:
    """The one that stable names, and a mere canary."""
    store = tmp_path / "store"
    good = ReleaseSimulator(version="v1.0.0").publish(store, "canary", "stable")
    return store, good, ReleaseSimulator(version="v2.0.0").publish(store, "canary")


def test_a_pi_does_not_follow_a_name_to_another_release(
    tmp_path: Path, two: tuple[Path, Release, Release]
) -> None:
    store, good, other = two
    trust = tmp_path / "root.json"
    trust.write_bytes(TRUST_ROOT)
    choice = ReleaseChoice(RuntimeConfig(release_store=store, trust_root=trust))
    choice.serves(choice.find())
    swapped(store, good, other)
    (other.directory / SIGNATURE_NAME).unlink()
    with pytest.raises(DigestMismatchError):
        choice.find()
    with pytest.raises(PipelineError):
        choice.last(ValueError("no"))
    assert any(good.id[:12] in problem for problem in store_problems(a_store(store)))


def test_a_promotion_does_not_sign_what_a_name_leads_to(two: tuple[Path, Release, Release]) -> None:
    store, good, other = two
    swapped(store, good, other)
    with pytest.raises(PipelineError):
        promote(a_store(store), "emulator", good.id, Decision(actor="anna", reason="x"), MANAGER)


def test_a_release_on_another_disk_is_still_itself(two: tuple[Path, Release, Release]) -> None:
    store, good, _ = two
    good.directory.rename(store.parent / good.id)
    good.directory.symlink_to(store.parent / good.id)
    assert a_store(store).open(good.id).id == good.id


def test_an_export_takes_nothing_from_outside_and_says_what_it_leaves_out(
    tmp_path: Path, two: tuple[Path, Release, Release]
) -> None:
    store, good, _ = two
    key = tmp_path / "key.pem"
    key.write_bytes(MANAGER.pem())
    folder = store / "evidence" / good.id
    folder.mkdir(parents=True, exist_ok=True)
    planted = folder / f"parity-{'0' * 64}.json"
    planted.symlink_to(key)
    made = export(a_store(store), good.id, tmp_path / "out.tar")
    assert any(planted.name in problem for problem in made.left_out)
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert planted.name not in " ".join(archive.getnames())
    assert b"PRIVATE" not in (tmp_path / "out.tar").read_bytes()
    assert import_file(a_store(tmp_path / "copy"), tmp_path / "out.tar").release.id == good.id
