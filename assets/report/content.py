"""What the report says, worked out before anything is drawn: rows, marks and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from assets.metrics import MOST_DB
from assets.report.glossary import explained, in_order
from runtime.contract.parity import (
    COMPARED,
    ITSELF,
    NO_CHAMPION,
    ChampionComparison,
    ContextResult,
    DimensionResult,
    LayerRecord,
    ParityEvidence,
    PublicationEvidence,
    StratumResult,
)

PASSED: Final = "passed"
FAILED: Final = "FAILED"
MET: Final = "met"
MISSED: Final = "missed"
NOT_JUDGED: Final = "not judged"
NONE: Final = "–"
MOST_ROWS: Final = 12
"""Active dimensions in the page's table."""
IDENTICAL_DB: Final = MOST_DB
"""From here on a ratio in dB stands for no difference at all."""


def number(name: str, value: float | None) -> str:
    """A metric's value as it is shown."""
    if value is None:
        return NONE
    if name.endswith("_db") and value >= IDENTICAL_DB:
        return "no difference"
    if value and abs(value) < 0.5 * 10.0 ** -explained(name).digits:
        return f"{value:.1e}"
    return f"{value:.{explained(name).digits}f}"


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Where a value lies, in percent of a small track.

    Args:
        value: Position of the value, held within the track.
        outside: ``low`` or ``high`` where it lies outside, else empty.
        typical: Left edge and width of the typical range; None where it is not known.
        refused: Left edge and width of each part that the bounds refuse.
        champion: Position of the champion's value; None where there is none.
    """

    value: float
    outside: str
    typical: tuple[float, float] | None
    refused: tuple[tuple[float, float], ...]
    champion: float | None


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric beside its bounds.

    Args:
        name: As the evidence calls it.
        label: As people call it.
        unit: May be empty.
        value: None where it was not computed.
        at_least: Smallest accepted value, where there is one.
        at_most: Largest one.
        typical: Smallest and largest value of good builds; empty where not known.
        champion: The champion's value, where there is one.
        no_champion: There is no champion at all.
        state: ``MET``, ``MISSED`` or ``NOT_JUDGED``.
        gauge: None where there is no value or nothing to hold it against.
    """

    name: str
    label: str
    unit: str
    value: float | None
    at_least: float | None
    at_most: float | None
    typical: tuple[float, ...]
    champion: float | None
    no_champion: bool
    state: str
    gauge: Gauge | None

    @property
    def shown(self) -> str:
        """The value."""
        return "not computed" if self.value is None else number(self.name, self.value)

    @property
    def bound(self) -> str:
        """What is accepted, in words and mathematics."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if self.at_most is not None else NONE

    @property
    def usual(self) -> str:
        """What good builds had."""
        return f"{self.typical[0]:g} to {self.typical[1]:g}" if len(self.typical) == 2 else NONE

    @property
    def champions(self) -> str:
        """What the champion had."""
        return NO_CHAMPION if self.no_champion else number(self.name, self.champion)


def metric_rows(evidence: ParityEvidence, champion: ChampionComparison) -> tuple[MetricRow, ...]:
    """Every metric that was computed or is bounded, those that were missed first."""
    result = evidence.result
    names = {*result.metrics, *result.thresholds, *result.ceilings}
    rows = [_metric_row(name, evidence, champion) for name in in_order(names)]
    return tuple(sorted(rows, key=lambda row: row.state != MISSED))


def _metric_row(name: str, evidence: ParityEvidence, champion: ChampionComparison) -> MetricRow:
    result = evidence.result
    value = result.metrics.get(name)
    least, most = result.thresholds.get(name), result.ceilings.get(name)
    state = MET
    if least is None and most is None:
        state = NOT_JUDGED
    elif value is None or not (least is None or value >= least) or not (most is None or value <= most):
        state = MISSED
    typical, theirs = evidence.typical.get(name, ()), champion.metrics.get(name)
    words = explained(name)
    return MetricRow(
        name=name,
        label=words.label,
        unit=words.unit,
        value=value,
        at_least=least,
        at_most=most,
        typical=typical,
        champion=theirs,
        no_champion=champion.state == NO_CHAMPION,
        state=state,
        gauge=_gauge(value, least, most, typical, theirs),
    )


def _gauge(
    value: float | None,
    least: float | None,
    most: float | None,
    typical: tuple[float, ...],
    champion: float | None,
) -> Gauge | None:
    fixed = [edge for edge in (least, most, *typical) if edge is not None]
    if value is None or len(set(fixed)) < 2:
        return None
    # The bounds and the typical range make the scale; a value far off is held at its end.
    room = 0.35 * (max(fixed) - min(fixed))
    low, high = min(fixed) - room, max(fixed) + room

    def place(at: float) -> float:
        return round(100 * min(max((at - low) / (high - low), 0.0), 1.0), 2)

    refused = []
    if least is not None:
        refused.append((0.0, place(least)))
    if most is not None:
        refused.append((place(most), round(100 - place(most), 2)))
    band = (place(typical[0]), round(place(typical[1]) - place(typical[0]), 2)) if len(typical) == 2 else None
    return Gauge(
        value=place(value),
        outside="low" if value < low else "high" if value > high else "",
        typical=band,
        refused=tuple(refused),
        champion=None if champion is None else place(champion),
    )


def is_passed(evidence: ParityEvidence, champion: ChampionComparison) -> bool:
    """Whether this build may go out, as far as parity is asked."""
    return evidence.result.passed and not evidence.result.failures and champion.passed


def failures(evidence: ParityEvidence, champion: ChampionComparison) -> tuple[str, ...]:
    """A sentence for each thing that is wrong; empty only where all is well."""
    found = (*evidence.result.failures, *champion.failures)
    if not found and not is_passed(evidence, champion):
        return ("the evidence says failed, and not why",)
    return found


def verdict(evidence: ParityEvidence, champion: ChampionComparison) -> str:
    """``PASSED`` or ``FAILED``."""
    return PASSED if is_passed(evidence, champion) else FAILED


def summary(evidence: ParityEvidence, champion: ChampionComparison) -> str:
    """How many bounds were met or missed, and how the champion compares, in one line."""
    rows = [row for row in metric_rows(evidence, champion) if row.state != NOT_JUDGED]
    missed = sum(row.state == MISSED for row in rows)
    words = f"{missed} of {len(rows)} metrics miss" if missed else f"all {len(rows)} metrics are within"
    return f"{words} their bounds on {evidence.result.windows} windows; {against(champion)}"


def against(champion: ChampionComparison) -> str:
    """The comparison with the champion in a few words."""
    if champion.sqnr_db is None or champion.champion_sqnr_db is None:
        return champion.state
    by = champion.sqnr_db - champion.champion_sqnr_db
    words = "is the champion's own artifact" if champion.state == ITSELF else "beside the champion"
    if champion.state == COMPARED and not champion.passed:
        words = "worse than the champion allows"
    return f"{words}: {by:+.2f} dB SQNR on {champion.compared_on} ({champion.windows})"


def strata_rows(evidence: ParityEvidence) -> tuple[StratumResult, ...]:
    """The strata, lowest SQNR first; one without comes last."""
    return tuple(
        sorted(evidence.strata, key=lambda stratum: (stratum.metrics.get("sqnr_db", 1e9), stratum.name))
    )


def active_rows(evidence: ParityEvidence) -> tuple[DimensionResult, ...]:
    """The active dimensions, lowest SQNR first."""
    active = [dimension for dimension in evidence.dimensions if dimension.active]
    return tuple(
        sorted(active, key=lambda each: (each.sqnr_db if each.sqnr_db is not None else 0.0, each.index))
    )


def columns(results: tuple[StratumResult, ...] | tuple[ContextResult, ...]) -> list[str]:
    """Every metric that one of them has."""
    return in_order({name for result in results for name in result.metrics})


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One activation, and how what was seen lies in what its integers can hold, in percent of a track."""

    record: LayerRecord
    range: tuple[float, float]
    seen: tuple[float, float]


