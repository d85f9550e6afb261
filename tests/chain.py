"""The chain without Dagster: the same plain functions, for tests that look at one link."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from assets.calibration import WindowSets, make_calibration_set
from assets.hef import make_hef
from assets.onnx_model import make_onnx_model
from assets.parity import make_parity_report
from assets.policy import Bound, FamilyPolicy, load_policy
from assets.product import Product, Workbench
from assets.quantized_har import make_quantized_har
from assets.toolchain import Toolchain
from assets.toolchain.emulator import EmulatorToolchain
from assets.weights import TrainedModel, make_model_weights
from runtime.contract.parity import ParityEvidence

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_WEIGHTS = ROOT / "artifacts" / "weights"
SAMPLE_VERSION = SAMPLE_WEIGHTS / "tcn_encoder" / "v0.1.0"
CALIB_DATA = ROOT / "calib_data"


def strict_policy() -> FamilyPolicy:
    """A policy that no int8 build meets."""
    bound = Bound(at_least=60.0, at_most=None, typical=(60.0, 61.0))
    return dataclasses.replace(load_policy(), metrics={"sqnr_db": bound})


@dataclass(frozen=True)
class Chain:
    """Everything that was made on the way to a release."""

    bench: Workbench
    toolchain: Toolchain
    trained: TrainedModel
    sets: WindowSets
    agreement: dict[str, float]
    evidence: ParityEvidence
    products: dict[str, Product]


def build_chain(
    root: Path,
    *,
    weights: Path = SAMPLE_WEIGHTS,
    toolchain: Toolchain | None = None,
) -> Chain:
    """Build every link below ``root``."""
    bench, toolchain = Workbench(root), toolchain or EmulatorToolchain()
    model_weights, trained = make_model_weights(bench, weights)
    calibration_set, sets = make_calibration_set(bench, CALIB_DATA)
    onnx_model, agreement = make_onnx_model(bench, model_weights=model_weights, golden=sets.golden.windows)
    quantized_har = make_quantized_har(
        bench, toolchain, onnx_model=onnx_model, calibration_set=calibration_set
    )
    hef = make_hef(bench, toolchain, quantized_har=quantized_har)
    report, evidence = make_parity_report(bench, toolchain, hef=hef)
    products = {
        "model_weights": model_weights,
        "onnx_model": onnx_model,
        "calibration_set": calibration_set,
        "quantized_har": quantized_har,
        "hef": hef,
        "parity_report": report,
    }
    return Chain(bench, toolchain, trained, sets, agreement, evidence, products)
