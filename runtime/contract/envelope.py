"""DSSE envelopes (https://github.com/secure-systems-lab/dsse): written, and parsed without being believed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from securesystemslib.dsse import Envelope
from securesystemslib.signer import Signature  # type: ignore[attr-defined]

from runtime.contract.document import from_json, to_json
from runtime.contract.errors import ManifestError

MAX_ENVELOPE_BYTES: Final = 256 * 1024
MAX_SIGNATURES: Final = 16


class SigningKey(Protocol):
    """Whoever can sign: ``keys.PrivateKey``."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the 32 public bytes."""

    @property
    def public(self) -> str:
        """The 32 public bytes, hexadecimal."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes: an Ed25519 signature."""


_KEYID: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class _SignatureRecord:
    keyid: str
    sig: str


@dataclass(frozen=True, kw_only=True)
class _EnvelopeRecord:
    payload: str
    payloadType: str
    signatures: tuple[_SignatureRecord, ...]


def sign(payload: bytes, payload_type: str, keys: Sequence[SigningKey]) -> bytes:
    """An envelope with one signature of each key."""
    pae = Envelope(payload, payload_type, {}).pae()
    signatures = tuple(_SignatureRecord(keyid=key.keyid, sig=_encode(key.sign(pae))) for key in keys)
    record = _EnvelopeRecord(payload=_encode(payload), payloadType=payload_type, signatures=signatures)
    return to_json(record)


def also_signed(data: bytes, payload_type: str, key: SigningKey, where: str) -> bytes:
    """The same envelope with one signature more: whoever trusts an earlier one goes on doing so."""
    envelope = open_envelope(data, payload_type, where)
    kept = [each for keyid, each in envelope.signatures.items() if keyid != key.keyid]
    records = [
        _SignatureRecord(keyid=each.keyid, sig=_encode(bytes.fromhex(each.signature)))
        for each in kept[-(MAX_SIGNATURES - 1) :]
    ]
    records.append(_SignatureRecord(keyid=key.keyid, sig=_encode(key.sign(envelope.pae()))))
    return to_json(
        _EnvelopeRecord(
            payload=_encode(envelope.payload), payloadType=payload_type, signatures=tuple(records)
        )
    )


def joined(data: bytes, other: bytes, payload_type: str, where: str) -> bytes:
    """An envelope with the signatures of another one of the same payload added, as far as there is room.

    Raises:
        ManifestError: One is no envelope, or what they hold differs.
    """
    first, second = open_envelope(data, payload_type, where), open_envelope(other, payload_type, where)
    if first.payload != second.payload:
        raise ManifestError("does not hold the same as the other one", where=where)
    signatures = second.signatures | first.signatures
    added = [keyid for keyid in signatures if keyid not in first.signatures]
    records = [
        _SignatureRecord(keyid=keyid, sig=_encode(bytes.fromhex(signatures[keyid].signature)))
        for keyid in [*first.signatures, *added][:MAX_SIGNATURES]
    ]
    payload = _encode(first.payload)
    return to_json(_EnvelopeRecord(payload=payload, payloadType=payload_type, signatures=tuple(records)))


def signed_by(data: bytes, payload_type: str, keyids: Collection[str], where: str) -> bytes:
    """The same envelope, with the signatures of these keys alone: what strangers added is left out."""
    envelope = open_envelope(data, payload_type, where)
    records = [
        _SignatureRecord(keyid=keyid, sig=_encode(bytes.fromhex(each.signature)))
        for keyid, each in envelope.signatures.items()
        if keyid in keyids
    ]
    return to_json(
        _EnvelopeRecord(
            payload=_encode(envelope.payload), payloadType=payload_type, signatures=tuple(records)
        )
    )


def open_envelope(data: bytes, payload_type: str, where: str) -> Envelope:
    """Parse an envelope without believing it; ManifestError where it is none, or of another type."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ManifestError(f"more than {MAX_ENVELOPE_BYTES} bytes are not read", where=where)
    record = from_json(_EnvelopeRecord, data, where)
    if record.payloadType != payload_type:
        raise ManifestError(
            f"is {record.payloadType[:80]!r}, not {payload_type!r}", where=f"{where}.payloadType"
        )
    if len(record.signatures) > MAX_SIGNATURES:
        raise ManifestError(f"more than {MAX_SIGNATURES} signatures are not read", where=where)
    signatures: dict[str, Signature] = {}
    for each in record.signatures:
        if not _KEYID.fullmatch(each.keyid):
            continue  # no key's id: what a stranger adds takes nothing from the others
        if each.keyid in signatures:
            raise ManifestError(f"key {each.keyid[:16]} signed twice", where=f"{where}.signatures")
        signatures[each.keyid] = Signature(each.keyid, _decode(each.sig, f"{where}.signatures").hex())
    return Envelope(_decode(record.payload, f"{where}.payload"), payload_type, signatures)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ManifestError(f"is not base64: {error}", where=where) from error
