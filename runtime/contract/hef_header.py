"""The container of a HEF: magic, version, lengths, checksum. All integers are big-endian.

=======  ======  ============================================================  =================
version  header  after magic, version and the description's size               checksum
=======  ======  ============================================================  =================
0        32      u32 reserved, MD5                                             MD5
1        28      u32 CRC-32, u64 ccws, u32 reserved                            CRC-32
2        44      u64 XXH3, u64 ccws, 2 u64 reserved                            XXH3, 64 bits
3        56      u64 XXH3, u64 ccws and padding, u32 padding, u64 additional,  XXH3, and another
                 u64 XXH3 of the description (0: none), u64 reserved           of the description
=======  ======  ============================================================  =================

The checksum is that of everything after the header: the description (protobuf), padding, the weights
("ccws") and what else there is.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import xxhash

from runtime.contract.hef_errors import (
    HefChecksumError,
    HefError,
    HefHeaderError,
    HefJsonError,
    HefMagicError,
    HefOverlongError,
    HefPointerError,
    HefShortError,
    HefTextError,
    HefTruncatedError,
    HefVersionError,
)

MAGIC: Final = b"\x01HEF"
MIN_HEF_BYTES: Final = 56
"""HailoRT crashes the interpreter on fewer bytes, and no HEF with a network has so few."""
MAX_HEF_BYTES: Final = 256 * 1024 * 1024
"""A HEF for a Hailo-8 has a few MB; checksums of more would take seconds."""
HEADER_BYTES: Final = {0: 32, 1: 28, 2: 44, 3: 56}
"""Header version to its size."""
PADDING_ALIGNMENT: Final = 4096
"""To which version 3 pads the description, so that the weights can be mapped."""
_LOOKED_AT: Final = 4096
_COPY_AGAIN: Final = "copy the file again from where it was compiled, or compile it again"


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container whose lengths and checksum are right.

    Args:
        version: Of the header.
        checksum: ``md5``, ``crc32`` or ``xxh3``.
        description: The protobuf inside; a view, not a copy.
    """

    version: int
    checksum: str
    description: memoryview


def open_container(data: bytes, where: str) -> Container:
    """Look at the header, the lengths and the checksum.

    Raises:
        HefError: Not a HEF, or not a whole one; each kind its own (``hef_errors``).
    """
    _refuse_other_files(data, where)
    version, size = struct.unpack_from(">II", data, 4)
    header = HEADER_BYTES.get(version)
    if header is None:
        raise HefVersionError(
            f"has header version {version}, this reader knows {', '.join(map(str, HEADER_BYTES))}",
            where=where,
            hint="a newer compiler made it, or the file is damaged",
        )
    body = memoryview(data)[header:]
    further = _further_bytes(data, version, header + size, where)
    expected = size + further
    if len(body) != expected:
        kind = HefTruncatedError if len(body) < expected else HefOverlongError
        raise kind(
            f"has {len(body)} bytes after its header, which says {expected}", where=where, hint=_COPY_AGAIN
        )
    return Container(
        version=version, checksum=_check(data, version, body, size, where), description=body[:size]
    )


def _refuse_other_files(data: bytes, where: str) -> None:
    if not data:
        raise HefShortError("is empty", where=where, hint=_COPY_AGAIN)
    if len(data) > MAX_HEF_BYTES:
        raise HefOverlongError(f"has {len(data)} bytes, at most {MAX_HEF_BYTES} are read", where=where)
    if data[:4] != MAGIC[: len(data)]:
        raise _other_file(data, where)
    if len(data) < MIN_HEF_BYTES:
        raise HefShortError(
            f"has {len(data)} bytes, no HEF has fewer than {MIN_HEF_BYTES}", where=where, hint=_COPY_AGAIN
        )


def _other_file(data: bytes, where: str) -> HefError:
    head = data[:_LOOKED_AT]
    if head.startswith(b"version https://git-lfs"):
        return HefPointerError(
            "is a Git LFS pointer, not the file itself",
            where=where,
            hint="run `git lfs pull` in its checkout",
        )
    if (text := _as_text(head)) is not None:
        if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
            return HefJsonError(
                "is JSON, not a HEF", where=where, hint="a mock was put in its place: compile the model"
            )
        return HefTextError(
            "is text, not a HEF", where=where, hint="a placeholder or a web page: get the compiled file"
        )
    return HefMagicError(
        f"begins with {data[:4].hex(' ')}, a HEF begins with {MAGIC.hex(' ')}",
        where=where,
        hint="only Hailo's compiler makes a HEF; a file by another name is none",
    )


def _as_text(head: bytes) -> str | None:
    """The beginning of a text file, or None where it is none."""
    for cut in range(4):  # a character may be cut at the end of what is looked at
        try:
            text = head[: len(head) - cut].decode()
        except UnicodeDecodeError:
            continue
        return text if all(c.isprintable() or c in "\ufeff\t\r\n\f" for c in text) else None
    return None


def _further_bytes(data: bytes, version: int, description_end: int, where: str) -> int:
    """Bytes after the description, as the header says."""
    further, reserved = 0, 0
    if version == 0:
        (reserved,) = struct.unpack_from(">I", data, 12)
    elif version == 1:
        further, reserved = struct.unpack_from(">QI", data, 16)
    elif version == 2:
        further, *others = struct.unpack_from(">QQQ", data, 20)
        reserved = max(others)
    else:
        weights, padding, additional, _, reserved = struct.unpack_from(">QIQQQ", data, 20)
        further = weights + additional
        aligned = not padding or (description_end + padding) % PADDING_ALIGNMENT == 0
        if padding > weights or padding >= PADDING_ALIGNMENT or not aligned:
            raise HefHeaderError(
                f"says {padding} bytes of padding, which do not lead to the weights",
                where=where,
                hint=_COPY_AGAIN,
            )
    if reserved:
        raise HefHeaderError(
            "says something where a header of its version is empty", where=where, hint=_COPY_AGAIN
        )
    return further


def _check(data: bytes, version: int, body: memoryview, size: int, where: str) -> str:
    """Compare the checksums; returns the kind."""
    kind = "xxh3"
    if version == 0:
        kind, found, expected = "md5", hashlib.md5(body, usedforsecurity=False).digest(), data[16:32]
    elif version == 1:
        kind, found, expected = "crc32", zlib.crc32(body).to_bytes(4, "big"), data[12:16]
    else:
        found, expected = xxhash.xxh3_64_digest(body), data[12:20]
    if found == expected and version == 3 and any(data[40:48]):
        found, expected = xxhash.xxh3_64_digest(body[:size]), data[40:48]
    if found != expected:
        raise HefChecksumError(
            f"{kind} is {found.hex()}, the header says {expected.hex()}", where=where, hint=_COPY_AGAIN
        )
    return kind
