"""Which runtime this is, and which a release needs."""

from __future__ import annotations

import re
from typing import Final

from runtime.contract.errors import ManifestError

VERSION: Final = "0.1.0"
"""Version of the runtime, the project's own; the folder ships without package metadata."""
_VERSION: Final = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")


class RuntimeTooOldError(ManifestError):
    """A release that a newer runtime than this one is needed for."""

    code = "runtime_too_old"


def check_minimum_runtime(minimum: str, where: str = "minimum_runtime") -> None:
    """Refuse what needs a newer runtime than this one.

    Args:
        minimum: ``major.minor.patch``.
        where: Names the field, for messages.

    Raises:
        RuntimeTooOldError: It needs a newer one; names both versions.
        ManifestError: It is no version.
    """
    if _parts(minimum, where) > _parts(VERSION, where):
        raise RuntimeTooOldError(
            f"needs runtime {minimum}, this is {VERSION}",
            where=where,
            hint="update the runtime here; what it serves now stays",
        )


def _parts(version: str, where: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ManifestError(f"{version[:40]!r} is no version such as 1.2.3", where=where)
    return tuple(map(int, match.groups()))
