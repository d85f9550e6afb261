"""``compose.yaml`` and the override, without Docker: services, profiles, and what they mount and build.

No engine reads them here. What compose itself would refuse for its form is looked for as far as it is cheap:
names that are not declared, variables without a default, keys that the specification does not know.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from runtime.config import RuntimeConfig
from runtime.contract.version import VERSION
from tests.image import run
from tests.monitoring import JOB
from tests.simulators import ROOT

COMPOSE: Final = ROOT / "compose.yaml"
OVERRIDE: Final = ROOT / "deploy" / "compose.override.yaml"
SETTINGS: Final = ROOT / "deploy" / "compose.pi.env"
RUNTIMES: Final = {"hardware": "hailo-inference", "emulator": "hailo-inference-emulator"}
VARIABLE: Final = re.compile(r"\$\{([A-Z_]+)(?::([-?+])([^}]*))?\}")
SERVICE_KEYS: Final = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "devices",
    "entrypoint",
    "environment",
    "expose",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "logging",
    "networks",
    "ports",
    "profiles",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "user",
    "volumes",
}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def filled(text: str, **given: str) -> str:
    """A value as compose takes it: what is set, else its default."""

    def one(match: re.Match[str]) -> str:
        name, how, word = match.groups()
        value = given.get(name, "")
        if how == "+":
            return word if value else ""
        return value or (word if how == "-" else "")

    return VARIABLE.sub(one, text)


def mounts(service: dict[str, Any], **given: str) -> dict[str, tuple[str, str]]:
    """Where it is inside to what it is outside, and how."""
    found = {}
    for each in service.get("volumes", ()):
        if isinstance(each, dict):
            how = "ro" if each.get("read_only") else "rw"
            found[each["target"]] = filled(each["source"], **given), how
        else:
            source, inside, *how_it_is = filled(each, **given).split(":")
            found[inside] = source, (how_it_is or ["rw"])[0]
    return found


def config_of(service: dict[str, Any], **given: str) -> RuntimeConfig:
    """The runtime's own reading of what compose hands it."""
    environment = {name: filled(value, **given) for name, value in service["environment"].items()}
    return RuntimeConfig.from_environment(environment)


def pi_settings() -> dict[str, str]:
    """What ``deploy/compose.pi.env`` sets; what is switched off by ``#`` is not among it."""
    lines = [line for line in SETTINGS.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_nothing_that_compose_does_not_know() -> None:
    assert {name for name in compose() if not name.startswith("x-")} == {
        "name",
        "services",
        "networks",
        "volumes",
    }
    for name, service in services().items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service["networks"]) <= set(compose()["networks"]), name
        for source, _ in mounts(service).values():
            assert source.startswith((".", "/")) or source in compose()["volumes"], (name, source)
        assert set(service.get("depends_on", ())) <= set(services()), name


@pytest.mark.parametrize("path", [COMPOSE, OVERRIDE], ids=lambda path: path.name)
def test_variables_have_a_default_or_are_asked_for(path: Path) -> None:
    lines = [line.partition(" #")[0] for line in path.read_text().splitlines()]
    found = VARIABLE.findall("\n".join(line for line in lines if not line.lstrip().startswith("#")))
    assert [name for name, how, _ in found if how not in ("-", "+")] == []


@pytest.mark.parametrize("profile", RUNTIMES)
def test_the_runtime(profile: str) -> None:
    runtimes = [n for n, s in services().items() if profile in s["profiles"] and "build" in s]
    assert runtimes == [RUNTIMES[profile]]
    runtime = services()[RUNTIMES[profile]]
    assert (runtime["user"], runtime["read_only"]) == ("1000:1000", True)
    assert runtime["expose"] == ["9000"]
    assert "ports" not in runtime
    assert runtime["stop_grace_period"] == "30s"
    assert runtime["deploy"]["resources"]["limits"] == {"cpus": "2", "memory": "1G"}
    assert runtime["healthcheck"]["test"][-1] == "http://localhost:9000/healthz"
    assert mounts(runtime)["/models"] == ("./artifacts/releases", "ro")
    assert runtime["build"]["dockerfile"] == "Dockerfile.runtime"
    assert (ROOT / runtime["build"]["context"]).is_dir()


