"""What tells that another compiler, or another configuration of it, would make something else."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from assets.toolchain import EMULATOR_TOOLS
from assets.toolchain import made_with as module
from assets.toolchain.dfc_config import DfcConfig, load_config
from assets.toolchain.emulator import EmulatorToolchain
from assets.toolchain.made_with import installed_dfc, made_with

pytestmark = pytest.mark.build


@pytest.fixture(name="interpreter")
def with_dfc(tmp_path: Path) -> Path:
    """A virtual environment with the compiler's folder as pip names it."""
    folder = tmp_path / "lib" / "python3.10" / "site-packages"
    (folder / "hailo_dataflow_compiler-3.33.0.dist-info").mkdir(parents=True)
    (folder / "hailo_dataflow_compiler").mkdir()
    (folder / "numpy-1.23.3.dist-info").mkdir()
    return tmp_path / "bin" / "python"


def test_the_emulators_are_the_tools_that_its_record_names() -> None:
    assert set(EmulatorToolchain().record().tools) == set(EMULATOR_TOOLS)


@pytest.mark.parametrize("tool", EMULATOR_TOOLS)
def test_another_version_of_any_of_its_tools_shows(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = made_with("emulator"), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0" if name == tool else version(name))
    assert made_with("emulator") != before


def test_the_compilers_version_is_read_from_its_environment(interpreter: Path) -> None:
    before = made_with("hailo8", dfc_python=str(interpreter))
    assert installed_dfc(str(interpreter)) == "3.33.0"
    folder = next(interpreter.parent.parent.glob("lib/*/site-packages/hailo_dataflow_compiler-*"))
    folder.rename(folder.with_name("hailo_dataflow_compiler-3.34.0.dist-info"))
    assert made_with("hailo8", dfc_python=str(interpreter)) != before


@pytest.mark.parametrize("dfc_python", ["", "python3", "/nowhere/bin/python"])
def test_a_compiler_that_is_not_found_is_unknown(dfc_python: str) -> None:
    assert installed_dfc(dfc_python) == "unknown"
    assert made_with("hailo8", dfc_python=dfc_python) != made_with("hailo8l", dfc_python=dfc_python)


def test_configuration_counts_and_patience_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config, before = load_config(), made_with("hailo8")

    def by(other: DfcConfig) -> str:
        monkeypatch.setattr(module, "load_config", lambda: other)
        return made_with("hailo8")

    assert by(replace(config, seconds=dict.fromkeys(config.seconds, 1.0))) == before
    for other in (
        replace(config, optimization_level=config.optimization_level + 1),
        replace(config, calibration_windows=config.calibration_windows + 1),
        replace(config, accepted=("anything",)),
    ):
        assert by(other) != before
