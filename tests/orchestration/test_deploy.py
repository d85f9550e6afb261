"""What is committed for two hosts: settings for Dagster, units for systemd, commands that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from assets.toolchain import HAILO_TARGETS
from assets.toolchain.dfc_config import load_config, most_seconds
from orchestration.distributed import DEPLOY, UNITS, DistributedError, Hosts, unit_command
from orchestration.postgres import Cluster, PostgresError, binaries
from orchestration.processes import Children
from tests.chain import ROOT

pytestmark = pytest.mark.build
SYSTEMD = DEPLOY / "systemd"


def example(name: str) -> dict[str, str]:
    """An environment file."""
    lines = (SYSTEMD / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment_of(unit: str) -> dict[str, str]:
    (named,) = re.findall(r"^EnvironmentFile=/etc/hailo-pipeline/(.+)$", (SYSTEMD / unit).read_text(), re.M)
    return example(named)


def test_every_unit_is_started_by_make_up_distributed() -> None:
    assert {path.name for path in SYSTEMD.glob("*.service")} == set(UNITS.values())


@pytest.mark.parametrize("unit", UNITS.values())
def test_each_command_exists_and_takes_its_options(unit: str) -> None:
    program, *words = unit_command(unit, environment_of(unit))
    assert shutil.which(program) == program
    assert not any("$" in word or "/opt/" in word for word in words)
    verbs = [word for word in words[:2] if not word.startswith("-")]
    told = subprocess.run([program, *verbs, "--help"], capture_output=True, text=True, check=True).stdout
    assert [word for word in words if re.match(r"--?[a-z]", word) and word not in told] == []
    for path in (word for word in words if word.endswith(".yaml")):
        assert Path(path).is_file()
    if "-m" in words:
        module = words[words.index("-m") + 1]
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_a_variable_without_a_value_is_refused() -> None:
    with pytest.raises(DistributedError, match="DAGSTER_CODE_HOST has no value"):
        unit_command(UNITS["code"], {})


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Its own judgement; of paths that are here, since it looks for what they name."""
    for path in SYSTEMD.glob("*.service"):
        text = path.read_text().replace("/opt/hailo-pipeline/.venv/bin", str(Path(sys.executable).parent))
        (tmp_path / path.name).write_text(text.replace("/opt/hailo-pipeline", str(ROOT)))
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *tmp_path.glob("*.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in (said.stdout + said.stderr).splitlines() if "hailo-pipeline" in line]
    # It runs on machines where the user was not made, too.
    assert ours == []


def test_dagster_takes_the_settings_and_reads_what_differs_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster._core.instance.config import dagster_instance_config

    config, _ = dagster_instance_config(str(DEPLOY))
    database = config["storage"]["postgres"]["postgres_db"]
    assert database["scheme"] == "postgresql+psycopg2"
    assert config["concurrency"]["pools"] == {"default_limit": 1, "granularity": "run"}
    asked = set(re.findall(r"\{env: (\w+)\}", (DEPLOY / "dagster.yaml").read_text()))
    asked |= set(re.findall(r"\{env: (\w+)\}", (DEPLOY / "workspace.yaml").read_text()))
    for name in ("ui.env", "code.env"):
        assert asked <= set(example(name)), name


def test_both_hosts_and_one_machine_agree_where_nothing_keeps_them_apart() -> None:
    one = yaml.safe_load((ROOT / "orchestration" / "dagster.yaml").read_text())
    two = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    assert {name: two[name] for name in one} == one


@pytest.mark.parametrize("settings", [DEPLOY / "dagster.yaml", ROOT / "orchestration" / "dagster.yaml"])
def test_no_run_is_ended_that_the_compilers_own_limits_allow(settings: Path) -> None:
    """Of all of Hailo's targets in one run, each verb as slow as it may be; the documents say the hours."""
    seconds = yaml.safe_load(settings.read_text())["run_monitoring"]["max_runtime_seconds"]
    config = load_config()
    allowed = len(HAILO_TARGETS) * most_seconds(config)
    assert most_seconds(config) >= sum(config.seconds.values())
    assert seconds > allowed
    hours, needed = f"{seconds // 3600} hours", f"{allowed / 3600:.1f} hours"
    assert f"takes longer than {hours}" in (ROOT / "docs" / "gpusrv.md").read_text()
    told = (ROOT / "docs" / "dagster.md").read_text()
    assert f"goes on for {hours}" in told
    assert needed in told
    for verb in ("optimize", "compile"):
        assert re.search(rf"`{verb}` after {config.seconds[verb] / 3600:g}\b", told)


def test_what_is_started_here_has_the_variables_of_the_environment_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "password", "secret")
    with Children() as base, Children() as children:
        hosts = Hosts(tmp_path, base, children, tmp_path)
        for host, name in (("ui", "ui.env"), ("gpusrv", "code.env")):
            named, given = set(example(name)), set(hosts.environment(host))
            assert {each for each in named if each.startswith("DAGSTER_")} == {
                each for each in given if each.startswith("DAGSTER_")
            }


def test_the_compiler_is_told_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from assets.toolchain.dfc_process import environment

    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "secret")
    assert "secret" not in environment(tmp_path).values()


def test_without_postgres_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match=r"Postgres is not installed .apt-get install postgresql\)"):
        binaries(debian=tmp_path)


def test_the_newest_postgres_is_taken_unless_a_cluster_has_its_own(tmp_path: Path) -> None:
    for version in ("9.6", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "postgres").touch()
    assert binaries(debian=tmp_path) == tmp_path / "17" / "bin"
    assert binaries("15", tmp_path) == tmp_path / "15" / "bin"
    with pytest.raises(PostgresError, match="apt-get install postgresql-16"):
        binaries("16", tmp_path)


@pytest.mark.needs("postgres")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives Postgres to another user")
def test_a_folder_that_postgres_cannot_get_at_is_said(tmp_path: Path) -> None:
    """As a checkout in /root is."""
    tmp_path.chmod(0o700)
    with pytest.raises(PostgresError, match="cannot get at this folder, and Postgres does not run as root"):
        Cluster(tmp_path / "postgres", 20001).make()
    assert not (tmp_path / "postgres" / "data").exists()
