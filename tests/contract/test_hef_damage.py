"""HEF files that are damaged or made to do harm: always our error, soon, in little memory."""

from __future__ import annotations

import hashlib
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.contract.hef_errors import (
    HefChecksumError,
    HefError,
    HefMalformedError,
    HefOverlongError,
    HefShortError,
    HefTruncatedError,
)
from runtime.contract.hef_file import HefFile, read_hef
from runtime.contract.hef_header import HEADER_BYTES
from runtime.contract.protobuf_wire import MAX_FIELDS
from tests import hef_writer
from tests.contract.test_hef_file import GROUP, HEADER, VERSIONS, name_of, refused
from tests.hef_writer import (
    ENCODER_INPUT,
    container,
    doubles,
    float32,
    key,
    layer_info,
    make_hef,
    message,
    nested,
    text,
    uint,
    varint,
)

GENUINE = ("fsq_m13_behavioral_analysis", "x_feature_224_320", "scrfd_2.5g")
HANGS = 60.0
"""CPU seconds; a read takes milliseconds, what follows a lying length takes hours."""
BYTES_BEYOND = 64 * 1024 * 1024


@pytest.mark.parametrize("version", VERSIONS)
def test_no_other_byte_in_the_header_passes(version: int) -> None:
    data = make_hef(version=version, further=b"more" if version == 3 else b"")
    for at in range(HEADER_BYTES[version]):
        for other in range(256):
            if other != data[at]:
                changed = data[:at] + bytes([other]) + data[at + 1 :]
                if version == 3 and not any(changed[40:48]):
                    continue
                refused(changed)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_flipped_bit_after_the_header_passes(version: int) -> None:
    data = bytearray(make_hef(version=version))
    for at in range(HEADER_BYTES[version], len(data)):
        data[at] ^= 1 << at % 8
        refused(bytes(data), HefChecksumError)
        data[at] ^= 1 << at % 8


@pytest.mark.parametrize("version", VERSIONS)
def test_no_truncation_and_no_addition_passes(version: int) -> None:
    data = make_hef(version=version)
    for size in range(len(data)):
        refused(data[:size], HefShortError if size < 56 else HefTruncatedError)
    for more in (1, 7, 4096):
        refused(data + bytes(more), HefOverlongError)


@pytest.mark.parametrize("name", GENUINE)
def test_no_bit_flipped_in_a_genuine_header_passes(upstream: Path, name: str) -> None:
    data = (upstream / "hef" / f"{name}.hef").read_bytes()
    for at in range(HEADER_BYTES[data[7]]):
        for bit in range(8):
            refused(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


@pytest.mark.parametrize("name", GENUINE)
def test_no_truncation_of_a_genuine_file_passes(upstream: Path, name: str) -> None:
    data = (upstream / "hef" / f"{name}.hef").read_bytes()
    step = len(data) // 300
    for size in (*range(4096), *range(4096, len(data), step), len(data) - 1):
        refused(data[:size], HefShortError if size < 56 else HefTruncatedError)
    refused(data + b"\0", HefOverlongError)


@pytest.mark.parametrize("name", GENUINE)
def test_damage_in_a_genuine_file_is_seen(upstream: Path, name: str) -> None:
    data = bytearray((upstream / "hef" / f"{name}.hef").read_bytes())
    for at in range(HEADER_BYTES[data[7]], len(data), len(data) // 40):
        data[at] ^= 0x10
        refused(bytes(data), HefChecksumError)
        data[at] ^= 0x10


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 2**32 - 56])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_description_of_4_gb_is_claimed_in_vain(version: int, size: int) -> None:
    data = bytearray(make_hef(version=version))
    data[8:12] = size.to_bytes(4, "big")
    assert_cheap(lambda: refused(bytes(data)), beyond=1_000_000)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**64 - 1024])
@pytest.mark.parametrize(("version", "at"), [(1, 16), (2, 20), (3, 20), (3, 32)])
def test_lengths_that_overflow_are_claimed_in_vain(version: int, at: int, length: int) -> None:
    """In C, 2**64 - 1024 more bytes would be 1024 fewer."""
    data = bytearray(make_hef(version=version))
    data[at : at + 8] = length.to_bytes(8, "big")
    assert_cheap(lambda: refused(bytes(data)), beyond=1_000_000)


# Descriptions that are none, in a container that is whole


