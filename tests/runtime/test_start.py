"""How the real server starts: with which settings, without a model, or not at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from gunicorn.config import Keepalive

from runtime.load_memory import LoadMemory
from tests.simulators import (
    ARTIFACT,
    ROOT,
    ReleaseSimulator,
    RuntimeServer,
    clean_environment,
    flip_bit,
    free_port,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)


def test_a_free_port_is_kept_for_the_server_that_names_it() -> None:
    """Two test processes look for ports at a time; the server binds its own a while later."""
    address = ("127.0.0.1", free_port())
    with socket.socket() as anybody, pytest.raises(OSError, match="already in use"):
        anybody.bind(address)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()


def test_a_path_that_is_not_utf_8_is_told_escaped(tmp_path: Path) -> None:
    store = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with running_server(tmp_path, RELEASE_STORE=store) as server:
        health = httpx.get(f"{server.url}/healthz")
        assert (health.status_code, health.json()["reason"]) == (503, "no_release")
        assert "/\\udcff" in health.json()["message"]
    (line,) = [json.loads(line) for line in server.stdout.splitlines() if '"ERROR"' in line]
    assert "/\\udcff" in line["message"]


def test_the_settings_are_those_that_were_decided() -> None:
    """What gunicorn itself makes of the file: each of these shows only after half a minute or more."""
    command = [sys.executable, "-m", "gunicorn", "-c", "runtime/gunicorn.conf.py", "--print-config"]
    printed = subprocess.run(
        [*command, "runtime.app:create_app"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    settings = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    found = {name.strip(): value.strip() for name, value in settings.items()}
    wanted = {"timeout": "30", "graceful_timeout": "10", "workers": "1", "backlog": "100"}
    assert {name: found[name] for name in wanted} == wanted
    # Nothing reads it: a value here would only look as if it counted.
    assert found["keepalive"] == str(Keepalive.default)


BODY = infer_body(imu_windows(1, seed=2)[0])


def publish_nothing(store: Path) -> dict[str, str]:
    return {}


def name_a_bare_file(store: Path) -> dict[str, str]:
    (store / "bare.onnx").write_bytes(ReleaseSimulator().model)
    return {"HEF_PATH": str(store / "bare.onnx")}


def expect_other_motifs(store: Path) -> dict[str, str]:
    ReleaseSimulator(motifs=5).publish(store, "stable")
    return {"NUM_MOTIFS": "12"}


def publish_two_targets(store: Path) -> dict[str, str]:
    ReleaseSimulator().publish(store, "stable")
    ReleaseSimulator(target="hailo8", kind="hef").publish(store, "stable")
    return {}


def want_another_target(store: Path) -> dict[str, str]:
    return {"HEF_PATH": str(ReleaseSimulator().publish(store).directory), "TARGET": "hailo8l"}


def flip_one_bit(store: Path) -> dict[str, str]:
    flip_bit(ReleaseSimulator().publish(store, "stable").directory / ARTIFACT, 5000, 3)
    return {}


def compute_otherwise(store: Path) -> dict[str, str]:
    ReleaseSimulator(golden_offset=1.0).publish(store, "stable")
    return {}


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (publish_nothing, "no_release"),
        (name_a_bare_file, "no_manifest"),
        (expect_other_motifs, "num_motifs"),
        (publish_two_targets, "target_ambiguous"),
        (want_another_target, "target_mismatch"),
        (flip_one_bit, "digest_mismatch"),
        (compute_otherwise, "golden_mismatch"),
    ],
)
def test_each_reason_for_no_model_is_told(
    tmp_path: Path, prepare: Callable[[Path], dict[str, str]], reason: str
) -> None:
    environment = {"RELEASE_STORE": str(tmp_path), **prepare(tmp_path)}
    with running_server(tmp_path, **environment) as server:
        health = httpx.get(f"{server.url}/healthz")
        assert health.status_code == 503
        assert (health.json()["ok"], health.json()["reason"]) == (False, reason)
        answer = httpx.post(f"{server.url}/infer", content=BODY)
        assert answer.status_code == 503
        assert (answer.json()["error"], answer.json()["reason"]) == ("model_unavailable", reason)
        assert "\nhailo_model_loaded 0.0\n" in httpx.get(f"{server.url}/metrics").text
        assert "\nTraceback" not in server.stderr
    lines = [json.loads(line) for line in server.stdout.splitlines()]
    assert [line["reason"] for line in lines if line["level"] == "ERROR" and "reason" in line] == [reason]


def test_web_concurrency_does_not_add_workers(tmp_path: Path) -> None:
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path), WEB_CONCURRENCY="4") as server:
        assert len(server.children()) == 1


def test_sigttin_adds_no_worker(tmp_path: Path) -> None:
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path)) as server:
        before = server.children()
        for times in (1, 2):
            # The second line is written after the arbiter has done all that the first signal asked.
            server.process.send_signal(signal.SIGTTIN)
            wait_for(lambda: server.stderr.count("still 1 worker") >= times, "a refusal")  # noqa: B023
        assert server.children() == before


def ended(logs: Path, **environment: str) -> tuple[int, list[str]]:
    """Start a server that cannot start; its exit code and what it says apart from gunicorn's INFO."""
    server = RuntimeServer(logs, **environment)
    code = server.wait_until_ended(20)
    return code, [line for line in server.stderr.splitlines() if "[INFO]" not in line]


