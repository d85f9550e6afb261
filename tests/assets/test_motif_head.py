"""Motif heads from a file: what is written, what is read, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.motif_head import (
    Centres,
    fit_head,
    head_from_centres,
    linear,
    main,
    make_head,
    parse_head,
    read_centres,
)
from assets.parity import make_parity_report
from assets.version_folder import MOTIF_HEAD
from assets.weights import parse_model
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import WeightsError
from runtime.contract.motifs import PROVENANCES, MotifScorer
from tests.assets.test_weights import State, files_with, sample_files
from tests.chain import ROOT, build_chain

pytestmark = pytest.mark.build


def centres(motifs: int = 5, seed: int = 0) -> Centres:
    """Random points among the latents."""
    return np.random.default_rng(seed).normal(size=(motifs, 64))


def npy(array: Any) -> bytes:
    """An ``.npy`` file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def head_file(motifs: int = 5) -> bytes:
    """A head file as the command writes it."""
    return to_json(head_from_centres(npy(centres(motifs)), "c.npy"))


def without_classifier() -> dict[str, bytes]:
    """The sample's files without its own head."""

    def change(state: State) -> None:
        del state["activity_classifier.weight"], state["activity_classifier.bias"]

    return files_with(change)


def test_scores_are_those_of_the_nearest_centre() -> None:
    """Softmax of -|z - c|² / t, worked out directly."""
    points = centres(40, seed=1)
    head, _ = parse_head(to_json(head_from_centres(npy(centres()), "c.npy", temperature=7.0)), "h")
    distances = ((points[:, None] - centres()[None]) ** 2).sum(axis=2)
    expected = np.exp(-(distances - distances.min(axis=1, keepdims=True)) / 7.0)
    expected /= expected.sum(axis=1, keepdims=True)
    scores = MotifScorer(head).scores(points.astype(np.float32))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert head.provenance == "file"
    assert "file" in PROVENANCES


def test_a_fitted_head_and_a_written_one_share_their_formula() -> None:
    points = np.repeat(centres(3) * 9, 20, axis=0) + np.random.default_rng(2).normal(size=(60, 64)) * 0.1
    fitted = fit_head(points.astype(np.float32), motifs=3)
    weight = np.asarray(fitted.weight)
    bias = np.asarray(fitted.bias)
    temperature = -4 * bias[0] / np.sum(weight[0] ** 2)  # of w = 2c/t, b = -|c|²/t
    np.testing.assert_allclose(linear(weight * temperature / 2, temperature)[1], bias, rtol=1e-5)


def test_temperature_without_one_is_the_centres_mean_squared_spacing() -> None:
    two = np.zeros((2, 64))
    two[1, 0] = 3.0
    assert head_from_centres(npy(two), "c.npy").origin.temperature == pytest.approx(9.0)
    assert head_from_centres(npy(two[1:]), "c.npy").origin.temperature == 1.0


def test_a_file_beside_weights_without_a_head_is_their_head() -> None:
    trained = parse_model({**without_classifier(), MOTIF_HEAD: head_file()})
    assert trained.head is not None
    assert (trained.head.provenance, trained.head.size) == ("file", 5)
    assert trained.head.names[0] == "cluster_0"
    assert trained.head_origin is not None
    assert trained.head_origin.source_sha256 == sha256_bytes(npy(centres()))


def test_two_heads_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"tcn_vae\.pth has a motif head of its own .*12 motifs"):
        parse_model({**sample_files(), MOTIF_HEAD: head_file()})


def test_a_head_file_reaches_the_release(tmp_path: Path) -> None:
    """Through the whole chain: the report says ``file``, and no tool that fitted anything."""
    folder = tmp_path / "w" / "tcn_encoder" / "v0.1.0"
    folder.mkdir(parents=True)
    for name, data in {**without_classifier(), MOTIF_HEAD: head_file(12)}.items():
        (folder / name).write_bytes(data)
    built = build_chain(tmp_path / "bench", weights=folder)
    assert (built.evidence.motif_head.provenance, built.evidence.motif_head.size) == ("file", 12)
    assert built.evidence.tools == {}
    again, _ = make_parity_report(built.bench, built.toolchain, hef=built.products["hef"])
    assert again.digest == built.products["parity_report"].digest


