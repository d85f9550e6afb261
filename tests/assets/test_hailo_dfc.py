"""Hailo's compiler at work, and each way in which it fails, by its double; the hints say what to do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from assets.onnx_model import canonical_graph
from assets.toolchain import Built, dfc_errors, open_toolchain
from assets.toolchain.dfc_artifact import check_compiled
from assets.toolchain.dfc_config import VERBS
from assets.toolchain.dfc_errors import DfcError
from assets.toolchain.dfc_process import DfcInterpreter, Listener, environment, shortened
from assets.toolchain.hailo_dfc import HailoDfcToolchain, check_version
from orchestration.settings import BuildSettings
from runtime.contract.window import FloatArray
from tests.assets.test_onnx_model import small_encoder
from tests.chain import ROOT
from tests.dfc import DOUBLES, all_ended, dfc_python, double_toolchain, script, small_config
from tests.hef_writer import make_hef
from tests.orchestration.test_deploy import example
from tests.simulators import wait_for

pytestmark = pytest.mark.build
WORKER = ROOT / "assets" / "toolchain" / "dfc_worker.py"


@pytest.fixture(scope="module")
def graph() -> bytes:
    return canonical_graph(small_encoder())


@pytest.fixture(scope="module")
def windows() -> FloatArray:
    return np.random.default_rng(5).normal(size=(96, 100, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(graph: bytes, windows: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Built:
    toolchain = double_toolchain(tmp_path_factory.mktemp("sound"))
    return toolchain.optimize(toolchain.parse(graph), windows)


def at_work() -> bool:
    """Whether a child of this process runs the worker."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # It may end while it is looked at.
            if "dfc_worker.py" in " ".join(child.cmdline()):
                return True
    return False


