"""A target with a chip: without a device nothing is called measured, and a device's failure is no absence."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest

from assets import contexts
from assets.canary import publish_canary
from assets.contexts import EngineRunError, NoEngineHereError, run_as_engine
from assets.metrics import ParityError
from assets.toolchain import Built
from assets.toolchain.emulator import EmulatorToolchain
from runtime.contract.parity import ContextResult, ParityEvidence
from runtime.contract.release import Manifest, OutputQuantization, ToolchainRecord
from runtime.contract.store import Release
from runtime.contract.window import FloatArray, normalize
from tests.chain import Chain, build_chain
from tests.hef_writer import make_hef, stream
from tests.keys import BUILD, a_store
from tests.simulators import ReleaseSimulator, imu_windows

pytestmark = pytest.mark.build
NO_HAILORT = "HailoRT's Python package is not installed"
WIDE = (stream("encoder/input_layer1", (1, 100, 9), limits=(-64.0, 64.0)),)


class CompilerDouble(EmulatorToolchain):
    """A compiler for a chip, as far as the build side can tell; its arithmetic is the emulator's."""

    target = "hailo8"

    def record(self) -> ToolchainRecord:
        return dataclasses.replace(
            super().record(), id="hailo-dfc", hardware=True, tools={"hailo-dfc": "3.33.0"}
        )

    def _compile(self, quantized: Built) -> Built:
        self._compiled = super()._compile(quantized)
        return dataclasses.replace(self._compiled, kind="hef", suffix=".hef", data=make_hef(inputs=WIDE))

    def _check(self, built: Built) -> None:
        """No graph of the emulator's, where it is compiled."""

    def _infer(self, built: Built, windows: FloatArray) -> FloatArray:
        return super()._infer(self._compiled if built.stage == "compiled" else built, windows)

    def output_quantization(self, built: Built) -> OutputQuantization:
        return super().output_quantization(self._compiled if built.stage == "compiled" else built)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return build_chain(tmp_path_factory.mktemp("hailo8"), toolchain=CompilerDouble())


def by_name(evidence: ParityEvidence) -> dict[str, ContextResult]:
    return {context.name: context for context in evidence.contexts}


def publish(chain: Chain, store: Path) -> Release:
    return publish_canary(
        chain.bench,
        chain.toolchain,
        a_store(store, accepts_doubles=True),
        hef=chain.products["hef"],
        parity_report=chain.products["parity_report"],
        actor="test",
        reason="test",
        key=BUILD,
    )


def test_without_a_device_the_emulation_is_judged_and_says_so(built: Chain) -> None:
    evidence, found = built.evidence, by_name(built.evidence)
    assert (evidence.judged, evidence.result.provenance) == ("emulator", "emulated")
    assert evidence.result.passed
    for name in ("artifact", "hardware"):
        assert NO_HAILORT in found[name].not_run
        nothing = dataclasses.replace(found[name], not_run="")
        assert nothing == ContextResult(name=name, provenance="", ran_by="", not_run="", metrics={})
    assert found["emulator"].provenance == "emulated"
    assert found["emulator"].metrics["sqnr_db"] == pytest.approx(evidence.result.metrics["sqnr_db"])
    # The compiler ran both, whoever else is installed.
    assert found["full_precision"].ran_by.startswith("onnxruntime ")
    assert found["emulator"].ran_by == "hailo-dfc 3.33.0"


def test_a_release_for_a_chip_is_published_without_one_and_is_honest(built: Chain, tmp_path: Path) -> None:
    manifest = publish(built, tmp_path).manifest
    assert (manifest.target, manifest.primary.kind) == ("hailo8", "hef")
    assert manifest.toolchain.hardware
    assert manifest.parity.provenance == "emulated"


def test_a_device_that_fails_is_not_replaced_by_its_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise EngineRunError("the self-test failed: golden window 3, dimension 7 differs by 40 LSB")

    monkeypatch.setattr(contexts, "run_as_engine", fails)
    with pytest.raises(EngineRunError, match="differs by 40 LSB"):
        build_chain(tmp_path, toolchain=CompilerDouble())