def test_a_busy_port_is_one_line(tmp_path: Path, server: RuntimeServer) -> None:
    code, lines = ended(tmp_path, PORT=str(server.port), RELEASE_STORE=str(tmp_path))
    assert code == 1
    assert len(lines) == 1
    assert f"127.0.0.1:{server.port}" in lines[0]
    assert "already in use" in lines[0]  # gunicorn itself says so as an error, and tries again


@pytest.mark.parametrize("port", ["0", "http", "70000"])
def test_a_wrong_setting_is_one_line(tmp_path: Path, port: str) -> None:
    code, lines = ended(tmp_path, PORT=port, LOG_LEVEL="LOUD")
    assert code == 1
    assert len(lines) == 1
    assert f"PORT={port!r}" in lines[0]
    assert "LOG_LEVEL='LOUD'" in lines[0]


def test_more_workers_by_command_line_are_refused(tmp_path: Path) -> None:
    code, lines = ended(tmp_path, GUNICORN_CMD_ARGS="--workers 3", RELEASE_STORE=str(tmp_path))
    assert code == 1
    assert len(lines) == 1
    assert "one process owns the chip" in lines[0]


def test_without_the_settings_file_a_wrong_value_still_ends_it(tmp_path: Path) -> None:
    """The app checks by itself: gunicorn gives up instead of starting workers for ever."""
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-b",
        f"127.0.0.1:{free_port()}",
        "-k",
        "asgi",
        "--no-control-socket",
    ]
    done = subprocess.run(
        [*command, "runtime.asgi:app"],
        cwd=ROOT,
        env=clean_environment() | {"NUM_MOTIFS": "many"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 3
    assert "NUM_MOTIFS='many'" in done.stderr
    assert "Traceback" not in done.stderr


HANGS_WHILE_LOADING = """
import time
from pathlib import Path

exec(compile(Path("runtime/gunicorn.conf.py").read_text(), "settings", "exec"))


def post_fork(server, worker):
    import runtime.recovery
    from runtime.load_memory import LoadMemory

    write = LoadMemory._write

    def write_and_hang(memory, data):
        written = write(memory, data)
        if b'"loading": ""' not in data and Path({hangs!r}).exists():
            time.sleep(600)
        return written

    LoadMemory._write = write_and_hang
    runtime.recovery.STOP_WAIT = 0.1
"""


@pytest.fixture(name="hanging")
def a_server_that_hangs_while_loading(tmp_path: Path) -> Iterator[Callable[[], RuntimeServer]]:
    """Starts one; it hangs where there is a file ``hangs``, which is there, and remembers in ``state``."""
    (tmp_path / "hangs").touch()
    (tmp_path / "state").mkdir()
    settings = tmp_path / "settings.py"
    settings.write_text(HANGS_WHILE_LOADING.format(hangs=str(tmp_path / "hangs")))
    servers: list[RuntimeServer] = []

    def start() -> RuntimeServer:
        variables = {"RELEASE_STORE": str(tmp_path / "store"), "STATE_DIR": str(tmp_path / "state")}
        servers.append(RuntimeServer(tmp_path, settings=settings, **variables))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT], ids=lambda asked: asked.name)
def test_an_end_in_order_while_the_first_release_is_loaded_is_no_crash(
    tmp_path: Path, hanging: Callable[[], RuntimeServer], asked: signal.Signals
) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store", "stable")
    server = hanging()
    wait_for(lambda: LoadMemory(tmp_path / "state").left == release.id, "the loading")
    server.process.send_signal(asked)
    assert server.wait_until_ended() == 0
    assert LoadMemory(tmp_path / "state").left == ""
    assert "SIGKILL" not in server.stderr


def test_a_worker_that_is_killed_while_it_loads_is_one(
    tmp_path: Path, hanging: Callable[[], RuntimeServer]
) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store", "stable")
    server = hanging()
    wait_for(lambda: LoadMemory(tmp_path / "state").left == release.id, "the loading")
    (worker,) = server.children()
    os.kill(worker, signal.SIGKILL)
    server.wait_until_answering()  # Another one, which does not load it.
    assert httpx.get(f"{server.url}/healthz").json()["reason"] == "crashed_on_load"


def test_an_end_in_order_while_the_next_release_is_loaded_is_no_crash(
    tmp_path: Path, hanging: Callable[[], RuntimeServer]
) -> None:
    """In a thread beside the one that ends, and not waited for any longer."""
    ReleaseSimulator().publish(tmp_path / "store", "stable")
    (tmp_path / "hangs").unlink()
    server = hanging().wait_until_answering()
    (tmp_path / "hangs").touch()
    release = ReleaseSimulator(motifs=3).publish(tmp_path / "store", "stable")
    wait_for(lambda: LoadMemory(tmp_path / "state").left == release.id, "the loading")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_until_ended() == 0
    assert LoadMemory(tmp_path / "state").left == ""
