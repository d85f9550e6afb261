"""``Device``: the chip's firmware, asked by whichever process."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self

from . import _pyhailort
from ._exceptions import ExceptionWrapper, HailoRTException
from ._pyhailort import SETTINGS


class DeviceArchitectureTypes(enum.IntEnum):
    """As the real one."""

    HAILO8_A0 = 0
    HAILO8 = 1
    HAILO8L = 2
    HAILO15H = 3
    HAILO15L = 4
    HAILO15M = 5
    HAILO10H = 6

    def __str__(self) -> str:
        return self.name


class HailoFirmwareVersion:
    """As the real one."""

    def __init__(self, major: int, minor: int, revision: int) -> None:
        self.major, self.minor, self.revision = major, minor, revision

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.revision} (release,app)"


@dataclass(frozen=True)
class BoardInformation:
    """What ``identify`` says."""

    firmware_version: HailoFirmwareVersion
    device_architecture: DeviceArchitectureTypes
    serial_number: str


@dataclass(frozen=True)
class TemperatureInfo:
    """Both sensors."""

    ts0_temperature: float
    ts1_temperature: float
    sample_count: int


class Control:
    """Asks the firmware."""

    def __init__(self, device: _pyhailort.CoreDevice) -> None:
        self._device = device

    def identify(self) -> BoardInformation:
        """Which board it is."""
        with ExceptionWrapper():
            return BoardInformation(
                HailoFirmwareVersion(*SETTINGS.read("firmware")),
                DeviceArchitectureTypes(SETTINGS.read("architecture")),
                str(SETTINGS.read("serial")) + "\x00",
            )

    def get_chip_temperature(self) -> TemperatureInfo:
        """In degrees Celsius."""
        with ExceptionWrapper():
            first, second = self._device.temperature()
            return TemperatureInfo(first, second, 7)

    def power_measurement(self) -> float:
        """W."""
        with ExceptionWrapper():
            return self._device.power()


class Device:
    """The chip, for control."""

    @classmethod
    def scan(cls) -> list[str]:
        """Bus addresses; none where there is no device, without an error."""
        return list(SETTINGS.read("devices"))

    def __init__(self, device_id: str | None = None) -> None:
        if device_id is None:
            found = self.scan()
            if not found:
                raise HailoRTException("HailoRT device not found in the system")
            device_id = found[0]
        # Not wrapped in the real one either: a bare status comes out.
        self.control = Control(_pyhailort.CoreDevice(device_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go."""
