"""A store that somebody else could write to: what a reader never takes, and what it goes on to serve."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runtime.contract import store as store_module
from runtime.contract.channel_log import (
    LARGEST_JUMP,
    ChannelLog,
    ForkError,
    JumpError,
    ReplayedError,
)
from runtime.contract.channels import ENTRY_TYPE, LAST_SEQUENCE, entry_name, sign_entry
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import (
    DigestMismatchError,
    ManifestError,
    PipelineError,
    TargetMismatchError,
)
from runtime.contract.keys import PrivateKey
from runtime.contract.release_directory import sign_release
from runtime.contract.trust import AlteredError, UnknownKeyError, UnsignedError, WrongRoleError, sign
from tests.keys import BUILD, MANAGER, ROOT_KEY, a_store
from tests.moves import (
    STRANGER,
    after,
    an_entry,
    channel,
    edited,
    floor_of,
    head_of,
    point,
    published,
    put,
    put_entry,
    refused,
    tip,
)
from tests.simulators import ARTIFACT, flip_bit

# What is not signed as it should be.


@pytest.mark.parametrize(
    ("name", "key", "kind", "words"),
    [
        (
            "stable",
            BUILD,
            WrongRoleError,
            "whose role is release and canary; this takes a key of role stable",
        ),
        ("canary", MANAGER, WrongRoleError, "whose role is stable; this takes a key of role canary"),
        ("stable", ROOT_KEY, WrongRoleError, "whose role is root; this takes a key of role stable"),
        ("stable", STRANGER, UnknownKeyError, "which root 1 does not name"),
    ],
)
def test_an_entry_by_the_wrong_key_never_counts(
    tmp_path: Path, name: str, key: PrivateKey, kind: type[PipelineError], words: str
) -> None:
    first, second = published(tmp_path, "v1", "v2")
    bad = put_entry(tmp_path, after(tip(tmp_path, name), release=first.id), key)
    head = head_of(tmp_path, name=name)
    assert head.entry.release == second.id
    assert words in head.refused[0]
    shutil.rmtree(bad.parent)
    put_entry(tmp_path, an_entry(channel=name, release=first.id), key)
    with pytest.raises(kind, match=words):
        head_of(tmp_path, name=name)


@pytest.mark.parametrize(
    ("name", "key", "kind", "words"),
    [
        ("stable", BUILD, WrongRoleError, "has the role release and canary: this takes a key of role stable"),
        ("canary", MANAGER, WrongRoleError, "has the role stable: this takes a key of role canary"),
        ("stable", STRANGER, UnknownKeyError, "is not in root 1: this takes a key of role stable"),
    ],
)
def test_a_writer_with_the_wrong_key_writes_nothing(
    tmp_path: Path, name: str, key: PrivateKey, kind: type[PipelineError], words: str
) -> None:
    first, second = published(tmp_path, "v1", "v2")
    before = sorted(channel(tmp_path, name).iterdir())
    with pytest.raises(kind, match=words):
        a_store(tmp_path).point(name, first, actor="x", reason="y", key=key)
    assert sorted(channel(tmp_path, name).iterdir()) == before
    assert head_of(tmp_path, name=name).entry.release == second.id


def test_an_entry_without_a_signature_is_unsigned(tmp_path: Path) -> None:
    published(tmp_path, "v1")
    path = channel(tmp_path) / entry_name(1)
    put(path, edited(path.read_bytes(), signatures=[]))
    refused(tmp_path, UnsignedError, "has no signature")


def test_an_entry_from_before_signing_says_what_to_do(tmp_path: Path) -> None:
    put(channel(tmp_path) / entry_name(1), to_json({"schema": 1, "sequence": 1}))
    refused(tmp_path, UnsignedError, "was written before entries were signed")


def test_an_altered_entry_is_refused(tmp_path: Path) -> None:
    first, _ = published(tmp_path, "v1", "v2")
    put(channel(tmp_path) / entry_name(1), b"")
    path = channel(tmp_path) / entry_name(2)
    other = sign_entry(after(tip(tmp_path, "canary"), channel="stable", release=first.id), MANAGER)
    put(path, edited(path.read_bytes(), payload=json.loads(other)["payload"]))
    refused(tmp_path, AlteredError, f"is not what key {MANAGER.keyid[:16]} signed")


def test_an_entry_of_another_channel_or_number_is_refused(tmp_path: Path) -> None:
    published(tmp_path, "v1", "v2")
    data = (channel(tmp_path) / entry_name(1)).read_bytes()
    put(channel(tmp_path) / entry_name(3), data)
    head = head_of(tmp_path)
    assert head.entry.sequence == 2
    assert "says it is ('emulator', 'stable', 1)" in head.refused[0]
    put(channel(tmp_path, target="hailo8") / entry_name(1), data)
    with pytest.raises(ManifestError, match="it was copied here"):
        a_store(tmp_path).head("hailo8", "stable")


def test_an_altered_manifest_is_refused(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    flip_bit(release.directory / "manifest.json", 300)
    refused(tmp_path, DigestMismatchError, "the manifest's sha256 is")


def test_an_altered_artifact_is_refused(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    flip_bit(release.directory / ARTIFACT, 100)
    refused(tmp_path, DigestMismatchError, "the manifest says")


@pytest.mark.parametrize(
    ("key", "kind", "words"),
    [
        (MANAGER, WrongRoleError, "whose role is stable; this takes a key of role release"),
        (ROOT_KEY, WrongRoleError, "whose role is root; this takes a key of role release"),
        (STRANGER, UnknownKeyError, "which root 1 does not name"),
    ],
)
def test_a_release_by_the_wrong_key_is_refused(
    tmp_path: Path, key: PrivateKey, kind: type[PipelineError], words: str
) -> None:
    (release,) = published(tmp_path, "v1")
    signature = sign_release((release.directory / "manifest.json").read_bytes(), key)
    put(release.directory / "manifest.dsse.json", signature)
    refused(tmp_path, kind, words)


def test_another_releases_signature_is_refused(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    put(second.directory / "manifest.dsse.json", (first.directory / "manifest.dsse.json").read_bytes())
    refused(tmp_path, ManifestError, f"signs release {first.id[:16]}, it lies beside {second.id[:16]}")


def test_a_channel_never_serves_another_targets_release(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    put_entry(tmp_path, an_entry(target="hailo8", release=release.id), MANAGER)
    with pytest.raises(TargetMismatchError, match="names a release for emulator"):
        a_store(tmp_path).resolve("hailo8", "stable")


# Stores that are not the one that was seen.


def test_an_older_store_is_a_replay(tmp_path: Path) -> None:
    published(tmp_path / "now", "v1")
    shutil.copytree(tmp_path / "now", tmp_path / "old")
    published(tmp_path / "now", "v2")
    floor = floor_of(tmp_path / "now")
    refused(tmp_path / "old", ReplayedError, "ends at entry 1, entry 2 was seen here", floor)
    shutil.rmtree(channel(tmp_path / "old"))
    refused(tmp_path / "old", ReplayedError, "ends at entry 0, entry 2 was seen here", floor)
    assert head_of(tmp_path / "old", name="canary").entry.sequence == 1


def test_another_entry_at_one_number_is_a_fork(tmp_path: Path) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floor, before = floor_of(tmp_path), tip(tmp_path)
    put_entry(tmp_path, an_entry(release=first.id), MANAGER)
    put_entry(tmp_path, after(tip(tmp_path), sequence=2, release=first.id, reason="again"), MANAGER)
    refused(tmp_path, ForkError, "says something else at entry 2 than what was seen here", floor)
    put_entry(tmp_path, after(tip(tmp_path), release=second.id), MANAGER)
    refused(tmp_path, ForkError, "says something else at entry 2 than what was seen here", floor)
    assert before.digest == floor.digest


def test_copies_of_two_stores_in_one_are_a_fork(tmp_path: Path) -> None:
    published(tmp_path / "ours", "v1", "v2")
    published(tmp_path / "theirs", "v3", "v4", "v5", "v6")
    floor = floor_of(tmp_path / "ours")
    for number in (3, 4):
        name = entry_name(number)
        shutil.copy(channel(tmp_path / "theirs") / name, channel(tmp_path / "ours") / name)
    refused(tmp_path / "ours", ForkError, "says something else at entry 2", floor)
    shutil.copy(channel(tmp_path / "theirs") / entry_name(4), channel(tmp_path / "ours") / entry_name(5))
    (channel(tmp_path / "ours") / entry_name(4)).unlink()
    put_entry(tmp_path / "ours", an_entry(sequence=5, previous_entry="a" * 64), MANAGER)
    shutil.copy(channel(tmp_path / "theirs") / entry_name(4), channel(tmp_path / "ours") / entry_name(4))
    refused(tmp_path / "ours", ForkError, "is not what the entry after it continues", floor)


@pytest.mark.parametrize("ahead", [LARGEST_JUMP + 1, LAST_SEQUENCE - 1])
def test_a_jump_beyond_a_thousand_is_refused(tmp_path: Path, ahead: int) -> None:
    (release,) = published(tmp_path, "v1")
    floor = floor_of(tmp_path)
    far = an_entry(sequence=1 + ahead, previous_entry="a" * 64, release=release.id)
    put_entry(tmp_path, far, MANAGER)
    refused(tmp_path, JumpError, f"entry {1 + ahead} is more than 1000 ahead of 1", floor)


def test_a_thousand_moves_while_a_reader_was_away_are_followed(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    floor, before = floor_of(tmp_path), tip(tmp_path)
    log = ChannelLog(channel(tmp_path), a_store(tmp_path).trust)
    for number in range(LARGEST_JUMP):
        entry = after(before, reason=f"move {number}", release=release.id)
        data = sign_entry(entry, MANAGER)
        path = put(log.folder / entry_name(entry.sequence), data)
        payload = to_json(entry)
        before = type(before)(entry, sha256_bytes(payload), (MANAGER.keyid,), path.read_bytes())
    assert head_of(tmp_path, floor).entry.sequence == 1 + LARGEST_JUMP


JUNK = {
    "garbage": b"\x00garbage",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "deeper": b'{"a":' * 40_000,
    "too long": b" " * (256 * 1024 + 1),
    "by a build key": sign_entry(an_entry(sequence=LAST_SEQUENCE, previous_entry="a" * 64), BUILD),
    "by a stranger": sign_entry(an_entry(sequence=LAST_SEQUENCE, previous_entry="a" * 64), STRANGER),
    "deep inside": edited(sign_entry(an_entry(), MANAGER), payload="W1tb" * 30_000),
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk_with_a_high_number_stops_neither_readers_nor_writers(tmp_path: Path, junk: bytes) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floor = floor_of(tmp_path)
    for number in (3, 4, LAST_SEQUENCE):
        put(channel(tmp_path) / entry_name(number), junk)
    head = head_of(tmp_path, floor)
    assert head.entry.release == second.id
    assert len(head.refused) == 3
    point(tmp_path, first)
    head = head_of(tmp_path, floor)
    assert (head.entry.release, head.entry.sequence) == (first.id, 3)
    (aside,) = channel(tmp_path).glob(".refused-00000003-*/00000003.json")
    assert aside.read_bytes() == junk
    point(tmp_path, second)
    assert head_of(tmp_path, floor).entry.sequence == 4
    assert a_store(tmp_path).history_problems("emulator", "stable")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_what_is_no_file_stops_neither_readers_nor_writers(tmp_path: Path, kind: str) -> None:
    first, second = published(tmp_path, "v1", "v2")
    for number in (3, LAST_SEQUENCE):
        path = channel(tmp_path) / entry_name(number)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("nowhere")
    assert head_of(tmp_path).entry.release == second.id
    point(tmp_path, first)
    assert head_of(tmp_path).entry.release == first.id


def test_deep_json_in_a_signed_payload_is_our_error(tmp_path: Path) -> None:
    published(tmp_path, "v1")
    put(channel(tmp_path) / entry_name(1), sign(b"[" * 100_000, ENTRY_TYPE, [MANAGER]))
    refused(tmp_path, ManifestError, "not JSON")


# Clocks.


@pytest.mark.parametrize("year", [1970, 2036])
def test_no_clock_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    first, second = published(tmp_path, "v1", "v2")
    floor = floor_of(tmp_path)
    moment = datetime(year, 1, 1, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return moment

    monkeypatch.setattr(store_module, "datetime", Clock)
    monkeypatch.setattr("time.time", moment.timestamp)
    point(tmp_path, first)
    head = head_of(tmp_path, floor)
    assert (head.entry.release, head.entry.at) == (first.id, moment.isoformat(timespec="seconds"))
    put_entry(tmp_path, after(head.signed, release=second.id, at="2999-01-01T00:00:00+00:00"), MANAGER)
    floor = floor_of(tmp_path)
    put_entry(tmp_path, after(tip(tmp_path), release=first.id, at="1970-01-01T00:00:00Z"), MANAGER)
    assert head_of(tmp_path, floor).entry.release == first.id
