"""HEF files: what genuine ones say, and that nothing which is none gets further than an error of ours."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.contract import hef_header
from runtime.contract.hef_errors import (
    HefChecksumError,
    HefError,
    HefHeaderError,
    HefJsonError,
    HefMagicError,
    HefNoNetworkError,
    HefOverlongError,
    HefPointerError,
    HefShortError,
    HefTextError,
    HefTruncatedError,
    HefUnreadableError,
    HefVersionError,
)
from runtime.contract.hef_file import ARCHITECTURES, read_hef
from runtime.contract.hef_header import HEADER_BYTES
from tests.hef_writer import (
    ENCODER_INPUT,
    ENCODER_OUTPUT,
    container,
    doubles,
    edge_layer,
    make_hef,
    message,
    nested,
    network_group,
    text,
    uint,
)

VERSIONS = sorted(HEADER_BYTES)
HEADER = nested(1, uint(1, 1))
GROUP = nested(2, network_group("encoder", [ENCODER_INPUT], [ENCODER_OUTPUT]))


def name_of(value: object) -> str:
    """Of a parameter; pytest would spell out all bytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else getattr(value, "__name__", str(value))


def refused(data: bytes, kind: type[HefError] = HefError) -> HefError:
    with pytest.raises(kind) as caught:
        read_hef(data, "some.hef")
    assert caught.value.where == "some.hef"
    return caught.value


# What is written is read


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_written_is_read(version: int) -> None:
    data = make_hef(version=version, arch="HAILO8L", timestamp_ms=1758555299622)
    hef = read_hef(data)
    assert (hef.size, hef.header_version, hef.architecture) == (len(data), version, "HAILO8L")
    assert hef.checksum == {0: "md5", 1: "crc32"}.get(version, "xxh3")
    assert (hef.sdk_version, hef.dfc_version, hef.is_double) == ("0.0.0-double", "0.0.0-double", True)
    assert hef.compiled_at == "2025-09-22T15:34:59+00:00"
    (network,) = hef.network_groups
    assert (network.name, network.contexts, network.bottleneck_fps) == ("encoder", 1, 1234.5)
    assert (network.inputs, network.outputs) == ((ENCODER_INPUT,), (ENCODER_OUTPUT,))
    assert network.host_operations == ()


def test_further_bytes_of_version_3_belong_to_it() -> None:
    assert read_hef(make_hef(version=3, further=b"more" * 100)).header_version == 3


@pytest.mark.parametrize(("code", "name"), [*ARCHITECTURES.items(), (77, "unknown (77)")])
def test_every_architecture_has_its_name(code: int, name: str) -> None:
    assert read_hef(make_hef(arch=code)).architecture == name


@pytest.mark.parametrize(
    ("sdk", "dfc"),
    [
        ("3.32.0", "3.32.0"),
        ("sdk-version: 5.2.0, git-branch: HEAD, git-commit: bc3f19f", "5.2.0"),
        ("", ""),
        ("none", ""),
    ],
)
def test_the_compilers_version_is_found_among_other_words(sdk: str, dfc: str) -> None:
    hef = read_hef(make_hef(sdk_version=sdk))
    assert (hef.sdk_version, hef.dfc_version, hef.is_double) == (sdk, dfc, False)


@pytest.mark.parametrize("moment", [0, 2**62, 2**64 - 1])
def test_a_time_that_is_none_is_not_told(moment: int) -> None:
    assert read_hef(make_hef(timestamp_ms=moment)).compiled_at == ""


def test_outputs_come_in_hailorts_order() -> None:
    names = ["encoder/c", "encoder/a", "encoder/b"]
    outputs = [dataclasses.replace(ENCODER_OUTPUT, name=name) for name in names]
    core = message(
        nested(3, nested(3, message(*(nested(2, edge_layer(o, 1)) for o in outputs)))),
        text(4, "encoder/a"),
        text(4, "encoder/b"),
    )
    (network,) = read_hef(container(HEADER + nested(2, core))).network_groups
    assert [stream.name for stream in network.outputs] == ["encoder/a", "encoder/b", "encoder/c"]


def test_what_stays_on_the_chip_is_no_stream() -> None:
    inner = dataclasses.replace(ENCODER_OUTPUT, name="encoder/inner")
    layers = [edge_layer(inner, direction, connection=kind) for direction in (0, 1) for kind in (1, 2, 3)]
    layers += [edge_layer(ENCODER_INPUT, 0), edge_layer(ENCODER_OUTPUT, 1)]
    # The same stream in two contexts is one.
    contexts = [nested(3, nested(3, message(*(nested(2, layer) for layer in layers))))] * 2
    (network,) = read_hef(container(HEADER + nested(2, message(*contexts)))).network_groups
    assert network.contexts == 2
    assert (network.inputs, network.outputs) == ((ENCODER_INPUT,), (ENCODER_OUTPUT,))


