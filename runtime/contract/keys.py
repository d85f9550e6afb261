"""Private keys: made, kept, loaded, used to sign. Needs cryptography, which a Pi does without."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.contract.document import to_json
from runtime.contract.errors import ConfigError, PipelineError, store_errors
from runtime.contract.files import make_directory, read_bounded, sync_directory, write_directory
from runtime.contract.trust import (
    ROLES,
    ROOT_SCHEMA,
    ROOT_TYPE,
    RoleKeys,
    Root,
    SigningKey,
    key_id,
    sign,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_KEY_BYTES: Final = 16 * 1024
ROOT_FILE: Final = "root.json"
HOLDERS: Final = {"root": "root.pem", "build": "build.pem", "release-manager": "release-manager.pem"}
"""Who holds a key, and its file."""
HOLDER_ROLES: Final = {"root": ("root",), "build": ("release", "canary"), "release-manager": ("stable",)}
_NOBODY_ELSE: Final = 0o600


class KeyFileError(PipelineError):
    """A private key that is missing, unreadable, unprotected, or of another kind."""

    code = "key_file"


class PrivateKey:
    """An Ed25519 private key in memory."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()
        self.keyid = key_id(self.public)

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(data)

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key; ConfigError where cryptography is not installed."""
        return cls(_ed25519().generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        """The key of 32 bytes: for tests, which want the same one again."""
        return cls(_ed25519().from_private_bytes(seed))

    def pem(self, passphrase: bytes = b"") -> bytes:
        """PKCS 8 in PEM, encrypted where a passphrase is given."""
        from cryptography.hazmat.primitives import serialization as forms

        locked: Any = forms.BestAvailableEncryption(passphrase) if passphrase else forms.NoEncryption()
        return self._private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, locked)


def _ed25519() -> type[Ed25519PrivateKey]:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise ConfigError(
            "signing needs the package cryptography",
            hint="install the extra `sign`; a Pi, which only verifies, does without",
        ) from error
    return Ed25519PrivateKey


def load_key(path: Path, passphrase: Callable[[Path], bytes] | None = None) -> PrivateKey:
    """Read a private key.

    Args:
        path: PKCS 8 in PEM, readable by its owner alone.
        passphrase: Asked where the file is encrypted; None where nobody can be asked.

    Raises:
        KeyFileError: Missing, others may read it, no Ed25519 key, encrypted and nobody to ask, or the
            wrong passphrase.
        ConfigError: cryptography is not installed.
    """
    kind = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_private(path)
    locked = b"ENCRYPTED" in data
    if locked and passphrase is None:
        raise KeyFileError(
            "is encrypted, and there is nobody here to ask for the passphrase",
            where=str(path),
            hint="sign with `releasectl` in a terminal",
        )
    word = passphrase(path) if locked and passphrase else None
    try:
        key = load_pem_private_key(data, word)
    except (ValueError, TypeError) as error:
        what = "the passphrase does not open it" if locked else "is no private key in PEM"
        raise KeyFileError(what, where=str(path)) from error
    except Exception as error:  # cryptography's UnsupportedAlgorithm, and what OpenSSL raises
        raise KeyFileError(f"cannot be used: {error}", where=str(path)) from error
    if not isinstance(key, kind):
        raise KeyFileError(f"is no Ed25519 key but {type(key).__name__}", where=str(path))
    return PrivateKey(key)


def _read_private(path: Path) -> bytes:
    try:
        data = read_bounded(path, MAX_KEY_BYTES)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise KeyFileError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            hint="`releasectl keys init` makes keys; docs/keys.md says where each belongs",
        ) from error
    if mode & 0o077:
        raise KeyFileError(f"others may read it (mode {mode:04o})", where=str(path), hint=f"chmod 600 {path}")
    return data


def write_key(path: Path, key: PrivateKey, passphrase: bytes = b"") -> None:
    """Write a new key file, for its owner alone; never over another.

    Raises:
        KeyFileError: Something is there already.
        StoreError: It cannot be written.
    """
    with store_errors(path):
        make_directory(path.parent)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _NOBODY_ELSE)
        except FileExistsError as error:
            raise KeyFileError(
                "is there already", where=str(path), hint="a key is never written over: move it away first"
            ) from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.pem(passphrase))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)


def make_root(
    holders: Mapping[str, Sequence[str]], *, version: int, development: bool, root_threshold: int = 1
) -> Root:
    """A root from public keys.

    Args:
        holders: ``root``, ``build`` and ``release-manager`` to the public keys of each, hexadecimal.
        version: 1, or one more than the root that this one follows.
        development: As ``Root.development``.
        root_threshold: How many of the root's keys must sign the next root.

    Raises:
        TrustRootError: The keys do not make a root.
    """
    keys = {key_id(public): public for publics in holders.values() for public in publics}
    roles = {
        role: RoleKeys(
            keyids=tuple(key_id(public) for public in holders[holder]),
            threshold=root_threshold if role == "root" else 1,
        )
        for holder, its_roles in HOLDER_ROLES.items()
        for role in its_roles
    }
    return Root(
        schema=ROOT_SCHEMA,
        version=version,
        development=development,
        keys=keys,
        roles={role: roles[role] for role in ROLES},
    )


def sign_root(root: Root, keys: Sequence[SigningKey]) -> bytes:
    """The root's envelope."""
    return sign(to_json(root), ROOT_TYPE, keys)


@dataclass(frozen=True)
class KeyFolder:
    """A folder with a root and, where all are on one machine, the private keys.

    Args:
        folder: ``artifacts/keys`` of a checkout, for development.
    """

    folder: Path

    @property
    def root(self) -> Path:
        """What ``TRUST_ROOT`` names."""
        return self.folder / ROOT_FILE

    @property
    def build_key(self) -> Path:
        """What ``CANARY_KEY_FILE`` names: signs releases and canary."""
        return self.folder / HOLDERS["build"]

    @property
    def manager_key(self) -> Path:
        """What ``RELEASE_KEY_FILE`` names: signs stable."""
        return self.folder / HOLDERS["release-manager"]

    def make(self, *, development: bool, passphrases: dict[str, bytes] | None = None) -> bool:
        """Make a root and one key for each holder, where nothing is there yet.

        The folder appears whole or not at all; of two that make it at once, one does.

        Returns:
            Whether they were made now.

        Raises:
            KeyFileError: The folder holds something, but no root.
            StoreError: It cannot be written.
        """
        with store_errors(self.folder):
            if self.root.exists():
                return False
            if self.folder.exists():
                if any(self.folder.iterdir()):
                    raise KeyFileError(
                        f"is there already, without {ROOT_FILE}",
                        where=str(self.folder),
                        hint="name a folder that is not there yet",
                    )
                self.folder.rmdir()
            keys = {holder: PrivateKey.generate() for holder in HOLDERS}
            root = make_root(
                {holder: [key.public] for holder, key in keys.items()}, version=1, development=development
            )
            locked = passphrases or {}
            files = {HOLDERS[name]: key.pem(locked.get(name, b"")) for name, key in keys.items()}
            files[ROOT_FILE] = sign_root(root, [keys["root"]])
            write_directory(self.folder, files, mode=_NOBODY_ELSE)
            self.root.chmod(0o644)
            return True
