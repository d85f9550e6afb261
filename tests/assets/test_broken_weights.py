"""Whatever is wrong with a file: our error with a hint, or success; never a crash, and no code run."""

from __future__ import annotations

import functools
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from assets.claims import UNREADABLE, claims_of
from assets.motif_head import parse_head
from assets.onnx_model import canonical_graph, check_agreement
from assets.onnx_run import run_graph
from assets.onnx_source import load_source
from assets.version_folder import CHECKSUMS, MODEL_CONFIG, MOTIF_HEAD, NORMALIZATION, VersionFolder
from assets.weights import parse_model
from runtime.contract.errors import PipelineError, WeightsError
from tests.assets.test_motif_head import head_file, without_classifier
from tests.assets.test_onnx_model import foreign_graph, small_encoder
from tests.assets.test_weights import Bomb, State, sample_files, saved
from tests.chain import SAMPLE_VERSION

# torch warns of what it then refuses.
pytestmark = [pytest.mark.build, pytest.mark.filterwarnings("ignore::UserWarning:torch")]


def judged(files: dict[str, bytes], *, check_graph: bool = False) -> bool:
    """Whether the files are accepted; any error must be ours, and say what to do in text."""
    try:
        trained = parse_model(files)
        folder = VersionFolder(path=SAMPLE_VERSION, weights_dir=SAMPLE_VERSION, files=files)
        assert UNREADABLE not in [claim.claimed for claim in claims_of(folder, trained)]
        if check_graph:
            windows = np.random.default_rng(0).normal(size=(1, 100, 9)).astype(np.float32)
            source = run_graph(trained.weights_data, windows)
            check_agreement(source, run_graph(canonical_graph(trained.encoder), windows))
    except PipelineError as error:
        refusal = error
    else:
        return True
    assert str(refusal).encode()
    assert refusal.hint or not isinstance(refusal, WeightsError)
    return False


# Checkpoints.


@functools.cache
def small_state() -> State:
    """A state dict of a small encoder with a head, so that many can be made."""
    import torch

    from assets.tcn_vae import TcnEncoder

    torch.manual_seed(0)
    return dict(TcnEncoder((9, 4, 6), motifs=3).state_dict())


def odd_values(tensor: Any) -> list[Any]:
    """What may lie in a state dict instead of a tensor."""
    import torch

    return [
        tensor.flatten(),
        tensor[:1],
        tensor[..., None],
        tensor[0],
        tensor.double() * 1e300,
        tensor.half(),
        tensor.bfloat16(),
        tensor.int(),
        tensor.bool(),
        tensor * float("nan"),
        tensor * float("inf"),
        tensor * 0,
        tensor.to_sparse(),
        torch.zeros(0),
        torch.zeros(1).expand(1000, 1000),
        torch.empty(3, device="meta"),
        tensor.to(torch.complex64),
        3,
        "text",
        [tensor],
        {"a": tensor},
        None,
    ]


@settings(max_examples=150)
@given(st.data())
def test_a_mutated_state_dict_is_our_error_or_fine(data: st.DataObject) -> None:
    state: dict[Any, Any] = dict(small_state())
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(map(str, state))))
        action = data.draw(st.sampled_from(["drop", "rename", "odd", "extra"]))
        value = state.get(key)
        if action == "odd" and hasattr(value, "flatten"):
            choices = odd_values(small_state()[key]) if key in small_state() else [None]
            state[key] = choices[data.draw(st.integers(0, len(choices) - 1))]
        elif action == "extra":
            state[data.draw(st.one_of(st.text(max_size=8), st.integers(), st.just(key + ".0")))] = value
        else:
            state.pop(key, None)
            if action == "rename":
                name = data.draw(
                    st.sampled_from(["network.0.conv1.bias", "module." + key, "\ud800", key[:-1]])
                )
                state[name] = value
    judged({**sample_files(), "tcn_vae.pth": saved(state)})


def test_the_unchanged_small_ones_are_accepted() -> None:
    """Or else the mutations would prove nothing."""
    assert judged({**sample_files(), MODEL_CONFIG: b"{}", "tcn_vae.pth": saved(small_state())})
    graph = foreign_graph(small_encoder(), opset=11, style="chomp")
    files = {name: data for name, data in sample_files().items() if name != "tcn_vae.pth"}
    assert judged({**files, "e.onnx": graph}, check_graph=True)
    assert judged({**without_classifier(), MOTIF_HEAD: head_file()})


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_checkpoint_never_leaks_another_error(data: st.DataObject) -> None:
    """torch checks no checksums: some damage is read as other numbers, the rest is refused by us."""
    damaged = bytearray(saved(small_state()))
    # The directory at the end and the pickle at the start are what a reader trips over.
    size = len(damaged)
    place = st.one_of(st.integers(0, size - 1), st.integers(0, 3000), st.integers(size - 3000, size - 1))
    for position, flip in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), max_size=4)):
        damaged[position] ^= flip
    kept = data.draw(st.one_of(st.just(size), st.integers(0, size)))
    judged({**sample_files(), "tcn_vae.pth": bytes(damaged[:kept])})


