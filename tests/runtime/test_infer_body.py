"""The body of ``POST /infer``: what is right passes bit for bit, what is wrong names its place."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.errors import PipelineError, WindowError
from runtime.infer_body import MAX_BODY_BYTES, MAX_COMMAS, BodyError, parse_infer_body, read_body
from tests.simulators import imu_windows, infer_body

GOOD = infer_body(imu_windows(1, seed=4)[0])


def with_value(text: str, row: int = 3, channel: int = 4) -> bytes:
    """A good body with one value's text replaced."""
    rows = [["0.5"] * 9 for _ in range(100)]
    rows[row][channel] = text
    return ('{"x":[' + ",".join("[" + ",".join(values) + "]" for values in rows) + "]}").encode()


def rows_of(*counts: int) -> bytes:
    return json.dumps({"x": [[0] * count for count in counts]}).encode()


WRONG: list[tuple[bytes, str, str]] = [
    (b"", "invalid_json", "empty"),
    (b" ", "invalid_json", ""),
    (b"x", "invalid_json", "byte 0"),
    (GOOD[:-1], "invalid_json", "truncated"),
    (GOOD + b"x", "invalid_json", "trailing"),
    (GOOD + b"{}", "invalid_json", "trailing"),
    (GOOD + GOOD, "invalid_body", "1798 commas, a window has 899"),
    (b"\xef\xbb\xbf" + GOOD, "invalid_json", "byte 0"),
    (GOOD.decode().encode("utf-16"), "invalid_json", ""),
    (b'{"\xff": 1}', "invalid_json", "UTF-8"),
    (b'{"x": "\xff"}', "invalid_body", "x: "),
    (b"null", "invalid_body", "`object`"),
    (b"[]", "invalid_body", "`object`"),
    (b"1", "invalid_body", "`object`"),
    (b"{}", "invalid_body", "`x`"),
    (b'{"X": []}', "invalid_body", "`X`"),
    (b'{"x": null}', "invalid_body", "x: "),
    (b'{"x": {}}', "invalid_body", "x: "),
    (b'{"x": "[]"}', "invalid_body", "x: "),
    (b'{"x": [1]}', "invalid_body", "x[0]: "),
    (GOOD[:-1] + b', "y": 1}', "invalid_body", "`y`"),
    (b'{"y": 1, ' + GOOD[1:], "invalid_body", "`y`"),
    (GOOD[:-1] + b', "x": []}', "invalid_body", "x: the key is there more than once"),
    (GOOD[:-1] + b', "\\u0078": []}', "invalid_body", "more than once"),
    (b'{"x": [], ' + GOOD[1:], "invalid_body", "more than once"),
    (with_value("true"), "invalid_body", "x[3][4]: Expected `float`, got `bool`"),
    (with_value('"1"'), "invalid_body", "x[3][4]: Expected `float`, got `str`"),
    (with_value("null"), "invalid_body", "x[3][4]: "),
    (with_value("[0]"), "invalid_body", "x[3][4]: "),
    (with_value("{}"), "invalid_body", "x[3][4]: "),
    (with_value("1e400"), "invalid_body", "x[3][4]: Number out of range"),
    (with_value("1" + "0" * 400), "invalid_body", "x[3][4]: Number out of range"),
    (with_value("1e39"), "window_value", "x[3][4]: "),
    (with_value("-3.5e38"), "window_value", "x[3][4]: "),
    (with_value("NaN"), "window_value", "x[3][4]: nan"),
    (with_value("Infinity"), "window_value", "x[3][4]: inf"),
    (with_value("-Infinity"), "window_value", "x[3][4]: -inf"),
    (with_value("nan"), "invalid_json", "byte"),
    (with_value("01"), "invalid_json", "byte"),
    (with_value("+1"), "invalid_json", "byte"),
    (with_value("1."), "invalid_json", "byte"),
    (with_value(".5"), "invalid_json", "byte"),
    (with_value("0x1"), "invalid_json", "byte"),
    (with_value("1,"), "invalid_json", "byte"),
    (b'{"x": [NaN, {"a": 1}]}', "window_shape", "2 rows"),
    (b"NaN", "invalid_json", "byte 0"),
    (with_value("NaN, 1" + "0" * 400), "window_shape", "x[3]: 10 values"),
    (with_value("NaN", 2).replace(b"[0.5,", b"[1" + b"0" * 400 + b","), "invalid_body", "x[0][0]"),
    (with_value("NaN", 0).replace(b"0.5]]", b"1" + b"0" * 400 + b"]]"), "invalid_json", "OverflowError"),
    (with_value("NaN", 0).replace(b"0.5]]", b'"a"]]'), "invalid_json", "ValueError"),
    (b'{"x": NaN}', "invalid_json", "byte 6"),
    (b'{"y": NaN}', "invalid_body", "`y`"),
    (rows_of(*[9] * 99), "window_shape", "x: 99 rows"),
    (rows_of(*[9] * 101), "window_shape", "x: 101 rows"),
    (rows_of(), "window_shape", "x: 0 rows"),
    (rows_of(*[9] * 50, 8, *[9] * 49), "window_shape", "x[50]: 8 values"),
    (rows_of(*[9] * 99, 10), "window_shape", "x[99]: 10 values"),
    (rows_of(*[9] * 99, 0), "window_shape", "x[99]: 0 values"),
    (b'{"x":' + b"[" * 100_000, "invalid_body", "x[0][0]: "),
    (b"[" * 100_000, "invalid_body", "`object`"),
    (b'{"y":' * 20_000, "invalid_body", "`y`"),
]