@pytest.mark.parametrize("how", ["partial", "net flow", "net flow, partial"])
def test_newer_and_partial_layouts_are_found(how: str) -> None:
    """HAILO_NET_FLOW keeps the network in an operation, HAILO8L in the first of several layouts."""
    core = network_group("encoder", [ENCODER_INPUT], [ENCODER_OUTPUT])
    partial = nested(7, nested(1, core)) + nested(7, nested(1, network_group("encoder", [], [])))
    group = {
        "partial": partial,
        "net flow": nested(8, nested(4, core)) + nested(8, nested(5, b"")),
        "net flow, partial": nested(8, nested(4, partial)),
    }[how]
    (network,) = read_hef(container(HEADER + nested(2, group))).network_groups
    assert (network.name, network.inputs, network.outputs) == ("encoder", (ENCODER_INPUT,), (ENCODER_OUTPUT,))
    assert network.host_operations == (("nms",) if how == "net flow" else ())


def test_scales_that_differ_are_all_read() -> None:
    scales, zeros = tuple(0.01 * i for i in range(1, 65)), tuple(float(i) for i in range(64))
    output = dataclasses.replace(ENCODER_OUTPUT, scales=scales, zero_points=zeros)
    (network,) = read_hef(make_hef(outputs=[output])).network_groups
    assert network.outputs == (output,)


def test_a_scale_that_is_said_for_each_feature_only_is_the_scale() -> None:
    numeric = message(doubles(5, [7.0] * 64), doubles(6, [0.25] * 64))
    layer = message(uint(1, 1), nested(3, message(text(1, "a"), nested(2, b""), nested(3, numeric))))
    group = nested(2, nested(3, nested(3, nested(2, layer))))
    (output,) = read_hef(container(HEADER + group)).network_groups[0].outputs
    assert (output.scale, output.zero_point, output.scales) == (0.25, 7.0, ())


def test_a_picture_in_planes_and_a_mux_are_streams_too() -> None:
    planes = message(text(1, "yuv"), uint(4, 480), uint(5, 640), uint(6, 3))
    mux = message(text(1, "mux"), nested(2, message(uint(1, 8), uint(3, 9), uint(5, 10), uint(12, 1))))
    layers = nested(2, nested(8, planes)) + nested(2, uint(1, 1) + nested(4, mux + text(6, "conv")))
    (network,) = read_hef(container(HEADER + nested(2, nested(3, nested(3, layers))))).network_groups
    assert [(s.name, s.shape) for s in network.inputs] == [("yuv", (480, 640, 3))]
    assert [(s.name, s.shape, s.original_names) for s in network.outputs] == [("mux", (8, 9, 10), ("conv",))]


# Genuine files


def test_a_genuine_hailo_8_file_tells_that_it_clips(upstream: Path) -> None:
    hef = read_hef(upstream / "hef" / "fsq_m13_behavioral_analysis.hef")
    assert (hef.header_version, hef.checksum, hef.architecture) == (2, "xxh3", "HAILO8P")
    assert (hef.dfc_version, hef.compiled_at) == ("3.32.0", "2025-09-22T15:34:59+00:00")
    (network,) = hef.network_groups
    assert (network.name, network.contexts) == ("fsq_m13_behavioral_analysis", 1)
    (stream,) = network.inputs
    assert (stream.shape, stream.order, stream.element_bytes) == ((2, 100, 9), "NHCW", 1)
    assert stream.limits[0] == stream.zero_point == 0.0
    assert stream.limits[1] == pytest.approx(0.99999, abs=1e-5)
    assert stream.scale == pytest.approx(1 / 255, rel=1e-4)
    (stream,) = network.outputs
    assert (stream.shape, stream.order, stream.zero_point) == ((5,), "NC", 128.0)
    assert stream.scale == pytest.approx(0.0236462, rel=1e-4)


def test_a_genuine_file_of_version_0_is_read(upstream: Path) -> None:
    hef = read_hef(upstream / "hef" / "x_feature_224_320.hef")
    assert (hef.header_version, hef.checksum) == (0, "md5")
    assert (hef.architecture, hef.dfc_version) == ("HAILO8P", "3.27.0")
    (network,) = hef.network_groups
    assert [stream.shape for stream in network.inputs] == [(224, 320, 1)]
    assert [stream.shape[:2] for stream in network.outputs] == [(28, 40)] * 3
    names = [stream.name.rpartition("/")[2] for stream in network.outputs]
    assert names == ["ew_mult1", "slice1", "conv27"]
    assert {stream.order for stream in network.outputs} == {"FCR"}


