"""Who may sign what: a root of keys by role, the roots that follow it, and envelopes that they vouch for.

Envelopes are DSSE (https://github.com/secure-systems-lab/dsse), keys Ed25519. Neither a clock nor a
network has a say: a document is accepted because of who signed it and what it continues.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signature, SSlibKey  # type: ignore[attr-defined]

from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.envelope import MAX_ENVELOPE_BYTES as MAX_ENVELOPE_BYTES
from runtime.contract.envelope import SigningKey as SigningKey
from runtime.contract.envelope import open_envelope as open_envelope
from runtime.contract.envelope import sign as sign
from runtime.contract.envelope import signed_by
from runtime.contract.errors import PipelineError, store_errors
from runtime.contract.files import is_no_file, list_directory, read_bounded

ROLES: Final = ("root", "release", "canary", "stable")
ROOT_SCHEMA: Final = 1
ROOT_TYPE: Final = "application/vnd.hailo-pipeline.root+json"
DEFAULT_TRUST_ROOT: Final = "artifacts/keys/root.json"
"""The development root, where ``TRUST_ROOT`` names no other."""
_HEX_32: Final = re.compile(r"[0-9a-f]{64}")
_ROOT_NAME: Final = re.compile(r"([1-9][0-9]{0,5})\.root\.json")


class SignatureError(PipelineError):
    """A document that nobody who may has signed as it is."""

    code = "signature"


class UnsignedError(SignatureError):
    """No signature at all."""

    code = "unsigned"


class WrongRoleError(SignatureError):
    """Signed by a key of the root that has another role."""

    code = "wrong_role"


class UnknownKeyError(SignatureError):
    """Signed by a key that the root does not name."""

    code = "unknown_key"


class AlteredError(SignatureError):
    """Signed by the right key, but not with these bytes."""

    code = "altered"


class ThresholdError(SignatureError):
    """Fewer signatures than the role asks for."""

    code = "threshold"


class TrustRootError(SignatureError):
    """A root of trust that is missing, or cannot be one."""

    code = "trust_root"


def key_id(public: str) -> str:
    """Name of a key: SHA-256 of its 32 bytes, so that no key has two names."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RoleKeys:
    """Which keys act for a role, and how many of them it takes."""

    keyids: tuple[str, ...]
    threshold: int


@dataclass(frozen=True, kw_only=True)
class Root:
    """A root of trust: keys by role.

    Args:
        schema: ``ROOT_SCHEMA``.
        version: 1 and up; each is signed by the one before it, too.
        development: Made on a developer's machine, where all keys lie side by side and separate nobody.
        keys: Key id to its 32 public bytes, hexadecimal.
        roles: Each of ``ROLES``.

    Raises:
        TrustRootError: It contradicts itself; names the field.
    """

    schema: int
    version: int
    development: bool
    keys: dict[str, str]
    roles: dict[str, RoleKeys]

    def __post_init__(self) -> None:
        if self.schema != ROOT_SCHEMA:
            raise TrustRootError(f"schema {self.schema}, this version reads {ROOT_SCHEMA}", where="schema")
        if not 1 <= self.version <= 999_999:
            raise TrustRootError(f"{self.version} is no version", where="version")
        for keyid, public in self.keys.items():
            if not _HEX_32.fullmatch(public):
                raise TrustRootError("is not 32 bytes in hexadecimal", where=f"keys.{keyid[:16]}")
            if keyid != key_id(public):
                raise TrustRootError(
                    "is not the SHA-256 of its key: one key would have two names",
                    where=f"keys.{keyid[:16]}",
                )
        if set(self.roles) != set(ROLES):
            raise TrustRootError(f"roles are {sorted(self.roles)}, not {sorted(ROLES)}", where="roles")
        for name, role in self.roles.items():
            _check_role(name, role, self.keys)
        self._check_apart()

    def _check_apart(self) -> None:
        builder = {*self.roles["release"].keyids, *self.roles["canary"].keyids}
        for person in ("root", "stable"):
            if shared := builder & set(self.roles[person].keyids):
                raise TrustRootError(
                    f"key {min(shared)[:16]} is a build host's, too",
                    where=f"roles.{person}",
                    hint="what a build server could sign by itself would be no promotion",
                )

    @property
    def kind(self) -> str:
        """What is shown wherever a release is shown."""
        return "development keys" if self.development else "own keys"

    def roles_of(self, keyid: str) -> list[str]:
        """Roles that a key acts for."""
        return [name for name in ROLES if keyid in self.roles[name].keyids]


def _check_role(name: str, role: RoleKeys, keys: dict[str, str]) -> None:
    where = f"roles.{name}"
    if len(set(role.keyids)) != len(role.keyids):
        raise TrustRootError("names a key twice", where=where)
    if unknown := sorted(set(role.keyids) - set(keys)):
        raise TrustRootError(f"names key {unknown[0][:16]}, which is not among the keys", where=where)
    if not 1 <= role.threshold <= len(role.keyids):
        raise TrustRootError(
            f"threshold {role.threshold} of {len(role.keyids)} keys cannot be met", where=where
        )


