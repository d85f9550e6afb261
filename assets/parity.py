"""Parity: how well the artifact agrees with full_precision on windows that it never saw."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from importlib import metadata

import numpy as np
import numpy.typing as npt

from assets import policy
from assets.assembly import put_together, unjudged
from assets.calibration import WindowSets, parse_sets
from assets.champion import compare_with_champion
from assets.contexts import Contexts, run_contexts
from assets.input_gate import gate_for_model
from assets.metrics import LatentScale
from assets.motif_head import MOTIFS, fit_head
from assets.policy import FAMILY, FamilyPolicy
from assets.product import Product, ProductMissingError, Workbench
from assets.quantized_har import take_built
from assets.report import Report, render
from assets.toolchain import Built, Toolchain
from assets.weights import TrainedModel, read_model
from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import ManifestError
from runtime.contract.gate import missed_bounds
from runtime.contract.motifs import MotifHead, MotifScorer
from runtime.contract.parity import (
    EVIDENCE_SCHEMA,
    LATENTS_NAME,
    REPORT_NAME,
    ChampionComparison,
    Finding,
    ParityEvidence,
    PublicationEvidence,
    StratumResult,
)
from runtime.contract.release import ParityResult
from runtime.contract.store import ReleaseStore
from runtime.contract.window import normalize

_DRAWN: dict[str, Report] = {}
"""The report that was drawn last: publication asks for the one that parity has just shown."""


def judge(
    metrics: dict[str, float], judge_by: FamilyPolicy, *, artifact_sha256: str, provenance: str, windows: int
) -> ParityResult:
    """Hold the numbers against the policy; one that was not computed is missed, and so is an empty policy."""
    failures = missed_bounds(metrics, judge_by.thresholds, judge_by.ceilings)
    return ParityResult(
        artifact_sha256=artifact_sha256,
        provenance=provenance,
        windows=windows,
        metrics=metrics,
        thresholds=judge_by.thresholds,
        ceilings=judge_by.ceilings,
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
        CalibrationError: The input gate refuses the windows.
        ProductMissingError: Something that the artifact was made from is gone.
        ToolchainError: A context could not be run.
        ParityError: There is nothing to compare.
    """
    subject = _take_up(bench, toolchain, hef, motifs)
    findings = gate_for_model(subject.sets, subject.trained.statistics, toolchain.target)
    contexts = _run(bench, toolchain, subject)
    evidence = _evidence(toolchain, subject, contexts, findings, upstream=bench.ancestry(hef))
    files = {REPORT_NAME: to_json(evidence), LATENTS_NAME: _latents(contexts, subject.sets)}
    return bench.put(f"{toolchain.target}/parity_report", files, made_from=[hef]), evidence


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is judged, and everything that it was made from."""

    hef: Product
    trained: TrainedModel
    sets: WindowSets
    stages: dict[str, Built]
    head: MotifHead


def _take_up(bench: Workbench, toolchain: Toolchain, hef: Product, motifs: int) -> _Subject:
    _, trained = read_model(bench, bench.ancestor(hef, "model_weights"))
    sets = parse_sets(bench.read_all(bench.ancestor(hef, "calibration_set")))
    stages = {
        "parsed": toolchain.parse(bench.read(bench.ancestor(hef, "onnx_model"))),
        "quantized": take_built(bench, bench.ancestor(hef, f"{toolchain.target}/quantized_har")),
        "compiled": take_built(bench, hef),
    }
    toolchain.check_made(stages["compiled"])
    calibration = normalize(sets.calibration.windows, trained.statistics)
    head = trained.head or fit_head(toolchain.infer(stages["parsed"], calibration), motifs)
    return _Subject(hef=hef, trained=trained, sets=sets, stages=stages, head=head)


def _run(bench: Workbench, toolchain: Toolchain, subject: _Subject) -> Contexts:
    """Every context, the artifact as a candidate release that no store would take."""
    hef = subject.hef
    provenance = "measured" if toolchain.record().hardware else "emulated"
    candidate = put_together(
        bench,
        toolchain,
        unjudged(hef, subject.head, provenance),
        hef=hef,
        sets=subject.sets,
        upstream={**bench.ancestry(hef), hef.asset: hef.digest},
    )
    windows = subject.sets.evaluation.windows
    return run_contexts(toolchain, subject.trained, subject.stages, candidate, windows)


def _evidence(
    toolchain: Toolchain,
    subject: _Subject,
    contexts: Contexts,
    findings: tuple[Finding, ...],
    upstream: dict[str, str],
) -> ParityEvidence:
    judge_by, sets, trained = policy.load_policy(), subject.sets, subject.trained
    scale = LatentScale(
        contexts.reference,
        MotifScorer(subject.head),
        active_share=judge_by.active_share,
        clear_margin=judge_by.clear_margin,
    )
    evaluation = normalize(sets.evaluation.windows, trained.statistics)
    result = judge(
        scale.metrics(contexts.reference, contexts.found),
        judge_by,
        artifact_sha256=subject.hef.digest,
        provenance=contexts.provenance,
        windows=len(evaluation),
    )
    return ParityEvidence(
        schema=EVIDENCE_SCHEMA,
        family=FAMILY,
        result=result,
        typical=judge_by.typical,
        active_share=judge_by.active_share,
        clear_margin=judge_by.clear_margin,
        motif_head=subject.head,
        origin=sets.index.origin,
        calibration_sha256=sets.calibration.sha256,
        evaluation_sha256=sets.evaluation.sha256,
        strata_by=sets.index.strata.text(),
        contexts=contexts.results,
        judged=contexts.judged,
        strata=_by_stratum(scale, contexts, sets),
        dimensions=scale.dimensions(contexts.reference, contexts.found),
        layers=toolchain.layer_noise(subject.stages["parsed"], subject.stages["quantized"], evaluation),
        findings=findings,
        tools={} if trained.head else {"scipy": metadata.version("scipy")},
        upstream=upstream,
    )


def _by_stratum(scale: LatentScale, contexts: Contexts, sets: WindowSets) -> tuple[StratumResult, ...]:
    strata = np.asarray(sets.evaluation.strata)
    return tuple(
        StratumResult(
            name=str(name),
            windows=int(np.sum(strata == name)),
            metrics=scale.metrics(contexts.reference[strata == name], contexts.found[strata == name]),
        )
        for name in np.unique(strata)
    )


def _latents(contexts: Contexts, sets: WindowSets) -> bytes:
    """What the report's pictures show: float32 (N, 64) of both sides, and each window's stratum."""
    buffer = io.BytesIO()
    strata = np.asarray(sets.evaluation.strata)
    np.savez(buffer, full_precision=contexts.reference, found=contexts.found, strata=strata)
    return buffer.getvalue()


def read_evidence(bench: Workbench, parity_report: Product) -> ParityEvidence:
    """Take up what ``make_parity_report`` made, verified.

    Raises:
        ProductMissingError: Another version of this project made it.
    """
    data = bench.read(parity_report, REPORT_NAME)
    try:
        evidence = from_json(ParityEvidence, data, REPORT_NAME)
        if evidence.schema != EVIDENCE_SCHEMA:
            raise ManifestError(f"schema {evidence.schema}, expected {EVIDENCE_SCHEMA}", where=REPORT_NAME)
    except ManifestError as error:
        raise ProductMissingError(
            f"is not as this version writes it: {error}",
            where=parity_report.asset,
            hint=f"materialize {parity_report.asset} again",
        ) from error
    return evidence


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A parity report beside the champion of the day.

    Args:
        publication: Evidence and comparison: what is kept with a publication.
        latents: ``full_precision`` and ``found`` float32 (N, 64), ``strata`` (N,).
    """

    publication: PublicationEvidence
    latents: dict[str, npt.NDArray[np.generic]]

    @property
    def champion(self) -> ChampionComparison:
        """The comparison."""
        return self.publication.champion

    def report(self) -> Report:
        """The report for people and programs; equal evidence gives equal bytes, and is drawn once."""
        shown = b"".join(array.tobytes() for _, array in sorted(self.latents.items()))
        key = sha256_bytes(to_json(self.publication) + shown)
        if key not in _DRAWN:
            _DRAWN.clear()
            _DRAWN[key] = render(self.publication, self.latents)
        return _DRAWN[key]


