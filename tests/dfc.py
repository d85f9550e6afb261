"""Points HAILO_DFC_PYTHON to the double of Hailo's Dataflow Compiler: a Python that imports it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from assets.toolchain.dfc_config import DfcConfig, load_config
from assets.toolchain.dfc_process import Listener
from assets.toolchain.hailo_dfc import HailoDfcToolchain
from runtime.contract.hef_file import DOUBLE_SDK_VERSION
from tests.chain import ROOT

DOUBLES: Final = ROOT / "tests" / "doubles"


def script(place: Path, text: str) -> str:
    """An executable shell script."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(0o755)
    return str(place)


def dfc_python(
    folder: Path, environment: Mapping[str, str], *, python: str = sys.executable, path: Path = DOUBLES
) -> str:
    """A Python that has the double, and nothing of ours on its path but what the double needs.

    Args:
        folder: Where it is put.
        environment: ``DFC_DOUBLE_FAULT`` and the like.
        python: What it runs.
        path: Where ``hailo_sdk_client`` is found.
    """
    variables = {"PYTHONPATH": f"{path}:{ROOT}", **environment}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    return script(folder / "dfc-python", f'{exports}exec {shlex.quote(python)} "$@"')


def small_config(**changes: Any) -> DfcConfig:
    """For 96 windows, which somebody accepted."""
    config = replace(load_config(), calibration_windows=96, accepted=("few_calibration_windows",))
    return replace(config, **changes)


def double_toolchain(
    folder: Path,
    target: str = "hailo8",
    *,
    config: DfcConfig | None = None,
    listener: Listener | None = None,
    **environment: str,
) -> HailoDfcToolchain:
    """The toolchain on the double, which has to be accepted by name."""
    return HailoDfcToolchain(
        target,
        dfc_python(folder, environment),
        config=config or small_config(),
        supported=[DOUBLE_SDK_VERSION],
        listener=listener,
    )


def all_ended(pids: Path) -> bool:
    """Whether the processes that a hanging double noted there are gone."""
    numbers = [int(pid) for pid in pids.read_text().split()]
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in numbers
    )
