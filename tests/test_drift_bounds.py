"""The bounds of the alerts on drift, against a real release: good windows stay below, mistakes come above."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from assets.calibration import parse_sets, read_files
from bench.drift import measure, release_of
from runtime.active_model import ActiveModel
from runtime.engines.emulator import EmulatorEngine
from tests.chain import CALIB_DATA
from tests.monitoring import alerts

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.timeout(300)]
RARE = "fall alone"
SEEN_IN_INPUTS = ("acc in g", "mag in gauss", "az sign-flipped", "gravity's other sign", "axes x<->z")


def bound(alert: str) -> float:
    found = re.search(r"> (\d+(?:\.\d+)?) and", alerts()[alert]["expr"])
    assert found
    return float(found[1])


def test_what_is_in_order_is_below_the_bounds_and_mistakes_are_above(tmp_path: Path) -> None:
    evaluation = parse_sets(read_files(CALIB_DATA)).evaluation
    release = release_of(None, tmp_path)
    model = ActiveModel(release, EmulatorEngine(release))
    rows = {row.name: row for row in measure(model, evaluation.windows, np.asarray(evaluation.labels))}
    model.close()
    inputs, latents = bound("HailoInputsDrift"), bound("HailoLatentsDrift")
    good = {name: row for name, row in rows.items() if not name.startswith("*") and name != RARE}
    assert len(good) == 14
    assert max(row.input_mean for row in good.values()) < 0.6 * inputs
    assert max(row.latent_rms for row in good.values()) < 0.8 * latents
    for mistake in SEEN_IN_INPUTS:
        assert rows[f"*{mistake}*"].input_mean > 1.5 * inputs, mistake
        assert rows[f"*{mistake}*"].latent_rms > 1.2 * latents, mistake
