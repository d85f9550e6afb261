"""Entries, roots and stores for tests of signing: made by hand, as one does who goes around the store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.contract.channel_log import Floor, Head
from runtime.contract.channels import (
    ENTRY_SCHEMA,
    ChannelEntry,
    SignedEntry,
    entry_name,
    sign_entry,
)
from runtime.contract.document import to_json
from runtime.contract.errors import PipelineError
from runtime.contract.keys import PrivateKey, make_root, sign_root
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import RoleKeys, Root
from tests.keys import BUILD, KEY_OF, MANAGER, ROOT_KEY, a_key, a_root, a_store
from tests.simulators import ReleaseSimulator

STRANGER = a_key("stranger")
NEW = a_key("new")


def an_entry(**changes: Any) -> ChannelEntry:
    """The first entry of the emulator's stable channel, fields laid over."""
    fields: dict[str, Any] = {
        "schema": ENTRY_SCHEMA,
        "target": "emulator",
        "channel": "stable",
        "sequence": 1,
        "previous_entry": "",
        "release": hashlib.sha256(b"a release").hexdigest(),
        "previous": "",
        "action": "publish",
        "marked": "",
        "actor": "test",
        "reason": "by hand",
        "at": "2026-11-27T10:00:00+00:00",
        "overridden": (),
        "evidence": (),
    }
    return ChannelEntry(**(fields | changes))


def after(before: SignedEntry, **changes: Any) -> ChannelEntry:
    """The entry that continues this one, fields laid over."""
    entry = before.entry
    fields = {
        "target": entry.target,
        "channel": entry.channel,
        "sequence": entry.sequence + 1,
        "previous_entry": before.digest,
        "previous": entry.release,
        "release": entry.release,
    }
    return an_entry(**(fields | changes))


def channel(root: Path, name: str = "stable", target: str = "emulator") -> Path:
    """A channel's folder."""
    return root / "channels" / target / name


def put(path: Path, data: bytes) -> Path:
    """Write a file of a store, read-only or not, as somebody does who may write there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def put_entry(root: Path, entry: ChannelEntry, key: PrivateKey) -> Path:
    """Sign an entry and write it where it says that it belongs."""
    path = channel(root, entry.channel, entry.target) / entry_name(entry.sequence)
    return put(path, sign_entry(entry, key))


def edited(data: bytes, **changes: Any) -> bytes:
    """An envelope, fields laid over."""
    return to_json(json.loads(data) | changes)


def tip(root: Path, name: str = "stable") -> SignedEntry:
    """The newest entry of the emulator's channel."""
    return a_store(root).chain("emulator", name)[-1]


def published(
    root: Path, *versions: str, channels: tuple[str, ...] = ("canary", "stable"), judged: bool = True
) -> list[Release]:
    """Tiny releases, each pointed to by the channels in turn."""
    return [ReleaseSimulator(version=each).publish(root, *channels, judged=judged) for each in versions]


def point(root: Path, release: Release, name: str = "stable", why: str = "moved") -> None:
    """Let a channel name a release, by a new entry."""
    store = a_store(root)
    head = store.head("emulator", name)
    key = KEY_OF[name]
    store.move("emulator", name, release.id, action="promote", actor="test", reason=why, key=key, seen=head)


def next_root(now: Root | None = None, *, signers: tuple[PrivateKey, ...] = (), **keys: Any) -> bytes:
    """A root that follows, with other keys; by default the old root's key signs."""
    version = keys.pop("version", (now.version if now else 1) + 1)
    return sign_root(a_root(version=version, **keys), signers or (ROOT_KEY,))


def with_threshold(threshold: int, *others: PrivateKey, version: int = 1) -> Root:
    """A root that so many of its root keys must sign."""
    roots = [ROOT_KEY.public, *(key.public for key in others)]
    holders = {"root": roots, "build": [BUILD.public], "release-manager": [MANAGER.public]}
    return make_root(holders, version=version, development=True, root_threshold=threshold)


def stable_by(root: Root, threshold: int, *keys: PrivateKey) -> Root:
    """The same root, with so many of these keys for stable."""
    role = RoleKeys(keyids=tuple(key.keyid for key in keys), threshold=threshold)
    known = root.keys | {key.keyid: key.public for key in keys}
    return dataclasses.replace(root, keys=known, roles=root.roles | {"stable": role})


def reopened(store: ReleaseStore) -> ReleaseStore:
    """The same store, as another process opens it."""
    return a_store(store.root, accepts_doubles=store.accepts_doubles)


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a store, without the writers' lock."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def head_of(root: Path, floor: Floor | None = None, name: str = "stable") -> Head:
    head = a_store(root).head("emulator", name, floor)
    assert head is not None
    return head


def floor_of(root: Path, name: str = "stable") -> Floor:
    return Floor.at(head_of(root, name=name).signed)


def refused(root: Path, kind: type[PipelineError], words: str, floor: Floor | None = None) -> None:
    with pytest.raises(kind) as caught:
        a_store(root).follow("emulator", "stable", floor).release.verify()
    assert type(caught.value) is kind
    assert words in str(caught.value)
