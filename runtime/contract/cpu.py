"""Which integer kernels a CPU runs: on the same ones, an int8 artifact gives the same integers."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

_X86: Final = ("x86_64", "AMD64", "i686")
_VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})
_ARM_DOT: Final = "asimddp"


def this_cpu() -> tuple[str, frozenset[str]]:
    """Architecture and flags of this machine's CPU; no flags where the system does not list them."""
    flags: set[str] = set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags.update(value.split())
    return platform.machine(), frozenset(flags)


def this_machine() -> str:
    """The board where it says one, the CPU's name where it does, and how many cores this process may use."""
    names = []
    for path, mark in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            text = Path(path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
        found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(mark)]
        names += found[:1] if mark else [text]
    return ", ".join([*names, platform.machine(), f"{len(os.sched_getaffinity(0))} cores"])


def is_x86(architecture: str) -> bool:
    """Whether ``platform.machine()`` names an x86."""
    return architecture in _X86


def has_vnni(flags: frozenset[str]) -> bool:
    """Whether u8 x s8 products are summed in 32 bits, without saturation on the way."""
    return bool(flags & _VNNI)


def kernel_family(architecture: str, flags: frozenset[str]) -> str:
    """Name of the integer kernels that ONNX Runtime picks on a CPU.

    Args:
        architecture: As ``platform.machine()`` says.
        flags: As /proc/cpuinfo lists them.

    Returns:
        ``x86-64-vnni``, ``x86-64``, ``aarch64-dot``, ``aarch64``, or the architecture's own name.
    """
    if is_x86(architecture):
        return "x86-64-vnni" if has_vnni(flags) else "x86-64"
    if architecture in ("aarch64", "arm64"):
        return "aarch64-dot" if _ARM_DOT in flags else "aarch64"
    return architecture or "unknown"
