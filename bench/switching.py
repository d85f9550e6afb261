"""Releases switched under load: nothing lost, nothing wrong, and how late answers become.

``python -m bench.switching [--switches 40] [--rate 200] [--quiet 1.5] [--configure-ms 300]``; with
``--configure-ms`` beside the double of HailoRT, whose ``configure`` holds the GIL for as long. Each answer
must be, digit by digit, what the release that it names gives, or a 503 that says that it would be too late:
such a one is counted apart, and as late. Time is cut into the switches (from the move in
the store until a second after the first answer of the new release) and the control between them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from bench.serving import machine
from runtime.contract.errors import DeviceInUseError
from runtime.contract.store import Release
from tests.doubles.hailo import HailoDouble
from tests.keys import KEY_OF, a_store, use_test_keys
from tests.simulators import (
    ROOT,
    ReleaseSimulator,
    RuntimeServer,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

DEADLINE_MS: Final = 45.0
AFTER_SECONDS: Final = 1.0
REFUSED: Final = ("overloaded", DeviceInUseError.code)
REFUSED_MS: Final = DEADLINE_MS + 1.0
"""Of a request that was told 503, at least: for its client it is as good as late."""


@dataclass
class Outcome:
    """What a run gave; times in ms."""

    switches: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    during: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    stall: str = ""

    def lines(self) -> list[str]:
        """For people."""
        rows = ["| time | requests | p50 ms | p99 ms | largest ms | later than 45 ms |", "|---|" + "---|" * 5]
        for name, values in (("switching", self.during), ("control", self.control)):
            found = sorted(values) or [float("nan")]
            middle, nearly_all = found[len(found) // 2], found[len(found) * 99 // 100]
            late = sum(value > DEADLINE_MS for value in values) / max(1, len(values))
            rows.append(
                f"| {name} | {len(values)} | {middle:.2f} | {nearly_all:.2f} | {found[-1]:.1f} | {late:.3%} |"
            )
        waits = sorted(self.noticed) or [float("nan")]
        return [
            *rows,
            "",
            f"{self.switches} switches, {len(self.lost)} lost, {len(self.wrong)} wrong, "
            f"{self.refused} told 503 in place of a late answer",
            *self.lost[:3],
            *self.wrong[:3],
            f"from move to service: median {waits[len(waits) // 2]:.2f} s, largest {waits[-1]:.2f} s",
            self.stall,
        ]


@contextlib.contextmanager
def load(port: int, rate: float, seconds: float, body: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The load generator, ended at the end of the block."""
    command = [sys.executable, "-m", "bench.open_loop", str(port), str(rate), str(seconds), str(body)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None and process.stdin and not process.stdin.closed:
                process.stdin.close()


def switch(
    store: Path, server: RuntimeServer, releases: Sequence[Release], count: int, quiet: float, rate: float
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Move the channel to and fro; returns when each move was made and seen, and what the load saw."""
    moves: list[tuple[float, float]] = []
    body = store.parent / "body.json"
    body.write_bytes(infer_body(imu_windows(1, seed=5)[0]))
    writer = a_store(store, accepts_doubles=True)
    with load(server.port, rate, count * (quiet + 20) + 60, body) as process, httpx.Client() as client:
        for number in range(count):
            time.sleep(quiet)
            release = releases[(number + 1) % len(releases)]
            begin = time.monotonic()
            writer.point("stable", release, actor="bench", reason="a switch", key=KEY_OF["stable"])

            def serves(wanted: str = release.id) -> bool:
                return bool(client.get(f"{server.url}/healthz").json().get("release") == wanted)

            wait_for(serves, f"switch {number}")
            moves.append((begin, time.monotonic()))
        time.sleep(AFTER_SECONDS + quiet)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        told = json.loads(process.stdout.read())
    return moves, told


def judged(
    moves: Sequence[tuple[float, float]], told: dict[str, Any], releases: Sequence[Release]
) -> Outcome:
    """Hold each answer against its release, and put it into its part of the time."""
    outcome = Outcome(switches=len(moves), lost=list(told["lost"]))
    known: dict[str, int] = {}
    sizes = {release.id: release.manifest.motif_head.size for release in releases}
    spans = [(begin, seen + AFTER_SECONDS) for begin, seen in moves]
    outcome.noticed = [seen - begin for begin, seen in moves]
    for due, ms, status, release, body in told["answers"]:
        answer = json.loads(told["bodies"][body])
        scores = answer.get("motif_scores", [])
        if status == 503 and answer.get("error") in REFUSED:
            # While HailoRT configures, or a golden window of the new release runs, on a busy machine.
            outcome.refused += 1
            ms = max(ms, REFUSED_MS)
        elif status != 200 or len(scores) != sizes.get(release) or known.setdefault(release, body) != body:
            outcome.wrong.append(f"{status} {release[:12]} {told['bodies'][body][:200]}")
        inside = any(begin <= due <= end for begin, end in spans)
        (outcome.during if inside else outcome.control).append(ms)
    if len(set(known.values())) != len(known):
        outcome.wrong.append("two releases gave the same answer: the run proves nothing")
    return outcome


def measure(count: int, rate: float, quiet: float, configure_ms: int | None = None) -> Outcome:
    """One run with a server of its own."""
    use_test_keys()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store, environment, target = root / "store", {}, "emulator"
        if configure_ms is not None:
            double = HailoDouble(root / "chip", configure_ms=configure_ms)
            environment, target = double.environment, "hailo8"
        simulated = [ReleaseSimulator(target=target, motifs=motifs) for motifs in (12, 13)]
        releases = [one.publish(store) for one in simulated]
        a_store(store, accepts_doubles=True).point(
            "stable", releases[0], actor="bench", reason="first", key=KEY_OF["stable"]
        )
        settings = {"RELEASE_STORE": str(store), "LOG_LEVEL": "WARNING"} | environment
        with running_server(root, **settings) as server:
            moves, told = switch(store, server, releases, count, quiet, rate)
            outcome = judged(moves, told, releases)
            outcome.stall = stall(httpx.get(f"{server.url}/metrics").text)
    return outcome


def stall(metrics: str) -> str:
    """The runtime's own measurement, in a sentence."""
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("hailo_switch_"))
    count = float(values["hailo_switch_stall_seconds_count"])
    mean = float(values["hailo_switch_stall_seconds_sum"]) / max(1, count)
    within = float(values['hailo_switch_stall_seconds_bucket{le="0.045"}'])
    seconds = float(values["hailo_switch_duration_seconds_sum"]) / max(1, count)
    return (
        f"hailo_switch_stall_seconds: mean {mean * 1000:.1f} ms, {within:.0f} of {count:.0f} within 45 ms; "
        f"loading took {seconds * 1000:.0f} ms in the mean"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.switching", description=__doc__)
    parser.add_argument("--switches", type=int, default=40)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument(
        "--quiet", type=float, default=1.5, help="seconds between a switch's end and the next move"
    )
    parser.add_argument(
        "--configure-ms", type=int, help="beside the double of HailoRT, whose configure takes this"
    )
    options = parser.parse_args(argv)
    outcome = measure(options.switches, options.rate, options.quiet, options.configure_ms)
    kind = (
        "emulator" if options.configure_ms is None else f"HailoRT double, configure {options.configure_ms} ms"
    )
    print(f"{machine()}; {kind}, {options.rate:g} requests/s\n")
    print("\n".join(outcome.lines()))
    return 1 if outcome.lost or outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
