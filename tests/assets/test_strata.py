"""Strata by labels and by motion, and who is at rest."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.strata import (
    EDGES,
    NAMES,
    at_rest,
    check_definition,
    check_references,
    counts_of,
    define_strata,
    deviations,
    known_labels,
    motion_of,
    strata_of,
)
from runtime.contract.document import from_json, to_json
from runtime.contract.errors import CalibrationError
from runtime.contract.window import FloatArray
from sample import motions

pytestmark = pytest.mark.build

WINDOWS, LABELS = motions.draw_set(20, 110)
NONE = ("",) * len(WINDOWS)


def names() -> list[str]:
    return [str(label) for label in LABELS]


def test_labels_are_the_strata_where_there_are_any() -> None:
    definition = define_strata(WINDOWS, names())
    assert (definition.by, definition.references, definition.edges) == ("labels", {}, ())
    assert strata_of(definition, WINDOWS, names()) == tuple(names())
    assert known_labels(definition, names()) == tuple(names())
    assert counts_of(names()) == dict.fromkeys(sorted(motions.MOTIFS), 20)


def test_motion_orders_the_activities() -> None:
    definition = define_strata(WINDOWS, NONE)
    assert (definition.by, definition.names, definition.edges) == ("motion", NAMES, EDGES)
    assert known_labels(definition, names()) == NONE
    strata = np.asarray(strata_of(definition, WINDOWS, NONE))
    assert set(strata) == set(NAMES)
    assert set(strata[LABELS == "rest"]) == {"still"}
    assert set(strata[LABELS == "walk"]) == {"gentle"}
    assert set(strata[LABELS == "run"]) == {"violent"}
    assert "10." in definition.text()
    assert "m/s²" in definition.text()


def test_the_calibration_sets_edges_are_applied_to_other_sets() -> None:
    definition = define_strata(WINDOWS, NONE)
    running = WINDOWS[LABELS == "run"]
    assert set(strata_of(definition, running, NONE[:20])) == {"violent"}
    assert set(strata_of(define_strata(running, NONE[:20]), running, NONE[:20])) >= {"violent", "brisk"}


def test_deviation_is_the_summed_spread_of_the_axes() -> None:
    window = np.zeros((1, 100, 9), np.float32)
    window[0, :, 3] = np.tile([-3.0, 3.0], 50)
    window[0, :, 5] = np.tile([4.0, -4.0], 50)
    assert deviations(window, "gyroscope").tolist() == [5.0]
    assert deviations(window, "accelerometer").tolist() == [0.0]


@pytest.mark.parametrize("labels", [names(), list(NONE)], ids=["labels", "motion"])
def test_rest_is_found_and_steady_turning_is_none(labels: list[str]) -> None:
    resting = at_rest(WINDOWS, labels)
    assert resting[LABELS == "rest"].all()
    assert set(LABELS[resting]) <= {"rest", "ride"}


@pytest.mark.parametrize(
    "windows",
    [
        WINDOWS[LABELS == "run"],
        WINDOWS[LABELS == "rest"],
        np.random.default_rng(0).normal(size=(50, 100, 9)).astype(np.float32),
        np.zeros((50, 100, 9), np.float32),
        np.zeros((0, 100, 9), np.float32),
    ],
    ids=["run", "rest", "noise", "zeros", "none"],
)
def test_nobody_rests_where_nothing_is_clearly_stiller(windows: FloatArray) -> None:
    assert not at_rest(windows, ("",) * len(windows)).any()
    assert not at_rest(windows, ("one",) * len(windows)).any()


def test_a_dead_sensor_leaves_the_other_to_judge() -> None:
    windows = WINDOWS.copy()
    windows[:, :, 3:6] = 0.25
    assert at_rest(windows, names())[LABELS == "rest"].all()
    assert not at_rest(windows, NONE)[LABELS == "run"].any()


def test_a_definition_survives_the_index_and_is_checked() -> None:
    definition = define_strata(WINDOWS, NONE)
    assert from_json(type(definition), to_json(definition), "x") == definition
    check_definition(definition, "x")
    check_references(definition, WINDOWS, "x")
    for wrong in (
        dataclasses.replace(definition, by="colour"),
        dataclasses.replace(definition, edges=(0.1, 0.4, 0.9)),
        dataclasses.replace(definition, references={}),
        dataclasses.replace(definition, by="labels"),
    ):
        with pytest.raises(CalibrationError, match="strata"):
            check_definition(wrong, "x")
    with pytest.raises(CalibrationError, match=r"accelerometer's reference is .* m/s², the windows have"):
        check_references(definition, WINDOWS[:100], "x")


@settings(max_examples=30)
@given(factors=st.tuples(*[st.floats(1e-3, 1e3)] * 3))
def test_units_cancel(factors: tuple[float, float, float]) -> None:
    scaled = WINDOWS * np.repeat(np.asarray(factors, np.float32), 3)
    np.testing.assert_allclose(motion_of(scaled), motion_of(WINDOWS), rtol=1e-4)
    assert (at_rest(scaled, names()) == at_rest(WINDOWS, names())).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_does_not_matter(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(WINDOWS))
    definition = define_strata(WINDOWS, NONE)
    assert define_strata(WINDOWS[order], NONE) == definition
    strata = np.asarray(strata_of(definition, WINDOWS, NONE))
    assert strata_of(definition, WINDOWS[order], NONE) == tuple(strata[order])
    assert (at_rest(WINDOWS[order], NONE) == at_rest(WINDOWS, NONE)[order]).all()
