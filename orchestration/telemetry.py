"""What runtimes kept, in Dagster: candidates for the next calibration set, and a list to label."""

# No annotations from __future__: Dagster reads those of an asset as types.

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from orchestration.chain import ENGINEERS
from orchestration.resources import Places, failures
from runtime.contract.errors import PipelineError

if TYPE_CHECKING:
    from assets.captured import Captured
    from assets.product import Product, Workbench
    from assets.telemetry_offer import Offer
    from runtime.contract.window import ChannelStatistics

ASSET: Final = "telemetry_candidates"
TELEMETRY: Final = "telemetry"
MOST_SHOWN: Final = 100
"""Rows of a table in the UI; the report has them all."""

Offered = dg.MaterializeResult[None]


@dg.asset(
    name=ASSET,
    group_name=TELEMETRY,
    owners=[ENGINEERS],
    kinds={"numpy"},
    description="Windows that runtimes kept (TELEMETRY_DIR), through the calibration gate: candidates for "
    "the next calibration set, origin captured, and a list to label. Nothing is built from them before "
    "somebody chose: python -m assets.calibration.",
)
def telemetry_candidates(context: dg.AssetExecutionContext, places: Places) -> Offered:
    """Read what was copied here, gate it, and keep the offer on the workbench."""
    if not places.telemetry_dir:
        context.log.warning("TELEMETRY_DIR is not set: no windows of runtimes are here")
        return dg.MaterializeResult(metadata={"candidates": 0, "input gate": "TELEMETRY_DIR is not set"})
    with failures():
        from assets.captured import read_folder
        from assets.telemetry import files_of
        from assets.telemetry_offer import offer

        captured = read_folder(Path(places.telemetry_dir))
        statistics, judged_by = _normalization(places, captured)
        offered = offer(captured, statistics)
        bench = places.bench()
        product = bench.put(ASSET, files_of(offered), facts={"origin": "captured"})
        bench.remember(product)
    for each in captured.left_out[:MOST_SHOWN]:
        context.log.warning(f"left out: {each.file}: {each.why}")
    return dg.MaterializeResult(
        metadata=_shown(bench, product, offered) | {"z-scores": judged_by},
        data_version=dg.DataVersion(product.digest),
    )


def _normalization(places: Places, captured: "Captured") -> "tuple[ChannelStatistics | None, str]":
    """That of the release that answered last, and in words whether it is known here."""
    if not captured.windows:
        return None, "nothing to check"
    release = captured.windows[-1].kept.release
    try:
        manifest = places.store().open(release).manifest
    except PipelineError as error:
        return None, f"not checked: release {release[:12]} is not in this store ({error.code})"
    return manifest.input.normalization, f"checked with release {release[:12]}"


def _shown(bench: "Workbench", product: "Product", offered: "Offer") -> dict[str, Any]:
    from assets.findings import REFUSE
    from assets.telemetry import CANDIDATES, REPORT, TO_LABEL
    from assets.telemetry_offer import REFUSED

    folder, captured = bench.directory(product), offered.captured
    groups = [
        dg.TableRecord(
            {
                "release": each.release[:12],
                "reason": each.reason,
                "windows": each.windows,
                "verdict": each.verdict,
                # Names: with sentences the page cuts the table off.
                "findings": ", ".join(dict.fromkeys(found.check for found in each.of_the_windows()))
                or "none",
            }
        )
        for each in offered.groups[:MOST_SHOWN]
    ]
    tables = {
        "reasons": groups,
        "not offered": [
            dg.TableRecord({"windows": count, "why": why}) for why, count in offered.left().items()
        ][:MOST_SHOWN],
        "findings": [
            dg.TableRecord({"severity": each.severity, "finding": each.sentence()})
            for each in offered.findings
        ],
        "left out": [dg.TableRecord(dataclasses.asdict(each)) for each in captured.left_out[:MOST_SHOWN]],
    }
    refused = [
        f"{each.reason} of {each.release[:12]}: "
        + "; ".join(found.sentence() for found in each.of_the_windows() if found.severity == REFUSE)
        for each in offered.groups
        if each.verdict == REFUSED
    ]
    paths = {"to label": TO_LABEL, "report": REPORT}
    if offered.candidates:
        paths["candidate windows"] = CANDIDATES
        gate = f"passed with {len(offered.findings)} findings about a set of these alone"
    else:
        gate = f"nothing is offered: {offered.why_none()}"
    return {
        "origin": "captured",
        "files": captured.files,
        "windows": len(captured.windows),
        "candidates": len(offered.candidates),
        "input gate": gate,
        **({"why refused": ". ".join(refused)} if refused else {}),
        **{name: dg.MetadataValue.table(rows) for name, rows in tables.items() if rows},
        **{name: dg.MetadataValue.path(str(folder / file)) for name, file in paths.items()},
        "path": dg.MetadataValue.path(str(folder)),
        "digest": product.digest,
        "size": dg.MetadataValue.int(product.size),
    }