class Call:
    """Unpickling this would call something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def test_no_pickle_runs_code_in_any_packing(tmp_path: Path) -> None:
    """Old and new formats, and pickles that are no checkpoint at all."""
    import os

    mark = tmp_path / "ran"
    bombs = [Bomb(mark), Call(os.system, f"touch {mark}"), Call(exec, f"open({str(mark)!r}, 'w')")]
    for bomb in bombs:
        packed = [saved({"fc_mu.weight": bomb}), pickle.dumps(bomb), pickle.dumps({"a": bomb}, protocol=0)]
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
            archive.writestr("archive/version", "3")
        for data in (*packed, out.getvalue()):
            assert not judged({**sample_files(), "tcn_vae.pth": data})
            assert not mark.exists()
    pickle.loads(pickle.dumps(bombs[0]))
    assert mark.exists()  # what must not happen would have been seen


# ONNX files.


def mutated(data: st.DataObject, model: onnx.ModelProto) -> None:
    """Remove, rename, rewire a node, or change an attribute."""
    node = data.draw(st.sampled_from(list(model.graph.node)))
    names = [name for other in model.graph.node for name in other.output]
    action = data.draw(
        st.sampled_from(["remove", "operator", "attribute", "new", "rewire", "output", "tensor"])
    )
    if action == "remove":
        model.graph.node.remove(node)
    elif action == "operator":
        node.op_type = data.draw(st.sampled_from(["Conv", "Relu", "Slice", "Tile", "Pad", "Loop", "Nothing"]))
    elif action == "attribute" and node.attribute:
        attribute = data.draw(st.sampled_from(list(node.attribute)))
        for index in range(len(attribute.ints)):
            attribute.ints[index] = data.draw(st.sampled_from([-1, 0, 1, 2, 2**31, 2**40, -(2**62)]))
        if attribute.t.raw_data:
            attribute.t.raw_data = attribute.t.raw_data[:-1] + b"\x7f"
    elif action == "new":
        name = data.draw(st.sampled_from(["group", "strides", "axis", "transB", "alpha"]))
        node.attribute.append(
            helper.make_attribute(name, data.draw(st.sampled_from([0, -1, 2.5, [2], [0, 0], "x"])))
        )
    elif action == "rewire" and node.input:
        node.input[0] = data.draw(st.sampled_from([*names, "", "windows"]))
    elif action == "output":
        node.output[0] = data.draw(st.sampled_from([*names, "other", ""]))
    else:
        tensor = data.draw(st.sampled_from(list(model.graph.initializer)))
        tensor.dims[0] = data.draw(st.sampled_from([0, 1, 2**40, -1]))


@settings(max_examples=25)
@given(st.data())
def test_a_mutated_onnx_is_our_error_or_agrees_with_its_source(data: st.DataObject) -> None:
    """As far as the gate: what was read wrongly is refused there."""
    style = data.draw(st.sampled_from(["chomp", "pad", "causal"]))
    model = onnx.load_from_string(foreign_graph(small_encoder(), opset=11, style=style))
    for _ in range(data.draw(st.integers(1, 2))):
        mutated(data, model)
    files = {name: content for name, content in sample_files().items() if name != "tcn_vae.pth"}
    judged({**files, "e.onnx": model.SerializeToString()}, check_graph=True)


@settings(max_examples=25)
@given(st.data())
def test_a_damaged_onnx_never_leaks_another_error(data: st.DataObject) -> None:
    damaged = bytearray(foreign_graph(small_encoder(), opset=13, style="chomp"))
    place = st.one_of(st.integers(0, len(damaged) - 1), st.integers(0, 2500))
    for position, flip in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), max_size=3)):
        damaged[position] ^= flip
    kept = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    files = {name: content for name, content in sample_files().items() if name != "tcn_vae.pth"}
    judged({**files, "e.onnx": bytes(damaged[:kept])}, check_graph=True)


def test_a_graph_that_aborts_its_readers_is_refused() -> None:
    """Found by mutation: a Conv with its input as its weight, then a Slice, ends onnx.checker's process."""
    model = onnx.load_from_string(foreign_graph(small_encoder(), opset=11, style="chomp"))
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    last.input[1] = last.input[0]
    with pytest.raises(WeightsError, match=r"crash \(status -6\)|is not a valid ONNX model"):
        load_source(model.SerializeToString(), "absurd.onnx")


