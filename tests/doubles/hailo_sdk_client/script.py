"""Reads a model script as strictly as a double can, and prints what the real optimizer prints about it."""

import os
import re
import sys
import types

from .exceptions import AllocatorScriptParserException

_COMMAND = re.compile(r"(?:\w+ = )?(\w+)\((.*)\)")
_KNOWN = {
    "model_optimization_flavor": {"optimization_level", "compression_level"},
    "model_optimization_config": {"batch_size", "calibset_size", "policy"},
    "performance_param": {"compiler_optimization_level"},
}
_SKIPPED = ("Finetune encoding", "Bias Correction", "Adaround", "Quantization-Aware Fine-Tuning")
_DONE = {1: "Bias Correction", 2: "Quantization-Aware Fine-Tuning", 3: "Quantization-Aware Fine-Tuning"}
_DONE[4] = "Adaround"
NO_TENSORFLOW = os.environ.get("DFC_DOUBLE_TENSORFLOW") == "0"
GPU = os.environ.get("DFC_DOUBLE_GPU", "1") == "1"
RECOMMENDED = 1024


def parse(text: str) -> "dict[str, str]":
    """Arguments of all commands."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _COMMAND.fullmatch(line)
        if not match or match[1] not in _KNOWN:
            raise AllocatorScriptParserException(f"Invalid command: {line}")
        for argument in match[2].split(","):
            name, equals, value = argument.strip().partition("=")
            if equals and name not in _KNOWN[match[1]]:
                raise AllocatorScriptParserException(f"{match[1]} has no argument {name}")
            found[name] = value
    return found


def narrate(text: str, entries: int) -> None:
    """The lines by which the real one admits what it did not do."""
    asked = parse(text)
    level, size = int(asked.get("optimization_level", 2)), int(asked.get("calibset_size", 64))
    few = entries < RECOMMENDED
    if level > 0 and not GPU:
        data = "there's less data than the recommended amount (1024), and " if few else ""
        print(
            "\x1b[33m[warning] Reducing optimization level to 0 (the accuracy won't be optimized and "
            f"compression won't be used) because {data}there's no available GPU\x1b[0m",
            flush=True,
        )
        level = 0
    print(f"[info] Using dataset with {min(size, entries)} entries for calibration")
    print("\r".join(f"Calibration: {percent}%" for percent in (0, 50, 100)), flush=True)
    for name in _SKIPPED:
        done = name == _DONE.get(level) and os.environ.get("DFC_DOUBLE_SKIPS") != name
        print(f"[info] Starting {name}" if done else f"[info] {name} skipped", flush=True)
    if os.environ.get("DFC_DOUBLE_CUT"):
        print("[warning] Training cut by the user, proceed at your own peril", flush=True)


def load_tensorflow() -> None:
    """What the DFC imports besides: as much of TensorFlow as says which GPUs there are."""
    if NO_TENSORFLOW:
        return
    module = types.ModuleType("tensorflow")
    listed = ["GPU:0"] if GPU else []
    module.config = types.SimpleNamespace(  # type: ignore[attr-defined]
        list_physical_devices=lambda kind: listed if kind == "GPU" else []
    )
    sys.modules["tensorflow"] = module
