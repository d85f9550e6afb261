"""What `releasectl list` says of releases that are marked bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.contract.promotion import Decision, mark_bad
from runtime.contract.store import Release
from tests.keys import BUILD, MANAGER, a_store
from tests.moves import channel, published
from tests.simulators import flip_bit

Capture = pytest.CaptureFixture[str]
WHY = Decision(actor="anna", reason="wrong axes")


@pytest.fixture(name="releases")
def two_releases_one_marked(tmp_path: Path) -> list[Release]:
    releases = published(tmp_path, "v1", "v2")
    mark_bad(a_store(tmp_path), releases[0].id, "stable", WHY, MANAGER)
    return releases


def listed(capsys: Capture, root: Path, *more: str) -> tuple[int, str, str]:
    code = main(["list", "--store", str(root), *more])
    return code, *capsys.readouterr()


def test_a_mark_is_in_the_table_and_explained_below(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    mark_bad(a_store(tmp_path), releases[0].id, "canary", Decision(actor="CI", reason="hot"), BUILD)
    code, out, err = listed(capsys, tmp_path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    table = {line[:12]: line.split() for line in lines[1:3]}
    assert "BAD" in table[releases[0].id[:12]]
    assert "BAD" not in table[releases[1].id[:12]]
    marks = [" ".join(line.split()) for line in lines if "MARKED BAD" in line]
    assert [mark.split(" on ")[0] for mark in marks] == [
        f"{releases[0].id[:12]} MARKED BAD by CI",
        f"{releases[0].id[:12]} MARKED BAD by anna",
    ]
    assert "wrong axes" in out
    assert max(map(len, lines)) <= 80


def test_a_mark_is_in_the_json(
    tmp_path: Path, releases: list[Release], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row["release"]: row for row in json.loads(listed(capsys, tmp_path, "--json")[1])}
    (mark,) = rows[releases[0].id]["marked_bad"]
    assert (mark["actor"], mark["reason"], mark["channel"]) == ("anna", "wrong axes", "stable")
    assert rows[releases[1].id]["marked_bad"] == []
    monkeypatch.delenv("TRUST_ROOT")
    monkeypatch.chdir(tmp_path)
    code, out, _ = listed(capsys, tmp_path, "--json")
    assert (code, [row["marked_bad"] for row in json.loads(out)]) == (0, [None, None])


def test_a_mark_of_a_release_that_cannot_be_read_is_shown(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    flip_bit(releases[0].directory / "manifest.json", 30)
    code, out, _ = listed(capsys, tmp_path)
    assert code == 1
    assert f"{releases[0].id[:12]} MARKED BAD by anna" in out


def test_where_a_history_does_not_hold_it_is_said(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    (channel(tmp_path) / "00000001.json").unlink()
    code, _, err = listed(capsys, tmp_path)
    assert code == 1
    assert err.startswith("releasectl: marks may be missing: emulator/stable: entry 3 counts, but")
    assert err.count("\n") == 1


def test_a_mark_that_nobody_who_may_signed_is_none(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    flip_bit(channel(tmp_path) / "00000003.json")
    rows = json.loads(listed(capsys, tmp_path, "--json")[1])
    assert [row["marked_bad"] for row in rows] == [[], []]
