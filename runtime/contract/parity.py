"""Parity evidence: the document that the build side writes and that people and tools read.

``parity.json`` in a release is a ``ParityEvidence``; what also depends on the store of the day, the
comparison with the champion, is a ``PublicationEvidence`` kept beside the release.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, TypeVar

from runtime.contract.document import from_json
from runtime.contract.motifs import MotifHead
from runtime.contract.release import ParityResult

T = TypeVar("T")
EVIDENCE_SCHEMA: Final = 2
REPORT_NAME: Final = "parity.json"
LATENTS_NAME: Final = "latents.npz"
CONTEXTS: Final = ("source", "full_precision", "emulator", "artifact", "hardware")
"""``source``: the weights as they came. ``full_precision``: the canonical graph, float32. ``emulator``:
the toolchain's own emulation. ``artifact``: what was compiled, as the target's engine runs it, in a
process of its own. ``hardware``: the same on a device."""
TOOLCHAIN_CONTEXTS: Final = ("sdk_native", "sdk_fp_optimized")
"""What Hailo's compiler also runs, where it made the artifact: the graph as it was parsed, and as it was
rewritten before quantization, both in float. Its quantized emulation is the context ``emulator``."""
COMPARED: Final = "compared"
NO_CHAMPION: Final = "no champion"
ITSELF: Final = "is the champion"
EVALUATION_WINDOWS: Final = "the evaluation windows of both"
GOLDEN_WINDOWS: Final = "the champion's golden windows"


@dataclass(frozen=True, kw_only=True)
class ContextResult:
    """One context held against full_precision on the evaluation windows.

    Args:
        name: One of ``CONTEXTS`` or ``TOOLCHAIN_CONTEXTS``.
        provenance: ``measured``, ``emulated`` or ``estimated``; empty where it did not run.
        ran_by: Program and version that ran it; empty where it did not run.
        not_run: Why it did not run; empty where it did.
        metrics: ``sqnr_db``, ``mean_cosine``, ``max_abs`` (latent units); empty where it did not run.
    """

    name: str
    provenance: str
    ran_by: str
    not_run: str
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StratumResult:
    """The judged context's metrics on the windows of one stratum.

    Args:
        name: The stratum.
        windows: How many.
        metrics: As overall, with the active dimensions and spreads of the whole set; one that
            needs more windows than there are is missing.
    """

    name: str
    windows: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class DimensionResult:
    """One latent dimension.

    Args:
        index: 0 to 63.
        sd: Standard deviation in full_precision over the evaluation windows.
        active: Whether it varies enough to be judged by itself.
        sqnr_db: Its variance over its mean squared error, dB; None where it is inactive.
    """

    index: int
    sd: float
    active: bool
    sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One activation of the graph.

    Args:
        name: Tensor in the canonical graph.
        operator: What makes it: ``Conv``, ``Relu``, ``Add``, ..., ``input``.
        only_on_db: SQNR at the output when only this tensor is quantized.
        up_to_db: SQNR of this tensor when everything up to it is quantized.
        range_low: Smallest value that its integers can stand for.
        range_high: Largest one.
        seen_low: Smallest value of full_precision on the windows looked at.
        seen_high: Largest one.
        clipped_share: Share of those values outside the range, but for those that a Relu turns into
            zero whether they are clipped or not.
    """

    name: str
    operator: str
    only_on_db: float
    up_to_db: float
    range_low: float
    range_high: float
    seen_low: float
    seen_high: float
    clipped_share: float


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """One weight tensor: ``error_db`` is its own SQNR, ``only_on_db`` the output's with only it quantized."""

    name: str
    error_db: float
    only_on_db: float


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Output SQNR gained by leaving one activation in 16 bits while all else stays quantized, dB."""

    name: str
    gain_db: float


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """Where the noise comes from.

    Args:
        windows: How many windows it was measured on.
        provenance: ``emulated``, or ``measured`` where a device told it.
        tool: What computed it, with version.
        layers: Activations in the graph's order.
        weights: Weights in the graph's order.
        promote: Activations whose promotion to 16 bits gains most, best first.
    """

    windows: int
    provenance: str
    tool: str
    layers: tuple[LayerRecord, ...]
    weights: tuple[WeightRecord, ...]
    promote: tuple[Promotion, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a gate found in a set of windows.

    Args:
        check: Short name of the check: ``at_rest_acceleration``, ``count``, ``coverage``, ...
        severity: ``refuse`` or ``warn``.
        channel: The channel or sensor concerned; ``all`` where it is the whole window.
        measured: What was found, with unit.
        expected: The range or rule that it misses, with unit.
        cause: The likeliest cause, and what to do.
    """

    check: str
    severity: str
    channel: str
    measured: str
    expected: str
    cause: str

    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.check} [{self.channel}]: {self.measured}, expected {self.expected}; {self.cause}"


