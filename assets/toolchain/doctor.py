"""What this machine has for each target, which versions, what is missing, and whether they fit together.

It says what it looked at and what it did not: nothing here compiles, loads or runs anything on a chip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from assets.toolchain import HAILO_TARGETS
from assets.toolchain.dfc_errors import python_missing
from assets.toolchain.dfc_process import Listener
from runtime.contract.errors import PipelineError
from runtime.contract.hailo_compatibility import (
    RELEASED_WITH,
    check_hailort,
    driver_version,
    parse_version,
    version_findings,
)

OK: Final = "ok"
MISSING: Final = "missing"
WRONG: Final = "wrong"
ABSENT: Final = "absent"
"""Not here, and not needed to build."""
UNKNOWN: Final = "not checked"
_EMULATOR_TOOLS: Final = ("numpy", "onnx", "onnxruntime", "onnxsim")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What.
        state: ``ok``, ``missing``, ``wrong``, ``absent`` or ``not checked``; the second and third are why a
            target cannot be built here.
        says: What was found.
        hint: What to do about it; empty where there is nothing to do.
    """

    name: str
    state: str
    says: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All about one target; it can be built here where nothing is missing or wrong."""

    target: str
    checks: tuple[Check, ...]

    @property
    def can_build(self) -> bool:
        """Whether nothing stands in the way that can be seen from here."""
        return not any(check.state in (MISSING, WRONG) for check in self.checks)


def installed(package: str) -> str:
    """Version of a package of this Python; empty where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What can be asked of the machine.

    Args:
        root: Where ``/sys`` and ``/dev`` are.
        version: Version of a package of this Python; empty where there is none.
        supported: Versions of the Dataflow Compiler that are accepted; None for those of the toolchain.
    """

    root: Path = Path("/")
    version: Callable[[str], str] = installed
    supported: Sequence[str] | None = None

    def driver(self) -> str:
        """Version of the loaded driver of the PCIe device; empty where there is none."""
        return driver_version(self.root)

    def devices(self) -> list[str]:
        """Device files of Hailo chips."""
        return sorted(f"/dev/{path.name}" for path in (self.root / "dev").glob("hailo[0-9]*"))


def diagnose(target: str, dfc_python: str, machine: Machine | None = None) -> Diagnosis:
    """Look at what a target needs.

    Args:
        target: One of ``TARGETS``.
        dfc_python: The Python that has the Dataflow Compiler; empty where none is named.
        machine: This one.
    """
    here = machine or Machine()
    checks = _hailo(target, dfc_python, here) if target in HAILO_TARGETS else _emulator(here)
    return Diagnosis(target=target, checks=tuple(checks))


def _emulator(machine: Machine) -> list[Check]:
    from assets.toolchain.emulator import integer_path_for
    from runtime.contract.cpu import this_cpu

    checks = []
    for name in _EMULATOR_TOOLS:
        version = machine.version(name)
        hint = "" if version else "`make setup` installs it"
        checks.append(Check(name=name, state=OK if version else MISSING, says=version or "no", hint=hint))
    checks.append(Check(name="integer path", state=OK, says=integer_path_for(*this_cpu())))
    return checks


class _Quiet(Listener):
    """Nobody listens: what counts is in the answer."""

    def line(self, verb: str, text: str) -> None:
        """A line."""

    def fact(self, verb: str, name: str, value: str) -> None:
        """A fact."""


def _hailo(target: str, dfc_python: str, machine: Machine) -> list[Check]:
    told, checks = _compiler(target, dfc_python, machine)
    dfc, hailort, driver = told.get("dfc", ""), machine.version("hailort"), machine.driver()
    checks += [_hailort(target, hailort), _driver(driver), _devices(machine)]
    checks += _fit(dfc, hailort, driver)
    checks += [
        Check(name="licence", state=UNKNOWN, says="the DFC's own affair: it says so when it is used"),
        Check(name="firmware", state=UNKNOWN, says="only a running HailoRT with a device can tell"),
    ]
    return checks


def _compiler(target: str, dfc_python: str, machine: Machine) -> tuple[Mapping[str, str], list[Check]]:
    name = "Dataflow Compiler"
    try:
        if not dfc_python:
            raise python_missing(target)
        # Needs the build side: a Pi has no compiler, and is asked for the rest all the same.
        from assets.toolchain.hailo_dfc import HailoDfcToolchain

        toolchain = HailoDfcToolchain(target, dfc_python, supported=machine.supported, listener=_Quiet())
        told = toolchain.versions()
    except PipelineError as error:
        state = MISSING if error.code in ("dfc_missing", "dfc_import") else WRONG
        return {}, [Check(name=name, state=state, says=error.what, hint=error.hint)]
    others = ", ".join(f"{key} {told[key]}" for key in ("python", "tensorflow", "numpy") if key in told)
    checks = [Check(name=name, state=OK, says=f"{told['dfc']} ({others}) in {dfc_python}")]
    gpus = told.get("gpus", "unknown")
    if gpus == "unknown":
        checks.append(Check(name="GPU", state=UNKNOWN, says="the DFC has not loaded TensorFlow yet"))
    elif gpus == "0":
        hint = "without one the DFC lowers the optimization level, which fails a build unless it is accepted"
        checks.append(Check(name="GPU", state=ABSENT, says="TensorFlow sees none", hint=hint))
    else:
        checks.append(Check(name="GPU", state=OK, says=f"TensorFlow sees {gpus}"))
    return told, checks


def _hailort(target: str, version: str) -> Check:
    if not version:
        return Check(
            name="HailoRT", state=ABSENT, says="not in this Python; building needs none, the Pi does"
        )
    try:
        check_hailort(version, target)
    except PipelineError as error:
        return Check(name="HailoRT", state=WRONG, says=error.what, hint=error.hint)
    return Check(name="HailoRT", state=OK, says=version)


def _driver(version: str) -> Check:
    if not version:
        return Check(name="driver", state=ABSENT, says="hailo_pci is not loaded; building needs none")
    return Check(name="driver", state=OK, says=version)


def _devices(machine: Machine) -> Check:
    found = machine.devices()
    if not found:
        return Check(
            name="device", state=ABSENT, says="no /dev/hailo*: parity is judged in the DFC's emulation"
        )
    return Check(name="device", state=UNKNOWN, says=f"{', '.join(found)}; not opened, so not known to work")


def _fit(dfc: str, hailort: str, driver: str) -> list[Check]:
    """Whether versions fit; what is not here is not compared, and that is said."""
    name = "versions together"
    if not dfc and not (hailort and driver):
        return [Check(name=name, state=UNKNOWN, says="fewer than two versions are known here")]
    try:
        findings = version_findings(dfc, hailort, driver)
        pair = RELEASED_WITH.get(parse_version(dfc, "Dataflow Compiler")) if dfc else None
    except PipelineError as error:
        return [Check(name=name, state=WRONG, says=str(error))]
    if findings:
        return [Check(name=name, state=WRONG, says=finding) for finding in findings]
    missing = [what for what, version in (("HailoRT", hailort), ("driver", driver)) if not version]
    if missing:
        wanted = f"; the Pi needs HailoRT {pair[0]}.{pair[1]} or newer of that line" if pair else ""
        return [Check(name=name, state=UNKNOWN, says=f"{' and '.join(missing)} not here{wanted}")]
    return [Check(name=name, state=OK, says="they were released together or later")]


def report(diagnoses: Sequence[Diagnosis]) -> str:
    """For people: one block for each target."""
    lines: list[str] = []
    for diagnosis in diagnoses:
        verdict = (
            "nothing missing that can be seen from here" if diagnosis.can_build else "cannot be built here"
        )
        lines.append(f"{diagnosis.target}: {verdict}")
        for check in diagnosis.checks:
            lines.append(f"  {check.state:12} {check.name:18} {check.says}")
            if check.hint:
                lines.append(f"  {'':12} {'':18} -> {check.hint}")
    return "\n".join(lines)
