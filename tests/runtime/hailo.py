"""What the tests of the HailoRT engine share: releases for a chip, and the engine on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.contract.store import Release
from runtime.engines.hailo import HailoEngine
from tests.doubles.hailo import HailoDouble
from tests.simulators import ReleaseSimulator


def hailo_release(root: Path, **changes: Any) -> Release:
    """A published release for ``hailo8``."""
    return ReleaseSimulator(target="hailo8", **changes).publish(root, "stable")


def placed(root: Path, hef: bytes) -> Release:
    """A release of a HEF that no gate would let out."""
    return ReleaseSimulator(target="hailo8", hef=hef).place(root)


def open_on(chip: HailoDouble, release: Release) -> HailoEngine:
    """The engine under test, its lock in the chip's own folder."""
    return HailoEngine(release, chip.folder)
