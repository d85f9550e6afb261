"""Services that several test modules ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.engines.emulator import EmulatorEngine
from tests.doubles.hailo import HailoDouble
from tests.runtime.service import NO_RELEASE, Service
from tests.simulators import ReleaseSimulator, RuntimeServer, running_server


@pytest.fixture(name="service", scope="module")
def a_service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    release = ReleaseSimulator().publish(tmp_path_factory.mktemp("store"))
    return Service(ModelHolder(ActiveModel(release, EmulatorEngine(release))))


@pytest.fixture(name="without_model")
def a_service_without_model() -> Service:
    return Service(ModelHolder(NO_RELEASE))


@pytest.fixture(name="server", scope="module")
def a_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeServer]:
    store = tmp_path_factory.mktemp("store")
    ReleaseSimulator().publish(store, "stable")
    with running_server(store, RELEASE_STORE=str(store), NUM_MOTIFS="12") as server:
        yield server


@pytest.fixture(name="chip")
def a_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HailoDouble]:
    """A chip in this process; whatever a test does, it is let go as HailoRT wants it."""
    double = HailoDouble(tmp_path / "chip", configure_ms=0)
    double.install(monkeypatch)
    yield double
    events = [line.split()[0] for line in double.journal()]
    assert events == ["open", "release"] * (len(events) // 2)
