"""What an engine costs beside a bare ONNX Runtime loop over windows that are already preprocessed.

``python -m bench.engine [--store STORE] [--rounds 15] [--windows 640]`` prints a Markdown table.
Variants are measured in turn within a round, and a ratio is one of neighbours: a machine that slows
down slows all of them. The graph is the int8 one that ``canary`` of the store names; without
``--store`` the tiny encoder in float32, as tests use it. ``TRUST_ROOT`` names the root that the
store is held against. No HTTP.
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
from typing import Final

import numpy as np
import onnxruntime as ort

from bench.serving import machine
from runtime.contract.store import Release
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import Trust
from runtime.contract.window import (
    GRAPH_INPUT_NAME,
    GRAPH_OUTPUT_NAME,
    FloatArray,
    normalize,
    to_graph_layout,
)
from runtime.engines import Engine
from runtime.engines.emulator import EmulatorEngine
from tests.simulators import ReleaseSimulator, imu_windows

_BARE: Final = "bare onnxruntime loop"
_BATCHES: Final = (1, 8, 32)


def _bare(release: Release, windows: FloatArray) -> Callable[[], object]:
    """The loop that everything is compared with: one thread, as the engine's own session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = release.read(release.manifest.artifact)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    normalized = normalize(windows, release.manifest.input.normalization)
    tensors = [to_graph_layout(window) for window in normalized]
    return lambda: [session.run([GRAPH_OUTPUT_NAME], {GRAPH_INPUT_NAME: tensor}) for tensor in tensors]


def _batched(engine: Engine, windows: FloatArray, size: int) -> Callable[[], object]:
    parts = [windows[start : start + size] for start in range(0, len(windows), size)]
    return lambda: [engine.infer_batch(part) for part in parts]


def measure(release: Release, rounds: int, count: int) -> dict[str, list[float]]:
    """Microseconds for one window, of each variant in each round."""
    windows = imu_windows(count)
    with EmulatorEngine(release) as engine:
        variants = {_BARE: _bare(release, windows)}
        variants["infer"] = lambda: [engine.infer(window) for window in windows]
        variants |= {f"infer_batch({size})": _batched(engine, windows, size) for size in _BATCHES}
        for run in variants.values():
            run()
        found: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, run in variants.items():
                begin = perf_counter()
                run()
                found[name].append((perf_counter() - begin) * 1e6 / count)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--store", type=Path, help="a store whose canary is measured; default: a tiny model")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--windows", type=int, default=640)
    options = parser.parse_args(argv)
    if options.store is not None and "TRUST_ROOT" not in os.environ:
        parser.error("TRUST_ROOT has to name the root that the store is held against")
    with tempfile.TemporaryDirectory() as folder:
        if options.store is None:
            release = ReleaseSimulator().publish(Path(folder))
        else:
            release = StoreReader(
                options.store.resolve(), Trust.load(Path(os.environ["TRUST_ROOT"]))
            ).resolve("emulator", "canary")
        found = measure(release, options.rounds, options.windows)
    graph = "the tiny encoder, float32" if options.store is None else release.manifest.artifact
    print(
        f"{machine()}; {graph}; measured, {options.rounds} interleaved rounds of {options.windows} windows\n"
    )
    print("| variant | µs for one window, median | of the bare loop's rate, median of rounds | lowest |")
    print("|---|---|---|---|")
    for name, values in found.items():
        shares = np.divide(found[_BARE], values) * 100
        print(
            f"| {name} | {statistics.median(values):.1f} | {np.median(shares):.0f} % | {shares.min():.0f} % |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
