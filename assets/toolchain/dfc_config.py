"""What is asked of the Dataflow Compiler: a typed configuration, and the model script that says the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.errors import ManifestError

CONFIG: Final = Path(__file__).with_name("dfc_config.json")
RECOMMENDED_WINDOWS: Final = 1024
"""Below it the DFC lowers the optimization level where it has no GPU, and fine-tunes on less."""
HIGHEST_LEVEL: Final = 4
VERBS: Final = ("compile", "infer", "optimize", "parse", "versions")
CALLS: Final = {"compile": 1, "infer": 5, "optimize": 1, "parse": 3, "versions": 4}
"""How often a run of the whole chain asks for each verb, at most, for one target."""
_COMPILER_LEVELS: Final = ("", "max")


@dataclass(frozen=True, kw_only=True)
class DfcConfig:
    """One file, ``dfc_config.json``: to change what is built is to change it, and shows in the record.

    Args:
        optimization_level: 0 to 4; from 1 on the DFC wants a GPU. 1 corrects biases, 2 and 3 fine-tune,
            4 rounds adaptively.
        compression_level: 0 keeps 8-bit weights; more turns a growing share into 4 bits.
        calibration_batch: Windows at a time while ranges are collected.
        calibration_windows: How many the ranges come from; the set must have as many.
        compiler_optimization: Empty, or ``max``: hours for a network that maps better.
        accepted: Names of degradations (``dfc_log``) that may happen; whatever else does fails the build.
        seconds: How long each of the worker's verbs may take.
    """

    optimization_level: int
    compression_level: int
    calibration_batch: int
    calibration_windows: int
    compiler_optimization: str
    accepted: tuple[str, ...]
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        for field, value, most in (
            ("optimization_level", self.optimization_level, HIGHEST_LEVEL),
            ("compression_level", self.compression_level, 5),
        ):
            if not 0 <= value <= most:
                raise ManifestError(f"{value} is not within 0 to {most}", where=field)
        for field, value in (
            ("calibration_batch", self.calibration_batch),
            ("calibration_windows", self.calibration_windows),
        ):
            if value < 1:
                raise ManifestError(f"{value} is not above zero", where=field)
        if self.compiler_optimization not in _COMPILER_LEVELS:
            raise ManifestError(
                f"{self.compiler_optimization!r} is none of {_COMPILER_LEVELS}", where="compiler_optimization"
            )
        if sorted(self.seconds) != list(VERBS) or min(self.seconds.values()) <= 0:
            raise ManifestError(f"does not say above zero for each of {', '.join(VERBS)}", where="seconds")


def load_config(path: Path = CONFIG) -> DfcConfig:
    """Read the configuration; ManifestError names the field that is wrong."""
    return from_json(DfcConfig, path.read_bytes(), path.name)


def most_seconds(config: DfcConfig) -> float:
    """How long the DFC may take for one target in a run of the whole chain: a limit on runs must be above."""
    return sum(config.seconds[verb] * calls for verb, calls in CALLS.items())


def model_script(config: DfcConfig) -> str:
    """The DFC's model script (.alls) for a configuration: equal ones give equal text.

    No ``normalization``: the host normalizes, with the statistics of the release's manifest.
    """
    lines = [
        f"model_optimization_flavor(optimization_level={config.optimization_level}, "
        f"compression_level={config.compression_level})",
        f"model_optimization_config(calibration, batch_size={config.calibration_batch}, "
        f"calibset_size={config.calibration_windows})",
    ]
    if config.compiler_optimization:
        lines.append(f"performance_param(compiler_optimization_level={config.compiler_optimization})")
    return "\n".join(lines) + "\n"


def recorded(config: DfcConfig, target: str) -> dict[str, str]:
    """What a release says of the configuration; patience is no part of it."""
    return {
        "accepted": ", ".join(sorted(config.accepted)) or "nothing",
        "calibration_windows": str(config.calibration_windows),
        "compression_level": str(config.compression_level),
        "hw_arch": target,
        "optimization_level": str(config.optimization_level),
        "script_sha256": sha256_bytes(model_script(config).encode()),
    }
