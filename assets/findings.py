"""What a gate says of one set: who says it, whether it refuses, and of which set."""

from __future__ import annotations

from typing import Final

from runtime.contract.parity import Finding

REFUSE: Final = "refuse"
WARN: Final = "warn"


def make_finding(
    check: str, severity: str, channel: str, name: str, measured: str, expected: str, cause: str
) -> Finding:
    """One finding about the set ``name``."""
    return Finding(
        check=check,
        severity=severity,
        channel=channel,
        measured=f"{name}: {measured}",
        expected=expected,
        cause=cause,
    )
