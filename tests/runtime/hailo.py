"""What the tests of the HailoRT engine share: releases for a chip, and the engine on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.contract.store import Release
from runtime.engines.hailo import HailoEngine
from runtime.engines.hailo_device import HailoDevice
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


class WatchedTurn:
    """A device's turn that tells how many wait for it, and for how long each that had to asked at most."""

    def __init__(self, device: HailoDevice) -> None:
        self._lock, self.waiting = device.turn, 0
        self.timeouts: list[float] = []
        device.turn = self  # type: ignore[misc, assignment]

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As a lock's."""
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        self.timeouts.append(timeout)
        self.waiting += 1
        try:
            return self._lock.acquire(blocking, timeout)
        finally:
            self.waiting -= 1

    def release(self) -> None:
        """As a lock's."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()