def test_with_a_device_its_own_numbers_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps beside the emulation in one dimension: on a chip that is a number, and no error."""
    toolchain = CompilerDouble()

    def runs(manifest: Manifest, files: dict[str, bytes], windows: FloatArray) -> tuple[FloatArray, str]:
        artifact = Built(stage="compiled", kind="hef", suffix=".hef", data=files[manifest.artifact])
        assert manifest.golden.output is not None
        latents = toolchain.infer(artifact, normalize(windows, manifest.input.normalization))
        latents[:, 0] += 3 * manifest.golden.output.scale
        return latents, "releasectl selftest: HailoRT 4.23 on hailo8"

    monkeypatch.setattr(contexts, "run_as_engine", runs)
    chain = build_chain(tmp_path, toolchain=toolchain)
    found = by_name(chain.evidence)
    assert (chain.evidence.judged, chain.evidence.result.provenance) == ("artifact", "measured")
    assert found["artifact"].metrics["lsb_from_emulator"] == 3
    assert found["hardware"].provenance == "measured"
    assert found["hardware"].ran_by == "releasectl selftest: HailoRT 4.23 on hailo8"
    assert found["emulator"].provenance == "emulated"


def test_an_emulator_needs_no_device_so_a_missing_engine_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise NoEngineHereError("no onnxruntime")

    monkeypatch.setattr(contexts, "run_as_engine", absent)
    with pytest.raises(EngineRunError, match="no onnxruntime"):
        build_chain(tmp_path)


def test_a_self_test_that_fails_says_why_and_one_without_an_engine_is_told_apart(tmp_path: Path) -> None:
    for simulator, kind, words in (
        (ReleaseSimulator(target="hailo8"), NoEngineHereError, NO_HAILORT),
        (ReleaseSimulator(golden_offset=9.0), EngineRunError, "golden window"),
        (ReleaseSimulator(model=b"no graph"), EngineRunError, "self-test failed"),
    ):
        files = simulator.contents()
        with pytest.raises(EngineRunError, match=words) as caught:
            run_as_engine(simulator.manifest(files), files, imu_windows(2))
        assert type(caught.value) is kind


def test_an_engine_that_runs_other_kernels_than_the_emulation_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps in one number of one window; parity by itself would not see it."""

    def other(manifest: Manifest, files: dict[str, bytes], windows: FloatArray) -> tuple[FloatArray, str]:
        latents, ran_by = run_as_engine(manifest, files, windows)
        assert manifest.golden.output is not None
        latents[7, 3] += np.float32(3 * manifest.golden.output.scale)
        return latents, ran_by

    monkeypatch.setattr(contexts, "run_as_engine", other)
    with pytest.raises(ParityError, match="3 steps away from the emulation"):
        build_chain(tmp_path)


def test_what_the_self_test_finds_depends_on_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings for serving are handed on to the child, and mean nothing to it."""
    simulator, windows = ReleaseSimulator(), imu_windows(3)
    files = simulator.contents()
    manifest = simulator.manifest(files)
    before = run_as_engine(manifest, files, windows)
    for name, value in (
        ("RELEASE_STORE", "/nowhere"),
        ("TARGET", "hailo8"),
        ("HEF_PATH", "/nowhere/x.hef"),
        ("NUM_MOTIFS", "3"),
        ("LOG_LEVEL", "nonsense"),
        ("PYTHONIOENCODING", "latin-1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    after = run_as_engine(manifest, files, windows)
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]


def test_a_self_test_that_does_not_end_is_ended_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "ENGINE_SECONDS", 0.01)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    simulator = ReleaseSimulator()
    files = simulator.contents()
    with pytest.raises(EngineRunError, match="did not end"):
        run_as_engine(simulator.manifest(files), files, imu_windows(1))
    assert list(tmp_path.iterdir()) == []
