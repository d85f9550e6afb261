"""The parity report in a real browser: from a disk, on a desk and on a phone, in light and dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from assets.report import keep_report, render
from tests.browser import OUTPUT, chromium
from tests.evidence import crowded, latents, publication

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.build,
    pytest.mark.slow,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(300),
]
SIZES = {"desk": (1400, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that passed beside a champion, one that failed without, and one with too much of everything."""
    folder = tmp_path_factory.mktemp("reports")
    reports = {
        "passed": render(publication(), latents()),
        "failed": render(publication(good=False, compared=False), latents(good=False)),
        "crowded": render(*crowded()),
    }
    return {name: keep_report(folder, "emulator", report) for name, report in reports.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["passed", "failed", "crowded"])
def test_it_is_seen_whole(
    browser: Browser, files: dict[str, Path], which: str, scheme: Literal["light", "dark"], size: str
) -> None:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(files[which].as_uri())
    name = f"report-{which}-{size}-{scheme}"
    page.screenshot(path=OUTPUT / f"{name}-first.png")
    page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)
    assert asked == [files[which].as_uri()]
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    verdict = page.locator("h1 .word").bounding_box()
    assert verdict is not None
    assert verdict["y"] + verdict["height"] < height / 3
    if which == "failed":
        last = page.locator(".failures li").last.bounding_box()
        assert last is not None
        assert last["y"] + last["height"] < height
    assert letters_outside(page) == []
    context.close()


def letters_outside(page: Page) -> list[str]:
    """Words of charts that stick out of their picture, or lie upon one another."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')];
            const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
            const out = boxes.filter(([_, b]) => b.left < frame.left - 1 || b.right > frame.right + 1 ||
                b.top < frame.top - 1 || b.bottom > frame.bottom + 1).map(([t]) => t + ' sticks out');
            boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => {
                const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (x > 1 && y > 0.35 * Math.min(a.height, b.height)) out.push(t + ' lies upon ' + u);
            }));
            return out;
        })"""
    )
    return found


def test_the_colours_of_charts_follow_the_page(browser: Browser, files: dict[str, Path]) -> None:
    inks = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
        page.goto(files["passed"].as_uri())
        inks.add(page.locator("svg text").first.evaluate("element => getComputedStyle(element).fill"))
        page.close()
    assert len(inks) == 2


def test_it_prints_on_few_pages(browser: Browser, files: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark", viewport={"width": 718, "height": 1000})
    page.emulate_media(media="print")
    page.goto(files["failed"].as_uri())
    page.screenshot(path=OUTPUT / "report-failed-print.png", full_page=True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    paper = page.pdf(path=OUTPUT / "report-failed.pdf", format="A4", print_background=True)
    assert 3 <= paper.count(b"/Type /Page\n") <= 10
    page.close()
