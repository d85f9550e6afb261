"""Composition root: assembles the chain, and is the only reader of the environment in Dagster's code."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from assets.toolchain import parse_targets
from orchestration.chain import PRODUCTS, calibration_set, model_weights, onnx_model, target_assets
from orchestration.progress import progress_logger
from orchestration.resources import Places, ProductIOManager

ROOT = Path(__file__).resolve().parent.parent


def _place(variable: str, default: str) -> str:
    """A folder from the environment, relative to the project's root."""
    return str(ROOT / (os.environ.get(variable) or default))


TARGETS = parse_targets(os.environ.get("BUILD_TARGETS") or "emulator")
BUILD_DIR = _place("BUILD_DIR", "artifacts/build")

build_canary = dg.define_asset_job(
    "build_canary",
    selection=dg.AssetSelection.all(),
    description="The whole chain: trained weights to a canary release, for every target in BUILD_TARGETS.",
)

defs = dg.Definitions(
    assets=[
        model_weights,
        calibration_set,
        onnx_model,
        *(asset for target in TARGETS for asset in target_assets(target)),
    ],
    jobs=[build_canary],
    resources={
        "places": Places(
            weights_dir=_place("WEIGHTS_DIR", "artifacts/weights"),
            calib_dir=_place("CALIB_DIR", "calib_data"),
            build_dir=BUILD_DIR,
            release_store=_place("RELEASE_STORE", "artifacts/releases"),
        ),
        PRODUCTS: ProductIOManager(build_dir=BUILD_DIR),
    },
    loggers={"progress": progress_logger},
    executor=dg.in_process_executor,
)
