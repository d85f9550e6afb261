"""What every toolchain must do; an implementation supplies construction only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

from assets.onnx_model import canonical_graph
from assets.toolchain import Built, Toolchain, open_toolchain, parse_targets
from assets.toolchain.emulator import EmulatorToolchain, integer_path_for
from assets.weights import parse_model, read_files
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import ToolchainError
from runtime.contract.parity import TOOLCHAIN_CONTEXTS
from runtime.contract.release import NUMBER_PROVENANCES
from runtime.contract.window import GRAPH_INPUT_NAME, FloatArray
from tests.assets.test_onnx_model import small_encoder
from tests.chain import SAMPLE_VERSION
from tests.dfc import double_toolchain

pytestmark = pytest.mark.build


def some_windows(count: int = 96, seed: int = 0) -> FloatArray:
    """Normalized windows with varied energy."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 100, 9)) * rng.uniform(0.1, 2, (count, 1, 1))).astype(np.float32)


class ToolchainSuite:
    """The interface, through its public methods."""

    def make(self) -> Toolchain:
        """A toolchain that can build on this machine."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def graph(self) -> bytes:
        return canonical_graph(small_encoder())

    def built(self, graph: bytes) -> tuple[Toolchain, Built, Built, Built]:
        toolchain = self.make()
        parsed = toolchain.parse(graph)
        quantized = toolchain.optimize(parsed, some_windows())
        return toolchain, parsed, quantized, toolchain.compile(quantized)

    def test_stages_follow_one_another(self, graph: bytes) -> None:
        _, *stages = self.built(graph)
        assert [built.stage for built in stages] == ["parsed", "quantized", "compiled"]
        assert all(built.data and built.kind and built.suffix.startswith(".") for built in stages)

    def test_the_same_inputs_give_the_same_bytes(self, graph: bytes) -> None:
        assert [b.data for b in self.built(graph)[1:]] == [b.data for b in self.built(graph)[1:]]

    def test_every_stage_answers_like_full_precision(self, graph: bytes) -> None:
        toolchain, parsed, quantized, compiled = self.built(graph)
        windows = some_windows(seed=1)
        reference = toolchain.infer(parsed, windows)
        assert reference.shape == (96, 64)
        assert reference.dtype == np.float32
        for built in (quantized, compiled):
            error = toolchain.infer(built, windows) - reference
            assert np.sum(error**2) < 0.02 * np.sum(reference**2)
            assert np.any(error != 0)

    def test_stages_out_of_order_are_refused(self, graph: bytes) -> None:
        toolchain, parsed, quantized, compiled = self.built(graph)
        with pytest.raises(ToolchainError, match="expected a parsed one"):
            toolchain.optimize(quantized, some_windows())
        with pytest.raises(ToolchainError, match="expected a quantized one"):
            toolchain.compile(parsed)
        with pytest.raises(ToolchainError, match="expected a quantized one"):
            toolchain.compile(compiled)

    @pytest.mark.parametrize(
        "windows",
        [
            np.zeros((0, 100, 9), np.float32),
            np.zeros((4, 9, 100), np.float32),
            np.zeros((4, 100, 9), np.float64),
            np.full((4, 100, 9), np.nan, np.float32),
        ],
        ids=["none", "transposed", "float64", "nan"],
    )
    def test_windows_that_are_none_are_refused(self, graph: bytes, windows: FloatArray) -> None:
        toolchain = self.make()
        parsed = toolchain.parse(graph)
        for call in (lambda: toolchain.optimize(parsed, windows), lambda: toolchain.infer(parsed, windows)):
            with pytest.raises(ToolchainError):
                call()

    def test_only_our_errors_come_out(self) -> None:
        with pytest.raises(ToolchainError, match="parse failed"):
            self.make().parse(b"not a graph")

    def test_output_step_is_the_smallest_difference_of_the_artifact(self, graph: bytes) -> None:
        toolchain, _, _, compiled = self.built(graph)
        step = toolchain.output_quantization(compiled).scale
        latents = toolchain.infer(compiled, some_windows(seed=2)).astype(np.float64)
        np.testing.assert_allclose(latents / step, np.round(latents / step), atol=1e-3)

    def test_layer_noise_names_layers_in_the_graphs_order(self, graph: bytes) -> None:
        """Or is None, where a toolchain cannot tell."""
        toolchain, parsed, quantized, _ = self.built(graph)
        noise = toolchain.layer_noise(parsed, quantized, some_windows(seed=3))
        if noise is None:
            return
        order = [GRAPH_INPUT_NAME, *(n.output[0] for n in onnx.load_from_string(graph).graph.node)]
        names = [layer.name for layer in noise.layers]
        assert names == sorted(set(names), key=order.index)
        assert len({weight.name for weight in noise.weights}) == len(noise.weights) > 0
        to_json(noise)  # refuses what is not finite
        assert 0 < noise.windows <= 96
        assert noise.provenance in NUMBER_PROVENANCES
        assert noise.tool
        for layer in noise.layers:
            assert layer.range_low <= 0 <= layer.range_high
            assert layer.seen_low <= layer.seen_high
            assert 0 <= layer.clipped_share <= 1
        gains = [promotion.gain_db for promotion in noise.promote]
        assert gains == sorted(gains, reverse=True)
        assert {promotion.name for promotion in noise.promote} <= set(names)

    def test_layer_noise_wants_both_stages(self, graph: bytes) -> None:
        toolchain, parsed, quantized, compiled = self.built(graph)
        with pytest.raises(ToolchainError, match="expected a quantized one"):
            toolchain.layer_noise(parsed, compiled, some_windows(2))
        with pytest.raises(ToolchainError, match="expected a parsed one"):
            toolchain.layer_noise(quantized, quantized, some_windows(2))

    def test_a_result_is_checked_again_when_it_was_kept(self, graph: bytes) -> None:
        """As when it was made: another stage, another toolchain's, and what only claims to be one."""
        toolchain, parsed, quantized, compiled = self.built(graph)
        toolchain.check(quantized, "quantized")
        toolchain.check(replace(compiled, stand_in=b""), "compiled")
        with pytest.raises(ToolchainError, match="expected a compiled one"):
            toolchain.check(quantized, "compiled")
        with pytest.raises(ToolchainError, match="nobody knows whom"):
            toolchain.check(replace(quantized, record=None), "quantized")
        for data in (parsed.data, b"no artifact", graph):
            with pytest.raises(ToolchainError):
                toolchain.check(replace(compiled, data=data), "compiled")

    def test_its_code_has_a_digest(self) -> None:
        assert re.fullmatch("[0-9a-f]{64}", self.make().sources)

    def test_record_names_tools_with_versions(self) -> None:
        record = self.make().record()
        assert record.id
        assert all(re.match(r"\d+\.\d+", version) for version in record.tools.values())


