"""What fits together at Hailo: the tables, and what is said where something does not."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.contract.hailo_compatibility import (
    DEVICES,
    HEADER_SINCE,
    RELEASED_WITH,
    TAKES,
    check_architecture,
    check_hailort,
    check_header,
    device_of,
    parse_version,
    version_findings,
)
from runtime.contract.hef_errors import HailoVersionError, HefArchitectureError
from runtime.contract.hef_file import ARCHITECTURES, read_hef
from runtime.contract.hef_header import HEADER_BYTES
from runtime.contract.release import TARGETS
from tests.hef_writer import make_hef

TAKEN = {
    ("HAILO8", "HAILO8P"),
    ("HAILO8", "HAILO8R"),
    ("HAILO8", "HAILO8L"),
    ("HAILO8L", "HAILO8L"),
}


@pytest.mark.parametrize("device", sorted(TAKES))
@pytest.mark.parametrize("code", [*ARCHITECTURES, 77])
def test_a_device_takes_what_hailort_says(device: str, code: int) -> None:
    hef = read_hef(make_hef(arch=code))
    if (device, hef.architecture) in TAKEN:
        check_architecture(hef, device, "x.hef")
        return
    with pytest.raises(HefArchitectureError) as caught:
        check_architecture(hef, device, "x.hef")
    assert caught.value.where == "x.hef"
    assert f"compiled for {hef.architecture}, a {device} takes " in caught.value.what
    assert caught.value.hint == f"compile it with hw_arch={device.lower()}"


def test_a_smaller_chips_file_runs_more_slowly() -> None:
    """The one pair that works and is worth a word."""
    told = {pair: check_architecture(read_hef(make_hef(arch=pair[1])), pair[0], "x") for pair in TAKEN}
    (said,) = told.pop(("HAILO8", "HAILO8L"))
    assert "more slowly" in said
    assert set(told.values()) == {()}


def test_an_unknown_device_takes_nothing() -> None:
    with pytest.raises(
        HefArchitectureError, match="the device is HAILO10H, this project knows HAILO8, HAILO8L"
    ):
        check_architecture(read_hef(make_hef()), "HAILO10H", "x.hef")


def test_every_hardware_target_has_its_device() -> None:
    hardware = set(TARGETS) - {"emulator"}
    assert set(DEVICES) == hardware
    assert {device_of(target) for target in hardware} == set(TAKES)
    with pytest.raises(HefArchitectureError, match="'emulator'"):
        device_of("emulator")


@pytest.mark.parametrize(
    ("hailort", "words"),
    [
        ("4.19.0", "not one that this project knows"),
        ("4.24.0", "not one that this project knows"),
        ("4.200.0", "not one that this project knows"),
        ("5.2.0", "does not drive a HAILO8"),
        ("3.0.0", "does not drive a HAILO8"),
        ("", "'' is no version"),
        ("four", "'four' is no version"),
    ],
)
def test_a_hailort_that_will_not_do_is_named(hailort: str, words: str) -> None:
    with pytest.raises(HailoVersionError) as caught:
        check_hailort(hailort, "hailo8")
    assert words in caught.value.what
    if hailort[:1].isdigit():
        assert hailort in caught.value.what
        assert "4.20 to 4.23" in caught.value.hint


@pytest.mark.parametrize("hailort", ["4.20.0", "4.21.1", "4.22.0", "4.23.0", "4.23"])
@pytest.mark.parametrize("target", ["hailo8", "hailo8l"])
def test_known_hailorts_will_do(hailort: str, target: str) -> None:
    check_hailort(hailort, target)


@pytest.mark.parametrize(
    ("version", "hailort", "reads"),
    [
        (0, "4.17.0", True),
        (1, "4.17.0", True),
        (2, "4.19.0", False),
        (2, "4.20.0", True),
        (3, "4.20.0", False),
        (3, "4.21.0", True),
        (3, "5.2.0", True),
    ],
)
def test_a_header_needs_its_hailort(version: int, hailort: str, reads: bool) -> None:
    hef = read_hef(make_hef(version=version))
    if reads:
        check_header(hef, hailort, "x.hef")
        return
    with pytest.raises(HailoVersionError, match=f"header version {version}, HailoRT {hailort} does not"):
        check_header(hef, hailort, "x.hef")


def test_every_header_version_has_its_hailort() -> None:
    assert set(HEADER_SINCE) == set(HEADER_BYTES)


def test_pairs_follow_one_another() -> None:
    assert [hailort[1] - dfc[1] for dfc, hailort in RELEASED_WITH.items()] == [-10] * 7
    hef = dataclasses.replace(read_hef(make_hef()), sdk_version="3.32.0")
    assert RELEASED_WITH[parse_version(hef.dfc_version, "x")] == (4, 22)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({}, []),
        ({"dfc": "3.33.0", "hailort": "4.23.0", "driver": "4.23.0", "firmware": "4.23.0"}, []),
        ({"dfc": "3.30.0", "hailort": "4.23.0"}, []),
        ({"dfc": "3.33.0", "hailort": "4.20.0"}, ["was released with HailoRT 4.23; 4.20.0 is older"]),
        ({"dfc": "3.33.0"}, []),
        ({"dfc": "3.34.0", "hailort": "4.23.0"}, ["is not known here"]),
        ({"dfc": "5.2.0", "hailort": "4.23.0"}, ["the line for Hailo-10 and Hailo-15"]),
        ({"hailort": "4.23.0", "driver": "4.20.0"}, ["driver 4.20.0, HailoRT 4.23.0"]),
        ({"hailort": "4.23.0", "firmware": "4.23.0 (release,app,extended context switch buffer)"}, []),
        (
            {"hailort": "4.23.0", "driver": "4.22.0", "firmware": "4.21.0 (release)"},
            ["driver 4.22.0", "firmware 4.21.0"],
        ),
    ],
)
def test_what_does_not_fit_is_said(versions: dict[str, str], words: list[str]) -> None:
    found = version_findings(**versions)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
