"""Shared by all tests. Imports only test tools: it also runs beside the runtime alone."""

import os

from hypothesis import HealthCheck, settings

from tests.keys import use_test_keys
from tests.requirements import (
    pytest_collection_modifyitems,
    pytest_runtest_setup,
    testbed,
    upstream,
)

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_setup", "testbed", "upstream"]

SETTINGS = (
    "BUILD_DIR",
    "BUILD_TARGETS",
    "CALIB_DIR",
    "DAGSTER_HOME",
    "GUNICORN_CMD_ARGS",
    "HAILO_DFC_PYTHON",
    "HAILO_LOCK_DIR",
    "HEF_PATH",
    "HOST",
    "LOG_LEVEL",
    "NUM_MOTIFS",
    "PORT",
    "RELEASE_CHANNEL",
    "RELEASE_STORE",
    "REPORTS_PORT",
    "REPORTS_URL",
    "STATE_DIR",
    "TARGET",
    "TELEMETRY_DIR",
    "TELEMETRY_DISTANCE",
    "TELEMETRY_MARGIN",
    "TELEMETRY_MAX_MB",
    "TELEMETRY_PER_MINUTE",
    "UI_PORT",
    "WEB_CONCURRENCY",
    "WEIGHTS_DIR",
)


# The machine may be busy: no example fails for being slow.
settings.register_profile("hailo-pipeline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hailo-pipeline")


def pytest_configure() -> None:
    """Forget the developer's own settings: tests hand the environment on to what they start."""
    for name in SETTINGS:
        os.environ.pop(name, None)
    use_test_keys()
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = "127.0.0.1,localhost"
