"""Worker classes beside each other: the same app, payload and machine, interleaved rounds.

``python -m bench.serving [--rounds 5] [--seconds 2] [--store DIR]`` prints a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from runtime.contract.cpu import kernel_family, this_cpu
from tests.simulators import ROOT, ReleaseSimulator, RuntimeServer, imu_windows, infer_body

CONNECTIONS: Final = (1, 8)
MAX_REQUESTS: Final = 20_000


@dataclass
class Variant:
    """One way to serve the app: a name, gunicorn arguments, and the modules that it needs."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    samples: dict[int, list[Sample]] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether every module that it needs is installed."""
        return all(importlib.util.find_spec(module) for module in self.needs)


def _uvicorn(name: str) -> tuple[str, ...]:
    return ("-k", f"bench.uvicorn_workers.{name}")


@dataclass(frozen=True)
class Sample:
    """One round: requests a second, latencies in ms, the worker's CPU time a request in ms."""

    rate: float
    p50: float
    p99: float
    cpu: float


VARIANTS: Final = (
    Variant("the runtime's: httptools, asyncio", ()),
    Variant("uvicorn, httptools, uvloop", _uvicorn("HttptoolsUvloop"), ("uvloop",)),
    Variant("uvicorn, httptools, asyncio", _uvicorn("HttptoolsAsyncio")),
    Variant("uvicorn, h11, asyncio", _uvicorn("H11Asyncio")),
    Variant("gunicorn asgi, asyncio", ("-k", "asgi", "--asgi-loop", "asyncio", "--http-parser", "python")),
    Variant(
        "gunicorn asgi, C parser, asyncio",
        ("-k", "asgi", "--asgi-loop", "asyncio", "--http-parser", "fast"),
        ("gunicorn_h1c",),
    ),
)


@contextmanager
def _serving(variants: Sequence[Variant], store: Path, logs: Path) -> Iterator[list[RuntimeServer]]:
    with ExitStack() as stack:
        servers = []
        for variant in variants:
            environment = {
                "RELEASE_STORE": str(store),
                "RELEASE_CHANNEL": "canary",
                "LOG_LEVEL": "WARNING",
                "GUNICORN_CMD_ARGS": " ".join(variant.arguments),
            }
            server = RuntimeServer(logs, **environment)
            stack.callback(server.stop)
            servers.append(server.wait_until_answering())
        yield servers


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _measure(server: RuntimeServer, connections: int, seconds: float, body: Path) -> Sample:
    (worker,) = server.children()
    before = _cpu_seconds(worker)
    arguments = [str(server.port), str(connections), str(MAX_REQUESTS), str(seconds), str(body)]
    command = [sys.executable, "-m", "bench.load", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds + 60, check=True)
    result = json.loads(done.stdout)
    if result["wrong"]:
        raise RuntimeError(f"{result['wrong']} of {result['requests']} answers were wrong")
    latencies, count = result["latencies_ms"], result["requests"]
    return Sample(
        rate=count / result["seconds"],
        p50=latencies[count // 2],
        p99=latencies[min(count - 1, count * 99 // 100)],
        cpu=(_cpu_seconds(worker) - before) / count * 1000,
    )


def measure(variants: Sequence[Variant], store: Path, rounds: int, seconds: float) -> None:
    """Fill ``samples`` of each variant, in interleaved rounds after one round to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body.json"
        body.write_bytes(infer_body(imu_windows(1, seed=5)[0]))
        with _serving(variants, store, Path(folder)) as servers:
            for number in range(rounds + 1):
                for connections in CONNECTIONS:
                    for variant, server in zip(variants, servers, strict=True):
                        sample = _measure(server, connections, seconds if number else 0.3, body)
                        if number:
                            variant.samples.setdefault(connections, []).append(sample)


def table(variants: Sequence[Variant]) -> str:
    """Medians over the rounds as Markdown; the ratio is that of requests/s to the first row."""
    lines = [
        "| worker | connections | requests/s | ratio | p50 ms | p99 ms | CPU ms/request |",
        "|---|---|---|---|---|---|---|",
    ]
    for connections in CONNECTIONS:
        base = statistics.median(sample.rate for sample in variants[0].samples[connections])
        for variant in variants:
            samples = variant.samples[connections]
            rate, p50, p99, cpu = (
                statistics.median(getattr(sample, name) for sample in samples)
                for name in ("rate", "p50", "p99", "cpu")
            )
            lines.append(
                f"| {variant.name} | {connections} | {rate:.0f} | {rate / base:.2f}x | {p50:.2f} | {p99:.2f} "
                f"| {cpu:.3f} |"
            )
    return "\n".join(lines)


def machine() -> str:
    """CPU, cores, kernel and versions in one line."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line), "?")
    names = ("falcon", "gunicorn", "uvicorn", "onnxruntime")
    packages = ", ".join(f"{name} {version(name)}" for name in names if importlib.util.find_spec(name))
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    model = f"{model} ({kernel_family(*this_cpu())})"
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {system}, {packages}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round")
    parser.add_argument("--store", type=Path, help="a store whose canary is served; default: a tiny model")
    options = parser.parse_args(argv)
    variants = [variant for variant in VARIANTS if variant.available]
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder)
        if options.store is None:
            ReleaseSimulator().publish(store, "canary")
        measure(variants, store.resolve(), options.rounds, options.seconds)
    print(f"{machine()}; {options.rounds} rounds of {options.seconds:g} s, medians\n\n{table(variants)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
