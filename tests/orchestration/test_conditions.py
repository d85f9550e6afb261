"""What is made by itself, and what is not: Dagster's own evaluation of the chain's conditions, and real runs.

The runs make stand-ins: assets with the chain's own keys, inputs, code versions, checks and conditions, whose
data versions a test says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from orchestration import chain
from orchestration.chain import calibration_set, model_weights, onnx_model, target_assets
from orchestration.conditions import CHANGED, CODE_CHANGED, DATA_VERSION_TAG
from orchestration.resources import Places, ProductIOManager

pytestmark = pytest.mark.build
LINKS = ("quantized_har", "hef", "parity_report", "canary_release")
MADE = ("calibration_set", "onnx_model", *(f"emulator/{name}" for name in LINKS))
HAR, HEF, PARITY, CANARY = MADE[2:]
TO_PARITY = {HAR, HEF, PARITY}
CHAIN = {"onnx_model", *TO_PARITY}


def key_of(name: str) -> dg.AssetKey:
    return dg.AssetKey(name.split("/"))


class Platform:
    """A daemon that looks when a test says so, and runs that a test starts."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.targets = ["emulator"]
        self.versions: dict[str, int] = dict.fromkeys((*MADE, "model_weights"), 1)
        self.parity_passes = True
        self.newer_code = ""
        self.during: dict[str, Callable[[], None]] = {}
        """What happens while an asset is made."""
        self._cursor: dg.AssetDaemonCursor | None = None
        self.reload()

    def reload(self) -> None:
        """As the code server does: conditions and code versions are read anew."""
        real = [calibration_set, onnx_model]
        real += [asset for target in self.targets for asset in target_assets(target)]
        assets: list[Any] = [model_weights, *(self._stand_in(asset) for asset in real)]
        places = Places(weights_dir="", calib_dir="", build_dir="", release_store="")
        resources = {"places": places, chain.PRODUCTS: ProductIOManager(build_dir="")}
        self.defs = dg.Definitions(assets, jobs=[dg.define_asset_job("build")], resources=resources)

    def _stand_in(self, real: dg.AssetsDefinition) -> dg.AssetsDefinition:
        (spec,) = real.specs
        name = spec.key.to_user_string()

        def made() -> Any:
            self.during.pop(name, lambda: None)()
            results = [
                dg.AssetCheckResult(passed=self.parity_passes, check_name=check.name)
                for check in real.check_specs
            ]
            version = dg.DataVersion(f"v{self.versions.setdefault(name, 1)}")
            return dg.MaterializeResult(data_version=version, check_results=results)

        made.__annotations__.clear()  # Dagster would read them as the types of outputs
        stand_in = dg.AssetSpec(
            spec.key,
            deps=spec.deps,
            code_version=f"{spec.code_version}{self.newer_code}",
            automation_condition=spec.automation_condition,
        )
        checks = list(real.check_specs)
        return dg.multi_asset(name="__".join(spec.key.path), specs=[stand_in], check_specs=checks)(made)

    def tick(self) -> set[str]:
        """What the daemon asks for now."""
        asked = dg.evaluate_automation_conditions(defs=self.defs, instance=self.instance, cursor=self._cursor)
        self._cursor = asked.cursor
        keys = [asset.key for asset in self.defs.resolve_all_asset_specs()]
        return {key.to_user_string() for key in keys if asked.get_num_requested(key)}

    def restarted(self) -> None:
        """A daemon that remembers nothing, as when the sensor is another."""
        self._cursor = None

    def observes(self, *, changed: bool) -> None:
        """Weights are looked at."""
        self.versions["model_weights"] += changed
        tags = {DATA_VERSION_TAG: f"v{self.versions['model_weights']}"}
        self.instance.report_runless_asset_event(dg.AssetObservation("model_weights", tags=tags))

    def runs(self, *names: str, changing: bool = True) -> bool:
        """A run that is to make assets; whether it succeeded. Parity's verdict is part of its version."""
        for name in names:
            self.versions[name] = self.versions.get(name, 1) + changing
        job = self.defs.resolve_job_def("build")
        try:
            return job.execute_in_process(
                instance=self.instance, raise_on_error=False, asset_selection=[key_of(name) for name in names]
            ).success
        except KeyboardInterrupt:
            return False

    def follows(self, *, changing: bool = True) -> list[set[str]]:
        """Tick after tick, each with the run that it asks for, until nothing is asked for."""
        asked: list[set[str]] = []
        while (names := self.tick()) and len(asked) < 9:
            asked.append(names)
            self.runs(*sorted(names), changing=changing)
        return asked

    def nothing_happens(self, ticks: int = 5) -> None:
        assert [self.tick() for _ in range(ticks)] == [set()] * ticks