class TestEmulator(ToolchainSuite):
    """int8 on ONNX Runtime."""

    def make(self) -> Toolchain:
        return EmulatorToolchain()

    def test_it_says_what_it_is(self, graph: bytes) -> None:
        toolchain, _, quantized, compiled = self.built(graph)
        assert not toolchain.record().hardware
        for built in (quantized, compiled):
            assert built.kind == "emulated-int8"
            assert not built.suffix.endswith((".har", ".hef"))
        assert compiled.suffix.endswith(".onnx")
        marks = {p.key: p.value for p in onnx.load_from_string(compiled.data).metadata_props}
        assert (marks["kind"], marks["not-hardware"]) == ("emulated-int8", "true")

    def test_layer_noise_has_one_layer_for_each_scale(self, graph: bytes) -> None:
        toolchain, parsed, quantized, _ = self.built(graph)
        noise = toolchain.layer_noise(parsed, quantized, some_windows(seed=3))
        nodes = onnx.load_from_string(quantized.data).graph.node
        scales = {node.input[1] for node in nodes if node.op_type == "QuantizeLinear"}
        assert noise is not None
        assert noise.provenance == "emulated"
        assert len(noise.layers) == len(scales)

    @pytest.mark.parametrize("path", ["u8s8", "u8s8-7bit"])
    def test_bytes_do_not_depend_on_threads(self, path: str) -> None:
        """The sample's encoder: a small one's sums come out the same on any number of threads."""
        graph = canonical_graph(parse_model(read_files(SAMPLE_VERSION)).encoder)
        made = set()
        for threads in (1, 2, 4):
            toolchain = EmulatorToolchain(path, threads)
            made.add(toolchain.optimize(toolchain.parse(graph), some_windows()).data)
        assert len(made) == 1

    def test_path_for_cpus_without_vnni_cannot_saturate(self, graph: bytes) -> None:
        """Two uint8 x int8 products must fit in int16: what vpmaddubsw adds before it saturates."""
        toolchain = EmulatorToolchain("u8s8-7bit")
        quantized = toolchain.optimize(toolchain.parse(graph), some_windows())
        model = onnx.load_from_string(toolchain.compile(quantized).data)
        weights = [
            onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == t.INT8 and t.dims
        ]
        convolution_weights = [w for w in weights if w.ndim > 1]
        assert convolution_weights
        assert max(2 * 255 * int(np.abs(w.astype(int)).max()) for w in convolution_weights) < 2**15
        marks = {p.key: p.value for p in model.metadata_props}
        assert marks["integer_path"] == "u8s8-7bit" == toolchain.record().options["integer_path"]

    def test_eight_bit_weights_would_saturate_there(self, graph: bytes) -> None:
        toolchain = EmulatorToolchain("u8s8")
        model = onnx.load_from_string(toolchain.optimize(toolchain.parse(graph), some_windows()).data)
        largest = max(
            int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max())
            for t in model.graph.initializer
            if t.data_type == t.INT8 and len(t.dims) > 1
        )
        assert 2 * 255 * largest > 2**15

    @pytest.mark.parametrize(
        ("architecture", "flags", "path"),
        [
            ("x86_64", {"avx2"}, "u8s8-7bit"),
            ("x86_64", {"avx2", "avx512_vnni"}, "u8s8"),
            ("x86_64", {"avx_vnni"}, "u8s8"),
            ("aarch64", {"asimd"}, "u8s8"),
        ],
    )
    def test_path_follows_the_cpu(self, architecture: str, flags: set[str], path: str) -> None:
        assert integer_path_for(architecture, frozenset(flags)) == path

    def test_float_kernels_are_refused(self, graph: bytes) -> None:
        """A model that is int8 in name only must not become an artifact."""
        toolchain = EmulatorToolchain()
        record = toolchain.record()
        posing = Built(stage="quantized", kind="emulated-int8", suffix=".onnx", data=graph, record=record)
        with pytest.raises(ToolchainError, match="not integer kernels only"):
            toolchain.compile(posing)

    def test_what_nobody_recorded_is_not_compiled(self, graph: bytes) -> None:
        unknown = Built(stage="quantized", kind="emulated-int8", suffix=".onnx", data=graph)
        with pytest.raises(ToolchainError, match="nobody knows whom"):
            EmulatorToolchain().compile(unknown)

    def test_unknown_path_is_refused(self) -> None:
        with pytest.raises(ToolchainError, match="fp8"):
            EmulatorToolchain("fp8")


