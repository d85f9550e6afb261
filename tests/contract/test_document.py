"""Documents: the same value gives the same bytes, and nothing unsaid is read."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.document import MAX_DOCUMENT_BYTES, from_json, sha256_bytes, sha256_file, to_json
from runtime.contract.errors import ManifestError


@dataclass(frozen=True, kw_only=True)
class Inner:
    ratio: float

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ManifestError("below zero", where="ratio", hint="square it")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    count: int
    flag: bool
    note: str | None
    inner: tuple[Inner, ...]
    table: dict[str, int]


FINITE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
OUTERS = st.builds(
    Outer,
    name=st.text(),
    count=st.integers(),
    flag=st.booleans(),
    note=st.none() | st.text(),
    inner=st.lists(st.builds(Inner, ratio=FINITE)).map(tuple),
    table=st.dictionaries(st.text(), st.integers()),
)
GOOD = b'{"name":"a","count":1,"flag":true,"note":null,"inner":[{"ratio":1}],"table":{"k":2}}'


@given(OUTERS)
def test_what_was_written_is_read(value: Outer) -> None:
    try:
        data = to_json(value)
    except UnicodeEncodeError:
        return  # a lone surrogate is no text
    assert from_json(Outer, data, "d") == value
    assert to_json(from_json(Outer, data, "d")) == data


def test_the_order_of_keys_does_not_matter() -> None:
    assert to_json({"b": 1, "a": 2}) == to_json({"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (b'"count":1', b'"count":true', "d.count"),
        (b'"count":1', b'"count":1.0', "d.count"),
        (b'"flag":true', b'"flag":1', "d.flag"),
        (b'"name":"a"', b'"name":null', "d.name"),
        (b'"ratio":1', b'"ratio":"1"', "d.inner[0].ratio"),
        (b'"ratio":1', b'"ratio":NaN', "d.inner[0].ratio"),
        (b'"ratio":1', b'"ratio":1e999', "d.inner[0].ratio"),
        (b'"ratio":1', b'"ratio":1' + b"0" * 400, "d.inner[0].ratio: an integer beyond float64"),
        (b'"ratio":1', b'"ratio":-0.5', "d.ratio: below zero (square it)"),
        (b'{"ratio":1}', b"[]", "d.inner[0]"),
        (b'{"k":2}', b'{"k":"2"}', "d.table.k"),
        (b'"count":1,', b"", "missing key 'count'"),
        (b'"count":1', b'"count":1,"more":1', "unknown key 'more'"),
        (b"{", b"[", "not JSON"),
        (b'"a"', b'"\xff"', "not JSON"),
    ],
)
def test_a_wrong_document_names_the_place(old: bytes, new: bytes, where: str) -> None:
    with pytest.raises(ManifestError) as caught:
        from_json(Outer, GOOD.replace(old, new, 1), "d")
    assert where in str(caught.value)


def test_a_kind_is_looked_into_once_not_for_each_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of a thousand releases spent a fifth of its time on asking what a tuple is."""
    from_json(Outer, GOOD, "d")

    def asked(kind: object) -> None:
        raise AssertionError(f"{kind} was looked into again")

    monkeypatch.setattr(typing, "get_origin", asked)
    monkeypatch.setattr(typing, "get_type_hints", asked)
    assert from_json(Outer, GOOD, "d").table == {"k": 2}


def test_deep_nesting_and_size_are_bounded() -> None:
    with pytest.raises(ManifestError, match="not JSON"):
        from_json(Outer, b"[" * 200_000, "d")
    with pytest.raises(ManifestError, match="at most"):
        from_json(Outer, b" " * (MAX_DOCUMENT_BYTES + 1), "d")


def test_both_digests_agree(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == sha256_bytes(b"abc")
    assert sha256_bytes(b"abc").startswith("ba7816bf")
