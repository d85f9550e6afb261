"""What a canary beside stable costs stable's clients: interleaved rounds with and without one.

``python -m bench.shadow [--rounds 5] [--seconds 10] [--rate 20]`` sends windows at a fixed rate to two
runtimes that serve the same stable, one of them with ``CANARY_MODE=shadow``; prints p50, p99 and CPU of each,
and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from bench.serving import machine
from tests.keys import use_test_keys
from tests.simulators import (
    ReleaseSimulator,
    RuntimeServer,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

MODES: Final = ("off", "shadow")


@dataclass
class Figures:
    """Of one mode, a number for each round."""

    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    child_cpu: list[float] = field(default_factory=list)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Of all threads of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def one_round(
    server: RuntimeServer, bodies: Sequence[bytes], rate: float, seconds: float, into: Figures
) -> None:
    """Send at a fixed rate, each window when it is due; latencies from then on."""
    (worker,) = server.children()
    child = children_of(worker)
    before, child_before, latencies = cpu_seconds([worker]), cpu_seconds(child), list[float]()
    with httpx.Client(base_url=server.url, timeout=10) as client:
        begin = time.perf_counter()
        for number in range(round(rate * seconds)):
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            answer = client.post("/infer", content=bodies[number % len(bodies)])
            latencies.append(1000 * (time.perf_counter() - due))
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
        passed = time.perf_counter() - begin
    latencies.sort()
    into.p50_ms.append(latencies[len(latencies) // 2])
    into.p99_ms.append(latencies[len(latencies) * 99 // 100])
    into.cpu.append((cpu_seconds([worker]) - before) / passed)
    into.child_cpu.append((cpu_seconds(child) - child_before) / passed)


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, RuntimeServer]]:
    """One runtime for each mode, on one store."""
    use_test_keys()
    store = folder / "store"
    ReleaseSimulator(version="v1").publish(store, "canary", "stable")
    ReleaseSimulator(version="v2").publish(store, "canary")
    with ExitStack() as stack:
        started = {}
        for mode in MODES:
            logs = folder / mode
            logs.mkdir()
            settings = {"RELEASE_STORE": str(store), "CANARY_MODE": mode}
            started[mode] = stack.enter_context(running_server(logs, **settings))
        shadowed = started["shadow"]

        def running() -> bool:
            told = httpx.get(f"{shadowed.url}/healthz").json()["shadow"]
            return bool(told["state"] == "running")

        wait_for(running, "a canary beside stable", 60)
        yield started


def measure(rounds: int, seconds: float, rate: float) -> dict[str, Figures]:
    """Interleaved; the first round is not counted."""
    bodies = [infer_body(window) for window in imu_windows(20, seed=9)]
    found = {mode: Figures() for mode in MODES}
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as started:
        for number in range(rounds + 1):
            order = MODES if number % 2 else MODES[::-1]
            for mode in order:
                into = found[mode] if number else Figures()
                one_round(started[mode], bodies, rate, seconds if number else 2.0, into)
    return found


def lines(found: dict[str, Figures], rate: float) -> list[str]:
    """A table with ratios."""
    told = [
        f"| at {rate:g} windows/s | without | with a canary beside | ratio |",
        "|---|---|---|---|",
    ]
    for name, unit, scale in (("p50_ms", "ms", 1.0), ("p99_ms", "ms", 1.0), ("cpu", "% of a core", 100.0)):
        off, on = (statistics.median(getattr(found[mode], name)) * scale for mode in MODES)
        title = "CPU of the worker" if name == "cpu" else name.removesuffix("_ms")
        told.append(f"| {title} | {off:.3g} {unit} | {on:.3g} {unit} | {on / off:.2f}x |")
    child = 100 * statistics.median(found["shadow"].child_cpu)
    told.append(f"| CPU of the canary's process, lowest priority | | {child:.3g} % of a core | |")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.shadow", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=20.0)
    options = parser.parse_args(argv)
    found = measure(options.rounds, options.seconds, options.rate)
    print(f"{machine()}; {options.rounds} rounds of {options.seconds:g} s, medians; tests' tiny encoder")
    print("\n".join(["", *lines(found, options.rate)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
