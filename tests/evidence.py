"""Made-up parity evidence: what a good build and a bad one look like, without building anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.contract.gate import missed_bounds
from runtime.contract.motifs import MotifHead
from runtime.contract.parity import (
    COMPARED,
    EVIDENCE_SCHEMA,
    GOLDEN_WINDOWS,
    NO_CHAMPION,
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
from runtime.contract.window import LATENT_SIZE

WINDOWS = 480
ACTIVE = (3, 7, 12, 18, 25, 31, 44, 50, 61)
STRATA = (
    "still_flat",
    "still_tilted",
    "sway",
    "walk",
    "stairs",
    "jog",
    "run",
    "sprint",
    "jump",
    "turn_slow",
    "turn_fast",
    "shake",
)
THRESHOLDS = {
    "centred_cosine_p5": 0.93,
    "gain": 0.9,
    "kmeans_agreement": 0.9,
    "mean_cosine": 0.95,
    "motif_top1_clear": 0.98,
    "sqnr_db": 18.0,
    "worst_active_sqnr_db": 11.0,
}
CEILINGS = {"gain": 1.1, "mean_shift_sd": 0.12, "p99_error_sd": 1.2}
TYPICAL = {
    "centred_cosine_p5": (0.94, 0.995),
    "gain": (0.97, 1.02),
    "kmeans_agreement": (0.94, 1.0),
    "mean_cosine": (0.97, 0.999),
    "mean_shift_sd": (0.02, 0.07),
    "motif_top1_clear": (0.99, 1.0),
    "p99_error_sd": (0.4, 1.0),
    "sqnr_db": (20.0, 27.5),
    "worst_active_sqnr_db": (13.0, 21.0),
}
GOOD = {
    "centred_cosine_p5": 0.9683,
    "gain": 0.9914,
    "kmeans_agreement": 0.9542,
    "mean_cosine": 0.9913,
    "mean_shift_sd": 0.0462,
    "motif_top1_agreement": 0.8671,
    "motif_top1_clear": 0.9925,
    "p99_error_sd": 0.7036,
    "sqnr_db": 22.504,
    "worst_active_sqnr_db": 17.031,
}
BAD = {
    **GOOD,
    "centred_cosine_p5": 0.8927,
    "gain": 0.8433,
    "p99_error_sd": 4.6112,
    "sqnr_db": 5.812,
    "worst_active_sqnr_db": -0.418,
}
UPSTREAM = ("model_weights", "calibration_set", "onnx_model", "emulator/quantized_har")
FEW_WINDOWS = Finding(
    check="count",
    severity="warn",
    channel="all",
    measured="240 calibration windows",
    expected="at least 256 windows for the emulator",
    cause="few windows make narrow ranges; record more, bursts among them",
)


def digest(name: str) -> str:
    """A digest that stands for something."""
    return hashlib.sha256(name.encode()).hexdigest()


def latents(*, good: bool = True, windows: int = WINDOWS) -> dict[str, npt.NDArray[Any]]:
    """``full_precision`` and ``found`` float32 (N, 64), ``strata`` (N,); 9 dimensions vary."""
    draw = np.random.default_rng(20)
    names = np.asarray([STRATA[i * len(STRATA) // windows] for i in range(windows)])
    size = 0.4 + 0.2 * np.asarray([STRATA.index(name) for name in names])
    centres = draw.normal(0, 1.3, (len(STRATA), LATENT_SIZE))
    full = centres[[STRATA.index(name) for name in names]] + draw.normal(0, 0.5, (windows, LATENT_SIZE))
    full *= size[:, None] / 1.4
    quiet = np.setdiff1d(np.arange(LATENT_SIZE), ACTIVE)
    full[:, quiet] = draw.normal(0, 0.02, (windows, len(quiet)))
    found = full + draw.normal(0, 0.09, full.shape)
    if not good:
        # Ranges that are too narrow: bursts are clipped.
        found = np.clip(0.85 * found, -0.9, 0.9)
    return {
        "full_precision": full.astype(np.float32),
        "found": found.astype(np.float32),
        "strata": names,
    }


def dimensions(*, good: bool = True) -> tuple[DimensionResult, ...]:
    """64 dimensions, 9 of them active."""
    worst = 17.031 if good else -0.418
    return tuple(
        DimensionResult(
            index=index,
            sd=1.06 + 0.17 * ACTIVE.index(index) if index in ACTIVE else 0.01 + 0.0004 * index,
            active=index in ACTIVE,
            sqnr_db=worst + 0.83 * (ACTIVE.index(index) * 4 % 9) if index in ACTIVE else None,
        )
        for index in range(LATENT_SIZE)
    )


def layer_noise() -> LayerNoise:
    """26 activations: input, nine convolutions with their ReLUs, three sums, and the end."""
    names = [("input", "input")]
    for block in range(3):
        scope = f"blocks.{block}"
        names += [(f"{scope}.{name}", "Conv") for name in ("downsample", "conv1")]
        names += [(f"{scope}.relu1", "Relu"), (f"{scope}.conv2", "Conv"), (f"{scope}.relu2", "Relu")]
        names += [(f"{scope}.sum", "Add"), (f"{scope}.out", "Relu")]
    names += [("pool", "GlobalAveragePool"), ("flat", "Flatten"), ("fc_mu", "Gemm"), ("latent", "output")]
    noisy = {"blocks.1.downsample": 26.7, "blocks.2.downsample": 27.4, "input": 29.0, "pool": 29.3}
    layers = tuple(
        LayerRecord(
            name=name,
            operator=operator,
            only_on_db=noisy.get(name, 35.0 + index * 37 % 70 / 10),
            up_to_db=40.0 - 0.7 * index + index * 13 % 20 / 10,
            range_low=0.0 if operator == "Relu" else -3.0 - index,
            range_high=18.0 + index,
            seen_low=0.0 if operator == "Relu" else -2.7 - 1.1 * index,
            seen_high=17.0 + index,
            clipped_share=0.0 if index % 4 else index * 0.0004,
        )
        for index, (name, operator) in enumerate(names)
    )
    weights = tuple(
        WeightRecord(name=f"{name}.weight", error_db=44.0 + index, only_on_db=53.0 - index * 1.7)
        for index, (name, operator) in enumerate(names)
        if operator in ("Conv", "Gemm")
    )
    promote = tuple(
        Promotion(name=name, gain_db=gain)
        for name, gain in (("blocks.1.downsample", 1.42), ("blocks.2.downsample", 0.93), ("input", 0.15))
    )
    return LayerNoise(
        windows=128,
        provenance="emulated",
        tool="onnxruntime 1.32.0 qdq_loss_debug",
        layers=layers,
        weights=weights,
        promote=promote,
    )


def contexts(judged: Mapping[str, float]) -> tuple[ContextResult, ...]:
    """All five, ``hardware`` not run."""
    near = {"sqnr_db": judged["sqnr_db"] + 0.03, "mean_cosine": judged["mean_cosine"], "max_abs": 1.8412}
    ran: dict[str, tuple[str, str, dict[str, float]]] = {
        "source": (
            "measured",
            "torch 2.13.0: checkpoint.pth",
            {"sqnr_db": 121.4, "mean_cosine": 1.0, "max_abs": 9.7e-06},
        ),
        "full_precision": ("measured", "onnxruntime 1.32.0", {}),
        "emulator": ("emulated", "onnxruntime 1.32.0", near),
        "artifact": (
            "emulated",
            "releasectl selftest: emulator on x86-avx512-vnni",
            {**near, "sqnr_db": judged["sqnr_db"], "lsb_from_emulator": 0.0},
        ),
    }
    done = [
        ContextResult(name=name, provenance=provenance, ran_by=ran_by, not_run="", metrics=metrics)
        for name, (provenance, ran_by, metrics) in ran.items()
    ]
    why = "the target is the emulator: nothing of it runs on a device"
    return (*done, ContextResult(name="hardware", provenance="", ran_by="", not_run=why, metrics={}))


def strata(overall: Mapping[str, float]) -> tuple[StratumResult, ...]:
    """Twelve, ``still_flat`` the worst; the rarest lacks the metric that needs more windows."""
    return tuple(
        StratumResult(
            name=name,
            windows=WINDOWS // len(STRATA),
            metrics={
                key: value
                for key, value in {
                    **overall,
                    "sqnr_db": overall["sqnr_db"] - 6.1 + 0.9 * index,
                    "centred_cosine_p5": min(0.99, overall["centred_cosine_p5"] - 0.04 + 0.006 * index),
                    "mean_cosine": 0.931 + 0.006 * index,
                }.items()
                if not (name == "shake" and key == "motif_top1_clear")
            },
        )
        for index, name in enumerate(STRATA)
    )


def parity(*, good: bool = True, origin: str = "synthetic", **changes: Any) -> ParityEvidence:
    """What ``parity_report`` makes."""
    metrics = GOOD if good else BAD
    failures = missed_bounds(metrics, THRESHOLDS, CEILINGS)
    evidence = ParityEvidence(
        schema=EVIDENCE_SCHEMA,
        family="tcn_vae",
        result=ParityResult(
            artifact_sha256=digest("artifact"),
            provenance="emulated",
            windows=WINDOWS,
            metrics=dict(metrics),
            thresholds=dict(THRESHOLDS),
            ceilings=dict(CEILINGS),
            failures=failures,
            passed=not failures,
        ),
        typical=dict(TYPICAL),
        active_share=0.05,
        clear_margin=0.3,
        motif_head=motif_head(),
        origin=origin,
        calibration_sha256=digest("calibration"),
        evaluation_sha256=digest("evaluation"),
        strata_by="labels",
        contexts=contexts(metrics),
        judged="artifact",
        strata=strata(metrics),
        dimensions=dimensions(good=good),
        layers=layer_noise(),
        findings=(FEW_WINDOWS,),
        tools={"scipy": "1.17.1"},
        upstream={name: digest(name) for name in UPSTREAM},
    )
    return replace(evidence, **changes)


def motif_head() -> MotifHead:
    """Twelve motifs."""
    return MotifHead(
        provenance="fitted",
        names=tuple(f"motif{index}" for index in range(12)),
        weight=tuple(tuple(0.01 * (row + column) for column in range(LATENT_SIZE)) for row in range(12)),
        bias=(0.0,) * 12,
    )


def champion(*, compared: bool = True, worse: bool = False) -> ChampionComparison:
    """A comparison, or that there is nothing to compare with."""
    if not compared:
        return ChampionComparison(
            state=NO_CHAMPION,
            release="",
            model="",
            windows=0,
            compared_on="",
            sqnr_db=None,
            champion_sqnr_db=None,
            provenance="",
            allowed_drop_db=1.5,
            metrics={},
            failures=(),
        )
    sqnr = 19.82 if worse else 22.31
    failure = (
        "SQNR is 19.82 dB on the champion's golden windows, 22.04 dB is the champion's: at most 1.5 below"
    )
    return ChampionComparison(
        state=COMPARED,
        release=digest("champion"),
        model="tcn_encoder v0.0.9",
        windows=24,
        compared_on=GOLDEN_WINDOWS,
        sqnr_db=sqnr,
        champion_sqnr_db=22.04,
        provenance="emulated",
        allowed_drop_db=1.5,
        metrics={**GOOD, "sqnr_db": 22.117, "p99_error_sd": 0.7812, "centred_cosine_p5": 0.9617},
        failures=(failure,) if worse else (),
    )


def publication(
    *,
    good: bool = True,
    compared: bool = True,
    worse: bool = False,
    model: str = "tcn_encoder v0.1.0",
    **rest: Any,
) -> PublicationEvidence:
    """What the report shows; ``rest`` goes to ``parity``."""
    return PublicationEvidence(
        schema=EVIDENCE_SCHEMA,
        model=model,
        target="emulator",
        parity=parity(good=good, **rest),
        champion=champion(compared=compared, worse=worse),
    )


def crowded() -> tuple[PublicationEvidence, dict[str, npt.NDArray[Any]]]:
    """Too much at once: long names, 64 active dimensions, 60 layers, 20 strata, 2000 windows."""
    evidence = publication(worse=True, model="a_model_whose_name_does_not_end_" * 4)
    found, draw = evidence.parity, np.random.default_rng(5)
    assert found.layers is not None
    names = [f"blocks.{index}.{'x' * (index % 9)}.a/scope/of/a_tensor_{index}" for index in range(60)]
    layers = tuple(
        replace(
            found.layers.layers[0],
            name=name,
            only_on_db=20.0 + index % 30,
            up_to_db=index - 3.0 if index else 200.0,
            range_low=0.0,
            range_high=0.0,
            seen_low=0.0,
            seen_high=0.0,
        )
        for index, name in enumerate(names)
    )
    rows = tuple(
        replace(
            found.strata[0],
            name=f"acc {index / 3:.2f} to {index / 2:.2f} m/s², gyro below {index} rad/s",
            metrics={**found.strata[0].metrics, "sqnr_db": 10.0 + index},
        )
        for index in range(20)
    )
    every = tuple(
        replace(each, active=True, sd=1 + each.index / 64, sqnr_db=5.0 + each.index * 7 % 19)
        for each in found.dimensions
    )
    full = draw.normal(0, 1, (2000, LATENT_SIZE)).astype(np.float32)
    noise = replace(found.layers, layers=layers)
    arrays: dict[str, npt.NDArray[Any]] = {
        "full_precision": full,
        "found": (full + draw.normal(0, 0.1, full.shape)).astype(np.float32),
        "strata": np.asarray([rows[index % len(rows)].name for index in range(2000)]),
    }
    return replace(evidence, parity=replace(found, dimensions=every, strata=rows, layers=noise)), arrays
