"""The doctor says what is there, what is missing and what it did not look at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assets.toolchain.__main__ import main
from assets.toolchain.doctor import Machine, diagnose, report
from tests.chain import ROOT
from tests.dfc import dfc_python, script

pytestmark = pytest.mark.build


def machine(root: Path, *, driver: str = "", devices: int = 0, **versions: str) -> Machine:
    """A machine with these packages, this driver and so many devices."""
    if driver:
        (root / "sys/module/hailo_pci").mkdir(parents=True)
        (root / "sys/module/hailo_pci/version").write_text(f"{driver}\n")
    for number in range(devices):
        (root / "dev").mkdir(exist_ok=True)
        (root / f"dev/hailo{number}").touch()
    version: Callable[[str], str] = {"onnx": "1.19.0", **versions}.get  # type: ignore[assignment]
    return Machine(root=root, version=lambda name: version(name) or "")


def answering(folder: Path, dfc: str, gpus: str = "1") -> str:
    """A Python whose compiler is of some version."""
    facts = {"dfc": dfc, "python": "3.10.12", "gpus": gpus}
    lines = [
        f'{{\\"event\\": \\"fact\\", \\"nonce\\": \\"$2\\", \\"name\\": \\"{k}\\", \\"value\\": \\"{v}\\"}}'
        for k, v in facts.items()
    ]
    lines.append('{\\"event\\": \\"done\\", \\"nonce\\": \\"$2\\", \\"files\\": {}}')
    body = 'while [ "$1" != --nonce ]; do shift; done\n'
    return script(folder / "python", body + "\n".join(f'echo "{line}" >> events.jsonl' for line in lines))


def states(root: Path, python: str, here: Machine, target: str = "hailo8") -> dict[str, tuple[str, str]]:
    return {check.name: (check.state, check.says) for check in diagnose(target, python, here).checks}


def test_a_machine_with_everything(tmp_path: Path) -> None:
    here = machine(tmp_path, driver="4.23.0", devices=1, hailort="4.23.0")
    found = states(tmp_path, answering(tmp_path, "3.33.0"), here)
    assert found["Dataflow Compiler"][0] == "ok"
    assert "3.33.0 (python 3.10.12)" in found["Dataflow Compiler"][1]
    assert found["GPU"] == ("ok", "TensorFlow sees 1")
    assert found["HailoRT"] == ("ok", "4.23.0")
    assert found["versions together"][0] == "ok"
    assert found["device"] == ("not checked", "/dev/hailo0; not opened, so not known to work")
    assert found["licence"][0] == found["firmware"][0] == "not checked"


def test_a_build_machine_needs_no_chip(tmp_path: Path) -> None:
    diagnosis = diagnose("hailo8l", answering(tmp_path, "3.32.0", gpus="0"), machine(tmp_path))
    assert diagnosis.can_build
    found = {check.name: check for check in diagnosis.checks}
    assert found["HailoRT"].state == found["driver"].state == found["device"].state == "absent"
    assert found["versions together"].state == "not checked"
    assert "HailoRT 4.22 or newer" in found["versions together"].says
    assert "lowers the optimization level" in found["GPU"].hint


@pytest.mark.parametrize(
    ("dfc", "hailort", "driver", "name", "says"),
    [
        ("5.1.0", "", "", "Dataflow Compiler", "Hailo-10 and Hailo-15 only"),
        ("3.29.0", "", "", "Dataflow Compiler", "not one that this was written for"),
        ("3.33.0", "4.21.0", "4.21.0", "versions together", "released with HailoRT 4.23; 4.21.0 is older"),
        ("3.32.0", "4.23.0", "4.22.0", "versions together", "driver 4.22.0, HailoRT 4.23.0"),
        ("3.33.0", "5.1.0", "", "HailoRT", "does not drive a HAILO8"),
        ("3.33.0", "4.17.0", "", "HailoRT", "not one that this project knows"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, dfc: str, hailort: str, driver: str, name: str, says: str
) -> None:
    here = machine(tmp_path, driver=driver, hailort=hailort)
    diagnosis = diagnose("hailo8", answering(tmp_path, dfc), here)
    assert not diagnosis.can_build
    assert any(c.name == name and c.state == "wrong" and says in c.says for c in diagnosis.checks)


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAILO_DFC_PYTHON", raising=False)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "emulator: nothing missing that can be seen from here" in out
    assert "hailo8: cannot be built here" in out
    assert "hailo8l: cannot be built here" in out
    assert "docs/gpusrv.md" in out
    assert main(["doctor", "--targets", "emulator"]) == 0
    assert main(["doctor", "--targets", "hailo10h"]) == 2
    assert "hailo10h" in capsys.readouterr().err


def test_it_asks_the_interpreter_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not take the double for a compiler."""
    monkeypatch.setenv("HAILO_DFC_PYTHON", dfc_python(tmp_path, {}))
    assert main(["doctor", "--targets", "hailo8", "--json"]) == 1
    (diagnosis,) = json.loads(capsys.readouterr().out)
    assert diagnosis["can_build"] is False
    assert "0.0.0-double is not one" in diagnosis["checks"][0]["says"]


def test_a_missing_package_of_the_emulators_is_named(tmp_path: Path) -> None:
    diagnosis = diagnose("emulator", "", machine(tmp_path))
    assert not diagnosis.can_build
    assert "missing      onnxsim" in report([diagnosis])
    assert "make setup" in report([diagnosis])


def test_a_pi_without_the_build_side_is_asked_for_the_rest() -> None:
    """It has neither onnx nor a compiler, and wants to know about HailoRT, driver and device."""
    program = (
        "import sys\n"
        "for name in ('onnx', 'onnxsim', 'scipy', 'torch', 'dagster'):\n"
        "    sys.modules[name] = None\n"
        "from assets.toolchain.__main__ import main\n"
        "sys.exit(main(['doctor', '--targets', 'hailo8']))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    for line in ("missing      Dataflow Compiler", "HailoRT", "driver", "device"):
        assert line in run.stdout
