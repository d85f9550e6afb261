"""What is made by itself, and what is not: Dagster's own evaluation of the chain's conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from orchestration import chain
from orchestration.chain import calibration_set, model_weights, onnx_model, target_assets
from orchestration.conditions import CHANGED, inputs_or_code_changed
from orchestration.resources import Places, ProductIOManager

pytestmark = pytest.mark.build
LINKS = ("quantized_har", "hef", "parity_report", "canary_release")
ALL = ("model_weights", "calibration_set", "onnx_model", *(f"emulator/{name}" for name in LINKS))
TO_PARITY = {"emulator/quantized_har", "emulator/hef", "emulator/parity_report"}
CANARY = {"emulator/canary_release"}


def definitions() -> dg.Definitions:
    return dg.Definitions(
        assets=[model_weights, calibration_set, onnx_model, *target_assets("emulator")],
        resources={
            "places": Places(weights_dir="", calib_dir="", build_dir="", release_store=""),
            chain.PRODUCTS: ProductIOManager(build_dir=""),
        },
    )


class Ticks:
    """A daemon that looks when a test says so, and events that a test reports."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.defs = instance, definitions()
        self._cursor: dg.AssetDaemonCursor | None = None
        self.versions: dict[str, int] = dict.fromkeys(ALL, 1)

    def tick(self) -> set[str]:
        """What the daemon asks for now."""
        result = dg.evaluate_automation_conditions(
            defs=self.defs, instance=self.instance, cursor=self._cursor
        )
        self._cursor = result.cursor
        return {name for name in ALL if result.get_num_requested(dg.AssetKey(name.split("/")))}

    def made(self, *assets: str, parity: bool = True) -> None:
        """Report that assets were made, each with its present data version."""
        for name in assets:
            key, tags = dg.AssetKey(name.split("/")), {DATA_VERSION_TAG: f"v{self.versions[name]}"}
            kind = dg.AssetObservation if name == "model_weights" else dg.AssetMaterialization
            self.instance.report_runless_asset_event(kind(asset_key=key, tags=tags))
            if name.endswith("/parity_report"):
                self.instance.report_runless_asset_event(
                    dg.AssetCheckEvaluation(
                        check_name="parity", passed=parity, asset_key=key, metadata={}, blocking=True
                    )
                )

    def changed(self, *assets: str, parity: bool = True) -> None:
        """Report that assets were made, and came out different."""
        for name in assets:
            self.versions[name] += 1
        self.made(*assets, parity=parity)

    def nothing_happens(self, ticks: int = 10) -> None:
        assert [self.tick() for _ in range(ticks)] == [set()] * ticks


@pytest.fixture(name="ticks")
def all_made() -> Iterator[Ticks]:
    """Everything was made, and the daemon has looked."""
    with dg.DagsterInstance.ephemeral() as instance:
        ticks = Ticks(instance)
        ticks.made(*ALL)
        ticks.nothing_happens(2)
        yield ticks


def test_new_weights_become_a_canary_and_then_nothing_happens(ticks: Ticks) -> None:
    ticks.changed("model_weights")
    assert ticks.tick() == {"onnx_model"} | TO_PARITY
    ticks.nothing_happens(1)
    ticks.changed("onnx_model", *sorted(TO_PARITY))
    assert ticks.tick() == CANARY
    ticks.changed(*CANARY)
    ticks.nothing_happens()


def test_weights_that_come_while_older_ones_are_built_are_built_after_them(ticks: Ticks) -> None:
    """At any moment: right after the build was asked for, while it works, in the tick in which it ends."""
    ticks.changed("model_weights")
    assert ticks.tick() == {"onnx_model"} | TO_PARITY
    ticks.changed("model_weights")
    assert "onnx_model" in ticks.tick()
    ticks.nothing_happens(2)
    ticks.changed("model_weights")
    ticks.changed("onnx_model")  # of the weights before
    assert "onnx_model" in ticks.tick()
    ticks.changed("onnx_model", *sorted(TO_PARITY))
    assert ticks.tick() == CANARY
    ticks.changed(*CANARY)
    ticks.nothing_happens()


def test_what_came_out_the_same_starts_nothing(ticks: Ticks) -> None:
    """Weights that are observed again, links that are made again with the same bytes."""
    for name in ALL:
        ticks.made(name)
        ticks.nothing_happens(2)
    ticks.made(*ALL)
    ticks.nothing_happens()


