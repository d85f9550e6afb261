"""Temperature and power: read by another process, shown while they are true, and never in the way."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from runtime import device_readings
from runtime.device_readings import DeviceReading, DeviceReadings, ReadingError
from runtime.metrics import RuntimeMetrics
from tests.doubles.hailo import HailoDouble

GOOD = '{"architecture": "hailo8", "firmware": "4.23.0", "serial": "S", "celsius": [40, 41.5], "watts": null}'
TEMPERATURE = "hailo_device_temperature_celsius"


class Station:
    """Readings with what they showed."""

    def __init__(self, *command: str, deadline: float = 30.0) -> None:
        self.served = True
        self.metrics = RuntimeMetrics()
        self.readings = DeviceReadings(
            lambda: self.served,
            self.metrics.show_device,
            self.metrics.reading_failed,
            command or device_readings.COMMAND,
            deadline,
        )

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    @property
    def failures(self) -> float | None:
        return self.sample("hailo_device_reading_errors_total")


@pytest.fixture(name="double")
def a_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HailoDouble:
    double = HailoDouble(tmp_path / "chip")
    for name, value in double.environment.items():
        monkeypatch.setenv(name, value)
    return double


def test_what_was_read_is_shown_and_the_reader_stays(double: HailoDouble) -> None:
    station = Station()
    station.readings.step()
    assert station.sample(TEMPERATURE, sensor="ts0") == 41.5
    assert station.sample(TEMPERATURE, sensor="ts1") == 43.25
    assert station.sample("hailo_device_power_watts") == 1.75
    labels = {"architecture": "hailo8", "firmware": "4.23.0", "serial": "HLLWM2B000000042"}
    assert station.sample("hailo_device_info", **labels) == 1
    child = station.readings._child
    double.set(temperature=[50.0, 51.0], power_status=18)
    station.readings.step()
    assert station.readings._child is child
    assert station.sample(TEMPERATURE, sensor="ts0") == 50.0
    assert station.sample("hailo_device_power_watts") is None  # this board has no sensor
    assert double.journal() == []  # it never opened the chip to run something
    station.readings.stop()
    assert child is not None
    assert child.returncode is not None


@pytest.mark.parametrize("broken", [{"temperature_status": 18}, {"identify_status": 2}, {"devices": []}])
def test_a_failure_is_counted_and_logged_once(
    double: HailoDouble, broken: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    station = Station()
    station.readings.step()
    double.set(**broken)
    with caplog.at_level(logging.WARNING, "runtime.device"):
        for _ in range(3):
            station.readings.step()
    assert station.failures == 3
    assert len(caplog.records) == 1
    assert station.sample(TEMPERATURE, sensor="ts0") is None  # what was true before is not shown as now
    station.readings.stop()


def test_a_reader_that_hangs_is_killed(double: HailoDouble) -> None:
    double.set(reading_hangs=True)
    station = Station(deadline=1.0)
    station.readings.step()
    assert station.failures == 1
    assert station.readings._child is None


@pytest.mark.parametrize("program", ["print('nonsense', flush=True); input()", "exit(3)", "print('{}')"])
def test_a_reader_that_breaks_is_a_failure(program: str) -> None:
    station = Station(sys.executable, "-c", f"input(); {program}")
    station.readings.step()
    assert station.failures == 1
    assert station.readings._child is None


def test_a_reader_that_cannot_start_is_a_failure() -> None:
    station = Station("/nowhere/python")
    station.readings.step()
    assert station.failures == 1


def test_without_a_chip_there_is_no_reader_and_no_metric() -> None:
    station = Station("/nowhere/python")
    station.served = False
    station.readings.step()
    assert station.failures == 0
    assert b"hailo_device_temperature" not in generate_latest(station.metrics.registry)
    assert b"hailo_device_info" not in generate_latest(station.metrics.registry)


def test_the_reader_ends_with_its_parent(double: HailoDouble) -> None:
    """Killed or not, its input ends: nothing is left that has the device open."""
    station = Station()
    station.readings.step()
    child = station.readings._child
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(30) == 0
    station.readings.step()
    assert station.readings._child is not child
    station.readings.stop()


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", GOOD.replace("40", "NaN"), GOOD.replace("null", "Infinity")]
)
def test_what_is_no_reading_is_refused(line: str) -> None:
    assert DeviceReading.parse(GOOD).celsius == (40, 41.5)
    with pytest.raises(ReadingError):
        DeviceReading.parse(line)


def test_a_reader_that_falls_silent_and_stays_is_a_failure_like_any_other(
    double: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its last temperature would be shown for good, by a thread that has ended."""
    monkeypatch.setattr(device_readings, "END_SECONDS", 30.0)
    station = Station()
    station.readings.step()
    silent = "import os, sys, time; sys.stdin.readline(); os.close(1); time.sleep(600)"
    station.readings._end_child()
    station.readings._command = (sys.executable, "-c", silent)
    station.readings.step()
    assert station.failures == 1
    assert station.sample(TEMPERATURE, sensor="ts0") is None
    assert station.readings._child is None
