"""The parity policy: one committed file, read by those who judge and by those who publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from runtime.contract.document import sha256_file

POLICY_FILE: Final = Path(__file__).with_name("parity_policy.json")


def load_policy(path: Path = POLICY_FILE) -> dict[str, float]:
    """Metric name to smallest accepted value."""
    return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}


def policy_digest(path: Path = POLICY_FILE) -> str:
    """SHA-256 of the policy's file: part of ``parity_report``'s code version."""
    return sha256_file(path)
