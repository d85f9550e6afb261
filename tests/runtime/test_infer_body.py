"""The body of ``POST /infer``: what is right passes bit for bit, what is wrong names its place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.errors import PipelineError, WindowError
from runtime.infer_body import MAX_BODY_BYTES, MAX_COMMAS, BodyError, parse_infer_body
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


def parses_or_is_refused(body: bytes) -> None:
    try:
        window = parse_infer_body(body)
    except (BodyError, WindowError):
        return
    assert window.shape == (100, 9)
    assert np.isfinite(window).all()


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
