"""What the HailoRT engine's own Python costs for one window, beside the double that stands for the chip.

``python -m bench.hailo_engine [--windows 2000]`` prints a Markdown table. The double's own time (its
thread, and the ONNX graph that it runs) is measured inside it and taken off: what is left is ours,
the aim is below 0.3 ms. It says nothing of a chip.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from bench.serving import machine
from runtime.engines.hailo import HailoEngine
from tests.doubles.hailo import PLACE, HailoDouble
from tests.simulators import ReleaseSimulator, imu_windows

AIM_MS: Final = 0.3
_CALLS: Final = ("wait_for_async_ready", "run_async", "wait")


class _Inside:
    """Sums up what is spent in calls into HailoRT."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **named: Any) -> Any:
            begin = perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += perf_counter() - begin

        return inner


def measure(windows: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each window: in the engine altogether, and without HailoRT's double."""
    whole, own = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        double = HailoDouble(root / "chip", configure_ms=0)
        os.environ["HAILO_DOUBLE"] = str(double.folder)
        sys.path.insert(0, str(PLACE))
        from hailo_platform.pyhailort import pyhailort

        inside = _Inside()
        configured, job = pyhailort.ConfiguredInferModel, pyhailort.AsyncInferJob
        for kind, name in zip((configured, configured, job), _CALLS, strict=True):
            setattr(kind, name, inside.timed(getattr(kind, name)))
        release = ReleaseSimulator(target="hailo8").publish(root / "store")
        given = imu_windows(64)
        with HailoEngine(release, root) as engine:
            for number in range(windows + 100):
                before, begin = inside.seconds, perf_counter()
                engine.infer(given[number % len(given)])
                took = perf_counter() - begin
                if number >= 100:
                    whole.append(took * 1000)
                    own.append((took - (inside.seconds - before)) * 1000)
    return whole, own


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.hailo_engine", description=__doc__)
    parser.add_argument("--windows", type=int, default=2000)
    options = parser.parse_args(argv)
    whole, own = measure(options.windows)
    print(f"{machine()}; {options.windows} windows, aim {AIM_MS} ms for the engine's own Python\n")
    print("| ms for one window | p50 | p99 |\n|---|---|---|")
    for name, values in (("engine's own Python", own), ("with the double", whole)):
        ordered = sorted(values)
        print(f"| {name} | {statistics.median(ordered):.3f} | {ordered[len(ordered) * 99 // 100]:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
