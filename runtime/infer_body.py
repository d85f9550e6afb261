"""The body of ``POST /infer``: bytes in, windows out, or the place that is wrong."""

from __future__ import annotations

import json
import re
import struct
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import simdjson

from runtime.contract.errors import PipelineError, WindowError, WindowValueError
from runtime.contract.window import CHANNELS, WINDOW_LENGTH, WINDOW_SHAPE, FloatArray, Window, check_window

WINDOW_BYTES: Final = 4 * WINDOW_LENGTH * len(CHANNELS)
"""One window as float32."""

MAX_WINDOWS: Final = 277
"""In one body: as many as 1 MB of float32 holds."""

MAX_BODY_BYTES: Final = 1_000_000
"""A window as clients write it has about 18 kB of JSON, and 3600 bytes of float32."""

MAX_WINDOW_BYTES: Final = 128 * 1024
"""Of one window in JSON; 900 numbers of 25 characters each have 24 kB.

Who parses stops everybody else for as long, and EdgeInfer answers with random numbers after 45 ms: a batch
is parsed window by window, with turns for others in between. The worst window that this and ``MAX_COMMAS``
let through takes 10 ms (1200 long numbers close to the middle of two float64, which msgspec reads slowest; a
million tried at random, the slowest of 20 calls of ``parse_infer_body`` each, 2-core AMD EPYC, Python 3.11).
"""

MAX_COMMAS: Final = 1200
"""A window has 899. More mean work that cannot end well: it is refused before it is done."""

SCHEMA: Final = (
    '{"x": [100 rows of [ax, ay, az, gx, gy, gz, mx, my, mz]]}, finite numbers, m/s², rad/s, µT; '
    '{"x": [window, ...]} for several; or float32 little endian, 3600 bytes a window'
)
_COMMAS: Final = WINDOW_SHAPE[0] * WINDOW_SHAPE[1] - 1
_UNCOUNTED_BYTES: Final = 32 * 1024  # a body without more cannot hold enough to matter
_SLICE_BYTES: Final = 160 * 1024  # eight windows as clients write them
_BRACKETS: Final = WINDOW_LENGTH + 1  # of one window
_EXPLAIN_BYTES: Final = 64 * 1024
_PATH: Final = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>[^`]*)`", re.DOTALL)
_BATCH: Final = re.compile(rb'\s*\{\s*"[^"]{1,16}"\s*:\s*\[\s*\[\s*\[')
_PACK: Final = struct.Struct(f"<{_COMMAS + 1}f").pack  # "<" refuses what float32 has not
_WIDTHS: Final = {len(CHANNELS)}
_ROWS: Final = [len(CHANNELS)] * WINDOW_LENGTH
_OBJECT: Final = ord("{")
_BRACKET: Final = ord("[")
_SEVERAL: Final = 'several windows are {"x": [window, window]}, or application/octet-stream'


class BodyError(PipelineError):
    """A body that is not the JSON that ``SCHEMA`` says."""

    code = "invalid_body"


class InvalidJsonError(BodyError):
    """A body that is not JSON at all."""

    code = "invalid_json"


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    x: list[list[float]]


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    x: list[msgspec.Raw]


_DECODER: Final = msgspec.json.Decoder(_Body)
_BATCH_DECODER: Final = msgspec.json.Decoder(_Batch)
_PARSER: Final = simdjson.Parser()
_UNUSUAL: Final = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, FloatingPointError)
_ROWS_DECODER: Final = msgspec.json.Decoder(list[list[float]])


