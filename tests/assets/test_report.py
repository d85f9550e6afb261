"""The parity report: whole in itself, the same bytes for the same evidence, and nothing hidden."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from assets.report import IMAGES, Report, keep_report, render, report_link, to_json
from assets.report.content import metric_rows, number
from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.errors import StoreError
from runtime.contract.evidence import PARITY_KIND, evidence_name
from runtime.contract.parity import PublicationEvidence
from tests.chain import ROOT
from tests.evidence import ACTIVE, champion, crowded, latents, parity, publication

pytestmark = pytest.mark.build
LARGEST_IMAGE = 25_000
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{a$ &amp; \"'"
LOADING = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "href"}


class Page(HTMLParser):
    """What a page holds: every element with its attributes, and its text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._inside:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def good() -> Report:
    return render(publication(), latents())


@pytest.fixture(scope="module")
def bad() -> Report:
    return render(publication(good=False, compared=False), latents(good=False))


def test_it_is_whole_in_itself(good: Report, bad: Report) -> None:
    for report in (good, bad):
        page = Page(report.html)
        assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "a"} == set()
        for tag, attributes in page.elements:
            for name in LOADING & set(attributes):
                # Only what the SVG's own definitions are called.
                assert attributes[name].startswith("#"), (tag, name)
            assert not any(name.startswith("on") for name in attributes)
        text = report.html.decode()
        assert "http:" not in text
        assert "https:" not in text
        assert "@import" not in text
        assert re.findall(r"url\((?!#)", text) == []


