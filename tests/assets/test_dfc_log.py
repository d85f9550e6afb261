"""A lowered level, too few windows, no GPU and skipped algorithms fail the build unless accepted by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from assets.onnx_model import canonical_graph
from assets.toolchain.dfc_config import load_config
from assets.toolchain.dfc_errors import DfcDegradedError, DfcUnsupportedError
from assets.toolchain.dfc_log import check_accepted, degradations
from assets.toolchain.dfc_process import MOST_LOG_CHARACTERS, clean_lines, shortened
from assets.toolchain.onnx_check import check_graph
from runtime.contract.errors import ManifestError
from tests.assets.test_onnx_model import foreign_graph, small_encoder
from tests.dfc import double_toolchain, small_config

pytestmark = pytest.mark.build
REDUCED = (
    "[warning] Reducing optimization level to 0 (the accuracy won't be optimized and compression won't be "
    "used) because there's less data than the recommended amount (1024), and there's no available GPU"
)


def names(*log: str, level: int = 2, gpus: str = "1", windows: int | None = None) -> list[str]:
    config = replace(load_config(), optimization_level=level)
    return [each.name for each in degradations(log, config, gpus=gpus, windows=windows)]


@pytest.mark.parametrize(
    ("line", "level", "found"),
    [
        (REDUCED, 2, ["few_calibration_windows", "no_gpu", "optimization_level_0"]),
        (REDUCED.replace("0 (", "1 ("), 2, ["few_calibration_windows", "no_gpu", "optimization_level_1"]),
        ("[info] Quantization-Aware Fine-Tuning skipped", 2, ["skipped_quantization_aware_fine_tuning"]),
        ("[info] Bias Correction skipped", 2, []),
        ("[info] Bias Correction skipped", 1, ["skipped_bias_correction"]),
        ("[info] Adaround skipped", 4, ["skipped_adaround"]),
        ("[info] Adaround skipped", 3, []),
        ("[info] Matmul Equalization skipped", 4, []),
        ("[info] Using dataset with 64 entries for calibration", 2, ["few_calibration_windows"]),
        ("[info] Using dataset with 1024 entries for calibration", 2, []),
        ("[warning] Training cut by the user, proceed at your own peril", 2, ["training_cut"]),
        ("[info] Starting Model Optimization", 2, []),
        ("[warning] Reducing compression level to 0 because of a low optimization level", 2, []),
        ("[warning] Could not find available GPU", 2, ["unrecognized_warning"]),
        ("[warning] Optimization level was reduced to 0", 2, ["unrecognized_warning"]),
        ("[warning] Finetune was skipped", 2, ["unrecognized_warning"]),
        ("[warning] Running with level 0 is not recommended: optimization level zero", 0, []),
        ("[warning] There's no available GPU", 0, []),
        ("[warning] There's no available GPU", 2, ["no_gpu"]),
        ("[warning] DeprecationWarning: this will be removed", 2, []),
    ],
)
def test_a_line_says_what_was_not_done(line: str, level: int, found: list[str]) -> None:
    assert names(line, level=level) == found


def test_facts_count_beside_the_log() -> None:
    assert names(gpus="0") == ["no_gpu"]
    assert names(gpus="0", level=0) == []
    assert names(gpus="unknown") == ["gpu_unknown"]
    assert names(gpus="unknown", level=0) == []
    assert names(windows=1200) == []
    assert names(windows=600) == ["few_calibration_windows"]


def test_each_is_accepted_by_its_own_name_only() -> None:
    config = replace(load_config(), accepted=("no_gpu",))
    found = degradations([REDUCED], config)
    with pytest.raises(DfcDegradedError) as caught:
        check_accepted(found, config)
    assert "optimization_level_0" in caught.value.what
    assert "no available GPU" in caught.value.what
    assert '"few_calibration_windows", "optimization_level_0"' in caught.value.hint
    check_accepted(found, replace(config, accepted=tuple(each.name for each in found)))


def test_without_a_gpu_the_build_fails_until_somebody_accepts_it(tmp_path: Path) -> None:
    windows = np.random.default_rng(1).normal(size=(96, 100, 9)).astype(np.float32)
    graph = canonical_graph(small_encoder())
    toolchain = double_toolchain(tmp_path, DFC_DOUBLE_GPU="0")
    with pytest.raises(DfcDegradedError, match="optimization_level_0"):
        toolchain.optimize(toolchain.parse(graph), windows)
    accepted = (
        "few_calibration_windows",
        "no_gpu",
        "optimization_level_0",
        "skipped_quantization_aware_fine_tuning",
    )
    toolchain = double_toolchain(tmp_path, config=small_config(accepted=accepted), DFC_DOUBLE_GPU="0")
    quantized = toolchain.optimize(toolchain.parse(graph), windows)
    for name in accepted:
        assert name in quantized.facts["degradations"]
    assert quantized.record is not None
    assert "no_gpu" in quantized.record.options["accepted"]


def test_a_compiler_that_cannot_tell_whether_it_has_a_gpu_is_not_believed(tmp_path: Path) -> None:
    windows = np.random.default_rng(1).normal(size=(96, 100, 9)).astype(np.float32)
    toolchain = double_toolchain(tmp_path, DFC_DOUBLE_TENSORFLOW="0")
    with pytest.raises(DfcDegradedError, match="gpu_unknown"):
        toolchain.optimize(toolchain.parse(canonical_graph(small_encoder())), windows)


def test_a_long_log_is_cut_where_it_is_kept_and_not_where_it_is_judged() -> None:
    lines = [REDUCED, *(f"[info] line {i}" for i in range(40_000))]
    kept = shortened(lines)
    assert len(kept) <= MOST_LOG_CHARACTERS + 100
    assert kept.startswith("(")
    assert kept.endswith("line 39999")
    assert names(*lines) == ["few_calibration_windows", "no_gpu", "optimization_level_0"]
    assert shortened(["a", "b"]) == "a\nb"


def test_a_worse_optimization_is_ended_when_it_says_so(tmp_path: Path) -> None:
    """At its beginning: it would go on for hours."""
    windows = np.random.default_rng(1).normal(size=(96, 100, 9)).astype(np.float32)
    toolchain = double_toolchain(tmp_path, DFC_DOUBLE_GPU="0", DFC_DOUBLE_FAULT="optimize:hang")
    parsed = toolchain.parse(canonical_graph(small_encoder()))
    with pytest.raises(DfcDegradedError, match="no available GPU"):
        toolchain.optimize(parsed, windows)


def test_too_few_windows_are_refused_before_the_compiler_runs(tmp_path: Path) -> None:
    windows = np.random.default_rng(1).normal(size=(96, 100, 9)).astype(np.float32)
    for config, says in (
        (small_config(calibration_windows=97), "97 are asked for"),
        (small_config(accepted=()), "96 windows, 1024 are recommended"),
    ):
        toolchain = double_toolchain(tmp_path, config=config, DFC_DOUBLE_FAULT="optimize:exit")
        parsed = toolchain.parse(canonical_graph(small_encoder()))
        with pytest.raises(DfcDegradedError, match=says):
            toolchain.optimize(parsed, windows)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimization_level", 5),
        ("compression_level", -1),
        ("calibration_windows", 0),
        ("compiler_optimization", "fast"),
        ("seconds", {"parse": 1.0}),
    ],
)
def test_a_configuration_that_says_nonsense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ManifestError) as caught:
        replace(load_config(), **{field: value})  # type: ignore[arg-type]
    assert caught.value.where == field


def test_colours_and_progress_bars_are_cleaned() -> None:
    data = b"\x1b[31m[error] no\x1b[0m\r\nCalibration: 1%\rCalibration: 99%\n\n  \nend"
    assert clean_lines(data) == ["[error] no", "Calibration: 99%", "end"]


def changed(**attributes: object) -> bytes:
    """The small encoder's graph with its first convolution changed."""
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    for name, value in attributes.items():
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    result: bytes = model.SerializeToString()
    return result