class Heard(Listener):
    """Notes what it hears, and whether somebody was still at work then."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool, str]] = []
        self.facts: dict[str, str] = {}

    def line(self, verb: str, text: str) -> None:
        self.lines.append((at_work(), f"{verb}: {text}"))

    def fact(self, verb: str, name: str, value: str) -> None:
        self.facts[name] = value


PARSING = [
    ("import", "DfcImportError", "libtensorflow_framework", "doctor"),
    ("licence", "DfcLicenceError", "License agreement", "Developer Zone"),
    ("translate:memory", "DfcMemoryError", "MemoryError", "free memory"),
    ("translate:segv", "DfcKilledError", "ended by SIGSEGV", "Translation started"),
    ("translate:kill", "DfcMemoryError", "SIGKILL", "free memory"),
    ("translate:exit", "DfcKilledError", "exit status 7", "Translation started"),
    ("translate:quit", "DfcOutputError", "without an error and without an answer", ""),
    ("translate:licence", "DfcLicenceError", "valid license", "Developer Zone"),
    (
        "translate:recommend",
        "DfcUnsupportedError",
        "'/pool/GlobalAveragePool'",
        "changes what the artifact is",
    ),
    ("translate:transposed", "DfcUnsupportedError", "SDK_NATIVE has", "nothing that follows"),
    ("infer:nan", "DfcUnsupportedError", "-inf dB", ""),
    ("infer:two", "DfcError", "gave 2 outputs", ""),
    ("save:hailo_model", "DfcError", "parsed.har", ""),
]


@pytest.mark.parametrize(("fault", "error", "says", "advises"), PARSING, ids=[row[0] for row in PARSING])
def test_parsing_fails_by_name(
    tmp_path: Path, graph: bytes, fault: str, error: str, says: str, advises: str
) -> None:
    with pytest.raises(DfcError) as caught:
        double_toolchain(tmp_path, DFC_DOUBLE_FAULT=fault).parse(graph)
    assert type(caught.value).__name__ == error
    assert says in caught.value.what
    assert advises in caught.value.hint


COMPILING = [
    ("compile:mapping", "DfcMappingError", "Agent infeasible"),
    ("compile:text", "DfcOutputError", "something else than was asked for"),
    ("compile:arch", "DfcOutputError", "compiled for HAILO15H"),
    ("compile:version", "DfcOutputError", "3.29.0 compiled it"),
    ("compile:quit", "DfcOutputError", "without an answer"),
]


@pytest.mark.parametrize(("fault", "error", "says"), COMPILING, ids=[row[0] for row in COMPILING])
def test_compiling_fails_by_name(tmp_path: Path, quantized: Built, fault: str, error: str, says: str) -> None:
    with pytest.raises(DfcError, match=says) as caught:
        double_toolchain(tmp_path, DFC_DOUBLE_FAULT=fault).compile(quantized)
    assert type(caught.value).__name__ == error


def test_a_float_context_that_cannot_run_says_why(
    tmp_path: Path, quantized: Built, windows: FloatArray
) -> None:
    """Nothing is judged by it; what is judged runs all the same."""
    toolchain = double_toolchain(tmp_path, DFC_DOUBLE_FAULT="infer:float")
    found = toolchain.contexts(quantized, windows[:2])
    assert set(found) == {"sdk_native", "sdk_fp_optimized"}
    assert all("needs a model that is not quantized" in str(said) for said in found.values())
    assert toolchain.infer(quantized, windows[:2]).shape == (2, 64)


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(dfc_errors.DfcMissingError, match="HAILO_DFC_PYTHON is not set"):
        open_toolchain("hailo8")
    (tmp_path / "file").write_text("no program")
    cases = [
        (str(tmp_path / "nowhere"), dfc_errors.DfcInterpreterError, "No such file"),
        (str(tmp_path / "file"), dfc_errors.DfcInterpreterError, "Permission denied"),
        (str(tmp_path), dfc_errors.DfcInterpreterError, "Permission denied"),
        ("/bin/true", dfc_errors.DfcOutputError, "without an answer"),
        ("/bin/false", dfc_errors.DfcInterpreterError, "exit status 1"),
        (sys.executable, dfc_errors.DfcImportError, "hailo_sdk_client"),
    ]
    for python, error, says in cases:
        with pytest.raises(error, match=says) as caught:
            open_toolchain("hailo8", dfc_python=python).record()
        assert "HAILO_DFC_PYTHON" in caught.value.where


def test_an_old_python_says_that_it_is(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 8, 10, 'final', 0)\n")
    python = dfc_python(tmp_path, {}, path=Path(f"{old}:{DOUBLES}"))
    with pytest.raises(dfc_errors.DfcInterpreterError, match=r"older than 3\.10"):
        HailoDfcToolchain("hailo8", python, supported=["0.0.0-double"]).record()


@pytest.mark.parametrize(
    ("version", "says"),
    [("5.1.0", "Hailo-10 and Hailo-15 only"), ("3.29.0", "not one that this"), ("", "does not say which")],
)
def test_other_versions_are_refused_by_name(version: str, says: str) -> None:
    with pytest.raises(dfc_errors.DfcVersionError, match=says) as caught:
        check_version(version, "hailo8")
    assert "3.33" in caught.value.what
    for good in ("3.30.0", "3.33.1"):
        check_version(good, "hailo8l")


def test_the_double_is_no_version_that_a_setting_can_reach(tmp_path: Path) -> None:
    with pytest.raises(dfc_errors.DfcVersionError, match=r"0\.0\.0-double is not one"):
        open_toolchain("hailo8", dfc_python=dfc_python(tmp_path, {})).record()


def test_a_compiler_that_is_replaced_meanwhile_is_seen(tmp_path: Path, graph: bytes) -> None:
    toolchain = double_toolchain(tmp_path)
    toolchain.versions()["dfc"] = "3.33.0"
    with pytest.raises(dfc_errors.DfcVersionError, match="a moment ago it was"):
        toolchain.parse(graph)


def test_what_an_earlier_run_left_is_not_taken(tmp_path: Path, graph: bytes) -> None:
    """An interpreter that gives back yesterday's answer instead of working."""
    told = '{"event": "done", "nonce": "yesterday", "files": {"parsed.har": "00"}}'
    python = script(tmp_path / "python", f"echo '{told}' > events.jsonl; echo old > parsed.har")
    with pytest.raises(dfc_errors.DfcStaleError, match="belongs to another call"):
        DfcInterpreter(python).ask("parse", outputs=["parsed.har"], seconds=20)


