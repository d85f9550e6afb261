"""Strict JSON documents: frozen dataclasses in, the same bytes out, nothing guessed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from runtime.contract.errors import ManifestError

T = TypeVar("T")
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of some bytes, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(document: object) -> bytes:
    """Write a dataclass (or plain JSON value) canonically: sorted keys, UTF-8, one final newline.

    Equal values give equal bytes, so the digest of the bytes names the value.

    Raises:
        ValueError: A number is not finite.
    """
    value = dataclasses.asdict(document) if dataclasses.is_dataclass(document) else document  # type: ignore[arg-type]
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def from_json(
    kind: type[T],
    data: bytes,
    where: str,
    *,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """Read a dataclass from JSON bytes; refuse whatever the dataclass does not say.

    Args:
        kind: A dataclass whose fields are dataclasses, tuples, string-keyed dicts, str, int,
            float, bool, or one of these or None.
        data: At most ``MAX_DOCUMENT_BYTES``.
        where: Name of the document, for messages.
        upgrade: Turns an older schema's object into the present one's, before it is read.

    Raises:
        ManifestError: Not JSON, a missing or unknown key, a wrong type, or a number that is not
            finite, or what the dataclass itself refuses; names the document and the key's path.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ManifestError(f"{len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are read", where=where)
    try:
        # As UTF-8 and nothing else: json would guess UTF-16, too, and let halves of characters through.
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not JSON: {error}", where=where) from error
    try:
        if upgrade and isinstance(value, dict):
            value = upgrade(value)
        result: T = _decode(kind, value, where)
    except ManifestError as error:
        # A dataclass that checks itself does not know which document it comes from.
        if error.where.startswith(where):
            raise
        raise error.within(where) from error
    return result


def _decode(kind: Any, value: object, where: str) -> Any:
    return _decoder(kind)(value, where)


@functools.cache
def _decoder(kind: Any) -> Callable[[Any, str], Any]:
    """How a kind is read: asked once of the kind, not of each of its values."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return functools.partial(_decode_dataclass, kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return functools.partial(_decode_optional, inner)
    if origin is tuple:
        return functools.partial(_decode_tuple, kind, arguments[0])
    if origin is dict:
        return functools.partial(_decode_dict, kind, arguments[1])
    return functools.partial(_decode_scalar, kind)


def _decode_optional(inner: Any, value: object, where: str) -> Any:
    return None if value is None else _decode(inner, value, where)


def _decode_tuple(kind: Any, item: Any, value: object, where: str) -> Any:
    if not isinstance(value, list):
        return _decode_scalar(kind, value, where)
    # Most of a manifest is such numbers.
    if item is float and set(map(type, value)) == {float} and all(map(math.isfinite, value)):
        return tuple(value)
    decode = _decoder(item)
    return tuple([decode(each, f"{where}[{i}]") for i, each in enumerate(value)])


def _decode_dict(kind: Any, item: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        return _decode_scalar(kind, value, where)
    decode = _decoder(item)
    return {key: decode(each, f"{where}.{key}") for key, each in value.items()}


@functools.cache
def _fields_of(kind: type) -> dict[str, Callable[[Any, str], Any]]:
    return {name: _decoder(hint) for name, hint in typing.get_type_hints(kind).items()}


def _decode_dataclass(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ManifestError(f"{type(value).__name__}, expected an object", where=where)
    fields = _fields_of(kind)
    if value.keys() != fields.keys():
        unknown, missing = sorted(value.keys() - fields.keys()), sorted(fields.keys() - value.keys())
        found = [f"unknown key {key!r}" for key in unknown] + [f"missing key {key!r}" for key in missing]
        raise ManifestError(", ".join(found), where=where)
    return kind(**{key: decode(value[key], f"{where}.{key}") for key, decode in fields.items()})


def _decode_scalar(kind: Any, value: object, where: str) -> Any:
    if type(value) is kind and kind in (str, int, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError as error:
            raise ManifestError("an integer beyond float64", where=where) from error
        if not math.isfinite(number):
            raise ManifestError(f"{number} is not finite", where=where)
        return number
    expected = getattr(kind, "__name__", str(kind))
    raise ManifestError(f"{type(value).__name__}, expected {expected}", where=where)
