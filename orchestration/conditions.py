"""When an asset is made without anybody asking: when what it was made from, or its own code, is another now.

By data version, not by event: weights that are observed again, or a link that is made again with the same
bytes, start nothing. And by state, not by what was seen to happen: a change that came while the asset was
being made, before the sensor was switched on, or while the daemon was down is still a change; so is a target
that was never built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import dagster as dg

_When: Any = dg.AutomationCondition

CHANGED: Final = "data version of an input or own code changed, and blocking checks passed"
"""The label under which Dagster's UI shows it."""
CODE_CHANGED: Final = "own code changed"
DATA_VERSION_TAG: Final = "dagster/data_version"
CODE_VERSION_TAG: Final = "dagster/code_version"
INPUT_TAG: Final = "dagster/input_data_version/"
"""What Dagster records with each materialization: dagster/_core/definitions/data_version.py."""
CODE: Final = "code"


def inputs_or_code_changed(*, in_one_run: bool = True) -> dg.AutomationCondition[dg.AssetKey]:
    """True while an asset is out of date, or has to be made because an input is about to be.

    Not while an input is being made or is missing, nor where a blocking check on one has not passed. What a
    run that ended tried to make, from the same versions and with the same code, is not begun again: who
    cancels a compile does not want it begun again, and one that failed fails again.

    Args:
        in_one_run: Whether it goes into the same run as inputs that are made at the same moment. Without it,
            it waits until they came out different; where it was out of date before, it goes with them, and a
            blocking check stands before it in that run. (It never waits for inputs that are about to be
            made: where weights come faster than builds end, nothing would ever be released.)
    """
    input_made_now = _When.any_deps_match(_When.will_be_requested()).with_label("an input is made now")
    trigger = OutOfDate() | input_made_now if in_one_run else OutOfDate()
    found: dg.AutomationCondition[dg.AssetKey] = (
        trigger
        & ~_When.any_deps_missing()
        & ~_When.any_deps_in_progress()
        & ~_When.in_progress()
        & _When.all_deps_blocking_checks_passed()
    ).with_label(CHANGED)
    return found


def code_changed() -> dg.AutomationCondition[dg.AssetKey]:
    """True while what a watcher has read from files was read by other code than there is now."""
    found: dg.AutomationCondition[dg.AssetKey] = (
        OutOfDate() & ~_When.missing() & ~_When.in_progress()
    ).with_label(CODE_CHANGED)
    return found


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the condition remembers of an asset from one look to the next.

    Args:
        run: The last run that was to make it; empty where there was none.
        tried: Of what that run was to make it: data version by input, and its own code version.
        seen: The same, as it was at the last look.
    """

    run: str = ""
    tried: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)

    def after(self, run: str, now: Mapping[str, str], made_by: Mapping[str, str]) -> Memory:
        """What to remember now.

        Args:
            run: The last run that was to make the asset.
            now: Data version by input, and code version.
            made_by: The run that made each input.
        """
        # A run that is new began after the last look: what came since then it may not have had.
        tried = self.tried if run == self.run else self.seen
        own = {name: version for name, version in now.items() if run and made_by.get(name) == run}
        return Memory(run=run, tried={**tried, **own}, seen=now)


def differing(made_of: Mapping[str, str] | None, now: Mapping[str, str], memory: Memory) -> list[str]:
    """Names of what is another now than what the asset was made of, and was not tried.

    Args:
        made_of: What is recorded with the asset; None where it was never made. What is not recorded is not
            known to differ: somebody reported the asset as made.
        now: Data version by input, and code version; an input that does not exist has none.
        memory: Of the last run that was to make it.
    """
    return [
        name
        for name, version in now.items()
        if version != memory.tried.get(name) and (made_of is None or made_of.get(name, version) != version)
    ]


class OutOfDate(dg.AutomationCondition[dg.AssetKey]):
    """True while an asset was made from other data versions or by other code than there are now, or never.

    Evaluated in the code server, where our code is.
    """

    @property
    def name(self) -> str:
        return "out_of_date"

    @property
    def description(self) -> str:
        return "made from other data versions, or by other code, than there are now; or never made"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        """Compare what is recorded with what is there."""
        instance, graph = context.asset_graph_view.instance, context.asset_graph_view.asset_graph
        asset = graph.get(context.key)
        now, made_by = {CODE: asset.code_version or ""}, {}
        for key in sorted(asset.parent_keys):
            if made := _latest(instance, key, observed=not graph.get(key).is_materializable):
                now[key.to_user_string()], made_by[key.to_user_string()] = made
        memory = _remembered(context.cursor).after(_last_run(instance, context.key), now, made_by)
        changed = differing(_made_of(instance, context.key), now, memory)
        if changed and _works(instance, memory.run):
            changed = []  # what goes on from it in the same run would else be made in bits
        if changed:
            context.log.info(f"{context.key.to_user_string()} is out of date: {', '.join(changed)}")
        found = context.candidate_subset if changed else context.get_empty_subset()
        return dg.AutomationResult(context, found, cursor=json.dumps(asdict(memory)))


def _remembered(cursor: str | None) -> Memory:
    return Memory(**json.loads(cursor)) if cursor else Memory()


def _last_run(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
    """The run that was to make an asset last, or made it; empty where there was none."""
    records = instance.get_asset_records([key])
    return (records[0].asset_entry.last_run_id or "") if records else ""


def _works(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run has not ended, although it may be done with one asset."""
    run = instance.get_run_by_id(run_id) if run_id else None
    return run is not None and not run.is_finished


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey, *, observed: bool) -> tuple[str, str] | None:
    """The present data version of an asset, and the run that made or observed it."""
    fetch = instance.fetch_observations if observed else instance.fetch_materializations
    for record in fetch(key, limit=1).records:
        event = record.asset_observation if observed else record.asset_materialization
        version = ((event and event.tags) or {}).get(DATA_VERSION_TAG, "")
        return (version, record.run_id) if version else None
    return None


def _made_of(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, str] | None:
    """What the present materialization of an asset was made of, as Dagster recorded it; None without one."""
    for record in instance.fetch_materializations(key, limit=1).records:
        tags = (record.asset_materialization and record.asset_materialization.tags) or {}
        made_of = {
            name.removeprefix(INPUT_TAG): version
            for name, version in tags.items()
            if name.startswith(INPUT_TAG)
        }
        return made_of | ({CODE: tags[CODE_VERSION_TAG]} if CODE_VERSION_TAG in tags else {})
    return None
