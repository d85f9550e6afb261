"""scripts/setup_venv.py: says in one line what is wrong, and does nothing twice."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import setup_venv
import torch_source

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "setup_venv.py"
HERE = (3, 11, 7)


def run_setup(
    *arguments: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [python, str(SCRIPT), *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refusal consists of."""
    assert result.returncode == 2, result
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr.strip()


def test_the_extra_names_the_torch_that_is_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["torch"] == [f"torch=={setup_venv.TORCH}"]


def older_pythons() -> list[str]:
    """Interpreters below 3.11 that start; on PATH or under pyenv."""
    names = [f"python3.{minor}" for minor in range(6, 11)]
    places = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places += [version / "bin" for version in pyenv.glob("3.*")]
    found = [str(place / name) for name in names for place in places if (place / name).is_file()]
    return [one for one in found if subprocess.run([one, "-c", ""], capture_output=True).returncode == 0]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text("demo==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    return path


@pytest.fixture
def empty_lock(tmp_path: Path) -> Path:
    path = tmp_path / "empty.txt"
    path.write_text("# nothing pinned\n")
    return path


@pytest.fixture(scope="module")
def made_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    return venv


@pytest.fixture
def bare_venv(made_venv: Path) -> Path:
    """An environment as an interrupted setup leaves it: made, and nothing installed."""
    for left in made_venv.glob("setup.*"):
        left.unlink()
    return made_venv


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9), (3, 13, 1)])
def test_supported_python_on_glibc_linux_is_accepted(version: tuple[int, ...]) -> None:
    assert setup_venv.refusal(version, "linux", "glibc 2.36") is None


@pytest.mark.parametrize(
    ("version", "platform", "libc", "expected"),
    [
        ((3, 6, 15), "linux", "glibc 2.17", "Python 3.6.15 is not supported"),
        ((3, 10, 14), "linux", "glibc 2.36", "3.11, 3.12 or 3.13 is needed"),
        ((3, 14, 0), "linux", "glibc 2.41", "Python 3.14.0 is not supported"),
        (HERE, "darwin", "", "darwin is not supported: use Linux"),
        (HERE, "win32", "", "win32 is not supported: use Linux"),
        (HERE, "linux", "", "no glibc"),
    ],
)
def test_other_machine_is_refused_with_what_to_do(
    version: tuple[int, ...], platform: str, libc: str, expected: str
) -> None:
    reason = setup_venv.refusal(version, platform, libc)

    assert reason is not None
    assert expected in reason
    assert "\n" not in reason


def test_older_python_is_refused_in_one_line(tmp_path: Path, lock: Path) -> None:
    pythons = older_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.11 here")
    for python in pythons:
        result = run_setup("--venv", str(tmp_path / "venv"), "--lock", str(lock), python=python)

        assert "is not supported: 3.11, 3.12 or 3.13 is needed" in said(result)
    assert not (tmp_path / "venv").exists()


