"""What the Dataflow Compiler's log admits: it gives a HEF also where it did less than it was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from assets.toolchain.dfc_config import RECOMMENDED_WINDOWS, DfcConfig
from assets.toolchain.dfc_errors import DfcDegradedError

_REDUCED: Final = re.compile(r"reducing optimization level to (-?\d+)", re.IGNORECASE)
_NO_GPU: Final = re.compile(
    r"no available gpu|no gpu|gpu[s]? (?:is|are|was) not (?:found|available)", re.IGNORECASE
)
_LESS_DATA: Final = re.compile(
    r"less data than|using dataset with (\d+) entries for calibration", re.IGNORECASE
)
_SKIPPED: Final = re.compile(r"\b([A-Za-z][A-Za-z -]*?) skipped\b", re.IGNORECASE)
_WARNING: Final = re.compile(r"\[warning\]|\bwarning\b", re.IGNORECASE)
_LESS: Final = re.compile(r"\bskip(?:ped|ping)|\bless data\b|\bfewer\b", re.IGNORECASE)
_LEVEL_OR_GPU: Final = re.compile(r"optimi[sz]ation level|\bgpus?\b", re.IGNORECASE)
_HARMLESS: Final = re.compile(r"reducing compression level", re.IGNORECASE)
"""Of warnings that would look like a degradation: with ``compression_level`` 0 there is nothing to lose."""
UNKNOWN: Final = "unknown"
_CUT: Final = re.compile(r"training cut by the user", re.IGNORECASE)
_WANTED: Final[Mapping[int, tuple[str, ...]]] = {
    0: (),
    1: ("bias correction",),
    2: ("quantization-aware fine-tuning",),
    3: ("quantization-aware fine-tuning",),
    4: ("adaround",),
}
"""What a level is for. The log calls everything skipped that another level would have done."""


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """Something that was done worse than asked.

    Args:
        name: By which the configuration may accept it: ``optimization_level_0``, ``no_gpu``,
            ``few_calibration_windows``, ``skipped_adaround``, ``training_cut``,
            ``gpu_unknown``, ``unrecognized_warning``, ...
        said: The DFC's own line, or what was counted.
    """

    name: str
    said: str


def degradations(
    log: Sequence[str], config: DfcConfig, *, gpus: str | None = None, windows: int | None = None
) -> tuple[Degradation, ...]:
    """Everything that a log of ``optimize`` and the facts beside it admit, each once, sorted by name.

    Args:
        log: Its lines.
        config: What was asked for.
        gpus: How many GPUs the DFC saw, as the worker told, or ``UNKNOWN``; None where that is not the
            question.
        windows: How many calibration windows it got; None where that is not the question.
    """
    found: dict[str, str] = {}
    if config.optimization_level > 0 and gpus == "0":
        found["no_gpu"] = "the DFC sees no GPU"
    if config.optimization_level > 0 and gpus == UNKNOWN:
        found["gpu_unknown"] = "nobody could tell whether the DFC sees a GPU"
    if windows is not None and min(windows, config.calibration_windows) < RECOMMENDED_WINDOWS:
        found["few_calibration_windows"] = (
            f"{min(windows, config.calibration_windows)} windows, {RECOMMENDED_WINDOWS} are recommended"
        )
    for line in log:
        for name in _admitted(line, config):
            found.setdefault(name, line)
    return tuple(Degradation(name=name, said=said) for name, said in sorted(found.items()))


def _admitted(line: str, config: DfcConfig) -> list[str]:
    names: list[str] = []
    if reduced := _REDUCED.search(line):
        names.append(f"optimization_level_{reduced[1]}")
    if config.optimization_level > 0 and _NO_GPU.search(line):
        names.append("no_gpu")
    if (less := _LESS_DATA.search(line)) and (less[1] is None or int(less[1]) < config.calibration_windows):
        names.append("few_calibration_windows")
    if _CUT.search(line):
        names.append("training_cut")
    for skipped in _SKIPPED.findall(line.partition("]")[2] or line):
        algorithm = skipped.strip().lower()
        if algorithm in _WANTED[config.optimization_level]:
            names.append("skipped_" + re.sub(r"[ -]+", "_", algorithm))
    if not names and _WARNING.search(line) and _is_suspicious(line, config):
        names.append("unrecognized_warning")
    return names


def _is_suspicious(line: str, config: DfcConfig) -> bool:
    """Whether a warning may be a degradation in words that nobody has published."""
    if _HARMLESS.search(line):
        return False
    return bool(_LESS.search(line) or (config.optimization_level > 0 and _LEVEL_OR_GPU.search(line)))


def check_accepted(found: Sequence[Degradation], config: DfcConfig) -> None:
    """Refuse what nobody accepted by name.

    Raises:
        DfcDegradedError: Names every degradation that was not, with what was said.
    """
    strangers = [each for each in found if each.name not in config.accepted]
    if strangers:
        names = ", ".join(f'"{each.name}"' for each in strangers)
        raise DfcDegradedError(
            "the model was quantized worse than asked: "
            + "; ".join(f"{e.name} ({e.said})" for e in strangers),
            where="assets/toolchain/dfc_config.json",
            hint="build where there is a GPU and enough windows, or accept it by name: put "
            f"{names} into `accepted`",
        )


def as_text(found: Sequence[Degradation]) -> str:
    """For a product's facts: what was accepted, with the DFC's words."""
    return "; ".join(f"{each.name}: {each.said}" for each in found) or "none"
