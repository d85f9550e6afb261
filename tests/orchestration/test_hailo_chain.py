"""``BUILD_TARGETS=hailo8,emulator`` through Dagster: on the compiler's double, and without a compiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.parity import read_evidence
from assets.product import Workbench
from assets.toolchain.dfc_config import CALLS
from assets.toolchain.dfc_process import Answer, DfcInterpreter
from orchestration.automation import observe_weights
from orchestration.build import RELEASES
from orchestration.chain import PRODUCTS, calibration_set, model_weights, onnx_model, target_assets
from orchestration.resources import Places, ProductIOManager
from orchestration.settings import ROOT, BuildSettings
from runtime.contract.hef_file import DOUBLE_SDK_VERSION, read_hef
from runtime.contract.parity import CONTEXTS, TOOLCHAIN_CONTEXTS
from tests.chain import CALIB_DATA, SAMPLE_WEIGHTS
from tests.dfc import all_ended, dfc_python
from tests.keys import a_store
from tests.simulators import wait_for

pytestmark = pytest.mark.build
TARGETS = ("hailo8", "emulator")
MADE = [calibration_set, onnx_model, *(asset for target in TARGETS for asset in target_assets(target))]


class Home:
    """One Dagster instance, whose Hailo compiler is the double."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root, self.instance = root, instance
        self.bench = Workbench(root / "build")
        places = Places(
            weights_dir=str(SAMPLE_WEIGHTS),
            calib_dir=str(CALIB_DATA),
            build_dir=str(root / "build"),
            release_store=str(root / "releases"),
            dfc_python=dfc_python(root, {}),
            trust_root=os.environ["TRUST_ROOT"],
            canary_key_file=os.environ["CANARY_KEY_FILE"],
        )
        self.resources: dict[str, Any] = {
            "places": places,
            PRODUCTS: ProductIOManager(build_dir=str(root / "build")),
        }

    def observe(self) -> None:
        """Look at the weights."""
        definitions = dg.Definitions(
            assets=[model_weights, *MADE], jobs=[observe_weights], resources=self.resources
        )
        definitions.resolve_job_def(observe_weights.name).execute_in_process(instance=self.instance)

    def materialize(self, *selection: str) -> dg.ExecuteInProcessResult:
        """Make the selected assets, or everything for both targets."""
        keys = [dg.AssetKey(name.split("/")) for name in selection]
        return dg.materialize(
            [model_weights, *MADE],
            instance=self.instance,
            resources=self.resources,
            selection=dg.AssetSelection.assets(*keys) if keys else None,
            raise_on_error=False,
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """The double is accepted in code only: no setting leads to it."""
    monkeypatch.setattr("assets.toolchain.hailo_dfc.SUPPORTED", (DOUBLE_SDK_VERSION,))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Home(tmp_path, instance)


def metadata_of(result: dg.ExecuteInProcessResult, step: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(step)
    return {name: value.value for name, value in event.metadata.items()}


@pytest.mark.slow
def test_both_branches_are_built_on_the_double(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published only where a fixture said in code that a double may be; nobody else's store takes it."""
    home.observe()
    asked: Counter[str] = Counter()
    ask = DfcInterpreter.ask

    def counted(self: DfcInterpreter, verb: str, *rest: Any, **options: Any) -> Answer:
        asked[verb] += 1
        return ask(self, verb, *rest, **options)

    monkeypatch.setattr(DfcInterpreter, "ask", counted)
    result = home.materialize()
    assert set(asked) == set(CALLS)
    assert {verb: calls for verb, calls in asked.items() if calls > CALLS[verb]} == {}
    (failure,) = result.get_step_failure_events()
    assert failure.step_key == "hailo8__canary_release"
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert "test double of the compiler" in (data.description or "")
    assert a_store(home.root / "releases").current("hailo8", "canary") is None
    store = a_store(home.root / "releases", accepts_doubles=True)
    monkeypatch.setattr(Places, "store", lambda places: store)
    assert home.materialize("hailo8/canary_release").success
    for target in TARGETS:
        assert store.current(target, "canary") is not None
    manifest = store.resolve("hailo8", "canary").manifest
    assert (manifest.toolchain.id, manifest.toolchain.hardware) == ("hailo-dfc", True)
    assert manifest.toolchain.tools["hailo-dfc"] == DOUBLE_SDK_VERSION
    assert manifest.primary.kind == "hef"
    assert (manifest.output.provenance, manifest.parity.provenance) == ("measured", "emulated")
    assert manifest.golden.kernel_family == "hailo8 emulated by hailo-dfc"
    hef = read_hef(store.resolve("hailo8", "canary").directory / manifest.artifact)
    assert hef.architecture == "HAILO8P"
    output = hef.network_groups[0].outputs[0]
    assert manifest.golden.output is not None
    assert (manifest.golden.output.scale, manifest.golden.output.zero_point) == (
        output.scale,
        output.zero_point,
    )
    assert {"model_weights", "onnx_model", "calibration_set", "hailo8/quantized_har", "hailo8/hef"} <= set(
        manifest.upstream
    )
    assert not any(name.startswith("emulator/") for name in manifest.upstream)
    evidence = read_evidence(home.bench, home.bench.latest("hailo8/parity_report"))
    contexts = {each.name: each for each in evidence.contexts}
    assert tuple(contexts) == (*CONTEXTS[:2], *TOOLCHAIN_CONTEXTS, *CONTEXTS[2:])
    assert evidence.judged == "emulator"
    assert contexts["sdk_native"].metrics["sqnr_db"] > 80
    assert contexts["artifact"].not_run
    assert contexts["hardware"].not_run
    quantized = metadata_of(result, "hailo8__quantized_har")
    assert quantized["degradations"] == "none"
    assert "model_optimization_flavor(optimization_level=2" in str(quantized["script"])
    assert "Model Optimization is done" in str(quantized["log"])
    run_log = [record.user_message for record in home.instance.all_logs(result.run_id)]
    assert "optimize: [info] Starting Model Optimization" in run_log
    assert "compile: dfc is 0.0.0-double" in run_log
    assert "HAILO8P" in str(metadata_of(result, "hailo8__hef")["hef architecture"])
    assert "script" not in metadata_of(result, "emulator__quantized_har")


def test_without_a_compiler_the_emulators_branch_is_built_all_the_same(tmp_path: Path) -> None:
    places = {"DAGSTER_HOME": "home", "BUILD_DIR": "build", "RELEASE_STORE": "releases"}
    settings = {name: str(tmp_path / place) for name, place in places.items()}
    report = tmp_path / "report"
    report.mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "orchestration.build", "--report", str(report)],
        cwd=ROOT,
        env={**os.environ, **settings, "BUILD_TARGETS": "hailo8,emulator"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    failed = [line for line in run.stdout.splitlines() if "FAILED  " in line]
    assert len(failed) == 1, run.stdout
    assert "hailo8/quantized_har" in failed[0]
    assert "HAILO_DFC_PYTHON is not set" in failed[0]
    assert "emulator/canary_release" in run.stdout
    assert set(json.loads((report / RELEASES).read_text())) == {"emulator"}
    assert "Traceback" not in run.stdout + run.stderr


def test_cancelling_a_run_ends_the_compiler_and_its_children(tmp_path: Path) -> None:
    """As Ctrl-C and Dagster's own cancelling do it: an interrupt in the run's process."""
    pids = tmp_path / "pids"
    double = {"DFC_DOUBLE_FAULT": "optimize:hang", "DFC_DOUBLE_PIDS": str(pids)}
    code = (
        "import sys; import assets.toolchain.hailo_dfc as dfc\n"
        f"dfc.SUPPORTED = ({DOUBLE_SDK_VERSION!r},)\n"
        "from orchestration.build import main; sys.exit(main([]))"
    )
    places = {"DAGSTER_HOME": "home", "BUILD_DIR": "build", "RELEASE_STORE": "releases"}
    settings = {name: str(tmp_path / place) for name, place in places.items()}
    settings |= {"BUILD_TARGETS": "hailo8", "HAILO_DFC_PYTHON": dfc_python(tmp_path, double)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(pids.exists, "the compiler at work", 100)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "hailo8/quantized_har       FAILED  interrupted" in said
    assert "canary_release" not in said
    assert wait_for(lambda: all_ended(pids), "their end")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("", ""),
        ("python3.10", "python3.10"),
        ("/opt/dfc/bin/python", "/opt/dfc/bin/python"),
        ("dfc/bin/python", str(ROOT / "dfc/bin/python")),
        ("~/dfc/bin/python", str(Path.home() / "dfc/bin/python")),
    ],
)
def test_the_compilers_python_is_a_setting(value: str, read: str) -> None:
    assert BuildSettings.from_environment({"HAILO_DFC_PYTHON": value}).dfc_python == read
