"""The emulator's ranges beside onnxruntime's own: how near int8 comes to full_precision with each."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from assets.calibration import parse_sets, read_files
from assets.metrics import sqnr_db
from assets.onnx_model import canonical_graph
from assets.toolchain import Built
from assets.toolchain.emulator import EmulatorToolchain
from assets.toolchain.emulator_quantize import WindowReader, quantize_graph
from assets.version_folder import find_version
from assets.weights import TrainedModel, parse_model
from assets.weights import read_files as read_weights
from bench.serving import machine
from runtime.contract.window import FloatArray, normalize
from sample.motions import MOTIFS, draw_set

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Draw:
    """SQNR at the output, dB, of one calibration draw under both range policies."""

    seed: int
    default_db: float
    ours_db: float
    seconds: float

    @property
    def gain_db(self) -> float:
        """What our ranges gain."""
        return self.ours_db - self.default_db


def default_ranges(parsed: Built, windows: FloatArray, toolchain: EmulatorToolchain) -> Built:
    """The same graph with the same settings, and the ranges that onnxruntime finds by itself."""
    model = onnx.load_from_string(parsed.data)
    quantized = quantize_graph(model, WindowReader(windows), reduce_range=toolchain.reduce_range)
    data = quantized.SerializeToString()
    return Built(stage="quantized", kind="emulated-int8", suffix=".onnx", data=data)


def compare_ranges(trained: TrainedModel, *, seeds: Sequence[int], count: int) -> list[Draw]:
    """Quantize with both policies, and judge on the committed evaluation windows.

    Args:
        trained: The encoder.
        seeds: One calibration draw of the sample's motions each.
        count: Windows in a draw.
    """
    toolchain = EmulatorToolchain()
    parsed = toolchain.parse(canonical_graph(trained.encoder))
    sets = parse_sets(read_files(ROOT / "calib_data"))
    evaluation = normalize(sets.evaluation.windows, trained.statistics)
    reference = toolchain.infer(parsed, evaluation)
    draws = []
    for seed in seeds:
        drawn = draw_set(-(-count // len(MOTIFS)), seed)[0][:count]
        windows = normalize(drawn, trained.statistics)
        begin = time.perf_counter()
        ours = toolchain.optimize(parsed, windows)
        seconds = time.perf_counter() - begin
        built = (default_ranges(parsed, windows, toolchain), ours)
        default_db, ours_db = (sqnr_db(reference, toolchain.infer(one, evaluation)) for one in built)
        draws.append(Draw(seed, default_db, ours_db, seconds))
    return draws


def table(draws: Sequence[Draw]) -> str:
    """The draws and their medians as Markdown."""
    lines = ["| calibration draw | onnxruntime's ranges, dB | ours, dB | gain, dB | optimize, s |"]
    lines.append("|---|---|---|---|---|")
    rows = [(str(d.seed), d.default_db, d.ours_db, d.gain_db, d.seconds) for d in draws]
    columns = list(zip(*(row[1:] for row in rows), strict=True))
    default, ours, gain, seconds = (statistics.median(column) for column in columns)
    rows.append(("median", default, ours, gain, seconds))
    lines += [f"| {name} | {a:.2f} | {b:.2f} | {c:+.2f} | {s:.1f} |" for name, a, b, c, s in rows]
    return "\n".join([*lines, "", "Aim on the user's encoder: median gain at least 1 dB, and none below 0."])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; ``WEIGHTS_DIR`` names the weights, else the sample's."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranges", description=__doc__)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--first-seed", type=int, default=100)
    given = parser.parse_args(argv)
    weights = Path(os.environ.get("WEIGHTS_DIR") or ROOT / "artifacts" / "weights")
    version = find_version(weights)
    seeds = range(given.first_seed, given.first_seed + given.draws)
    draws = compare_ranges(parse_model(read_weights(version)), seeds=seeds, count=given.windows)
    print(f"{machine()}; {version.parent.name} {version.name}, draws of {given.windows} windows\n")
    print(table(draws))
    return 0


if __name__ == "__main__":
    sys.exit(main())
