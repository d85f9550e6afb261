"""``compose.yaml`` and the override, without Docker: services, profiles, and what they mount and build.

No engine reads them here. What compose itself would refuse for its form is looked for as far as it is cheap:
names that are not declared, variables without a default, keys that the specification does not know.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from runtime.config import RuntimeConfig
from tests.monitoring import JOB
from tests.simulators import ROOT

COMPOSE: Final = ROOT / "compose.yaml"
OVERRIDE: Final = ROOT / "deploy" / "compose.override.yaml"
RUNTIMES: Final = {"hardware": "hailo-inference", "emulator": "hailo-inference-emulator"}
VARIABLE: Final = re.compile(r"\$\{([A-Z_]+)(:[-?][^}]*)?\}")
SERVICE_KEYS: Final = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "devices",
    "environment",
    "expose",
    "healthcheck",
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


def filled(text: str) -> str:
    """A value with its defaults, as compose takes it where nothing is set."""
    return VARIABLE.sub(lambda match: (match[2] or "")[2:], text)


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Where it is inside to what it is outside, and how."""
    found = {}
    for each in service.get("volumes", ()):
        source, inside, *how = filled(each).split(":")
        found[inside] = source, (how or ["rw"])[0]
    return found


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
    assert [name for name, default in found if not default] == []


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
    for path in (config.release_store, config.state_dir, config.trust_root):
        assert str(path) in inside, path
    assert inside[str(config.state_dir)][1] == "rw"
    assert [at for at, (_, how) in inside.items() if how != "ro"] == [
        str(path) for path in (config.state_dir, config.hailo_lock_dir) if path
    ]


def test_only_the_hardware_has_the_chip() -> None:
    chip = services()["hailo-inference"]
    assert chip["devices"] == ["/dev/hailo0:/dev/hailo0"]
    assert chip["build"]["args"] == {"ENGINE": "hailo"}
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