def cancelled() -> None:
    raise KeyboardInterrupt  # what a cancelled run gets


def failed() -> None:
    raise RuntimeError("no space left on device")


@pytest.fixture(name="platform")
def all_made() -> Iterator[Platform]:
    """Everything was made, and the daemon has looked."""
    with dg.DagsterInstance.ephemeral() as instance:
        platform = Platform(instance)
        platform.observes(changed=False)
        assert platform.runs(*MADE)
        platform.nothing_happens(2)
        yield platform


def test_new_weights_become_a_canary_and_then_nothing_happens(platform: Platform) -> None:
    platform.observes(changed=True)
    assert platform.follows() == [CHAIN, {CANARY}]
    platform.nothing_happens()


def test_weights_that_come_while_older_ones_are_built_are_built_after_them(platform: Platform) -> None:
    """At any moment: while the graph is made, while it is compiled, in the tick in which the build ends."""
    for late in ("onnx_model", HEF, PARITY):
        platform.observes(changed=True)
        platform.during[late] = lambda: platform.observes(changed=True)
        assert platform.tick() == CHAIN
        platform.runs(*sorted(CHAIN))
        asked = platform.follows()
        assert asked == [CHAIN | {CANARY}]  # in one run: the release before it waits already
        platform.nothing_happens()


def test_while_a_run_works_nothing_else_begins(platform: Platform) -> None:
    asked: list[set[str]] = []
    platform.observes(changed=True)

    def meanwhile() -> None:
        platform.observes(changed=True)
        asked.append(platform.tick())

    platform.during[HEF] = meanwhile
    platform.runs(*sorted(platform.tick()))
    assert asked == [set()]
    assert platform.tick() == CHAIN | {CANARY}


def test_windows_that_come_while_a_build_works_are_built_after_it(platform: Platform) -> None:
    platform.observes(changed=True)

    def meanwhile() -> None:
        platform.runs("calibration_set")

    platform.during[PARITY] = meanwhile
    platform.runs(*sorted(platform.tick()))
    assert platform.tick() == TO_PARITY | {CANARY}


def test_what_came_out_the_same_starts_nothing(platform: Platform) -> None:
    """Weights that are observed again, links that are made again with the same bytes."""
    platform.observes(changed=False)
    platform.nothing_happens(2)
    for name in MADE:
        platform.runs(name, changing=False)
        platform.nothing_happens(2)
    platform.observes(changed=True)
    assert platform.follows(changing=False) == [CHAIN]


def test_changed_windows_rebuild_from_quantized_har_on(platform: Platform) -> None:
    platform.runs("calibration_set")
    assert platform.follows() == [TO_PARITY, {CANARY}]
    platform.nothing_happens()


def another_policy(monkeypatch: pytest.MonkeyPatch, platform: Platform) -> None:
    monkeypatch.setattr(chain, "policy_digest", lambda: "f" * 64)
    platform.reload()