@dataclass(frozen=True)
class Verified:
    """A payload, and the keys whose signatures hold for it."""

    payload: bytes
    keyids: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the payload: what was signed, whoever signed it."""
        return sha256_bytes(self.payload)


def verify(data: bytes, payload_type: str, root: Root, role: str, where: str) -> Verified:
    """Take a payload out of its envelope where the role's keys vouch for it.

    Args:
        data: The envelope, at most ``MAX_ENVELOPE_BYTES``.
        payload_type: What the payload must be; part of what is signed.
        root: Says which keys act for the role.
        role: One of ``ROLES``.
        where: Names the file, for messages.

    Raises:
        ManifestError: It is no envelope, or of another type.
        SignatureError: Unsigned, wrong role, unknown key, altered, too few: each its own.
    """
    envelope = open_envelope(data, payload_type, where)
    if not envelope.signatures:
        raise UnsignedError("has no signature", where=where, hint=f"a {role} key must sign it")
    wanted = root.roles[role]
    pae, held, errors = envelope.pae(), [], []
    for keyid in envelope.signatures:
        try:
            _check_signature(envelope.signatures[keyid], pae, root, role, where)
        except SignatureError as error:
            errors.append(error)
        else:
            held.append(keyid)
    if len(held) >= wanted.threshold:
        return Verified(envelope.payload, tuple(held))
    if held:
        raise ThresholdError(
            f"{len(held)} of {wanted.threshold} signatures of role {role} hold",
            where=where,
            hint="let another holder of a key of this role sign it, too",
        )
    raise errors[0]


def _check_signature(signature: Signature, pae: bytes, root: Root, role: str, where: str) -> None:
    keyid = signature.keyid
    if keyid not in root.roles[role].keyids:
        if roles := root.roles_of(keyid):
            raise WrongRoleError(
                f"key {keyid[:16]} signed it, whose role is {' and '.join(roles)}; "
                f"this takes a key of role {role}",
                where=where,
                hint="whoever holds that role must sign it",
            )
        raise UnknownKeyError(
            f"key {keyid[:16]} signed it, which root {root.version} does not name",
            where=where,
            hint="the store is of another root of trust, or the key was rotated out",
        )
    key = SSlibKey(keyid, "ed25519", "ed25519", {"public": root.keys[keyid]})
    try:
        key.verify_signature(signature, pae)
    except (UnverifiedSignatureError, VerificationError) as error:
        raise AlteredError(
            f"is not what key {keyid[:16]} signed",
            where=where,
            hint="copy it again from where it was made",
        ) from error


def parse_root(data: bytes, where: str) -> Root:
    """Read a root that vouches for itself: its own root keys signed it.

    Raises:
        ManifestError: It is no root.
        SignatureError: Its own keys did not sign it.
    """
    root = _root_of(open_envelope(data, ROOT_TYPE, where).payload, where)
    verify(data, ROOT_TYPE, root, "root", where)
    return root


def _root_of(payload: bytes, where: str) -> Root:
    try:
        return from_json(Root, payload, where)
    except TrustRootError as error:
        raise error.within(where) from error


def read_trust_root(path: Path) -> bytes:
    """Bytes of the file that ``TRUST_ROOT`` names.

    Raises:
        TrustRootError: It is not there, or cannot be read.
    """
    try:
        return read_bounded(path, MAX_ENVELOPE_BYTES)
    except OSError as error:
        raise TrustRootError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            hint="TRUST_ROOT names the file with the keys to be trusted; `releasectl keys init` makes one",
        ) from error


class Trust:
    """The root that is trusted, and those that follow it one by one.

    Args:
        anchor: The envelope of the first root: nothing but its place says that it is to be trusted.
        where: Names it, for messages.
    """

    def __init__(self, anchor: bytes, where: str) -> None:
        self._documents = [anchor]
        self.roots = [parse_root(anchor, where)]
        self.refused: list[str] = []
        """Sentences about roots that claim to follow, and do not."""

    @classmethod
    def load(cls, path: Path) -> Trust:
        """From the file that ``TRUST_ROOT`` names; TrustRootError and others as ``parse_root``."""
        return cls(read_trust_root(path), str(path))

    @property
    def root(self) -> Root:
        """The newest root."""
        return self.roots[-1]

    @property
    def documents(self) -> tuple[bytes, ...]:
        """Every root as it was signed, the anchor first."""
        return tuple(self._documents)

    @property
    def anchor_digest(self) -> str:
        """SHA-256 of the anchor: another one makes everything that was remembered void."""
        return sha256_bytes(self._documents[0])

    def follow(self, folder: Path) -> Trust:
        """Take the roots of a store's ``trust/`` that continue this one.

        A root that does not hold is left out and named in ``refused``: the one before it stays.

        Raises:
            StoreError: The folder cannot be read.
        """
        followed = Trust.__new__(Trust)
        followed._documents, followed.roots, followed.refused = [*self._documents], [*self.roots], []
        with store_errors(folder):
            names = {name for name in list_directory(folder) if _ROOT_NAME.fullmatch(name)}
            while (name := f"{followed.root.version + 1}.root.json") in names:
                try:
                    data = read_bounded(folder / name, MAX_ENVELOPE_BYTES)
                    followed.add(data, str(folder / name))
                except PipelineError as error:
                    followed.refused.append(str(error))
                    break
                except OSError as error:
                    if not is_no_file(error, folder / name):
                        raise
                    followed.refused.append(f"{folder / name}: {error.strerror}")
                    break
        return followed

    def add(self, data: bytes, where: str) -> None:
        """Continue with the next root, which the present root's keys and its own must have signed."""
        after = parse_root(data, where)
        verify(data, ROOT_TYPE, self.root, "root", where)
        if after.version != self.root.version + 1:
            raise TrustRootError(f"version {after.version} cannot follow {self.root.version}", where=where)
        signers = {*self.root.roles["root"].keyids, *after.roles["root"].keyids}
        self.roots.append(after)
        self._documents.append(signed_by(data, ROOT_TYPE, signers, where))


def root_name(version: int) -> str:
    """File name of a root in a store's ``trust/``."""
    return f"{version}.root.json"
