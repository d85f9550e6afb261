"""The servers that `bench.compare` holds against each other: started, pinned, asked and measured."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.simulators import ROOT, clean_environment, free_port

PEERS_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
START_SECONDS: Final = 60.0
MAX_REQUESTS: Final = 200_000


@dataclass(frozen=True)
class Stack:
    """A server.

    Args:
        name: In tables.
        command: From its port.
        environment: Beside a clean one.
        json_route: Takes one window as JSON.
        octets_route: Takes float32; empty where it does not.
        health_route: Answers 200 once it serves.
        one_session: Whether its processes stay in the session that they are started in, by which they are
            known: whose do not, their CPU time is not measured.
    """

    name: str
    command: Callable[[int], list[str]]
    environment: dict[str, str]
    json_route: str = "/infer"
    octets_route: str = ""
    health_route: str = "/healthz"
    one_session: bool = True


def runtime(name: str, app: str, **environment: str) -> Stack:
    """Ours, as it is deployed."""
    command = [sys.executable, "-m", "gunicorn", "-c", "runtime/gunicorn.conf.py", app]
    settings = {"LOG_LEVEL": "WARNING"} | environment
    return Stack(name, lambda port: command, settings, octets_route="/infer")


def fastapi(name: str, model: Path, **environment: str) -> Stack:
    """The user's former stack."""
    options = ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "warning"]
    command = [str(PEERS_PYTHON), "-m", "uvicorn", *options, "bench.peers.fastapi_app:app", "--port"]
    settings = {"BENCH_MODEL": str(model)} | environment
    return Stack(name, lambda port: [*command, str(port)], settings, octets_route="/octets")


def fastapi_bytes(name: str, model: Path, **environment: str) -> Stack:
    """The same, where Pydantic reads the body's bytes."""
    return dataclasses.replace(
        fastapi(name, model, **environment), json_route="/infer-bytes", octets_route=""
    )


def litserve(name: str, model: Path, **environment: str) -> Stack:
    """LitServe."""
    command = [str(PEERS_PYTHON), "-m", "bench.peers.litserve_app"]
    return Stack(name, lambda port: [*command, str(port)], {"BENCH_MODEL": str(model)} | environment)


def bentoml(name: str, model: Path, **environment: str) -> Stack:
    """BentoML."""
    command = [str(PEERS_PYTHON), "-m", "bentoml", "serve", "bench.peers.bentoml_service:Service", "--port"]
    settings = {"BENCH_MODEL": str(model), "BENTOML_DO_NOT_TRACK": "True"} | environment
    return Stack(
        name, lambda port: [*command, str(port)], settings, health_route="/readyz", one_session=False
    )


class Running:
    """A stack that answers, on one core; ended with everything that it started."""

    def __init__(self, stack: Stack, log: Path) -> None:
        self.stack = stack
        self.port = free_port()
        environment = clean_environment() | stack.environment | {"PORT": str(self.port)}
        begin = time.perf_counter()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(SERVER_CORE), *stack.command(self.port)],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait(log)
        self.cold_start = time.perf_counter() - begin

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        url = f"http://127.0.0.1:{self.port}{self.stack.health_route}"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            time.sleep(0.01)
        self.stop()
        raise RuntimeError(f"{self.stack.name} does not answer: {log.read_text()[-2000:]}")

    def cpu_seconds(self) -> float:
        """Of all threads of all its processes, to the nanosecond."""
        spent = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[3]) == self.process.pid:  # its session
                    for task in stat.parent.glob("task/*/schedstat"):
                        spent += int(task.read_text().split()[0])
        return spent / 1e9

    def load(self, connections: int, seconds: float, body: Path, *, octets: bool = False) -> dict[str, Any]:
        """Closed loop from the other core; adds ``cpu``, seconds a request."""
        route = self.stack.octets_route if octets else self.stack.json_route
        arguments = [str(self.port), str(connections), str(MAX_REQUESTS), str(seconds), str(body), route]
        before = self.cpu_seconds()
        result = _asked("bench.load", [*arguments, "octets" if octets else "json"], seconds)
        if result["wrong"]:
            raise RuntimeError(f"{self.stack.name}: {result['wrong']} of {result['requests']} were wrong")
        return result | {"cpu": (self.cpu_seconds() - before) / result["requests"]}

    def paced(self, rate: float, count: int, body: Path) -> dict[str, Any]:
        """Open loop at a rate; adds ``cpu``, the share of a core."""
        before = self.cpu_seconds()
        arguments = [str(self.port), str(rate), str(count / rate), str(body)]
        result = _asked("bench.open_loop", arguments, count / rate)
        if result["lost"] or any(status != 200 for _, _, status, _, _ in result["answers"]):
            raise RuntimeError(f"{self.stack.name}: {len(result['lost'])} lost, or not all are 200")
        latencies = sorted(ms for _, ms, _, _, _ in result["answers"])
        cpu = (self.cpu_seconds() - before) / (count / rate)
        return {"latencies_ms": latencies, "cpu": cpu, "requests": len(latencies)}

    def stop(self) -> None:
        """End it and its children: they are a session of their own."""
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _asked(module: str, arguments: list[str], seconds: float) -> dict[str, Any]:
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.read())
        process.wait(seconds + 60)
    return answer


@contextlib.contextmanager
def running(stacks: list[Stack], logs: Path) -> Iterator[list[Running]]:
    """All of them, one core; only the one that is asked works."""
    with contextlib.ExitStack() as stack:
        started = []
        for number, one in enumerate(stacks):
            server = Running(one, logs / f"{number}.log")
            stack.callback(server.stop)
            started.append(server)
        yield started
