"""The parity report for people: one HTML file that works from a disk, and the same numbers as JSON.

A file is named by its own digest, so equal evidence makes equal bytes: no date, path, host or random id
gets in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from assets.report import charts, content
from assets.report.glossary import GLOSSARY, explained
from assets.report.picture import Chart, png, svg
from runtime.contract import document
from runtime.contract.errors import store_errors
from runtime.contract.evidence import PARITY_KIND, evidence_name
from runtime.contract.files import write_document
from runtime.contract.parity import PublicationEvidence

IMAGES: Final = ("latents", "strata", "errors", "layers")
"""The charts that are also made as PNG, for an event log."""
MOST_LAYERS: Final = 24
"""Layers in a PNG; the page has all of them."""
_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Report:
    """Equal evidence and latents give equal bytes.

    Args:
        html: UTF-8, whole in itself: no script, and nothing that is loaded from elsewhere.
        json: The evidence.
        images: Name to PNG, about 20 KB each at most.
    """

    html: bytes
    json: bytes
    images: dict[str, bytes]


def to_json(evidence: PublicationEvidence) -> bytes:
    """The numbers of the report, for programs."""
    return document.to_json(evidence)


def render(evidence: PublicationEvidence, latents: Mapping[str, npt.NDArray[Any]]) -> Report:
    """Draw the report.

    Args:
        evidence: What was found; passed or failed makes no difference to what is shown.
        latents: ``full_precision`` and ``found``, float32 (N, 64): the judged windows' latents on both
            sides; ``strata`` (N,): each window's stratum.
    """
    drawn = _charts(evidence, latents)
    data = to_json(evidence)
    pictures = {name: drawn[name] for name in IMAGES if name in drawn}
    noise = evidence.parity.layers
    if noise and (few := charts.layers_chart(noise, MOST_LAYERS)):
        pictures["layers"] = few
    return Report(
        # How it ends in every folder where reports are kept: a store's is its target's already.
        html=_page(evidence, drawn, evidence_name(PARITY_KIND, "json", data)),
        json=data,
        images={name: png(chart) for name, chart in pictures.items()},
    )


def _charts(evidence: PublicationEvidence, latents: Mapping[str, npt.NDArray[Any]]) -> dict[str, Chart]:
    """Each chart for which there is something to draw."""
    parity = evidence.parity
    found: dict[str, Chart | None] = {
        "strata": charts.strata_chart(parity),
        "activity": charts.activity_chart(parity) if parity.dimensions else None,
        "layers": charts.layers_chart(parity.layers) if parity.layers else None,
    }
    if parity.active and len(latents["full_precision"]):
        scaled = charts.Latents.of(parity, latents["full_precision"], latents["found"])
        found["errors"] = charts.errors_chart(scaled, latents["strata"], parity)
        found["latents"] = charts.latents_chart(scaled)
        found["dimensions"] = charts.dimensions_chart(scaled)
    return {name: chart for name, chart in found.items() if chart}


def _page(evidence: PublicationEvidence, drawn: Mapping[str, Chart], json_name: str) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_HERE),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        evidence=evidence,
        parity=evidence.parity,
        champion=evidence.champion,
        charts=drawn,
        # matplotlib escapes what it writes; the page's policy allows no script besides.
        pictures={name: Markup(svg(chart, name)) for name, chart in drawn.items()},
        css=Markup((_HERE / "report.css").read_text()),
        content=content,
        explained=explained,
        glossary=GLOSSARY,
        json_name=json_name,
        rows=content.metric_rows(evidence.parity, evidence.champion),
    )
    return page.encode()


def file_name(target: str, data: bytes, suffix: str) -> str:
    """``<target>-parity-<digest>.<suffix>``: what a report's file is called."""
    return f"{target}-{evidence_name(PARITY_KIND, suffix, data)}"


def keep_report(folder: Path, target: str, report: Report) -> Path:
    """Write both files of a report, each named by its own digest.

    Returns:
        Where the HTML is.

    Raises:
        StoreError: It cannot be written; a file is whole or not there.
    """
    page = folder / file_name(target, report.html, "html")
    with store_errors(folder):
        # The JSON first: the HTML names it.
        write_document(folder / file_name(target, report.json, "json"), report.json)
        write_document(page, report.html)
    return page


def report_link(report_path: Path, report_url: str) -> str:
    """Address of a report: where its folder is served, else the file."""
    if not report_url:
        return report_path.absolute().as_uri()
    return f"{report_url.rstrip('/')}/{report_path.name}"
