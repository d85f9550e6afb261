"""What of captured windows is offered: each judged alone, then by release and reason, then all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from assets.captured import Candidate, Captured
from assets.findings import REFUSE
from assets.input_gate import check_normalized, check_physical
from assets.physical import FIELD_POSSIBLE, PEAK_QUANTILE, PEAK_ROTATION, lengths, within
from runtime.contract.parity import Finding
from runtime.contract.telemetry import IMPLAUSIBLE, implausible_kinds, z_bounds
from runtime.contract.window import WINDOW_SHAPE, ChannelStatistics, FloatArray

NOT_OF_ITSELF: Final = frozenset({"count", "coverage", "z_reach"})
"""Checks that say that a set is no whole one: what is added to another one need not be."""

FEWEST_TO_JUDGE: Final = 16
"""Windows of a group below which chance alone would refuse it: it is judged among all."""

OFFERED: Final = "offered"
PARTLY: Final = "partly offered"
REFUSED: Final = "refused"
NOT_OFFERED: Final = "not offered"

_Key = tuple[str, str]
"""Release and reason."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The windows of one release that were kept for one reason; a window may be in several.

    Args:
        release: Id of the release that answered.
        reason: Why they were kept.
        windows: How many different ones.
        offered: How many of them are candidates.
        verdict: ``offered``, ``partly offered``, ``refused`` (by the gate, as a group) or ``not offered``.
        why: Why those that are no candidates are none, with how many; empty where all are.
        findings: Of the input gate on the group; empty where they are too few to be judged apart.
    """

    release: str
    reason: str
    windows: int
    offered: int
    verdict: str
    why: str
    findings: tuple[Finding, ...]

    def of_the_windows(self) -> list[Finding]:
        """The findings about the windows themselves, without that they are no whole set."""
        return _of_the_windows(self.findings)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is offered of what was captured.

    Args:
        captured: What the folder held.
        groups: By release and reason.
        candidates: Windows for the next calibration set; empty where the gate refuses them.
        why_not: Of every other window, by its id, why it is none.
        findings: Of the input gate on the candidates together, or on those that it refused together.
    """

    captured: Captured
    groups: tuple[Group, ...]
    candidates: tuple[Candidate, ...]
    why_not: Mapping[str, str]
    findings: tuple[Finding, ...]

    def left(self) -> dict[str, int]:
        """Why windows are not offered, and how many for each."""
        return _counted(self.captured.windows, self.why_not)

    def why_none(self) -> str:
        """Why nothing is offered; empty where something is."""
        if self.candidates:
            return ""
        if not self.captured.windows:
            return "no window was captured"
        refused = [each.sentence() for each in self.findings if _refuses(each)]
        return ". ".join([_in_words(self.left()), *refused])


def offer(captured: Captured, statistics: ChannelStatistics | None = None) -> Offer:
    """Judge what was captured, and say what is offered and why the rest is not.

    A window whose values cannot be right is left out alone, whatever it was kept for. Groups of
    ``FEWEST_TO_JUDGE`` and more are judged by the input gate. Where it refuses the rest together, windows
    that are in no group that passed are left out first.

    Args:
        captured: What the folder held.
        statistics: The model's normalization, for the gate's second stage and ``z_beyond_40``; None leaves
            them out.
    """
    windows, grouped = captured.windows, _grouped(captured.windows)
    why_not = _impossible(windows, statistics)
    judged = _judged(grouped, why_not, statistics)
    passed: set[str] = set()
    for key, findings in judged.items():
        ids = {each.id for each in grouped[key]}
        if not _wrong(findings):
            passed |= ids
            continue
        for identifier in ids - why_not.keys():
            why_not[identifier] = f"refused with {key[1]} of {key[0][:12]}: {_checks(findings)}"
    chosen = [each for each in windows if each.id not in why_not]
    findings = _gate(chosen, statistics)
    sure = [each for each in chosen if each.id in passed]
    if _wrong(findings) and 0 < len(sure) < len(chosen):
        again = _gate(sure, statistics)
        if not _wrong(again):
            why = f"too few of a kind to be judged apart, and refused with the others: {_checks(findings)}"
            why_not |= {each.id: why for each in chosen if each.id not in passed}
            chosen, findings = sure, again
    if _wrong(findings):
        why_not |= {each.id: f"refused all together: {_checks(findings)}" for each in chosen}
        chosen = []
    return Offer(
        captured=captured,
        groups=tuple(_group(key, grouped[key], judged.get(key, ()), why_not) for key in sorted(grouped)),
        candidates=tuple(chosen),
        why_not=why_not,
        findings=findings,
    )


