"""Writes well-formed HEF files, so that tests need neither Hailo's compiler nor somebody's model.

Also what the double of the Dataflow Compiler writes. No chip runs them: there is a description and a
checksum, and random bytes where the weights would be.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import Final

import xxhash

from runtime.contract.hef_file import ARCHITECTURES, DOUBLE_SDK_VERSION, ORDERS, HefStream
from runtime.contract.hef_header import HEADER_BYTES, MAGIC, PADDING_ALIGNMENT

_CODES: Final = {name: code for code, name in ARCHITECTURES.items()}
_ORDER_CODES: Final = {name: code for code, name in ORDERS.items()}
WEIGHTS: Final = bytes(range(256)) * 4
NETWORK: Final = "encoder"


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def stream(
    name: str, shape: tuple[int, ...], *, limits: tuple[float, float], order: str = "NHCW"
) -> HefStream:
    """A uint8 stream whose 256 steps reach from one limit to the other.

    float32 throughout, as the file holds them: what is read is equal to what was written.
    """
    low, high = (_float32(limit) for limit in limits)
    scale = _float32((high - low) / 255)
    return HefStream(
        name=name,
        shape=shape,
        order=order,
        element_bytes=1,
        scale=scale,
        zero_point=float(round(-low / scale)),
        limits=(low, high),
        scales=(),
        zero_points=(),
        original_names=(name.rpartition("/")[2],),
    )


ENCODER_INPUT: Final = stream(f"{NETWORK}/input_layer1", (1, 100, 9), limits=(-8.0, 8.0))
ENCODER_OUTPUT: Final = stream(f"{NETWORK}/conv8", (64,), limits=(-4.0, 4.0), order="NC")


def make_hef(
    *,
    arch: str | int = "HAILO8P",
    version: int = 2,
    sdk_version: str = DOUBLE_SDK_VERSION,
    inputs: Sequence[HefStream] = (ENCODER_INPUT,),
    outputs: Sequence[HefStream] = (ENCODER_OUTPUT,),
    networks: Sequence[str] = (NETWORK,),
    timestamp_ms: int = 0,
    weights: bytes = WEIGHTS,
    further: bytes = b"",
) -> bytes:
    """A HEF of the encoder, but for what is said otherwise.

    Args:
        arch: A name of ``hef_file.ARCHITECTURES``, or a number as the file has it.
        version: Of the header, 0 to 3.
        sdk_version: Of the compiler.
        inputs: As they will be read.
        outputs: As they will be read, in this order.
        networks: Name of each network group; all have these inputs and outputs.
        timestamp_ms: When it was compiled.
        weights: What follows the description; version 0 has none.
        further: What follows the weights; only version 3 has it.
    """
    header = message(
        uint(1, arch if isinstance(arch, int) else _CODES[arch]), uint(2, timestamp_ms), text(3, sdk_version)
    )
    groups = [nested(2, network_group(name, inputs, outputs)) for name in networks]
    return container(message(nested(1, header), *groups), version=version, weights=weights, further=further)


def container(
    description: bytes, *, version: int = 2, weights: bytes = WEIGHTS, further: bytes = b""
) -> bytes:
    """Put a description, whatever it is, into a header with right lengths and checksum."""
    start = MAGIC + struct.pack(">II", version, len(description))
    if version == 0:
        return start + bytes(4) + hashlib.md5(description).digest() + description
    padding = -(HEADER_BYTES[3] + len(description)) % PADDING_ALIGNMENT if version == 3 else 0
    body = description + bytes(padding) + weights + (further if version == 3 else b"")
    if version == 1:
        return start + struct.pack(">IQI", zlib.crc32(body), len(weights), 0) + body
    digest = xxhash.xxh3_64_digest(body)
    if version == 2:
        return start + digest + struct.pack(">QQQ", len(weights), 0, 0) + body
    lengths = struct.pack(">QIQ", padding + len(weights), padding, len(further))
    return start + digest + lengths + xxhash.xxh3_64_digest(description) + bytes(8) + body


def network_group(name: str, inputs: Sequence[HefStream], outputs: Sequence[HefStream]) -> bytes:
    """One network in one context, as the compiler of Hailo-8 lays it out."""
    layers = [
        nested(2, edge_layer(s, direction)) for direction, ss in enumerate((inputs, outputs)) for s in ss
    ]
    context = message(nested(3, message(text(1, f"{name}_context_0"), *layers)))
    order = [text(4, stream.name) for stream in outputs]
    return message(
        nested(1, message(text(1, name), float64(4, 1234.5))), nested(3, context), *order, text(6, name)
    )


def edge_layer(stream: HefStream, direction: int, *, connection: int = 0) -> bytes:
    """One stream; direction 0 goes in, 1 comes out; connection 0 is the border to the host."""
    return message(
        uint(1, direction),
        nested(3, layer_info(stream)),
        nested(5, message(text(2, "context_0"), uint(3, connection))),
    )


def layer_info(stream: HefStream) -> bytes:
    """Name, shape and quantization of a stream."""
    height, width, features = {
        1: (1, 1, stream.shape[0]),
        2: (*stream.shape, 1),
    }.get(len(stream.shape), stream.shape)
    sizes = [uint(n, v) for n, v in enumerate((height, height, width, width, features, features), start=1)]
    base = message(*sizes, uint(7, _ORDER_CODES[stream.order]), uint(12, stream.element_bytes))
    numeric = message(
        float32(1, stream.zero_point),
        float32(2, stream.scale),
        float32(3, stream.limits[0]),
        float32(4, stream.limits[1]),
        doubles(5, stream.zero_points or (stream.zero_point,) * features),
        doubles(6, stream.scales or (stream.scale,) * features),
    )
    names = [text(5, name) for name in stream.original_names]
    return message(text(1, stream.name), nested(2, base), nested(3, numeric), *names)


def varint(value: int) -> bytes:
    """A number of any length, little end first, 7 bits a byte."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def key(number: int, wire: int) -> bytes:
    """What stands before a value."""
    return varint(number << 3 | wire)


def message(*fields: bytes) -> bytes:
    """Fields one after another."""
    return b"".join(fields)


def uint(number: int, value: int) -> bytes:
    """An unsigned integer; like proto3, nothing for zero."""
    return key(number, 0) + varint(value) if value else b""


def nested(number: int, content: bytes) -> bytes:
    """Bytes, or a message inside."""
    return key(number, 2) + varint(len(content)) + content


def text(number: int, value: str) -> bytes:
    """A string; like proto3, nothing for an empty one."""
    return nested(number, value.encode()) if value else b""


def float32(number: int, value: float) -> bytes:
    """A float; like proto3, nothing for zero."""
    return key(number, 5) + struct.pack("<f", value) if value else b""


def float64(number: int, value: float) -> bytes:
    """A double."""
    return key(number, 1) + struct.pack("<d", value)


def doubles(number: int, values: Sequence[float]) -> bytes:
    """A packed list of doubles."""
    return nested(number, struct.pack(f"<{len(values)}d", *values))