def described(*layer: bytes) -> bytes:
    return nested(2, nested(3, nested(3, nested(2, message(*layer)))))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (b"\x0a", "ends inside a number"),
        (b"\x0a\x80", "ends inside a number"),
        (b"\x0a\x7f", "claims 127 bytes, 0 are left"),
        (key(1, 2) + varint(2**64 - 1), "claims 18446744073709551615 bytes"),
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (b"\x00\x00", "field with the number 0"),
        (key(2**29, 0) + b"\x00", "number 536870912"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0e", "wire type 6"),
        (b"\x0d\x01\x02", "claims 4 bytes, 2 are left"),
        (key(1, 0) + b"\x01", "wire type 0, not 2"),
        (HEADER + nested(1, b"") + GROUP, "field 1 2 times"),
        (nested(1, uint(1, 1) + uint(1, 3)) + GROUP, "field 1 2 times, in header"),
        (nested(1, uint(1, 1) + text(3, "x" * 5000)) + GROUP, "a text of 5000 bytes"),
        (nested(1, uint(1, 1) + nested(3, b"\xff\xfe")) + GROUP, "no UTF-8"),
        (HEADER + described(uint(1, 2), nested(3, layer_info(ENCODER_INPUT))), "direction 2"),
        (HEADER + described(uint(1, 1)), "described 0 times"),
        (HEADER + described(nested(3, b""), nested(4, b"")), "described 2 times"),
        (HEADER + described(nested(3, text(1, "x"))), "has no shape"),
        (HEADER + described(nested(3, nested(2, b"") + nested(3, float32(2, float("nan"))))), "not finite"),
        (HEADER + described(nested(3, nested(2, b"") + nested(3, float32(4, float("inf"))))), "not finite"),
        (
            HEADER + described(nested(3, nested(2, b"") + nested(3, doubles(6, [1.0, float("nan")])))),
            "not finite",
        ),
        (HEADER + described(nested(3, nested(2, b"") + nested(3, nested(6, b"123")))), "no list of doubles"),
        (HEADER + nested(2, uint(10, 1)), "wire type 0, not 2"),
        (HEADER + nested(2, text(10, "x") + uint(10, 1)), "as two types"),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("version", [1, 3])
def test_a_description_that_is_none_says_where(description: bytes, words: str, version: int) -> None:
    error = refused(container(description, version=version, weights=bytes(100)), HefMalformedError)
    assert words in error.what


def assert_cheap(read: Callable[[], object], *, beyond: int = BYTES_BEYOND) -> None:
    started = time.process_time()
    read()
    assert time.process_time() - started < HANGS
    tracemalloc.start()
    try:
        read()
        assert tracemalloc.get_traced_memory()[1] < beyond
    finally:
        tracemalloc.stop()


def attempt(data: bytes) -> HefFile | HefError:
    try:
        return read_hef(data)
    except HefError as error:
        return error


@pytest.mark.parametrize(
    "description",
    [
        HEADER + nested(2, nested(8, b"") * MAX_FIELDS),
        HEADER + nested(2, nested(8, nested(4, b"")) * (MAX_FIELDS // 2 - 10)),
        HEADER + nested(2, nested(3, b"") * (MAX_FIELDS - 10)),
        HEADER + b"".join(uint(i, 2**40 + i) for i in range(20, MAX_FIELDS)),
        HEADER + b"".join(nested(i, b"") for i in range(20, MAX_FIELDS)),
        HEADER + nested(2, text(4, "\U0001f600" + "a" * 3000) * 10_000),
        HEADER + nested(2, b"") * (MAX_FIELDS - 10),
        HEADER + described(nested(3, nested(2, b"") + nested(3, nested(6, bytes(8 * 3 * 10**6))))),
        HEADER + nested(2, nested(3, nested(3, nested(2, nested(3, nested(2, b""))) * 16_000))),
        HEADER + nested(2, b"\x08\x01" * 5_000_000),
    ],
    ids=["ops", "cores", "contexts", "numbers", "bytes", "texts", "groups", "doubles", "layers", "fields"],
)
def test_no_description_is_slow_or_large_to_read(description: bytes) -> None:
    data = container(description)
    assert_cheap(lambda: attempt(data))


def test_more_networks_than_any_file_has_are_refused() -> None:
    error = refused(container(HEADER + nested(2, b"") * 257), HefMalformedError)
    assert "more than 256 network groups" in error.what


def test_more_streams_than_any_chip_has_are_refused() -> None:
    layers = (nested(2, nested(3, text(1, f"s{i}") + nested(2, b""))) for i in range(1100))
    error = refused(container(HEADER + nested(2, nested(3, nested(3, b"".join(layers))))), HefMalformedError)
    assert "more than 1024 streams" in error.what


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    refused(data)


@given(st.sampled_from(VERSIONS), st.binary(max_size=300))
def test_garbage_behind_a_magic_is_refused(version: int, data: bytes) -> None:
    refused(b"\x01HEF" + version.to_bytes(4, "big") + data)


@given(st.sampled_from(VERSIONS), st.binary(max_size=300))
def test_garbage_in_a_whole_container_is_refused(version: int, data: bytes) -> None:
    """Everything is right but for the description: only the reader of the description protects us."""
    assert isinstance(attempt(container(data, version=version)), HefFile | HefError)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.floats(0, 0.999999), st.integers(0, 255)), min_size=1, max_size=4), st.data())
def test_a_mutated_description_is_read_or_refused(
    changes: list[tuple[float, int]], data: st.DataObject
) -> None:
    description = bytearray(HEADER + GROUP)
    for place, value in changes:
        description[int(place * len(description))] = value
    if data.draw(st.booleans()):
        del description[data.draw(st.integers(0, len(description))) :]
    hef = attempt(container(bytes(description)))
    if isinstance(hef, HefFile):
        assert hef.architecture
        assert hef.compiled_at == "" or re.match(r"\d{4}-", hef.compiled_at)


def message_trees(depth: int) -> st.SearchStrategy[bytes]:
    """Well-formed messages with the numbers that the reader knows."""
    numbers = st.integers(1, 12)
    leaves = st.one_of(
        st.builds(uint, numbers, st.integers(0, 2**64 - 1)),
        st.builds(float32, numbers, st.floats(width=32)),
        st.builds(nested, numbers, st.binary(max_size=20)),
    )
    inner = st.builds(nested, numbers, message_trees(depth - 1)) if depth else leaves
    return st.lists(st.one_of(leaves, inner), max_size=4).map(b"".join)


@settings(max_examples=300)
@given(message_trees(6))
def test_a_strange_tree_of_messages_is_read_or_refused(tree: bytes) -> None:
    assert isinstance(attempt(container(HEADER + nested(2, tree))), HefFile | HefError)


def test_the_writer_is_deterministic() -> None:
    """The double's artifacts are content-addressed like all others."""
    digests = {hashlib.sha256(hef_writer.make_hef(version=3)).hexdigest() for _ in range(3)}
    assert len(digests) == 1
