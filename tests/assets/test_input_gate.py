"""What the gate lets through, what it refuses, and why it says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.calibration import (
    SETS,
    WindowIndex,
    WindowSet,
    WindowSets,
    gate_sets,
    make_set,
    parse_sets,
    read_files,
)
from assets.input_gate import (
    check_enough,
    check_normalized,
    check_physical,
    gate_for_model,
    model_findings,
    pose_checkable,
    refuse,
)
from assets.physical import measure
from assets.quantized_har import make_quantized_har
from assets.rigid_body import turning
from assets.strata import StrataDefinition, define_strata
from runtime.contract.errors import CalibrationError
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, UNITS, ChannelStatistics, FloatArray
from sample import motions
from tests.assets.test_calibration import load, with_set
from tests.chain import CALIB_DATA, Chain
from tests.mistakes import MISTAKES, Labels, Mistake

pytestmark = pytest.mark.build

SAMPLE = ChannelStatistics(
    mean=(-0.429939, 0.012852, 8.644446, -0.002817, -0.022028, -0.065019, 1.310713, 0.153688, -39.185993),
    std=(3.989875, 4.023456, 4.57771, 1.75487, 1.249683, 2.373377, 18.617797, 18.592223, 9.154181),
)
USERS = ChannelStatistics(
    mean=(0.12, -0.08, 9.78, 0.002, -0.001, 0.003, 22.4, -8.7, 43.2),
    std=(3.92, 3.87, 2.45, 1.24, 1.31, 0.98, 28.5, 31.2, 24.8),
)
Drawn = tuple[FloatArray, Labels]


def sets_of(
    drawn: Mapping[str, Drawn], labelled: bool = True
) -> tuple[dict[str, WindowSet], StrataDefinition]:
    """The sets of drawn windows, by their labels or by motion."""
    names = {
        name: [str(label) if labelled else "" for label in labels] for name, (_, labels) in drawn.items()
    }
    strata = define_strata(drawn["calibration"][0], names["calibration"])
    return {name: make_set(windows, names[name], strata) for name, (windows, _) in drawn.items()}, strata


def draw(seed: int, calibration: int = 1200) -> dict[str, Drawn]:
    windows, labels = motions.draw_set(100, seed)
    return {
        "calibration": (windows[:calibration], labels[:calibration]),
        "evaluation": motions.draw_set(40, seed + 100),
        "golden": motions.draw_set(4, seed + 200),
    }


def refusals(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.severity == "refuse"}


@pytest.fixture(scope="module")
def good() -> dict[str, Drawn]:
    return draw(101)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "motion"])
@pytest.mark.parametrize("calibration", [1200, 256])
@pytest.mark.parametrize("seed", [100, 102, 103, 104, 105, 106])
def test_good_sets_are_never_refused(seed: int, calibration: int, labelled: bool) -> None:
    sets, strata = sets_of(draw(seed, calibration), labelled)
    found = gate_sets(sets, strata)
    assert refusals(found) == set()
    assert calibration == 256 or found == []
    judged = {name: sets[name] for name in ("calibration", "evaluation")}
    assert model_findings(judged, strata, SAMPLE) == []
    # The sample's field points the other way than the user's mean: worth a word, no refusal.
    users = model_findings(judged, strata, USERS)
    assert {(each.check, each.severity, each.channel) for each in users} == {("z_mean", "warn", "mz")}


def gate_mistake(
    mistake: Mistake, good: Mapping[str, Drawn], both: bool, labelled: bool
) -> tuple[list[Finding], set[str]]:
    rng = np.random.default_rng(1)
    wrong = [name for name in good if both or name == "calibration"]
    drawn = {
        name: mistake.apply(*each, SAMPLE, rng) if name in wrong else each for name, each in good.items()
    }
    sets, strata = sets_of(drawn, labelled)
    findings = gate_sets(sets, strata)
    if not refusals(findings):
        judged = {name: sets[name] for name in ("calibration", "evaluation")}
        findings += model_findings(judged, strata, SAMPLE)
    return findings, refusals(findings)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "motion"])
@pytest.mark.parametrize("both", [False, True], ids=["calibration", "both"])
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=lambda mistake: mistake.name)
def test_each_mistake_is_refused_by_the_check_that_should_see_it(
    good: dict[str, Drawn], mistake: Mistake, both: bool, labelled: bool
) -> None:
    findings, found = gate_mistake(mistake, good, both, labelled)
    expected = set(mistake.both if both else mistake.alone)
    assert found & expected if expected else not found, [each.sentence() for each in findings]


def test_mistakes_that_no_gate_sees_are_named() -> None:
    assert [each.name for each in MISTAKES.values() if not each.both] == ["turned about z"]


@pytest.mark.parametrize(
    ("mistake", "channel", "words"),
    [
        ("already normalized", "accelerometer", ["already normalized", "normalized twice"]),
        ("acc in g", "accelerometer", ["g given for m/s²: multiply by 9.80665", "median |acc| 1.00"]),
        ("acc in milli-g", "accelerometer", ["milli-g given for m/s²"]),
        ("gyro in deg/s", "gyroscope", ["deg/s given for rad/s: divide by 57.3", "below 0.5 rad/s"]),
        ("mag in gauss", "magnetometer", ["gauss given for µT: multiply by 100", "15 to 90 µT"]),
        ("mag in nT", "magnetometer", ["nT given for µT: multiply by 0.001"]),
        ("order g a m", "all", ["come in the order gyroscope, accelerometer, magnetometer"]),
        ("order m a g", "all", ["come in the order magnetometer, accelerometer, gyroscope"]),
        ("order a m g", "all", ["come in the order accelerometer, magnetometer, gyroscope"]),
        ("reshaped", "all", ["(9, 100) data was reshaped to (100, 9), not transposed"]),
        ("time-flattened", "all", ["(100, 9) data was reshaped to (9, 100)"]),
        ("gravity removed", "accelerometer", ["gravity removed"]),
        ("half in g", "accelerometer", ["mixture"]),
        ("half in deg/s", "gyroscope", ["mixture"]),
        ("axes x<->z", "gyroscope", ["left-handed", "read as -x -y -z"]),
        ("gyro axes x<->z", "gyroscope", ["read as z y x", "swapped"]),
        ("gx sign-flipped", "gyroscope", ["read as -x y z", "mirrored"]),
        ("gravity's other sign", "accelerometer", ["176° from training's", "sign"]),
        ("50 Hz", "gyroscope", ["about 51 Hz"]),
        ("only run", "all", ["only one kind of motion"]),
        ("no bursts", "az", ["motions that training had are missing"]),
        ("constant channel", "gy", ["dead channel"]),
    ],
)
def test_a_refusal_names_channel_value_range_and_cause(
    good: dict[str, Drawn], mistake: str, channel: str, words: list[str]
) -> None:
    findings, _ = gate_mistake(MISTAKES[mistake], good, both=True, labelled=True)
    said = [each.sentence() for each in findings if each.channel == channel]
    assert any(all(word in text for word in words) for text in said), said


def test_the_same_windows_in_both_sets_and_cut_with_overlap(good: dict[str, Drawn]) -> None:
    sets, strata = sets_of(
        {**good, "evaluation": (good["calibration"][0][:480], good["calibration"][1][:480])}
    )
    assert "overlap" in refusals(gate_sets(sets, strata))
    windows, labels = good["evaluation"]
    cut = windows.copy()
    cut[:, 50:] = good["calibration"][0][:480, :50]
    sets, strata = sets_of({**good, "evaluation": (cut, labels)})
    (overlap,) = [each for each in gate_sets(sets, strata) if each.check == "overlap"]
    assert "50% of the samples of evaluation are also in calibration" in overlap.measured


def test_counts_warn_by_target(good: dict[str, Drawn]) -> None:
    windows = good["calibration"][0]
    assert check_enough(windows[:256], name="calibration", target="emulator") == []
    (few,) = check_enough(windows[:255], name="calibration", target="emulator")
    (fewer,) = check_enough(windows[:1023], name="calibration", target="hailo8")
    assert (few.severity, few.expected, fewer.expected) == ("warn", "at least 256", "at least 1024")
    assert check_enough(windows[:1024], name="calibration", target="hailo8l") == []
    assert check_enough(windows[:100], name="evaluation", target="hailo8") == []


def test_the_pose_is_only_held_against_one_that_training_had(good: dict[str, Drawn]) -> None:
    windows, labels = good["calibration"]
    turned = windows[:, :, [1, 2, 0, 4, 5, 3, 7, 8, 6]]
    any_pose = ChannelStatistics(mean=(0.0,) * 9, std=(6.0, 6.0, 6.0, 2.0, 2.0, 2.0, 30.0, 30.0, 30.0))
    assert pose_checkable(SAMPLE)
    assert pose_checkable(USERS)
    assert not pose_checkable(any_pose)
    names = [str(label) for label in labels]
    assert check_normalized(turned, names, any_pose, name="calibration") == []
    assert "resting_pose" in refusals(check_normalized(turned, names, USERS, name="calibration"))


def test_a_disturbed_magnetometer_is_no_mistake_of_axes(good: dict[str, Drawn]) -> None:
    """It agrees with no arrangement of the axes: nothing is refused on such grounds."""
    windows, labels = good["calibration"]
    rng = np.random.default_rng(3)
    disturbed = windows.copy()
    wander = np.cumsum(rng.normal(size=(len(windows), 100, 3)), axis=1)
    disturbed[:, :, 6:] = np.asarray([20, -5, -40], np.float32) + wander.astype(np.float32)
    assert check_physical(disturbed, [str(label) for label in labels], name="calibration") == []


def test_an_offset_of_the_magnetometer_is_warned_of(good: dict[str, Drawn]) -> None:
    windows, labels = good["calibration"]
    offset = windows + np.asarray([0] * 6 + [15, -20, 10], np.float32)
    (found,) = check_physical(offset, [str(label) for label in labels], name="calibration")
    assert (found.check, found.severity, "hard iron" in found.cause) == ("turning_rate", "warn", True)


def test_field_and_gravity_turn_as_the_gyroscope_says(good: dict[str, Drawn]) -> None:
    found = turning(good["calibration"][0], "magnetometer")
    assert found is not None
    assert found.agreement == found.best > 0.98
    assert found.rate == pytest.approx(1.0, abs=0.05)
    still = good["calibration"][0][good["calibration"][1] == "rest"]
    assert turning(still * np.float32(0), "accelerometer") is None


def test_a_refusal_is_an_error_that_holds_every_sentence() -> None:
    def finding(severity: str, check: str) -> Finding:
        return Finding(
            check=check, severity=severity, channel="ax", measured="1", expected="2", cause="do it"
        )

    warning = finding("warn", "a")
    assert refuse([warning], "here") == (warning,)
    with pytest.raises(CalibrationError) as caught:
        refuse([warning, finding("refuse", "b"), finding("refuse", "c")], "here")
    assert "b [ax]: 1, expected 2; do it" in caught.value.what
    assert "c [ax]" in caught.value.what
    assert "a [ax]" not in caught.value.what
    assert (caught.value.where, "assets.calibration" in caught.value.hint) == ("here", True)


def test_the_models_gate_returns_warnings_and_raises_refusals(good: dict[str, Drawn]) -> None:
    sets, strata = sets_of({**good, "calibration": tuple(each[:240] for each in good["calibration"])})  # type: ignore[dict-item]
    index = WindowIndex(
        schema=2,
        origin="synthetic",
        generator="",
        sampling_rate_hz=100,
        channel_order=CHANNELS,
        units=dict(UNITS),
        strata=strata,
        sets={},
    )
    before = Finding(check="x", severity="warn", channel="all", measured="", expected="", cause="")
    read = WindowSets(index=index, **sets, findings=(before,))
    assert [each.check for each in gate_for_model(read, SAMPLE, "emulator")] == ["x", "count"]
    wrong = ChannelStatistics(mean=SAMPLE.mean, std=(0.5, *SAMPLE.std[1:]))
    with pytest.raises(CalibrationError, match=r"z_spread \[ax\]: calibration: sd .* expected 0.05 to 5"):
        gate_for_model(read, wrong, "emulator")


def test_nothing_is_optimized_with_windows_that_do_not_suit_the_model(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right by themselves, and in another pose than training had."""
    files = read_files(CALIB_DATA)
    for name in SETS:
        windows, labels = load(files, name)
        files = with_set(files, name, windows[:, :, [1, 2, 0, 4, 5, 3, 7, 8, 6]], labels)
    assert parse_sets(files).findings == ()
    monkeypatch.setattr(chain.toolchain, "optimize", lambda *_: pytest.fail("optimized"))
    product = chain.bench.put("calibration_set", files)
    with pytest.raises(CalibrationError, match=r"resting_pose .*calibration: .*evaluation: "):
        make_quantized_har(
            chain.bench, chain.toolchain, onnx_model=chain.products["onnx_model"], calibration_set=product
        )


@settings(max_examples=30)
@given(factors=st.tuples(*[st.floats(1e-4, 1e4)] * 3), seed=st.integers(0, 3), labelled=st.booleans())
def test_no_unit_hides_who_is_at_rest(factors: tuple[float, float, float], seed: int, labelled: bool) -> None:
    windows, labels = motions.draw_set(4, 300 + seed)
    names = [str(label) if labelled else "" for label in labels]
    scale = np.repeat(np.asarray(factors, np.float32), 3)
    assert measure(windows * scale, names).resting == measure(windows, names).resting > 0


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_windows_changes_nothing(good: dict[str, Drawn], seed: int) -> None:
    windows, labels = good["calibration"][0][:120], good["calibration"][1][:120]
    order = np.random.default_rng(seed).permutation(120)
    names = [str(label) for label in labels]
    shuffled = [names[place] for place in order]
    wrong = windows * np.repeat(np.asarray([1, 57.3, 1], np.float32), 3)
    for each in (windows, wrong):
        before = check_physical(each, names, name="calibration", target="emulator")
        assert check_physical(each[order], shuffled, name="calibration", target="emulator") == before