def test_a_few_bytes_cannot_ask_for_all_memory() -> None:
    """A constant of 6 GB in a file of 300 bytes: refused by the child's limit, before it is there."""
    model = onnx.load_from_string(foreign_graph(small_encoder(), opset=17, style="causal"))
    size = onnx.numpy_helper.from_array(np.asarray([1500, 1000, 1000], np.int64), "size")
    model.graph.initializer.append(size)
    last = model.graph.node[-1]
    name = last.output[0]
    last.output[0] = "before"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ConstantOfShape", ["size"], ["huge"]),
            onnx.helper.make_node("ReduceSum", ["huge"], ["nothing"], keepdims=0),
            onnx.helper.make_node("Add", ["before", "nothing"], [name]),
        ]
    )
    with pytest.raises(WeightsError, match=r"allocate|memory|crash \(status"):
        load_source(model.SerializeToString(), "huge.onnx")


def test_a_crash_of_the_child_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = foreign_graph(small_encoder(seed=9), opset=17, style="pad")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WeightsError, match=r"crash \(status 1\)"):
        load_source(graph, "crash.onnx")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WeightsError, match="no process could be started"):
        load_source(graph, "crash.onnx")


def test_weights_in_another_file_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever this process stands: a path in the model is not followed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    model = onnx.load_from_string(foreign_graph(small_encoder(), opset=17, style="causal"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    with pytest.raises(WeightsError, match=r"keeps 'w0' and 0 more in another file"):
        load_source(model.SerializeToString(), "external.onnx")


def test_loops_and_functions_are_refused() -> None:
    model = onnx.load_from_string(foreign_graph(small_encoder(), opset=17, style="causal"))
    model.graph.node[3].op_type = "Loop"
    with pytest.raises(WeightsError, match="holds a Loop"):
        load_source(model.SerializeToString(), "loop.onnx")
    model.graph.node[3].op_type = "Relu"
    model.functions.add(name="f", domain="d")
    with pytest.raises(WeightsError, match="functions of its own"):
        load_source(model.SerializeToString(), "functions.onnx")


# JSON.

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**300, 10**400),
    st.floats(),
    st.text(max_size=12),
    st.text("0123456789, x", min_size=30, max_size=90),
    st.integers(1, 90).map(lambda size: "1" * size + " params"),
    st.sampled_from(["\ud800", "a\nb", "µT", "", "1,104,240", "w.onnx"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=6), st.sampled_from(["normalization", "files", "units", "mean"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a JSON value."""
    found = [path]
    if not isinstance(document, dict | list):
        return found
    for key, item in document.items() if isinstance(document, dict) else enumerate(document):
        found += places(item, (*path, key))
    return found


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value in one place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@functools.cache
def small_files() -> dict[str, bytes]:
    """A folder that is quick to judge: a small checkpoint without a classifier, and a head file."""
    state = {key: value for key, value in small_state().items() if not key.startswith("activity")}
    files = {name: data for name, data in sample_files().items() if name.endswith((".json", ".md"))}
    return {**files, MOTIF_HEAD: head_file(2), "tcn_vae.pth": saved(state)}


@settings(max_examples=200)
@given(st.data(), st.sampled_from([NORMALIZATION, MODEL_CONFIG, MOTIF_HEAD, "eval_metrics.json"]))
def test_any_json_is_our_error_or_fine(data: st.DataObject, name: str) -> None:
    """Any value at all, or any value in any place of a document that is in order."""
    files = small_files()
    document = data.draw(values)
    if data.draw(st.booleans()):
        original = json.loads(files[name])
        document = replaced(original, data.draw(st.sampled_from(places(original))), document)
    judged({**files, name: json.dumps(document).encode()})


@settings(max_examples=100)
@given(
    st.binary(max_size=60),
    st.sampled_from(
        [NORMALIZATION, MODEL_CONFIG, MOTIF_HEAD, CHECKSUMS, "eval_metrics.json", "model_card.md"]
    ),
)
def test_any_bytes_are_our_error_or_fine(data: bytes, name: str) -> None:
    judged({**small_files(), name: data})


@settings(max_examples=50)
@given(st.text(max_size=80))
def test_any_text_is_no_list_of_checksums(text: str) -> None:
    listed = text.encode(errors="surrogatepass") + b"\n" + b"0" * 64 + b"  tcn_vae.pth\n"
    assert not judged({**small_files(), CHECKSUMS: listed})


def test_nesting_without_end_is_our_error() -> None:
    for name in (NORMALIZATION, MODEL_CONFIG, MOTIF_HEAD):
        assert not judged({**small_files(), name: b"[" * 200_000})
        assert not judged({**small_files(), name: b'{"a":' * 200_000})
    with pytest.raises(WeightsError):
        parse_head(b"[" * 200_000, "deep")
