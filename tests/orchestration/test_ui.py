"""What an ML engineer sees: Dagster's own pages, and the report that they lead to, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser import OUTPUT, chromium
from tests.running import Running, end, start

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [
    pytest.mark.build,
    pytest.mark.slow,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(300),
]
DESK = {"width": 1700, "height": 1000}
PATIENCE = 60_000  # ms
# A value that is a table has rows of its own.
ENTRIES = "tbody > tr:not(table table tr):has(> td:nth-child(3))"
COLUMNS = ["ok", "metric", "value", "threshold", "typical", "champion"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    platform = start(tmp_path_factory.mktemp("platform"))
    yield platform
    end(platform)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(name="page")
def a_page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1700, "height": 1000})
    yield context.new_page()
    context.close()


def open_asset(running: Running, page: Page, asset: str, entry: str) -> None:
    """An asset's page, once it shows the entry of its metadata."""
    page.goto(f"{running.ui_url}/assets/{asset}?view=overview")
    page.get_by_text(entry, exact=True).first.wait_for(timeout=PATIENCE)


def entries(page: Page) -> list[str]:
    """The names of what a materialization shows, from top to bottom."""
    return [name.strip() for name in page.locator(ENTRIES).locator("> td:first-child").all_inner_texts()]


def value(page: Page, entry: str) -> Locator:
    """What an entry of the metadata says."""
    return page.locator(ENTRIES).nth(entries(page).index(entry)).locator("> td:nth-child(3)")


def rows(table: Locator) -> list[list[str]]:
    """A table in an entry, its header first."""
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()]


def test_lineage_shows_each_link_and_that_the_check_passed(running: Running, page: Page) -> None:
    from playwright.sync_api import expect

    page.goto(f"{running.ui_url}/locations/hailo-pipeline/asset-groups/emulator/lineage")
    for name in ("onnx_model", "quantized_har", "hef", "parity_report", "canary_release"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=PATIENCE)
    # Each of the four links of the target says when it was made, the report that its check passed.
    expect(page.get_by_text("Loading...")).to_have_count(0, timeout=PATIENCE)
    expect(page.get_by_text("Materialized", exact=True)).to_have_count(4)
    expect(page.get_by_text("1 / 1 Passed")).to_have_count(2)  # parity, and that the canary is whole
    page.screenshot(path=OUTPUT / "lineage.png")


def test_parity_is_told_verdict_first(running: Running, page: Page) -> None:
    open_asset(running, page, "emulator/parity_report", "sqnr_db")
    page.screenshot(path=OUTPUT / "parity_report.png")
    parity = running.canary().manifest.parity
    assert entries(page)[:5] == ["verdict", "summary", "report", "report file", "metrics"]
    assert value(page, "verdict").inner_text() == "passed"
    assert value(page, "origin").inner_text().startswith("SYNTHETIC")
    assert value(page, "windows").inner_text() == str(parity.windows)
    header, *metrics = rows(value(page, "metrics").locator("table"))
    assert header == COLUMNS
    assert {row[1] for row in metrics} == set(parity.metrics)
    assert {row[5] for row in metrics} == {"no champion"}
    assert {row[0] for row in metrics} == {"✓", "–"}
    bounded = set(parity.thresholds) | set(parity.ceilings)
    for ok, name, shown, threshold, typical, _ in metrics:
        assert float(shown) == pytest.approx(parity.metrics[name], rel=0.02, abs=0.002)
        assert (ok != "–") == (threshold != "–") == (name in bounded)
        assert (typical != "–") or name not in bounded
    # Nobody has to scroll for the verdict, the link or the first metric.
    for text in ("passed", "no champion", "report"):
        box = page.get_by_text(text, exact=True).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < DESK["height"]


def test_every_column_of_the_metrics_is_in_sight(running: Running, page: Page) -> None:
    open_asset(running, page, "emulator/parity_report", "metrics")
    room = page.locator("table:not(table table)").filter(has_text="verdict").locator("..").bounding_box()
    table = value(page, "metrics").locator("table").bounding_box()
    assert room is not None
    assert table is not None
    assert table["x"] + table["width"] <= room["x"] + room["width"] + 1


