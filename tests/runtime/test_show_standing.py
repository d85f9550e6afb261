"""What `releasectl show` says first: the verdict, who signed, where channels had it, who marked it bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.contract.promotion import Decision, mark_bad
from runtime.contract.store import Release
from tests.keys import MANAGER, a_store
from tests.moves import published

Capture = pytest.CaptureFixture[str]


@pytest.fixture(name="releases")
def two_releases(tmp_path: Path) -> list[Release]:
    return published(tmp_path, "v1", "v2")


def show(capsys: Capture, root: Path, release: Release, *more: str) -> tuple[int, str, str]:
    code = main(["show", release.id, "--store", str(root), *more])
    return code, *capsys.readouterr()


def test_what_is_asked_first_is_said_first(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    why = Decision(actor="anna", reason="wrong axes")
    at = mark_bad(a_store(tmp_path), releases[1].id, "stable", why, MANAGER).at
    code, out, _ = show(capsys, tmp_path, releases[1])
    lines = out.splitlines()
    assert code == 0
    names = ("release ", "parity ", "signature ", "MARKED BAD ", "channels", "history", "model ", "artifacts")
    places = [next(n for n, line in enumerate(lines) if line.startswith(name)) for name in names]
    assert places == sorted(places)
    assert f"MARKED BAD by anna on {at}: wrong axes" in lines
    assert "MARKED BAD" not in show(capsys, tmp_path, releases[0])[1]
    (mark,) = json.loads(show(capsys, tmp_path, releases[1], "--json")[1])["marked_bad"]
    assert (mark["actor"], mark["reason"]) == ("anna", "wrong axes")


def test_a_history_that_does_not_hold_is_said(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    (tmp_path / "channels/emulator/stable/00000001.json").unlink()
    code, out, err = show(capsys, tmp_path, releases[1])
    assert code == 1
    assert "history     DOES NOT HOLD" in out
    assert "history     none" not in out
    assert "entry 2 counts, but the history before it does not hold" in err
    (problem,) = json.loads(show(capsys, tmp_path, releases[1], "--json")[1])["history_problems"]
    assert "00000001.json is missing" in problem


def test_without_a_root_of_trust_nothing_is_judged(
    tmp_path: Path, releases: list[Release], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUST_ROOT")
    monkeypatch.chdir(tmp_path)
    code, out, _ = show(capsys, tmp_path, releases[1])
    assert code == 0
    for name in ("channels", "history"):
        assert f"{name:<11} not judged: no root of trust" in out.splitlines()
