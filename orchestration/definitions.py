"""Composition root: assembles the chain from the environment, and computes nothing."""

from __future__ import annotations

import os

import dagster as dg

from orchestration.automation import (
    calibration_watch,
    nightly_build,
    observe_weights,
    read_windows,
    rebuild_what_changed,
    weights_watch,
)
from orchestration.canary_judge import GROUP, judge_job, judge_sensor, verdict_asset
from orchestration.chain import PRODUCTS, calibration_set, model_weights, onnx_model, target_assets
from orchestration.channels import channels_asset, channels_watch
from orchestration.lost_runs import lost_runs
from orchestration.notices import failure_notice
from orchestration.progress import progress_logger
from orchestration.promotion import promote_to_stable, roll_back_stable, stable_asset
from orchestration.release_check import whole_check
from orchestration.resources import Places, ProductIOManager
from orchestration.settings import BuildSettings
from orchestration.telemetry import TELEMETRY, telemetry_candidates

SETTINGS = BuildSettings.from_environment(os.environ)
LINKS = [
    calibration_set,
    onnx_model,
    *(asset for target in SETTINGS.targets for asset in target_assets(target, SETTINGS.dfc_python)),
]

build_canary = dg.define_asset_job(
    "build_canary",
    # A verdict is on what has run for a while: nothing that has just been built.
    # Nor is what runtimes kept an input of it before somebody chose from it.
    selection=dg.AssetSelection.all() - dg.AssetSelection.groups(GROUP, TELEMETRY),
    description="The whole chain: trained weights to a canary release, for every target in BUILD_TARGETS.",
)

defs = dg.Definitions(
    assets=[
        model_weights,
        *LINKS,
        telemetry_candidates,
        *(verdict_asset(target) for target in SETTINGS.targets),
        *(stable_asset(target) for target in SETTINGS.targets),
        *(channels_asset(target) for target in SETTINGS.targets),
    ],
    asset_checks=[whole_check(target) for target in SETTINGS.targets],
    jobs=[
        observe_weights,
        read_windows,
        build_canary,
        judge_job(SETTINGS.targets),
        promote_to_stable,
        roll_back_stable,
    ],
    sensors=[
        weights_watch,
        calibration_watch,
        rebuild_what_changed(SETTINGS.builds),
        channels_watch(SETTINGS.targets),
        failure_notice(SETTINGS.failure_webhook_url, SETTINGS.ui_url),
        lost_runs,
        judge_sensor(SETTINGS.targets, watched=bool(SETTINGS.prometheus_url or SETTINGS.runtime_urls)),
    ],
    schedules=[nightly_build(build_canary, LINKS, SETTINGS.builds, SETTINGS.nightly_at, SETTINGS.timezone)],
    resources={
        "places": Places(
            weights_dir=str(SETTINGS.weights_dir),
            calib_dir=str(SETTINGS.calib_dir),
            build_dir=str(SETTINGS.build_dir),
            build_cache_dir=str(SETTINGS.build_cache_dir),
            release_store=str(SETTINGS.release_store),
            reports_dir=str(SETTINGS.reports_dir),
            reports_url=SETTINGS.reports_url,
            dfc_python=SETTINGS.dfc_python,
            trust_root=str(SETTINGS.trust_root),
            canary_key_file=str(SETTINGS.canary_key_file or ""),
            release_key_file=str(SETTINGS.release_key_file or ""),
            development_keys=str(SETTINGS.development_keys.folder if SETTINGS.development_keys else ""),
            prometheus_url=SETTINGS.prometheus_url,
            prometheus_job=SETTINGS.prometheus_job,
            runtime_urls=SETTINGS.runtime_urls,
            telemetry_dir=str(SETTINGS.telemetry_dir or ""),
        ),
        PRODUCTS: ProductIOManager(build_dir=str(SETTINGS.build_dir)),
    },
    loggers={"progress": progress_logger},
    executor=dg.in_process_executor,
)
