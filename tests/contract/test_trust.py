"""Who may sign what: each refusal in its own words, and roots that follow each other."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.contract.document import to_json
from runtime.contract.errors import ManifestError, PipelineError
from runtime.contract.keys import PrivateKey, sign_root
from runtime.contract.trust import (
    MAX_ENVELOPE_BYTES,
    ROOT_TYPE,
    AlteredError,
    Root,
    SignatureError,
    ThresholdError,
    Trust,
    TrustRootError,
    UnknownKeyError,
    UnsignedError,
    WrongRoleError,
    parse_root,
    sign,
    verify,
)
from tests.keys import BUILD, MANAGER, ROOT_KEY, TRUST_ROOT, a_key, a_root, a_trust, key_folder
from tests.moves import NEW, STRANGER, edited, next_root, published, put, stable_by, with_threshold
from tests.simulators import ROOT

TYPE = "application/vnd.hailo-pipeline.test+json"
PAYLOAD = b'{"word": 1}\n'
NOBODYS = {"keyid": "a" * 64, "sig": ""}


class Borrowed:
    """A stranger's key under another key's name."""

    def __init__(self, name: PrivateKey, hand: PrivateKey) -> None:
        self.keyid, self.public, self._hand = name.keyid, hand.public, hand

    def sign(self, data: bytes) -> bytes:
        return self._hand.sign(data)


def refused(data: bytes, role: str, kind: type[PipelineError], code: str, words: str) -> PipelineError:
    with pytest.raises(kind) as caught:
        verify(data, TYPE, a_root(), role, "place")
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert words in str(caught.value)
    assert caught.value.where.startswith("place")
    return caught.value


@pytest.mark.parametrize(
    ("key", "role"), [(BUILD, "release"), (BUILD, "canary"), (MANAGER, "stable"), (ROOT_KEY, "root")]
)
def test_the_roles_own_key_is_believed(key: PrivateKey, role: str) -> None:
    verified = verify(sign(PAYLOAD, TYPE, [key]), TYPE, a_root(), role, "place")
    assert (verified.payload, verified.keyids) == (PAYLOAD, (key.keyid,))


def test_what_nobody_signed_is_unsigned() -> None:
    error = refused(sign(PAYLOAD, TYPE, []), "stable", UnsignedError, "unsigned", "has no signature")
    assert error.hint == "a stable key must sign it"


@pytest.mark.parametrize(
    ("key", "role", "has"),
    [
        (BUILD, "stable", "release and canary"),
        (BUILD, "root", "release and canary"),
        (MANAGER, "canary", "stable"),
        (MANAGER, "release", "stable"),
        (MANAGER, "root", "stable"),
        (ROOT_KEY, "stable", "root"),
        (ROOT_KEY, "release", "root"),
    ],
)
def test_another_roles_key_is_named_with_its_role(key: PrivateKey, role: str, has: str) -> None:
    words = f"key {key.keyid[:16]} signed it, whose role is {has}; this takes a key of role {role}"
    refused(sign(PAYLOAD, TYPE, [key]), role, WrongRoleError, "wrong_role", words)


def test_a_strangers_key_is_unknown() -> None:
    words = f"key {STRANGER.keyid[:16]} signed it, which root 1 does not name"
    refused(sign(PAYLOAD, TYPE, [STRANGER]), "stable", UnknownKeyError, "unknown_key", words)


def test_a_stranger_under_the_managers_name_is_refused() -> None:
    data = sign(PAYLOAD, TYPE, [Borrowed(MANAGER, STRANGER)])
    refused(data, "stable", AlteredError, "altered", f"is not what key {MANAGER.keyid[:16]} signed")


def test_other_bytes_are_not_what_was_signed() -> None:
    data = edited(sign(PAYLOAD, TYPE, [MANAGER]), payload=base64.b64encode(b'{"word": 2}\n').decode())
    refused(data, "stable", AlteredError, "altered", "is not what key")


def test_a_signature_for_one_type_is_none_for_another() -> None:
    other = sign(PAYLOAD, "application/other", [MANAGER])
    refused(other, "stable", ManifestError, "manifest", "is 'application/other', not")
    refused(edited(other, payloadType=TYPE), "stable", AlteredError, "altered", "is not what key")


def test_a_strangers_signature_beside_a_good_one_does_no_harm() -> None:
    data = sign(PAYLOAD, TYPE, [STRANGER, MANAGER, BUILD])
    assert verify(data, TYPE, a_root(), "stable", "place").keyids == (MANAGER.keyid,)


@pytest.mark.parametrize("signature", ["", "AAAA", base64.b64encode(bytes(64)).decode(), "A" * 100])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    data = edited(sign(PAYLOAD, TYPE, [MANAGER]), signatures=[{"keyid": MANAGER.keyid, "sig": signature}])
    refused(data, "stable", AlteredError, "altered", "is not what key")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"payload":' * 20_000, "not JSON"),
        (b"[]", "expected an object"),
        (b"{}", "missing key 'payload'"),
        (b" " * (MAX_ENVELOPE_BYTES + 1), "bytes are not read"),
        (edited(sign(PAYLOAD, TYPE, [BUILD]), payload="!"), "is not base64"),
        (edited(sign(PAYLOAD, TYPE, [BUILD]), payload="ä"), "is not base64"),
        (edited(sign(PAYLOAD, TYPE, [BUILD]), signatures="x"), "expected tuple"),
        (edited(sign(PAYLOAD, TYPE, [BUILD]), more=1), "unknown key 'more'"),
        (
            edited(sign(PAYLOAD, TYPE, [BUILD]), signatures=[{"keyid": "a" * 64, "sig": ""}] * 2),
            "signed twice",
        ),
        (
            edited(
                sign(PAYLOAD, TYPE, [BUILD]),
                signatures=[{"keyid": f"{n}", "sig": ""} for n in range(17)],
            ),
            "more than 16 signatures",
        ),
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes, words: str) -> None:
    refused(data, "stable", ManifestError, "manifest", words)


def test_too_few_signatures_are_counted() -> None:
    other = a_key("second manager")
    root = stable_by(a_root(), 2, MANAGER, other)
    with pytest.raises(ThresholdError, match="1 of 2 signatures of role stable hold") as caught:
        verify(sign(PAYLOAD, TYPE, [MANAGER, STRANGER]), TYPE, root, "stable", "place")
    assert caught.value.code == "threshold"
    assert len(verify(sign(PAYLOAD, TYPE, [MANAGER, other]), TYPE, root, "stable", "place").keyids) == 2


def root_document() -> dict[str, Any]:
    document: dict[str, Any] = dataclasses.asdict(a_root())
    return json.loads(to_json(document))  # type: ignore[no-any-return]


def signed_root(document: dict[str, Any]) -> bytes:
    return sign(to_json(document), ROOT_TYPE, [ROOT_KEY])


def _two_names(document: dict[str, Any]) -> None:
    document["keys"]["f" * 64] = MANAGER.public
    document["roles"]["stable"] = {"keyids": [MANAGER.keyid, "f" * 64], "threshold": 2}


def _same_key_twice(document: dict[str, Any]) -> None:
    document["roles"]["stable"] = {"keyids": [MANAGER.keyid] * 2, "threshold": 2}


def _stable_is_build(document: dict[str, Any]) -> None:
    document["roles"]["stable"] = document["roles"]["canary"]


def _root_is_build(document: dict[str, Any]) -> None:
    document["roles"]["root"]["keyids"].append(BUILD.keyid)


def _one_of_two_is_build(document: dict[str, Any]) -> None:
    document["roles"]["stable"]["keyids"].append(BUILD.keyid)


def _no_threshold(document: dict[str, Any]) -> None:
    document["roles"]["stable"]["threshold"] = 0


def _threshold_out_of_reach(document: dict[str, Any]) -> None:
    document["roles"]["stable"]["threshold"] = 2


def _nobody(document: dict[str, Any]) -> None:
    document["roles"]["stable"]["keyids"] = []


def _unknown(document: dict[str, Any]) -> None:
    document["roles"]["stable"]["keyids"] = ["e" * 64]


def _no_role(document: dict[str, Any]) -> None:
    del document["roles"]["canary"]


def _short_key(document: dict[str, Any]) -> None:
    document["keys"][MANAGER.keyid] = "ab"


def _version_0(document: dict[str, Any]) -> None:
    document["version"] = 0


def _schema_2(document: dict[str, Any]) -> None:
    document["schema"] = 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_two_names, "is not the SHA-256 of its key: one key would have two names"),
        (_same_key_twice, "names a key twice"),
        (_stable_is_build, f"roles.stable: key {BUILD.keyid[:16]} is a build host's, too"),
        (_one_of_two_is_build, f"roles.stable: key {BUILD.keyid[:16]} is a build host's, too"),
        (_root_is_build, f"roles.root: key {BUILD.keyid[:16]} is a build host's, too"),
        (_no_threshold, "threshold 0 of 1 keys cannot be met"),
        (_threshold_out_of_reach, "threshold 2 of 1 keys cannot be met"),
        (_nobody, "threshold 1 of 0 keys cannot be met"),
        (_unknown, "which is not among the keys"),
        (_no_role, "roles are"),
        (_short_key, "is not 32 bytes in hexadecimal"),
        (_version_0, "0 is no version"),
        (_schema_2, "schema 2, this version reads 1"),
    ],
)
def test_a_root_that_contradicts_itself_is_none(change: Any, words: str) -> None:
    document = root_document()
    parse_root(signed_root(document), "place")
    change(document)
    with pytest.raises(TrustRootError) as caught:
        parse_root(signed_root(document), "place")
    assert words in str(caught.value)
    assert caught.value.code == "trust_root"


def test_a_root_that_its_own_key_did_not_sign_is_none() -> None:
    with pytest.raises(WrongRoleError, match="whose role is stable"):
        parse_root(sign_root(a_root(), [MANAGER]), "place")
    with pytest.raises(UnsignedError):
        parse_root(sign_root(a_root(), []), "place")


def test_a_root_that_is_not_there_says_what_names_it(tmp_path: Path) -> None:
    with pytest.raises(TrustRootError, match="TRUST_ROOT names the file"):
        Trust.load(tmp_path / "root.json")


NEW_ROOT = a_key("new root")
FOLLOWS = {
    "another build key": next_root(build=NEW),
    "another manager": next_root(manager=NEW),
    "another root key": next_root(root=NEW_ROOT, signers=(ROOT_KEY, NEW_ROOT)),
}


@pytest.mark.parametrize("document", FOLLOWS.values(), ids=FOLLOWS)
def test_a_root_that_both_signed_follows(tmp_path: Path, document: bytes) -> None:
    put(tmp_path / "2.root.json", document)
    followed = a_trust().follow(tmp_path)
    assert (followed.root.version, followed.refused) == (2, [])


def test_after_the_root_key_was_rotated_only_the_new_one_counts(tmp_path: Path) -> None:
    put(tmp_path / "2.root.json", FOLLOWS["another root key"])
    third = a_root(version=3, root=NEW_ROOT, manager=NEW)
    put(tmp_path / "3.root.json", sign_root(third, [NEW_ROOT]))
    assert a_trust().follow(tmp_path).root == third
    put(tmp_path / "3.root.json", sign_root(a_root(version=3, manager=NEW), [ROOT_KEY]))
    followed = a_trust().follow(tmp_path)
    assert followed.root.version == 2
    assert f"key {ROOT_KEY.keyid[:16]} signed it, which root 2 does not name" in followed.refused[0]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (next_root(version=3), "version 3 cannot follow 1"),
        (next_root(version=1), "version 1 cannot follow 1"),
        (next_root(root=NEW_ROOT, signers=(NEW_ROOT,)), "which root 1 does not name"),
        (next_root(root=NEW_ROOT), "which root 2 does not name"),
        (next_root(signers=(BUILD,)), "whose role is release and canary"),
        (sign_root(a_root(version=2), []), "has no signature"),
        (FOLLOWS["another manager"][:-200], "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_a_root_that_does_not_follow_is_named_and_left_out(
    tmp_path: Path, document: bytes, words: str
) -> None:
    put(tmp_path / "2.root.json", document)
    put(tmp_path / "3.root.json", next_root(version=3, manager=NEW))
    followed = a_trust().follow(tmp_path)
    assert followed.root.version == 1
    assert words in followed.refused[0]
    with pytest.raises((SignatureError, ManifestError)):
        a_trust().add(document, "place")


def test_a_skipped_version_is_not_looked_at(tmp_path: Path) -> None:
    put(tmp_path / "3.root.json", next_root(version=3, manager=NEW))
    assert a_trust().follow(tmp_path).root.version == 1


def test_two_root_keys_must_both_sign_the_next(tmp_path: Path) -> None:
    second = a_key("second root")
    anchor = sign_root(with_threshold(2, second), [ROOT_KEY, second])
    after = with_threshold(2, second, version=2)
    with pytest.raises(ThresholdError, match="1 of 2 signatures of role root hold"):
        Trust(anchor, "place").add(sign_root(after, [ROOT_KEY]), "place")
    trust = Trust(anchor, "place")
    trust.add(sign_root(after, [ROOT_KEY, second]), "place")
    assert trust.root == after


WITHOUT_CRYPTOGRAPHY = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cryptography", "nacl"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
from pathlib import Path
from runtime.contract.errors import ConfigError, PipelineError
from runtime.contract.keys import PrivateKey, load_key
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import Trust
store = StoreReader(Path(sys.argv[1]), Trust.load(Path(sys.argv[2]) / "root.json"))
for channel in ("canary", "stable"):
    print(store.resolve("emulator", channel).id)
for make in (PrivateKey.generate, lambda: load_key(Path(sys.argv[2]) / "build.pem")):
    try:
        make()
    except ConfigError as error:
        print(error)
path = Path(sys.argv[3])
data = path.read_bytes()
path.unlink()
path.write_bytes(data.replace(b'"payload": "ewog', b'"payload": "ewoK'))
try:
    store.resolve("emulator", "stable")
except PipelineError as error:
    print(error.code)
assert "cryptography.hazmat.primitives" not in sys.modules
"""


def test_a_machine_without_cryptography_verifies_and_does_not_sign(tmp_path: Path) -> None:
    (release,) = published(tmp_path, "v1")
    entry = tmp_path / "channels/emulator/stable/00000001.json"
    command = [sys.executable, "-c", WITHOUT_CRYPTOGRAPHY, str(tmp_path), str(key_folder()), str(entry)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    needs = (
        "signing needs the package cryptography (install the extra `sign`; "
        "a Pi, which only verifies, does without)"
    )
    assert found.stdout.splitlines() == [release.id, release.id, needs, needs, "altered"]


def test_a_root_says_whose_keys_they_are() -> None:
    assert (a_root().kind, a_root(development=False).kind) == ("development keys", "own keys")
    assert isinstance(parse_root(TRUST_ROOT, "place"), Root)