def with_node(operator: str, **inputs: list[int]) -> bytes:
    """The graph with one node more, before everything else."""
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    for name, values in inputs.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
    model.graph.node.insert(0, helper.make_node(operator, ["imu_window", *inputs], ["more"], name="strange"))
    result: bytes = model.SerializeToString()
    return result


def versions(opset: int = 17, ir: int = 8) -> bytes:
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    model.opset_import[0].version, model.ir_version = opset, ir
    result: bytes = model.SerializeToString()
    return result


def test_the_canonical_graph_is_known_to_parse() -> None:
    (unusual,) = check_graph(canonical_graph(small_encoder()))
    assert "6 convolutions pad one side only" in unusual


SLICE = {"starts": [0], "ends": [9], "axes": [3]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (versions(opset=18), "opset 18, known are 11 to 17"),
        (versions(opset=10), "opset 10"),
        (versions(ir=9), "ir_version 9, at most 8"),
        (with_node("Slice", **SLICE), "strange: a Slice along time"),
        (with_node("Slice", **{**SLICE, "axes": [-1]}), "a Slice along time"),
        (with_node("Pad", pads=[0, 0, 0, 2, 0, 0, 0, 0]), "strange: a Pad along time"),
        (with_node("Softmax"), "operator Softmax has no known precedent"),
        (changed(dilations=[1, 32]), r"dilation \[1, 32\]"),
        (changed(group=3), "3 groups"),
        (foreign_graph(small_encoder(), opset=11, style="chomp"), "rank 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_to_parse_is_refused_before(data: bytes, says: str) -> None:
    with pytest.raises(DfcUnsupportedError, match=says) as caught:
        check_graph(data)
    assert "rewrite it" in caught.value.hint


def test_a_slice_of_channels_is_let_through() -> None:
    check_graph(with_node("Slice", starts=[0], ends=[9], axes=[1]))


def test_a_wide_kernel_and_every_problem_are_named() -> None:
    model = onnx.load_from_string(versions(opset=18))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    wide = helper.make_tensor(weight.name, TensorProto.FLOAT, [8, 9, 3, 9], np.zeros(8 * 9 * 27))
    weight.CopyFrom(wide)
    with pytest.raises(DfcUnsupportedError, match=r"opset 18.*kernel 3x9, known are 1x1 to 1x7"):
        check_graph(model.SerializeToString())