@dataclass(frozen=True, kw_only=True)
class ParityEvidence:
    """What ``parity_report`` makes, and ``canary_release`` takes; deterministic.

    Args:
        schema: ``EVIDENCE_SCHEMA``.
        family: The model family whose policy judged.
        result: Metrics, bounds and verdict, bound to the artifact's digest.
        typical: Metric to the (smallest, largest) value of good builds, from the policy.
        active_share: From the policy: a dimension is active from this share of the largest standard
            deviation on.
        clear_margin: From the policy: a top-1 motif is clear where it leads by this much probability.
        motif_head: The head whose agreement was judged; the release carries the same.
        origin: ``captured`` or ``synthetic``: where the windows came from.
        calibration_sha256: Digest of the windows that the ranges come from.
        evaluation_sha256: Digest of the windows that it was judged on.
        strata_by: ``labels``, or the definition of the motion strata.
        contexts: Each of ``CONTEXTS``, in that order, also those that did not run; those of
            ``TOOLCHAIN_CONTEXTS`` that the toolchain has come before ``emulator``.
        judged: The context that was judged.
        strata: The judged context by stratum.
        dimensions: The 64 latent dimensions.
        layers: Where the noise comes from; None where the toolchain cannot tell.
        findings: What the input gates warned of, calibration and evaluation set.
        tools: Versions of what fitted the head, where it was fitted.
        upstream: Asset key to digest of everything that the artifact was made from, so that other
            sources make another report even where the artifact came out the same.
    """

    schema: int
    family: str
    result: ParityResult
    typical: dict[str, tuple[float, ...]]
    active_share: float
    clear_margin: float
    motif_head: MotifHead
    origin: str
    calibration_sha256: str
    evaluation_sha256: str
    strata_by: str
    contexts: tuple[ContextResult, ...]
    judged: str
    strata: tuple[StratumResult, ...]
    dimensions: tuple[DimensionResult, ...]
    layers: LayerNoise | None
    findings: tuple[Finding, ...]
    tools: dict[str, str]
    upstream: dict[str, str]

    @property
    def active(self) -> int:
        """How many latent dimensions are active."""
        return sum(dimension.active for dimension in self.dimensions)


@dataclass(frozen=True, kw_only=True)
class ChampionComparison:
    """This build beside the release that the target's ``stable`` names; no part of a release's digest.

    Args:
        state: ``COMPARED``, ``NO_CHAMPION`` or ``ITSELF``.
        release: The champion's id; empty where there is none.
        model: Its name and version; empty where there is none.
        windows: How many windows both were compared on.
        compared_on: ``EVALUATION_WINDOWS``: the same ones judged both, SQNR of all together.
            ``GOLDEN_WINDOWS``: those that the champion carries, mean of each window's SQNR. Empty where
            there is no champion.
        sqnr_db: This build's on those windows; None where there is no champion.
        champion_sqnr_db: The champion's.
        provenance: How these two came about; empty where there is no champion.
        allowed_drop_db: From the policy.
        metrics: The champion's own recorded parity metrics, for the table.
        failures: One sentence for each thing that is worse than allowed.
    """

    state: str
    release: str
    model: str
    windows: int
    compared_on: str
    sqnr_db: float | None
    champion_sqnr_db: float | None
    provenance: str
    allowed_drop_db: float
    metrics: dict[str, float]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the comparison lets the build out; no champion is no obstacle."""
        return not self.failures


@dataclass(frozen=True, kw_only=True)
class PublicationEvidence:
    """What is kept with a publication, and what the HTML report shows."""

    schema: int
    model: str
    target: str
    parity: ParityEvidence
    champion: ChampionComparison


def of_our_schema(kind: type[T], data: bytes, where: str) -> T | None:
    """The document; None where it is of another schema, or none at all."""
    try:
        schema = json.loads(data).get("schema")
    except (ValueError, AttributeError, RecursionError):
        return None
    return from_json(kind, data, where) if schema == EVIDENCE_SCHEMA else None
