"""What somebody who may write into a store, but has no key of its role, cannot do: stop it, or decide."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import main
from runtime.contract import promotion
from runtime.contract.channel_log import Floor
from runtime.contract.errors import ManifestError, StoreBusyError, StoreError
from runtime.contract.keys import make_root, sign_root
from runtime.contract.promotion import Decision, PromotionRefusedError, mark_bad, promote, roll_back
from runtime.contract.pruning import prune
from runtime.contract.release import MANIFEST_NAME, SIGNATURE_NAME, parse_manifest
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.writers_lock import LOCK_NAME, writing
from runtime.key_commands import sign_again
from tests.keys import BUILD, MANAGER, ROOT_KEY, a_store
from tests.moves import channel
from tests.simulators import ReleaseSimulator
from tests.verdicts import judged_well

ANNA = Decision(actor="anna", reason="she looked at it")
FORCED = Decision(actor="anna", reason="the build key was stolen", force=True)
JUNK = ("x" * 300, "/proc/self/mem", "/proc/1/mem", "nowhere", ".")


@pytest.fixture(name="root")
def a_root_with_two(tmp_path: Path) -> Path:
    ReleaseSimulator(version="v1.0.0").publish(tmp_path, "canary", "stable")
    ReleaseSimulator(version="v2.0.0").publish(tmp_path, "canary")
    return tmp_path


def releases(root: Path) -> tuple[ReleaseStore, Release, Release]:
    store = a_store(root, accepts_doubles=True)
    stable, canary = (store.current("emulator", name) for name in ("stable", "canary"))
    assert stable is not None
    assert canary is not None
    return store, store.open(stable.release), store.open(canary.release)


@pytest.mark.parametrize("leads_to", JUNK)
@pytest.mark.parametrize("name", ["99999999.json", "00000002.json"])
def test_a_link_in_a_channel_jams_nobody(root: Path, leads_to: str, name: str) -> None:
    (channel(root) / name).symlink_to(leads_to)
    store, old, new = releases(root)
    assert store.head("emulator", "stable", Floor.at(store.chain("emulator", "stable")[-1])) is not None
    promote(store, "emulator", new.id, ANNA, MANAGER)
    roll_back(store, "emulator", "stable", ANNA, MANAGER)
    assert store.current("emulator", "stable").release == old.id  # type: ignore[union-attr]
    prune(store, keep=5, dry_run=False)
    ReleaseSimulator(version="v3.0.0").publish(root, "canary")


@pytest.mark.parametrize("leads_to", JUNK)
def test_a_link_among_the_roots_jams_nobody(root: Path, leads_to: str) -> None:
    (root / "trust").mkdir(exist_ok=True)
    (root / "trust" / "2.root.json").symlink_to(leads_to)
    store, _, new = releases(root)
    promote(store, "emulator", new.id, ANNA, MANAGER)
    assert len(store.trust.refused) == 1


def test_who_damages_canarys_history_does_not_freeze_stable(root: Path) -> None:
    store, old, new = releases(root)
    first = channel(root, "canary") / "00000001.json"
    first.chmod(0o644)
    first.write_text("damaged")
    with pytest.raises(PromotionRefusedError, match="marks may be missing"):
        promote(store, "emulator", new.id, ANNA, MANAGER)
    entry = promote(store, "emulator", new.id, FORCED, MANAGER)
    assert any("marks may be missing" in said for said in entry.overridden)
    back = roll_back(store, "emulator", "stable", FORCED, MANAGER)
    assert back.release == old.id


def test_a_mark_counts_where_another_history_does_not_hold(root: Path) -> None:
    store, _, new = releases(root)
    mark_bad(store, new.id, "stable", ANNA, MANAGER)
    first = channel(root, "canary") / "00000001.json"
    first.chmod(0o644)
    first.write_text("damaged")
    with pytest.raises(PromotionRefusedError, match="marked bad by anna"):
        promote(store, "emulator", new.id, ANNA, MANAGER)


def test_a_prune_waits_for_a_promotion_that_has_been_judged(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise stable would name what was just removed."""
    store, _, new = releases(root)
    ReleaseSimulator(version="v1.5.0").publish(root, "canary")
    for _ in range(3):
        ReleaseSimulator(version="v9").publish(root, "canary")
    judged_well(store, new)
    judged = promotion.check_promotable
    busy: list[str] = []

    def judge_and_prune(*arguments: Any) -> Release:
        release = judged(*arguments)
        other = a_store(root, accepts_doubles=True)
        try:
            with writing(other.root, patience=0):
                busy.append("taken")
        except StoreBusyError as error:
            busy.append(error.code)
        return release

    monkeypatch.setattr(promotion, "check_promotable", judge_and_prune)
    promote(store, "emulator", new.id, ANNA, MANAGER)
    roll_back(store, "emulator", "stable", ANNA, MANAGER)
    assert set(busy) == {StoreBusyError.code}


