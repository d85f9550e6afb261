"""Parity evidence for tests: everything that a report can hold, small."""

from __future__ import annotations

from typing import Any

from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.parity import (
    COMPARED,
    EVIDENCE_SCHEMA,
    ChampionComparison,
    ContextResult,
    DimensionResult,
    Finding,
    LayerNoise,
    LayerRecord,
    ParityEvidence,
    Promotion,
    PublicationEvidence,
    StratumResult,
    WeightRecord,
)
from runtime.contract.release import ParityResult
from tests.simulators import REPORT, TINY_ENCODER, ReleaseSimulator, motif_head

ALIEN_LAYER = "encoder/blocks.3/conv2/a_name_that_is_much_longer_than_any_column_has_room_for/Relu_output_0"


def result(**changes: Any) -> ParityResult:
    """A verdict on the simulator's artifact."""
    values: dict[str, Any] = {
        "artifact_sha256": sha256_bytes(TINY_ENCODER.read_bytes()),
        "provenance": "emulated",
        "windows": 480,
        "metrics": {"mean_cosine": 0.9986, "sqnr_db": 26.7, "p99_max_error_sd": 0.21},
        "thresholds": {"mean_cosine": 0.95, "sqnr_db": 20.0},
        "ceilings": {"p99_max_error_sd": 0.5},
        "failures": (),
        "passed": True,
    }
    return ParityResult(**values | changes)


def evidence(verdict: ParityResult | None = None, **changes: Any) -> ParityEvidence:
    """A full report of an emulated build on synthetic windows, of which 9 dimensions are active."""
    values: dict[str, Any] = {
        "schema": EVIDENCE_SCHEMA,
        "family": "tcn_encoder",
        "result": verdict or result(),
        "typical": {"sqnr_db": (24.1, 27.9)},
        "active_share": 0.05,
        "clear_margin": 0.3,
        "motif_head": motif_head(2),
        "origin": "synthetic",
        "calibration_sha256": sha256_bytes(b"calibration"),
        "evaluation_sha256": sha256_bytes(b"evaluation"),
        "strata_by": "labels",
        "contexts": (
            context("source", sqnr_db=120.0),
            context("emulator", sqnr_db=26.7),
            ContextResult(
                name="hardware",
                provenance="",
                ran_by="",
                not_run="no device of this target is attached to the machine that built it",
                metrics={},
            ),
        ),
        "judged": "emulator",
        "strata": (
            StratumResult(name="walk", windows=100, metrics={"sqnr_db": 28.0, "mean_cosine": 0.999}),
            StratumResult(name="rest", windows=40, metrics={"sqnr_db": 19.5}),
            StratumResult(name="few", windows=1, metrics={}),
        ),
        "dimensions": tuple(
            DimensionResult(index=i, sd=1.0, active=i < 9, sqnr_db=25.0 if i < 9 else None) for i in range(64)
        ),
        "layers": LayerNoise(
            windows=64,
            provenance="emulated",
            tool="onnxruntime 1.32.0 qdq_loss_debug",
            layers=(layer("quiet", 60.0), layer(ALIEN_LAYER, 30.0)),
            weights=(WeightRecord(name="w", error_db=40.0, only_on_db=50.0),),
            promote=(Promotion(name="noisy", gain_db=3.25),),
        ),
        "findings": (
            Finding(
                check="count",
                severity="warn",
                channel="all",
                measured="128 windows",
                expected="256 or more",
                cause="record more",
            ),
        ),
        "tools": {"scipy": "1.14"},
        "upstream": {"onnx_model": sha256_bytes(b"onnx_model")},
    }
    return ParityEvidence(**values | changes)


def context(name: str, **metrics: float) -> ContextResult:
    """A context that ran."""
    return ContextResult(
        name=name, provenance="emulated", ran_by="onnxruntime 1.32.0", not_run="", metrics=metrics
    )


def layer(name: str, alone: float) -> LayerRecord:
    """One activation."""
    return LayerRecord(
        name=name,
        operator="Relu",
        only_on_db=alone,
        up_to_db=alone - 1,
        range_low=0.0,
        range_high=4.0,
        seen_low=0.0,
        seen_high=4.1,
        clipped_share=0.0123,
    )


def publication(parity: ParityEvidence, **changes: Any) -> PublicationEvidence:
    """A comparison with a champion that it passed."""
    values: dict[str, Any] = {
        "state": COMPARED,
        "release": "c" * 64,
        "model": "tiny v0.9.0",
        "windows": 16,
        "compared_on": "the champion's golden windows",
        "sqnr_db": 26.0,
        "champion_sqnr_db": 27.0,
        "provenance": "emulated",
        "allowed_drop_db": 1.5,
        "metrics": {"sqnr_db": 27.1},
        "failures": (),
    }
    champion = ChampionComparison(**values | changes)
    return PublicationEvidence(
        schema=EVIDENCE_SCHEMA, model="tiny v1.0.0", target="emulator", parity=parity, champion=champion
    )


def judged_by(report: ParityEvidence, **changes: Any) -> ReleaseSimulator:
    """A release that carries this report and its verdict."""
    return ReleaseSimulator(files={REPORT: to_json(report)}, changes={"parity": report.result, **changes})
