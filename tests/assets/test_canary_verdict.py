"""What follows from a verdict: canary moves or stays, and what a promotion asks of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from assets import canary_verdict
from assets.canary_policy import CanaryPolicyError, load_canary_policy
from assets.canary_verdict import carry_out, find_canary, is_worth_keeping
from runtime.contract import verdict as kept
from runtime.contract.errors import ChannelMovedError, ManifestError, PublicationRefusedError
from runtime.contract.promotion import PromotionRefusedError, mark_bad, promote
from runtime.contract.release_directory import Release
from runtime.contract.trust import SignatureError
from runtime.contract.verdict import HOLD, PROMOTE, ROLL_BACK, Verdict, said_by_verdict, verdicts_on
from tests.canaries import ANNA, POLICY, Scene, Seen, judged, later, put, slow
from tests.keys import BUILD, MANAGER
from tests.simulators import ReleaseSimulator
from tests.verdicts import a_verdict


@pytest.fixture(name="scene")
def a_scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_broken_canary_returns_by_itself_and_stays_away(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen)
    assert is_worth_keeping(scene.store, verdict, policy)
    entry = carry_out(scene.store, canary, verdict, policy, BUILD)
    assert entry is not None
    assert scene.stable is not None
    assert (entry.release, entry.actor) == (scene.stable.id, "canary_verdict")
    assert "p95 of the engine" in entry.reason
    # The same again is no canary, and no stable either.
    with pytest.raises(Exception, match="marked bad by canary_verdict"):
        ReleaseSimulator(version="v2").publish(scene.root, "canary")
    with pytest.raises(PromotionRefusedError, match="the verdict on it is roll_back"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    assert find_canary(scene.store, "emulator") is None


def test_a_first_canary_that_is_rolled_back_leaves_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stable=False)
    seen = scene.seen(served=True)
    put("hailo_golden_replays_total", 1, release="canary", channel="canary", result="missed")(seen)
    canary, verdict, policy = judged(scene, seen)
    entry = carry_out(scene.store, canary, verdict, policy, BUILD)
    assert entry is not None
    assert entry.release == ""


def test_where_the_policy_says_so_a_person_rolls_back(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen, roll_back_by_itself=False)
    assert carry_out(scene.store, canary, verdict, policy, BUILD) is None
    assert not is_worth_keeping(scene.store, verdict, policy)
    found = find_canary(scene.store, "emulator")
    assert found is not None
    assert found.release.id == scene.canary.id


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", ["keep_verdict", "mark_bad", "roll_back"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["seen again", "forgotten"])
def test_a_judge_that_was_killed_in_between_ends_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, place: str, done: bool, forgotten: bool
) -> None:
    """Also where what was seen is forgotten by the next look, once the release is marked."""
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen)
    step = getattr(canary_verdict, place)

    def killed(*given: Any, **named: Any) -> None:
        if done:
            step(*given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"assets.canary_verdict.{place}", killed)
        with pytest.raises(KeyboardInterrupt):
            carry_out(scene.store, canary, verdict, policy, BUILD)
    if forgotten and (place == "roll_back" or (place == "mark_bad" and done)):
        seen = Seen("", "")
    if find_canary(scene.store, "emulator") is not None:
        canary, verdict, policy = judged(scene, seen)
        assert is_worth_keeping(scene.store, verdict, policy)
        carry_out(scene.store, canary, verdict, policy, BUILD)
    assert scene.stable is not None
    assert scene.store.resolve("emulator", "canary").id == scene.stable.id
    history = scene.store.history("emulator", "canary")
    assert [entry.marked for entry in history if entry.marked] == [scene.canary.id]
    with pytest.raises(PublicationRefusedError, match="marked bad by canary_verdict"):
        ReleaseSimulator(version="v2").publish(scene.root, "canary")
    with pytest.raises(PromotionRefusedError, match="marked bad by canary_verdict"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


def test_a_canary_that_a_person_marked_bad_returns(scene: Scene) -> None:
    mark_bad(scene.store, scene.canary.id, "stable", ANNA, MANAGER)
    canary, verdict, policy = judged(scene, scene.seen())
    assert verdict.decision == ROLL_BACK
    entry = carry_out(scene.store, canary, verdict, policy, BUILD)
    assert entry is not None
    assert "marked bad is marked bad by anna" in entry.reason
    assert not any(each.marked for each in scene.store.history("emulator", "canary"))


def test_a_second_bad_first_canary_leaves_nothing_either(tmp_path: Path) -> None:
    """All that canary named before is marked: it serves on until somebody comes, or names nothing."""
    scene = Scene(tmp_path, stable=False)
    for version in ("v2", "v3"):
        scene.canary = ReleaseSimulator(version=version).publish(tmp_path, "canary", judged=False)
        seen = scene.seen(served=True)
        put("hailo_golden_replays_total", 1, release="canary", channel="canary", result="missed")(seen)
        canary, verdict, policy = judged(scene, seen)
        entry = carry_out(scene.store, canary, verdict, policy, BUILD)
        assert entry is not None
        assert (entry.release, entry.previous) == ("", scene.canary.id)
        assert scene.store.is_marked_bad(scene.canary) is not None
    assert find_canary(scene.store, "emulator") is None


def test_what_others_write_into_labels_does_not_stop_a_roll_back(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    seen.put("hailo_shadow_running", 1, release="evil\n\x1b[2J", against="y")
    canary, verdict, policy = judged(scene, seen)
    assert all(text.isprintable() for text in (*verdict.reasons(), *(row.value for row in verdict.rows)))
    assert len(verdict.reasons()) > len(verdict.reasons(["breached"]))
    entry = carry_out(scene.store, canary, verdict, policy, BUILD)
    assert entry is not None
    assert "evil" not in entry.reason
    assert "p95 of the engine" in entry.reason


def test_a_canary_that_moved_meanwhile_is_not_rolled_back(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen)
    other = ReleaseSimulator(version="v3").publish(scene.root, "canary")
    with pytest.raises(ChannelMovedError):
        carry_out(scene.store, canary, verdict, policy, BUILD)
    assert scene.store.resolve("emulator", "canary").id == other.id


def test_a_breach_while_approval_waits_stops_the_promotion(scene: Scene) -> None:
    canary, verdict, policy = judged(scene, scene.seen())
    assert carry_out(scene.store, canary, verdict, policy, BUILD) is None
    assert not is_worth_keeping(scene.store, verdict, policy)
    broken = scene.seen()
    slow(broken)
    canary, worse, policy = judged(scene, broken, roll_back_by_itself=False)
    assert is_worth_keeping(scene.store, worse, policy)
    carry_out(scene.store, canary, worse, policy, BUILD)
    with pytest.raises(PromotionRefusedError, match="the verdict on it is roll_back"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    canary, silent, policy = judged(scene, Seen("", ""))
    carry_out(scene.store, canary, dataclasses.replace(silent, at=later(seconds=5)), policy, BUILD)
    with pytest.raises(PromotionRefusedError, match="the verdict on it is hold"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


def test_a_verdict_lets_a_person_promote_for_as_long_as_it_counts(scene: Scene) -> None:
    with pytest.raises(PromotionRefusedError, match="no verdict on it as a canary"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    old = a_verdict(scene.canary, age=timedelta(minutes=61), store=scene.store)
    kept.keep_verdict(scene.store, scene.canary, old, BUILD)
    with pytest.raises(PromotionRefusedError, match="counts for 60 minutes"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    canary, verdict, policy = judged(scene, scene.seen())
    carry_out(scene.store, canary, verdict, policy, BUILD)
    entry = promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    assert (entry.overridden, {each.kind for each in entry.evidence}) == ((), {"verdict"})


def test_force_promotes_without_one_and_says_so(scene: Scene) -> None:
    forced = dataclasses.replace(ANNA, force=True)
    entry = promote(scene.store, "emulator", scene.canary.id, forced, MANAGER)
    assert entry.overridden == ("no verdict on it as a canary",)


def test_a_verdict_of_the_future_is_none(scene: Scene) -> None:
    ahead = a_verdict(scene.canary, age=-timedelta(hours=2), store=scene.store)
    kept.keep_verdict(scene.store, scene.canary, ahead, BUILD)
    with pytest.raises(PromotionRefusedError, match="the verdict on it is of"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


def test_only_the_canary_key_judges(scene: Scene) -> None:
    with pytest.raises(SignatureError):
        kept.keep_verdict(scene.store, scene.canary, a_verdict(scene.canary), MANAGER)
    # Nor does a document that somebody lays there, or one that was signed about another release.
    assert scene.stable is not None
    good = kept.keep_verdict(scene.store, scene.stable, a_verdict(scene.stable), BUILD).read_bytes()
    for data in (b"{}", good, good.replace(b"promote", b"promot3")):
        scene.store.add_evidence(scene.canary, "verdict", "json", data)
    assert verdicts_on(scene.store, scene.canary.id) == []


def test_promote_never_stands_above_a_broken_row(scene: Scene) -> None:
    good = a_verdict(scene.canary)
    for outcome in ("breached", "missing", "shown"):
        row = dataclasses.replace(good.rows[0], outcome=outcome)
        with pytest.raises(ManifestError):
            dataclasses.replace(good, rows=(row,))
    with pytest.raises(ManifestError):
        dataclasses.replace(good, rows=())


def test_a_marked_canary_is_not_promoted_by_a_verdict(scene: Scene) -> None:
    canary, verdict, policy = judged(scene, scene.seen())
    carry_out(scene.store, canary, verdict, policy, BUILD)
    mark_bad(scene.store, scene.canary.id, "stable", ANNA, MANAGER)
    with pytest.raises(PromotionRefusedError, match="marked bad by anna"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


def promoted(scene: Scene, release: Release) -> tuple[str, ...]:
    """What was overridden to promote it."""
    return promote(
        scene.store, "emulator", release.id, dataclasses.replace(ANNA, force=True), MANAGER
    ).overridden


def keep_good(scene: Scene) -> Verdict:
    canary, verdict, policy = judged(scene, scene.seen())
    assert verdict.decision == PROMOTE
    carry_out(scene.store, canary, verdict, policy, BUILD)
    return verdict


def test_a_verdict_counts_for_the_entry_that_was_judged(scene: Scene) -> None:
    """Canary went on, or left and came back: what it does now is not what was seen."""
    keep_good(scene)
    other = ReleaseSimulator(version="v3").publish(scene.root, "canary", judged=False)
    (said,) = promoted(scene, scene.canary)
    assert said.startswith("the verdict on it is about another entry of canary")
    assert other.id[:12] in said
    assert scene.stable is not None
    promoted(scene, scene.stable)
    scene.store.point("canary", scene.canary, actor="a", reason="again", key=BUILD)
    (said,) = promoted(scene, scene.canary)
    assert said.startswith("the verdict on it is about another entry of canary")


def test_a_verdict_counts_against_the_stable_that_was_there(scene: Scene) -> None:
    verdict = keep_good(scene)
    newer = ReleaseSimulator(version="v3").publish(scene.root, "stable")
    (said,) = promoted(scene, scene.canary)
    assert said == (
        f"the verdict on it is against {verdict.stable[:12]} as stable, which names {newer.id[:12]} now"
    )


def test_a_verdict_without_stable_counts_where_there_is_none(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stable=False)
    canary, verdict, policy = judged(scene, scene.seen(served=True))
    carry_out(scene.store, canary, verdict, policy, BUILD)
    assert promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER).overridden == ()


def test_a_verdict_is_renewed_where_canary_or_stable_moved(scene: Scene) -> None:
    keep_good(scene)
    assert not is_worth_keeping(scene.store, *judged(scene, scene.seen())[1:])
    mark_bad(scene.store, "f" * 64 if scene.stable is None else scene.stable.id, "canary", ANNA, BUILD)
    assert is_worth_keeping(scene.store, *judged(scene, scene.seen())[1:])
    keep_good(scene)
    newer = ReleaseSimulator(version="v3").publish(scene.root, "stable")
    scene.stable = newer
    assert is_worth_keeping(scene.store, *judged(scene, scene.seen())[1:])


def test_marks_of_others_do_not_make_a_canary_young(scene: Scene) -> None:
    since = scene.found().since
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("runtime.contract.store.datetime", Tomorrow)
        assert scene.stable is not None
        mark_bad(scene.store, scene.stable.id, "canary", ANNA, BUILD)
    head = scene.store.head("emulator", "canary")
    assert head is not None
    assert datetime.fromisoformat(head.entry.at) > since + timedelta(hours=23)
    assert scene.found().since == since


class Tomorrow(datetime):
    """A clock that is a day ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Tomorrow:
        return cls.fromtimestamp(super().now(tz).timestamp() + 86400, tz)


