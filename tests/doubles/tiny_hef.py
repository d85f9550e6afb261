"""A HEF for the HailoRT double: well formed, small, with the tiny encoder where the chip's code would be."""

from __future__ import annotations

import struct
import zlib

from tests.simulators import TINY_ENCODER

HAILO8P, HAILO8L, HAILO10H = 1, 3, 5


def tiny_hef(
    *,
    architecture: int = HAILO8P,
    groups: int = 1,
    shape: tuple[int, int, int] = (1, 100, 9),
    latent: int = 64,
    program: bytes | None = None,
) -> bytes:
    """A HEF of header version 1: one input uint8 NHWC, one dense output, both as the tiny encoder's.

    Args:
        architecture: Number in Hailo's protobuf; what ``--hw-arch hailo8`` writes is 1.
        groups: Network groups.
        shape: Of the input at the host, without batch.
        latent: Size of the output.
        program: ONNX that the double runs; default: the tiny encoder.
    """
    code = TINY_ENCODER.read_bytes() if program is None else program
    # The tiny encoder's own ranges: its integers are then exactly those of the double.
    layers = [
        _layer(0, "tiny/input_layer1", shape, 0, scale=1 / 16, zero=128.0, low=-8.0, high=127 / 16),
        _layer(1, "tiny/fc1", (1, 1, latent), 2, scale=1 / 32, zero=128.0, low=-4.0, high=127 / 32),
    ]
    metadata = b"".join(_field(2, layer) for layer in layers)
    context = _field(3, _field(3, metadata))
    body = b"".join(
        _field(2, _field(1, _field(1, f"tiny{number or ''}".encode())) + context) for number in range(groups)
    )
    header = _field(1, architecture) + _field(2, 1764000000000) + _field(3, b"0.0.0-double")
    proto = _field(1, header) + body
    span = proto + code
    return struct.pack(">IIIIQI", 0x01484546, 1, len(proto), zlib.crc32(span), len(code), 0) + span


def _layer(
    direction: int,
    name: str,
    shape: tuple[int, int, int],
    order: int,
    *,
    scale: float,
    zero: float,
    low: float,
    high: float,
) -> bytes:
    height, width, features = shape
    sizes = (
        (1, height),
        (2, height),
        (3, width),
        (4, width),
        (5, features),
        (6, features),
        (7, order),
        (12, 1),
    )
    numbers = b"".join(_field(n, v) for n, v in ((1, zero), (2, scale), (3, low), (4, high)))
    base = b"".join(_field(n, v) for n, v in sizes if v)
    info = _field(1, name.encode()) + _field(2, base) + _field(3, numbers)
    return (_field(1, direction) if direction else b"") + _field(3, info)


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