class WindowBatch:
    """Several windows, each read when it is asked for: reading all at once would stop everybody else.

    Args:
        raw: JSON of each window.
    """

    def __init__(self, raw: list[msgspec.Raw]) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    def slice_end(self, start: int, most: int) -> int:
        """Where a slice ends that is read without a pause: at most ``most`` windows, or ``_SLICE_BYTES``."""
        size = 0
        for index in range(start, min(start + most, len(self._raw))):
            size += len(memoryview(self._raw[index]))
            if size > _SLICE_BYTES and index > start:
                return index
        return min(start + most, len(self._raw))

    def windows(self, start: int, stop: int) -> FloatArray:
        """float32 (stop - start, 100, 9), finite.

        Raises:
            BodyError, WindowError: As ``parse_infer_body``, the place within ``x[i]``.
        """
        return np.stack([self._window(index) for index in range(start, min(stop, len(self._raw)))])

    def _window(self, index: int) -> Window:
        data, place = bytes(self._raw[index]), f"x[{index}]"
        if (found := _plain(data, within=True)) is not None:
            return found
        _check_size(data, place)
        try:
            rows = _ROWS_DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _type_error(str(error), place) from error
        window = _packed(rows)
        return check_window(rows, place) if window is None else window


def are_several(body: bytes) -> bool:
    """Whether JSON begins as several windows do."""
    return _BATCH.match(body) is not None


def read_body(body: bytes) -> Window | WindowBatch:
    """Read one window, or the outline of several.

    Args:
        body: JSON of ``SCHEMA``, at most ``MAX_BODY_BYTES``.

    Raises:
        BodyError, WindowError: As ``parse_infer_body``; or more than ``MAX_WINDOWS`` windows.
    """
    if not are_several(body):
        return parse_infer_body(body)
    _check_outline(body)
    try:
        raw = _BATCH_DECODER.decode(body).x
    except UnicodeDecodeError as error:
        raise InvalidJsonError(f"not UTF-8: {error.reason}") from error
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidJsonError(str(error)[:200], hint="NaN and Infinity are no JSON") from error
    # A string within a window is that window's error, told when it is read.
    if not any(b'"' in bytes(window) for window in raw):
        _check_one_key(body)
    if len(raw) > MAX_WINDOWS:
        raise BodyError(f"{len(raw)} windows, at most {MAX_WINDOWS} are taken", where="x")
    return WindowBatch(raw)


def read_octets(body: bytes) -> FloatArray:
    """Read windows as they lie in memory.

    Args:
        body: float32, little endian, (N, 100, 9) in C order.

    Returns:
        float32 (N, 100, 9), finite, read-only.

    Raises:
        BodyError: Empty, or no whole number of windows.
        WindowValueError: A value is not finite; names its (window, time, channel).
    """
    if not body or len(body) % WINDOW_BYTES:
        raise BodyError(
            f"{len(body)} bytes are no whole number of windows of {WINDOW_BYTES}",
            hint="send float32, little endian: 100 rows of 9 for each window",
        )
    windows = np.frombuffer(body, "<f4").reshape(-1, *WINDOW_SHAPE)
    if not np.isfinite(windows).all():
        index, row, channel = (int(i) for i in np.argwhere(~np.isfinite(windows))[0])
        raise WindowValueError(
            f"{windows[index, row, channel]} is not finite (time {row}, channel {CHANNELS[channel]})",
            where=f"x[{index}][{row}][{channel}]",
        )
    return windows


def parse_infer_body(body: bytes) -> Window:
    """Turn JSON into one window.

    Args:
        body: UTF-8; integers are numbers, booleans and null are not.

    Returns:
        float32 (100, 9), finite, C-contiguous.

    Raises:
        InvalidJsonError: Empty, not UTF-8, not JSON.
        BodyError: A missing, unknown or repeated key, a value of another type, or far more values
            than a window has.
        WindowShapeError: Not 100 rows of 9.
        WindowValueError: A value is not a finite float32.
    """
    if not body:
        raise InvalidJsonError("the body is empty")
    if (found := _plain(body)) is not None:
        return found
    if len(body) > _UNCOUNTED_BYTES:
        _check_size(body, "")
    try:
        rows = _DECODER.decode(body).x
    except UnicodeDecodeError as error:
        raise InvalidJsonError(f"not UTF-8: {error.reason}") from error
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _syntax_error(body, str(error)) from error
    _check_one_key(body)
    window = _packed(rows)
    return check_window(rows) if window is None else window