def judgement_version(evidence: ParityEvidence, champion: ChampionComparison) -> str:
    """A digest that changes with what was judged, what was measured of it, and the verdict.

    Not with the bounds, where the verdict by others is the same: what was released stays what it is.
    """
    result = evidence.result
    return sha256_bytes(
        to_json(
            {
                "artifact": result.artifact_sha256,
                "made from": evidence.upstream,
                "metrics": result.metrics,
                "motif head": asdict(evidence.motif_head),
                "passed": result.passed and champion.passed,
            }
        )
    )


def hold_against_champion(
    bench: Workbench, toolchain: Toolchain, store: ReleaseStore, *, hef: Product, parity_report: Product
) -> Judged:
    """Compare with the release that ``stable`` names now.

    Raises:
        PipelineError: There is a champion, and it cannot be read or compared with.
    """
    evidence = read_evidence(bench, parity_report)
    champion = compare_with_champion(
        bench, toolchain, store, policy.load_policy(), hef=hef, evidence=evidence
    )
    identity, _ = read_model(bench, bench.ancestor(hef, "model_weights"))
    with np.load(io.BytesIO(bench.read(parity_report, LATENTS_NAME)), allow_pickle=False) as archive:
        latents = {name: archive[name] for name in archive.files}
    publication = PublicationEvidence(
        schema=EVIDENCE_SCHEMA,
        model=f"{identity.name} {identity.version}",
        target=toolchain.target,
        parity=evidence,
        champion=champion,
    )
    return Judged(publication=publication, latents=latents)
