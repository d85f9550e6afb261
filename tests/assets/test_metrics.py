"""The metrics see what they are for, and what cannot be compared has no number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.metrics import MOST_DB, LatentScale, ParityError, context_metrics, sqnr_db
from runtime.contract.motifs import MotifHead, MotifScorer
from runtime.contract.window import FloatArray

pytestmark = pytest.mark.build


def latents(count: int = 200, seed: int = 0) -> FloatArray:
    """Nine active dimensions of 64, as the user's encoder has, away from zero."""
    random = np.random.default_rng(seed)
    spread = np.where(np.arange(64) < 9, 2.0, 0.02)
    return (1.0 + spread * random.normal(size=(count, 64))).astype(np.float32)


def head(scale: float = 3.0) -> MotifHead:
    weight = tuple(tuple(scale if d == m else 0.0 for d in range(64)) for m in range(4))
    return MotifHead(provenance="checkpoint", names=("a", "b", "c", "d"), weight=weight, bias=(0.0,) * 4)


def scale(reference: FloatArray, heat: float = 3.0) -> LatentScale:
    return LatentScale(reference, MotifScorer(head(heat)), active_share=0.05, clear_margin=0.3)


def metrics(reference: FloatArray, found: FloatArray) -> dict[str, float]:
    return scale(reference).metrics(reference, found)


def test_equal_latents_are_perfect() -> None:
    found = metrics(latents(), latents())
    for name in ("mean_cosine", "gain", "kmeans_agreement", "motif_top1_agreement", "motif_top1_clear"):
        assert found[name] == pytest.approx(1.0), name
    assert found["sqnr_db"] == found["worst_active_sqnr_db"] == MOST_DB
    assert found["centred_cosine_p5"] == pytest.approx(1.0)
    assert found["p99_error_sd"] == found["mean_shift_sd"] == 0.0


@given(st.floats(0.01, 0.5), st.integers(0, 100))
def test_sqnr_is_the_power_of_the_error(share: float, seed: int) -> None:
    """Noise of a known share of the signal's power has a known SQNR, overall and as a context."""
    reference = latents(seed=seed)
    noise = np.random.default_rng(seed + 1).normal(size=reference.shape)
    noise *= share * np.linalg.norm(reference) / np.linalg.norm(noise)
    found = (reference + noise).astype(np.float32)
    assert metrics(reference, found)["sqnr_db"] == pytest.approx(-20 * np.log10(share), abs=0.01)
    assert context_metrics(reference, found)["sqnr_db"] == metrics(reference, found)["sqnr_db"]


@pytest.mark.parametrize("most", [MOST_DB, 120.0])
def test_sqnr_stays_within_what_is_asked_for(most: float) -> None:
    """No error, no signal, neither; and an error of 120.4 dB."""
    ones, zeros = np.ones((2, 64), np.float32), np.zeros((2, 64), np.float32)
    found = [sqnr_db(*pair, most=most) for pair in ((ones, ones), (zeros, ones), (zeros, zeros))]
    assert found == [most, -most, most]
    near = sqnr_db(ones, ones + np.float32(2**-20), most=most)
    assert near == pytest.approx(min(120.412, most), abs=0.001)
    with pytest.raises(ParityError, match="not finite"):
        sqnr_db(ones, ones * np.float32("nan"), most=most)


@given(st.integers(0, 50), st.floats(0.1, 8.0))
def test_no_metric_depends_on_the_order_of_the_windows(seed: int, noise: float) -> None:
    reference = latents(seed=seed)
    found = (reference + noise * np.random.default_rng(seed).normal(size=(200, 64))).astype(np.float32)
    order = np.random.default_rng(seed + 1).permutation(200)
    whole = scale(reference)
    assert whole.metrics(reference[order], found[order]) == pytest.approx(whole.metrics(reference, found))


def test_inactive_dimensions_are_masked_and_counted() -> None:
    """Noise of one step drowns a collapsed dimension: it is counted, and judged by the whole only."""
    reference = latents()
    found = reference.copy()
    found[:, 9:] += np.float32(0.05) * np.random.default_rng(3).normal(size=(200, 55)).astype(np.float32)
    judged = scale(reference)
    assert judged.active.sum() == 9
    numbers = judged.metrics(reference, found)
    assert numbers["worst_active_sqnr_db"] == MOST_DB
    assert numbers["p99_error_sd"] == 0.0
    assert numbers["sqnr_db"] < 40
    dimensions = judged.dimensions(reference, found)
    assert [d.index for d in dimensions if d.active] == list(range(9))
    assert all((d.sqnr_db is None) is not d.active for d in dimensions)