def test_changed_windows_rebuild_from_quantized_har_on(ticks: Ticks) -> None:
    ticks.changed("calibration_set")
    assert ticks.tick() == TO_PARITY
    ticks.changed(*sorted(TO_PARITY))
    assert ticks.tick() == CANARY
    ticks.changed(*CANARY)
    ticks.nothing_happens()


def test_a_changed_threshold_only_judges_anew(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "policy_digest", lambda: "f" * 64)
    ticks.defs = definitions()
    assert ticks.tick() == {"emulator/parity_report"}
    ticks.made("emulator/parity_report")
    ticks.nothing_happens()


def test_a_verdict_that_changes_releases(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks.changed("calibration_set")
    ticks.tick()
    ticks.changed(*sorted(TO_PARITY), parity=False)
    ticks.nothing_happens()
    monkeypatch.setattr(chain, "policy_digest", lambda: "f" * 64)
    ticks.defs = definitions()
    # The artifact still waits to be released: in the same run, in which the check stands before it.
    assert ticks.tick() == {"emulator/parity_report"} | CANARY
    ticks.changed("emulator/parity_report", *CANARY)
    ticks.nothing_happens()


def test_a_failed_parity_keeps_the_canary_at_every_later_tick(ticks: Ticks) -> None:
    """The hole of blocking checks: only a run that contains them is blocked."""
    ticks.changed("model_weights")
    assert ticks.tick() == {"onnx_model"} | TO_PARITY
    ticks.changed("onnx_model", *sorted(TO_PARITY), parity=False)
    ticks.nothing_happens()
    ticks.made("emulator/hef")
    ticks.nothing_happens()


def test_another_code_version_makes_everything_anew(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    link = chain._link

    def newer(*args: Any, **options: Any) -> Any:
        return link(*args, **{**options, "code_version": f"{options.get('code_version', '')} newer"})

    monkeypatch.setattr(chain, "_link", newer)
    ticks.defs = definitions()
    assert ticks.tick() == TO_PARITY | CANARY  # in one run, in which the check stands before the canary
    ticks.nothing_happens(3)


def test_nothing_is_made_in_a_new_home_until_weights_are_observed() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        ticks = Ticks(instance)
        ticks.nothing_happens(3)
        ticks.made("calibration_set")
        ticks.nothing_happens(2)
        ticks.made("model_weights")
        assert ticks.tick() == {"onnx_model"} | TO_PARITY


def test_every_link_says_why_it_is_made() -> None:
    graph = definitions().resolve_asset_graph()
    for name in (*ALL[2:],):
        condition = graph.get(dg.AssetKey(name.split("/"))).automation_condition
        assert condition is not None
        assert condition.get_label() == CHANGED


def test_what_a_run_did_not_get_to_is_not_begun_again() -> None:
    """A compile that somebody cancelled, or that failed: its input changed in the very run that ended so."""
    number = 0

    @dg.asset(code_version="1")
    def graph() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion(f"v{number}"))

    @dg.asset(code_version="1", deps=[graph], automation_condition=inputs_or_code_changed())
    def compiled() -> None:
        if number == 2:
            raise KeyboardInterrupt  # what a cancelled run gets

    assets = [graph, compiled]
    with dg.DagsterInstance.ephemeral() as instance:
        cursor: dg.AssetDaemonCursor | None = None

        def tick() -> int:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(defs=assets, instance=instance, cursor=cursor)
            cursor = result.cursor
            return result.total_requested

        number = 1
        dg.materialize(assets, instance=instance)
        assert [tick() for _ in range(3)] == [0, 0, 0]
        number = 2
        assert not _ran(assets, instance)
        assert [tick() for _ in range(5)] == [0] * 5
        number = 3
        assert dg.materialize([graph], instance=instance).success
        assert [tick() for _ in range(3)] == [1, 0, 0]


def _ran(assets: list[dg.AssetsDefinition], instance: dg.DagsterInstance) -> bool:
    """As a launched run: it names what it is to make."""
    job = dg.Definitions(assets, jobs=[dg.define_asset_job("everything")]).resolve_job_def("everything")
    try:
        return job.execute_in_process(
            instance=instance, raise_on_error=False, asset_selection=[asset.key for asset in assets]
        ).success
    except KeyboardInterrupt:
        return False
