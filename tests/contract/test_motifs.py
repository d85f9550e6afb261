"""The motif head: a softmax that holds whatever the latent is, and says where it comes from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.errors import ManifestError
from runtime.contract.motifs import MotifScorer
from runtime.contract.window import FloatArray
from tests.simulators import motif_head

LATENTS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=64, max_size=64).map(
    lambda values: np.array(values, np.float32)
)


@given(LATENTS)
def test_scores_are_a_distribution(latent: FloatArray) -> None:
    scores = MotifScorer(motif_head()).scores(latent)
    assert scores.shape == (12,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores.sum() == pytest.approx(1)


@given(LATENTS)
def test_the_largest_logit_wins(latent: FloatArray) -> None:
    head = motif_head()
    logits = np.array(head.weight) @ latent.astype(np.float64) + head.bias
    scores = MotifScorer(head).scores(latent)
    assert scores[np.argmax(logits)] == scores.max()


@pytest.mark.parametrize("motifs", [1, 2, 3, 8, 12, 17])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 32, 33])
def test_many_are_scored_as_one_bit_for_bit(motifs: int, count: int) -> None:
    random = np.random.default_rng(motifs)
    weight = tuple(tuple(float(value) for value in row) for row in random.normal(size=(motifs, 64)))
    scorer = MotifScorer(dataclasses.replace(motif_head(motifs), weight=weight))
    latents = random.normal(size=(count, 64)).astype(np.float32)
    alone = np.stack([scorer.scores(latent) for latent in latents])
    np.testing.assert_array_equal(scorer.scores(latents), alone)


@pytest.mark.parametrize(
    "changes",
    [
        {"provenance": "guessed"},
        {"names": ()},
        {"names": ("same",) * 12},
        {"bias": (0.0,) * 11},
        {"weight": ((0.0,) * 64,) * 11},
        {"weight": ((0.0,) * 63,) * 12},
        {"bias": (float("nan"),) * 12},
        {"bias": (float("-inf"),) * 12},
        {"bias": (3.5e38,) * 12},
        {"weight": ((-1e308,) * 64,) * 12},
    ],
)
def test_a_head_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match="motif_head"):
        dataclasses.replace(motif_head(), **changes)  # type: ignore[arg-type]


def test_the_largest_head_still_gives_scores() -> None:
    largest = float(np.finfo(np.float32).max)
    head = dataclasses.replace(
        motif_head(2), weight=((largest,) * 64, (-largest,) * 64), bias=(largest, -largest)
    )
    np.testing.assert_array_equal(MotifScorer(head).scores(np.full(64, largest, np.float32)), [1, 0])