@pytest.mark.parametrize(("body", "code", "message"), WRONG)
def test_a_wrong_body_names_its_place(body: bytes, code: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_infer_body(body)
    assert caught.value.code == code
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.integers(0, 2**32 - 1))
def test_a_good_body_is_the_window(seed: int) -> None:
    window = imu_windows(1, seed)[0]
    np.testing.assert_array_equal(parse_infer_body(infer_body(window)), window)


@pytest.mark.parametrize("text", ["0", "-0", "7", "-12", "1e-400", "1E3", "18446744073709551616", "3.4e38"])
def test_every_json_number_that_is_a_float32_is_one(text: str) -> None:
    assert parse_infer_body(with_value(text))[3, 4] == np.float32(text)


def test_an_escaped_key_is_the_key() -> None:
    np.testing.assert_array_equal(
        parse_infer_body(GOOD.replace(b'"x"', b'"\\u0078"')), parse_infer_body(GOOD)
    )


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def by_the_book(body: bytes) -> bytes | None:
    """What Python's own parser makes of it, number by number; None where it is no window."""
    try:
        document = json.loads(body.decode(), object_pairs_hook=tuple)
        ((key, rows),) = document
        numbers = [number for row in rows for number in row]
        right = isinstance(document, tuple) and isinstance(rows, list)
        right = right and key == "x" and [len(row) for row in rows] == [9] * 100
        right = right and all(isinstance(row, list) for row in rows)
        if not right or not all(type(number) in (int, float) for number in numbers):
            return None
        packed = struct.pack("<900f", *numbers)
    except (ValueError, TypeError, OverflowError, struct.error, RecursionError):
        return None
    return packed if np.isfinite(np.frombuffer(packed, "<f4")).all() else None


def parses_or_is_refused(body: bytes) -> None:
    """Whichever of the parsers took it: what is taken is what the book says, and nothing else is."""
    expected = by_the_book(body)
    try:
        window = parse_infer_body(body)
    except (BodyError, WindowError):
        assert expected is None
        return
    assert window.shape == (100, 9)
    assert window.dtype == np.float32
    assert window.tobytes() == expected


@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    parses_or_is_refused(body)


@given(JSON_VALUES, st.integers(0, 99), st.integers(0, 8))
def test_any_value_in_any_place_parses_or_is_refused(value: Any, row: int, channel: int) -> None:
    parses_or_is_refused(with_value(json.dumps(value), row, channel))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_parses_or_is_refused(changes: list[tuple[int, int]]) -> None:
    body = bytearray(GOOD)
    for position, value in changes:
        body[position] = value
    parses_or_is_refused(bytes(body))


