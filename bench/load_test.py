"""The load that was asked for: 2,000 windows at 20 and at 200 a second, on one core, from the other.

``python -m bench.load_test [--store artifacts/releases]`` prints p50, p95, p99 and the share of a core that
the server takes, beside what they must not exceed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.serving import machine
from bench.stacks import running, runtime
from runtime.contract.trust import DEFAULT_TRUST_ROOT
from tests.simulators import ROOT, imu_windows, infer_body

WINDOWS: Final = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.load_test", description=__doc__)
    parser.add_argument("--store", type=Path, default=ROOT / "artifacts" / "releases")
    options = parser.parse_args(argv)
    settings = {"RELEASE_STORE": str(options.store.resolve()), "RELEASE_CHANNEL": "canary"}
    settings |= {"TRUST_ROOT": str(Path(DEFAULT_TRUST_ROOT).resolve())}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = folder / "body.json"
        body.write_bytes(infer_body(imu_windows(1, seed=5)[0]))
        with running([runtime("ours", "runtime.asgi:app", **settings)], folder) as (server,):
            server.paced(50, 50, body)
            for rate in (20, 200):
                found = server.paced(rate, WINDOWS, body)
                latencies = found["latencies_ms"]
                p50, p95, p99 = (latencies[WINDOWS * share // 100] for share in (50, 95, 99))
                late = sum(latency > 45 for latency in latencies)
                rows.append(
                    f"| {WINDOWS} at {rate}/s | {p50:.2f} ms | {p95:.2f} ms | {p99:.2f} ms | {late} "
                    f"| {found['cpu']:.1%} |"
                )
    print(f"{machine()}; measured, the encoder itself emulated (int8)\n")
    print("| windows | p50 | p95 (at most 50 ms) | p99 | later than 45 ms | CPU of a core (at most 40 %) |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