@pytest.mark.parametrize("kind", ["link to itself", "manifest that cannot be read"])
def test_a_rotation_goes_on_past_a_release_that_cannot_be_read(root: Path, kind: str) -> None:
    name = "f" * 64
    if kind == "link to itself":
        (root / "releases" / name).symlink_to(name)
    else:
        (root / "releases" / name).mkdir()
        (root / "releases" / name / MANIFEST_NAME).symlink_to("/proc/self/mem")
    store, _, new = releases(root)
    done, problems = sign_again(store, "build", BUILD, "anna")
    assert new.id in done
    assert any(name in problem for problem in problems)


def test_a_folder_in_a_roots_place_does_not_keep_the_next_one_out(root: Path) -> None:
    (root / "trust" / "2.root.json").mkdir(parents=True)
    after = make_root(
        {"root": [ROOT_KEY.public], "build": [BUILD.public], "release-manager": [MANAGER.public]},
        version=2,
        development=True,
    )
    store, _, _ = releases(root)
    assert store.add_root(sign_root(after, [ROOT_KEY])).version == 2
    assert a_store(root).trust.root.version == 2


def test_a_prune_takes_links_for_links(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (root / ".incoming-x").symlink_to(elsewhere)
    store, _, _ = releases(root)
    old = ReleaseSimulator(version="v0.1.0").publish(root)
    old.directory.rename(elsewhere / old.id)
    old.directory.symlink_to(elsewhere / old.id)
    found = prune(store, keep=1, dry_run=False)
    assert old.id in found.removed
    assert not old.directory.is_symlink()
    assert (elsewhere / "kept").exists()
    assert prune(store, keep=1, dry_run=False).removed == ()


@pytest.mark.parametrize("kind", ["folder for a signature", "link to nothing", "link to itself"])
def test_what_lies_in_the_way_of_a_publication_is_moved_aside(root: Path, kind: str) -> None:
    release = ReleaseSimulator(version="v7.0.0").publish(root)
    if kind == "folder for a signature":
        (release.directory / SIGNATURE_NAME).unlink()
        (release.directory / SIGNATURE_NAME).mkdir()
    else:
        shutil.rmtree(release.directory)
        release.directory.symlink_to("nothing" if kind == "link to nothing" else release.id)
    again = ReleaseSimulator(version="v7.0.0").publish(root, "canary")
    assert again.id == release.id
    assert a_store(root).resolve("emulator", "canary").id == again.id


def test_a_lock_that_is_another_file_too_is_not_written_to(root: Path) -> None:
    key = root.parent / f"{root.name}.pem"
    key.write_bytes(MANAGER.pem())
    (root / LOCK_NAME).unlink()
    os.link(key, root / LOCK_NAME)
    with pytest.raises(StoreError, match="another file"):
        ReleaseSimulator(version="v8.0.0").publish(root, "canary")
    assert key.read_bytes() == MANAGER.pem()


@pytest.mark.parametrize("verb", ["promote", "mark-bad"])
def test_what_is_signed_is_named_by_more_digits_than_can_be_ground(
    root: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, new = releases(root)
    arguments = ["--store", str(root), "--by", "anna", "--reason", "looked at it", "--yes"]
    assert main([verb, new.id[:15], *arguments]) != 0
    assert "at least 16 digits" in capsys.readouterr().err
    assert main([verb, new.id[:16], *arguments]) == 0


@pytest.mark.parametrize("where", ["stable", "canary"])
def test_a_mark_that_was_written_over_stops_a_promotion(root: Path, where: str) -> None:
    store, _, new = releases(root)
    mark_bad(store, new.id, where, ANNA, MANAGER if where == "stable" else BUILD)
    newest = max(channel(root, where).glob("*.json"))
    newest.chmod(0o644)
    newest.write_text("damaged")
    lost = f"marks may be missing: channels/emulator/{where}/{newest.name}: not JSON"
    with pytest.raises(PromotionRefusedError, match=lost):
        promote(store, "emulator", new.id, ANNA, MANAGER)
    entry = promote(store, "emulator", new.id, FORCED, MANAGER)
    assert any(newest.name in said for said in entry.overridden)
    assert not any(str(root) in said for said in entry.overridden)


def test_what_was_overridden_does_not_say_where_the_store_lies(root: Path) -> None:
    store, _, new = releases(root)
    for path in channel(root, "canary").glob("*.json"):
        path.chmod(0o644)
        path.write_text("damaged")
    entry = promote(store, "emulator", new.id, FORCED, MANAGER)
    assert "no canary entry that holds names it" in entry.overridden
    assert not any(str(root) in said for said in entry.overridden)


def test_one_content_has_one_id(root: Path) -> None:
    _, _, new = releases(root)
    data = (new.directory / MANIFEST_NAME).read_bytes()
    assert parse_manifest(data) == new.manifest
    for other in (data + b" ", b" " + data, data.replace(b'": ', b'":', 1), data.rstrip()):
        with pytest.raises(ManifestError, match="canonically"):
            parse_manifest(other)
