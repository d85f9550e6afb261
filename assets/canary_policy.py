"""The policy on canaries: one committed file, beside the parity policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.errors import ManifestError, PipelineError
from runtime.contract.files import read_bounded
from runtime.contract.verdict import HOLD, MOST_AGE, ROLL_BACK

POLICY_FILE: Final = Path(__file__).with_name("canary_policy.json")
SCHEMA: Final = 1
_MOST_BYTES: Final = 64 * 1024


class CanaryPolicyError(PipelineError):
    """A policy on canaries that cannot be read, or by which anything would pass."""

    code = "canary_policy"


@dataclass(frozen=True, kw_only=True)
class CanaryPolicy:
    """What a canary must have shown.

    Args:
        schema: ``SCHEMA``.
        least_minutes: For how long it must have run.
        least_windows: How many windows it must have run, golden ones among them; fewer of stable's are no
            base.
        error_share: Requests that may have failed, a share.
        late_share: Requests that may have taken longer than EdgeInfer's 45 ms, a share.
        ratio_to_stable: How much longer its p95 and p99 may be than stable's, where both serve clients.
        shadow_ratio_to_stable: The same of its engine alone, CPU time beside stable.
        p95_floor_ms: Below this nothing is slow, whatever stable takes.
        p95_distance: 95 of 100 latents may be this far from stable's, as 1 - cosine, from the same graph.
        motif_disagreement: Share of clear motifs that may differ from stable's, from the same graph and head.
        clear_share_windows: Fewer clear motifs than this are no share, and are only shown.
        missing: What follows from what is not known: ``hold`` or ``roll_back``. What is only too little yet
            holds, and so does everything until canary has named the release for ``least_minutes``.
        good_for_minutes: For how long a verdict counts.
        window_minutes: How far back Prometheus is asked, and never beyond canary's entry.
        roll_back_by_itself: Whether canary returns to the release before without a person.

    Raises:
        ManifestError: A number by which nothing could be judged, or everything would pass.
    """

    schema: int
    least_minutes: float
    least_windows: int
    error_share: float
    late_share: float
    ratio_to_stable: float
    shadow_ratio_to_stable: float
    p95_floor_ms: float
    p95_distance: float
    motif_disagreement: float
    clear_share_windows: int
    missing: str
    good_for_minutes: float
    window_minutes: float
    roll_back_by_itself: bool

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {SCHEMA}", where="schema")
        if self.missing not in (HOLD, ROLL_BACK):
            raise ManifestError(f"{self.missing[:40]!r} is none of hold, roll_back", where="missing")
        longest = MOST_AGE.total_seconds() / 60
        for field, least, most in (
            ("least_minutes", 0.01, longest),
            ("least_windows", 1, 10**9),
            ("error_share", 0.0, 0.5),
            ("late_share", 0.0, 0.5),
            ("ratio_to_stable", 1.0, 100.0),
            ("shadow_ratio_to_stable", 1.0, 1000.0),
            ("p95_floor_ms", 0.0, 45.0),
            ("p95_distance", 0.0, 1.0),
            ("motif_disagreement", 0.0, 0.5),
            ("clear_share_windows", 1, 10**9),
            ("good_for_minutes", 0.01, longest),
            ("window_minutes", 1.0, longest),
        ):
            if not least <= getattr(self, field) <= most:
                raise ManifestError(f"{getattr(self, field)} is not within {least} to {most}", where=field)


def load_canary_policy(path: Path = POLICY_FILE) -> tuple[CanaryPolicy, str]:
    """The policy, and the SHA-256 of its bytes.

    Raises:
        CanaryPolicyError: It cannot be read, or bounds nothing.
    """
    try:
        data = read_bounded(path, _MOST_BYTES)
        return from_json(CanaryPolicy, data, str(path)), sha256_bytes(data)
    except (OSError, ManifestError) as error:
        raise CanaryPolicyError(
            f"{error}", where=str(path), hint="restore it from version control, or state every bound"
        ) from error
