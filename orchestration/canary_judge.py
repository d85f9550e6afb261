"""The judge of canaries in Dagster: a sensor that looks, an asset that keeps the verdict and acts on it."""

# No annotations from __future__: Dagster reads those of an asset as types.

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from orchestration.chain import MANAGERS
from orchestration.resources import Places, failures
from runtime.contract.errors import PipelineError

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from assets.canary_source import Source
    from runtime.contract.verdict import Verdict

VERDICT: Final = "canary_verdict"
GROUP: Final = "verdicts"
Judged = dg.MaterializeResult[None]
LOOK_SECONDS: Final = 30
AGAIN_SECONDS: Final = 300
"""Between two runs on the same verdict: one that failed is not repeated at each look."""


def verdict_asset(target: str) -> dg.AssetsDefinition:
    """The verdict on what ``canary`` of a target names."""

    @dg.asset(
        key=dg.AssetKey([target, VERDICT]),
        deps=[dg.AssetKey([target, "canary_release"])],
        group_name=GROUP,
        owners=[MANAGERS],
        kinds={"json"},
        description="What was seen of the canary while it ran, held against assets/canary_policy.json: "
        "promote, hold or roll_back. A roll_back moves canary by itself; stable only moves by a person.",
    )
    def canary_verdict(context: dg.AssetExecutionContext, places: Places) -> Judged:
        with failures():
            return _judged(context, places, target)

    return canary_verdict


def open_source(places: Places, minutes: float) -> "Callable[[], Source]":
    """What is asked: Prometheus where it is named, else the runtimes themselves."""

    def opened() -> "Source":
        from assets.canary_source import NoEvidenceError, Prometheus, Runtimes

        if places.prometheus_url:
            return Prometheus(places.prometheus_url, minutes, places.prometheus_job)
        urls = [url.strip() for url in places.runtime_urls.split(",") if url.strip()]
        if not urls:
            raise NoEvidenceError(
                "nothing says where canaries are seen", hint="set PROMETHEUS_URL, or RUNTIME_URLS"
            )
        return Runtimes(urls)

    return opened


def _judged(context: dg.AssetExecutionContext, places: Places, target: str) -> Judged:
    from assets.canary_policy import load_canary_policy
    from assets.canary_verdict import carry_out, is_worth_keeping, verdict_on

    policy, digest = load_canary_policy()
    store = places.store()
    found = verdict_on(store, target, open_source(places, policy.window_minutes), policy, digest)
    if found is None:
        return dg.MaterializeResult(metadata={"decision": "nothing to judge"})
    canary, verdict = found
    moved = None
    if is_worth_keeping(store, verdict, policy):
        moved = carry_out(store, canary, verdict, policy, places.build_key())
    if moved is not None:
        context.log.error(f"canary of {target} returned to {moved.release[:12] or 'nothing'}: {moved.reason}")
    return dg.MaterializeResult(
        metadata={
            **_shown(verdict),
            "canary moved": f"to {moved.release or 'nothing'}" if moved is not None else "no",
        },
        data_version=dg.DataVersion(f"{verdict.entry}:{verdict.decision}"),
    )


def _shown(verdict: "Verdict") -> dict[str, Any]:
    records = [
        dg.TableRecord({"what": row.name, "value": row.value, "policy": row.bound, "outcome": row.outcome})
        for row in verdict.rows
    ]
    return {
        "decision": verdict.decision,
        "reasons": "; ".join(verdict.reasons()) or "none",
        "table": dg.MetadataValue.table(records),
        "release": verdict.release,
        "stable": verdict.stable or "nothing",
        "source": verdict.source,
        "numbers": verdict.provenance,
        "policy": verdict.policy,
    }


def judge_job(targets: tuple[str, ...]) -> "UnresolvedAssetJobDefinition":
    """Judges the canaries of all targets."""
    return dg.define_asset_job(
        "judge_canary",
        selection=dg.AssetSelection.assets(*(dg.AssetKey([target, VERDICT]) for target in targets)),
        description="Hold what was seen of each canary against the policy; roll back what broke it.",
        executor_def=dg.in_process_executor,
    )


def judge_sensor(targets: tuple[str, ...], watched: bool) -> dg.SensorDefinition:
    """Looks at the canaries twice a minute.

    Args:
        targets: Whose.
        watched: Whether something says where they are seen; where not, it is off until somebody starts it.
    """
    running, stopped = dg.DefaultSensorStatus.RUNNING, dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        job_name="judge_canary",
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=running if watched else stopped,
        description="Judges canaries by what Prometheus, or the runtimes, say of them; a run only where the "
        "verdict is new, is to be renewed, or moves canary.",
    )
    def canary_judge(context: dg.SensorEvaluationContext, places: Places) -> dg.SensorResult:
        requests, said = [], []
        for target in targets:
            try:
                key, what = _looked(places, target)
            except Exception as error:  # whatever it is, the other targets' canaries are still judged
                if not isinstance(error, PipelineError):
                    context.log.exception(f"{target} could not be judged")
                said.append(f"{target}: {type(error).__name__}: {error}")
                continue
            said.append(f"{target}: {what}")
            if key:
                requests.append(dg.RunRequest(run_key=key, asset_selection=[dg.AssetKey([target, VERDICT])]))
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else "; ".join(said))

    return canary_judge


def _looked(places: Places, target: str) -> tuple[str, str]:
    """A key of the run that is to be made, empty for none, and what is to be said."""
    from assets.canary_policy import load_canary_policy
    from assets.canary_verdict import is_worth_keeping, verdict_on
    from runtime.contract.document import sha256_bytes, to_json
    from runtime.contract.verdict import verdicts_on

    policy, digest = load_canary_policy()
    store = places.store()
    found = verdict_on(store, target, open_source(places, policy.window_minutes), policy, digest)
    if found is None:
        return "", "nothing to judge"
    _, verdict = found
    what = f"{verdict.decision}: {'; '.join(verdict.reasons()) or 'all kept'}"[:500]
    if not is_worth_keeping(store, verdict, policy):
        return "", what
    # What is kept so far is in the key: Dagster makes one run of each, and hold, promote, hold are three.
    kept = verdicts_on(store, verdict.release)
    before = sha256_bytes(to_json(kept[-1]))[:16] if kept else "first"
    bucket = int(time.time() // AGAIN_SECONDS)
    return f"{verdict.entry[:16]}-{verdict.decision}-{before}-{bucket}", what
