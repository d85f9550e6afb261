"""``releasectl keys``: made, shown, rotated."""

from __future__ import annotations

import argparse
import contextlib
import errno
import getpass
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from runtime.contract.errors import ConfigError, ManifestError, PipelineError, StoreError
from runtime.contract.keys import (
    HOLDER_ROLES,
    HOLDERS,
    KeyFolder,
    PrivateKey,
    load_key,
    make_root,
    sign_root,
    write_key,
)
from runtime.contract.promotion import Decision, reaffirm
from runtime.contract.release import TARGETS
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import ROLES, Root

CHANNEL_OF: Final = {"build": "canary", "release-manager": "stable"}
"""Whose key moves which channel."""


class NotConfirmedError(PipelineError):
    """A move that nobody said yes to."""

    code = "not_confirmed"


_OF_THE_STORE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Not EIO: a link planted in one release can say it, and a disk that fails stops the new root anyway."""


def passphrase(path: Path) -> bytes:
    """Ask for the passphrase of a key file; NotConfirmedError where nobody is there."""
    if not sys.stdin.isatty():
        raise NotConfirmedError(f"{path} is encrypted and nobody is there to ask", hint="use a terminal")
    return getpass.getpass(f"passphrase of {path}: ").encode()


def user_name() -> str:
    """Who the system says is at work: root in most containers, which whoever records it must show.

    Raises:
        ConfigError: No variable and no account says it.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError) as error:  # which, depends on Python's version
        raise ConfigError(
            "no variable and no account names the user",
            where="--by",
            hint="--by NAME says who answers for it",
        ) from error


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
    """A new root with a new key of one holder; what the old key signed is signed again."""
    _check_named(options)
    return _switch(store, options, PrivateKey.generate(), write=True)


def _resign(store: ReleaseStore, options: argparse.Namespace) -> int:
    """Finish a rotation that was cut off after the new key was written, wherever that was."""
    _check_named(options)
    key = load_key(options.new, passphrase)
    if key.keyid not in store.trust.root.roles[HOLDER_ROLES[options.holder][0]].keyids:
        if options.folder is None:
            raise ConfigError(
                "needs the folder with root.pem",
                where="keys resign",
                hint="the rotation was cut off before its root was kept: it is signed now",
            )
        return _switch(store, options, key, write=False)
    actor = _actor(options)
    again, problems = sign_again(store, options.holder, key, actor)
    options.show(
        options,
        {"by": actor, "signed_again": again, "problems": problems},
        lambda: [f"signed again: {each}, by {actor}" for each in again],
    )
    return _told(problems)


def _actor(options: argparse.Namespace) -> str:
    """Who rotates; refused before anything is written where a history cannot say it."""
    return Decision(actor=options.by or user_name(), reason="asked for").actor


def _check_named(options: argparse.Namespace) -> None:
    if not options.holder or not options.new:
        raise ConfigError("needs --holder and --new", where=f"keys {options.what}", hint="see docs/keys.md")


def _switch(store: ReleaseStore, options: argparse.Namespace, key: PrivateKey, *, write: bool) -> int:
    """Sign again for a root with this key, then keep that root: killed before, the old state holds."""
    actor = _actor(options)
    root_key = load_key(options.folder / HOLDERS["root"], passphrase)
    after = _next_root(store.trust.root, options.holder, key)
    document = sign_root(after, [root_key, key] if options.holder == "root" else [root_key])
    with store.rotating(document) as pending:
        if write:
            write_key(options.new, key)
        cut_off = _cut_off(store, options.holder)
        again, problems = sign_again(pending, options.holder, key, actor)
        problems += cut_off
    options.show(
        options,
        _root_document(after) | {"by": actor, "signed_again": again, "problems": problems},
        lambda: [*_root_lines(after), *(f"signed again: {each}, by {actor}" for each in again)],
    )
    return _told(problems)


def _cut_off(store: ReleaseStore, holder: str) -> list[str]:
    """A sentence for each channel of a holder that ends beyond a gap: only what is before it is signed again.

    Entries are missing, or a thief wrote one far ahead: people know which.
    """
    found: list[str] = []
    channel = CHANNEL_OF.get(holder, "")
    for target in TARGETS if channel else ():
        try:
            store.whole_history(target, channel)
        except ManifestError as error:
            found.append(f"{error}; what it named before that was: see `releasectl history`, and roll back")
    return found


def _next_root(now: Root, holder: str, key: PrivateKey) -> Root:
    holders = {
        "root": [now.keys[each] for each in now.roles["root"].keyids],
        "build": [now.keys[each] for each in now.roles["release"].keyids],
        "release-manager": [now.keys[each] for each in now.roles["stable"].keyids],
    } | {holder: [key.public]}
    return make_root(
        holders,
        version=now.version + 1,
        development=now.development,
        root_threshold=now.roles["root"].threshold if holder != "root" else 1,
    )


def _told(problems: Sequence[str]) -> int:
    sys.stdout.flush()
    for problem in problems:
        print(f"releasectl: not signed again: {problem}", file=sys.stderr)
    return 1 if problems else 0


def sign_again(store: ReleaseStore, holder: str, key: PrivateKey, actor: str) -> tuple[list[str], list[str]]:
    """Sign with a new key what its holder had signed with the old one: releases, and what channels name.

    Args:
        store: Under the root that names the key.
        holder: ``build``, ``release-manager`` or ``root``.
        key: The new one.
        actor: Who rotates, as the channels' histories say from then on.

    Returns:
        What was signed, and a sentence for each that was not: damaged, or nobody's who ever might. That
        stops nothing: after a theft the old key must go, whatever lies in the store.

    Raises:
        PromotionRefusedError: The name is empty, or not one line.
        StoreError: The store cannot be read or written.
    """
    done: list[str] = []
    problems: list[str] = []
    decision = Decision(actor=actor, reason=f"the key of {holder} was rotated")
    for identifier in store.identifiers() if holder == "build" else ():
        with _noted(problems, of_one=True):
            store.sign_release_again(identifier, key)
            done.append(identifier)
    channel = CHANNEL_OF.get(holder, "")
    for target in TARGETS if channel else ():
        with _noted(problems):
            # Where it holds, a rotation that was cut off had come as far as this.
            if store.present(target, channel) or reaffirm(store, target, channel, decision, key):
                done.append(f"{target}/{channel}")
    return done, problems


@contextlib.contextmanager
def _noted(problems: list[str], *, of_one: bool = False) -> Iterator[None]:
    """Go on after what is wrong with one release; not where the store itself cannot be written."""
    try:
        yield
    except StoreError as error:
        if not of_one or getattr(error.__cause__, "errno", None) in _OF_THE_STORE:
            raise
        problems.append(str(error))
    except PipelineError as error:
        problems.append(str(error))


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
