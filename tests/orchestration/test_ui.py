"""What an ML engineer sees: Dagster's own pages in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chain import ROOT
from tests.requirements import program
from tests.running import Running, end, start

pytestmark = [
    pytest.mark.build,
    pytest.mark.slow,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(300),
]
OUTPUT = ROOT / "test-output"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    platform = start(tmp_path_factory.mktemp("platform"))
    yield platform
    end(platform)


def test_lineage_and_parity_are_shown(running: Running) -> None:
    from playwright.sync_api import expect, sync_playwright

    OUTPUT.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(program("chromium")), args=FLAGS)
        page = browser.new_page(viewport={"width": 1700, "height": 1000})
        page.goto(f"{running.ui_url}/locations/hailo-pipeline/asset-groups/emulator/lineage")
        for name in ("onnx_model", "quantized_har", "hef", "parity_report", "canary_release"):
            expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=60_000)
        # Each of the four links of the target says when it was made, the report that its check passed.
        expect(page.get_by_text("Loading...")).to_have_count(0, timeout=60_000)
        expect(page.get_by_text("Materialized", exact=True)).to_have_count(4)
        expect(page.get_by_text("1 / 1 Passed")).to_be_visible()
        page.screenshot(path=OUTPUT / "lineage.png")
        page.goto(f"{running.ui_url}/assets/emulator/parity_report?view=overview")
        for words in ("verdict", "passed", "sqnr_db", "mean_cosine"):
            expect(page.get_by_text(words, exact=True).first).to_be_visible(timeout=60_000)
        page.screenshot(path=OUTPUT / "parity_report.png")
        browser.close()
