"""What telemetry costs clients: without it, with it, and with every window kept, interleaved.

``python -m bench.telemetry [--rounds 5] [--seconds 20] [--rate 50]`` sends windows at a fixed rate to
runtimes that serve the same release; prints p50, p99 and CPU of the worker, and the medians of each round's
ratio to the round without. A second runtime without telemetry says what is noise. From 64 windows/s more are
worth keeping than a line of 64, emptied once a second, takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from bench.serving import machine
from bench.shadow import Figures, cpu_seconds
from tests.keys import use_test_keys
from tests.simulators import ReleaseSimulator, RuntimeServer, imu_windows, infer_body, running_server

OFF: Final = "without"
ON: Final = "with it"
ALL: Final = "every window kept"
MODES: Final = (OFF, "without, again", ON, ALL)
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    ON: {},
    ALL: {"TELEMETRY_MARGIN": "1", "TELEMETRY_PER_MINUTE": "60000"},
}


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, RuntimeServer]]:
    """One runtime for each mode, on one store."""
    use_test_keys()
    store = folder / "store"
    ReleaseSimulator(calibrated=True).publish(store, "stable")
    with ExitStack() as stack:
        started = {}
        for number, mode in enumerate(MODES):
            logs = folder / str(number)
            logs.mkdir()
            settings = {"RELEASE_STORE": str(store)}
            if mode in SETTINGS:
                settings |= {"TELEMETRY_DIR": str(logs / "telemetry"), **SETTINGS[mode]}
            started[mode] = stack.enter_context(running_server(logs, **settings))
        yield started


def one_round(
    started: Mapping[str, RuntimeServer],
    bodies: Sequence[bytes],
    rate: float,
    seconds: float,
    into: Mapping[str, Figures],
) -> None:
    """Send to one runtime after the other, each at the rate: what else the machine does meets all alike."""
    workers = {mode: server.children() for mode, server in started.items()}
    before = {mode: cpu_seconds(pids) for mode, pids in workers.items()}
    latencies: dict[str, list[float]] = {mode: [] for mode in started}
    with ExitStack() as stack:
        clients = {
            mode: stack.enter_context(httpx.Client(base_url=server.url, timeout=10))
            for mode, server in started.items()
        }
        begin = time.perf_counter()
        for number in range(round(rate * seconds)):
            first = number % len(MODES)
            for place, mode in enumerate(MODES[first:] + MODES[:first]):
                due = begin + (number + place / len(MODES)) / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                # From when it is sent: one that is late because of another mode's is not its own delay.
                sent = time.perf_counter()
                answer = clients[mode].post("/infer", content=bodies[number % len(bodies)])
                latencies[mode].append(1000 * (time.perf_counter() - sent))
                if answer.status_code != 200:
                    raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
        passed = time.perf_counter() - begin
    for mode, figures in into.items():
        found = sorted(latencies[mode])
        figures.p50_ms.append(found[len(found) // 2])
        figures.p99_ms.append(found[len(found) * 99 // 100])
        figures.cpu.append((cpu_seconds(workers[mode]) - before[mode]) / passed)


def measure(rounds: int, seconds: float, rate: float) -> tuple[dict[str, Figures], dict[str, Any]]:
    """Interleaved window by window; a first round is not counted.

    Returns:
        Figures of each mode, and what ``/healthz`` says of telemetry at the end.
    """
    bodies = [infer_body(window) for window in imu_windows(200, seed=9)]
    found = {mode: Figures() for mode in MODES}
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as started:
        one_round(started, bodies, rate, 2.0, {mode: Figures() for mode in MODES})
        for _ in range(rounds):
            one_round(started, bodies, rate, seconds, found)
        told = {
            mode: httpx.get(f"{server.url}/healthz").json()["telemetry"] for mode, server in started.items()
        }
    return found, told


def lines(found: dict[str, Figures], told: dict[str, Any], rate: float) -> list[str]:
    """A table with ratios."""
    table = [f"| at {rate:g} windows/s | " + " | ".join(MODES) + " |", "|---|" + "---|" * len(MODES)]
    for name, title, unit, scale in (
        ("p50_ms", "p50", "ms", 1.0),
        ("p99_ms", "p99", "ms", 1.0),
        ("cpu", "CPU of the worker", "% of a core", 100.0),
    ):
        base: list[float] = getattr(found[OFF], name)
        cells = []
        for mode in MODES:
            values: list[float] = getattr(found[mode], name)
            cell = f"{statistics.median(values) * scale:.3g} {unit}"
            if mode != OFF:
                ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
                cell += f", {ratio:.2f}x"
            cells.append(cell)
        table.append(f"| {title} | " + " | ".join(cells) + " |")
    kept = [
        f"{sum(told[mode]['kept'].values())} kept, {sum(told[mode]['dropped'].values())} dropped"
        if told[mode]
        else ""
        for mode in MODES
    ]
    table.append("| windows | " + " | ".join(kept) + " |")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=50.0)
    options = parser.parse_args(argv)
    found, told = measure(options.rounds, options.seconds, options.rate)
    print(f"{machine()}; {options.rounds} rounds of {options.seconds:g} s, medians; tests' tiny encoder")
    print("\n".join(["", *lines(found, told, options.rate)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
