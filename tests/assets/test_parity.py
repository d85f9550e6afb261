"""Parity sees what differs, and a policy that says nothing passes nothing."""

from __future__ import annotations

import dataclasses
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from assets.metrics import LatentScale
from assets.motif_head import fit_head
from assets.parity import judge
from assets.policy import Bound, FamilyPolicy, load_policy
from assets.quantized_har import take_built
from assets.weights import parse_model, read_files
from runtime.contract.errors import CalibrationError
from runtime.contract.motifs import MotifScorer
from runtime.contract.parity import CONTEXTS
from runtime.contract.window import normalize
from tests.assets.test_onnx_model import foreign_graph
from tests.chain import SAMPLE_VERSION, Chain, build_chain

pytestmark = pytest.mark.build


def policy(**bounds: Bound) -> FamilyPolicy:
    return dataclasses.replace(load_policy(), metrics=bounds)


LEAST = Bound(at_least=0.9, at_most=None, typical=(0.9, 1.0))
MOST = Bound(at_least=None, at_most=1.1, typical=(0.9, 1.0))
BOTH = Bound(at_least=0.9, at_most=1.1, typical=(0.9, 1.0))


@pytest.mark.parametrize(
    ("metrics", "bounds", "reason"),
    [
        ({"gain": 1.0}, {}, "no thresholds"),
        ({"gain": 1.0}, {"worst": LEAST}, "worst was not computed"),
        ({"gain": 0.8}, {"gain": LEAST}, "gain is 0.8, at least 0.9 is required"),
        ({"gain": 1.2}, {"gain": MOST}, "gain is 1.2, at most 1.1 is allowed"),
        ({"gain": 1.2}, {"gain": BOTH}, "gain is 1.2, at most 1.1 is allowed"),
        ({"gain": 0.8}, {"gain": BOTH}, "gain is 0.8, at least 0.9 is required"),
        ({"gain": float("nan")}, {"gain": BOTH}, "gain is nan"),
        ({"gain": float("nan")}, {"gain": LEAST}, "gain is nan"),
        ({"gain": float("nan")}, {"gain": MOST}, "gain is nan"),
        ({"gain": float("inf")}, {"gain": MOST}, "gain is inf"),
    ],
)
def test_verdict_is_no_where_policy_is_empty_unknown_or_missed(
    metrics: dict[str, float], bounds: dict[str, Bound], reason: str
) -> None:
    result = judge(metrics, policy(**bounds), artifact_sha256="0" * 64, provenance="emulated", windows=9)
    assert not result.passed
    assert reason in result.failures[0]


def test_sample_passes_the_committed_policy(chain: Chain) -> None:
    result, committed = chain.evidence.result, load_policy()
    assert result.failures == ()
    assert result.passed
    assert (result.thresholds, result.ceilings) == (committed.thresholds, committed.ceilings)
    assert set(committed.metrics) <= set(result.metrics)
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
    scale = LatentScale(reference, MotifScorer(chain.trained.head), active_share=0.05, clear_margin=0.3)
    assert chain.evidence.result.metrics == pytest.approx(scale.metrics(reference, found))
    strata = np.asarray(evaluation.strata)
    assert {stratum.name for stratum in chain.evidence.strata} == set(evaluation.strata)
    for stratum in chain.evidence.strata:
        mine = strata == stratum.name
        assert stratum.windows == mine.sum()
        assert stratum.metrics == pytest.approx(scale.metrics(reference[mine], found[mine])), stratum.name


def test_every_context_is_there_and_says_how_it_came_about(chain: Chain) -> None:
    contexts = {context.name: context for context in chain.evidence.contexts}
    assert tuple(contexts) == CONTEXTS
    tags = {name: context.provenance for name, context in contexts.items()}
    assert tags == {
        "source": "measured",
        "full_precision": "measured",
        "emulator": "emulated",
        "artifact": "emulated",
        "hardware": "",
    }
    assert "torch" in contexts["source"].ran_by
    assert contexts["source"].metrics["max_abs"] < 1e-4
    assert "releasectl selftest" in contexts["artifact"].ran_by
    assert contexts["artifact"].metrics["lsb_from_emulator"] == 0
    assert "nothing of it runs on a device" in contexts["hardware"].not_run
    assert contexts["hardware"].metrics == {}
    assert chain.evidence.judged == "artifact"


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
