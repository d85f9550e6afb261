"""Sets as honest people capture them, which the gate must let through, and what it says of them.

Each changes windows of the sample the way that sensors and people do; the same was seen on recordings of
real ones (9 axes at 100 Hz: a hand-held device, a phone, sixteen places on a body).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from assets import rigid_body
from assets.calibration import WindowSet, gate_sets
from assets.input_gate import check_physical, model_findings
from assets.repetition import check_repetition
from assets.rigid_body import turning
from assets.set_comparison import check_overlap, check_pair, check_strata
from assets.strata import at_rest
from runtime.contract.parity import Finding
from runtime.contract.window import FloatArray
from sample import motions
from tests.assets.test_input_gate import SAMPLE, Drawn, draw, refusals, sets_of

pytestmark = pytest.mark.build

Change = Callable[[FloatArray, np.random.Generator], FloatArray]


def offset_field(windows: FloatArray, rng: np.random.Generator) -> FloatArray:
    return windows + np.asarray([0] * 6 + [60, -60, 70], np.float32)


def dirty_rooms(windows: FloatArray, rng: np.random.Generator) -> FloatArray:
    sizes = np.linalg.norm(windows[:, :, 6:], axis=2).mean(axis=1)
    scale = np.ones((len(windows), 1, 9))
    scale[:, 0, 6:] = (rng.uniform(15, 120, len(windows)) / sizes)[:, None]
    scaled: FloatArray = (windows * scale).astype(np.float32)
    return scaled


def held_field(windows: FloatArray, rng: np.random.Generator) -> FloatArray:
    changed = windows.copy()
    changed[:, :, 6:] = windows[:, np.arange(100) // 10 * 10, 6:]
    return changed


def late_gyroscope(windows: FloatArray, rng: np.random.Generator) -> FloatArray:
    changed = windows.copy()
    changed[:, 4:, 3:6] = windows[:, :-4, 3:6]
    return changed


def clipped_low(windows: FloatArray, rng: np.random.Generator) -> FloatArray:
    ends = np.repeat(np.asarray([39.2, 4.363, 1e6], np.float32), 3)
    clipped: FloatArray = np.clip(windows, -ends, ends)
    return clipped


def coarse(windows: FloatArray, rng: np.random.Generator) -> FloatArray:
    steps = np.repeat(np.asarray([0.153, 0.0175, 0.6]), 3)
    rounded: FloatArray = (np.round(windows / steps) * steps).astype(np.float32)
    return rounded


CHANGES = (offset_field, dirty_rooms, held_field, late_gyroscope, clipped_low, coarse)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "motion"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_sensor_that_is_no_laboratorys_is_let_through(change: Change, labelled: bool) -> None:
    rng = np.random.default_rng(4)
    drawn: dict[str, Drawn] = {
        name: (change(windows, rng), labels) for name, (windows, labels) in draw(107, 600).items()
    }
    sets, strata = sets_of(drawn, labelled)
    assert refusals(gate_sets(sets, strata)) == set()


def resting(
    windows: FloatArray, labels: np.ndarray[tuple[int], np.dtype[np.str_]], share: float
) -> FloatArray:
    """A set of which this share rests."""
    still = motions.draw_set(int(600 * share), 140)
    rest = still[0][still[1] == "rest"]
    turns = rest[: int(600 * share)]
    return np.concatenate([turns, windows[labels != "rest"][: 600 - int(600 * share)]])


@pytest.mark.parametrize("share", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("change", [None, coarse], ids=["fine", "coarse"])
def test_a_set_that_mostly_rests_is_let_through(share: float, change: Change | None) -> None:
    windows, labels = draw(108, 600)["calibration"]
    mostly = resting(windows, labels, share)
    changed = change(mostly, np.random.default_rng(0)) if change else mostly
    assert refusals(check_physical(changed, ("",) * len(changed), name="calibration")) == set()
    assert at_rest(changed, ("",) * len(changed)).mean() == pytest.approx(share, abs=0.05)


def test_labels_that_hold_rest_and_motion_alike() -> None:
    """A label such as \"slow\" has pauses; what rests in it is found by motion."""
    windows, labels = draw(109, 600)["calibration"]
    mixed = np.where(np.arange(600) // 12 % 2 == 0, "morning", "evening")
    assert np.array_equal(at_rest(windows, mixed.tolist()), at_rest(windows, ("",) * 600))
    assert refusals(check_physical(windows, mixed.tolist(), name="calibration")) == set()
    # Two windows of a label do not speak for all that rest.
    rare = np.where(np.arange(600) < 2, "rare", labels)
    assert np.sum(at_rest(windows, rare.tolist())) > 40


def test_windows_that_turn_slowly_prove_their_unit_by_the_field() -> None:
    windows, labels = draw(110, 600)["calibration"]
    turned = windows.copy()
    rate = 0.7
    angle = rate * np.arange(100) / 100
    still = labels == "rest"
    for first in (0, 3, 6):
        x, y = windows[still, :, first], windows[still, :, first + 1]
        turned[still, :, first] = np.cos(angle) * x + np.sin(angle) * y
        turned[still, :, first + 1] = -np.sin(angle) * x + np.cos(angle) * y
    turned[still, :, 5] += rate
    found = [
        each
        for each in check_physical(turned, labels.tolist(), name="calibration")
        if each.check == "rest_rotation"
    ]
    assert [(each.severity, "the unit is right" in each.cause) for each in found] == [("warn", True)]
    wrong = turned.copy()
    wrong[:, :, 3:6] *= 57.3
    assert "rest_rotation" in refusals(check_physical(wrong, labels.tolist(), name="calibration"))


def test_gravity_that_only_seems_to_turn_is_no_mistake_of_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thigh in walking agreed with another arrangement by 0.54, and with its own by -0.38."""
    found = turning(draw(111, 300)["calibration"][0], "accelerometer")
    assert found is not None

    def seeming(best: float) -> list[Finding]:
        odd = dataclasses.replace(
            found, turned=0.8, agreement=-0.38, best=best, arrangement=((2, -1), (1, -1), (0, 1))
        )
        monkeypatch.setattr(
            rigid_body, "turning", lambda windows, sensor: odd if sensor == "accelerometer" else None
        )
        return rigid_body.check_turning(np.zeros((1, 100, 9), np.float32), "calibration")

    assert seeming(0.6) == []
    assert [each.check for each in seeming(0.9)] == ["axes"]


def test_a_few_copies_and_still_windows_are_warned_of() -> None:
    windows = draw(112, 300)["calibration"][0]
    few = np.concatenate([windows[:297], windows[:3]])
    assert [(each.check, each.severity) for each in check_repetition(few, "calibration")] == [
        ("repeated", "warn")
    ]
    hung = windows.copy()
    hung[:60] = hung[:60, :1]
    hung[:60, :, :3] = np.asarray([0.1, 0.2, 9.8])
    assert {(each.check, each.severity) for each in check_repetition(hung, "calibration")} == {
        ("constant", "warn")
    }
    hung[:60] = 0
    assert ("constant", "refuse") in {
        (each.check, each.severity) for each in check_repetition(hung, "calibration")
    }


def test_coarse_windows_at_rest_are_alike_and_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    one, other = (coarse(motions.draw_set(40, seed)[0], rng) for seed in (150, 151))
    assert check_overlap({"calibration": one, "evaluation": other}) == []
    cut = other.copy()
    cut[:, 50:] = one[:, :50]
    (found,) = check_overlap({"calibration": one, "evaluation": cut})
    share = int(found.measured.split("%")[0])
    assert 35 <= share <= 50
    # Windows of one recording with half of each in the next: within a set nobody minds.
    joined = one.reshape(-1, 9)
    strided = np.stack([joined[first : first + 100] for first in range(0, len(joined) - 99, 50)])
    assert check_overlap({"calibration": strided, "evaluation": other}) == []
    assert check_repetition(strided, "calibration") == []


def test_another_place_is_no_other_device() -> None:
    calibration, evaluation = draw(113, 600)["calibration"][0], draw(113)["evaluation"][0]
    elsewhere = evaluation + np.asarray([0] * 6 + [150, 80, 0], np.float32)
    found = check_pair(calibration, elsewhere)
    assert {each.channel for each in found} >= {"mx", "my"}
    assert refusals(found) == set()
    assert "drift" in refusals(check_pair(calibration, evaluation * np.float32(9.80665)))


def test_a_rare_label_that_calibration_lacks_is_warned_of() -> None:
    calibration = ["rest"] * 50 + ["walk"] * 50
    few, many = ([*calibration, *["rare"] * count] for count in (2, 4))
    for evaluation, severity in ((few, "warn"), (many, "refuse")):
        found = check_strata({"calibration": calibration, "evaluation": evaluation})
        assert [each.severity for each in found] == [severity]


def test_pose_place_impacts_and_quiet_lives_are_warned_of() -> None:
    """All of them circumstantial: the model may be served so."""
    drawn = draw(114, 600)
    windows, labels = drawn["calibration"]
    strata = sets_of(drawn)[1]

    def found(changed: FloatArray) -> list[Finding]:
        return model_findings({"calibration": make(changed)}, strata, SAMPLE)

    def make(changed: FloatArray) -> WindowSet:
        return sets_of({**drawn, "calibration": (changed, labels)})[0]["calibration"]

    impact = windows.copy()
    impact[0, 50, 2] = 300.0
    assert {(each.check, each.severity) for each in found(impact)} == {("z_peak", "warn")}
    quiet = windows.copy()
    quiet[:, :, 3:6] *= 0.12  # hardly turns, as a back does
    assert {(each.check, each.severity) for each in found(quiet)} == {
        ("z_reach", "warn"),
        ("z_spread", "warn"),
    }
    far = windows + np.asarray([0] * 6 + [250, 0, 0], np.float32)
    assert {(each.check, each.severity) for each in found(far)} == {("z_mean", "warn")}
    poses = windows.copy()
    for start, order in ((0, [1, 2, 0]), (1, [2, 0, 1])):
        third = np.arange(len(windows)) // 12 % 3 == start
        poses[third] = windows[third][:, :, [*order, *(3 + np.array(order)), *(6 + np.array(order))]]
    assert refusals(found(poses)) == set()
