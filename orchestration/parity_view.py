"""How a parity report looks in Dagster's UI, and the check that blocks; computes nothing.

The UI draws a table in place, a picture only behind "Show Markdown", and the history of a number over
builds; the bytes of a picture lie in its event log. So: verdict, a link to the whole report, table, small
pictures, and every metric once more as a number.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.report import content, report_link
from assets.report.glossary import explained
from runtime.contract.parity import ChampionComparison, ParityEvidence

CHECK_NAME = "parity"
REPORT_KEY = "report file"
"""Metadata entry that says where the HTML report lies."""
REPORT_LINK = "report"
"""The one that leads there, where the reports are served."""


def parity_metadata(
    evidence: ParityEvidence,
    champion: ChampionComparison,
    images: Mapping[str, bytes],
    report_path: Path,
    report_url: str,
) -> dict[str, dg.MetadataValue[Any]]:
    """What a materialization of ``parity_report`` shows, in the order of importance.

    Args:
        evidence: What was found.
        champion: The same build beside the champion.
        images: Name to PNG; they are stored in the event log.
        report_path: The HTML report (``keep_report``).
        report_url: Where its folder is served; empty where it is not.
    """
    text, result = dg.MetadataValue.text, evidence.result
    failures = content.failures(evidence, champion)
    shown: dict[str, dg.MetadataValue[Any]] = {
        "verdict": text(content.verdict(evidence, champion)),
        # A row each: the UI cuts a line where its column ends.
        **({"failures": _table([{"failure": each} for each in failures], ["failure"])} if failures else {}),
        "summary": text(content.summary(evidence, champion)),
        # Above the table: below it, it would not be on the first screen.
        **_links(report_path, report_url),
        "metrics": _metrics_table(evidence, champion),
        "numbers": text(result.provenance),
        "origin": text(origin_shown(evidence.origin)),
        "windows": dg.MetadataValue.int(result.windows),
        "judged": text(evidence.judged),
        "champion": text(content.against(champion)),
        "active dimensions": dg.MetadataValue.int(evidence.active),
        "judged artifact": text(result.artifact_sha256),
        "motif head": text(evidence.motif_head.provenance),
    }
    shown |= {f"plot: {name}": _picture(name, data) for name, data in images.items()}
    shown |= {"strata": _strata_table(evidence), "contexts": _contexts_table(evidence)}
    return shown | numbers(evidence)


def numbers(evidence: ParityEvidence) -> dict[str, dg.MetadataValue[Any]]:
    """Every metric as a number, whose history the UI draws."""
    return {name: dg.MetadataValue.float(value) for name, value in evidence.result.metrics.items()}


def origin_shown(origin: str) -> str:
    """Where windows came from, said so that nobody takes synthetic ones for others."""
    if origin == "synthetic":
        return "SYNTHETIC: made by a program, not captured"
    return origin


def parity_check_result(
    evidence: ParityEvidence, champion: ChampionComparison, report_path: Path, report_url: str
) -> dg.AssetCheckResult:
    """The check that blocks: passed only where the policy and the comparison with the champion are.

    It leads to the whole report: who reads that it failed asks for that next.
    """
    found = content.failures(evidence, champion)
    return dg.AssetCheckResult(
        check_name=CHECK_NAME,
        passed=content.is_passed(evidence, champion),
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(found) or content.summary(evidence, champion),
        metadata={**_links(report_path, report_url), **numbers(evidence)},
    )


def _metrics_table(evidence: ParityEvidence, champion: ChampionComparison) -> dg.MetadataValue[Any]:
    # The UI's column is narrow, and what sticks out has to be scrolled to: the mark comes first, units are in
    # the metrics' names.
    marks = {content.MET: "✓", content.MISSED: "✗", content.NOT_JUDGED: content.NONE}
    records = [
        {
            "ok": marks[row.state],
            "metric": row.name,
            "value": row.shown,
            "threshold": _short(row.bound),
            "typical": _short(row.usual),
            "champion": row.champions,
        }
        for row in content.metric_rows(evidence, champion)
    ]
    return _table(records, ["ok", "metric", "value", "threshold", "typical", "champion"])


def _links(path: Path, url: str) -> dict[str, dg.MetadataValue[Any]]:
    return {
        REPORT_LINK: dg.MetadataValue.url(report_link(path, url)),
        REPORT_KEY: dg.MetadataValue.path(str(path)),
    }


def _short(span: str) -> str:
    return span.replace(" to ", "–")


def _strata_table(evidence: ParityEvidence) -> dg.MetadataValue[Any]:
    rows = content.strata_rows(evidence)
    names = content.columns(rows)
    records = [{"stratum": row.name, "windows": row.windows, **_numbers(names, row.metrics)} for row in rows]
    return _table(records, ["stratum", "windows", *map(_heading, names)])


def _contexts_table(evidence: ParityEvidence) -> dg.MetadataValue[Any]:
    names = content.columns(evidence.contexts)
    records = [
        {
            "context": each.name,
            "numbers": each.provenance or "not run",
            **_numbers(names, each.metrics),
            "ran by": each.ran_by or each.not_run,
        }
        for each in evidence.contexts
    ]
    return _table(records, ["context", "numbers", *map(_heading, names), "ran by"])


def _numbers(names: list[str], metrics: Mapping[str, float]) -> dict[str, str]:
    return {_heading(name): content.number(name, metrics.get(name)) for name in names}


def _heading(name: str) -> str:
    unit = explained(name).unit
    return f"{name}, {unit}" if unit else name


def _table(records: list[dict[str, Any]], columns: list[str]) -> dg.MetadataValue[Any]:
    # A schema of its own, so that a table without rows is one too.
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    return dg.MetadataValue.table([dg.TableRecord(record) for record in records], schema=schema)


def _picture(name: str, data: bytes) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(data).decode()})")
