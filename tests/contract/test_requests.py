"""Moves that wait for a signature: kept, shown, taken away; what is none is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runtime.contract.errors import (
    ManifestError,
    ReleaseNotFoundError,
)
from runtime.contract.requests import (
    FOLDER,
    MoveRequest,
    drop_request,
    pending_requests,
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
