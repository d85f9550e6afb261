"""The chain through Dagster itself: real instance, real runs, the gate's known holes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from assets.calibration import read_files
from assets.toolchain.dfc_config import load_config
from orchestration.automation import observe_weights
from orchestration.chain import PRODUCTS, calibration_set, model_weights, onnx_model, target_assets
from orchestration.resources import Places, ProductIOManager
from runtime.contract.audit import store_problems
from tests.assets.test_calibration import load, with_set
from tests.chain import CALIB_DATA, ROOT, SAMPLE_VERSION, SAMPLE_WEIGHTS, strict_policy
from tests.keys import a_store

pytestmark = pytest.mark.build

MADE = [calibration_set, onnx_model, *target_assets("emulator")]
LINKS = ("quantized_har", "hef", "parity_report", "canary_release")
CANARY = "emulator/canary_release"
AFTER = ("canary_verdict", "stable_release", "release_channels")


class Home:
    """One Dagster instance with its workbench and release store."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.store = a_store(root / "releases")
        self.root = root
        self.resources = {
            "places": self.places(SAMPLE_WEIGHTS),
            PRODUCTS: ProductIOManager(build_dir=str(root / "build")),
        }

    def places(self, weights: Path) -> Places:
        """Where this home reads and writes, with weights from there."""
        return Places(
            weights_dir=str(weights),
            calib_dir=str(CALIB_DATA),
            build_dir=str(self.root / "build"),
            release_store=str(self.root / "releases"),
            trust_root=os.environ["TRUST_ROOT"],
            canary_key_file=os.environ["CANARY_KEY_FILE"],
            release_key_file=os.environ["RELEASE_KEY_FILE"],
        )

    def read_windows(self, files: dict[str, bytes]) -> None:
        """Let builds read these window sets instead of the sample's."""
        folder = self.root / "windows"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        places = self.places(SAMPLE_WEIGHTS).model_dump()
        self.resources["places"] = Places(**{**places, "calib_dir": str(folder)})

    def observe(self) -> dg.ExecuteInProcessResult:
        """Look at the weights."""
        definitions = dg.Definitions(
            assets=[model_weights, *MADE], jobs=[observe_weights], resources=self.resources
        )
        job = definitions.resolve_job_def(observe_weights.name)
        return job.execute_in_process(instance=self.instance, raise_on_error=False)

    def observations(self) -> list[tuple[str, str]]:
        """Version and data version of every observation of the weights, oldest first."""
        records = self.instance.fetch_observations(model_weights.key, limit=100).records
        seen = [record.asset_observation for record in reversed(records)]
        return [
            (str(each.metadata["version"].value), (each.tags or {})["dagster/data_version"])
            for each in seen
            if each is not None
        ]

    def build(self) -> dg.ExecuteInProcessResult:
        """Observe the weights, then make everything, as ``make run`` does."""
        observed = self.observe()
        return self.materialize() if observed.success else observed

    def materialize(
        self, *selection: str, run_config: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Run the selected assets, or all of them."""
        keys = [dg.AssetKey(name.split("/")) for name in selection]
        return self.run(dg.AssetSelection.assets(*keys) if keys else None, run_config=run_config)

    def run(
        self,
        selection: dg.AssetSelection | None,
        *,
        run_config: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run a selection."""
        return dg.materialize(
            [model_weights, *MADE],
            instance=self.instance,
            resources=self.resources,
            selection=selection,
            run_config=run_config,
            tags=tags,
            raise_on_error=False,
        )

    def data_versions(self, *names: str) -> dict[str, str]:
        """The latest data version of every asset, or of those that are named."""
        versions = {}
        for asset in MADE:
            if names and "/".join(asset.key.path) not in names:
                continue
            event = self.instance.get_latest_materialization_event(asset.key)
            assert event is not None
            assert event.asset_materialization is not None
            tags = event.asset_materialization.tags or {}
            versions["/".join(asset.key.path)] = tags["dagster/data_version"]
        return versions


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Home(tmp_path, instance)


@pytest.fixture
def a_strict_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assets.policy.load_policy", strict_policy)


def failure_of(result: dg.ExecuteInProcessResult, step: str) -> str:
    """What a failed step says."""
    (event,) = [e for e in result.get_step_failure_events() if e.step_key == step]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.description
    return failure.description


def test_the_whole_chain_and_what_it_records(home: Home) -> None:
    result = home.build()
    assert result.success
    for asset in MADE:
        (event,) = result.asset_materializations_for_node(asset.op.name)
        metadata = {name: value.value for name, value in event.metadata.items()}
        assert {"digest", "size", "path", "code_version"} <= set(metadata)
        # The graph's version also holds the weights that it was made from, the report's not the bounds.
        by_digest = (event.tags or {})["dagster/data_version"] == metadata["digest"]
        assert by_digest == (asset.key.path[-1] not in ("onnx_model", "parity_report"))
        assert asset.code_versions_by_key[asset.key] == metadata["code_version"]
        assert Path(str(metadata["path"])).is_dir()
    entry = home.store.current("emulator", "canary")
    assert entry is not None
    assert entry.release == home.data_versions()["emulator/canary_release"]
    (event,) = result.asset_materializations_for_node("emulator__canary_release")
    # Wherever a release is shown, it says on what it was calibrated.
    assert event.metadata["calibration"].value == "1200 synthetic windows"
    assert event.metadata["parity"].value == "passed, emulated"
    assert store_problems(home.store) == []


def test_graph_reads_as_the_sentence() -> None:
    """Keys, and that each link depends on the one before it."""
    from orchestration.definitions import defs

    graph = defs.resolve_asset_graph()
    keys = {"/".join(key.path) for key in graph.get_all_asset_keys()}
    branch = {f"emulator/{name}" for name in (*LINKS, *AFTER)}
    assert keys == {"model_weights", "calibration_set", "onnx_model", "telemetry_candidates", *branch}
    # Only a person moves stable: nothing can materialize it.
    assert "emulator/stable_release" not in {"/".join(key.path) for key in graph.materializable_asset_keys}
    order = ["model_weights", "onnx_model", *(f"emulator/{name}" for name in LINKS)]
    for earlier, later in itertools.pairwise(order):
        parents = graph.get(dg.AssetKey(later.split("/"))).parent_keys
        assert dg.AssetKey(earlier.split("/")) in parents
    checks = {key.name for key in graph.asset_check_keys}
    assert checks == {"parity", "whole"}


def test_unchanged_input_gives_unchanged_data_versions(home: Home) -> None:
    assert home.build().success
    first = home.data_versions()
    assert home.build().success
    ((_, once), (_, again)) = home.observations()
    assert once == again
    assert home.data_versions() == first
    assert len(home.store.history("emulator", "canary")) == 1


def test_long_steps_are_done_once_in_whichever_home(home: Home, tmp_path: Path) -> None:
    steps = ("emulator/quantized_har", "emulator/hef")

    def told(each: Home, run_config: dict[str, Any] | None = None) -> list[str]:
        result = each.materialize(*steps, run_config=run_config)
        assert result.success
        events = [
            e for step in steps for e in result.asset_materializations_for_node(step.replace("/", "__"))
        ]
        return [str(event.metadata["cache"].value) for event in events]

    assert home.observe().success
    assert home.materialize("calibration_set", "onnx_model").success
    assert [text[:8] for text in told(home)] == ["made now"] * 2
    assert [text[:4] for text in told(home)] == ["hit:"] * 2
    first = home.data_versions(*steps)
    with dg.DagsterInstance.ephemeral() as instance:
        other = Home(tmp_path / "other", instance)
        shared = str(tmp_path / "build" / "cache")
        places = other.places(SAMPLE_WEIGHTS).model_dump()
        other.resources["places"] = Places(**{**places, "build_cache_dir": shared})
        assert other.observe().success
        assert other.materialize("calibration_set", "onnx_model").success
        assert [text[:4] for text in told(other)] == ["hit:"] * 2
        assert other.data_versions(*steps) == first
    config = {"ops": {"emulator__hef": {"config": {"use_cache": False}}}}
    assert [text[:4] for text in told(home, config)] == ["hit:", "not "]
    wrong = {"ops": {"emulator__hef": {"config": {"use_cache": "perhaps"}}}}
    with pytest.raises(dg.DagsterInvalidConfigError, match="use_cache"):
        told(home, wrong)


@pytest.mark.usefixtures("a_strict_policy")
def test_failed_parity_blocks_the_canary_in_its_run_and_alone(home: Home) -> None:
    """The hole of blocking checks: a later run with the canary alone does not contain the check."""
    result = home.build()
    assert not result.success
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "sqnr_db" in (check.description or "")
    # The check stops the run before the canary begins; refusing is only the second line.
    failed = {event.step_key for event in result.get_step_failure_events()}
    assert failed == {"emulator__parity_report"}
    # Alone, as from its page, and in a backfill.
    for tags, selection in (
        ({}, dg.AssetSelection.assets(CANARY)),
        ({"dagster/backfill": "abc"}, dg.AssetSelection.assets(CANARY)),
    ):
        again = home.run(selection, tags=tags)
        assert not again.success
        assert "sqnr_db is" in str([e.step_failure_data for e in again.get_step_failure_events()])
        assert home.store.identifiers() == []
        assert home.store.current("emulator", "canary") is None
    # Parity's check cannot be left out of a run of the report.
    reports = dg.AssetSelection.assets("emulator/parity_report").without_checks()
    with pytest.raises(dg.DagsterInvalidDefinitionError) as caught:
        home.run(reports)
    assert "required_multi_asset_neighbors" in f"{caught.value.__cause__}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_build_reads_what_was_observed_last(home: Home, tmp_path: Path) -> None:
    """A newer folder counts once it was observed; one that is refused changes nothing."""
    weights = tmp_path / "weights"
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.1.0")
    home.resources["places"] = home.places(weights)
    assert home.build().success
    first = home.data_versions()
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.2.0")
    assert home.materialize().success
    assert home.data_versions() == first
    assert home.build().success
    second = home.data_versions()
    assert second["emulator/canary_release"] != first["emulator/canary_release"]
    assert [version for version, _ in home.observations()] == ["v0.1.0", "v0.2.0"]
    (weights / "tcn_encoder" / "v0.3.0").mkdir()
    (weights / "tcn_encoder" / "v0.3.0" / "tcn_vae.pth").write_text("PLACEHOLDER")
    refused = home.build()
    assert "is a text file" in failure_of(refused, "model_weights")
    assert len(home.observations()) == 2
    assert home.materialize().success
    assert home.data_versions() == second


@pytest.mark.slow
def test_the_number_of_fitted_motifs_is_configuration(home: Home, tmp_path: Path) -> None:
    """Of a head that is fitted; the checkpoint's own has the size that it has."""
    from assets.weights import parse_model, read_files
    from tests.assets.test_onnx_model import foreign_graph

    folder = tmp_path / "weights" / "tcn_encoder" / "v0.1.0"
    folder.mkdir(parents=True)
    encoder = parse_model(read_files(SAMPLE_VERSION)).encoder
    (folder / "encoder.onnx").write_bytes(foreign_graph(encoder, opset=11, style="chomp"))
    shutil.copy(SAMPLE_VERSION / "normalization.json", folder)
    home.resources["places"] = home.places(tmp_path / "weights")
    assert home.observe().success
    config = {"ops": {"emulator__parity_report": {"config": {"motifs": 5}}}}
    assert home.materialize(run_config=config).success
    head = home.store.resolve("emulator", "canary").manifest.motif_head
    assert (head.provenance, head.size) == ("fitted", 5)
    wrong = {"ops": {"emulator__parity_report": {"config": {"motifs": 1}}}}
    assert not home.materialize(run_config=wrong).success


def test_canary_alone_without_anything_says_what_to_materialize(home: Home) -> None:
    result = home.materialize("emulator/canary_release")
    assert not result.success
    assert home.store.identifiers() == []
    errors = " ".join(str(e.step_failure_data.error) for e in result.get_step_failure_events())
    assert "was never made here" in errors


@pytest.mark.slow
def test_parity_of_an_earlier_artifact_lets_nothing_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new artifact, the old report, the canary alone."""
    assert home.build().success
    first = home.store.identifiers()
    monkeypatch.setattr("assets.toolchain.emulator.integer_path_for", lambda *cpu: "u8s8-7bit")
    assert home.materialize("emulator/quantized_har", "emulator/hef").success
    alone = home.materialize("emulator/canary_release")
    assert "materialize emulator/parity_report again" in failure_of(alone, "emulator__canary_release")
    assert home.store.identifiers() == first
    assert home.materialize("emulator/parity_report", "emulator/canary_release").success
    assert len(home.store.identifiers()) == 2


def test_our_errors_are_failures_with_advice(home: Home, tmp_path: Path) -> None:
    home.resources["places"] = home.places(tmp_path / "none")
    result = home.observe()
    assert home.observations() == []
    assert "WEIGHTS_DIR" in failure_of(result, "model_weights")
    (event,) = result.get_step_failure_events()
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.metadata["code"].value == "weights"


def load_definitions(**environment: str) -> subprocess.CompletedProcess[str]:
    """Import the code location in a process of its own; prints keys and heavy modules."""
    script = (
        "import json, sys\nfrom orchestration.definitions import defs\n"
        "keys = sorted('/'.join(k.path) for k in defs.resolve_asset_graph().get_all_asset_keys())\n"
        "heavy = [m for m in ('torch', 'onnx', 'onnxruntime', 'scipy', 'falcon') if m in sys.modules]\n"
        "print(json.dumps([keys, heavy]))"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_code_location_loads_nothing_heavy() -> None:
    keys, heavy = json.loads(load_definitions().stdout)
    assert "emulator/canary_release" in keys
    assert heavy == []


def test_each_target_is_a_branch_of_its_own() -> None:
    keys, _ = json.loads(load_definitions(BUILD_TARGETS="emulator,hailo8").stdout)
    assert {f"{target}/{name}" for target in ("emulator", "hailo8") for name in LINKS} <= set(keys)
    assert len(keys) == 4 + 2 * (len(LINKS) + len(AFTER))
    assert {"emulator/stable_release", "hailo8/stable_release"} <= set(keys)


def test_a_changed_head_or_normalization_is_not_fresh() -> None:
    """What the graph does not hold still makes those out of date that read it."""
    from orchestration.definitions import defs

    graph = defs.resolve_asset_graph()
    for name, reads in (
        ("quantized_har", {"onnx_model", "calibration_set"}),
        ("parity_report", {"onnx_model", "calibration_set", "emulator/hef"}),
        ("canary_release", {"emulator/hef", "emulator/parity_report"}),
    ):
        parents = graph.get(dg.AssetKey(["emulator", name])).parent_keys
        assert {"/".join(key.path) for key in parents} == reads


def another_normalization(folder: Path) -> None:
    """The same weights, read through other statistics: the graph stays the same, byte for byte."""
    (folder / "sha256sum.txt").unlink()
    for name, key in (("normalization.json", "zscore_mean"), ("model_config.json", "mean")):
        document = json.loads((folder / name).read_text())
        document["normalization"][key] = [value + 0.25 for value in document["normalization"][key]]
        (folder / name).write_text(json.dumps(document))


def stale(home: Home) -> set[str]:
    """What Dagster's UI marks as out of date."""
    graph = dg.Definitions(assets=[model_weights, *MADE], resources=home.resources).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(home.instance, graph, LoadingContextForTest(home.instance))
    keys = [asset.key for asset in MADE]
    return {"/".join(key.path) for key in keys if resolver.get_status(key) is not StaleStatus.FRESH}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_weights_that_are_observed_during_a_build_leave_it_out_of_date(home: Home, tmp_path: Path) -> None:
    """The build goes on with what it began with, and what it made is not taken for the newer weights'."""
    weights = tmp_path / "weights"
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.1.0")
    home.resources["places"] = home.places(weights)
    assert home.observe().success
    assert home.materialize("onnx_model", "calibration_set").success
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.2.0")
    another_normalization(weights / "tcn_encoder" / "v0.2.0")
    assert home.observe().success
    assert home.materialize(*(f"emulator/{name}" for name in LINKS)).success
    assert home.store.resolve("emulator", "canary").manifest.model.version == "v0.1.0"
    assert "onnx_model" in stale(home)
    assert home.materialize("onnx_model").success
    assert {"emulator/quantized_har", "emulator/parity_report"} <= stale(home)
    for name in ("parity_report", "canary_release"):
        result = home.materialize(f"emulator/{name}")
        assert "materialize what follows model_weights again" in failure_of(result, f"emulator__{name}")
    assert home.materialize(*(f"emulator/{name}" for name in LINKS)).success
    assert stale(home) == set()
    assert home.store.resolve("emulator", "canary").manifest.model.version == "v0.2.0"


def test_new_calibration_windows_are_not_judged_with_the_old_artifact(home: Home) -> None:
    """Dagster would record the new windows as those of a report that was made with the old ones."""
    assert home.build().success
    files = read_files(CALIB_DATA)
    windows, labels = load(files, "evaluation")
    bench = home.places(SAMPLE_WEIGHTS).bench()
    bench.remember(bench.put("calibration_set", with_set(files, "evaluation", windows[:240], labels[:240])))
    result = home.materialize("emulator/parity_report")
    assert "materialize what follows calibration_set again" in failure_of(result, "emulator__parity_report")


def test_the_windows_say_first_where_they_come_from(home: Home) -> None:
    """Then their strata, and what the gate found, as tables."""
    event = next(iter(home.materialize("calibration_set").get_asset_materialization_events()))
    shown = event.materialization.metadata
    assert next(iter(shown)) == "origin"
    assert str(shown["origin"].value).startswith("SYNTHETIC")
    strata = shown["strata"]
    assert isinstance(strata, dg.TableMetadataValue)
    rest = {"stratum": "rest", "calibration": 100, "evaluation": 40, "golden": 2}
    assert rest in [record.data for record in strata.records]
    assert shown["strata by"].value == "the label that each window was given"
    assert shown["calibration windows"].value == 1200
    assert "findings" not in shown


def test_windows_that_the_gate_refuses_fail_the_run_with_every_reason(home: Home) -> None:
    files = read_files(CALIB_DATA)
    windows, labels = load(files, "calibration")
    windows[:, :, 3:6] *= 57.29578
    home.read_windows(with_set(files, "calibration", windows, labels))
    said = failure_of(home.materialize("calibration_set"), "calibration_set")
    for words in (
        "rest_rotation [gyroscope]",
        "deg/s given for rad/s",
        "drift [gx]",
        "python -m assets.calib",
    ):
        assert words in said


def test_warnings_of_the_gate_are_a_table(home: Home) -> None:
    files = read_files(CALIB_DATA)
    windows, labels = load(files, "evaluation")
    windows[0] = windows[12]
    home.read_windows(with_set(files, "evaluation", windows, labels))
    event = next(iter(home.materialize("calibration_set").get_asset_materialization_events()))
    findings = event.materialization.metadata["findings"]
    assert isinstance(findings, dg.TableMetadataValue)
    assert [(each.data["check"], each.data["severity"]) for each in findings.records] == [
        ("repeated", "warn")
    ]


def test_another_policy_makes_the_report_out_of_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing before it: the artifact does not depend on how it is judged."""
    before = {asset.key: asset.code_versions_by_key[asset.key] for asset in target_assets("emulator")}
    monkeypatch.setattr("orchestration.chain.policy_digest", lambda: "f" * 64)
    after = {asset.key: asset.code_versions_by_key[asset.key] for asset in target_assets("emulator")}
    assert {key for key in after if after[key] != before[key]} == {dg.AssetKey(["emulator", "parity_report"])}


def test_another_compiler_or_configuration_makes_the_long_steps_out_of_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {asset.key: asset.code_versions_by_key[asset.key] for asset in target_assets("hailo8")}
    other = replace(load_config(), compression_level=1)
    monkeypatch.setattr("assets.toolchain.made_with.load_config", lambda: other)
    after = {asset.key: asset.code_versions_by_key[asset.key] for asset in target_assets("hailo8")}
    changed = {key.to_user_string() for key in after if after[key] != before[key]}
    assert changed == {"hailo8/quantized_har", "hailo8/hef"}


def test_links_run_in_one_process() -> None:
    """A process for each step takes five seconds to start: the chain would take a minute."""
    from orchestration.definitions import defs

    assert defs.executor is dg.in_process_executor


def test_an_unknown_target_is_refused_by_name() -> None:
    run = load_definitions(BUILD_TARGETS="emulator,hailo9")
    assert run.returncode != 0
    assert "unknown hailo9" in run.stderr


def test_a_target_without_its_toolchain_says_so(tmp_path: Path) -> None:
    """No compiler here, so no artifact: never the emulator in its place."""
    with dg.DagsterInstance.ephemeral() as instance:
        home = Home(tmp_path, instance)
        assert home.observe().success
        assets: list[dg.AssetsDefinition | dg.SourceAsset] = [calibration_set, onnx_model]
        assets += target_assets("hailo8")
        result = dg.materialize(
            [model_weights, *assets], instance=instance, resources=home.resources, raise_on_error=False
        )
        assert "Dataflow Compiler" in failure_of(result, "hailo8__quantized_har")
        assert home.store.identifiers() == []
