"""Promotion in Dagster: a person's move, signed where the key is; materializing never gets there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.chain import PRODUCTS, calibration_set, model_weights, onnx_model, target_assets
from orchestration.promotion import promote_to_stable, roll_back_stable, stable_asset
from orchestration.resources import Places, ProductIOManager
from runtime.contract.promotion import Decision, mark_bad
from runtime.contract.requests import pending_requests
from tests.keys import BUILD, MANAGER, a_store
from tests.simulators import ReleaseSimulator
from tests.verdicts import judged_well

pytestmark = pytest.mark.build
STABLE = dg.AssetKey(["emulator", "stable_release"])


@pytest.fixture(name="instance")
def an_instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def definitions(root: Path, **changes: str) -> dg.Definitions:
    places: dict[str, Any] = {
        "weights_dir": "",
        "calib_dir": "",
        "build_dir": str(root / "bench"),
        "release_store": str(root / "store"),
        "trust_root": os.environ["TRUST_ROOT"],
        "release_key_file": os.environ["RELEASE_KEY_FILE"],
    }
    return dg.Definitions(
        assets=[
            model_weights,
            calibration_set,
            onnx_model,
            *target_assets("emulator"),
            stable_asset("emulator"),
        ],
        jobs=[promote_to_stable, roll_back_stable],
        resources={
            "places": Places(**places | changes),
            PRODUCTS: ProductIOManager(build_dir=str(root / "bench")),
        },
    )


def move(
    root: Path,
    instance: dg.DagsterInstance,
    release: str,
    job: str = "promote_to_stable",
    *,
    tags: dict[str, str] | None = None,
    key: str | None = None,
    **config: object,
) -> dg.ExecuteInProcessResult:
    changes = {} if key is None else {"release_key_file": key}
    given = {"release": release, "approved_by": "anna", "reason": "good on the bench", **config}
    return (
        definitions(root, **changes)
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            run_config=given,
            tags=tags or {},
            raise_on_error=False,
        )
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    found = event.step_failure_data.user_failure_data
    assert found is not None
    return str(found.description)


def two_canaries(root: Path) -> tuple[str, str]:
    """The first of them is judged as what canary names now, the second when it was published."""
    first, second = (
        ReleaseSimulator(version=version).publish(root / "store", "canary").id for version in ("v1", "v2")
    )
    judge_again(root, first)
    return first, second


def judge_again(root: Path, identifier: str) -> None:
    store = a_store(root / "store")
    judged_well(store, store.open(identifier))


def test_a_promotion_is_signed_and_seen(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    first, second = two_canaries(tmp_path)
    assert move(tmp_path, instance, first[:16]).success
    judge_again(tmp_path, second)
    assert move(tmp_path, instance, second, approved_by="bert").success
    assert move(tmp_path, instance, first, "roll_back", reason="heat").success
    history = a_store(tmp_path / "store").history("emulator", "stable")
    assert [(entry.release, entry.action, entry.actor) for entry in history] == [
        (first, "promote", "anna"),
        (second, "promote", "bert"),
        (first, "roll_back", "anna"),
    ]
    event = instance.get_latest_materialization_event(STABLE)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["release"].value == first
    assert metadata["reason"].value == "heat"
    assert metadata["signed with"].value == "development keys"


def test_the_ui_shows_which_canary_it_was(tmp_path: Path) -> None:
    graph = definitions(tmp_path).resolve_asset_graph()
    parents = {dg.AssetKey(["emulator", name]) for name in ("canary_release", "canary_verdict")}
    assert graph.get(STABLE).parent_keys == parents
    assert not graph.get(STABLE).is_executable


@pytest.mark.parametrize("selection", ["*", "all"])
def test_no_selection_of_assets_promotes(tmp_path: Path, selection: str) -> None:
    """Neither "Materialize all" nor `--select '*'`: stable_release has nothing that could be run."""
    chosen = dg.AssetSelection.all() if selection == "all" else dg.AssetSelection.from_string("*")
    job = dg.define_asset_job("everything", selection=chosen)
    merged = dg.Definitions.merge(definitions(tmp_path), dg.Definitions(jobs=[job]))
    steps = merged.resolve_job_def("everything").graph.node_dict
    assert steps
    assert not {name for name in steps if "promote" in name or "roll_back" in name or "stable" in name}


@pytest.mark.parametrize("missing", ["release", "approved_by", "reason"])
def test_every_field_is_required(tmp_path: Path, instance: dg.DagsterInstance, missing: str) -> None:
    config = {"release": "a" * 64, "approved_by": "anna", "reason": "why"}
    del config[missing]
    with pytest.raises(dg.DagsterInvalidConfigError, match=missing):
        definitions(tmp_path).resolve_job_def("promote_to_stable").execute_in_process(
            instance=instance, run_config=config
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"release": "a" * 15},
        {"release": "canary"},
        {"approved_by": " "},
        {"reason": ""},
        {"force": "perhaps"},
    ],
)
def test_what_cannot_be_right_is_refused_before_a_run_is_made(
    tmp_path: Path, instance: dg.DagsterInstance, wrong: dict[str, str]
) -> None:
    config = {"release": "a" * 64, "approved_by": "anna", "reason": "why", **wrong}
    job = definitions(tmp_path).resolve_job_def("promote_to_stable")
    with pytest.raises((dg.DagsterInvalidConfigError, dg.DagsterConfigMappingFunctionError)) as caught:
        job.execute_in_process(instance=instance, run_config=config)
    assert next(iter(wrong)) in f"{caught.value} {caught.value.__cause__}"
    assert instance.get_runs() == []


def test_without_the_key_it_asks(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    first, _ = two_canaries(tmp_path)
    result = move(tmp_path, instance, first, key="")
    assert result.success
    store = a_store(tmp_path / "store")
    assert store.current("emulator", "stable") is None
    ((name, request),) = pending_requests(store).items()
    assert (request.release, request.approved_by, request.action) == (first, "anna", "promote")
    assert request.origin == f"Dagster run {result.run_id}"
    assert instance.get_latest_materialization_event(STABLE) is None
    assert name


def test_what_would_not_be_signed_is_not_asked_for(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """Without the key the same checks: a person is not sent to the manager with what is refused there."""
    first, second = two_canaries(tmp_path)
    store = a_store(tmp_path / "store")
    mark_bad(store, first, "canary", Decision(actor="bert", reason="too hot"), BUILD)
    other = ReleaseSimulator(version="v3").place(tmp_path / "store").id
    assert "marked bad by bert" in failure(move(tmp_path, instance, first, key=""))
    assert "it was never a canary" in failure(move(tmp_path, instance, other, key=""))
    assert "names no release" in failure(move(tmp_path, instance, second, "roll_back", key=""))
    judge_again(tmp_path, second)
    assert move(tmp_path, instance, second).success
    assert "was never named by this channel" in failure(
        move(tmp_path, instance, first, "roll_back", key="", force=True)
    )
    assert pending_requests(store) == {}
    assert move(tmp_path, instance, first, key="", force=True).success
    (request,) = pending_requests(store).values()
    assert (request.release, request.force) == (first, True)


def test_the_build_key_promotes_nothing(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    first, _ = two_canaries(tmp_path)
    result = move(tmp_path, instance, first, key=os.environ["CANARY_KEY_FILE"])
    assert "has the role release and canary: this takes a key of role stable" in failure(result)
    assert a_store(tmp_path / "store").current("emulator", "stable") is None


@pytest.mark.parametrize("tag", ["dagster/schedule_name", "dagster/sensor_name", "dagster/backfill"])
def test_automation_promotes_nothing(tmp_path: Path, instance: dg.DagsterInstance, tag: str) -> None:
    first, _ = two_canaries(tmp_path)
    assert "started by automation" in failure(move(tmp_path, instance, first, tags={tag: "x"}))
    assert a_store(tmp_path / "store").current("emulator", "stable") is None


def test_a_release_marked_bad_needs_force_and_says_so(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    first, _ = two_canaries(tmp_path)
    store = a_store(tmp_path / "store")
    mark_bad(store, first, "stable", Decision(actor="bert", reason="too hot"), MANAGER)
    assert "marked bad by bert" in failure(move(tmp_path, instance, first))
    assert move(tmp_path, instance, first, force=True).success
    entry = store.current("emulator", "stable")
    assert entry is not None
    assert "too hot" in entry.overridden[0]