def test_make_stays_with_the_python_that_was_chosen(tmp_path: Path) -> None:
    """Where `python3` is too old, PYTHON= is given once and not with every command."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    make = ["make", "--dry-run", "--no-print-directory", "venv"]
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")
    }

    def planned(*more: str) -> str:
        run = subprocess.run([*make, *more], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return run.stdout.partition(" scripts/setup_venv.py")[0]

    assert planned() == "python3"
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/no/such/python")
    assert planned() == "python3"
    python.unlink()
    python.write_text("#!/bin/sh\necho /chosen/python3.12\n")
    python.chmod(0o755)
    assert planned() == "/chosen/python3.12"
    assert planned("PYTHON=python3.13") == "python3.13"


@pytest.mark.parametrize("verb", ["test", "test-slow"])
@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ((), "2"),
        (("WORKERS=3",), "3"),
        (("WORKERS=0",), ""),
        (("ARGS=-k store",), ""),
        (("ARGS=-x", "WORKERS=2"), "2"),
    ],
)
def test_a_choice_of_tests_runs_in_one_process_and_the_whole_in_two(
    verb: str, given: tuple[str, ...], workers: str
) -> None:
    ours = ("ARGS", "WORKERS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    command = ["make", "--dry-run", "--no-print-directory", verb, *given]
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    (pytest_line,) = [line for line in printed.splitlines() if " -m pytest " in line]
    assert (f" -n {workers} --dist loadfile" in pytest_line) == bool(workers), pytest_line
    assert (" -n" in pytest_line) == bool(workers), pytest_line


def test_missing_lock_is_said_in_one_line(tmp_path: Path) -> None:
    result = run_setup("--venv", str(tmp_path / "venv"), "--lock", "no/such.txt")

    assert "no/such.txt: No such file" in said(result)


def test_python_without_venv_module_names_the_debian_package(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)

    assert setup_venv.main(["--venv", str(tmp_path / "venv"), "--lock", str(lock)]) == 2
    assert "apt-get install python3." in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


def test_folder_with_other_files_is_left_alone(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "letter.txt").write_text("dear")

    result = run_setup("--venv", str(tmp_path / "venv"), "--lock", str(lock))

    assert "is no virtual environment; move it away" in said(result)
    assert (tmp_path / "venv" / "letter.txt").read_text() == "dear"


def test_no_network_is_said_in_one_line_and_soon(
    bare_venv: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--venv", str(bare_venv), "--lock", str(lock))
    elsewhere = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
    monkeypatch.delenv("PIP_RETRIES", raising=False)

    result = run_setup(
        *arguments, python=sys.executable, PIP_INDEX_URL="http://127.0.0.1:9/simple", **elsewhere
    )

    assert "no network: the package index cannot be reached" in said(result)
    assert str(bare_venv / "setup.log") in said(result)
    log = (bare_venv / "setup.log").read_text()
    assert "127.0.0.1" in log
    # pip's own five retries would take half a minute before anybody hears of it.
    assert log.count("WARNING: Retrying") == 1
    assert not (bare_venv / "setup.stamp").exists()


def test_pip_is_told_where_to_look_and_nothing_else() -> None:
    given = {
        "HOME": "/home/me",
        "PIP_INDEX_URL": "https://mirror",
        "PIP_CERT": "ca.pem",
        "PIP_DRY_RUN": "1",
        "PIP_PYTHON": "/other/python",
        "PIP_REQUIREMENT": "mine.txt",
        "PIP_ROOT": "/elsewhere",
        "PIP_TARGET": "/elsewhere",
        "PYTHONPATH": "/foreign",
    }
    assert set(setup_venv.pip_environment(given)) == {"HOME", "PIP_INDEX_URL", "PIP_CERT"}


def test_a_link_in_the_environments_place_is_left_alone(tmp_path: Path, empty_lock: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "venv").symlink_to(tmp_path / "elsewhere")

    result = run_setup("--venv", str(tmp_path / "venv"), "--lock", str(empty_lock))

    assert "is a link or a file" in said(result)


def test_package_that_the_index_lacks_is_named(bare_venv: Path, lock: Path) -> None:
    arguments = ("--venv", str(bare_venv), "--lock", str(lock))

    result = run_setup(*arguments, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null", PIP_FIND_LINKS="")

    assert "no wheel for this Python and machine (demo==1.0)" in said(result)


@pytest.mark.parametrize(
    ("wrote", "meant"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "not match its hash"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "the disk is full"),
        ("[Errno -3] Temporary failure in name resolution')': /simple/\nNo matching distribution", "DNS"),
        ("ERROR: something new", "otherwise"),
    ],
)
def test_cause_is_named_in_plain_words(wrote: str, meant: str) -> None:
    assert meant in setup_venv.explain(wrote.splitlines(), "otherwise")


def test_finished_environment_is_left_as_it_is_until_something_changes(
    bare_venv: Path, empty_lock: Path
) -> None:
    arguments = ("--venv", str(bare_venv), "--lock", str(empty_lock))
    assert run_setup(*arguments).returncode == 0
    stamp = bare_venv / "setup.stamp"
    made = stamp.stat().st_mtime_ns

    again = run_setup(*arguments)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == made

    empty_lock.write_text("# still nothing\n")
    assert "packages: 0 pinned" in run_setup(*arguments).stdout
    assert stamp.stat().st_mtime_ns > made


def test_interrupted_setup_is_completed(bare_venv: Path, empty_lock: Path) -> None:
    half = Path(setup_venv.library(str(bare_venv)), "demo-1.0.dist-info")
    half.mkdir()
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")

    result = run_setup("--venv", str(bare_venv), "--lock", str(empty_lock))

    assert result.returncode == 0, result.stderr
    assert "venv:" not in result.stdout  # what was there is used
    assert not half.exists()
    assert (bare_venv / "setup.stamp").exists()


def test_environment_that_was_moved_or_lost_its_python_is_not_used(bare_venv: Path) -> None:
    assert setup_venv.is_usable(str(bare_venv))

    moved = bare_venv.rename(bare_venv.with_name("moved"))
    assert not setup_venv.is_usable(str(moved))

    moved.rename(bare_venv)
    link = bare_venv / "bin" / "python"
    kept = link.rename(link.with_name("kept"))
    link.symlink_to("/no/such/python")
    assert not setup_venv.is_usable(str(bare_venv))
    kept.replace(link)


def test_environment_is_made_where_there_is_none(tmp_path: Path, empty_lock: Path) -> None:
    venv = tmp_path / "with space" / "venv"
    venv.parent.mkdir()

    result = run_setup("--venv", str(venv), "--lock", str(empty_lock))

    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith(f"venv: {venv} (Python 3.")
    assert setup_venv.is_usable(str(venv))


def test_torch_choice_stays_until_it_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    options = setup_venv.parse(["--venv", "v", "--lock", "l", "--torch"])

    monkeypatch.delenv("TORCH_CUDA", raising=False)
    assert setup_venv.wanted_torch(options, []) == "cpu"
    assert setup_venv.wanted_torch(options, ["digest", "cuda"]) == "cuda"
    monkeypatch.setenv("TORCH_CUDA", "1")
    assert setup_venv.wanted_torch(options, ["digest", "cpu"]) == "cuda"
    monkeypatch.setenv("TORCH_CUDA", "0")
    assert setup_venv.wanted_torch(options, ["digest", "cuda"]) == "cpu"


def test_constraints_for_torch_carry_neither_hash_nor_extra(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(
        "gql[requests]==4.0.0 \\\n    --hash=sha256:00\n"
        "networkx==3.6.1 ; python_full_version < '3.12' \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n"
    )

    assert setup_venv.pins([str(path), str(path)]) == [
        "gql==4.0.0",
        "networkx==3.6.1 ; python_full_version < '3.12'",
    ]


def test_torch_is_announced_with_size_and_source(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-py3-none-any.whl"
    wheel.write_bytes(b"0" * 2_400_000)
    found = {"metadata": {"name": "torch", "version": "2.13.0+cpu"}, "download_info": {"url": wheel.as_uri()}}
    unreachable = "http://user:secret@127.0.0.1:9/nvidia.whl"
    more = {"metadata": {"name": "nvidia-x", "version": "1"}, "download_info": {"url": unreachable}}

    assert torch_source.announcement([found]) == f"torch 2.13.0+cpu: 2 MB from {wheel}"
    assert "and 1 packages with it: size unknown" in torch_source.announcement([more, found])


def test_torch_falls_back_to_the_configured_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setattr(torch_source, "CPU_INDEX", "http://127.0.0.1:9/whl/cpu")

    assert torch_source.index_options("cpu") == []
    assert torch_source.index_options("cuda") == []
    monkeypatch.setattr(torch_source, "answers", lambda url, patience: True)
    assert torch_source.index_options("cpu") == ["--index-url", "http://127.0.0.1:9/whl/cpu"]


def test_script_is_quick_when_there_is_nothing_to_do(bare_venv: Path, empty_lock: Path) -> None:
    arguments = ("--venv", str(bare_venv), "--lock", str(empty_lock))
    assert run_setup(*arguments).returncode == 0
    command = [sys.executable, "-S", "-X", "importtime", str(SCRIPT), *arguments]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    for slow in ("subprocess", "urllib", "json"):  # not by the clock: this holds on a busy machine
        assert f" {slow}\n" not in imported


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_setup_is_completed_by_the_next(tmp_path: Path) -> None:
    shutil.copy(ROOT / "locks" / "runtime.txt", tmp_path)
    arguments = ["--venv", str(tmp_path / "venv"), "--lock", "runtime.txt"]
    for seconds in (1.0, 4.0, 8.0):
        command = [sys.executable, str(SCRIPT), *arguments]
        child = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with its pip, as when the power goes
        child.wait()

    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-c", "import falcon, gunicorn, msgspec, numpy, onnxruntime"], check=True)
