"""Shared by all tests. Imports nothing but pytest: it also runs beside the runtime alone."""

from tests.requirements import (
    pytest_collection_modifyitems,
    pytest_runtest_setup,
    testbed,
    upstream,
)

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_setup", "testbed", "upstream"]