def test_ids_are_unique_and_what_is_referred_to_is_there(good: Report) -> None:
    page = Page(good.html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(attributes.get(name, "").split()) <= set(ids)
        if attributes.get("href"):
            assert attributes["href"][1:] in ids
    assert set(re.findall(r"url\(#([^)]+)\)", good.html.decode())) <= set(ids)


def test_pictures_and_tables_are_named_for_those_who_do_not_see_them(good: Report) -> None:
    page = Page(good.html)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 6
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert attributes["aria-labelledby"]
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
    html = dict(page.elements)["html"]
    assert html["lang"] == "en"


def test_equal_evidence_gives_equal_bytes(good: Report) -> None:
    again = render(publication(), latents())
    assert (again.html, again.json, again.images) == (good.html, good.json, good.images)
    assert render(publication(model="another v1"), latents()).html != good.html


def test_bytes_do_not_depend_on_process_locale_or_matplotlibrc(good: Report, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\naxes.grid: True\n")
    script = (
        "from assets.report import render; from tests.evidence import *; import sys;"
        "sys.stdout.buffer.write(render(publication(), latents()).html)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=True,
    )
    assert run.stdout == good.html


def test_it_says_nothing_of_the_machine(good: Report) -> None:
    for data in (good.html, good.json):
        for trace in (str(ROOT), str(Path.home()), os.uname().nodename, "matplotlib", time.strftime("%Y-%m")):
            assert trace.encode() not in data


@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("passed", [True, False])
def test_every_number_is_in_the_page_and_in_the_json(passed: bool, compared: bool) -> None:
    evidence = publication(good=passed, compared=compared)
    report = render(evidence, latents(good=passed))
    words = Page(report.html).words
    for name, value in evidence.parity.result.metrics.items():
        assert name in words
        assert number(name, value) in words
    for stratum in evidence.parity.strata:
        assert stratum.name in words
        assert number("sqnr_db", stratum.metrics["sqnr_db"]) in words
    for context in evidence.parity.contexts:
        assert context.name in words
        assert context.ran_by in words
        assert context.not_run in words
    assert evidence.parity.layers is not None
    for layer in evidence.parity.layers.layers:
        assert layer.name in words
        assert f"{layer.only_on_db:.2f}" in words
    for digest in (*evidence.parity.upstream.values(), evidence.parity.result.artifact_sha256):
        assert digest in words
    assert from_json(PublicationEvidence, report.json, "report") == evidence
    assert json.loads(report.json)["parity"]["result"]["metrics"] == evidence.parity.result.metrics
    assert f"{evidence.parity.active} of 64 active" in words
    assert ("no champion" in words) == (not compared)


def test_a_failure_comes_first_and_in_full(bad: Report) -> None:
    evidence = publication(good=False, compared=False)
    words = Page(bad.html).words
    start = words.index("✗ FAILED")
    places = [words.index(failure, start) for failure in evidence.parity.result.failures]
    assert places == sorted(places)
    assert max(places) < words.index("Metrics")
    rows = metric_rows(evidence.parity, evidence.champion)
    missed = [row.state == "missed" for row in rows]
    assert missed == sorted(missed, reverse=True)
    assert sum(missed) == len(evidence.parity.result.failures) == 5
    assert f"<title>FAILED: parity of {evidence.model} for emulator</title>" in bad.html.decode()


def test_worse_than_the_champion_is_a_failure_though_every_bound_is_met() -> None:
    evidence = publication(worse=True)
    words = Page(render(evidence, latents()).html).words
    assert words.index("FAILED") < words.index(evidence.champion.failures[0]) < words.index("Metrics")
    assert "passed" not in words


def test_a_comparison_of_emulations_is_not_called_measured() -> None:
    """Judged on a device, beside a champion whose numbers are an emulation's."""
    made = publication()
    result = replace(made.parity.result, provenance="measured")
    page = render(replace(made, parity=replace(made.parity, result=result)), latents()).html.decode()
    section = page[page.index('<h2 id="champion">') :]
    section = section[: section.index("</section>")]
    assert re.findall(r'class="tag [^"]*">(\w+)<', section) == ["emulated"]


def test_evidence_that_says_failed_and_not_why_is_no_pass() -> None:
    evidence = publication()
    result = replace(evidence.parity.result, passed=False)
    silent = replace(evidence, parity=replace(evidence.parity, result=result))
    assert "the evidence says failed, and not why" in Page(render(silent, latents()).html).words


def test_a_metric_that_was_not_computed_is_missed() -> None:
    evidence = parity()
    metrics = {name: value for name, value in evidence.result.metrics.items() if name != "sqnr_db"}
    row, *_ = metric_rows(
        replace(evidence, result=replace(evidence.result, metrics=metrics)), champion(compared=False)
    )
    assert (row.name, row.state, row.shown, row.gauge) == ("sqnr_db", "missed", "not computed", None)


def test_what_was_not_measured_or_recorded_says_so(good: Report) -> None:
    words = Page(good.html).words
    assert words.index("Calibrated and judged on synthetic windows") < words.index("Metrics")
    assert words.index("The judged numbers are emulated") < words.index("Metrics")
    assert "480 synthetic" in words
    captured = Page(render(publication(origin="captured"), latents()).html).words
    assert "synthetic" not in captured
    assert "480 captured" in captured


def test_hostile_names_are_text() -> None:
    evidence = publication(model=HOSTILE)
    found = evidence.parity
    assert found.layers is not None
    layer = replace(found.layers.layers[0], name=HOSTILE)
    stratum = replace(found.strata[0], name=HOSTILE)
    finding = replace(found.findings[0], cause=HOSTILE, channel=HOSTILE)
    evidence = replace(
        evidence,
        parity=replace(
            found,
            layers=replace(found.layers, layers=(layer, *found.layers.layers[1:])),
            strata=(stratum, *found.strata[1:]),
            findings=(finding,),
            upstream={HOSTILE: found.calibration_sha256},
            strata_by=HOSTILE,
        ),
    )
    data = latents()
    data["strata"] = np.asarray([HOSTILE if name == "still_flat" else name for name in data["strata"]])
    page = Page(render(evidence, data).html)
    assert {tag for tag, _ in page.elements} & {"script", "img"} == set()
    assert page.words.count(re.sub(r"\s+", " ", HOSTILE)) >= 6


def test_little_to_draw_is_no_error() -> None:
    evidence = publication()
    bare = replace(
        evidence.parity,
        strata=(),
        dimensions=tuple(replace(each, active=False, sqnr_db=None) for each in evidence.parity.dimensions),
        layers=None,
        findings=(),
        typical={},
    )
    report = render(replace(evidence, parity=bare), latents())
    words = Page(report.html).words
    assert "0 of 64 active" in words
    assert "This toolchain does not tell it" in words
    assert report.images == {}
    only = replace(
        evidence.parity,
        dimensions=tuple(
            replace(each, active=each.index == ACTIVE[0]) for each in evidence.parity.dimensions
        ),
    )
    assert set(render(replace(evidence, parity=only), latents(windows=1)).images) == set(report_images())


def report_images() -> tuple[str, ...]:
    return ("latents", "strata", "errors", "layers")


def test_images_are_small_enough_for_an_event_log(good: Report, bad: Report) -> None:
    for report in (good, bad, render(*crowded())):
        assert tuple(report.images) == IMAGES
        for name, data in report.images.items():
            assert data.startswith(b"\x89PNG")
            assert len(data) <= LARGEST_IMAGE, name


def test_it_stays_small_with_many_windows(good: Report) -> None:
    assert len(render(publication(), latents(windows=4800)).html) < 1.5 * len(good.html)


def test_the_files_are_named_by_their_digests(good: Report, tmp_path: Path) -> None:
    path = keep_report(tmp_path / "reports", "emulator", good)
    assert path == keep_report(tmp_path / "reports", "emulator", good)
    assert path.name == f"emulator-parity-{sha256_bytes(good.html)}.html"
    assert path.read_bytes() == good.html
    beside = path.with_name(f"emulator-parity-{sha256_bytes(good.json)}.json")
    assert beside.read_bytes() == good.json == to_json(publication())
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, beside.name])
    # The page says how the name of the other file ends, here and in a release store.
    (ending,) = re.findall(r"ends in\s+(\S+\.json)", " ".join(Page(good.html).words.split()))
    assert beside.name.endswith(ending)
    assert evidence_name(PARITY_KIND, "json", good.json).endswith(ending)


def test_reports_that_cannot_be_kept_are_an_error_of_ours(good: Report, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("in the way")
    with pytest.raises(StoreError, match="reports"):
        keep_report(tmp_path / "reports", "emulator", good)


def test_a_link_is_served_where_that_is_known_and_else_a_file() -> None:
    path = Path("/somewhere/reports/emulator-parity-1.html")
    assert report_link(path, "http://127.0.0.1:4000/") == "http://127.0.0.1:4000/emulator-parity-1.html"
    assert report_link(path, "") == "file:///somewhere/reports/emulator-parity-1.html"


PAPERS: Mapping[str, tuple[str, ...]] = {
    "ink": ("paper", "page", "good-paper", "bad-paper", "warn-paper"),
    "muted": ("paper", "page"),
    "alarm": ("paper", "bad-paper"),
    "good": ("paper", "good-paper"),
    "warn": ("paper", "page", "good-paper", "bad-paper"),
}


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_is_legible(theme: int) -> None:
    """WCAG's 4.5 to 1 for every colour of letters on every ground that it is put on."""
    css = (ROOT / "assets" / "report" / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.S)[theme]
    colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]+);", block))
    for letters, papers in PAPERS.items():
        for paper in papers:
            lights = sorted((_light(colours[letters]), _light(colours[paper])))
            contrast = (lights[1] + 0.05) / (lights[0] + 0.05)
            assert contrast >= 4.5, (letters, paper, round(contrast, 2))


def _light(colour: str) -> float:
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
