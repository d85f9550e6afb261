"""What each metric is, for those who read it: name, unit, what is good, and why it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One metric in words.

    Args:
        label: How people call it.
        unit: dB, sd, LSB; empty where it is a pure number.
        digits: Decimals that it is shown with.
        good: What is good.
        meaning: What it is.
        why: Why it is there.
    """

    label: str
    unit: str
    digits: int
    good: str
    meaning: str
    why: str


GLOSSARY: Final = MappingProxyType(
    {
        "sqnr_db": Explained(
            label="SQNR",
            unit="dB",
            digits=2,
            good="higher; 6 dB are one bit",
            meaning="Power of the latent over power of the error, all 64 dimensions together.",
            why="It falls when ranges clip, also where a cosine still rises.",
        ),
        "worst_active_sqnr_db": Explained(
            label="Worst active dimension",
            unit="dB",
            digits=2,
            good="higher",
            meaning="Variance over mean squared error of the active dimension that came out worst.",
            why="One ruined dimension hides among 64 in every average.",
        ),
        "p99_error_sd": Explained(
            label="Error tail, p99",
            unit="sd",
            digits=3,
            good="lower",
            meaning="99th percentile over windows of the largest error of an active dimension, in that "
            "dimension's standard deviations.",
            why="It sees ranges that are too narrow for bursts better than any other number here.",
        ),
        "centred_cosine_p5": Explained(
            label="Centred cosine, p5",
            unit="",
            digits=4,
            good="towards 1",
            meaning="5th percentile over windows of the cosine, once full_precision's mean is taken off.",
            why="Without the mean that all windows share, it tells them apart; it falls first on still ones.",
        ),
        "mean_shift_sd": Explained(
            label="Mean shift",
            unit="sd",
            digits=4,
            good="lower",
            meaning="Largest mean error of an active dimension, in its standard deviations.",
            why="A constant offset moves every window across the same motif border.",
        ),
        "gain": Explained(
            label="Gain",
            unit="",
            digits=4,
            good="at 1",
            meaning="Slope of the artifact's latents over full_precision's in the active dimensions.",
            why="Below 1, large values are clipped; no cosine sees that.",
        ),
        "kmeans_agreement": Explained(
            label="k-means agreement",
            unit="",
            digits=4,
            good="towards 1",
            meaning="Share of windows whose nearest of 12 cluster centres of full_precision is the same.",
            why="What becomes of the latents downstream, without a trained head.",
        ),
        "motif_top1_clear": Explained(
            label="Top-1 motif, clear windows",
            unit="",
            digits=4,
            good="towards 1",
            meaning="Share of windows with the same best motif, where full_precision's own margin is clear.",
            why="A window between two motifs may fall to either side; one that is clear may not.",
        ),
        "motif_top1_agreement": Explained(
            label="Top-1 motif, all windows",
            unit="",
            digits=4,
            good="towards 1",
            meaning="Share of windows with the same best motif, the undecided ones among them.",
            why="Shown beside the clear ones; too noisy to be a gate.",
        ),
        "mean_cosine": Explained(
            label="Mean cosine",
            unit="",
            digits=4,
            good="towards 1",
            meaning="Mean over windows of the cosine between the two latents.",
            why="The contract's headline, and no gate: unrelated windows reach 0.97, so 0.95 says "
            "little, and ranges that are too narrow can raise it.",
        ),
        "max_abs": Explained(
            label="Largest difference",
            unit="latent units",
            digits=4,
            good="lower",
            meaning="Largest absolute difference of any dimension in any window.",
            why="For contexts that should be the same but for rounding.",
        ),
        "lsb_from_emulator": Explained(
            label="Steps from the emulator",
            unit="LSB",
            digits=0,
            good="0; up to 2 on other kernels",
            meaning="Largest difference from the toolchain's own emulation, in steps of the 8-bit output.",
            why="The engine must run what was compiled, and nothing else.",
        ),
    }
)
"""In the order in which a reader needs them: those that see most come first."""


def explained(name: str) -> Explained:
    """The metric in words; one that is not known yet is shown by its name."""
    unit, digits = ("dB", 2) if name.endswith("_db") else ("", 4)
    unknown = Explained(label=name, unit=unit, digits=digits, good="", meaning="", why="")
    return GLOSSARY.get(name, unknown)


def in_order(names: set[str]) -> list[str]:
    """Metric names in the glossary's order, unknown ones last."""
    known = [name for name in GLOSSARY if name in names]
    return known + sorted(names - set(known))
