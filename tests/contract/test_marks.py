"""A release can be marked bad whatever is left of it, and the mark holds when it comes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.contract.audit import store_problems
from runtime.contract.errors import ManifestError, ReleaseNotFoundError, TargetMismatchError
from runtime.contract.marks import all_marks, markable
from runtime.contract.promotion import Decision, PromotionRefusedError, mark_bad, promote
from runtime.contract.pruning import prune
from runtime.contract.store import Release
from runtime.contract.trust import WrongRoleError
from tests.keys import BUILD, MANAGER, a_store
from tests.moves import published
from tests.simulators import ReleaseSimulator, flip_bit

WHY = Decision(actor="anna", reason="wrong axes")
Break = Callable[[Path, Release], object]


def _pruned(root: Path, release: Release) -> None:
    assert release.id in prune(a_store(root), 1, dry_run=False).removed


DAMAGES: dict[str, Break] = {
    "pruned": _pruned,
    "lost": lambda root, release: shutil.rmtree(release.directory),
    "its manifest is damaged": lambda root, release: flip_bit(release.directory / "manifest.json", 30),
    "its manifest is missing": lambda root, release: (release.directory / "manifest.json").unlink(),
    "its artifact is damaged": lambda root, release: flip_bit(release.directory / "tiny.onnx"),
    "its signature is missing": lambda root, release: (release.directory / "manifest.dsse.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_left_of_a_release_it_can_be_marked(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = published(tmp_path, "v1", "v2")
    whole = shutil.copytree(first.directory, tmp_path / "whole" / first.id)
    DAMAGES[damage](tmp_path, first)
    arguments = ["--yes", "--by", "anna", "--reason", "wrong axes", "--store", str(tmp_path)]
    assert main(["mark-bad", first.id[:16], *arguments]) == 0
    assert f"marks {first.id[:12]} bad  anna: wrong axes" in capsys.readouterr().out
    store = a_store(tmp_path)
    (mark,) = all_marks(store).of(first.id, "emulator")
    assert (mark.entry.action, mark.entry.channel, mark.keyids) == ("mark_bad", "stable", (MANAGER.keyid,))
    assert store.resolve("emulator", "stable").id == second.id
    assert store.history_problems("emulator", "stable") == []
    shutil.rmtree(first.directory, ignore_errors=True)
    whole.rename(first.directory)
    with pytest.raises(PromotionRefusedError, match="marked bad by anna"):
        promote(store, "emulator", first.id, WHY, MANAGER)


def test_what_nothing_is_left_of_needs_its_target(tmp_path: Path) -> None:
    """Damaged, and no channel ever named it."""
    published(tmp_path, "v1")
    release = ReleaseSimulator(version="v2").publish(tmp_path)
    flip_bit(release.directory / "manifest.json", 30)
    store = a_store(tmp_path)
    with pytest.raises(
        ManifestError, match="whose release it is cannot be told: no history names it"
    ) as told:
        mark_bad(store, release.id, "stable", WHY, MANAGER)
    assert "--target says it: one of emulator" in told.value.hint
    entry = mark_bad(store, release.id, "stable", WHY, MANAGER, target="emulator")
    assert (entry.target, entry.marked) == ("emulator", release.id)


def test_a_mark_goes_to_the_releases_own_target(tmp_path: Path) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    for gone in (False, True):
        if gone:
            shutil.rmtree(first.directory)
        with pytest.raises(TargetMismatchError, match="is for emulator, not hailo8"):
            mark_bad(store, first.id, "stable", WHY, MANAGER, target="hailo8")
    assert store.chain("hailo8", "stable") == []


def test_a_mark_of_what_is_gone_is_signed_as_any(tmp_path: Path) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    _pruned(tmp_path, first)
    with pytest.raises(WrongRoleError, match="this takes a key of role stable"):
        mark_bad(a_store(tmp_path), first.id, "stable", WHY, BUILD)
    assert mark_bad(a_store(tmp_path), first.id, "canary", WHY, BUILD).marked == first.id
    assert store_problems(a_store(tmp_path)) == []


@pytest.mark.parametrize("name", ["", "abc", "a" * 64, "a" * 6])
def test_what_the_store_never_heard_of_is_not_marked(tmp_path: Path, name: str) -> None:
    published(tmp_path, "v1")
    with pytest.raises(ReleaseNotFoundError):
        markable(a_store(tmp_path), name, "emulator")
