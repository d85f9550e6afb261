"""The house's directions, checked by a tool, and the runtime alone in an environment of its own."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from runtime.config import RuntimeConfig
from tests.simulators import ReleaseSimulator, imu_windows, infer_body, running_server

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestration", "assets", "runtime", "sample", "bench")


def project() -> dict[str, list[str]]:
    """The extras, as package names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {name: [spec.split(">")[0].split("=")[0] for spec in specs] for name, specs in extras.items()}


def locked(name: str) -> set[str]:
    """Names of the packages that a lock pins."""
    lines = (ROOT / "locks" / name).read_text().splitlines()
    return {line.split("==")[0].split("[")[0] for line in lines if "==" in line and not line.startswith(" ")}


@pytest.mark.build
def test_imports_go_in_the_stated_directions() -> None:
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.build
def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    """The rules themselves: a contract that reaches for msgspec must break them."""
    import shutil

    for name in ("orchestration", "assets", "runtime", "sample"):
        # Without the caches: whatever runs beside writes into them.
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "runtime" / "contract" / "window.py").open("a") as file:
        file.write("\nimport msgspec\n")
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "msgspec" in run.stdout


def test_extras_are_apart() -> None:
    extras = project()
    assert not {"falcon", "gunicorn", "uvicorn"} & set(extras["build"])
    assert not {"dagster", "torch", "onnx"} & set(extras["runtime"])
    assert not {"falcon", "gunicorn"} & locked("build.txt")
    for lock in ("runtime.txt", "runtime-numpy1.txt"):
        assert not {"dagster", "torch", "onnx", "scipy"} & locked(lock)


def test_every_lock_pins_and_hashes_everything() -> None:
    for path in sorted((ROOT / "locks").glob("*.txt")):
        for line in path.read_text().splitlines():
            if line and not line.startswith((" ", "#")):
                assert "==" in line, f"{path.name}: {line}"
        assert path.read_text().count("==") <= path.read_text().count("--hash=sha256:")


def test_locks_agree_where_they_overlap() -> None:
    """One .venv takes build, runtime and dev together."""
    pins: dict[str, str] = {}
    for lock in ("build.txt", "runtime.txt", "dev.txt"):
        for line in (ROOT / "locks" / lock).read_text().splitlines():
            if "==" in line and not line.startswith(" ") and ";" not in line:
                name, version = line.rstrip(" \\").split("==")
                assert pins.setdefault(name.split("[")[0], version) == version, name


@pytest.mark.build
def test_code_location_is_found_where_other_tools_look() -> None:
    import dagster as dg

    from orchestration.definitions import defs

    assert isinstance(defs, dg.Definitions)


def python_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_of_a_readable_size(path: Path) -> None:
    """400 lines a file and 60 a function at most; every public name says what it is."""
    text = path.read_text()
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module says nothing of itself"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), node.name  # type: ignore[arg-type, attr-defined]


def test_no_committed_page_holds_a_placeholder() -> None:
    folders = ("", "docs", "artifacts", "artifacts/weights/*/*", "calib_data")
    pages = [page for folder in folders for page in ROOT.glob(f"{folder}/*.md".lstrip("/"))]
    assert {ROOT / "README.md", ROOT / "calib_data" / "README.md"} < set(pages)
    assert [str(page) for page in pages if "@@" in page.read_text()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_of_a_page_exists(page: str) -> None:
    """Commands stand in backticks, or begin a line."""
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", (ROOT / page).read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"test", "run" if page == "README.md" else "check"} <= named
    assert named - targets == set()


class Asked(Mapping[str, str]):
    """An empty environment that notes what it is asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_readme_names_the_runtimes_settings_and_no_others() -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition("| variable | default | meaning |\n")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
    asked = Asked()
    RuntimeConfig.from_environment(asked)
    assert named == asked.names


@pytest.mark.slow
def test_runtime_imports_and_serves_with_its_own_extra_alone(tmp_path: Path) -> None:
    """A fresh environment from the runtime's lock: nothing of the build side is there to lean on."""
    venv = tmp_path / "venv"
    setup: list[str | Path] = [sys.executable, ROOT / "scripts" / "setup_venv.py", "--venv", venv]
    subprocess.run([*setup, "--lock", ROOT / "locks" / "runtime.txt"], check=True, cwd=ROOT)
    script = (
        "import importlib, pkgutil, sys, runtime\n"
        "names = [m.name for m in pkgutil.walk_packages(runtime.__path__, 'runtime.')]\n"
        "names.remove('runtime.asgi')\n"
        "[importlib.import_module(name) for name in names if 'conf' != name.split('.')[-1]]\n"
        "bad = {'dagster', 'torch', 'onnx', 'scipy', 'assets', 'orchestration'} & set(sys.modules)\n"
        "assert not bad, bad\nprint(len(names))"
    )
    run = subprocess.run(
        [venv / "bin" / "python", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    release = ReleaseSimulator().publish(tmp_path, "stable")
    python = venv / "bin" / "python"
    with running_server(tmp_path, python=python, RELEASE_STORE=str(tmp_path)) as server:
        health = httpx.get(f"{server.url}/healthz")
        assert (health.status_code, health.json()["release"]) == (200, release.id), health.text
        body = infer_body(imu_windows(1)[0])
        answer = httpx.post(f"{server.url}/infer", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        assert [len(answer.json()[name]) for name in ("latent", "motif_scores")] == [64, 12]
