"""Weights and windows in Dagster's UI: what was found, and what is claimed of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from assets.calibration import WindowSets
    from assets.judgement import Judgement
    from assets.product import Product, Workbench


def weights_shown(bench: Workbench, product: Product, judgement: Judgement) -> dict[str, Any]:
    """What an observation records: what was found, and beside it what the files claim."""
    card = judgement.folder.card()
    files = {name: {"sha256": sha256, "bytes": size} for name, (sha256, size) in judgement.files().items()}
    claims = [dg.TableRecord(dataclasses.asdict(claim)) for claim in judgement.claims]
    return {
        **judgement.summary(),
        "parameters": judgement.trained.encoder.parameter_count,
        "claimed and measured": dg.MetadataValue.table(claims),
        "read from": dg.MetadataValue.path(str(judgement.folder.path)),
        **({"model card": dg.MetadataValue.md(card)} if card else {}),
        "files": dg.MetadataValue.json(files),
        "path": dg.MetadataValue.path(str(bench.directory(product))),
        "digest": product.digest,
        "size": dg.MetadataValue.int(product.size),
    }


def windows_shown(sets: WindowSets) -> dict[str, Any]:
    """What is recorded of the sets: where they come from first, then strata and what the gate warns of."""
    from orchestration.parity_view import origin_shown

    index = sets.index
    names = sorted({stratum for record in index.sets.values() for stratum in record.strata})
    if index.strata.names:
        names = list(index.strata.names)
    strata = [
        dg.TableRecord(
            {"stratum": name, **{each: record.strata.get(name, 0) for each, record in index.sets.items()}}
        )
        for name in names
    ]
    findings = [dg.TableRecord(dataclasses.asdict(finding)) for finding in sets.findings]
    return {
        "origin": origin_shown(index.origin),
        "generator": index.generator,
        "strata": dg.MetadataValue.table(strata),
        "strata by": index.strata.text(),
        "input gate": f"passed with {len(findings)} warnings" if findings else "passed, nothing to warn of",
        **({"findings": dg.MetadataValue.table(findings)} if findings else {}),
        **{f"{name} windows": record.count for name, record in index.sets.items()},
        "units": dg.MetadataValue.json(index.units),
        "channel order": " ".join(index.channel_order),
    }
