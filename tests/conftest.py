"""Shared by all tests. Imports nothing but pytest: it also runs beside the runtime alone."""

import os

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
    "HEF_PATH",
    "HOST",
    "LOG_LEVEL",
    "NUM_MOTIFS",
    "PORT",
    "RELEASE_CHANNEL",
    "RELEASE_STORE",
    "TARGET",
    "UI_PORT",
    "WEB_CONCURRENCY",
    "WEIGHTS_DIR",
)


def pytest_configure() -> None:
    """Forget the developer's own settings: tests hand the environment on to what they start."""
    for name in SETTINGS:
        os.environ.pop(name, None)
