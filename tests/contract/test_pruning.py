"""Pruning removes what no channel needs, says so first, and keeps what is to be explained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.contract.audit import pruned_release, signature_of, store_problems
from runtime.contract.errors import ManifestError
from runtime.contract.evidence import MANIFEST_KIND, PARITY_KIND, SIGNATURE_KIND, evidence_kind
from runtime.contract.promotion import Decision, promote, reaffirm, roll_back
from runtime.contract.pruning import prune
from runtime.contract.release_directory import sign_release
from runtime.contract.store import ReleaseStore
from tests.keys import BUILD, MANAGER, a_store
from tests.moves import NEW, STRANGER, next_root, put
from tests.simulators import ReleaseSimulator
from tests.verdicts import judged_well

WHY = Decision(actor="anna", reason="because")


def five_canaries(root: Path) -> tuple[ReleaseStore, list[str]]:
    names = [ReleaseSimulator(version=f"v{number}").publish(root, "canary").id for number in range(5)]
    return a_store(root), names


def test_what_a_channel_names_or_named_lately_stays(tmp_path: Path) -> None:
    store, names = five_canaries(tmp_path)
    judged_well(store, store.open(names[0]))
    promote(store, "emulator", names[0], WHY, MANAGER)
    plan = prune(store, 2, dry_run=False)
    assert sorted(plan.removed) == sorted(names[1:3])
    assert store.identifiers() == sorted([names[0], *names[3:]])
    assert plan.kept[names[0]] == "emulator/stable: named now"
    assert plan.kept[names[3]] == "emulator/canary: within its last 2 entries"
    assert store_problems(store) == []
    assert roll_back(store, "emulator", "canary", WHY, BUILD).release == names[3]


def test_a_dry_run_says_the_same_and_removes_nothing(tmp_path: Path) -> None:
    store, names = five_canaries(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    planned = prune(store, 1, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert prune(store, 1, dry_run=False) == planned
    assert store.identifiers() == [names[-1]]


def test_what_a_pruned_release_was_can_still_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, names = five_canaries(tmp_path)
    path = store.add_evidence(store.open(names[0]), PARITY_KIND, "json", b"{}")
    prune(store, 1, dry_run=False)
    assert path.exists()
    assert main(["show", names[0][:8], "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "tiny v0" in shown
    assert "pruned      its manifest was kept as evidence" in shown
    assert f"holds, development keys, key {BUILD.keyid[:16]}" in shown
    assert "emulator/canary  1" in shown


def test_the_signature_of_a_pruned_release_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, names = five_canaries(tmp_path)
    unsigned, stranger = (store.open(name).directory / "manifest.dsse.json" for name in names[:2])
    unsigned.unlink()
    put(stranger, sign_release((stranger.parent / "manifest.json").read_bytes(), STRANGER))
    prune(store, 1, dry_run=False)
    judged = [signature_of(store, name) for name in names]
    assert [each["ok"] for each in judged] == [None, False, True, True, True]
    assert [each["pruned"] for each in judged] == [True, True, True, True, False]
    assert judged[0]["problem"] == "pruned, and its signature was not kept"
    assert STRANGER.keyid[:16] in str(judged[1]["problem"])
    assert store_problems(store) == []
    assert main(["show", names[1], "--store", str(tmp_path)]) == 0
    assert "REFUSED" in capsys.readouterr().out


def test_a_pruned_release_of_a_key_that_was_rotated_out_is_not_called_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was released by whom one trusted then; that is said, and that it no longer counts."""
    store, names = five_canaries(tmp_path)
    stranger = store.open(names[1]).directory / "manifest.dsse.json"
    put(stranger, sign_release((stranger.parent / "manifest.json").read_bytes(), STRANGER))
    prune(store, 1, dry_run=False)
    with store.rotating(next_root(build=NEW)) as after:
        after.sign_release_again(names[4], NEW)
        reaffirm(after, "emulator", "canary", WHY, NEW)
    ours, strangers, last = (signature_of(store, names[number]) for number in (0, 1, 4))
    assert (ours["ok"], ours["earlier_root"], ours["by"]) == (None, 1, [])
    assert f"root 2 no longer names key {BUILD.keyid[:16]}, which signed it under root 1" in str(
        ours["problem"]
    )
    assert (strangers["ok"], strangers["earlier_root"]) == (False, None)
    assert (last["ok"], last["earlier_root"]) == (True, None)
    assert main(["show", names[0], "--store", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "REFUSED" not in shown
    assert "Nothing serves it: build it again to use it" in shown


def test_a_release_that_lies_there_with_a_rotated_out_key_is_refused(tmp_path: Path) -> None:
    store, names = five_canaries(tmp_path)
    store.add_root(next_root(build=NEW))
    assert (signature_of(store, names[4])["ok"], signature_of(store, names[4])["pruned"]) == (False, False)


def test_a_kept_manifest_is_the_releases_own(tmp_path: Path) -> None:
    """Another one, under its own right name, says nothing about this release."""
    names = [ReleaseSimulator(version=f"v{n}").publish(tmp_path, "canary", judged=False).id for n in range(5)]
    store = a_store(tmp_path)
    prune(store, 1, dry_run=False)
    mine, other = ((tmp_path / "evidence" / name) for name in names[:2])
    for folder in (mine, other):
        assert {evidence_kind(path) for path in folder.iterdir()} == {MANIFEST_KIND, SIGNATURE_KIND}
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    assert store_problems(store) == [f"{mine}: belongs to no release of this store"]
    assert pruned_release(store, names[0]) is None
    assert pruned_release(store, names[1]) is not None


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    store, _ = five_canaries(tmp_path)
    left = tmp_path / "releases" / ".incoming-x"
    left.mkdir()
    (left / "half").write_text("x")
    assert prune(store, 5, dry_run=True).leftovers == (left,)
    prune(store, 5, dry_run=False)
    assert not left.exists()


def test_nothing_is_removed_where_a_history_does_not_hold(tmp_path: Path) -> None:
    store, names = five_canaries(tmp_path)
    (tmp_path / "channels/emulator/canary/00000002.json").unlink()
    with pytest.raises(ManifestError, match=r"00000002\.json is missing"):
        prune(store, 1, dry_run=False)
    assert store.identifiers() == sorted(names)


def test_nothing_is_removed_where_no_channel_names_anything(tmp_path: Path) -> None:
    """A store whose channels have not arrived yet."""
    store, names = five_canaries(tmp_path)
    shutil.rmtree(tmp_path / "channels")
    for dry_run in (True, False):
        with pytest.raises(ManifestError, match="no channel names a release"):
            prune(store, 1, dry_run=dry_run)
    assert store.identifiers() == sorted(names)
    assert prune(a_store(tmp_path / "empty"), 1, dry_run=False).removed == ()


def test_nothing_is_removed_where_no_entry_of_a_channel_holds(tmp_path: Path) -> None:
    """A store whose new root has arrived before its channels."""
    store, names = five_canaries(tmp_path)
    judged_well(store, store.open(names[0]))
    promote(store, "emulator", names[0], WHY, MANAGER)
    store.add_root(next_root(manager=NEW))
    with pytest.raises(ManifestError, match="emulator/stable: its history does not hold"):
        prune(store, 1, dry_run=False)
    assert store.identifiers() == sorted(names)


def test_junk_under_a_high_number_is_no_obstacle(tmp_path: Path) -> None:
    store, names = five_canaries(tmp_path)
    put(tmp_path / "channels/emulator/canary/00000900.json", b"junk")
    assert len(prune(store, 1, dry_run=False).removed) == 4
    assert store.identifiers() == [names[-1]]


@pytest.mark.parametrize("kind", ["folder", "file", "altered"])
def test_what_is_no_release_is_said_and_stays(tmp_path: Path, kind: str) -> None:
    store, names = five_canaries(tmp_path)
    path = tmp_path / "releases" / ("f" * 64)
    if kind == "file":
        path.write_text("x")
    elif kind == "folder":
        path.mkdir()
    else:
        shutil.copytree(store.open(names[0]).directory, path)
    plan = prune(store, 1, dry_run=False)
    assert sorted(plan.removed) == sorted(names[:-1])
    assert plan.kept[path.name].startswith("is no release that can be read: ")
    assert path.exists()


@pytest.mark.parametrize("keep", [0, -1])
def test_what_is_named_now_cannot_be_given_up(tmp_path: Path, keep: int) -> None:
    store, _ = five_canaries(tmp_path)
    with pytest.raises(ManifestError, match="1 or more"):
        prune(store, keep, dry_run=False)


def test_a_roll_back_over_a_pruned_release_takes_the_next(tmp_path: Path) -> None:
    store, names = five_canaries(tmp_path)
    shutil.rmtree(store.open(names[3]).directory)
    assert roll_back(store, "emulator", "canary", WHY, BUILD).release == names[2]