def _impossible(windows: Sequence[Candidate], statistics: ChannelStatistics | None) -> dict[str, str]:
    """Id to what is wrong of those whose values cannot be right by themselves.

    What was kept names what its release thought; a window kept for another reason alone names nothing, so
    the values are asked.
    """
    bounds = None if statistics is None else z_bounds(statistics)
    found = {}
    for each in windows:
        window = each.kept.window
        kinds = {*each.kept.reasons, *implausible_kinds(window, bounds)}
        names: list[str] = [kind for kind in IMPLAUSIBLE if kind in kinds]
        if not within(float(np.quantile(lengths(window[None], "gyroscope"), PEAK_QUANTILE)), PEAK_ROTATION):
            names.append("peak_rotation")
        if not within(float(np.median(lengths(window[None], "magnetometer"))), FIELD_POSSIBLE):
            names.append("magnetic_field")
        if names:
            found[each.id] = f"cannot be right: {', '.join(names)}"
    return found


def _judged(
    grouped: Mapping[_Key, Sequence[Candidate]],
    impossible: Mapping[str, str],
    statistics: ChannelStatistics | None,
) -> dict[_Key, tuple[Finding, ...]]:
    found = {}
    for key, windows in grouped.items():
        rest = [each for each in windows if each.id not in impossible]
        # Where nothing is left, the gate on all of them says why: a unit, an order of the channels.
        asked = rest or windows
        if key[1] not in IMPLAUSIBLE and len(asked) >= FEWEST_TO_JUDGE:
            found[key] = _gate(asked, statistics)
    return found


def _group(
    key: _Key, windows: Sequence[Candidate], findings: tuple[Finding, ...], why_not: Mapping[str, str]
) -> Group:
    count = len(windows)
    offered = sum(each.id not in why_not for each in windows)
    verdict = OFFERED if offered == count else PARTLY if offered else NOT_OFFERED
    return Group(
        release=key[0],
        reason=key[1],
        windows=count,
        offered=offered,
        verdict=REFUSED if _wrong(findings) else verdict,
        why=_in_words(_counted(windows, why_not)),
        findings=findings,
    )


def _counted(windows: Iterable[Candidate], why_not: Mapping[str, str]) -> dict[str, int]:
    return dict(sorted(Counter(why_not[each.id] for each in windows if each.id in why_not).items()))


def _in_words(counted: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {why}" for why, count in counted.items())


def _checks(findings: Iterable[Finding]) -> str:
    return ", ".join(dict.fromkeys(each.check for each in findings if _refuses(each)))


def _grouped(windows: Iterable[Candidate]) -> dict[_Key, list[Candidate]]:
    groups: dict[_Key, list[Candidate]] = {}
    for each in windows:
        for reason in each.kept.reasons:
            groups.setdefault((each.kept.release, reason), []).append(each)
    return groups


def _gate(windows: Sequence[Candidate], statistics: ChannelStatistics | None) -> tuple[Finding, ...]:
    if not windows:
        return ()
    values, labels = stacked(windows), [""] * len(windows)
    findings = check_physical(values, labels, name="calibration")
    if statistics is not None and not _wrong(findings):
        findings += check_normalized(values, labels, statistics, name="calibration")
    return tuple(findings)


def _of_the_windows(findings: Iterable[Finding]) -> list[Finding]:
    return [each for each in findings if each.check not in NOT_OF_ITSELF]


def _wrong(findings: Iterable[Finding]) -> bool:
    """Whether the windows themselves are refused."""
    return any(map(_refuses, findings))


def _refuses(finding: Finding) -> bool:
    return finding.severity == REFUSE and finding.check not in NOT_OF_ITSELF


def stacked(windows: Sequence[Candidate]) -> FloatArray:
    """float32 (N, 100, 9), physical units."""
    if not windows:
        return np.empty((0, *WINDOW_SHAPE), np.float32)
    return np.stack([each.kept.window for each in windows])
