"""Moves that wait for a signature: written where the key is not, shown and signed where it is.

A request says nothing by itself: whoever signs checks everything again.
"""

from __future__ import annotations

import contextlib
import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.channels import CHANNELS, MOST_WORDS
from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import ManifestError, ReleaseNotFoundError, StoreError, store_errors
from runtime.contract.files import list_directory, read_bounded, sync_directory, write_document
from runtime.contract.release import TARGETS, check_digest
from runtime.contract.store import ReleaseStore

FOLDER: Final = "requests"
REQUEST_SCHEMA: Final = 1
REQUESTED_ACTIONS: Final = ("promote", "roll_back")
MOST_REQUESTS: Final = 200
"""Requests that are shown at once; any other can still be named."""
MAX_REQUEST_BYTES: Final = 64 * 1024
_NAME: Final = re.compile(r"([0-9a-f]{64})\.json")


@dataclass(frozen=True, kw_only=True)
class MoveRequest:
    """What somebody wants of a channel.

    Args:
        action: ``promote`` or ``roll_back``.
        release: The release; empty where a roll back takes the newest good one.
        approved_by: Who approved it, as they said.
        origin: Where it was written, a Dagster run for one.
        seen: SHA-256 of the channel's newest entry when it was written; empty for none.
    """

    schema: int
    action: str
    target: str
    channel: str
    release: str
    approved_by: str
    reason: str
    force: bool
    origin: str
    seen: str
    at: str

    def __post_init__(self) -> None:
        if self.schema != REQUEST_SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {REQUEST_SCHEMA}", where="schema")
        if self.action not in REQUESTED_ACTIONS:
            raise ManifestError(f"{self.action[:40]!r} cannot be requested", where="action")
        if self.target not in TARGETS or self.channel not in CHANNELS:
            raise ManifestError("is no channel", where="channel")
        if self.action == "promote" and (self.channel != "stable" or not self.release):
            raise ManifestError("a promotion is of a release, to stable", where="channel")
        for field in ("approved_by", "reason", "origin", "at"):
            # It is shown before anybody has vouched for it: nothing that a terminal obeys.
            text = getattr(self, field)
            if not text.strip() or not text.isprintable() or len(text) > MOST_WORDS:
                raise ManifestError(
                    f"must be said, in one line of at most {MOST_WORDS} characters", where=field
                )
        for field in ("release", "seen"):
            if value := getattr(self, field):
                check_digest(value, field)


def write_request(store: ReleaseStore, request: MoveRequest) -> str:
    """Keep a request in the store; returns its name, the SHA-256 of its bytes."""
    data = to_json(request)
    name = sha256_bytes(data)
    path = store.root / FOLDER / f"{name}.json"
    with store.writing(), store_errors(path):
        write_document(path, data)
    return name


def pending_requests(store: ReleaseStore, prefix: str = "") -> dict[str, MoveRequest]:
    """Name to request, oldest first; what is none, or cannot be read, is left out and takes no one's place.

    Every file that has a request's name is looked at, one at a time and none of it beyond
    ``MAX_REQUEST_BYTES``; of those that are requests the oldest ``MOST_REQUESTS`` are kept.

    Args:
        prefix: Only those whose names begin so.

    Raises:
        StoreError: The store cannot be read.
    """
    folder = store.root / FOLDER
    with store_errors(folder):
        names = [match[1] for name in list_directory(folder) if (match := _NAME.fullmatch(name))]
    found = _readable(folder, (name for name in names if name.startswith(prefix)))
    return dict(heapq.nsmallest(MOST_REQUESTS, found, key=lambda item: (item[1].at, item[0])))


def _readable(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, MoveRequest]]:
    for name in names:
        with contextlib.suppress(ManifestError, StoreError):
            yield name, read_request(folder / f"{name}.json")


def read_request(path: Path) -> MoveRequest:
    """One request; ManifestError where it is none or not what its name says."""
    with store_errors(path):
        data = read_bounded(path, MAX_REQUEST_BYTES)
    if len(data) > MAX_REQUEST_BYTES:
        raise ManifestError(f"more than {MAX_REQUEST_BYTES} bytes are not read", where=str(path))
    if sha256_bytes(data) != path.stem:
        raise ManifestError("is not what its name says", where=str(path))
    return from_json(MoveRequest, data, str(path))


def request_named(store: ReleaseStore, prefix: str) -> tuple[str, MoveRequest]:
    """The only pending request that begins so; ReleaseNotFoundError where there is none or several."""
    found = list(pending_requests(store, prefix).items())
    if len(found) != 1 or not prefix:
        raise ReleaseNotFoundError(
            f"names {len(found) or 'no'} pending request{'s' if len(found) > 1 else ''}",
            where=prefix,
            hint="`releasectl requests` shows all",
        )
    return found[0]


def drop_request(store: ReleaseStore, name: str) -> None:
    """Take a request away: it was signed, or will not be."""
    path = store.root / FOLDER / f"{check_digest(name, 'request')}.json"
    with store.writing(), store_errors(path):
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
