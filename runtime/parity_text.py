"""Parity for a terminal of 80 columns: the verdict first, then what it rests on."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from runtime.contract.errors import PublicationRefusedError
from runtime.contract.evidence import PARITY_KIND, evidence_kind, read_evidence
from runtime.contract.parity import (
    COMPARED,
    NO_CHAMPION,
    REPORT_NAME,
    ChampionComparison,
    LayerNoise,
    ParityEvidence,
    PublicationEvidence,
    of_our_schema,
)
from runtime.contract.release import ParityResult
from runtime.contract.store import Release, ReleaseStore
from runtime.release_text import WIDTH, origin_text
from runtime.release_text import wrapped as _wrapped

T = TypeVar("T")
_NAME: Final = 28
REFERENCE: Final = "full_precision"
_WORST: Final = 8
"""Strata, layers and promotions that are listed; the JSON has all."""


@dataclass(frozen=True, kw_only=True)
class ParityDocuments:
    """What there is to say about a release's parity.

    Args:
        release: The release; its manifest's numbers are those that count.
        evidence: The report that it carries; None where that is older than ``ParityEvidence``.
        publications: Comparisons kept beside it, sorted by digest; those of another schema are left out.
        reports: HTML files of the same; named, not read.
    """

    release: Release
    evidence: ParityEvidence | None
    publications: tuple[PublicationEvidence, ...]
    reports: tuple[Path, ...] = ()


def parity_documents(store: ReleaseStore, release: Release) -> ParityDocuments:
    """Read the report inside a release, and the numbers kept beside it; what is read is verified.

    Raises:
        DigestMismatchError: Bytes that are not what their digest says.
        ManifestError: A document says that it is of our schema, and is not.
        StoreError: Something cannot be read.
    """
    paths = [path for path in store.evidence(release.id) if evidence_kind(path) == PARITY_KIND]
    beside = [
        of_our_schema(PublicationEvidence, read_evidence(path), str(path))
        for path in paths
        if path.suffix == ".json"
    ]
    known = tuple(publication for publication in beside if publication is not None)
    return ParityDocuments(
        release=release,
        evidence=_carried(release),
        publications=known,
        reports=tuple(path for path in paths if path.suffix == ".html"),
    )


def _carried(release: Release) -> ParityEvidence | None:
    if REPORT_NAME not in {artifact.name for artifact in release.manifest.artifacts}:
        return None
    return of_our_schema(ParityEvidence, release.read(REPORT_NAME), str(release.directory / REPORT_NAME))


def parity_lines(documents: ParityDocuments) -> list[str]:
    """Everything that a person asks first, in 80 columns."""
    release, evidence = documents.release, documents.evidence
    manifest, result = release.manifest, release.manifest.parity
    origin = evidence.origin if evidence else manifest.calibration.origin
    lines = [
        *_verdict(release),
        _field("release", release.id),
        *_wrapped("model", f"{manifest.model.name} {manifest.model.version}, target {manifest.target}"),
        _field("windows", f"{result.windows}, apart from those of the calibration"),
        _field("origin", origin_text(origin)),
    ]
    if evidence is None:
        lines += _wrapped("note", f"{REPORT_NAME} is of an older form: this is what the manifest has")
        return [*lines, *_metrics(result, {}), *_publications(documents)]
    lines += [
        _field("judged", f"{evidence.judged}, policy {evidence.family}"),
        _field("active", f"{evidence.active} of {len(evidence.dimensions)} latent dimensions"),
    ]
    if evidence.result != result:
        lines += _wrapped("note", f"{REPORT_NAME} has another result than the manifest, which counts")
    lines += [
        *_metrics(result, evidence.typical),
        *_contexts(evidence),
        *_strata(evidence),
        *_layers(evidence.layers),
        *_findings(evidence),
    ]
    return lines + _publications(documents)


def _verdict(release: Release) -> list[str]:
    """As the gate says now, whatever the report claims of itself."""
    provenance = release.manifest.parity.provenance
    try:
        release.check_publishable()
    except PublicationRefusedError as error:
        return _wrapped("parity", f"FAILED, numbers {provenance}: {error.what}")
    return [_field("parity", f"PASSED, numbers {provenance}")]


def _metrics(result: ParityResult, typical: Mapping[str, Sequence[float]]) -> list[str]:
    lines = ["", f"{'metric':<{_NAME}} {'value':>12}  {'bound':<14} {'typical':<16} ok"]
    for name in sorted({*result.metrics, *result.thresholds, *result.ceilings}):
        value, least, most = (
            numbers.get(name) for numbers in (result.metrics, result.thresholds, result.ceilings)
        )
        bounds = [f">= {least:.4g}"] if least is not None else []
        bounds += [f"<= {most:.4g}"] if most is not None else []
        ok = "-" if not bounds else "yes" if _within(value, least, most) else "NO"
        shown = "not computed" if value is None else f"{value:.4g}"
        usual = " .. ".join(f"{edge:.4g}" for edge in typical.get(name, ())) or "-"
        lines.append(f"{_cut(name, _NAME)} {shown:>12}  {' '.join(bounds) or '-':<14} {usual:<16} {ok}")
    return lines


def _within(value: float | None, least: float | None, most: float | None) -> bool:
    if value is None:
        return False
    return (least is None or value >= least) and (most is None or value <= most)


def _contexts(evidence: ParityEvidence) -> list[str]:
    lines = ["", f"{'context':<16} {'numbers':<10} {'sqnr_db':>9} {'mean_cosine':>12} {'max_abs':>9}"]
    for context in evidence.contexts:
        if context.not_run:
            lines += _wrapped(context.name, f"did not run: {context.not_run}", 16)
            continue
        numbers = [
            f"{context.metrics[name]:.4g}" if name in context.metrics else "-"
            for name in ("sqnr_db", "mean_cosine", "max_abs")
        ]
        if context.name == REFERENCE and not context.metrics:
            numbers = ["reference", "", ""]
        shown = f"{numbers[0]:>9} {numbers[1]:>12} {numbers[2]:>9}"
        lines.append(f"{_cut(context.name, 16)} {context.provenance:<10} {shown}".rstrip())
        lines += textwrap.wrap(f"by {context.ran_by}", WIDTH, initial_indent=" " * 17)
    return lines


def _strata(evidence: ParityEvidence) -> list[str]:
    """Worst first; without SQNR last, since nothing is known of it."""
    ranked = sorted(evidence.strata, key=lambda stratum: stratum.metrics.get("sqnr_db", float("inf")))
    lines = ["", f"{'stratum (worst first)':<{_NAME}} {'windows':>8} {'sqnr_db':>9} {'mean_cosine':>12}"]
    for stratum in ranked[:_WORST]:
        numbers = [
            f"{stratum.metrics[name]:.4g}" if name in stratum.metrics else "-"
            for name in ("sqnr_db", "mean_cosine")
        ]
        lines.append(f"{_cut(stratum.name, _NAME)} {stratum.windows:>8} {numbers[0]:>9} {numbers[1]:>12}")
    return lines + _more(len(ranked)) + _wrapped("strata by", evidence.strata_by)


def _layers(noise: LayerNoise | None) -> list[str]:
    if noise is None:
        return ["", _field("layers", "this toolchain cannot tell where the noise comes from")]
    title = f"layers, worst alone first ({noise.provenance}, {noise.windows} windows)"
    lines = ["", f"{title:<52} {'alone':>8} {'up to':>8} {'clipped':>8}"]
    ranked = sorted(noise.layers, key=lambda layer: layer.only_on_db)
    for layer in ranked[:_WORST]:
        name = f"{layer.operator} {layer.name}"
        numbers = f"{layer.only_on_db:>8.4g} {layer.up_to_db:>8.4g} {layer.clipped_share:>8.2%}"
        lines.append(f"{_cut(name, 52)} {numbers}")
    lines += _more(len(ranked))
    if noise.promote:
        lines += ["", f"{'to gain by 16 bits':<52} {'dB':>8}"]
        lines += [f"{_cut(gain.name, 52)} {gain.gain_db:>+8.3g}" for gain in noise.promote[:_WORST]]
        lines += _more(len(noise.promote))
    return lines + _wrapped("by", noise.tool)


def _findings(evidence: ParityEvidence) -> list[str]:
    if not evidence.findings:
        return ["", _field("findings", "none")]
    lines = [""]
    for finding in evidence.findings:
        lines += _wrapped("finding", f"{finding.severity}: {finding.sentence()}")
    return lines


def _publications(documents: ParityDocuments) -> list[str]:
    lines = [""]
    for publication in documents.publications:
        lines += _wrapped("champion", _comparison(publication.champion))
    if not documents.publications:
        lines.append(_field("champion", "no comparison is kept beside this release"))
    if documents.reports:
        # A path that is broken into lines cannot be copied.
        lines += ["", "the whole report, for a browser", *map(str, documents.reports)]
    return lines


def _comparison(champion: ChampionComparison) -> str:
    if champion.state == NO_CHAMPION:
        return champion.state
    if champion.state != COMPARED or champion.sqnr_db is None or champion.champion_sqnr_db is None:
        return f"{champion.state} ({champion.release[:12]} {champion.model})"
    verdict = "; ".join(champion.failures) or "passed"
    return (
        f"{champion.release[:12]} {champion.model}: SQNR {champion.sqnr_db:.4g} dB, the champion's "
        f"{champion.champion_sqnr_db:.4g} dB, on {champion.compared_on} ({champion.windows}), "
        f"{champion.provenance}, a drop of {champion.allowed_drop_db:.4g} dB is allowed: {verdict}"
    )


def parity_json(documents: ParityDocuments) -> dict[str, Any]:
    """The documents as they are, for ``--json``."""
    release, evidence = documents.release, documents.evidence
    return {
        "release": release.id,
        "manifest": asdict(release.manifest.parity),
        "parity": asdict(evidence) if evidence else None,
        "publications": [asdict(publication) for publication in documents.publications],
        "reports": [str(path) for path in documents.reports],
    }


def _field(name: str, text: str) -> str:
    return f"{name:<11} {text}"


def _cut(name: str, width: int) -> str:
    """Its two ends, where a name is too long for a column."""
    if len(name) > width:
        keep = width - 2
        name = f"{name[: keep // 2]}..{name[-(keep - keep // 2) :]}"
    return name.ljust(width)


def _more(count: int) -> list[str]:
    return [f"  and {count - _WORST} more (--json)"] if count > _WORST else []
