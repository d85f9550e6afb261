"""Damaged and invented documents: never believed with other words, never an error that is not ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from runtime.contract.channels import ENTRY_TYPE, check_entry, entry_name, sign_entry
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import PipelineError
from runtime.contract.release import manifest_bytes, parse_manifest
from runtime.contract.release_directory import STATEMENT_TYPE, check_statement, sign_release
from runtime.contract.requests import MoveRequest
from runtime.contract.trust import ROOT_TYPE, open_envelope, parse_root, sign, verify
from tests.keys import BUILD, MANAGER, ROOT_KEY, TRUST_ROOT, a_root, a_trust
from tests.moves import an_entry, next_root
from tests.simulators import ReleaseSimulator

QUICK, THOROUGH = 2_000, 20_000
ROOT = a_root()
PLACE = Path("channels/emulator/stable") / entry_name(1)
ENTRY = sign_entry(an_entry(), MANAGER)
_MADE = ReleaseSimulator()
MANIFEST = manifest_bytes(_MADE.manifest(_MADE.contents()))
STATEMENT = sign_release(MANIFEST, BUILD)
NEXT = next_root()


@dataclass
class Tally:
    """What came of the cases."""

    cases: int = 0
    believed: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    def hold(self, judge: Callable[[], bytes], true: bytes) -> None:
        """Believed means: exactly these words."""
        self.cases += 1
        try:
            found = judge()
        except PipelineError as error:
            self.codes[error.code] = self.codes.get(error.code, 0) + 1
        else:
            self.believed += 1
            assert found == true


def payload_of(data: bytes) -> bytes:
    return base64.b64decode(json.loads(data)["payload"])


def judge_entry(data: bytes) -> bytes:
    """What an entry says, where it is believed."""
    return to_json(check_entry(data, PLACE, [ROOT]).entry)


def judge_statement(data: bytes) -> bytes:
    """The payload about a release, where it is believed."""
    check_statement(data, ROOT, sha256_bytes(MANIFEST), len(MANIFEST), "statement")
    return open_envelope(data, STATEMENT_TYPE, "statement").payload


def judge_root(data: bytes) -> bytes:
    """What the next root says, where it follows."""
    trust = a_trust()
    trust.add(data, "root")
    return to_json(trust.root)


def judge_anchor(data: bytes) -> bytes:
    """What a first root says, where it holds."""
    return to_json(parse_root(data, "root"))


JUDGES: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "entry": (judge_entry, ENTRY),
    "statement": (judge_statement, STATEMENT),
    "root": (judge_root, NEXT),
    "anchor": (judge_anchor, TRUST_ROOT),
}
SIGNERS = {
    "entry": (ENTRY_TYPE, MANAGER, "stable"),
    "statement": (STATEMENT_TYPE, BUILD, "release"),
    "root": (ROOT_TYPE, ROOT_KEY, "root"),
    "anchor": (ROOT_TYPE, ROOT_KEY, "root"),
}


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid document with bytes changed, taken out, put in, doubled or cut off."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["set", "flip", "take", "put", "double", "cut"]))
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 40))
        if kind == "set" and data:
            data[start] = draw(st.integers(0, 255))
        elif kind == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "take":
            del data[start : start + length]
        elif kind == "put":
            data[start:start] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "double":
            data[start:start] = data[start : start + length]
        elif kind == "cut":
            del data[start:]
    return bytes(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "a" * 64, "stable", "root", "2026-01-01T00:00:00Z", "\ud800", 2**70, -1, 1e400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in places(each, (*path, key)))]


@st.composite
def reshaped(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid document with values replaced, keys added or taken away: still JSON."""
    value = json.loads(valid)
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(places(value)))
        if not where:
            value = draw(VALUES) if draw(st.integers(0, 9)) == 0 else value
            continue
        parent = value
        for key in where[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "take", "add"]))
        if kind == "take":
            del parent[where[-1]]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            parent[where[-1]] = draw(VALUES)
    return json.dumps(value).encode()


def either(valid: bytes) -> st.SearchStrategy[bytes]:
    """Bytes changed, or values."""
    return mutated(valid) | reshaped(valid) | st.binary(max_size=200)


def run_on(judge: Callable[[bytes], None], documents: st.SearchStrategy[bytes], examples: int) -> None:
    """The same cases each time, as many as asked for."""

    @seed(7)
    @settings(max_examples=examples, database=None, phases=[Phase.generate], **CALM)
    @given(documents)
    def run(data: bytes) -> None:
        judge(data)

    run()


def outside(tally: Tally, name: str, examples: int) -> None:
    """Documents changed after they were signed."""
    judge, valid = JUDGES[name]
    true, (kind, _, role) = judge(valid), SIGNERS[name]

    def hold(data: bytes) -> None:
        tally.hold(lambda: judge(data), true)
        tally.hold(lambda: verify(data, kind, ROOT, role, name).payload, payload_of(valid))

    run_on(hold, either(valid), examples)


def inside(tally: Tally, name: str, examples: int) -> None:
    """Documents signed by the right key, that say nonsense: an error of ours, or what was signed."""
    judge, valid = JUDGES[name]
    kind, key, _ = SIGNERS[name]

    def hold(payload: bytes) -> None:
        tally.cases += 1
        try:
            judge(sign(payload, kind, [key]))
        except PipelineError as error:
            tally.codes[error.code] = tally.codes.get(error.code, 0) + 1
        else:
            tally.believed += 1

    run_on(hold, either(payload_of(valid)), examples)


def manifests(tally: Tally, examples: int) -> None:
    """Manifests of any shape: only one with the same bytes has the same name."""

    def hold(data: bytes) -> None:
        tally.cases += 1
        try:
            manifest = parse_manifest(data, "manifest")
            tally.believed += 1
            assert parse_manifest(manifest_bytes(manifest), "again") == manifest
        except PipelineError as error:
            tally.codes[error.code] = tally.codes.get(error.code, 0) + 1
        if data != MANIFEST:
            with pytest.raises(PipelineError):
                check_statement(STATEMENT, ROOT, sha256_bytes(data), len(data), "statement")

    run_on(hold, either(MANIFEST), examples)


CALM: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}


def fuzz(examples: int) -> Tally:
    """So many cases at least, over envelopes, entries, manifests and roots."""
    tally = Tally()
    for name in JUDGES:
        outside(tally, name, examples // 10)
        inside(tally, name, examples // 10)
    manifests(tally, examples // 5)
    print(f"{tally.cases} cases, {tally.believed} believed, refused: {tally.codes}")
    return tally


def test_damaged_documents_are_never_believed() -> None:
    tally = fuzz(QUICK)
    assert tally.cases >= QUICK
    assert {"manifest", "altered"} <= tally.codes.keys()
    # A damaged key id is rarely another one: mostly it is none, and its signature nobody's.
    assert tally.codes.keys() & {"unknown_key", "unsigned"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_damaged_documents_are_never_believed() -> None:
    assert fuzz(THOROUGH).cases >= THOROUGH


@settings(max_examples=200)
@given(st.text(max_size=10), st.text(max_size=10), st.text(max_size=70))
def test_requests_are_ours_or_refused(actor: str, reason: str, release: str) -> None:
    try:
        request = MoveRequest(
            schema=1,
            action="promote",
            target="emulator",
            channel="stable",
            release=release,
            approved_by=actor,
            reason=reason,
            force=False,
            origin="a test",
            seen="",
            at="now",
        )
    except PipelineError:
        return
    assert request.approved_by.isprintable()
    assert request.reason.isprintable()
