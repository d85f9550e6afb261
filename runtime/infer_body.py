"""The body of ``POST /infer``: bytes in, a window out, or the place that is wrong."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from runtime.contract.errors import PipelineError, WindowError
from runtime.contract.window import WINDOW_SHAPE, Window, check_window

MAX_BODY_BYTES: Final = 128 * 1024
"""A window as clients write it has about 18 kB; 900 numbers of 25 characters each have 24 kB.

Who parses stops everybody else for as long, and EdgeInfer answers with random numbers after 45 ms.
The worst body that this and ``MAX_COMMAS`` let through takes 10 ms (1200
long numbers close to the middle of two float64, which msgspec reads slowest; a million tried at
random, the slowest of 20 calls of ``parse_infer_body`` each, 2-core AMD EPYC, Python 3.11). At
1 MiB and without a bound on commas it took 720 ms.
"""

MAX_COMMAS: Final = 1200
"""A window has 899. More mean work that cannot end well: it is refused before it is done."""

SCHEMA: Final = '{"x": [100 rows of [ax, ay, az, gx, gy, gz, mx, my, mz]]}, finite numbers, m/s², rad/s, µT'
_COMMAS: Final = WINDOW_SHAPE[0] * WINDOW_SHAPE[1] - 1
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
        BodyError: A missing, unknown or repeated key, a value of another type, or far more values
            than a window has.
        WindowShapeError: Not 100 rows of 9.
        WindowValueError: A value is not a finite float32.
    """
    if not body:
        raise InvalidJsonError("the body is empty")
    commas = body.count(b",")
    if commas > MAX_COMMAS:
        raise BodyError(f"{commas} commas, a window has {_COMMAS}", hint="send one window at a time")
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
