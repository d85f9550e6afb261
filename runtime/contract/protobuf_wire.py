"""A bounded reader of protobuf's wire format: one level at a time, views instead of copies.

No length that the bytes merely claim decides what is allocated, and all fields of one file share a
budget, so neither nesting nor repetition makes a reader slow or large. What an encoder never writes
(a field as two types, a single field twice, a group) is refused rather than interpreted: two readers
must not see two things.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Final, Self

from runtime.contract.errors import PipelineError

MAX_FIELDS: Final = 65_536
"""Fields that are looked at in one file; a genuine HEF of 2.6 MB has a few hundred."""
MAX_DEPTH: Final = 16
MAX_TEXT_BYTES: Final = 4096
_TEXT_BYTES_A_FIELD: Final = 16
_MAX_VARINT_BYTES: Final = 10
_MAX_FIELD_NUMBER: Final = 2**29 - 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}


class WireError(PipelineError):
    """Bytes that are not the protobuf message they should be."""

    code = "protobuf"


class _Budget:
    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def spend(self, fields: int, where: str) -> None:
        self._left -= fields
        if self._left < 0:
            raise WireError(f"has more than {MAX_FIELDS} fields", where=where)


class Message:
    """The fields of one message. A number that is absent reads as proto3's zero.

    Args:
        data: The message's bytes; not copied.
        where: How errors name it.

    Raises:
        WireError: Not the wire format, or more of it than ``MAX_FIELDS`` or ``MAX_DEPTH``.
    """

    __slots__ = ("_budget", "_depth", "_values", "_wires", "where")

    def __init__(
        self, data: memoryview, where: str, *, _budget: _Budget | None = None, _depth: int = 0
    ) -> None:
        self.where = where
        self._budget = _budget or _Budget()
        self._depth = _depth
        if _depth > MAX_DEPTH:
            raise WireError(f"is nested more than {MAX_DEPTH} deep", where=where)
        self._wires: dict[int, int] = {}
        self._values: dict[int, list[int | memoryview]] = {}
        self._scan(data)

    def _scan(self, data: memoryview) -> None:
        position, size = 0, len(data)
        while position < size:
            self._budget.spend(1, self.where)
            key, position = self._varint(data, position)
            number, wire = key >> 3, key & 7
            if not 1 <= number <= _MAX_FIELD_NUMBER:
                raise WireError(f"has a field with the number {number}", where=self.where)
            if self._wires.setdefault(number, wire) != wire:
                raise WireError(f"has field {number} as two types", where=self.where)
            value: int | memoryview
            if wire == _VARINT:
                value, position = self._varint(data, position)
            else:
                value, position = self._view(data, position, number, wire)
            self._values.setdefault(number, []).append(value)

    def _view(self, data: memoryview, position: int, number: int, wire: int) -> tuple[memoryview, int]:
        if wire == _BYTES:
            length, position = self._varint(data, position)
        elif wire in _FIXED_BYTES:
            length = _FIXED_BYTES[wire]
        else:
            raise WireError(f"has field {number} with wire type {wire}", where=self.where)
        left = len(data) - position
        if length > left:
            raise WireError(f"field {number} claims {length} bytes, {left} are left", where=self.where)
        return data[position : position + length], position + length

    def _varint(self, data: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= len(data):
                raise WireError("ends inside a number", where=self.where)
            byte = data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value >= 2**64:
                    break
                return value, position + index + 1
        raise WireError("has a number of more than 64 bits", where=self.where)

    def has(self, number: int) -> bool:
        """Whether the field is there at all."""
        return number in self._values

    def count(self, number: int) -> int:
        """How many values the field has."""
        return len(self._values.get(number, ()))

    def integer(self, number: int) -> int:
        """An unsigned integer or an enum."""
        value = self._single(number, _VARINT)
        return value if isinstance(value, int) else 0

    def float32(self, number: int) -> float:
        """A finite float."""
        return self._floating(number, _FIXED32, "<f")

    def float64(self, number: int) -> float:
        """A finite double."""
        return self._floating(number, _FIXED64, "<d")

    def text(self, number: int) -> str:
        """A string of at most ``MAX_TEXT_BYTES``."""
        value = self._single(number, _BYTES)
        return self._decode(value, number) if isinstance(value, memoryview) else ""

    def texts(self, number: int) -> tuple[str, ...]:
        """A repeated string."""
        return tuple(self._decode(value, number) for value in self._views(number, _BYTES))

    def doubles(self, number: int) -> tuple[float, ...]:
        """A repeated double, packed or not; each value counts as a field."""
        packed = self._wires.get(number) == _BYTES
        found: list[float] = []
        for view in self._views(number, _BYTES if packed else _FIXED64):
            if len(view) % 8:
                raise WireError(f"field {number} is no list of doubles", where=self.where)
            self._budget.spend(len(view) // 8, self.where)
            found += struct.unpack(f"<{len(view) // 8}d", view)
        if not all(math.isfinite(value) for value in found):
            raise WireError(f"field {number} has a value that is not finite", where=self.where)
        return tuple(found)

    def message(self, number: int, name: str) -> Message | None:
        """A message inside, or None where it is absent; ``name`` is for errors."""
        value = self._single(number, _BYTES)
        return self._inside(value, name) if isinstance(value, memoryview) else None

    def messages(self, number: int, name: str) -> Iterator[Message]:
        """A repeated message, each looked at when its turn comes."""
        for index, view in enumerate(self._views(number, _BYTES)):
            yield self._inside(view, f"{name}[{index}]")

    def _inside(self, data: memoryview, name: str) -> Self:
        where = f"{self.where}.{name}" if self.where else name
        return type(self)(data, where, _budget=self._budget, _depth=self._depth + 1)

    def _single(self, number: int, wire: int) -> int | memoryview | None:
        values = self._of(number, wire)
        if len(values) > 1:
            raise WireError(f"has field {number} {len(values)} times", where=self.where)
        return values[0] if values else None

    def _views(self, number: int, wire: int) -> list[memoryview]:
        return [value for value in self._of(number, wire) if isinstance(value, memoryview)]

    def _of(self, number: int, wire: int) -> list[int | memoryview]:
        if (found := self._wires.get(number, wire)) != wire:
            raise WireError(f"field {number} has wire type {found}, not {wire}", where=self.where)
        return self._values.get(number, [])

    def _floating(self, number: int, wire: int, form: str) -> float:
        value = self._single(number, wire)
        if not isinstance(value, memoryview):
            return 0.0
        result: float = struct.unpack(form, value)[0]
        if not math.isfinite(result):
            raise WireError(f"field {number} is not finite", where=self.where)
        return result + 0.0  # no -0.0, which the compiler writes for some zero points

    def _decode(self, value: memoryview, number: int) -> str:
        if len(value) > MAX_TEXT_BYTES:
            raise WireError(f"field {number} is a text of {len(value)} bytes", where=self.where)
        self._budget.spend(len(value) // _TEXT_BYTES_A_FIELD, self.where)
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"field {number} is no UTF-8 text", where=self.where) from error
