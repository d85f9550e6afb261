"""The parity policy: one committed file, read by those who judge and by those who publish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.document import from_json, sha256_file
from runtime.contract.errors import ManifestError, PipelineError

POLICY_FILE: Final = Path(__file__).with_name("parity_policy.json")
FAMILY: Final = "tcn_vae"
"""The one model family that this project reads (``assets.tcn_vae``)."""
SCHEMA: Final = 2


class PolicyError(PipelineError):
    """A policy that cannot be read, or that is silent about a model family."""

    code = "policy"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What one metric must be, beside what it was in good builds.

    Args:
        at_least: Smallest accepted value, or None.
        at_most: Largest accepted value, or None.
        typical: Smallest and largest value over good builds, measured; shown, and decides nothing.
    """

    at_least: float | None
    at_most: float | None
    typical: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ManifestError("bounds nothing", where="at_least", hint="state at_least, at_most or both")
        if len(self.typical) != 2 or self.typical[0] > self.typical[1]:
            raise ManifestError(f"{self.typical} is not a smallest and a largest value", where="typical")


@dataclass(frozen=True, kw_only=True)
class FamilyPolicy:
    """How a model family is judged.

    Args:
        measured_on: What the typical values come from.
        active_share: See ``metrics.LatentScale``.
        clear_margin: Likewise.
        champion_drop_db: SQNR may be this much below the champion's on the same windows.
        metrics: Metric to its bound. With none of them nothing passes.

    Raises:
        ManifestError: A number with which nothing could be counted, or everything would pass.
    """

    measured_on: str
    active_share: float
    clear_margin: float
    champion_drop_db: float
    metrics: dict[str, Bound]

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("active_share", self.active_share, 1e-6, 1.0),
            ("clear_margin", self.clear_margin, 0.0, 1.0),
            ("champion_drop_db", self.champion_drop_db, 0.0, 20.0),
        ):
            if not least <= value <= most:
                raise ManifestError(f"{value:g} is not within {least:g} to {most:g}", where=name)

    @property
    def thresholds(self) -> dict[str, float]:
        """Metric to smallest accepted value."""
        bounds = {name: bound.at_least for name, bound in self.metrics.items()}
        return {name: value for name, value in bounds.items() if value is not None}

    @property
    def ceilings(self) -> dict[str, float]:
        """Metric to largest accepted value."""
        bounds = {name: bound.at_most for name, bound in self.metrics.items()}
        return {name: value for name, value in bounds.items() if value is not None}

    @property
    def typical(self) -> dict[str, tuple[float, ...]]:
        """Metric to the smallest and largest value over good builds."""
        return {name: bound.typical for name, bound in self.metrics.items()}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """``parity_policy.json``."""

    schema: int
    families: dict[str, FamilyPolicy]


def load_policy(path: Path = POLICY_FILE, family: str = FAMILY) -> FamilyPolicy:
    """The committed policy of a model family.

    Raises:
        PolicyError: The file is not what its schema says, or does not speak of the family.
    """
    try:
        policy = from_json(Policy, path.read_bytes(), path.name)
    except (OSError, ManifestError) as error:
        raise PolicyError(f"cannot be read: {error}", where=str(path)) from error
    if policy.schema != SCHEMA:
        raise PolicyError(f"schema {policy.schema}, expected {SCHEMA}", where=path.name)
    if family not in policy.families:
        raise PolicyError(
            f"says nothing about {family}",
            where=path.name,
            hint="a family without a policy is not judged, and what is not judged is not released",
        )
    return policy.families[family]


def policy_digest(path: Path = POLICY_FILE) -> str:
    """SHA-256 of the policy's file: part of ``parity_report``'s code version."""
    return sha256_file(path)