def emptied(scene: Scene) -> None:
    for path in (scene.root / "channels/emulator/stable").iterdir():
        path.unlink()


def half_there(scene: Scene) -> None:
    (scene.root / "channels/emulator/stable/00000001.json").write_bytes(b"{}")


def hidden(scene: Scene) -> None:
    keep_good(scene)
    shutil.rmtree(scene.root / "channels/emulator/stable")


def pruned(scene: Scene) -> None:
    assert scene.stable is not None
    shutil.rmtree(scene.stable.directory)


@pytest.mark.parametrize("change", [emptied, half_there, hidden, pruned])
def test_a_stable_that_cannot_be_told_is_not_no_stable(scene: Scene, change: Callable[[Scene], None]) -> None:
    change(scene)
    canary, verdict, policy = judged(scene, scene.seen(served=True))
    assert (verdict.decision, verdict.stable) == (HOLD, "")
    assert verdict.reasons()[0].startswith("stable is ")
    assert is_worth_keeping(scene.store, verdict, policy)
    carry_out(scene.store, canary, verdict, policy, BUILD)
    assert verdicts_on(scene.store, scene.canary.id)[-1].decision == HOLD


def test_a_channel_that_cannot_be_told_lets_nothing_pass(scene: Scene) -> None:
    keep_good(scene)
    assert scene.stable is not None
    assert said_by_verdict(scene.store, scene.canary, scene.stable.id) == ()
    for path in (scene.root / "channels/emulator/canary").iterdir():
        path.write_bytes(b"{}")
    (said,) = said_by_verdict(scene.store, scene.canary, scene.stable.id)
    assert "what canary names now cannot be told" in said
    assert str(scene.root) not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error_share": 0.9}, "error_share"),
        ({"least_windows": 0}, "least_windows"),
        ({"missing": "promote"}, "missing"),
        ({"schema": 2}, "schema"),
        ({"more": 1}, "unknown key"),
    ],
)
def test_a_policy_that_lets_everything_pass_is_none(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(dataclasses.asdict(POLICY) | change))
    with pytest.raises(CanaryPolicyError, match=message):
        load_canary_policy(path)
    path.write_text("{}")
    with pytest.raises(CanaryPolicyError):
        load_canary_policy(path)
