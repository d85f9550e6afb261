"""Builds take turns: in a workbench, and in a home of Dagster's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.build import alone_in
from tests.chain import ROOT

pytestmark = pytest.mark.build
SECOND = """
import sys
from pathlib import Path
from orchestration.build import alone_in
with alone_in(Path(sys.argv[1])):
    print("inside", flush=True)
"""


def test_a_second_build_says_that_it_waits_and_then_takes_its_turn(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    with alone_in(folder):
        second = subprocess.Popen(
            [sys.executable, "-c", SECOND, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert second.stdout is not None
        said = second.stdout.readline()
        assert str(folder) in said
        assert "waiting" in said
        assert second.poll() is None
    rest, _ = second.communicate(timeout=60)
    assert (rest, second.returncode) == ("inside\n", 0)


def test_one_after_the_other_nobody_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with alone_in(tmp_path):
            pass
    assert capsys.readouterr().out == ""
