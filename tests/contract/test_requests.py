"""Moves that wait for a signature: kept, shown, taken away; what is none is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runtime.contract.channels import MOST_WORDS
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import (
    ManifestError,
    ReleaseNotFoundError,
)
from runtime.contract.requests import (
    FOLDER,
    MAX_REQUEST_BYTES,
    MOST_REQUESTS,
    MoveRequest,
    drop_request,
    pending_requests,
    read_request,
    request_named,
    write_request,
)
from tests.keys import a_store
from tests.moves import put


def a_request(release: str, **changes: object) -> MoveRequest:
    fields: dict[str, object] = {
        "schema": 1,
        "action": "promote",
        "target": "emulator",
        "channel": "stable",
        "release": release,
        "approved_by": "Ada",
        "reason": "looked at it",
        "force": False,
        "origin": "a test",
        "seen": "",
        "at": "2026-11-27T10:00:00+00:00",
    }
    return MoveRequest(**(fields | changes))  # type: ignore[arg-type]


def test_requests_wait_oldest_first_until_they_are_dropped(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    late = write_request(store, a_request("b" * 64, at="2026-11-28T10:00:00+00:00"))
    early = write_request(store, a_request("a" * 64))
    assert write_request(store, a_request("a" * 64)) == early
    assert list(pending_requests(store)) == [early, late]
    assert request_named(store, late[:8])[0] == late
    drop_request(store, late)
    assert list(pending_requests(store)) == [early]
    with pytest.raises(ReleaseNotFoundError, match="names no pending request"):
        request_named(store, late)
    with pytest.raises(ReleaseNotFoundError, match="names 1 pending request"):
        request_named(store, "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"action": "publish"}, "'publish' cannot be requested"),
        ({"target": "hailo15"}, "is no channel"),
        ({"channel": "beta"}, "is no channel"),
        ({"channel": "canary"}, "a promotion is of a release, to stable"),
        ({"release": ""}, "a promotion is of a release, to stable"),
        ({"release": "../x"}, "is not a SHA-256"),
        ({"seen": "x"}, "is not a SHA-256"),
        ({"reason": "\x1b[2J"}, "reason: must be said, in one line"),
        ({"approved_by": "Ada\nBob"}, "approved_by: must be said, in one line"),
        ({"origin": ""}, "origin: must be said, in one line"),
        ({"at": "now\r"}, "at: must be said, in one line"),
        ({"reason": "x" * 2001}, "reason: must be said, in one line of at most 2000 characters"),
    ],
)
def test_a_request_that_says_nonsense_is_none(change: dict[str, object], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        dataclasses.replace(a_request("a" * 64), **change)  # type: ignore[arg-type]


def test_junk_among_the_requests_is_left_out(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    name = write_request(store, a_request("a" * 64))
    data = (tmp_path / FOLDER / f"{name}.json").read_bytes()
    put(tmp_path / FOLDER / f"{'c' * 64}.json", data)
    put(tmp_path / FOLDER / f"{'d' * 64}.json", b"[" * 100_000)
    put(tmp_path / FOLDER / "notes.txt", b"")
    (tmp_path / FOLDER / f"{'e' * 64}.json").mkdir()
    assert list(pending_requests(store)) == [name]


def test_junk_takes_no_requests_place(tmp_path: Path) -> None:
    """Anybody who may write the store can lay it there, under names that come first."""
    store = a_store(tmp_path)
    name = write_request(store, a_request("a" * 64))
    for number in range(MOST_REQUESTS + 5):
        put(tmp_path / FOLDER / f"{number:064x}.json", b"junk")
    assert list(pending_requests(store)) == [name]
    assert request_named(store, name[:8])[0] == name


def test_so_many_requests_are_shown_and_any_can_be_named(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for number in range(MOST_REQUESTS):
        put_request(tmp_path, a_request("a" * 64, reason=f"number {number}"))
    late = put_request(tmp_path, a_request("b" * 64, at="2026-11-28T10:00:00+00:00"))
    shown = pending_requests(store)
    assert len(shown) == MOST_REQUESTS
    assert late not in shown
    assert request_named(store, late[:12])[0] == late


def test_of_a_file_no_more_is_read_than_a_request_has(tmp_path: Path) -> None:
    longest = a_request("a" * 64, approved_by="\U0001f600" * MOST_WORDS, reason="\U0001f600" * MOST_WORDS)
    assert len(to_json(longest)) < MAX_REQUEST_BYTES
    data = to_json(a_request("a" * 64)) + b" " * MAX_REQUEST_BYTES
    path = put(tmp_path / FOLDER / f"{sha256_bytes(data)}.json", data)
    with pytest.raises(ManifestError, match="more than 65536 bytes are not read"):
        read_request(path)
    assert pending_requests(a_store(tmp_path)) == {}


def put_request(root: Path, request: MoveRequest) -> str:
    data = to_json(request)
    return put(root / FOLDER / f"{sha256_bytes(data)}.json", data).stem