@pytest.mark.parametrize("profile", RUNTIMES)
def test_its_settings_are_the_runtimes_own(profile: str) -> None:
    runtime = services()[RUNTIMES[profile]]
    given = {name: filled(value) for name, value in runtime["environment"].items()}
    config = RuntimeConfig.from_environment(given)
    assert {name.lower() for name in given} <= set(RuntimeConfig.__dataclass_fields__)
    assert (config.host, config.port) == ("0.0.0.0", 9000)
    inside = mounts(runtime)
    assert config.telemetry_dir is None
    assert inside.pop("/telemetry") == ("/dev/null", "rw")
    for path in (config.release_store, config.state_dir, config.trust_root):
        assert str(path) in inside, path
    assert inside[str(config.state_dir)][1] == "rw"
    assert [at for at, (_, how) in inside.items() if how != "ro"] == [
        str(path) for path in (config.state_dir, config.hailo_lock_dir) if path
    ]


@pytest.mark.parametrize("profile", RUNTIMES)
def test_a_missing_folder_is_not_made(profile: str) -> None:
    """Docker would make it, empty and root's: a store without releases, a ``root.json`` that is a folder."""
    binds = [each for each in services()[RUNTIMES[profile]]["volumes"] if each["type"] == "bind"]
    assert {each["target"] for each in binds} >= {"/models", "/etc/hailo-pipeline/root.json", "/telemetry"}
    assert [each["target"] for each in binds if each["bind"] != {"create_host_path": False}] == []


@pytest.mark.parametrize("profile", RUNTIMES)
def test_what_a_user_sets_reaches_the_runtime(profile: str) -> None:
    given = {
        "NUM_MOTIFS": "7",
        "CANARY_MODE": "shadow",
        "TELEMETRY_DIR": "/srv/windows",
        "TELEMETRY_MAX_MB": "5",
        "TELEMETRY_PER_MINUTE": "3",
        "TELEMETRY_MARGIN": "0.5",
        "TELEMETRY_DISTANCE": "2",
    }
    runtime = services()[RUNTIMES[profile]]
    config = config_of(runtime, **given)
    expected = {name.lower(): value for name, value in given.items()} | {"telemetry_dir": "/telemetry"}
    assert {name: f"{getattr(config, name)}".removesuffix(".0") for name in expected} == expected
    assert mounts(runtime, **given)["/telemetry"] == ("/srv/windows", "rw")
    assert filled(runtime["hostname"], MACHINE_NAME="pi-kitchen") == "pi-kitchen"


def units(name: str, key: str) -> list[str]:
    """A key's values in a unit of ``deploy/pi``."""
    lines = (ROOT / "deploy" / "pi" / name).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_the_pis_settings_lead_to_what_its_timer_pulls() -> None:
    given = pi_settings()
    switched_off = set(re.findall(r"^#([A-Z_]+)=", SETTINGS.read_text(), re.M))
    assert set(given) | switched_off <= {name for name, *_ in VARIABLE.findall(COMPOSE.read_text())}
    runtime = services()["hailo-inference"]
    inside = mounts(runtime, **given)
    (pull,) = units("hailo-pipeline-pull.service", "ExecStart")
    assert inside["/models"] == (shlex.split(pull)[3], "ro")
    assert f"TRUST_ROOT={inside['/etc/hailo-pipeline/root.json'][0]}" in units(
        "hailo-pipeline-pull.service", "Environment"
    )
    assert config_of(runtime, **given).target == "hailo8"
    assert given["GRAFANA_PASSWORD"] == ""


