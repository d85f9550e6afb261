"""``releasectl keys``: made, shown, rotated."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from runtime.contract.errors import ConfigError, PipelineError
from runtime.contract.keys import HOLDERS, KeyFolder, PrivateKey, load_key, make_root, sign_root, write_key
from runtime.contract.promotion import Decision, reaffirm
from runtime.contract.release import TARGETS
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import ROLES, Root


class NotConfirmedError(PipelineError):
    """A move that nobody said yes to."""

    code = "not_confirmed"


def passphrase(path: Path) -> bytes:
    """Ask for the passphrase of a key file; NotConfirmedError where nobody is there."""
    if not sys.stdin.isatty():
        raise NotConfirmedError(f"{path} is encrypted and nobody is there to ask", hint="use a terminal")
    return getpass.getpass(f"passphrase of {path}: ").encode()


def key_command(store: ReleaseStore, options: argparse.Namespace) -> int:
    """`releasectl keys`: ``init``, ``show``, ``rotate`` or ``resign``."""
    if options.what == "show":
        root = store.trust.root
        options.show(options, _root_document(root), lambda: _root_lines(root))
        return 0
    if options.what == "resign":
        return _resign(store, options)
    if options.folder is None:
        raise ConfigError("needs a folder", where=f"keys {options.what}", hint="see docs/keys.md")
    return _init(options) if options.what == "init" else _rotate(store, options)


def _init(options: argparse.Namespace) -> int:
    folder = KeyFolder(options.folder)
    if not folder.make(development=False):
        raise ConfigError("holds a root of trust already", where=str(options.folder))
    files = {
        "TRUST_ROOT": folder.root,
        "CANARY_KEY_FILE": folder.build_key,
        "RELEASE_KEY_FILE": folder.manager_key,
    }
    shown = {name: str(path) for name, path in files.items()} | {
        "root_key": str(options.folder / HOLDERS["root"])
    }
    options.show(
        options,
        shown,
        lambda: [
            *(f"{name:<17} {path}" for name, path in shown.items()),
            "Now take each to where it belongs, and root.pem offline: docs/keys.md",
        ],
    )
    return 0


def _rotate(store: ReleaseStore, options: argparse.Namespace) -> int:
    """A new root with a new key of one holder; channels that the old key signed are signed again."""
    if not options.holder or not options.new:
        raise ConfigError("needs --holder and --new", where="keys rotate", hint="see docs/keys.md")
    trust, now = store.trust, store.trust.root
    root_key = load_key(options.folder / HOLDERS["root"], passphrase)
    key = PrivateKey.generate()
    holders = {
        "root": [now.keys[each] for each in now.roles["root"].keyids],
        "build": [now.keys[each] for each in now.roles["release"].keyids],
        "release-manager": [now.keys[each] for each in now.roles["stable"].keyids],
    } | {options.holder: [key.public]}
    after = make_root(
        holders,
        version=now.version + 1,
        development=now.development,
        root_threshold=now.roles["root"].threshold if options.holder != "root" else 1,
    )
    signers = [root_key, key] if options.holder == "root" else [root_key]
    document = sign_root(after, signers)
    trust.add(document, "the new root")  # refused before anything is written
    write_key(options.new, key)
    store.add_root(document)
    again = sign_again(store, options.holder, key)
    options.show(
        options,
        _root_document(after) | {"signed_again": again},
        lambda: [*_root_lines(after), *(f"signed again: {each}" for each in again)],
    )
    return 0


def _resign(store: ReleaseStore, options: argparse.Namespace) -> int:
    """Finish a rotation that was cut off: what the old key had signed is signed with the new one."""
    if not options.holder or not options.new:
        raise ConfigError("needs --holder and --new", where="keys resign", hint="see docs/keys.md")
    again = sign_again(store, options.holder, load_key(options.new, passphrase))
    options.show(options, {"signed_again": again}, lambda: [f"signed again: {each}" for each in again])
    return 0


def sign_again(store: ReleaseStore, holder: str, key: PrivateKey) -> list[str]:
    """Sign with a new key what its holder had signed with the old one: what channels name, and releases."""
    done = []
    decision = Decision(actor=getpass.getuser(), reason=f"the key of {holder} was rotated")
    if holder == "build":
        for identifier in store.identifiers():
            store.sign_release_again(identifier, key)
            done.append(identifier)
    channel = {"build": "canary", "release-manager": "stable"}.get(holder)
    for target in TARGETS if channel else ():
        if channel and reaffirm(store, target, channel, decision, key):
            done.append(f"{target}/{channel}")
    return done


def _root_document(root: Root) -> dict[str, object]:
    roles = {
        name: {"keys": list(role.keyids), "threshold": role.threshold} for name, role in root.roles.items()
    }
    return {"version": root.version, "development": root.development, "roles": roles}


def _root_lines(root: Root) -> list[str]:
    lines = [f"root {root.version}, {root.kind}"]
    if root.development:
        lines.append("all keys lie on one machine: they separate nobody")
    for name in ROLES:
        role = root.roles[name]
        lines.append(f"  {name:<8} {role.threshold} of {', '.join(keyid[:16] for keyid in role.keyids)}")
    return lines
