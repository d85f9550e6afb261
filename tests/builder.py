"""Builds one encoder with whatever windows, as the chain does, until a gate refuses."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from assets.calibration import (
    INDEX,
    SetRecord,
    WindowIndex,
    WindowSet,
    describe_set,
    make_calibration_set,
    make_set,
    read_files,
)
from assets.champion import sqnr_by_window
from assets.hef import make_hef
from assets.input_gate import FEWEST, gate_for_model
from assets.onnx_model import make_onnx_model
from assets.parity import hold_against_champion, make_parity_report
from assets.product import Product, Workbench
from assets.quantized_har import make_quantized_har, take_built
from assets.strata import define_strata
from assets.toolchain.emulator import EmulatorToolchain
from assets.weights import TrainedModel, make_model_weights
from runtime.contract.document import to_json
from runtime.contract.errors import CalibrationError
from runtime.contract.window import FloatArray, normalize
from sample import motions
from tests.chain import CALIB_DATA
from tests.keys import BUILD, MANAGER, a_store
from tests.mistakes import Labels, Mistake

Drawn = tuple[FloatArray, Labels]


@dataclass(frozen=True)
class Outcome:
    """What became of a build.

    Args:
        refused_by: ``input gate``, ``parity``, ``champion``, or empty where it was let through.
        reasons: What was said, in one line.
        sqnr_db: Of the artifact on good windows, each counted alike; none where there is no artifact.
    """

    refused_by: str
    reasons: str
    sqnr_db: float


class Builder:
    """Builds one encoder with whatever windows, as the chain does, beside a champion made of good ones."""

    def __init__(self, root: Path, weights: Path) -> None:
        self.root, self.bench, self.toolchain = root, Workbench(root / "bench"), EmulatorToolchain()
        self.weights, self.trained = make_model_weights(self.bench, weights)
        self.store = a_store(root / "releases")
        self.good = good_windows(100)
        golden = self.good["golden"][0]
        self.onnx, _ = make_onnx_model(self.bench, model_weights=self.weights, golden=golden)

    def build(self, drawn: dict[str, Drawn], *, beside_champion: bool = True) -> Outcome:
        """Every link with these windows, until one refuses."""
        folder = self.root / "windows"
        write_sets(folder, drawn)
        try:
            hef = self._artifact(folder)
            report, evidence = make_parity_report(self.bench, self.toolchain, hef=hef)
        except CalibrationError as error:
            return Outcome("input gate", str(error), np.nan)
        sqnr = self._on_good_windows(hef)
        if not evidence.result.passed:
            return Outcome("parity", "; ".join(evidence.result.failures), sqnr)
        if not beside_champion:
            return Outcome("", "", sqnr)
        judged = hold_against_champion(self.bench, self.toolchain, self.store, hef=hef, parity_report=report)
        if not judged.champion.passed:
            return Outcome("champion", "; ".join(judged.champion.failures), sqnr)
        return Outcome("", "", sqnr)

    def refuses(self, drawn: dict[str, Drawn]) -> bool:
        """Whether the input gate refuses these windows."""
        folder = self.root / "asked"
        write_sets(folder, drawn)
        try:
            _, sets = make_calibration_set(self.bench, folder)
            gate_for_model(sets, self.trained.statistics, self.toolchain.target)
        except CalibrationError:
            return True
        return False

    def crown(self) -> float:
        """Publish a good build as ``stable``; its SQNR on good windows."""
        from assets.canary import publish_canary

        write_sets(self.root / "windows", self.good)
        hef = self._artifact(self.root / "windows")
        report, evidence = make_parity_report(self.bench, self.toolchain, hef=hef)
        assert evidence.result.passed, evidence.result.failures
        champion = publish_canary(
            self.bench,
            self.toolchain,
            self.store,
            hef=hef,
            parity_report=report,
            actor="test",
            reason="test",
            key=BUILD,
        )
        self.store.point("stable", champion, actor="test", reason="test", key=MANAGER)
        return self._on_good_windows(hef)

    def _artifact(self, folder: Path) -> Product:
        windows, _ = make_calibration_set(self.bench, folder)
        har = make_quantized_har(self.bench, self.toolchain, onnx_model=self.onnx, calibration_set=windows)
        return make_hef(self.bench, self.toolchain, quantized_har=har)

    def _on_good_windows(self, hef: Product) -> float:
        windows = normalize(self.good["evaluation"][0], self.trained.statistics)
        reference = self.toolchain.infer(self.toolchain.parse(self.bench.read(self.onnx)), windows)
        found = self.toolchain.infer(take_built(self.bench, hef), windows)
        return sqnr_by_window(reference, found)


def good_windows(seed: int, calibration: int = 1200) -> dict[str, Drawn]:
    """Fresh windows of the sample's motions, every set its own."""
    windows, labels = motions.draw_set(100, seed)
    return {
        "calibration": (windows[:calibration], labels[:calibration]),
        "evaluation": motions.draw_set(40, seed + 1000),
        "golden": motions.draw_set(4, seed + 2000),
    }


def write_sets(folder: Path, drawn: dict[str, Drawn]) -> None:
    """The sets with a truthful index, whatever is in them: as somebody who went around the command."""
    folder.mkdir(exist_ok=True)
    names = {name: [str(label) for label in labels] for name, (_, labels) in drawn.items()}
    strata = define_strata(drawn["calibration"][0], names["calibration"])
    records: dict[str, SetRecord] = {}
    for name, (windows, _) in drawn.items():
        buffer = io.BytesIO()
        np.savez(buffer, windows=windows, labels=np.asarray(names[name]))
        (folder / f"{name}.npz").write_bytes(buffer.getvalue())
        made: WindowSet = make_set(windows, names[name], strata)
        records[name] = describe_set(made, f"{name}.npz", buffer.getvalue())
    committed: WindowIndex = committed_index()
    (folder / INDEX).write_bytes(to_json(replace(committed, sets=records, strata=strata)))


def committed_index() -> WindowIndex:
    from assets.calibration import parse_sets

    return parse_sets(read_files(CALIB_DATA)).index


def with_mistake(
    mistake: Mistake, good: dict[str, Drawn], trained: TrainedModel, everywhere: bool
) -> dict[str, Drawn]:
    """The mistake in the calibration set, or in every set, as an export script would make it.

    Golden windows stay as they are where too few would be left: such a mistake is about the other sets.
    """
    random = np.random.default_rng(7)
    changed = dict(good)
    for name in good if everywhere else ("calibration",):
        windows, labels = mistake.apply(*good[name], trained.statistics, random)
        if name != "golden" or len(windows) >= FEWEST["golden"]:
            changed[name] = (np.ascontiguousarray(windows, np.float32), labels)
    return changed
