"""Parity: how well the artifact agrees with full_precision on windows that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Final

import numpy as np
import numpy.typing as npt

from assets import policy
from assets.calibration import WindowSets, parse_sets
from assets.motif_head import MOTIFS, fit_head
from assets.product import Product, Workbench
from assets.quantized_har import take_built
from assets.toolchain import Toolchain
from assets.weights import read_model
from runtime.contract.document import to_json
from runtime.contract.errors import PipelineError
from runtime.contract.gate import missed_bounds
from runtime.contract.motifs import MotifHead, MotifScorer
from runtime.contract.release import ParityResult
from runtime.contract.window import FloatArray, normalize

REPORT_NAME: Final = "parity.json"


class ParityError(PipelineError):
    """Latents that cannot be compared."""

    code = "parity"


@dataclass(frozen=True, kw_only=True)
class ParityEvidence:
    """What ``parity_report`` makes, and ``canary_release`` takes.

    Args:
        result: Metrics, thresholds and verdict, bound to the artifact's digest.
        motif_head: The head whose agreement was judged; the release carries the same.
        origin: ``captured`` or ``synthetic``: where the windows came from.
        evaluation_sha256: Digest of the windows that it was judged on.
        by_label: The same metrics for each activity.
        tools: Versions of what fitted the head, where it was fitted.
        upstream: Asset key to digest of everything that the artifact was made from, so that other
            sources make another report even where the artifact came out the same.
    """

    result: ParityResult
    motif_head: MotifHead
    origin: str
    evaluation_sha256: str
    by_label: dict[str, dict[str, float]]
    tools: dict[str, str]
    upstream: dict[str, str]


def compare(reference: FloatArray, found: FloatArray, scorer: MotifScorer) -> dict[str, float]:
    """Metrics of one context against another.

    Args:
        reference: float32 (N, 64), full_precision.
        found: float32 (N, 64), of the artifact on the same windows.
        scorer: The motif head that both are scored with.

    Returns:
        ``mean_cosine`` (1 is best), ``sqnr_db`` (signal power over error power, all dimensions
        together, dB), ``motif_top1_agreement`` (share of windows whose best motif is the same).

    Raises:
        ParityError: A latent is not finite, or full_precision is zero throughout.
    """
    wide = reference.astype(np.float64)
    if not (np.isfinite(wide).all() and np.isfinite(found).all()):
        raise ParityError("a latent is not finite", hint="look at the weights and at the windows")
    if not wide.any():
        raise ParityError("full_precision is zero for every window", hint="look at the encoder's training")
    error = found.astype(np.float64) - wide
    return {
        "mean_cosine": float(np.mean(_cosines(wide, wide + error))),
        "sqnr_db": float(10 * np.log10(np.sum(wide**2) / max(float(np.sum(error**2)), 1e-30))),
        "motif_top1_agreement": float(
            np.mean(scorer.scores(reference).argmax(axis=1) == scorer.scores(found).argmax(axis=1))
        ),
    }


def _cosines(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows; 0 where one of them is zero, since nothing then agrees."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("nd,nd->n", first, second)
    result: npt.NDArray[np.float64] = np.divide(
        products, lengths, out=np.zeros_like(products), where=lengths > 0
    )
    return result


def judge(
    reference: FloatArray,
    found: FloatArray,
    scorer: MotifScorer,
    *,
    artifact_sha256: str,
    thresholds: dict[str, float],
    provenance: str,
) -> ParityResult:
    """Compare, and hold the numbers against the policy."""
    metrics = compare(reference, found, scorer)
    failures = missed_bounds(metrics, thresholds, {})
    return ParityResult(
        artifact_sha256=artifact_sha256,
        provenance=provenance,
        windows=len(reference),
        metrics=metrics,
        thresholds=thresholds,
        ceilings={},
        failures=failures,
        passed=not failures,
    )


def make_parity_report(
    bench: Workbench, toolchain: Toolchain, *, hef: Product, motifs: int = MOTIFS
) -> tuple[Product, ParityEvidence]:
    """Judge the artifact against full_precision on the evaluation windows.

    A failed parity is a report too: the check on it blocks, and publishing refuses it.

    Args:
        bench: Where products lie.
        toolchain: The one that made the artifact.
        hef: The artifact.
        motifs: Size of a fitted head, where the weights came without one.

    Raises:
        ProductMissingError: Something that the artifact was made from is gone.
        ToolchainError: A context could not be run.
        ParityError: There is nothing to compare.
    """
    _, trained = read_model(bench, bench.ancestor(hef, "model_weights"))
    sets = parse_sets(bench.read_all(bench.ancestor(hef, "calibration_set")))
    onnx_model = bench.ancestor(hef, "onnx_model")
    full_precision = toolchain.parse(bench.read(onnx_model))
    head = trained.head or fit_head(
        toolchain.infer(full_precision, normalize(sets.calibration.windows, trained.statistics)), motifs
    )
    windows = normalize(sets.evaluation.windows, trained.statistics)
    reference = toolchain.infer(full_precision, windows)
    artifact = take_built(bench, hef)
    toolchain.check_made(artifact)
    found = toolchain.infer(artifact, windows)
    result = judge(
        reference,
        found,
        MotifScorer(head),
        artifact_sha256=hef.digest,
        thresholds=policy.load_policy(),
        provenance="measured" if toolchain.record().hardware else "emulated",
    )
    evidence = ParityEvidence(
        result=result,
        motif_head=head,
        origin=sets.index.origin,
        evaluation_sha256=sets.evaluation.sha256,
        by_label=_by_label(reference, found, sets, MotifScorer(head)),
        tools={} if trained.head else {"scipy": metadata.version("scipy")},
        upstream=bench.ancestry(hef),
    )
    asset = f"{toolchain.target}/parity_report"
    return bench.put(asset, {REPORT_NAME: to_json(evidence)}, made_from=[hef]), evidence


def _by_label(
    reference: FloatArray, found: FloatArray, sets: WindowSets, scorer: MotifScorer
) -> dict[str, dict[str, float]]:
    labels = np.asarray(sets.evaluation.labels)
    return {
        str(label): compare(reference[labels == label], found[labels == label], scorer)
        for label in np.unique(labels)
    }