def test_success_without_its_file_is_none(tmp_path: Path) -> None:
    """The nonce is right, the file is not there, or is another one."""
    body = (
        'while [ "$1" != --nonce ]; do shift; done; echo "{\\"event\\": \\"done\\", \\"nonce\\": \\"$2\\", '
    )
    body += '\\"files\\": {\\"made.har\\": \\"00\\"}}" > events.jsonl'
    for more, says in (
        ("", "not there"),
        ("; : > made.har", "empty"),
        ("; echo x > made.har", "is not the file"),
    ):
        python = script(tmp_path / "python", body + more)
        with pytest.raises(dfc_errors.DfcOutputError, match=says):
            DfcInterpreter(python).ask("parse", outputs=["made.har"], seconds=20)


def test_each_call_has_a_new_folder_that_is_gone_afterwards(tmp_path: Path) -> None:
    python = script(tmp_path / "python", f"pwd >> {tmp_path}/folders; ls -A | sort > {tmp_path}/there")
    for _ in range(2):
        with pytest.raises(dfc_errors.DfcOutputError):
            DfcInterpreter(python).ask("versions", inputs={"a.har": b"x"}, seconds=20)
    folders = (tmp_path / "folders").read_text().split()
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)
    assert (tmp_path / "there").read_text().split() == ["a.har", "dfc_worker.py", "output.txt", "tmp"]


SECRETS = (
    "CANARY_KEY_FILE",
    "RELEASE_KEY_FILE",
    "RELEASE_KEY_PASSPHRASE",
    "DAGSTER_PG_PASSWORD",
    "PGPASSWORD",
    "DATABASE_URL",
    "SENTRY_DSN",
    "FAILURE_WEBHOOK_URL",
    "SLACK_WEBHOOK",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "SSH_AUTH_SOCK",
    "Registry_Password",
)


class Asked(dict[str, str]):
    """An environment that notes which of its names are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


def test_the_compiler_sees_no_secret_in_any_of_its_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: bytes, windows: FloatArray
) -> None:
    """What its process really has, as the double tells it; and of what is meant for it, everything."""
    asked = Asked()
    BuildSettings.from_environment(asked)
    settings = asked.names - {"TZ"}
    assert {"CANARY_KEY_FILE", "TRUST_ROOT", "FAILURE_WEBHOOK_URL"} < settings
    env_files = {name for file in ("code.env", "ui.env") for name in example(file)}
    for name in {*SECRETS, *settings, *env_files}:
        monkeypatch.setenv(name, f"hidden {name}")
    monkeypatch.setenv("STORE_OF_SOMEBODY", "postgresql+psycopg2://dagster:hidden@10.0.0.1/dagster")
    meant = {
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/usr/local/cuda",
        "HAILO_LICENSE_TOKEN": "theirs",
        "https_proxy": "http://user:word@proxy:3128",
        "LANG": "C.UTF-8",
        "NOBODY_KNOWS": "https://docs.example/a:b",
    }
    for name, value in meant.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "environments"
    toolchain = double_toolchain(tmp_path, DFC_DOUBLE_ENVIRONMENT=str(place))
    quantized = toolchain.optimize(toolchain.parse(graph), windows)
    toolchain.infer(toolchain.compile(quantized), windows[:2])
    told = [json.loads(line) for line in place.read_text().splitlines()]
    assert {each["verb"] for each in told} == set(VERBS)
    for each in told:
        seen = each["environment"]
        assert {name: value for name, value in seen.items() if "hidden" in value} == {}, each["verb"]
        assert {name: seen.get(name) for name in meant} == meant, each["verb"]


def test_its_environment_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "DAGSTER_HOME",
        "DAGSTER_PIPES_CONTEXT",
        "RELEASE_STORE",
        "TARGET",
    ):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    python = script(tmp_path / "python", f"env > {tmp_path}/env; ps -o pgid=,sid= -p $$ > {tmp_path}/group")
    with pytest.raises(dfc_errors.DfcOutputError):
        DfcInterpreter(python).ask("versions", seconds=20)
    seen = dict(
        line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines() if "=" in line
    )
    assert "ours" not in seen.values()
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert seen["PATH"] == "/usr/bin:/bin"
    assert seen["TMPDIR"].startswith(seen["PWD"])
    group, session = (tmp_path / "group").read_text().split()
    assert group == session != str(os.getsid(0))
    assert environment(tmp_path)["PYTHONUNBUFFERED"] == "1"


@pytest.mark.parametrize("name", ["HAILO_LOCK_DIR", "COVERAGE_PROCESS_START", "DAGSTER_HOME", "TARGET"])
def test_what_is_meant_for_us_is_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "ours")
    assert name not in environment(tmp_path)


def test_the_whole_log_is_judged_however_long_it_is(tmp_path: Path) -> None:
    """What it admits stands at its beginning; what is kept of it is another question."""
    talks = (
        'while [ "$1" != --nonce ]; do shift; done\n'
        "seq 60000\n"
        'echo "{\\"nonce\\": \\"$2\\", \\"event\\": \\"done\\", \\"files\\": {}}" > events.jsonl'
    )
    answer = DfcInterpreter(script(tmp_path / "python", talks)).ask("versions", seconds=60)
    assert answer.log == tuple(str(number) for number in range(1, 60001))
    assert len(shortened(answer.log)) < len("\n".join(answer.log))


@pytest.mark.parametrize(("status", "says"), [(-35, "signal 35"), (-11, "SIGSEGV")])
def test_any_signal_has_a_name(status: int, says: str) -> None:
    error = dfc_errors.ended("parse", status, ["[info] working"])
    assert type(error) is dfc_errors.DfcKilledError
    assert f"ended by {says}" in error.what


def test_a_relative_interpreter_is_found_from_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own folder is another one."""
    double_toolchain(tmp_path)
    monkeypatch.chdir(tmp_path)
    toolchain = HailoDfcToolchain("hailo8", "./dfc-python", supported=["0.0.0-double"])
    assert toolchain.versions()["dfc"] == "0.0.0-double"