def test_the_worst_dimension_is_found_where_the_average_hides_it() -> None:
    reference = latents()
    found = reference.copy()
    found[:, 4] += np.random.default_rng(5).normal(scale=1.0, size=200).astype(np.float32)
    numbers = metrics(reference, found)
    assert numbers["worst_active_sqnr_db"] == pytest.approx(20 * np.log10(2 / 1), abs=1.0)
    assert numbers["sqnr_db"] > 18
    found_db = {d.index: d.sqnr_db for d in scale(reference).dimensions(reference, found) if d.sqnr_db}
    assert min(found_db, key=lambda index: found_db[index]) == 4


def test_the_tail_is_seen_that_a_mean_cosine_cannot_see() -> None:
    """Four of 200 windows are wrong by five standard deviations in one dimension."""
    reference = latents()
    found = reference.copy()
    found[:4, 2] += 10.0
    numbers = metrics(reference, found)
    assert numbers["mean_cosine"] > 0.98
    assert numbers["p99_error_sd"] == pytest.approx(5.0, abs=0.6)


def test_shift_and_gain_are_told_apart() -> None:
    reference = latents()
    shifted = reference.copy()
    shifted[:, 1] += 0.4
    numbers = metrics(reference, shifted)
    assert numbers["mean_shift_sd"] == pytest.approx(0.2, abs=0.03)
    assert numbers["gain"] == pytest.approx(1.0, abs=0.01)
    mean = reference.mean(axis=0)
    stretched = (mean + 0.8 * (reference - mean)).astype(np.float32)
    numbers = metrics(reference, stretched)
    assert numbers["gain"] == pytest.approx(0.8, abs=0.001)
    assert numbers["mean_shift_sd"] == pytest.approx(0.0, abs=1e-4)


def test_the_worst_windows_direction_is_seen_that_a_median_cannot_see() -> None:
    """A tenth of the windows on the other side of the mean; and a shift, which the found mean would hide."""
    reference = latents()
    mean = reference.mean(axis=0)
    found = reference.copy()
    found[:20] = 2 * mean - found[:20]
    assert metrics(reference, found)["centred_cosine_p5"] == pytest.approx(-1.0, abs=1e-3)
    assert metrics(reference, reference + np.float32(5.0))["centred_cosine_p5"] < 0.5


def test_k_means_agreement_is_the_share_of_windows_that_stay_with_their_centre() -> None:
    """Twelve groups far apart; every tenth window is found in the next group's place."""
    random = np.random.default_rng(4)
    groups = np.arange(240) % 12
    reference = (100 * np.eye(64)[groups] + random.normal(size=(240, 64))).astype(np.float32)
    found = reference.copy()
    found[::10] = (100 * np.eye(64)[(groups[::10] + 1) % 12]).astype(np.float32)
    assert metrics(reference, found)["kmeans_agreement"] == pytest.approx(0.9)


def test_clear_windows_are_those_that_full_precision_is_sure_of() -> None:
    """A window whose best two motifs are level may flip; one that is clear may not."""
    reference = np.zeros((4, 64), np.float32)
    reference[:, 0] = (5.0, 5.0, 0.001, 0.001)
    reference[:, 8] = (1.0, 2.0, 3.0, 4.0)
    found = reference.copy()
    found[2:, 1] = 0.01
    numbers = scale(reference).metrics(reference, found)
    assert numbers["motif_top1_agreement"] == 0.5
    assert numbers["motif_top1_clear"] == 1.0
    found[0, 1] = 9.0
    assert scale(reference).metrics(reference, found)["motif_top1_clear"] == 0.5
    assert "motif_top1_clear" not in scale(reference, heat=1e-6).metrics(reference, found)


def test_what_cannot_be_compared_has_no_number() -> None:
    bad = latents()
    bad[0, 0] = np.nan
    with pytest.raises(ParityError, match="not finite"):
        metrics(latents(), bad)
    with pytest.raises(ParityError, match="not finite"):
        scale(bad)
    with pytest.raises(ParityError, match="the same to every window"):
        scale(np.ones((20, 64), np.float32))
    with pytest.raises(ParityError, match="not finite"):
        context_metrics(latents(), bad)


def test_a_zero_latent_agrees_with_nothing() -> None:
    assert metrics(latents(), np.zeros((200, 64), np.float32))["mean_cosine"] == 0.0
