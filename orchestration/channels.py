"""What is on which channel, in Dagster's UI: seen by a sensor, whoever moved it and wherever."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import dagster as dg

from orchestration.chain import CHANNELS_GROUP, MANAGERS
from orchestration.resources import Places
from runtime.contract.channels import CHANNELS
from runtime.contract.errors import PipelineError
from runtime.contract.store import ReleaseStore

ASSET: Final = "release_channels"
LOOK_SECONDS: Final = 30
NOTHING: Final = "nothing"


def channels_asset(target: str) -> dg.AssetSpec:
    """Where the channels of a target point: made by nobody, recorded by ``channels_watch``."""
    return dg.AssetSpec(
        key=dg.AssetKey([target, ASSET]),
        deps=[dg.AssetKey([target, "stable_release"])],
        group_name=CHANNELS_GROUP,
        kinds={"json"},
        owners=[MANAGERS],
        description="Which release is on which channel, since when, by whom and on which evidence. Recorded "
        "whenever a channel moved, also by `releasectl`.",
    )


def channels_watch(targets: tuple[str, ...]) -> dg.SensorDefinition:
    """Records what the channels name, where that changed."""

    @dg.sensor(
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Records which release is on which channel whenever one moved, whoever moved it.",
    )
    def channels_watch(context: dg.SensorEvaluationContext, places: Places) -> dg.SensorResult:
        seen: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        now, events, said = dict(seen), [], []
        for target in targets:
            try:
                store = places.store()
                shown = shown_channels(store, target)
            except PipelineError as error:
                said.append(f"{target}: {error}")
                continue
            now[target] = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
            if now[target] != seen.get(target) and shown:
                events.append(materialization(store, target, shown))
        reason = "; ".join(said) or "no channel moved"
        return dg.SensorResult(
            asset_events=events, cursor=json.dumps(now), skip_reason=None if events else reason
        )

    return channels_watch


def shown_channels(store: ReleaseStore, target: str) -> list[dict[str, str]]:
    """A row for each channel that was ever moved; what its newest entry says.

    Raises:
        PipelineError: A channel, or the release that it names, cannot be read.
    """
    rows = []
    for channel in CHANNELS:
        head = store.head(target, channel)
        if head is None:
            continue
        entry, moved = head.entry, head.entry
        for moved in reversed(store.history(target, channel)):
            if moved.action not in ("mark_bad", "reaffirm"):
                break
        manifest = store.open(entry.release).manifest if entry.release else None
        rows.append(
            {
                "channel": channel,
                "release": entry.release or NOTHING,
                "model": f"{manifest.model.name} {manifest.model.version}" if manifest else NOTHING,
                "since": moved.at,
                "by": moved.actor,
                "action": moved.action,
                "reason": moved.reason,
                "overridden": "; ".join(moved.overridden) or NOTHING,
                "evidence": ", ".join(f"{each.kind} {each.sha256[:12]}" for each in moved.evidence) or "none",
                "entry": str(entry.sequence),
                "refused": "; ".join(head.refused) or "none",
            }
        )
    return rows


def materialization(store: ReleaseStore, target: str, shown: list[dict[str, str]]) -> dg.AssetMaterialization:
    """What is recorded of them."""
    newest = max(shown, key=lambda row: row["since"])
    metadata: dict[str, Any] = {"channels": dg.MetadataValue.table([dg.TableRecord(row) for row in shown])}
    for row in shown:
        metadata[row["channel"]] = row["release"]
        if row["release"] != NOTHING:
            directory = store.open(row["release"]).directory
            metadata[f"{row['channel']} files"] = dg.MetadataValue.path(str(directory))
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    return dg.AssetMaterialization(
        asset_key=dg.AssetKey([target, ASSET]),
        description=f"{newest['channel']}: {newest['action']} by {newest['by']}: {newest['reason']}",
        metadata={**metadata, "digest": digest, "signed with": store.trust.root.kind},
        tags={"dagster/data_version": digest},
    )
