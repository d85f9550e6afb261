"""The gate: what lets a release out, held by the publisher and again by whoever loads it."""

from __future__ import annotations

from runtime.contract.errors import PublicationRefusedError
from runtime.contract.release import Manifest


def check_publishable(manifest: Manifest) -> None:
    """Let a release out only with a passed parity about this very artifact.

    The verdict is worked out again from the recorded numbers: a report that merely says
    ``passed`` is not believed, and a policy without thresholds refuses.

    Raises:
        PublicationRefusedError: Parity is missing, failed, about other bytes, or was judged by
            nothing.
    """
    parity = manifest.parity
    if parity.artifact_sha256 != manifest.primary.sha256:
        raise PublicationRefusedError(
            f"parity was computed on {parity.artifact_sha256[:12]}, the artifact is "
            f"{manifest.primary.sha256[:12]}",
            where="parity.artifact_sha256",
            hint="materialize parity_report for this artifact",
        )
    missed = missed_bounds(parity.metrics, parity.thresholds, parity.ceilings)
    if not parity.passed or missed or parity.failures:
        reasons = "; ".join(dict.fromkeys((*parity.failures, *missed))) or "the report says failed"
        raise PublicationRefusedError(f"parity failed: {reasons}", where="parity")
    if parity.windows < 1:
        raise PublicationRefusedError("parity was judged on no window", where="parity.windows")


def missed_bounds(
    metrics: dict[str, float], thresholds: dict[str, float], ceilings: dict[str, float]
) -> tuple[str, ...]:
    """One sentence for each bound that is missed; a missing metric and no policy miss too."""
    if not thresholds and not ceilings:
        return ("the policy has no thresholds",)
    missed = []
    for name in sorted({*thresholds, *ceilings}):
        value = metrics.get(name)
        if value is None:
            missed.append(f"{name} was not computed")
            continue
        least, most = thresholds.get(name), ceilings.get(name)
        if least is not None and not value >= least:
            missed.append(f"{name} is {value:.4g}, at least {least:.4g} is required")
        if most is not None and not value <= most:
            missed.append(f"{name} is {value:.4g}, at most {most:.4g} is allowed")
    return tuple(missed)