class HailoSuite(ToolchainSuite):
    """Hailo's Dataflow Compiler, as its double has it."""

    target = "hailo8"

    @pytest.fixture(scope="class", autouse=True)
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Where the double's Python is."""
        type(self).folder = tmp_path_factory.mktemp("dfc")
        return self.folder

    folder: Path
    memory: ClassVar[dict[str, tuple[Toolchain, Built, Built, Built]]] = {}

    def make(self) -> Toolchain:
        return double_toolchain(self.folder, self.target)

    def built(self, graph: bytes) -> tuple[Toolchain, Built, Built, Built]:
        """Once for all tests: each stage starts a process."""
        if self.target not in self.memory:
            self.memory[self.target] = self.really_built(graph)
        return self.memory[self.target]

    def really_built(self, graph: bytes) -> tuple[Toolchain, Built, Built, Built]:
        return super().built(graph)

    def test_the_same_inputs_give_the_same_bytes(self, graph: bytes) -> None:
        """Of the double; the real one writes times into its HAR and HEF."""
        once, again = self.built(graph)[1:], self.really_built(graph)[1:]
        assert [built.data for built in once] == [built.data for built in again]

    def test_it_says_what_it_is(self, graph: bytes) -> None:
        toolchain, parsed, quantized, compiled = self.built(graph)
        record = toolchain.record()
        assert (record.id, record.hardware) == ("hailo-dfc", True)
        assert record.tools["hailo-dfc"] == "0.0.0-double"
        assert [built.kind for built in (parsed, quantized, compiled)] == ["har", "har", "hef"]
        assert compiled.suffix == ".hef"
        script = compiled.facts["script"]
        assert record.options["script_sha256"] == sha256_bytes(script.encode())
        assert "calibset_size=96" in script
        assert compiled.facts["dfc"] == "0.0.0-double"
        assert "Starting Quantization-Aware Fine-Tuning" in quantized.facts["log"]
        assert "uint8" not in compiled.facts["hef input"]
        assert "8 bits" in compiled.facts["hef input"]

    def test_it_runs_what_the_compiler_runs(self, graph: bytes) -> None:
        toolchain, parsed, quantized, _ = self.built(graph)
        windows = some_windows(8, seed=4)
        found = toolchain.contexts(quantized, windows)
        assert tuple(found) == TOOLCHAIN_CONTEXTS
        assert not isinstance(found["sdk_native"], str)
        np.testing.assert_allclose(found["sdk_native"], toolchain.infer(parsed, windows), rtol=0, atol=1e-4)

    def test_an_artifact_alone_cannot_be_run_here(self, graph: bytes) -> None:
        toolchain, *_, compiled = self.built(graph)
        with pytest.raises(ToolchainError, match="there is no device here"):
            toolchain.infer(replace(compiled, stand_in=b""), some_windows(2))

    def test_its_kernels_are_not_the_chips(self, graph: bytes) -> None:
        """The emulation is not bit-exact: a device must not be held to its integers."""
        assert self.make().kernel_family() == f"{self.target} emulated by hailo-dfc"


class TestHailo8(HailoSuite):
    """The chip of the Pi."""


class TestHailo8L(HailoSuite):
    """Its smaller brother."""

    target = "hailo8l"


def test_targets_are_chosen_by_name_or_refused() -> None:
    assert open_toolchain("emulator").target == "emulator"
    with pytest.raises(ToolchainError, match="Dataflow Compiler"):
        open_toolchain("hailo8")
    with pytest.raises(ToolchainError, match="hailo10h is not built for: only hailo8, hailo8l"):
        open_toolchain("hailo10h")
    with pytest.raises(ToolchainError, match="does not build for: hailo15h"):
        parse_targets("emulator,hailo15h")
    with pytest.raises(ToolchainError, match="unknown target 'hailo9'"):
        open_toolchain("hailo9")
    assert parse_targets(" emulator, hailo8,emulator ") == ["emulator", "hailo8"]
    for wrong in ("", ",", "emulator,hailo9"):
        with pytest.raises(ToolchainError, match="BUILD_TARGETS"):
            parse_targets(wrong)