def layer_rows(evidence: ParityEvidence) -> tuple[LayerRow, ...]:
    """The activations in the graph's order."""
    return tuple(_layer_row(record) for record in (evidence.layers.layers if evidence.layers else ()))


def _layer_row(record: LayerRecord) -> LayerRow:
    low, high = min(record.range_low, record.seen_low), max(record.range_high, record.seen_high)
    span = (high - low) or 1.0

    def part(start: float, end: float) -> tuple[float, float]:
        return round(100 * (start - low) / span, 2), round(100 * (end - start) / span, 2)

    return LayerRow(
        record=record,
        range=part(record.range_low, record.range_high),
        seen=part(record.seen_low, record.seen_high),
    )


def origin_warning(evidence: ParityEvidence) -> str:
    """What a reader must not overlook about where the windows came from; empty where they were captured."""
    if evidence.origin == "captured":
        return ""
    return (
        f"Calibrated and judged on {evidence.origin} windows. Nothing here was recorded by a sensor: "
        "expect less on recorded motion, and calibrate with captured windows before a release is relied upon."
    )


def provenance_warning(evidence: ParityEvidence) -> str:
    """What the numbers cannot claim; empty where a device was measured."""
    if evidence.result.provenance == "measured":
        return ""
    return (
        f"The judged numbers are {evidence.result.provenance}: no device gave them. They say nothing about a "
        "chip's accuracy, latency or power."
    )


def describe(evidence: PublicationEvidence) -> str:
    """The report's title."""
    word = verdict(evidence.parity, evidence.champion)
    return f"{word}: parity of {evidence.model} for {evidence.target}"
