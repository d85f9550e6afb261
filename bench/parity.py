"""Parity: what good builds have, what each kind of gate would let through, and how long a report takes.

``WEIGHTS_DIR`` names the weights, else the sample's. Windows are synthetic: ``sample.motions``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assets import policy
from assets.hef import make_hef
from assets.metrics import LatentScale
from assets.motif_head import fit_head
from assets.onnx_model import canonical_graph
from assets.parity import hold_against_champion, judge, make_parity_report
from assets.quantized_har import make_quantized_har
from assets.toolchain.emulator import EmulatorToolchain
from bench.serving import machine
from runtime.contract.motifs import MotifScorer
from runtime.contract.window import FloatArray, normalize
from tests.builder import Builder, good_windows, with_mistake, write_sets
from tests.chain import SAMPLE_WEIGHTS
from tests.mistakes import MISTAKES

DRAWS = (201, 202, 203, 204, 205)
COSINE_GATE = 0.95
SQNR_GATE_DB = 10.0
"""A rule of thumb of Hailo's community for a quantized network."""


@dataclass(frozen=True)
class Bench:
    """An encoder, and what full_precision says to good evaluation windows that no calibration saw."""

    builder: Builder
    toolchain: EmulatorToolchain
    windows: FloatArray
    scale: LatentScale
    reference: FloatArray

    @classmethod
    def of(cls, builder: Builder) -> Bench:
        """With the policy's own notion of active dimensions and clear margins."""
        toolchain, trained, judge_by = EmulatorToolchain(), builder.trained, policy.load_policy()
        parsed = toolchain.parse(canonical_graph(trained.encoder))
        windows = normalize(builder.good["evaluation"][0], trained.statistics)
        calibration = normalize(builder.good["calibration"][0], trained.statistics)
        reference = toolchain.infer(parsed, windows)
        head = trained.head or fit_head(toolchain.infer(parsed, calibration))
        scale = LatentScale(
            reference,
            MotifScorer(head),
            active_share=judge_by.active_share,
            clear_margin=judge_by.clear_margin,
        )
        return cls(builder, toolchain, windows, scale, reference)

    def metrics(self, calibration: FloatArray) -> dict[str, float]:
        """Of an artifact calibrated with these windows, past every input gate."""
        parsed = self.toolchain.parse(canonical_graph(self.builder.trained.encoder))
        normalized = normalize(calibration, self.builder.trained.statistics)
        quantized = self.toolchain.optimize(parsed, normalized)
        return self.scale.metrics(self.reference, self.toolchain.infer(quantized, self.windows))


def typical(bench: Bench) -> str:
    """Smallest and largest value of each metric over good draws of 256 and 1200 windows."""
    found = [
        bench.metrics(good_windows(seed, count)["calibration"][0]) for seed in DRAWS for count in (256, 1200)
    ]
    lines = ["| metric | smallest | largest |", "|---|---|---|"]
    for name in found[0]:
        values = [metrics[name] for metrics in found]
        lines.append(f"| {name} | {min(values):.4g} | {max(values):.4g} |")
    return "\n".join([f"{len(found)} good builds:", "", *lines])


def mistakes(bench: Bench) -> str:
    """Who would refuse each mistake of the calibration set, each gate asked alone."""
    lines = [
        "| mistake | mean cosine | SQNR dB | worst active dB | p99 sd | cosine 0.95 | SQNR 10 dB | parity "
        "policy | input gate, and both sets |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    passed = [0, 0, 0, 0]
    builder, judge_by = bench.builder, policy.load_policy()
    for mistake in MISTAKES.values():
        drawn = with_mistake(mistake, builder.good, builder.trained, everywhere=False)
        metrics = bench.metrics(drawn["calibration"][0])
        result = judge(metrics, judge_by, artifact_sha256="0" * 64, provenance="emulated", windows=480)
        lets = [
            metrics["mean_cosine"] >= COSINE_GATE,
            metrics["sqnr_db"] >= SQNR_GATE_DB,
            result.passed,
            not builder.refuses(drawn),
        ]
        passed = [count + let for count, let in zip(passed, lets, strict=True)]
        both = not builder.refuses(with_mistake(mistake, builder.good, builder.trained, everywhere=True))
        shown = ["passes" if let else "refuses" for let in lets]
        numbers = [f"{metrics['mean_cosine']:.4f}", f"{metrics['sqnr_db']:.1f}"]
        numbers += [f"{metrics['worst_active_sqnr_db']:.1f}", f"{metrics['p99_error_sd']:.2f}"]
        last = f"{shown.pop()}, {'passes' if both else 'refuses'}"
        lines.append(f"| {mistake.name} | {' | '.join([*numbers, *shown, last])} |")
    names = ("cosine 0.95", "SQNR 10 dB", "the policy", "the input gate")
    summary = ", ".join(f"{name} passes {count}" for name, count in zip(names, passed, strict=True))
    return "\n".join([*lines, "", f"Of {len(MISTAKES)} mistakes: {summary}."])


def report_time(builder: Builder) -> str:
    """How long one report takes, beside the optimization that it judges."""
    from assets.calibration import make_calibration_set

    folder = builder.root / "timed"
    write_sets(folder, builder.good)
    windows, _ = make_calibration_set(builder.bench, folder)
    begin = time.perf_counter()
    har = make_quantized_har(
        builder.bench, builder.toolchain, onnx_model=builder.onnx, calibration_set=windows
    )
    optimized = time.perf_counter()
    hef = make_hef(builder.bench, builder.toolchain, quantized_har=har)
    compiled = time.perf_counter()
    product, evidence = make_parity_report(builder.bench, builder.toolchain, hef=hef)
    judged = hold_against_champion(
        builder.bench, builder.toolchain, builder.store, hef=hef, parity_report=product
    )
    judged.report()
    done = time.perf_counter()
    taken, optimizing = done - compiled, optimized - begin
    return (
        f"Parity report of {evidence.result.windows} windows, drawn: {taken:.1f} s (aim: at most 30 s), "
        f"{taken / optimizing:.2f}x of the optimization before it ({optimizing:.1f} s)."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
    parser.add_argument("--mistakes", action="store_true", help="also the table of mistakes")
    options = parser.parse_args(argv)
    weights = Path(os.environ.get("WEIGHTS_DIR") or SAMPLE_WEIGHTS)
    with tempfile.TemporaryDirectory() as place:
        builder = Builder(Path(place), weights)
        print(f"{machine()}\n")
        print(report_time(builder), end="\n\n")
        bench = Bench.of(builder)
        print(typical(bench), end="\n\n")
        if options.mistakes:
            print(mistakes(bench))
    return 0


if __name__ == "__main__":
    sys.exit(main())
