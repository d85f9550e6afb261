"""Moves that a person answers for, as Dagster jobs: signed where the manager's key is, else asked for.

Both are ops, not assets: nothing that materializes assets, a click on "Materialize all" or a selection of
``*``, can reach them. What they did is recorded on ``stable_release``, which nothing can materialize.
"""

# No annotations from __future__: Dagster reads those of an op as types.

from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg
from pydantic import Field, ValidationError

from orchestration.chain import CHANNELS_GROUP, MANAGERS
from orchestration.resources import Places, failures
from runtime.contract.channels import ChannelEntry
from runtime.contract.promotion import (
    Decision,
    Plan,
    PromotionRefusedError,
    plan_promotion,
    plan_roll_back,
    promote,
    roll_back,
)
from runtime.contract.requests import REQUEST_SCHEMA, MoveRequest, write_request
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import SHORTEST_SIGNED

STABLE: Final = "stable_release"
AUTOMATION_TAGS: Final = (
    "dagster/schedule_name",
    "dagster/sensor_name",
    "dagster/backfill",
    "dagster/auto_materialize",
    "dagster/from_automation_condition",
)
"""Tags of runs that no person started."""


class MoveConfig(dg.Config):
    """What a person decided. No field has a default: the launchpad starts nothing without them."""

    release: str = Field(
        pattern=f"^[0-9a-f]{{{SHORTEST_SIGNED},64}}$",
        description=f"The release: its id, or the first {SHORTEST_SIGNED} digits or more.",
    )
    approved_by: str = Field(pattern=r"\S", description="Who answers for it, by name.")
    reason: str = Field(pattern=r"\S", description="Why, in one line: a year later, somebody asks.")
    force: bool = Field(
        default=False, description="Against advice: a release marked bad, or never a canary. Recorded."
    )


def stable_asset(target: str) -> dg.AssetSpec:
    """What ``stable`` of a target names: seen in the UI, made by nobody but the jobs below."""
    return dg.AssetSpec(
        key=dg.AssetKey([target, STABLE]),
        deps=[dg.AssetKey([target, "canary_release"]), dg.AssetKey([target, "canary_verdict"])],
        group_name=CHANNELS_GROUP,
        owners=[MANAGERS],
        kinds={"json"},
        description="The canary that `promote_to_stable` made stable, or that `roll_back` went back to. "
        "Moves by a signature of the release manager, never by materializing.",
    )


@dg.op(description="Sign that stable takes this release, or ask for it.", tags={"kind": "signature"})
def promote_release(context: dg.OpExecutionContext, config: MoveConfig, places: Places) -> None:
    """Promote, with the same checks as ``releasectl promote``."""
    _move(context, config, places, "promote")


@dg.op(description="Sign that stable returns to this release, or ask for it.", tags={"kind": "signature"})
def roll_back_release(context: dg.OpExecutionContext, config: MoveConfig, places: Places) -> None:
    """Roll back, with the same checks as ``releasectl rollback``."""
    _move(context, config, places, "roll_back")


def _checked(op: str) -> dg.ConfigMapping:
    """The launchpad's fields at the top level, refused before a run is made where one cannot be right."""

    def ops(given: dict[str, Any]) -> dict[str, Any]:
        try:
            MoveConfig(**given)
        except ValidationError as error:
            wrong = [f"{each['loc'][0]} {each['input']!r}: {each['msg']}" for each in error.errors()]
            raise PromotionRefusedError(
                "; ".join(wrong), where="launchpad", hint="correct it, and launch again"
            ) from None
        return {"ops": {op: {"config": given}}}

    return dg.ConfigMapping(config_fn=ops, config_schema=MoveConfig.to_config_schema().as_field())


@dg.job(
    name="promote_to_stable",
    config=_checked("promote_release"),
    description="Let stable take a canary's release. Signs where RELEASE_KEY_FILE is; elsewhere writes a "
    "request for `releasectl promote --request`.",
    executor_def=dg.in_process_executor,
)
def promote_to_stable() -> None:
    """One release, one person, one reason."""
    promote_release()


@dg.job(
    name="roll_back",
    config=_checked("roll_back_release"),
    description="Let stable return to an earlier release: a new entry of its history. Signs, or asks, as "
    "promote_to_stable does.",
    executor_def=dg.in_process_executor,
)
def roll_back_stable() -> None:
    """One release, one person, one reason."""
    roll_back_release()


def _move(context: dg.OpExecutionContext, config: MoveConfig, places: Places, action: str) -> None:
    with failures():
        by_itself = sorted(set(context.run.tags) & set(AUTOMATION_TAGS))
        if by_itself:
            raise PromotionRefusedError(
                f"the run was started by automation ({by_itself[0]})",
                where="stable",
                hint="a person starts it: from the launchpad, or with `releasectl`",
            )
        decision = Decision(actor=config.approved_by, reason=config.reason, force=config.force)
        store = places.store()
        identifier = store.named(config.release, SHORTEST_SIGNED)
        target = store.open(identifier).manifest.target
        if action == "promote":
            plan = plan_promotion(store, target, identifier)
        else:
            plan = plan_roll_back(store, target, "stable", to=identifier)
        plan.check(decision)
        key = places.manager_key()
        if key is None:
            _ask(context, store, plan, decision)
        elif action == "promote":
            _record(context, store, promote(store, target, identifier, decision, key, seen=plan.head))
        else:
            to, seen = identifier, plan.head
            _record(context, store, roll_back(store, target, "stable", decision, key, to=to, seen=seen))


def _ask(context: dg.OpExecutionContext, store: ReleaseStore, plan: Plan, decision: Decision) -> None:
    """Write a request: the plan was held against all that a signature would be."""
    head = plan.head
    name = write_request(
        store,
        MoveRequest(
            schema=REQUEST_SCHEMA,
            action=plan.action,
            target=plan.target,
            channel=plan.channel,
            release=plan.identifier,
            approved_by=decision.actor,
            reason=decision.reason,
            force=decision.force,
            origin=f"Dagster run {context.run.run_id}",
            seen=head.signed.digest if head else "",
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    force = " --force" if plan.advice else ""
    command = f"releasectl promote --request {name[:12]} --by <you>{force}"
    context.log.warning(f"stable did not move: the release manager's key is not here. Where it is: {command}")
    context.add_output_metadata(
        {
            "signed": False,
            "request": name,
            "what to do": command,
            "target": plan.target,
            "release": plan.identifier,
            "against": "; ".join(plan.advice) or "nothing",
        }
    )


def _record(context: dg.OpExecutionContext, store: ReleaseStore, entry: ChannelEntry) -> None:
    metadata: dict[str, str | int] = {
        "release": entry.release,
        "digest": entry.release or "nothing",
        "channel": f"{entry.target}/stable",
        "entry": entry.sequence,
        "action": entry.action,
        "approved by": entry.actor,
        "reason": entry.reason,
        "since": entry.at,
        "before": entry.previous or "nothing",
        "overridden": "; ".join(entry.overridden) or "nothing",
        "evidence": ", ".join(f"{each.kind} {each.sha256[:12]}" for each in entry.evidence) or "none",
        "signed with": store.trust.root.kind,
    }
    context.log_event(
        dg.AssetMaterialization(
            asset_key=dg.AssetKey([entry.target, STABLE]),
            description=f"{entry.action} by {entry.actor}: {entry.reason}",
            metadata=metadata,
            tags={"dagster/data_version": entry.release},
        )
    )
    context.add_output_metadata({"signed": True, **metadata})