def test_compose_and_make_image_build_the_same(tmp_path: Path) -> None:
    """Tag and labels: what one built, the other takes."""
    builder = tmp_path / "builder"
    builder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    builder.chmod(0o755)
    for service, engine in (("hailo-inference", "hailo"), ("hailo-inference-emulator", "emulator")):
        environment = {**os.environ, "BUILDER": str(builder), "ENGINE": engine}
        told = run("sh", ROOT / "deploy/image/build.sh", env=environment)
        assert told.returncode == 0, told.stderr
        words = told.stdout.splitlines()
        assert words[words.index("-t") + 1] == services()[service]["image"]
        made = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--build-arg")
        args = services()[service]["build"]["args"]
        assert filled(args["VERSION"]) == made["VERSION"] == VERSION
        assert filled(args["SOURCE"], IMAGE_SOURCE="tree") == "tree"
        assert set(args) == set(made)
        assert args["ENGINE"] == made["ENGINE"] == engine


def test_grafana_alone_asks_for_its_password(tmp_path: Path) -> None:
    """``:?`` would end every command of compose; a default would be a password that everybody knows."""
    grafana = services()["grafana"]
    assert filled(grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"]) == ""
    server = tmp_path / "run.sh"
    server.write_text('#!/bin/sh\necho "started $*"\n')
    server.chmod(0o755)
    words = [word.replace("$$", "$").replace("/run.sh", str(server)) for word in grafana["entrypoint"]]
    without = run(*words, env={"PATH": os.environ["PATH"], "GF_SECURITY_ADMIN_PASSWORD": ""})
    assert (without.returncode, without.stdout) == (1, "")
    assert "GRAFANA_PASSWORD is not set" in without.stderr
    given = run(*words, "word", env={"PATH": os.environ["PATH"], "GF_SECURITY_ADMIN_PASSWORD": "x"})
    assert (given.returncode, given.stdout) == (0, "started word\n")


def test_only_the_hardware_has_the_chip() -> None:
    chip = services()["hailo-inference"]
    assert chip["devices"] == ["/dev/hailo0:/dev/hailo0"]
    assert chip["build"]["args"]["ENGINE"] == "hailo"
    assert chip["environment"]["HAILO_LOCK_DIR"] in mounts(chip)
    assert "devices" not in services()["hailo-inference-emulator"]
    # Whichever it is, it answers to the name that clients and Prometheus have.
    assert services()["hailo-inference-emulator"]["networks"]["pisrv-network"]["aliases"] == [
        "hailo-inference"
    ]


def test_prometheus_and_grafana_are_provisioned_from_what_is_there() -> None:
    for name in ("prometheus", "grafana"):
        service = services()[name]
        assert set(service["profiles"]) == set(RUNTIMES)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for inside, (source, how) in mounts(service).items():
            if source.startswith("."):
                assert (ROOT / source).is_dir(), source
                assert how == "ro", inside
    prometheus, grafana = services()["prometheus"], services()["grafana"]
    (config,) = [word for word in prometheus["command"] if "config.file" in word]
    folder, name = config.partition("=")[2].rsplit("/", 1)
    assert (ROOT / mounts(prometheus)[folder][0] / name).is_file()
    (scrape,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["hailo-inference:9000"]}]
    assert f'job="{scrape["job_name"]}"' == JOB
    folders = mounts(grafana)
    (provider,) = yaml.safe_load(
        (ROOT / folders["/etc/grafana/provisioning"][0] / "dashboards" / "hailo.yml").read_text()
    )["providers"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    place, _, dashboard = home.rpartition("/")
    assert place == provider["options"]["path"]
    assert (ROOT / folders[place][0] / dashboard).is_file()
    (source,) = yaml.safe_load(
        (ROOT / folders["/etc/grafana/provisioning"][0] / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_the_override_points_edgeinfer_to_the_runtime() -> None:
    override = yaml.safe_load(OVERRIDE.read_text())
    (name,) = override["services"]
    assert name == "edge-infer"  # as the neighbours' compose file calls it
    edge = override["services"][name]
    assert edge["environment"] == {
        "MODEL_BACKEND_URL": "http://hailo-inference:9000/infer",
        "USE_REAL_MODEL": "true",
    }
    assert set(edge["networks"]) == {"default", "pisrv-network"}
    ours = compose()["networks"]["pisrv-network"]["name"]
    assert override["networks"]["pisrv-network"] == {"external": True, "name": ours}