def test_a_changed_threshold_only_judges_anew(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    another_policy(monkeypatch, platform)
    assert platform.follows(changing=False) == [{PARITY}]
    platform.nothing_happens()


def test_a_verdict_that_changes_releases(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.parity_passes = False
    platform.runs("calibration_set")
    assert platform.follows() == [TO_PARITY]
    platform.parity_passes = True
    another_policy(monkeypatch, platform)
    assert platform.follows() == [{PARITY, CANARY}]
    platform.nothing_happens()


def test_a_failed_parity_keeps_the_canary_at_every_later_tick(platform: Platform) -> None:
    """The hole of blocking checks: only a run that contains them is blocked."""
    platform.parity_passes = False
    platform.observes(changed=True)
    assert platform.follows() == [CHAIN]
    platform.nothing_happens()
    platform.runs(HEF, changing=False)
    platform.nothing_happens()
    platform.restarted()
    platform.nothing_happens()


def test_another_code_version_makes_everything_anew(platform: Platform) -> None:
    platform.newer_code = " newer"
    platform.reload()
    assert platform.follows(changing=False) == [set(MADE)]
    platform.nothing_happens()


def test_a_new_home_builds_once_weights_and_windows_are_there() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        platform = Platform(instance)
        platform.nothing_happens(2)
        platform.runs("calibration_set")
        platform.nothing_happens(2)
        platform.observes(changed=True)
        assert platform.follows() == [CHAIN | {CANARY}]
        platform.nothing_happens()


def test_a_target_that_is_added_is_built(platform: Platform) -> None:
    platform.targets.append("hailo8")
    platform.reload()
    assert platform.follows() == [{name.replace("emulator", "hailo8") for name in (*TO_PARITY, CANARY)}]
    platform.nothing_happens()


def test_what_changed_while_nobody_looked_is_built(platform: Platform) -> None:
    """The sensor was off, or is another than before."""
    platform.observes(changed=True)
    platform.restarted()
    assert platform.follows() == [CHAIN, {CANARY}]
    platform.nothing_happens()


@pytest.mark.parametrize("end", [cancelled, failed])
@pytest.mark.parametrize("where", sorted(CHAIN))
def test_what_a_run_did_not_get_to_is_not_begun_again(
    platform: Platform, where: str, end: Callable[[], None]
) -> None:
    """A compile that somebody cancelled, or that failed: its input changed in the very run that ended so."""
    platform.observes(changed=True)
    platform.during[where] = end
    assert not platform.runs(*sorted(platform.tick()))
    platform.nothing_happens()
    platform.observes(changed=False)  # looked at again: nothing is new
    platform.nothing_happens(2)
    platform.observes(changed=True)
    assert set().union(*platform.follows()) == CHAIN | {CANARY}
    platform.nothing_happens()


def test_what_failed_is_begun_again_with_other_code(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.runs("calibration_set")
    platform.during[PARITY] = failed
    assert not platform.runs(*sorted(platform.tick()))
    platform.nothing_happens(2)
    another_policy(monkeypatch, platform)
    assert platform.follows() == [{PARITY, CANARY}]


def test_a_step_that_somebody_makes_alone_is_followed(platform: Platform) -> None:
    platform.observes(changed=True)
    platform.during[HAR] = cancelled
    platform.runs(*sorted(platform.tick()))
    platform.nothing_happens(2)
    platform.runs(HAR)
    assert platform.follows() == [{HEF, PARITY}, {CANARY}]


def test_what_somebody_reports_as_made_is_taken_for_made(platform: Platform) -> None:
    """From the UI: such an event says nothing of what it was made of."""
    tags = {DATA_VERSION_TAG: "by hand"}
    platform.instance.report_runless_asset_event(dg.AssetMaterialization(key_of(CANARY), tags=tags))
    platform.restarted()
    platform.nothing_happens()


def test_every_link_says_why_it_is_made() -> None:
    links: list[Any] = [calibration_set, onnx_model, *target_assets("emulator")]
    for asset in links:
        (spec,) = asset.specs
        assert spec.automation_condition is not None
        expected = CODE_CHANGED if spec.key == calibration_set.key else CHANGED
        assert spec.automation_condition.get_label() == expected
