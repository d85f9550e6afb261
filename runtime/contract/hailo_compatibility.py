"""What fits together at Hailo, as data: chips, architectures in files, compilers, HailoRT, drivers.

Sources: HailoRT 4.23 (which device takes which file, which version reads which header) and the
Hailo Model Zoo's release notes (which compiler was released with which HailoRT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from runtime.contract.hef_errors import HailoVersionError, HefArchitectureError
from runtime.contract.hef_file import HefFile

Version = tuple[int, int]
"""Major and minor."""

DEVICES: Final[Mapping[str, str]] = {"hailo8": "HAILO8", "hailo8l": "HAILO8L"}
"""Target to its device, as HailoRT names it."""
TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "HAILO8": ("HAILO8P", "HAILO8R", "HAILO8L"),
    "HAILO8L": ("HAILO8L",),
}
"""Device to the architectures it takes. ``HAILO8`` in a file (the number 0) is taken by none:
``--hw-arch hailo8`` writes ``HAILO8P``."""
SLOWER: Final = (("HAILO8", "HAILO8L"),)
"""Device and architecture that work together, below what the device can do."""
HEADER_SINCE: Final[Mapping[int, Version]] = {0: (4, 0), 1: (4, 0), 2: (4, 20), 3: (4, 21)}
"""Header version to the first HailoRT that reads it."""
HAILORT_LINE: Final[Mapping[str, int]] = {"hailo8": 4, "hailo8l": 4}
"""Target to the major version of HailoRT that drives its chip; 5 drives Hailo-10 and Hailo-15."""
SUPPORTED_HAILORT: Final[tuple[Version, Version]] = ((4, 20), (4, 23))
"""First and last HailoRT whose interface this project knows."""
RELEASED_WITH: Final[Mapping[Version, Version]] = {
    (3, 27): (4, 17),
    (3, 28): (4, 18),
    (3, 29): (4, 19),
    (3, 30): (4, 20),
    (3, 31): (4, 21),
    (3, 32): (4, 22),
    (3, 33): (4, 23),
}
"""Dataflow Compiler to the HailoRT it was released with, which is the oldest sure to read its files."""
_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})(?![0-9])")


def parse_version(text: str, what: str) -> Version:
    """Major and minor of a version such as ``4.23.0``; ``what`` is for the message.

    Raises:
        HailoVersionError: It does not begin with two numbers.
    """
    found = _VERSION.match(text)
    if not found:
        raise HailoVersionError(f"{text[:60]!r} is no version", where=what)
    return int(found[1]), int(found[2])


def driver_version(root: Path = Path("/")) -> str:
    """Version of the loaded driver of the PCIe device; empty where there is none.

    Args:
        root: Where ``/sys`` is.
    """
    try:
        return (root / "sys/module/hailo_pci/version").read_text().strip()
    except OSError:
        return ""


def device_of(target: str) -> str:
    """Name of a hardware target's device; HefArchitectureError where the target is none."""
    if target not in DEVICES:
        raise HefArchitectureError(f"no device is known for target {target!r}", where=target)
    return DEVICES[target]


def check_architecture(hef: HefFile, device: str, where: str) -> tuple[str, ...]:
    """Refuse a HEF for another chip than the device.

    Args:
        hef: What was read.
        device: As HailoRT names it, or ``device_of(target)``.
        where: How errors name the file.

    Returns:
        A sentence where it works, but not as fast as it could.

    Raises:
        HefArchitectureError: The device does not take it; says what it takes.
    """
    taken = TAKES.get(device)
    if taken is None:
        raise HefArchitectureError(
            f"the device is {device}, this project knows {', '.join(TAKES)}", where=where
        )
    if hef.architecture not in taken:
        raise HefArchitectureError(
            f"was compiled for {hef.architecture}, a {device} takes {', '.join(taken)}",
            where=where,
            hint=f"compile it with hw_arch={device.lower()}",
        )
    if (device, hef.architecture) in SLOWER:
        return (
            f"was compiled for {hef.architecture}: a {device} runs it, more slowly than one compiled for it",
        )
    return ()


def check_hailort(hailort: str, target: str) -> None:
    """Refuse a HailoRT that does not drive the target's chip, or that this project does not know.

    Raises:
        HailoVersionError: Names the version and those that would do.
    """
    version = parse_version(hailort, "HailoRT")
    device = device_of(target)
    first, last = SUPPORTED_HAILORT
    supported = f"{_text(first)} to {_text(last)}"
    if version[0] != HAILORT_LINE[target]:
        raise HailoVersionError(
            f"version {hailort} does not drive a {device}",
            where="HailoRT",
            hint=f"install {supported}; the line {HAILORT_LINE[target]}.x is the one for this chip",
        )
    if not first <= version <= last:
        raise HailoVersionError(
            f"version {hailort} is not one that this project knows",
            where="HailoRT",
            hint=f"install {supported}",
        )


def check_header(hef: HefFile, hailort: str, where: str) -> None:
    """Refuse a HEF whose header this HailoRT cannot read.

    Raises:
        HailoVersionError: Says from which version on it can be read.
    """
    since = HEADER_SINCE[hef.header_version]
    if parse_version(hailort, "HailoRT") < since:
        raise HailoVersionError(
            f"has header version {hef.header_version}, HailoRT {hailort} does not read it",
            where=where,
            hint=f"HailoRT {_text(since)} or newer does",
        )


def released_with(dfc: str) -> str:
    """Which HailoRT a compiler was released with, as the rest of a sentence; empty where not known."""
    found = _VERSION.match(dfc)
    hailort = RELEASED_WITH.get((int(found[1]), int(found[2]))) if found else None
    return f"; its compiler was released with {_text(hailort)}" if hailort else ""


def version_findings(dfc: str = "", hailort: str = "", driver: str = "", firmware: str = "") -> list[str]:
    """What does not fit together, one sentence each; an empty version is not looked at.

    Args:
        dfc: Of the Dataflow Compiler, ``HefFile.dfc_version`` or what is installed.
        hailort: Of the library.
        driver: Of the kernel's driver.
        firmware: Of the device.

    Raises:
        HailoVersionError: A version is none.
    """
    found = [
        f"{name} {version}, HailoRT {hailort}: they must be the same version"
        for name, version in (("driver", driver), ("firmware", firmware))
        if version and hailort and _core(version) != _core(hailort)
    ]
    if not dfc:
        return found
    compiler = parse_version(dfc, "Dataflow Compiler")
    released_with = RELEASED_WITH.get(compiler)
    if compiler[0] > 3:
        found.append(f"Dataflow Compiler {dfc} is of the line for Hailo-10 and Hailo-15, not for Hailo-8")
    elif released_with is None:
        found.append(f"Dataflow Compiler {dfc}: which HailoRT it was released with is not known here")
    elif hailort and parse_version(hailort, "HailoRT") < released_with:
        found.append(
            f"Dataflow Compiler {dfc} was released with HailoRT {_text(released_with)}; {hailort} is older "
            "and may refuse its files"
        )
    return found


def _core(version: str) -> str:
    """``4.23.0`` of ``4.23.0-rc1 (release,app)``."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return found.group() if found else version


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
