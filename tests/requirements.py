"""What some tests need from outside: programs, and folders with real inputs.

A test says so, and is skipped in one line where the thing is missing::

    @pytest.mark.needs("chromium")
    def test_ui_draws_the_chain(upstream: Path) -> None: ...

``REQUIRE_ALL=1`` makes a missing program a failure, so that the gate cannot pass by leaving tests out.
``UPSTREAM`` and ``TESTBED`` name folders; one that is set and wrong is a failure, always.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Program:
    """A program that tests start, how to find it and how to get it."""

    names: tuple[str, ...]
    package: str
    elsewhere: str = ""  # a glob below / for what Debian keeps off PATH

    def find(self) -> Path | None:
        """Return where the program is, or None."""
        for name in self.names:
            if found := shutil.which(name):
                return Path(found)
        aside = sorted(Path("/").glob(self.elsewhere)) if self.elsewhere else []
        return aside[-1] if aside else None


PROGRAMS: Mapping[str, Program] = {
    "bwrap": Program(("bwrap",), "bubblewrap"),
    "curl": Program(("curl",), "curl"),
    "chromium": Program(("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "dpkg": Program(("dpkg",), "dpkg"),
    "postgres": Program(("postgres",), "postgresql", "usr/lib/postgresql/*/bin/postgres"),
    "prometheus": Program(("prometheus",), "prometheus"),
    "promtool": Program(("promtool",), "prometheus"),
    "rsync": Program(("rsync",), "rsync"),
    "systemd-analyze": Program(("systemd-analyze",), "systemd"),
}


def program(name: str) -> Path:
    """Return where a program is; for tests marked ``needs(name)``, which are not run without it."""
    found = PROGRAMS[name].find()
    if found is None:
        pytest.fail(f"mark this test with @pytest.mark.needs({name!r})", pytrace=False)
    return found


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or with ``REQUIRE_ALL=1`` fail, a test whose programs are missing."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if name not in PROGRAMS:
                pytest.fail(f"needs({name!r}): choose from {', '.join(sorted(PROGRAMS))}", pytrace=False)
            if PROGRAMS[name].find() is None:
                refuse(f"{name} is missing: apt-get install {PROGRAMS[name].package}")


def refuse(reason: str) -> None:
    """Leave a test out, or fail it where nothing may be left out."""
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"{reason} (REQUIRE_ALL=1)", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read UPSTREAM, so that ``-m upstream`` selects them."""
    for item in items:
        if "upstream" in getattr(item, "fixturenames", ()):
            item.add_marker("upstream")


def folder(variable: str, holds: str) -> Path:
    """Return the folder that an environment variable names; skip if unset, fail if it is none."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: the folder with {holds}")
    path = Path(value).resolve()
    if not path.is_dir():
        pytest.fail(f"{variable}={value} is not a folder", pytrace=False)
    return path


@pytest.fixture(scope="session")
def upstream() -> Path:
    """The folder with real inputs: weights, .hef files, request windows. Read only."""
    return folder("UPSTREAM", "real weights, .hef files and request windows")


@pytest.fixture(scope="session")
def testbed() -> Path:
    """The folder with `image`, which builds and runs container images. Read only."""
    return folder("TESTBED", "the image builder")
