"""Whether what was published is there as it was signed: a check of its own on every canary."""

# No annotations from __future__: Dagster reads those of a check as types.

import dagster as dg

from orchestration.resources import Places, failures
from runtime.contract.audit import store_problems
from runtime.contract.errors import ReleaseNotFoundError

MOST_SHOWN = 20


def whole_check(target: str) -> dg.AssetChecksDefinition:
    """Reads every byte of the release that ``canary`` names, and holds it against its signed manifest."""

    @dg.asset_check(
        asset=dg.AssetKey([target, "canary_release"]),
        name="whole",
        automation_condition=dg.AutomationCondition.eager(),
        description="The release that canary names is whole and signed: every file, and all evidence beside "
        "it, is what its digest says.",
    )
    def whole(places: Places) -> dg.AssetCheckResult:
        with failures():
            store = places.store()
            try:
                release = store.resolve(target, "canary")
            except ReleaseNotFoundError as error:
                # Rolled back meanwhile: then there is nothing that could be damaged.
                nothing = {"release": "nothing"}
                return dg.AssetCheckResult(passed=True, metadata=nothing, description=str(error))
            found = store_problems(store, release.id)
        return dg.AssetCheckResult(
            passed=not found,
            severity=dg.AssetCheckSeverity.ERROR,
            description="; ".join(found[:MOST_SHOWN]) or "every file as it was signed",
            metadata={"release": release.id, "problems": len(found)},
        )

    return whole