def test_each_metric_is_a_number_whose_history_is_drawn(running: Running, page: Page) -> None:
    open_asset(running, page, "emulator/parity_report", "sqnr_db")
    for name, number in running.canary().manifest.parity.metrics.items():
        assert float(value(page, name).inner_text()) == pytest.approx(number)
    page.get_by_text("Plots", exact=True).click()
    page.locator("canvas").first.wait_for(timeout=PATIENCE)
    assert page.locator("canvas").count() >= len(running.canary().manifest.parity.metrics)


def test_the_report_is_one_click_away(running: Running, page: Page) -> None:
    open_asset(running, page, "emulator/parity_report", "report")
    link = value(page, "report").locator("a").first
    assert str(link.get_attribute("href")).startswith(f"{running.reports_url}/emulator-parity-")
    with page.context.expect_page() as opened:
        link.click()
    report = opened.value
    report.close()
    asked: list[str] = []
    said: list[str] = []
    report = page.context.new_page()
    report.set_viewport_size({"width": 1400, "height": 900})
    report.on("request", lambda request: asked.append(request.url))
    report.on("console", lambda message: said.append(message.text))
    address = str(link.get_attribute("href"))
    assert httpx.get(address).status_code == 200
    report.goto(address)
    report.wait_for_load_state("networkidle")
    report.screenshot(path=OUTPUT / "parity_report-html.png")
    assert (asked, said) == ([address], [])
    assert report.locator("h1 .word").inner_text().split() == ["✓", "passed"]
    sqnr = report.locator("table.metrics tr", has_text="sqnr_db").first
    number = running.canary().manifest.parity.metrics["sqnr_db"]
    assert sqnr.locator(".value b").inner_text() == f"{number:.2f}"
    assert "synthetic" in report.locator(".warnings").inner_text()


def test_pictures_are_behind_show_markdown(running: Running, page: Page) -> None:
    open_asset(running, page, "emulator/parity_report", "plot: latents")
    names = [name for name in entries(page) if name.startswith("plot: ")]
    assert names == ["plot: latents", "plot: strata", "plot: errors", "plot: layers"]
    for name in names:
        value(page, name).get_by_text("Show Markdown").click()
        image = page.get_by_role("img", name=name.removeprefix("plot: "), exact=True)
        image.wait_for(timeout=PATIENCE)
        assert image.evaluate("image => image.naturalWidth") > 0
        page.wait_for_timeout(400)  # it fades in
        page.screenshot(path=OUTPUT / f"{name.replace(': ', '-')}.png")
        page.keyboard.press("Escape")
        image.wait_for(state="detached", timeout=PATIENCE)


def test_the_check_leads_to_the_report(running: Running, page: Page) -> None:
    page.goto(f"{running.ui_url}/assets/emulator/parity_report?view=checks")
    page.get_by_text("Latest execution").first.wait_for(timeout=PATIENCE)
    link = page.locator(f"a[href^='{running.reports_url}/']").first
    link.wait_for(timeout=PATIENCE)
    page.get_by_text("metrics are within their bounds").first.wait_for(timeout=PATIENCE)
    page.screenshot(path=OUTPUT / "parity_check.png")


def test_calibration_says_where_its_windows_come_from(running: Running, page: Page) -> None:
    open_asset(running, page, "calibration_set", "strata by")
    page.screenshot(path=OUTPUT / "calibration_set.png")
    assert entries(page)[:3] == ["origin", "generator", "strata"]
    assert value(page, "origin").inner_text().startswith("SYNTHETIC")
    header, *strata = rows(value(page, "strata").locator("table"))
    assert header == ["stratum", "calibration", "evaluation", "golden"]
    counts = {name: int(calibration) for name, calibration, *_ in strata}
    assert counts == running.canary().manifest.calibration.strata