def test_a_genuine_file_of_version_3_is_for_another_chip(upstream: Path) -> None:
    hef = read_hef(upstream / "hef" / "scrfd_2.5g.hef")
    assert (hef.header_version, hef.architecture, hef.dfc_version) == (3, "HAILO15H", "5.2.0")
    (network,) = hef.network_groups
    assert [stream.shape for stream in network.inputs] == [(640, 640, 3)]
    assert len(network.outputs) == 9


@pytest.mark.parametrize(("name", "kind"), [("mock_json", HefJsonError), ("mock_text", HefTextError)])
def test_mocks_that_were_once_shipped_are_refused(upstream: Path, name: str, kind: type[HefError]) -> None:
    path = upstream / "hef" / f"{name}.hef"
    with pytest.raises(kind) as caught:
        read_hef(path)
    assert caught.value.where == str(path)


# Files that are none


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", HefShortError, "is empty"),
        (b"\x01", HefShortError, "has 1 bytes"),
        (b"\x01HEF", HefShortError, "has 4 bytes"),
        (make_hef()[:55], HefShortError, "fewer than 56"),
        (b"DUMMY_HEF_CONTENT_Mon Sep  1\n", HefTextError, "is text"),
        ("µ".encode() * 3000, HefTextError, "is text"),
        (b"x" + "µ".encode() * 3000, HefTextError, "is text"),
        (b"<!DOCTYPE html><html>", HefTextError, "is text"),
        (b'{"mock_hef": true}', HefJsonError, "is JSON"),
        (b"\n [1, 2]", HefJsonError, "is JSON"),
        (b'\xef\xbb\xbf{"a": 1}', HefJsonError, "is JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", HefPointerError, "LFS"),
        (b"\x08\x07\x12\x04onnx" * 30, HefMagicError, "begins with 08 07 12 04"),
        (b"FEH\x01" + bytes(80), HefMagicError, "begins with"),
        (bytes(4096), HefMagicError, "begins with 00 00 00 00"),
        (b"\x01HEF" + (4).to_bytes(4, "big") + bytes(80), HefVersionError, "header version 4"),
        (b"\x01HEF" + b"\xff" * 80, HefVersionError, "header version 4294967295"),
        (make_hef()[:-1], HefTruncatedError, "header, which says"),
        (make_hef() + b"\0", HefOverlongError, "header, which says"),
        (make_hef()[:-1] + b"?", HefChecksumError, "xxh3 is"),
        (make_hef(version=1)[:-1] + b"?", HefChecksumError, "crc32 is"),
        (make_hef(version=0)[:-1] + b"?", HefChecksumError, "md5 is"),
        (container(HEADER), HefNoNetworkError, "no network group"),
        (container(GROUP), HefNoNetworkError, "for which chip"),
        (container(b""), HefNoNetworkError, "for which chip"),
    ],
    ids=name_of,
)
def test_each_kind_of_file_that_is_none_has_its_error(data: bytes, kind: type[HefError], words: str) -> None:
    error = refused(data, kind)
    assert type(error) is kind
    assert words in error.what
    assert error.hint


def test_a_description_with_its_own_checksum_is_held_to_it() -> None:
    data = bytearray(make_hef(version=3))
    data[40] ^= 1
    assert "xxh3 is" in refused(bytes(data), HefChecksumError).what
    data[40:48] = bytes(8)  # HailoRT 4 writes none
    assert read_hef(bytes(data)).header_version == 3


@pytest.mark.parametrize(("at", "version"), [(12, 0), (27, 1), (30, 2), (43, 2), (55, 3)])
def test_reserved_bytes_that_say_something_are_refused(at: int, version: int) -> None:
    data = bytearray(make_hef(version=version))
    data[at] = 1
    refused(bytes(data), HefHeaderError)


@pytest.mark.parametrize("padding", [1, 4095, 5000, 0xFFFFFFFF, 0x1DDA])
def test_padding_that_does_not_lead_to_the_weights_is_refused(padding: int) -> None:
    data = bytearray(make_hef(version=3))
    data[28:32] = padding.to_bytes(4, "big")
    refused(bytes(data), HefHeaderError)


def test_files_of_unbounded_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hef_header, "MAX_HEF_BYTES", 1000)
    refused(make_hef(), HefOverlongError)
    huge = tmp_path / "huge.hef"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    with pytest.raises(HefOverlongError, match="at most"):
        read_hef(huge)


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.hef")
    return folder / "pipe.hef"


@pytest.mark.parametrize(
    "place",
    [
        pipe,
        lambda folder: folder,
        lambda folder: folder / "missing.hef",
        lambda folder: Path("/dev/null"),
        lambda folder: str(folder / "a\0b.hef"),
        lambda folder: folder / ("x" * 300),
    ],
)
def test_what_the_system_does_not_give_is_unreadable(
    tmp_path: Path, place: Callable[[Path], Path | str]
) -> None:
    with pytest.raises(HefUnreadableError, match="cannot be read"):
        read_hef(place(tmp_path))
