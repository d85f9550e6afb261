"""The build side's environment, parsed once; no Dagster in here, so that it is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assets.toolchain import parse_targets
from runtime.contract.errors import ConfigError
from runtime.contract.keys import KeyFolder
from runtime.contract.trust import DEFAULT_TRUST_ROOT

BUILD_TIMES: Final = ("at_once", "nightly", "never")
ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Where a build reads and writes, and for which targets.

    Args:
        targets: A branch of assets for each (``BUILD_TARGETS``, comma-separated).
        weights_dir: ``<model>/<version>/`` folders, or one version folder (``WEIGHTS_DIR``).
        calib_dir: Window sets with their index (``CALIB_DIR``).
        build_dir: The workbench (``BUILD_DIR``).
        build_cache_dir: What the long steps made before (``BUILD_CACHE_DIR``); ``cache`` in the workbench
            where it is not set.
        release_store: Releases and channels (``RELEASE_STORE``).
        dagster_home: Dagster's databases and settings (``DAGSTER_HOME``).
        trust_root: Whose signatures count (``TRUST_ROOT``); the development root where it is not set.
        canary_key_file: Signs releases and canary (``CANARY_KEY_FILE``); where neither it nor ``TRUST_ROOT``
            is set, the development key.
        release_key_file: Signs stable (``RELEASE_KEY_FILE``); None where the release manager is elsewhere.
        reports_url: Where ``reports_dir`` is served (``REPORTS_URL``); empty where it is not.
        dfc_python: The Python that has Hailo's Dataflow Compiler (``HAILO_DFC_PYTHON``); empty where there is
            none. A name without a folder is looked up on the path.
        prometheus_url: Prometheus, which scrapes the runtimes (``PROMETHEUS_URL``); empty where none is.
        prometheus_job: Its name for the runtimes, where it scrapes others, too (``PROMETHEUS_JOB``).
        builds: When changes are built without anybody asking (``BUILDS``): one of ``BUILD_TIMES``.
        nightly_at: When ``nightly_build`` looks, as cron writes it (``NIGHTLY_CRON``).
        timezone: In which (``TZ``).
        telemetry_dir: Windows that runtimes kept, copied here (``TELEMETRY_DIR``); None where none are.
        failure_webhook_url: Where failed runs are told of (``FAILURE_WEBHOOK_URL``); empty for the log alone.
        ui_url: Of Dagster's UI, for links to it (``UI_URL``).
        runtime_urls: Runtimes whose metrics are read where there is no Prometheus (``RUNTIME_URLS``,
            comma-separated).
    """

    targets: tuple[str, ...]
    weights_dir: Path
    calib_dir: Path
    build_dir: Path
    build_cache_dir: Path
    release_store: Path
    dagster_home: Path
    trust_root: Path
    canary_key_file: Path | None
    release_key_file: Path | None
    reports_url: str = ""
    dfc_python: str = ""
    prometheus_url: str = ""
    prometheus_job: str = ""
    runtime_urls: str = ""
    builds: str = "at_once"
    nightly_at: str = "30 2 * * *"
    timezone: str = "UTC"
    telemetry_dir: Path | None = None
    failure_webhook_url: str = ""
    ui_url: str = ""

    @property
    def development_keys(self) -> KeyFolder | None:
        """Where this machine's development keys are, where they are what counts; else None."""
        folder = KeyFolder(ROOT / Path(DEFAULT_TRUST_ROOT).parent)
        return folder if self.trust_root == folder.root else None

    @property
    def reports_dir(self) -> Path:
        """Parity reports, each named by its digest: a folder that may be served."""
        return self.build_dir / "reports"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> BuildSettings:
        """Read the settings; an empty value counts as unset, a relative place starts at the checkout.

        Raises:
            ToolchainError: ``BUILD_TARGETS`` names an unknown target, or none.
            ConfigError: ``BUILDS`` is none of ``BUILD_TIMES``.
        """

        def place(variable: str, default: str) -> Path:
            return ROOT / (environment.get(variable) or default)

        def key(variable: str) -> Path | None:
            named = environment.get(variable)
            return ROOT / Path(named).expanduser() if named else None

        named = bool(environment.get("TRUST_ROOT"))
        development = KeyFolder(ROOT / Path(DEFAULT_TRUST_ROOT).parent)
        dfc_python = environment.get("HAILO_DFC_PYTHON") or ""
        if "/" in dfc_python:
            dfc_python = str(ROOT / Path(dfc_python).expanduser())
        return cls(
            targets=tuple(parse_targets(environment.get("BUILD_TARGETS") or "emulator")),
            weights_dir=place("WEIGHTS_DIR", "artifacts/weights"),
            calib_dir=place("CALIB_DIR", "calib_data"),
            build_dir=place("BUILD_DIR", "artifacts/build"),
            build_cache_dir=place("BUILD_CACHE_DIR", str(place("BUILD_DIR", "artifacts/build") / "cache")),
            release_store=place("RELEASE_STORE", "artifacts/releases"),
            dagster_home=place("DAGSTER_HOME", "artifacts/dagster_home"),
            trust_root=place("TRUST_ROOT", DEFAULT_TRUST_ROOT),
            canary_key_file=key("CANARY_KEY_FILE") or (None if named else development.build_key),
            release_key_file=key("RELEASE_KEY_FILE"),
            reports_url=environment.get("REPORTS_URL") or "",
            dfc_python=dfc_python,
            prometheus_url=environment.get("PROMETHEUS_URL") or "",
            prometheus_job=environment.get("PROMETHEUS_JOB") or "",
            runtime_urls=environment.get("RUNTIME_URLS") or "",
            builds=_chosen("BUILDS", environment.get("BUILDS") or "at_once", BUILD_TIMES),
            nightly_at=environment.get("NIGHTLY_CRON") or "30 2 * * *",
            timezone=environment.get("TZ") or "UTC",
            telemetry_dir=key("TELEMETRY_DIR"),
            failure_webhook_url=environment.get("FAILURE_WEBHOOK_URL") or "",
            ui_url=environment.get("UI_URL") or "",
        )


def _chosen(variable: str, text: str, choice: tuple[str, ...]) -> str:
    if text not in choice:
        raise ConfigError(f"{text[:40]!r} is none of {', '.join(choice)}", where=variable)
    return text


def signing_settings(settings: BuildSettings) -> dict[str, str]:
    """What the processes of this machine sign and trust with; development keys are made where none are named.

    Development keys separate nobody: they all lie here. That is said wherever a release is shown.
    """
    found = {"TRUST_ROOT": settings.trust_root}
    manager = settings.release_key_file
    if development := settings.development_keys:
        development.make(development=True)
        manager = manager or development.manager_key
    for name, path in (("CANARY_KEY_FILE", settings.canary_key_file), ("RELEASE_KEY_FILE", manager)):
        if path:
            found[name] = path
    return {name: str(path) for name, path in found.items()}
