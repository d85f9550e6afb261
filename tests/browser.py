"""A real browser, for tests that look at pages as people do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.chain import ROOT
from tests.requirements import program

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OUTPUT = ROOT / "test-output"
"""Where pictures of what was seen are kept."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that asks nobody but the tests' own servers; for tests marked ``needs("chromium")``."""
    from playwright.sync_api import sync_playwright

    OUTPUT.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(program("chromium")), args=FLAGS)
        yield browser
        browser.close()