def changed(**keys: Any) -> bytes:
    """A head file with other values."""
    return json.dumps({**json.loads(head_file()), **keys}).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected an object"),
        (changed(extra=1), "unknown key 'extra'"),
        (changed(schema=2), "schema is 2, expected 1"),
        (changed(names=["a"]), "1 names, 5 weight rows, 5 biases"),
        (changed(names=["a", "a", "b", "c", "d"]), "unique"),
        (changed(names=["a", "b", "c", "d", "\ud800"]), "cannot name a motif"),
        (changed(names=["a", "b", "c", "d", " "]), "cannot name a motif"),
        (changed(names=[], weight=[], bias=[]), "at least one"),
        (changed(weight=[[0.0] * 63] * 5), "64 values"),
        (changed(weight=[[0.0] * 64] * 4 + [[0.0]]), "weight is not M rows"),
        (changed(bias=[1e39] * 5), "not a finite float32"),
        (changed(bias=[10**400] * 5), "beyond float64"),
        (changed(bias=[float("nan")] * 5), "not finite"),
        (changed(bias=[True] * 5), "expected float"),
        (changed(origin="k-means"), "origin: str, expected an object"),
    ],
)
def test_a_broken_head_file_is_refused_by_key(data: bytes, words: str) -> None:
    with pytest.raises(WeightsError, match=words) as refusal:
        parse_model({**without_classifier(), MOTIF_HEAD: data})
    assert MOTIF_HEAD in refusal.value.where
    str(refusal.value).encode()


def npz(**arrays: Any) -> bytes:
    """An ``.npz`` file."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def test_centres_are_read_from_each_kind_of_file() -> None:
    given = centres().astype(np.float32)
    for name, data in (
        ("c.npy", npy(given)),
        ("c.npz", npz(cluster_centers_=given)),
        ("c.json", json.dumps(given.tolist()).encode()),
    ):
        np.testing.assert_array_equal(read_centres(data, name), given.astype(np.float64))


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (npy(centres()), "c.txt", "unknown kind of file"),
        (b"", "c.npy", "cannot be read"),
        (npy(centres())[:-1], "c.npy", "cannot be read"),
        (npy(np.asarray([{}], object)), "c.npy", "cannot be read"),
        (npz(a=centres(), b=centres()), "c.npz", r"2 arrays \('a', 'b'\)"),
        (b"{}", "c.json", "expected numbers"),
        (b"[[1, 2], [3]]", "c.json", "cannot be read"),
        (npy(centres()[:, :32]), "c.npy", r"float64 \(5, 32\), expected numbers \(M, 64\)"),
        (npy(centres()[:0]), "c.npy", r"\(0, 64\)"),
        (npy(np.ones((2, 64), bool)), "c.npy", "bool"),
        (npy(np.full((2, 64), np.nan)), "c.npy", "centre 0 is not finite"),
        (npy(np.ones((2, 64))), "c.npy", "a centre is there twice"),
        (npy(centres() * 1e300), "c.npy", "temperature is inf"),
    ],
)
def test_broken_centres_are_refused(data: bytes, name: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        head_from_centres(data, name)


def test_a_head_that_float32_does_not_hold_is_refused() -> None:
    with pytest.raises(WeightsError, match="not a finite float32"):
        head_from_centres(npy(centres() * 1e30), "c.npy", temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(WeightsError, match="expected a number above zero"):
        head_from_centres(npy(centres()), "c.npy", temperature=temperature)


def test_names_are_as_many_as_motifs() -> None:
    with pytest.raises(WeightsError, match="2 names, 5 weight rows"):
        head_from_centres(npy(centres()), "c.npy", names=["a", "b"])
    with pytest.raises(WeightsError, match="weight is not M rows"):
        make_head("file", ["a"], [1.0], [1.0], "here")


def test_the_command_writes_a_file_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.npy").write_bytes(npy(centres(3)))
    out = tmp_path / "out" / MOTIF_HEAD
    arguments = [str(tmp_path / "c.npy"), "--out", str(out), "--names", "a, b,c", "--temperature", "2"]
    assert main(arguments) == 0
    assert "3 motifs, temperature 2" in capsys.readouterr().out
    head, origin = parse_head(out.read_bytes(), MOTIF_HEAD)
    assert (head.names, origin.method, origin.temperature) == (("a", "b", "c"), "k-means centres", 2.0)
    assert main(arguments) == 0
    assert main([str(tmp_path / "none.npy"), "--out", str(out)]) == 1
    assert "none.npy: No such file" in capsys.readouterr().err
    (tmp_path / "c.npy").write_bytes(b"x")
    assert main([str(tmp_path / "c.npy"), "--out", str(out)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_loading_the_judges_imports_no_framework() -> None:
    """Dagster's code location loads these; torch and onnx come in when something is judged."""
    script = (
        "import sys, assets.version_folder, assets.weights, assets.judgement, assets.motif_head\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'onnxsim', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