def test_a_file_for_the_smaller_chip_is_not_what_was_asked_for() -> None:
    """A Hailo-8 would run it, more slowly."""
    data = make_hef(arch="HAILO8L")
    check_compiled(data, "hailo8l", "0.0.0-double")
    with pytest.raises(dfc_errors.DfcOutputError, match="is for HAILO8L, hailo8 was asked for"):
        check_compiled(data, "hailo8", "0.0.0-double")


def test_it_is_heard_while_it_works(tmp_path: Path, graph: bytes, windows: FloatArray) -> None:
    heard = Heard()
    toolchain = double_toolchain(tmp_path, listener=heard)
    parsed = toolchain.parse(graph)
    toolchain.optimize(parsed, windows)
    assert (True, "optimize: [info] Starting Model Optimization") in heard.lines
    assert not at_work()
    assert heard.facts["dfc"] == "0.0.0-double"
    assert "few_calibration_windows" in heard.facts["degradations"]
    said = [line for _, line in heard.lines]
    assert "optimize: Calibration: 100%" in said
    assert not any("50%" in line for line in said)


def hanging(tmp_path: Path) -> tuple[HailoDfcToolchain, Path]:
    pids = tmp_path / "pids"
    toolchain = double_toolchain(tmp_path, DFC_DOUBLE_FAULT="translate:hang", DFC_DOUBLE_PIDS=str(pids))
    return toolchain, pids