def _plain(data: bytes, *, within: bool = False) -> Window | None:
    """The window, where nothing about it is unusual; None where a closer look has to say what is.

    Args:
        data: A whole body, or, ``within`` it, the JSON of one window.
    """
    if len(data) > _UNCOUNTED_BYTES or data[0] != (_BRACKET if within else _OBJECT):
        return None
    # simdjson lays out arrays of whatever nesting: as many brackets as a window has, in rows of 9, leave one.
    if np.count_nonzero(np.frombuffer(data, np.uint8) == _BRACKET) != _BRACKETS:
        return None
    document: Any = None
    rows: Any = None
    try:
        document = _PARSER.parse(data)
        rows = document if within else document["x"]
        if (not within and len(document) != 1) or [len(row) for row in rows] != _ROWS:
            return None
        with np.errstate(over="raise"):
            return np.frombuffer(rows.as_buffer(of_type="d")).astype("<f4").reshape(WINDOW_SHAPE)
    except _UNUSUAL:
        return None
    finally:
        # The parser is used again only when nothing of its last document is left.
        del document, rows


def _packed(rows: list[list[float]]) -> Window | None:
    """The window, where nothing is wrong with it; packed, since numpy walks nested lists twice as slowly.

    JSON has no NaN and no infinity, and a number that float32 has not is not packed.
    """
    if len(rows) != WINDOW_LENGTH or set(map(len, rows)) != _WIDTHS:
        return None
    try:
        packed = _PACK(*chain.from_iterable(rows))
    except OverflowError:
        return None
    return np.frombuffer(packed, "<f4").reshape(WINDOW_SHAPE)


def _check_size(data: bytes, where: str) -> None:
    if len(data) > MAX_WINDOW_BYTES:
        what = f"{len(data)} bytes, one window has at most {MAX_WINDOW_BYTES}"
        raise BodyError(what, where=where, hint=_SEVERAL)
    commas = data.count(b",")
    if commas > MAX_COMMAS:
        raise BodyError(f"{commas} commas, a window has {_COMMAS}", where=where, hint=_SEVERAL)


def _check_outline(body: bytes) -> None:
    """Refuse what has far more parts than its brackets allow, before an object is made for each of them."""
    brackets, commas = body.count(b"["), body.count(b",")
    most = _BRACKETS * MAX_WINDOWS + 1
    if brackets > most:
        raise BodyError(f"{brackets} arrays, {MAX_WINDOWS} windows have {most}", where="x")
    windows = brackets // _BRACKETS + 1
    if commas > windows * (_COMMAS + 1):
        raise BodyError(f"{commas} commas, far more than windows of {brackets} arrays have", where="x")


def _check_one_key(body: bytes) -> None:
    # The decoder keeps the last of several equal keys. A body that passed it holds one kind of string, the
    # key: a third quote means that it was said twice.
    closing = body.find(b'"', body.find(b'"') + 1)
    if body.find(b'"', closing + 1) >= 0:
        raise BodyError("the key is there more than once", where="x")


def _type_error(message: str, within: str = "") -> BodyError:
    found = _PATH.fullmatch(message)
    if found is None:
        return BodyError(message[:200], where=within)
    return BodyError(found["what"][:200], where=within + found["where"][:100])


def _syntax_error(body: bytes, message: str) -> PipelineError:
    """Name the place of a NaN or Infinity, which Python's parser reads; else the byte."""
    if len(body) <= _EXPLAIN_BYTES and (b"NaN" in body or b"Infinity" in body):
        try:
            check_window(json.loads(body)["x"])
        except WindowError as error:
            return error
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            message = f"{message}; {type(error).__name__}"
    return InvalidJsonError(message[:200], hint=f"a window is {WINDOW_SHAPE[0]} x {WINDOW_SHAPE[1]} numbers")