@given(st.lists(st.tuples(st.sampled_from(["x", "y", "\\u0078"]), st.booleans()), max_size=3))
def test_only_one_key_passes(members: list[tuple[str, bool]]) -> None:
    good = GOOD[len(b'{"x": ') : -1].decode()
    body = "{" + ",".join(f'"{key}":{good if right else "[]"}' for key, right in members) + "}"
    is_right = [(key in ("x", "\\u0078"), right) for key, right in members] == [(True, True)]
    try:
        parse_infer_body(body.encode())
    except (BodyError, WindowError):
        assert not is_right
    else:
        assert is_right


def test_a_body_with_far_too_many_values_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many numbers are what costs time; within the limit of bytes there is room for 65,000."""

    class Unread:
        def decode(self, body: bytes) -> None:
            raise AssertionError("was decoded")

    monkeypatch.setattr("runtime.infer_body._DECODER", Unread())
    for item in (b"[]", b"0"):
        body = b'{"x":[' + b",".join([item] * (MAX_COMMAS + 2)) + b" " * 40_000 + b"]}"
        with pytest.raises(BodyError, match=f"{MAX_COMMAS + 1} commas, a window has 899"):
            parse_infer_body(body)


def test_the_most_verbose_window_fits() -> None:
    """25 characters are what a float64 takes in scientific notation, with a space before it."""
    rows = [[" -1.2345678901234567e+001"] * 9 for _ in range(100)]
    body = ('{"x":[' + ",".join("[" + ",".join(row) + "]" for row in rows) + "]}").encode()
    assert len(rows[0][0]) == 25
    assert len(body) < MAX_BODY_BYTES / 4
    assert parse_infer_body(body)[99, 8] == np.float32("-12.345678901234567")


NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.floats().map(json.dumps),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from(
        ["1e38", "3.4028235e38", "3.4028236e38", "-0", "-0.0", "1E5", "1e-400", "01", "1.", ".5", "+1"]
    ),
)
"""As text: most of them JSON, and not all of them float32."""


@given(st.lists(st.tuples(NUMBERS, st.integers(0, 99), st.integers(0, 8)), max_size=5))
def test_every_number_is_read_as_the_book_reads_it(changes: list[tuple[str, int, int]]) -> None:
    rows = [["0.5"] * 9 for _ in range(100)]
    for text, row, channel in changes:
        rows[row][channel] = text
    parses_or_is_refused(('{"x":[' + ",".join(f"[{','.join(row)}]" for row in rows) + "]}").encode())


@given(
    st.lists(
        st.sampled_from([b"[", b"]", b",", b'"x"', b'"', b"{", b"}", b":", b"0", b"[0]", b"],[", b" "]),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(0, 10_000), min_size=4, max_size=4),
    st.booleans(),
)
def test_a_window_whose_brackets_are_moved_is_none(
    pieces: list[bytes], places: list[int], removed: bool
) -> None:
    """The quick parser flattens whatever nesting: the shape is held against more than a count of numbers."""
    body = with_value("0.5")
    for piece, place in zip(pieces, places, strict=False):
        at = body.find(piece, place % len(body)) if removed else place % len(body)
        if at >= 0:
            body = body[:at] + body[at + len(piece) :] if removed else body[:at] + piece + body[at:]
    parses_or_is_refused(body)


def test_rows_that_only_add_up_are_no_window() -> None:
    wrong: list[Any] = [
        [[1] * 8 + [[1]]] + [[1] * 9] * 99,
        [[1] * 8, [1] * 10] + [[1] * 9] * 98,
        [[1] * 9 + [[]]] + [[1] * 9] * 98,
        [[[1] * 9]] + [[1] * 9] * 99,
        [[1] * 900] + [[]] * 99,
    ]
    for rows in wrong:
        body = json.dumps({"x": rows}).encode()
        assert by_the_book(body) is None
        parses_or_is_refused(body)
        with pytest.raises((BodyError, WindowError)):
            read_body(b'{"x":[' + body[5:-1] + b"," + body[5:-1] + b"]}").windows(0, 2)  # type: ignore[union-attr]
