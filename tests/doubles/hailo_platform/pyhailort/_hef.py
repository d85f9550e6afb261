"""As much of a HEF as the double needs: architecture, network groups, two streams, their quantization."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = 0x01484546
HEADER_SIZES = {0: 32, 1: 28, 2: 44, 3: 56}
FILE_CORRUPTED, NOT_SUPPORTED = 91, 92


class RefusedError(Exception):
    """Bytes that HailoRT does not take; ``args[0]`` is its status."""


@dataclass(frozen=True)
class Stream:
    """One stream at the host: shape without batch, and what its integers mean."""

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: float
    smallest: float
    largest: float
    dense: bool


@dataclass(frozen=True)
class Network:
    """What a HEF holds; ``program`` is what stands where a real one has the chip's own code."""

    architecture: int
    groups: tuple[str, ...]
    inputs: tuple[Stream, ...]
    outputs: tuple[Stream, ...]
    program: bytes


def parse(data: bytes) -> Network:
    """Read a HEF's bytes as HailoRT does; RefusedError with its status."""
    if len(data) < 56:
        raise RefusedError(FILE_CORRUPTED)
    magic, version, size = struct.unpack_from(">III", data)
    if version not in HEADER_SIZES or magic != MAGIC:
        raise RefusedError(NOT_SUPPORTED)
    start = HEADER_SIZES[version]
    if start + size > len(data) or (
        version == 1 and zlib.crc32(data[start:]) != struct.unpack_from(">I", data, 12)[0]
    ):
        raise RefusedError(FILE_CORRUPTED)
    try:
        return _network(data[start : start + size], data[start + size :])
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise RefusedError(FILE_CORRUPTED) from error


def _network(proto: bytes, program: bytes) -> Network:
    root = _fields(proto)
    header = _fields(root[1][0])
    groups = [_fields(group) for group in root[2]]
    names = [_fields(group[1][0])[1][0].decode() for group in groups]
    layers = [
        _fields(layer)
        for context in groups[0][3]
        for metadata in _fields(context)[3]
        for layer in _fields(metadata)[2]
    ]
    sides: tuple[list[Stream], list[Stream]] = ([], [])
    for layer in layers:
        sides[layer.get(1, [0])[0]].append(_stream(_fields(layer[3][0])))
    architecture = header.get(1, [0])[0]
    return Network(architecture, tuple(names), tuple(sides[0]), tuple(sides[1]), program)


def _stream(info: dict[int, list[Any]]) -> Stream:
    base, numbers = _fields(info[2][0]), _fields(info[3][0])
    height, width, features, order = (base.get(number, [0])[0] for number in (1, 3, 5, 7))
    zero_point, scale, smallest, largest = (numbers.get(number, [0.0])[0] for number in (1, 2, 3, 4))
    dense = order == 2
    shape = (features,) if dense else (height, width, features)
    return Stream(info[1][0].decode(), shape, scale, zero_point, smallest, largest, dense)


def _fields(data: bytes) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for number, value in _walk(data):
        found.setdefault(number, []).append(value)
    return found


def _walk(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif kind == 1:
            yield key >> 3, struct.unpack_from("<d", data, at)[0]
            at += 8
        elif kind == 5:
            yield key >> 3, struct.unpack_from("<f", data, at)[0]
            at += 4
        elif kind == 2:
            length, at = _varint(data, at)
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(kind)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
