"""The systemd units: systemd itself can read them, and what they start and set is there."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from runtime.cli import main
from runtime.config import RuntimeConfig
from runtime.rsync_copy import STALLED_SECONDS
from tests.simulators import ROOT

FOLDER: Final = ROOT / "deploy" / "pi"
UNITS: Final = sorted(path.name for path in FOLDER.iterdir())
PREFIX: Final = "/opt/hailo-pipeline"


def settings(name: str) -> dict[str, list[str]]:
    """``Section.Key`` to its values, in order; a line that is none fails."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (FOLDER / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = line.partition("=")
        assert section, line
        assert equals, line
        assert key.isalnum(), line
        found.setdefault(f"{section}.{key}", []).append(value)
    return found


def environment(name: str) -> dict[str, str]:
    pairs = [pair for line in settings(name)["Service.Environment"] for pair in shlex.split(line)]
    return dict(pair.split("=", 1) for pair in pairs)


def test_every_unit_is_looked_at() -> None:
    assert UNITS == ["hailo-inference.service", "hailo-pipeline-pull.service", "hailo-pipeline-pull.timer"]


def test_systemd_reads_them(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing; the other tests here read the units themselves")
    for name in UNITS:
        text = (FOLDER / name).read_text().replace(f"{PREFIX}/.venv/bin", str(Path(sys.executable).parent))
        (tmp_path / name).write_text(text)
    run = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in run.stderr.splitlines() if any(name in line for name in UNITS)]
    assert (run.returncode, ours) == (0, []), run.stderr


def test_the_runtime_that_is_started_is_there() -> None:
    (command,) = settings("hailo-inference.service")["Service.ExecStart"]
    program, dash_c, conf, app = command.split()
    assert program == f"{PREFIX}/.venv/bin/gunicorn"
    assert (Path(sys.executable).parent / "gunicorn").is_file()
    assert dash_c == "-c"
    assert (ROOT / conf).is_file()
    module, _, name = app.partition(":")
    assert f"\n{name} = " in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert settings("hailo-inference.service")["Service.TimeoutStopSec"] == ["30"]
    assert settings("hailo-inference.service")["Service.LimitNOFILE"] == ["4096"]


def test_the_settings_are_the_runtimes_own() -> None:
    given = environment("hailo-inference.service")
    config = RuntimeConfig.from_environment(given)
    unset = RuntimeConfig()
    changed = {name for name in given if getattr(config, name.lower()) != getattr(unset, name.lower())}
    assert changed == set(given), "a name that the runtime does not read, or its default"
    assert str(config.state_dir).startswith("/var/lib/hailo-pipeline/")


def test_telemetry_is_documented_where_the_unit_may_write() -> None:
    """ProtectSystem=strict: elsewhere nothing is kept; and the files are the service's alone."""
    text = (ROOT / "docs" / "telemetry.md").read_text()
    (place,) = set(re.findall(r"TELEMETRY_DIR=([^\s`]+)", text))
    (folders,) = settings("hailo-inference.service")["Service.StateDirectory"]
    assert place in {f"/var/lib/{name}" for name in folders.split()}
    assert f"#TELEMETRY_DIR={place}\n" in (ROOT / "deploy" / "compose.pi.env").read_text()
    collecting = [line for line in text.splitlines() if line.startswith("rsync ")]
    assert len(collecting) == 1
    words = shlex.split(collecting[0])
    assert "--rsync-path=sudo -n rsync" in words
    assert words[-2].endswith(f":{place}/")


@pytest.mark.needs("rsync")
def test_the_pull_that_is_started_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = settings("hailo-pipeline-pull.service")["Service.ExecStart"]
    for name, value in environment("hailo-pipeline-pull.service").items():
        command = command.replace("${" + name + "}", value)
    command = command.replace("${SOURCE}", str(tmp_path / "nowhere"))
    assert "$" not in command
    program, *words = command.split()
    assert program == f"{PREFIX}/.venv/bin/releasectl"
    assert (Path(sys.executable).parent / "releasectl").is_file()
    place = settings("hailo-inference.service")["Service.Environment"]
    assert f"RELEASE_STORE={words[2]}" in place
    words[2] = str(tmp_path / "pi")
    assert main(words) == 2  # understood; the source is not there
    assert "nowhere: is no directory" in capsys.readouterr().err


def test_ssh_asks_nobody_and_trusts_no_stranger() -> None:
    words = shlex.split(environment("hailo-pipeline-pull.service")["RSYNC_RSH"])
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("-o", action="append")
    parser.add_argument("-i")
    options = parser.parse_args(words).o
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes"} < set(options)
    given = dict(each.split("=", 1) for each in options)
    quiet = int(given["ServerAliveInterval"]) * int(given["ServerAliveCountMax"])
    assert 0 < quiet < STALLED_SECONDS, "a line that is dead is to be ssh's to tell"


def test_the_timer_starts_the_pull_again_and_not_everywhere_at_once() -> None:
    timer = settings("hailo-pipeline-pull.timer")
    assert {"Timer.OnBootSec", "Timer.OnUnitInactiveSec", "Timer.RandomizedDelaySec"} <= set(timer)
    assert "Timer.Unit" not in timer  # the service of the same name
    assert timer["Install.WantedBy"] == ["timers.target"]
