"""What the tests of the HailoRT engine share: a chip's double, and releases for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.contract.store import Release
from runtime.engines.hailo import HailoEngine
from tests.doubles.hailo import HailoDouble
from tests.simulators import ReleaseSimulator


@pytest.fixture(name="chip")
def a_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HailoDouble]:
    """A chip in this process; whatever a test does, it is let go as HailoRT wants it."""
    double = HailoDouble(tmp_path / "chip", configure_ms=0)
    double.install(monkeypatch)
    yield double
    events = [line.split()[0] for line in double.journal()]
    assert events == ["open", "release"] * (len(events) // 2)


def hailo_release(root: Path, **changes: Any) -> Release:
    """A published release for ``hailo8``."""
    return ReleaseSimulator(target="hailo8", **changes).publish(root, "stable")


def placed(root: Path, hef: bytes) -> Release:
    """A release of a HEF that no gate would let out."""
    return ReleaseSimulator(target="hailo8", hef=hef).place(root)


def open_on(chip: HailoDouble, release: Release) -> HailoEngine:
    """The engine under test, its lock in the chip's own folder."""
    return HailoEngine(release, chip.folder)
