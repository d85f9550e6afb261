"""Settings: each value parses or is named, all of them at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import VERSION, RuntimeConfig
from runtime.contract.errors import ConfigError
from tests.simulators import ROOT


def test_nothing_set_gives_the_defaults() -> None:
    config = RuntimeConfig.from_environment({"PATH": "/bin", "MODEL_BACKEND_URL": "http://x"})
    assert config == RuntimeConfig()
    assert config.release_store == Path("artifacts/releases")
    assert config.release_channel == "stable"
    assert (config.trust_root, config.state_dir) == (Path("artifacts/keys/root.json"), None)
    assert config.bind == "127.0.0.1:9000"


def test_an_empty_value_is_unset() -> None:
    names = (
        "HEF_PATH",
        "NUM_MOTIFS",
        "TARGET",
        "PORT",
        "HOST",
        "LOG_LEVEL",
        "HAILO_LOCK_DIR",
        "RELEASE_STORE",
        "RELEASE_CHANNEL",
        "TRUST_ROOT",
        "STATE_DIR",
    )
    assert RuntimeConfig.from_environment(dict.fromkeys(names, "")) == RuntimeConfig()


def test_every_setting_is_read() -> None:
    environment = {
        "RELEASE_STORE": "/s",
        "RELEASE_CHANNEL": "canary",
        "HEF_PATH": "/models/m.hef",
        "NUM_MOTIFS": "12",
        "TARGET": "hailo8",
        "HOST": "::1",
        "PORT": "65535",
        "HAILO_LOCK_DIR": "/run/shared",
        "TRUST_ROOT": "/etc/root.json",
        "STATE_DIR": "/var/lib/state",
        "LOG_LEVEL": "debug",
    }
    config = RuntimeConfig.from_environment(environment)
    assert config == RuntimeConfig(
        release_store=Path("/s"),
        release_channel="canary",
        hef_path=Path("/models/m.hef"),
        num_motifs=12,
        target="hailo8",
        host="::1",
        port=65535,
        hailo_lock_dir=Path("/run/shared"),
        trust_root=Path("/etc/root.json"),
        state_dir=Path("/var/lib/state"),
        log_level="DEBUG",
    )
    assert config.bind == "[::1]:65535"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "0", "from 1 to 65535"),
        ("PORT", "65536", "from 1 to 65535"),
        ("PORT", "-1", "from 1 to 65535"),
        ("PORT", "9000 ", "whole number"),
        ("PORT", "9_000", "whole number"),
        ("PORT", "９０００", "whole number"),
        ("PORT", "9" * 5000, "whole number"),
        ("NUM_MOTIFS", "0", "from 1"),
        ("NUM_MOTIFS", "twelve", "whole number"),
        ("NUM_MOTIFS", "12.0", "whole number"),
        ("RELEASE_CHANNEL", "Stable", "canary, stable"),
        ("TARGET", "hailo15", "emulator, hailo8, hailo8l"),
        ("LOG_LEVEL", "LOUD", "DEBUG, INFO"),
        ("HOST", "a b", "address or a host name"),
        ("HOST", "127.0.0.1:9000", "without a port"),
        ("HOST", "unix:/tmp/x", "without a port"),
        ("HOST", "-x", "address or a host name"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig.from_environment({name: value})
    assert f"{name}=" in str(caught.value)
    assert value[:80] in str(caught.value)
    assert allowed in str(caught.value)
    assert len(str(caught.value)) < 300


def test_all_wrong_values_are_named_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig.from_environment({"PORT": "x\ny", "TARGET": "y", "NUM_MOTIFS": "z"})
    text = str(caught.value)
    assert all(name in text for name in ("PORT", "TARGET", "NUM_MOTIFS"))
    assert "\n" not in text


@given(st.dictionaries(st.sampled_from(["PORT", "HOST", "NUM_MOTIFS", "TARGET", "LOG_LEVEL"]), st.text()))
def test_any_text_parses_or_is_refused(environment: dict[str, str]) -> None:
    try:
        config = RuntimeConfig.from_environment(environment)
    except ConfigError:
        return
    assert 1 <= config.port <= 65535
    assert not any(character.isspace() for character in config.bind)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
