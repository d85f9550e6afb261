"""The emulator's ranges: what they clip costs nothing or pays, and the bytes stay the same."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from assets.calibration import parse_sets, read_files
from assets.onnx_model import canonical_graph
from assets.onnx_run import run_graph
from assets.toolchain.emulator import EmulatorToolchain
from assets.toolchain.emulator_ranges import (
    DEAD_ROOM,
    OUTPUT_ROOM,
    POLICY,
    RANGE_MANTISSA_BITS,
    choose_ranges,
    dead_below,
    killed_addends,
    snap_outward,
    spread,
)
from assets.version_folder import find_version
from assets.weights import TrainedModel, parse_model
from assets.weights import read_files as read_weights
from bench.ranges import compare_ranges
from runtime.contract.window import GRAPH_INPUT_NAME, GRAPH_OUTPUT_NAME, FloatArray, normalize
from tests.assets.test_onnx_model import small_encoder
from tests.chain import CALIB_DATA, ROOT, SAMPLE_VERSION

pytestmark = pytest.mark.build

SEEDS = range(100, 105)
Ranges = dict[str, tuple[float, float]]
integers = st.integers(-50, 50).map(float)


@pytest.fixture(scope="module")
def sample() -> TrainedModel:
    return parse_model(read_weights(SAMPLE_VERSION))


@pytest.fixture(scope="module")
def windows(sample: TrainedModel) -> FloatArray:
    calibration = parse_sets(read_files(CALIB_DATA)).calibration.windows
    return normalize(calibration[:96], sample.statistics)


def ranges_of(graph: bytes, windows: FloatArray) -> Ranges:
    found = choose_ranges(onnx.load_from_string(graph), windows)
    ends = {name: found[name].range_value for name in found.keys()}  # noqa: SIM118
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def seen_in(graph: bytes, name: str, windows: FloatArray) -> FloatArray:
    """All values of one tensor in full precision."""
    model = onnx.load_from_string(graph)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return run_graph(model.SerializeToString(), windows)


def clipped(graph: bytes, lows: dict[str, float]) -> bytes:
    """The float graph with tensors clipped from below."""
    model = onnx.load_from_string(graph)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in lows:
                node.output[index] = f"{name}.free"
                low = numpy_helper.from_array(np.array(lows[name], np.float32), f"{name}.low")
                model.graph.initializer.append(low)
                nodes.append(helper.make_node("Max", [f"{name}.free", low.name], [name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_snapping_goes_outward_and_not_far(values: FloatArray) -> None:
    snapped = snap_outward(values)
    assert np.all(np.abs(snapped) >= np.abs(values))
    assert np.all(np.abs(snapped) <= np.abs(values) * (1 + 2.0**-9))
    assert np.array_equal(snap_outward(snapped), snapped)


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(0.5, 2.0**60, width=32)))
def test_last_bits_survive_snapping_only_on_a_grid_point(values: FloatArray) -> None:
    """Else a value and its neighbour land on one grid point."""
    between = np.frexp(values)[0] * 2**RANGE_MANTISSA_BITS % 1 != 0
    neighbours = np.nextafter(values, np.float32(np.inf))
    assert np.array_equal(snap_outward(values)[between], snap_outward(neighbours)[between])


@given(hnp.arrays(np.float32, (2, 30), elements=st.floats(-1e6, 1e6, width=32)))
def test_clipping_dead_values_is_lossless_for_both_addends_at_once(pair: FloatArray) -> None:
    first, second = pair
    lows = dead_below(first, second), dead_below(second, first)
    found = np.maximum(np.maximum(first, lows[0]) + np.maximum(second, lows[1]), 0)
    assert np.array_equal(found, np.maximum(first + second, 0))


@given(hnp.arrays(np.float32, (2, 30), elements=integers))
def test_nothing_more_can_be_clipped(pair: FloatArray) -> None:
    first, second = pair
    low = dead_below(first, second)
    assume(low < 0)
    assert np.any(np.maximum(np.maximum(first, low + 1) + second, 0) != np.maximum(first + second, 0))


def test_clipped_ranges_lose_nothing_in_the_sample(sample: TrainedModel, windows: FloatArray) -> None:
    graph = canonical_graph(sample.encoder)
    ranges = ranges_of(graph, windows)
    addends = killed_addends(onnx.load_from_string(graph).graph)
    lows = {name: ranges[name][0] for name in addends}
    narrowed = [name for name in addends if lows[name] > 1.1 * seen_in(graph, name, windows).min()]
    assert narrowed, "nothing was clipped: the test says nothing"
    reference = run_graph(graph, windows)
    assert np.array_equal(run_graph(clipped(graph, lows), windows), reference)
    too_far = {name: low / DEAD_ROOM * 0.97 for name, low in lows.items()}
    assert not np.array_equal(run_graph(clipped(graph, too_far), windows), reference)


@pytest.mark.parametrize(
    ("extra", "outputs", "second", "expected"),
    [
        ([], ["y"], "b", {"a": "b", "b": "a"}),
        ([], ["y"], "weights", {}),
        ([], ["y"], "a", {}),
        ([helper.make_node("Relu", ["a"], ["c"])], ["y"], "b", {"b": "a"}),
        ([helper.make_node("Relu", ["sum"], ["c"])], ["y"], "b", {}),
        ([], ["y", "b"], "b", {"a": "b"}),
        ([], ["y", "sum"], "b", {}),
    ],
    ids=["both", "a constant", "itself", "used twice", "sum used twice", "an output", "sum is an output"],
)
def test_only_what_a_relu_alone_sees_is_clipped(
    extra: list[onnx.NodeProto], outputs: list[str], second: str, expected: dict[str, str]
) -> None:
    nodes = [
        helper.make_node("Neg", [GRAPH_INPUT_NAME], ["a"]),
        helper.make_node("Exp", [GRAPH_INPUT_NAME], ["b"]),
        helper.make_node("Add", ["a", second], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([*nodes, *extra], "g", [], values)
    assert killed_addends(graph) == expected


def test_graph_decides_and_not_its_names() -> None:
    """The middle block has no residual convolution: its shortcut is used twice, and left alone."""
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    found = killed_addends(model.graph)
    blocks = ("blocks.0", "blocks.2")
    both = {f"{b}.residual.out": f"{b}.relu2.out" for b in blocks} | {
        f"{b}.relu2.out": f"{b}.residual.out" for b in blocks
    }
    assert found == both | {"blocks.1.relu2.out": "blocks.0.relu.out"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    assert len(killed_addends(model.graph)) == len(found)


def test_what_a_relu_follows_directly_has_no_range_of_its_own(windows: FloatArray) -> None:
    """onnxruntime merges the Relu: clipping its input below zero would change nothing."""
    toolchain = EmulatorToolchain()
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    before_relu = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    quantized = onnx.load_from_string(
        toolchain.optimize(toolchain.parse(model.SerializeToString()), windows).data
    )
    pairs = {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert before_relu
    assert not before_relu & pairs


def test_output_has_room(sample: TrainedModel, windows: FloatArray) -> None:
    graph = canonical_graph(sample.encoder)
    low, high = ranges_of(graph, windows)[GRAPH_OUTPUT_NAME]
    latents = run_graph(graph, windows)
    assert low == pytest.approx(OUTPUT_ROOM * latents.min(), rel=2**-9)
    assert high == pytest.approx(OUTPUT_ROOM * latents.max(), rel=2**-9)


def test_input_is_clipped_only_where_it_pays() -> None:
    graph = canonical_graph(small_encoder())
    rng = np.random.default_rng(0)
    square = np.sign(rng.normal(size=(64, 100, 9))).astype(np.float32)
    assert ranges_of(graph, square)[GRAPH_INPUT_NAME] == (-1.0, 1.0)
    calm = rng.uniform(-0.6, 0.6, (64, 100, 9)).astype(np.float32)
    calm[5, 50, 0], calm[6, 50, 1] = -1, 1
    low, high = ranges_of(graph, calm)[GRAPH_INPUT_NAME]
    assert -1 < low < -0.6
    assert 0.6 < high < 1


@given(st.integers(1, 600), st.integers(1, 600))
def test_spread_takes_as_many_as_there_are_once_each(total: int, most: int) -> None:
    positions = spread(total, most)
    assert list(positions) == sorted(set(positions.tolist()))
    assert len(positions) == min(total, most)
    assert positions[0] >= 0
    assert positions[-1] < total


@pytest.mark.parametrize(("total", "most"), [(480, 96), (480, 72), (1200, 256), (480, 120), (144, 36)])
def test_spread_meets_every_activity(total: int, most: int) -> None:
    """Every fourth of 480 windows would meet 3 of 12 activities that take turns."""
    taking_turns = Counter((spread(total, most) % 12).tolist())
    one_by_one = Counter((spread(total, most) * 12 // total).tolist())
    assert len(taking_turns) == len(one_by_one) == 12
    assert max(taking_turns.values()) - min(taking_turns.values()) <= 1
    assert min(one_by_one.values()) >= max(one_by_one.values()) / 2


def test_bytes_do_not_depend_on_the_process(
    sample: TrainedModel, windows: FloatArray, tmp_path: Path
) -> None:
    """The sample's bytes from other processes, other hash seeds and other numbers of threads."""
    (tmp_path / "graph").write_bytes(canonical_graph(sample.encoder))
    np.save(tmp_path / "windows.npy", windows)
    script = (
        "import sys, numpy; from pathlib import Path; from hashlib import sha256\n"
        "from assets.toolchain.emulator import EmulatorToolchain\n"
        "folder = Path(sys.argv[1]); toolchain = EmulatorToolchain(threads=int(sys.argv[2]))\n"
        "parsed = toolchain.parse((folder / 'graph').read_bytes())\n"
        "made = toolchain.optimize(parsed, numpy.load(folder / 'windows.npy'))\n"
        "print(sha256(made.data).hexdigest())\n"
    )
    digests = set()
    for seed, threads in (("1", "1"), ("2", "2")):
        command = [sys.executable, "-c", script, str(tmp_path), threads]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_record_says_what_the_ranges_are() -> None:
    assert EmulatorToolchain().record().options["ranges"] == POLICY
    assert "Relu" in POLICY


def test_never_worse_than_onnxruntimes_ranges_on_the_sample(sample: TrainedModel) -> None:
    """Measured: with 8-bit weights +0.4 to +1.4 dB; with 7-bit ones, on a CPU without VNNI, -0.2 to +1.4."""
    gains = [draw.gain_db for draw in compare_ranges(sample, seeds=SEEDS, count=256)]
    assert min(gains) >= (-0.5 if EmulatorToolchain().integer_path == "u8s8-7bit" else 0), gains
    assert statistics.median(gains) > 0, gains


def test_the_users_encoder_gains_a_decibel(upstream: Path) -> None:
    """Measured 2026-11-24: +2.4 to +3.9 dB, median +3.1."""
    trained = parse_model(read_weights(find_version(upstream / "weights")))
    gains = [draw.gain_db for draw in compare_ranges(trained, seeds=SEEDS, count=256)]
    assert min(gains) >= 0, gains
    assert statistics.median(gains) >= 1, gains
