"""Promote, roll back, mark bad: what is refused in which words, and what each move records."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.contract.document import sha256_bytes
from runtime.contract.errors import (
    ChannelMovedError,
    DigestMismatchError,
    PipelineError,
    PublicationRefusedError,
    ReleaseNotFoundError,
    TargetMismatchError,
)
from runtime.contract.promotion import (
    MOST_WORDS,
    Decision,
    PromotionRefusedError,
    mark_bad,
    plan_roll_back,
    promote,
    reaffirm,
    roll_back,
)
from runtime.contract.pruning import prune
from runtime.contract.store import MOST_EVIDENCE, Release
from runtime.contract.trust import UnknownKeyError, WrongRoleError
from tests.keys import BUILD, MANAGER, a_store
from tests.moves import STRANGER, published, put, tree
from tests.simulators import ARTIFACT, ReleaseSimulator, flip_bit, parity
from tests.verdicts import judged_well

WHY = Decision(actor="Ada", reason="looked at it")
FORCED = Decision(actor="Ada", reason="must be", force=True)
Break = Callable[[Path], Release]


@pytest.mark.parametrize("field", ["actor", "reason"])
@pytest.mark.parametrize("text", ["", " ", "two\nlines", "\x1b[2J", "x" * (MOST_WORDS + 1)])
def test_who_and_why_must_be_said(field: str, text: str) -> None:
    with pytest.raises(PromotionRefusedError, match=f"{field}: must be said, in one line"):
        dataclasses.replace(WHY, **{field: text})  # type: ignore[arg-type]


def test_a_promotion_records_who_and_why(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    entry = promote(store, "emulator", release.id, WHY, MANAGER)
    assert store.current("emulator", "stable") == entry
    assert (entry.action, entry.release, entry.previous) == ("promote", release.id, "")
    assert (entry.actor, entry.reason, entry.overridden) == ("Ada", "looked at it", ())


def test_a_promotion_records_the_evidence_that_lay_there(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    kept = store.add_evidence(release, "parity", "json", b"{}")
    record, verdict = promote(store, "emulator", release.id, WHY, MANAGER).evidence
    assert kept.name == f"{record.kind}-{record.sha256}.json"
    assert verdict.kind == "verdict"


def test_junk_beside_a_release_is_no_evidence_and_stops_nothing(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    kept = store.add_evidence(release, "parity", "json", b"{}")
    for number in range(1000):
        put(kept.with_name(f"junk-{number:064x}.json"), b"")
    (kept.parent / f"junk-{'f' * 64}.json").mkdir()
    record, _ = promote(store, "emulator", release.id, WHY, MANAGER).evidence
    assert (record.kind, record.sha256) == ("parity", sha256_bytes(b"{}"))


def test_an_entry_names_so_much_evidence_and_no_more(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    for number in range(MOST_EVIDENCE + 5):
        store.add_evidence(release, "parity", "json", str(number).encode())
    assert len(promote(store, "emulator", release.id, WHY, MANAGER).evidence) == MOST_EVIDENCE


def test_a_mark_rests_on_its_reason_alone(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    store.add_evidence(release, "parity", "json", b"{}")
    promote(store, "emulator", release.id, WHY, MANAGER)
    assert mark_bad(store, release.id, "stable", WHY, MANAGER).evidence == ()


def test_what_is_there_already_changes_nothing(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    before = tree(tmp_path)
    entry = promote(a_store(tmp_path), "emulator", release.id, WHY, MANAGER)
    assert (entry.sequence, entry.actor) == (1, "test")
    assert tree(tmp_path) == before


def _without_parity(root: Path) -> Release:
    made = ReleaseSimulator()
    artifact = made.contents()[ARTIFACT]
    failed = dataclasses.replace(parity(artifact), passed=False, failures=("cosine is low",))
    return ReleaseSimulator(changes={"parity": failed}).place(root)


def _judged_by_nothing(root: Path) -> Release:
    artifact = ReleaseSimulator().contents()[ARTIFACT]
    unjudged = dataclasses.replace(parity(artifact), thresholds={"other": 1.0})
    return ReleaseSimulator(changes={"parity": unjudged}).place(root)


def _another_artifacts_parity(root: Path) -> Release:
    return ReleaseSimulator(changes={"parity": parity(b"another")}).place(root)


def _another_toolchain(root: Path) -> Release:
    made = ReleaseSimulator()
    record = dataclasses.replace(made.manifest(made.contents()).toolchain, id="another")
    return ReleaseSimulator(changes={"toolchain": record}).publish(root, "canary")


def _never_a_canary(root: Path) -> Release:
    return published(root, "v1", channels=())[0]


def _marked_bad(root: Path) -> Release:
    (release,) = published(root, "v1", channels=("canary",))
    mark_bad(a_store(root), release.id, "stable", WHY, MANAGER)
    return release


def _marked_bad_by_the_build_host(root: Path) -> Release:
    (release,) = published(root, "v1", channels=("canary",))
    mark_bad(a_store(root), release.id, "canary", Decision(actor="CI", reason="it overheats"), BUILD)
    return release


def _damaged(root: Path) -> Release:
    (release,) = published(root, "v1", channels=("canary",))
    flip_bit(release.directory / ARTIFACT, 50)
    return release


def _another_release(root: Path) -> Release:
    (release,) = published(root, "v1", channels=("canary",))
    shutil.rmtree(release.directory)
    return release


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (_without_parity, PublicationRefusedError, "parity failed: cosine is low"),
        (_judged_by_nothing, PublicationRefusedError, "parity failed: "),
        (_another_artifacts_parity, PublicationRefusedError, "parity was computed on"),
        (
            _another_toolchain,
            PromotionRefusedError,
            "its numbers are emulated by another, for emulator only emulator can say them",
        ),
        (_damaged, DigestMismatchError, "the manifest says"),
        (_another_release, ReleaseNotFoundError, "no release"),
    ],
)
def test_what_no_force_promotes(
    tmp_path: Path, make: Break, kind: type[PipelineError], words: str, force: bool
) -> None:
    release = make(tmp_path)
    decision = dataclasses.replace(WHY, force=force)
    with pytest.raises(kind, match=words) as caught:
        promote(a_store(tmp_path), "emulator", release.id, decision, MANAGER)
    assert type(caught.value) is kind
    assert a_store(tmp_path).history("emulator", "stable") == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_never_a_canary, "it was never a canary"),
        (_marked_bad, "marked bad by Ada on .*: looked at it"),
        (_marked_bad_by_the_build_host, "marked bad by CI on .*: it overheats"),
    ],
)
def test_what_force_promotes_is_recorded(tmp_path: Path, make: Break, words: str) -> None:
    release, store = make(tmp_path), a_store(tmp_path)
    before = store.history("emulator", "stable")
    with pytest.raises(PromotionRefusedError, match=words) as caught:
        promote(store, "emulator", release.id, WHY, MANAGER)
    assert caught.value.code == "promotion_refused"
    assert "--force goes on" in caught.value.hint
    assert store.history("emulator", "stable") == before
    entry = promote(store, "emulator", release.id, FORCED, MANAGER)
    assert entry.release == release.id
    assert entry.overridden == tuple(caught.value.what.split("; "))


def test_a_long_mark_is_overridden_in_fewer_words(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    mark_bad(store, release.id, "canary", Decision(actor="C" * MOST_WORDS, reason="x" * MOST_WORDS), BUILD)
    judged_well(store, release)
    (overridden,) = promote(store, "emulator", release.id, FORCED, MANAGER).overridden
    assert overridden.startswith("marked bad by CCC")
    assert len(overridden) < MOST_WORDS


def test_a_release_is_not_promoted_for_another_target(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    with pytest.raises(TargetMismatchError, match="is for emulator, the channel is hailo8's"):
        promote(a_store(tmp_path), "hailo8", release.id, FORCED, MANAGER)


def test_emulated_numbers_say_nothing_about_a_chip(tmp_path: Path) -> None:
    made = ReleaseSimulator(target="hailo8")
    record = dataclasses.replace(made.manifest(made.contents()).toolchain, id="emulator")
    release = ReleaseSimulator(target="hailo8", changes={"toolchain": record}).publish(tmp_path, "canary")
    words = "its numbers are measured by emulator, for hailo8 only hailo-dfc can say them"
    with pytest.raises(PromotionRefusedError, match=words):
        promote(a_store(tmp_path, accepts_doubles=True), "hailo8", release.id, FORCED, MANAGER)


def test_what_a_double_of_the_compiler_wrote_is_never_promoted(tmp_path: Path) -> None:
    release = ReleaseSimulator(target="hailo8").publish(tmp_path, "canary")
    with pytest.raises(PublicationRefusedError, match="a test double of the compiler wrote it"):
        promote(a_store(tmp_path), "hailo8", release.id, FORCED, MANAGER)


@pytest.mark.parametrize(("key", "kind"), [(BUILD, WrongRoleError), (STRANGER, UnknownKeyError)])
def test_nobody_else_promotes(tmp_path: Path, key: object, kind: type[PipelineError]) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    with pytest.raises(kind, match="this takes a key of role stable"):
        promote(a_store(tmp_path), "emulator", release.id, WHY, key)  # type: ignore[arg-type]


def test_who_was_second_is_told(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2", channels=("canary",))
    store = a_store(tmp_path)
    head = store.head("emulator", "stable")
    promote(a_store(tmp_path), "emulator", second.id, Decision(actor="Bob", reason="quick"), MANAGER)
    with pytest.raises(ChannelMovedError, match=r"Bob moved it first to .*: quick"):
        store.move(
            "emulator",
            "stable",
            first.id,
            action="promote",
            actor="Ada",
            reason="slow",
            key=MANAGER,
            seen=head,
        )


def test_a_promotion_that_is_there_already_is_refused_to_who_saw_something_else(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2", channels=("canary",))
    store = a_store(tmp_path)
    judged_well(store, first)
    promote(store, "emulator", first.id, WHY, MANAGER)
    seen = store.head("emulator", "stable")
    judged_well(store, second)
    promote(store, "emulator", second.id, Decision(actor="Bob", reason="quick"), MANAGER)
    with pytest.raises(ChannelMovedError, match="Bob moved it first"):
        promote(store, "emulator", first.id, WHY, MANAGER, seen=seen)


# Roll back.


def test_a_roll_back_returns_to_the_release_before(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    entry = roll_back(a_store(tmp_path), "emulator", "stable", WHY, MANAGER)
    assert (entry.action, entry.release, entry.previous) == ("roll_back", first.id, second.id)
    assert a_store(tmp_path).history_problems("emulator", "stable") == []


def test_a_roll_back_picks_the_next_good_release(tmp_path: Path) -> None:
    releases = published(tmp_path, "v1", "v2", "v3", "v4")
    store = a_store(tmp_path)
    mark_bad(store, releases[2].id, "stable", WHY, MANAGER)
    shutil.rmtree(releases[1].directory)
    assert roll_back(store, "emulator", "stable", WHY, MANAGER).release == releases[0].id


def test_a_damaged_release_is_no_good_one(tmp_path: Path) -> None:
    releases = published(tmp_path, "v1", "v2", "v3")
    flip_bit(releases[1].directory / "manifest.json", 300)
    assert roll_back(a_store(tmp_path), "emulator", "stable", WHY, MANAGER).release == releases[0].id


def test_a_pruned_release_is_named(tmp_path: Path) -> None:
    releases = published(tmp_path, "v1", "v2", "v3")
    store = a_store(tmp_path)
    prune(store, 1, dry_run=False)
    with pytest.raises(ReleaseNotFoundError, match=f"no release {releases[0].id[:16]}"):
        roll_back(store, "emulator", "stable", WHY, MANAGER, to=releases[0].id)
    with pytest.raises(PromotionRefusedError, match="emulator/stable: has no earlier release to return to"):
        roll_back(store, "emulator", "stable", WHY, MANAGER)


def test_a_roll_back_to_a_bad_release_takes_force(tmp_path: Path) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    mark_bad(store, first.id, "stable", Decision(actor="Bob", reason="it drifts"), MANAGER)
    with pytest.raises(PromotionRefusedError, match=r"marked bad by Bob on .*: it drifts"):
        roll_back(store, "emulator", "stable", WHY, MANAGER, to=first.id)
    entry = roll_back(store, "emulator", "stable", FORCED, MANAGER, to=first.id)
    assert entry.release == first.id
    assert len(entry.overridden) == 1
    assert "it drifts" in entry.overridden[0]


def test_a_roll_back_goes_only_where_the_channel_was(tmp_path: Path) -> None:
    published(tmp_path, "v1", "v2")
    (other,) = published(tmp_path, "v3", channels=("canary",))
    with pytest.raises(PromotionRefusedError, match="was never named by this channel before"):
        roll_back(a_store(tmp_path), "emulator", "stable", FORCED, MANAGER, to=other.id)


def test_a_first_canary_is_rolled_back_to_nothing(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    store = a_store(tmp_path)
    entry = roll_back(store, "emulator", "canary", WHY, BUILD)
    assert (entry.release, entry.previous) == ("", release.id)
    with pytest.raises(ReleaseNotFoundError, match="channel canary of emulator names no release"):
        store.resolve("emulator", "canary")
    with pytest.raises(ReleaseNotFoundError, match="channel canary of emulator names no release"):
        roll_back(store, "emulator", "canary", WHY, BUILD)
    with pytest.raises(PromotionRefusedError, match="emulator/stable: has no earlier release to return to"):
        roll_back(store, "emulator", "stable", FORCED, MANAGER)
    store.point("canary", release, actor="x", reason="again", key=BUILD)
    assert store.history_problems("emulator", "canary") == []


def test_a_canary_without_a_usable_release_before_is_rolled_back_to_nothing(tmp_path: Path) -> None:
    """What is bad would serve on otherwise, until a person comes."""
    first, second, third = published(tmp_path, "v1", "v2", "v3", channels=("canary",))
    store = a_store(tmp_path)
    shutil.rmtree(first.directory)
    with pytest.raises(PromotionRefusedError, match="is not taken back to nothing"):
        roll_back(store, "emulator", "canary", WHY, BUILD, to="")
    mark_bad(store, second.id, "canary", Decision(actor="CI", reason="it overheats"), BUILD)
    plan = plan_roll_back(store, "emulator", "canary")
    assert (plan.release, plan.advice) == (None, ())
    assert [each.partition(": ")[0] for each in plan.skipped] == [second.id[:12], first.id[:12]]
    assert "marked bad by CI" in plan.skipped[0]
    entry = roll_back(store, "emulator", "canary", WHY, BUILD)
    assert (entry.release, entry.previous) == ("", third.id)


def test_stable_is_never_rolled_back_to_nothing(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    mark_bad(store, first.id, "stable", Decision(actor="CI", reason="it overheats"), MANAGER)
    for to in (None, ""):
        with pytest.raises(PromotionRefusedError, match="stable: has no earlier release to return") as caught:
            roll_back(store, "emulator", "stable", FORCED, MANAGER, to=to)
        assert f"{first.id[:12]}: marked bad by CI" in caught.value.what
    assert store.resolve("emulator", "stable").id == second.id


def test_what_a_roll_back_passes_over_is_told(tmp_path: Path) -> None:
    first, second, _ = published(tmp_path, "v1", "v2", "v3")
    store = a_store(tmp_path)
    mark_bad(store, second.id, "stable", WHY, MANAGER)
    plan = plan_roll_back(store, "emulator", "stable")
    assert plan.identifier == first.id
    (skipped,) = plan.skipped
    assert skipped.startswith(f"{second.id[:12]}: marked bad by Ada")


def test_a_release_that_nothing_promotes_is_no_place_to_go_back_to(tmp_path: Path) -> None:
    (first,) = published(tmp_path, "v1")
    other = _another_toolchain(tmp_path)
    store = a_store(tmp_path)
    store.point("stable", other, actor="x", reason="around the gate", key=MANAGER)
    last = ReleaseSimulator(version="v3").publish(tmp_path, "stable")
    entry = roll_back(store, "emulator", "stable", WHY, MANAGER)
    assert (entry.release, entry.previous) == (first.id, last.id)


def test_a_mark_that_nobody_can_read_is_no_absence_of_marks(tmp_path: Path) -> None:
    published(tmp_path, "v1", "v2", "v3")
    (tmp_path / "channels/emulator/canary/00000001.json").unlink()
    with pytest.raises(PromotionRefusedError, match=r"marks may be missing.*before it does not hold"):
        roll_back(a_store(tmp_path), "emulator", "stable", WHY, MANAGER)


def test_what_was_never_moved_is_not_rolled_back(tmp_path: Path) -> None:
    with pytest.raises(ReleaseNotFoundError, match="names no release"):
        roll_back(a_store(tmp_path), "emulator", "stable", WHY, MANAGER)


# Marks.


def test_a_mark_moves_no_channel(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    store = a_store(tmp_path)
    entry = mark_bad(store, first.id, "stable", WHY, MANAGER)
    assert (entry.action, entry.marked, entry.release, entry.previous) == (
        "mark_bad",
        first.id,
        second.id,
        second.id,
    )
    assert store.resolve("emulator", "stable").id == second.id
    assert store.is_marked_bad(first) == entry
    assert store.is_marked_bad(second) is None
    assert store.history_problems("emulator", "stable") == []


def test_a_mark_may_be_a_channels_first_entry(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1", channels=("canary",))
    store = a_store(tmp_path)
    assert mark_bad(store, release.id, "stable", WHY, MANAGER).release == ""
    with pytest.raises(ReleaseNotFoundError, match="names no release"):
        store.resolve("emulator", "stable")


def test_a_mark_needs_the_channels_key_and_a_release(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    with pytest.raises(WrongRoleError, match="this takes a key of role stable"):
        mark_bad(a_store(tmp_path), release.id, "stable", WHY, BUILD)
    with pytest.raises(ReleaseNotFoundError):
        mark_bad(a_store(tmp_path), "a" * 64, "stable", WHY, MANAGER)


def test_nothing_is_reaffirmed_where_nothing_was(tmp_path: Path) -> None:
    assert reaffirm(a_store(tmp_path), "emulator", "stable", WHY, MANAGER) is None
