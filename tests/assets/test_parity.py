"""Parity sees what differs, and a policy that says nothing passes nothing."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.motif_head import fit_head
from assets.parity import ParityError, compare, judge
from assets.policy import load_policy
from assets.quantized_har import take_built
from assets.weights import parse_model, read_files
from runtime.contract.errors import CalibrationError
from runtime.contract.motifs import MotifHead, MotifScorer
from runtime.contract.window import FloatArray, normalize
from tests.assets.test_onnx_model import foreign_graph
from tests.chain import SAMPLE_VERSION, Chain, build_chain

pytestmark = pytest.mark.build


def latents(count: int = 40, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)


def head() -> MotifHead:
    weight = tuple(tuple(1.0 if d == m else 0.0 for d in range(64)) for m in range(4))
    return MotifHead(provenance="checkpoint", names=("a", "b", "c", "d"), weight=weight, bias=(0.0,) * 4)


SCORER = MotifScorer(head())


def test_equal_latents_are_perfect() -> None:
    metrics = compare(latents(), latents(), SCORER)
    assert metrics["mean_cosine"] == pytest.approx(1.0)
    assert metrics["motif_top1_agreement"] == 1.0
    assert metrics["sqnr_db"] > 200


@given(st.floats(0.01, 0.5), st.integers(0, 100))
def test_sqnr_is_the_power_of_the_error(scale: float, seed: int) -> None:
    """Noise of a known share of the signal's power has a known SQNR."""
    reference = latents(seed=seed)
    noise = np.random.default_rng(seed + 1).normal(size=reference.shape)
    noise *= scale * np.linalg.norm(reference) / np.linalg.norm(noise)
    found = compare(reference, (reference + noise).astype(np.float32), SCORER)
    assert found["sqnr_db"] == pytest.approx(-20 * np.log10(scale), abs=0.01)


def test_sqnr_and_motifs_see_a_gain_that_cosine_cannot() -> None:
    reference = latents()
    assert compare(reference, 2 * reference, SCORER)["mean_cosine"] == pytest.approx(1.0)
    assert compare(reference, 2 * reference, SCORER)["sqnr_db"] == pytest.approx(0.0, abs=0.01)
    assert compare(reference, np.roll(reference, 1, axis=1), SCORER)["motif_top1_agreement"] < 0.6


def test_a_zero_latent_agrees_with_nothing() -> None:
    assert compare(latents(), np.zeros_like(latents()), SCORER)["mean_cosine"] == 0.0


@pytest.mark.parametrize(
    ("thresholds", "reason"),
    [
        ({}, "no thresholds"),
        ({"worst_dimension_db": 1.0}, "worst_dimension_db was not computed"),
        ({"mean_cosine": 0.9999999}, "mean_cosine is"),
    ],
)
def test_verdict_is_no_where_policy_is_empty_unknown_or_missed(
    thresholds: dict[str, float], reason: str
) -> None:
    noisy = latents() + np.float32(0.1)
    result = judge(
        latents(), noisy, SCORER, artifact_sha256="0" * 64, thresholds=thresholds, provenance="emulated"
    )
    assert not result.passed
    assert reason in result.failures[0]


def test_what_cannot_be_compared_has_no_verdict() -> None:
    bad = latents()
    bad[0, 0] = np.nan
    for reference, found, words in (
        (latents(), bad, "not finite"),
        (bad, latents(), "not finite"),
        (np.zeros_like(bad), latents(), "zero for every window"),
    ):
        with pytest.raises(ParityError, match=words):
            compare(reference, found, SCORER)


def test_sample_passes_the_committed_policy(chain: Chain) -> None:
    result = chain.evidence.result
    assert result.passed
    assert result.thresholds == load_policy()
    assert set(result.metrics) == {"mean_cosine", "sqnr_db", "motif_top1_agreement"}
    assert result.artifact_sha256 == chain.products["hef"].digest
    assert (result.provenance, result.windows) == ("emulated", 480)


def test_it_is_judged_on_the_evaluation_windows(chain: Chain) -> None:
    """Worked out again from the graph, the artifact and the windows that calibration never saw."""
    evaluation = chain.sets.evaluation
    assert chain.evidence.evaluation_sha256 == evaluation.sha256
    windows = normalize(evaluation.windows, chain.trained.statistics)
    parsed = chain.toolchain.parse(chain.bench.read(chain.products["onnx_model"]))
    artifact = take_built(chain.bench, chain.products["hef"])
    reference, found = (chain.toolchain.infer(built, windows) for built in (parsed, artifact))
    assert chain.trained.head is not None
    scorer = MotifScorer(chain.trained.head)
    assert chain.evidence.result.metrics == pytest.approx(compare(reference, found, scorer))
    labels = np.asarray(evaluation.labels)
    assert set(chain.evidence.by_label) == set(evaluation.labels)
    for label, metrics in chain.evidence.by_label.items():
        mine = labels == label
        assert metrics == pytest.approx(compare(reference[mine], found[mine], scorer)), label


def test_a_source_without_a_head_gets_a_fitted_one_and_its_tool_is_named(tmp_path: Path) -> None:
    """The whole chain on the sample's own weights as ONNX, as somebody else would export them."""
    folder = tmp_path / "w" / "tcn_encoder" / "v0.1.0"
    folder.mkdir(parents=True)
    sample = parse_model(read_files(SAMPLE_VERSION))
    (folder / "encoder.onnx").write_bytes(foreign_graph(sample.encoder, opset=11, style="chomp"))
    shutil.copy(SAMPLE_VERSION / "normalization.json", folder)
    fitted = build_chain(tmp_path / "bench", weights=tmp_path / "w").evidence
    assert (fitted.motif_head.provenance, fitted.motif_head.size) == ("fitted", 12)
    assert fitted.tools == {"scipy": metadata.version("scipy")}


def test_sample_head_is_right_on_held_out_windows(chain: Chain) -> None:
    """12 motifs that mean something: top-1 of full_precision against the activity's own name."""
    toolchain = chain.toolchain
    parsed = toolchain.parse(chain.bench.read(chain.products["onnx_model"]))
    windows = normalize(chain.sets.evaluation.windows, chain.trained.statistics)
    assert chain.trained.head is not None
    scores = MotifScorer(chain.trained.head).scores(toolchain.infer(parsed, windows))
    names = np.asarray(chain.trained.head.names)[scores.argmax(axis=1)]
    assert np.mean(names == np.asarray(chain.sets.evaluation.labels)) >= 0.95


def test_fitted_head_is_linear_k_means() -> None:
    """Softmax of the linear scores chooses the nearest centre, and says that it was fitted."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(12, 64)) * 5
    points = np.concatenate([c + rng.normal(scale=0.1, size=(10 + i, 64)) for i, c in enumerate(centres)])
    fitted = fit_head(points.astype(np.float32))
    assert (fitted.provenance, fitted.size) == ("fitted", 12)
    chosen = MotifScorer(fitted).scores(points.astype(np.float32)).argmax(axis=1)
    members = np.repeat(np.arange(12), np.arange(10, 22))
    assert all(len(set(chosen[members == i])) == 1 for i in range(12))
    assert len(set(chosen)) == 12
    assert np.bincount(chosen)[0] == 21
    assert fit_head(points.astype(np.float32)) == fitted


def test_a_head_is_not_fitted_to_latents_that_do_not_fill_it() -> None:
    with pytest.raises(CalibrationError, match="do not fill 12 clusters"):
        fit_head(np.zeros((100, 64), np.float32))