def test_a_timeout_ends_it_and_its_children(tmp_path: Path, graph: bytes) -> None:
    toolchain, pids = hanging(tmp_path)
    toolchain.versions()
    seconds = {**toolchain.config.seconds, "parse": 8.0}
    toolchain.config = replace(toolchain.config, seconds=seconds)
    with pytest.raises(dfc_errors.DfcTimeoutError, match="longer than 8 s") as caught:
        toolchain.parse(graph)
    assert "hanging" in caught.value.hint
    assert wait_for(lambda: all_ended(pids), "their end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_asked_ends_and_so_does_it_with_its_children(
    tmp_path: Path, graph: bytes, number: signal.Signals
) -> None:
    """Ctrl-C as an exception; SIGTERM and SIGKILL end the asker without a word."""
    _, pids = hanging(tmp_path)
    (tmp_path / "graph").write_bytes(graph)
    code = (
        "import sys; from pathlib import Path; from assets.toolchain.hailo_dfc import HailoDfcToolchain\n"
        "toolchain = HailoDfcToolchain('hailo8', sys.argv[1], supported=['0.0.0-double'])\n"
        "toolchain.parse(Path(sys.argv[2]).read_bytes())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "dfc-python"), str(tmp_path / "graph")]
    asker = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(pids.exists, "the compiler at work", 60)
    asker.send_signal(number)
    _, errors = asker.communicate(timeout=60)
    assert asker.returncode != 0
    assert wait_for(lambda: all_ended(pids), "their end")
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def test_dagsters_interruption_ends_it_too(tmp_path: Path, graph: bytes) -> None:
    """It is no Exception, and comes out as itself."""
    from dagster._core.errors import DagsterExecutionInterruptedError

    toolchain, pids = hanging(tmp_path)

    class Interrupting(Listener):
        def line(self, verb: str, text: str) -> None:
            if "hanging" in text:
                raise DagsterExecutionInterruptedError

    toolchain.interpreter.listener = Interrupting()
    before = threading.active_count()
    with pytest.raises(DagsterExecutionInterruptedError):
        toolchain.parse(graph)
    assert wait_for(lambda: all_ended(pids), "their end")
    assert wait_for(lambda: threading.active_count() <= before, "the end of the readers")


def by_hand(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [dfc_python(place, {}), str(WORKER), *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def test_the_worker_can_be_run_by_hand(tmp_path: Path, graph: bytes, windows: FloatArray) -> None:
    assert "by hand" in by_hand(tmp_path, "--help").stdout.lower()
    (tmp_path / "e.onnx").write_bytes(graph)
    np.save(tmp_path / "w.npy", windows)
    (tmp_path / "s.alls").write_text("model_optimization_flavor(optimization_level=0, compression_level=0)\n")
    arch = ["--hw-arch", "hailo8"]
    calls = [
        ["versions"],
        ["parse", "e.onnx", *arch, "--input", "imu_window", "--shape", "1,9,1,100", "--har", "p.har"],
        ["optimize", "p.har", *arch, "--script", "s.alls", "--windows", "w.npy", "--har", "q.har"],
        ["infer", "q.har", *arch, "--windows", "w.npy", "--context", "SDK_QUANTIZED", "--out", "l.npz"],
        ["compile", "q.har", *arch, "--hef", "e.hef"],
    ]
    for words in calls:
        run = by_hand(tmp_path, *words)
        assert run.returncode == 0, run.stderr
        assert '"event": "done"' in run.stdout
    with np.load(tmp_path / "l.npz") as latents:
        assert latents["SDK_QUANTIZED"].shape == (96, 64)
    assert (tmp_path / "e.hef").read_bytes()[:4] == b"\x01HEF"
    again = by_hand(tmp_path, *calls[-1])
    assert again.returncode == 3
    assert "FileExistsError" in again.stdout


def test_the_worker_needs_python_3_10_and_nothing_of_ours() -> None:
    import ast

    tree = ast.parse(WORKER.read_text(), feature_version=(3, 10))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "hailo_sdk_client"}


def test_a_configuration_is_one_script() -> None:
    from assets.toolchain.dfc_config import load_config, model_script, recorded

    config = load_config()
    assert config.accepted == ()
    assert model_script(config) == (
        "model_optimization_flavor(optimization_level=2, compression_level=0)\n"
        "model_optimization_config(calibration, batch_size=8, calibset_size=1024)\n"
    )
    most = small_config(compiler_optimization="max")
    assert model_script(most).endswith("performance_param(compiler_optimization_level=max)\n")
    assert recorded(most, "hailo8")["script_sha256"] != recorded(config, "hailo8")["script_sha256"]


def test_every_failure_is_explained_in_the_page() -> None:
    page = (ROOT / "docs" / "gpusrv.md").read_text()
    kinds = [
        kind for kind in vars(dfc_errors).values() if isinstance(kind, type) and issubclass(kind, DfcError)
    ]
    codes = {kind.code for kind in kinds}
    assert len(codes) == len(kinds) > 10
    assert [code for code in codes - {"dfc"} if f"`{code}`" not in page] == []
