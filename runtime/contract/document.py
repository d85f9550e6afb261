"""Strict JSON documents: frozen dataclasses in, the same bytes out, nothing guessed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
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
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if origin is tuple and isinstance(value, list):
        if arguments[0] is float and all(type(item) is float and math.isfinite(item) for item in value):
            return tuple(value)  # most of a manifest is such numbers
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _decode_scalar(kind, value, where)


@functools.cache
def _fields_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode_dataclass(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ManifestError(f"{type(value).__name__}, expected an object", where=where)
    hints = _fields_of(kind)
    unknown, missing = sorted(value.keys() - hints.keys()), sorted(hints.keys() - value.keys())
    if unknown or missing:
        found = [f"unknown key {key!r}" for key in unknown] + [f"missing key {key!r}" for key in missing]
        raise ManifestError(", ".join(found), where=where)
    return kind(**{key: _decode(hints[key], value[key], f"{where}.{key}") for key in hints})


def _decode_scalar(kind: Any, value: object, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError as error:
            raise ManifestError("an integer beyond float64", where=where) from error
        if not math.isfinite(number):
            raise ManifestError(f"{number} is not finite", where=where)
        return number
    if kind in (str, int, bool) and type(value) is kind:
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ManifestError(f"{type(value).__name__}, expected {expected}", where=where)
