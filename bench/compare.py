"""Our runtime beside its peers: the same model, payload and core, interleaved rounds, medians, ratios.

``python -m bench.compare --store artifacts/releases [--rounds 5] [--seconds 1.5] [--write README.md]`` needs
``make bench-peers`` once. Servers run on core 0, the load on core 1. Figures are measured; what the encoder
computes on the emulator is emulated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from bench.serving import machine
from bench.stacks import (
    PEERS_PYTHON,
    SERVER_CORE,
    Running,
    Stack,
    bentoml,
    fastapi,
    fastapi_bytes,
    litserve,
    running,
    runtime,
)
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import DEFAULT_TRUST_ROOT, Trust
from tests.simulators import ROOT, imu_windows, infer_body

BATCH: Final = 32
MARKERS: Final = ("<!-- bench.compare begins -->", "<!-- bench.compare ends -->")


@dataclass
class Table:
    """Rows of (what, aim, and each stack's median with its ratio to the first peer)."""

    samples: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, what: str, stack: str, value: float) -> None:
        """One round's figure."""
        self.samples[what][stack].append(value)

    def median(self, what: str, stack: str) -> float | None:
        """Over the rounds; None where that was not measured."""
        values = self.samples[what].get(stack)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Row:
    """One comparison of ours with a base."""

    title: str
    what: str
    ours: str
    base: str
    aim: str
    unit: str
    scale: float = 1.0
    base_what: str = ""


OURS: Final = "ours"
FASTAPI: Final = "FastAPI"
BARE: Final = "bare onnxruntime loop"


def _of(base: str) -> tuple[str, float, str]:
    return "windows/s", 1.0, base


_AT_ONCE: Final = "answered at once, "
ROWS: Final = (
    Row(f"{_AT_ONCE}JSON, 8 connections", "instant json 8", OURS, FASTAPI, "3x, then 4x", "requests/s"),
    Row(f"{_AT_ONCE}JSON, 32 connections", "instant json 32", OURS, FASTAPI, "3x, then 4x", "requests/s"),
    Row(f"{_AT_ONCE}float32 both ways", "instant octets 8", OURS, FASTAPI, "", "requests/s"),
    Row(f"{_AT_ONCE}float32, others JSON", "instant octets 8", OURS, FASTAPI, "6x", *_of("instant json 8")),
    Row(f"{_AT_ONCE}p99 of JSON, 8 connections", "instant p99 8", OURS, FASTAPI, "0.5x", "ms"),
    Row(f"{_AT_ONCE}CPU a request at 20/s", "instant cpu 20", OURS, FASTAPI, "0.6x", "ms", 1000),
    Row("int8, JSON, 1 connection", "int8 json 1", OURS, FASTAPI, "", "windows/s"),
    Row("int8 (FastAPI: fp32), JSON, 8 connections", "int8 json 8", OURS, FASTAPI, "4x", *_of("fp32 json 8")),
    Row("int8, batch of 32 as float32", "int8 batch", OURS, BARE, "0.90x", *_of("int8 bare")),
    Row("fp32, batch of 32 as float32", "fp32 batch", OURS, BARE, "0.95x", *_of("fp32 bare")),
    Row("fp32, JSON, 8 connections", "fp32 json 8", OURS, BARE, "0.80x", *_of("fp32 bare")),
    Row("fp32, JSON, 1 connection", "fp32 json 1", OURS, BARE, "", *_of("fp32 bare")),
    Row("cold start to the first answer, int8", "cold start", OURS, FASTAPI, "at most 1x", "s"),
)


def model_folder(release: Release, model: bytes, folder: Path) -> Path:
    """The release's model as the peers read it."""
    folder.mkdir(parents=True)
    statistics_, head = release.manifest.input.normalization, release.manifest.motif_head
    (folder / "model.onnx").write_bytes(model)
    told = {"mean": statistics_.mean, "std": statistics_.std, "weight": head.weight, "bias": head.bias}
    (folder / "model.json").write_text(json.dumps(told))
    return folder


class Bodies:
    """What is sent."""

    def __init__(self, folder: Path) -> None:
        windows = imu_windows(BATCH, seed=5)
        self.json = folder / "window.json"
        self.json.write_bytes(infer_body(windows[0]))
        self.octets = folder / "window.bin"
        self.octets.write_bytes(windows[0].tobytes())
        self.batch = folder / "batch.bin"
        self.batch.write_bytes(windows.tobytes())


