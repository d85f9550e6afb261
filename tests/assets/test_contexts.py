"""A target with a chip: without a device nothing is called measured, and a device's failure is no absence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from assets import contexts
from assets.canary import publish_canary
from assets.contexts import EngineRunError, NoEngineHereError, run_as_engine
from assets.toolchain import Built
from assets.toolchain.emulator import EmulatorToolchain
from runtime.contract.parity import ContextResult, ParityEvidence
from runtime.contract.release import Manifest, ToolchainRecord
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.window import FloatArray, normalize
from tests.chain import Chain, build_chain

pytestmark = pytest.mark.build
NO_DEVICE = "this version has no HailoRT engine, so it cannot run a release for hailo8"


class CompilerDouble(EmulatorToolchain):
    """A compiler for a chip, as far as the build side can tell; its arithmetic is the emulator's."""

    target = "hailo8"

    def record(self) -> ToolchainRecord:
        return dataclasses.replace(
            super().record(), id="hailo-dfc", hardware=True, tools={"hailo-dfc": "3.33.0"}
        )

    def _compile(self, quantized: Built) -> Built:
        return dataclasses.replace(super()._compile(quantized), kind="hef", suffix=".hef")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return build_chain(tmp_path_factory.mktemp("hailo8"), toolchain=CompilerDouble())


def by_name(evidence: ParityEvidence) -> dict[str, ContextResult]:
    return {context.name: context for context in evidence.contexts}


def publish(chain: Chain, store: Path) -> Release:
    return publish_canary(
        chain.bench,
        chain.toolchain,
        ReleaseStore(store),
        hef=chain.products["hef"],
        parity_report=chain.products["parity_report"],
        actor="test",
        reason="test",
    )


def test_without_a_device_the_emulation_is_judged_and_says_so(built: Chain) -> None:
    evidence, found = built.evidence, by_name(built.evidence)
    assert (evidence.judged, evidence.result.provenance) == ("emulator", "emulated")
    assert evidence.result.passed
    for name in ("artifact", "hardware"):
        assert found[name] == ContextResult(
            name=name, provenance="", ran_by="", not_run=NO_DEVICE, metrics={}
        )
    assert found["emulator"].provenance == "emulated"
    assert found["emulator"].metrics["sqnr_db"] == pytest.approx(evidence.result.metrics["sqnr_db"])
    # The compiler ran both, whoever else is installed.
    assert found["full_precision"].ran_by == found["emulator"].ran_by == "hailo-dfc 3.33.0"


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
    from tests.simulators import ReleaseSimulator, imu_windows

    for simulator, kind, words in (
        (ReleaseSimulator(target="hailo8"), NoEngineHereError, "no HailoRT engine"),
        (ReleaseSimulator(golden_offset=9.0), EngineRunError, "golden window"),
        (ReleaseSimulator(model=b"no graph"), EngineRunError, "self-test failed"),
    ):
        files = simulator.contents()
        with pytest.raises(EngineRunError, match=words) as caught:
            run_as_engine(simulator.manifest(files), files, imu_windows(2))
        assert type(caught.value) is kind
