"""The body of ``POST /infer``: bytes in, a window out, or the place that is wrong."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from runtime.contract.errors import PipelineError, WindowError
from runtime.contract.window import WINDOW_SHAPE, Window, check_window

MAX_BODY_BYTES: Final = 1024 * 1024
SCHEMA: Final = '{"x": [100 rows of [ax, ay, az, gx, gy, gz, mx, my, mz]]}, finite numbers, m/s², rad/s, µT'
_EXPLAIN_BYTES: Final = 64 * 1024
_PATH: Final = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>[^`]*)`", re.DOTALL)


class BodyError(PipelineError):
    """A body that is not the JSON that ``SCHEMA`` says."""

    code = "invalid_body"


class InvalidJsonError(BodyError):
    """A body that is not JSON at all."""

    code = "invalid_json"


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    x: list[list[float]]


_DECODER: Final = msgspec.json.Decoder(_Body)


def parse_infer_body(body: bytes) -> Window:
    """Turn a request's body into a window.

    Args:
        body: JSON of ``SCHEMA``, UTF-8; integers are numbers, booleans and null are not.

    Returns:
        float32 (100, 9), finite, C-contiguous.

    Raises:
        InvalidJsonError: Empty, not UTF-8, not JSON.
        BodyError: A missing, unknown or repeated key, or a value of another type.
        WindowShapeError: Not 100 rows of 9.
        WindowValueError: A value is not a finite float32.
    """
    if not body:
        raise InvalidJsonError("the body is empty")
    try:
        rows = _DECODER.decode(body).x
    except UnicodeDecodeError as error:
        raise InvalidJsonError(f"not UTF-8: {error.reason}") from error
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _syntax_error(body, str(error)) from error
    # The decoder keeps the last of several equal keys. A body that passed it holds one kind of
    # string, the key "x": more than its two quotes means that the key was said twice.
    if body.count(b'"') != 2:
        raise BodyError("the key is there more than once", where="x")
    return check_window(rows)


def _type_error(message: str) -> BodyError:
    found = _PATH.fullmatch(message)
    if found is None:
        return BodyError(message[:200])
    return BodyError(found["what"][:200], where=found["where"][:100])


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