def bare_loop(model: Path, seconds: float) -> float:
    """Windows a second of onnxruntime alone, on the servers' core."""
    code = (
        "import sys, time; import numpy as np; from bench.peers.encoder import Encoder; e = Encoder()\n"
        "x = np.random.default_rng(1).normal(size=(1, 9, 1, 100)).astype(np.float32); n = 0\n"
        "for _ in range(200): e._session.run(['latent'], {'imu_window': x})\n"
        "t = time.perf_counter()\n"
        f"while time.perf_counter() - t < {seconds}:\n"
        "    e._session.run(['latent'], {'imu_window': x}); n += 1\n"
        "print(n / (time.perf_counter() - t))"
    )
    done = subprocess.run(
        ["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", code],
        cwd=ROOT,
        env={"BENCH_MODEL": str(model), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
        timeout=seconds + 60,
    )
    return float(done.stdout)


def measure_instant(table: Table, bodies: Bodies, folder: Path, rounds: int, seconds: float) -> None:
    """Serving alone: every answer is there at once."""
    model = folder / "instant-model"
    stacks = [
        runtime(OURS, "bench.instant_asgi:app"),
        *(make(name, model, BENCH_INSTANT="1") for name, make in PEERS.items()),
    ]
    with running(stacks, _logs(folder, "instant")) as servers:
        for number in range(rounds + 1):
            for server in servers:
                _instant_round(table, server, bodies, seconds if number else 0.3, counted=number > 0)


def _instant_round(table: Table, server: Running, bodies: Bodies, seconds: float, *, counted: bool) -> None:
    name, found = server.stack.name, Table()
    for connections in (8, 32):
        result = server.load(connections, seconds, bodies.json)
        found.add(f"instant json {connections}", name, result["requests"] / result["seconds"])
        latencies = result["latencies_ms"]
        if connections == 8:
            found.add("instant p99 8", name, latencies[len(latencies) * 99 // 100])
    if server.stack.octets_route:
        result = server.load(8, seconds, bodies.octets, octets=True)
        found.add("instant octets 8", name, result["requests"] / result["seconds"])
    if server.stack.one_session:
        paced = server.paced(20, 200 if counted else 10, bodies.json)
        found.add("instant cpu 20", name, paced["cpu"] / 20)
    _take(table, found, counted=counted)


def _take(table: Table, found: Table, *, counted: bool) -> None:
    if counted:
        for what, stacks in found.samples.items():
            for name, values in stacks.items():
                table.samples[what][name] += values


def measure_model(
    table: Table,
    kind: str,
    ours: Stack,
    model: Path,
    bodies: Bodies,
    folder: Path,
    rounds: int,
    seconds: float,
) -> None:
    """With the encoder itself: ``kind`` is int8 or fp32."""
    stacks = [ours, *(make(name, model) for name, make in PEERS.items())]
    with running(stacks, _logs(folder, kind)) as servers:
        _check_answers(servers, bodies)
        for number in range(rounds + 1):
            length, found = (seconds if number else 0.3), Table()
            found.add(f"{kind} bare", BARE, bare_loop(model, length))
            for server in servers:
                for connections in (1, 8):
                    result = server.load(connections, length, bodies.json)
                    rate = result["requests"] / result["seconds"]
                    found.add(f"{kind} json {connections}", server.stack.name, rate)
                if server.stack.octets_route:
                    result = server.load(1, length, bodies.batch, octets=True)
                    rate = result["requests"] / result["seconds"] * BATCH
                    found.add(f"{kind} batch", server.stack.name, rate)
            _take(table, found, counted=number > 0)


def _check_answers(servers: Sequence[Running], bodies: Bodies) -> None:
    """All compute the same, or the comparison says nothing."""
    answers = []
    for server in servers:
        url = f"http://127.0.0.1:{server.port}{server.stack.json_route}"
        headers = {"Content-Type": "application/json"}
        told = httpx.post(url, content=bodies.json.read_bytes(), headers=headers, timeout=30).json()
        answers.append(np.asarray([*told["latent"], *told["motif_scores"]]))
        if not np.allclose(answers[0], answers[-1], atol=1e-4):
            raise RuntimeError(f"{server.stack.name} computes something else")


def measure_cold_starts(table: Table, stacks: Sequence[Stack], folder: Path, rounds: int) -> None:
    """From the start of the process to the first 200."""
    logs = _logs(folder, "cold")
    for _ in range(rounds):
        for stack in stacks:
            server = Running(stack, logs / "log")
            table.add("cold start", stack.name, server.cold_start)
            server.stop()


PEERS: Final[dict[str, Callable[..., Stack]]] = {
    FASTAPI: fastapi,
    "FastAPI, bytes to Pydantic": fastapi_bytes,
    "LitServe": litserve,
    "BentoML": bentoml,
}


def _logs(folder: Path, name: str) -> Path:
    logs = folder / f"logs-{name}"
    logs.mkdir()
    return logs


def lines(table: Table) -> list[str]:
    """Markdown: ours, each peer with ours as a multiple of it, and the aim."""
    peers = [*PEERS, BARE]
    told = [
        f"| what | aim | ours | {' | '.join(f'{name}: ours is' for name in peers)} |",
        "|---|---|---|" + "---|" * len(peers),
    ]
    for row in ROWS:
        ours = table.median(row.what, row.ours)
        if ours is None:
            continue
        cells = []
        for name in peers:
            what = row.base_what if row.base_what and (name == row.base or row.base != BARE) else row.what
            base = table.median(what, name)
            cells.append(f"{_number(base * row.scale)}: {ours / base:.2f}x" if base else "")
        aim = f"{row.aim} {row.base}" if row.aim else ""
        told.append(f"| {row.title} | {aim} | {_number(ours * row.scale)} {row.unit} | {' | '.join(cells)} |")
    return told


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure(store: Path, onnx: Path | None, rounds: int, seconds: float) -> list[str]:
    """Everything; returns the table."""
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bodies, trust = Bodies(folder), Path(DEFAULT_TRUST_ROOT).resolve()
        release = _canary(store, trust)
        int8 = model_folder(release, release.read(release.manifest.artifact), folder / "int8")
        model_folder(release, b"", folder / "instant-model")
        channel = {"RELEASE_CHANNEL": "canary", "TRUST_ROOT": str(trust)}
        ours = runtime(OURS, "runtime.asgi:app", RELEASE_STORE=str(store.resolve()), **channel)
        measure_instant(table, bodies, folder, rounds, seconds)
        measure_model(table, "int8", ours, int8, bodies, folder, rounds, seconds)
        if onnx is not None:
            _measure_fp32(table, store, onnx, bodies, folder, rounds, seconds)
        peers = [make(peer, int8) for peer, make in PEERS.items()]
        measure_cold_starts(table, [ours, *peers], folder, rounds)
    return lines(table)


def _measure_fp32(
    table: Table, store: Path, onnx: Path, bodies: Bodies, folder: Path, rounds: int, seconds: float
) -> None:
    from bench.full_precision import make_release

    release = make_release(folder / "fp32-store", _canary(store, Path(DEFAULT_TRUST_ROOT).resolve()), onnx)
    stack = runtime(OURS, "bench.full_precision_asgi:app", BENCH_RELEASE=str(release.directory))
    model = model_folder(release, release.read(release.manifest.artifact), folder / "fp32")
    measure_model(table, "fp32", stack, model, bodies, folder, rounds, seconds)


def _canary(store: Path, trust: Path) -> Release:
    reader = ReleaseStore(store, Trust.load(trust))
    entry = reader.current("emulator", "canary")
    if entry is None:
        raise SystemExit(f"{store}: canary names no release; `make smoke` makes one")
    return reader.open(entry.release)


def write(path: Path, told: Sequence[str]) -> None:
    """Put the table between its markers."""
    text = path.read_text()
    before, rest = text.split(MARKERS[0], 1)
    after = rest.split(MARKERS[1], 1)[1]
    path.write_text("\n".join([before + MARKERS[0], *told, MARKERS[1] + after]))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--store", type=Path, default=ROOT / "artifacts" / "releases")
    built = sorted((ROOT / "artifacts" / "build" / "onnx_model").glob("*/encoder.onnx"))
    parser.add_argument("--onnx", type=Path, default=built[-1] if built else None, help="the onnx_model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in a document")
    options = parser.parse_args(argv)
    if not PEERS_PYTHON.exists():
        raise SystemExit("the peers are not installed: `make bench-peers`")
    told = measure(options.store, options.onnx, options.rounds, options.seconds)
    told = [f"{machine()}; {options.rounds} rounds of {options.seconds:g} s, medians", "", *told]
    if options.onnx is None:
        told += [
            "",
            "The fp32 rows were not measured: no onnx_model in artifacts/build; `make smoke` makes one.",
        ]
    print("\n".join(told))
    if options.write:
        write(options.write, told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
