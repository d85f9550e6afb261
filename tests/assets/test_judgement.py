"""What the files claim beside what was measured, and the judgement without Dagster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assets import claims
from assets.claims import Claim, claims_of, number_of, printable
from assets.judgement import judge_weights, main
from assets.motif_head import head_from_centres
from assets.version_folder import VersionFolder, read_version
from assets.weights import TrainedModel, parse_model
from runtime.contract.document import to_json
from tests.assets.test_motif_head import centres, npy, without_classifier
from tests.assets.test_weights import sample_files
from tests.chain import ROOT, SAMPLE_VERSION

pytestmark = pytest.mark.build


@pytest.fixture(scope="module")
def sample() -> tuple[VersionFolder, TrainedModel]:
    folder = read_version(SAMPLE_VERSION)
    return folder, parse_model(folder.files)


def rows(
    sample: tuple[VersionFolder, TrainedModel], name: str, document: Any, path: Path = SAMPLE_VERSION
) -> tuple[Claim, ...]:
    """The rows that one more document makes; it is not judged again."""
    folder, trained = sample
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    files = {**folder.files, name: data}
    claims = claims_of(VersionFolder(path=path, weights_dir=path, files=files), trained)
    return tuple(claim for claim in claims if claim.where.startswith(name))


def row(sample: tuple[VersionFolder, TrainedModel], document: Any, name: str = "model_config.json") -> Claim:
    """The only row that a document makes."""
    (only,) = rows(sample, name, document)
    return only


def test_the_users_claims_stand_beside_what_was_measured(upstream: Path) -> None:
    """1,104,240 parameters claimed, 441,984 there; an invented normalization says so itself."""
    claims = {claim.where: claim for claim in judge_weights(upstream / "weights").claims}
    parameters = claims["normalization.json: training_details.parameter_count"]
    assert (parameters.claimed, parameters.agrees) == ("1104240", "no")
    assert parameters.measured.startswith("441984 (folded encoder)")
    method = claims["normalization.json: generated.method"]
    assert method.claimed == "Realistic estimates based on multi-dataset HAR patterns"
    assert method.measured == "the file itself says that nothing was measured"
    for where, claimed in (
        ("normalization.json: training_details.validation_accuracy", "57.68%"),
        ("model_config.json: export_info.model_accuracy", "72.13%"),
    ):
        assert (claims[where].claimed, claims[where].measured, claims[where].agrees) == (
            claimed,
            "not measured here",
            "unknown",
        )
    assert claims["normalization.json: datasets_used"].claimed == "PAMAP2, UCI-HAR, TartanIMU"
    assert claims["normalization.json: training_details.model_size_mb"].agrees == "no"
    assert claims["model_config.json: files.size_mb"].agrees == "yes"
    assert claims["model_config.json: files.onnx_model"].agrees == "yes"
    checkpoint = claims["model_config.json: files.pytorch_checkpoint"]
    assert (checkpoint.claimed, checkpoint.agrees) == ("best_overnight_tcn_vae.pth", "unknown")
    assert "no checkpoint here" in checkpoint.measured
    assert claims["normalization.json: version"].agrees == "yes"
    assert claims["model_config.json: model_specs.input_shape"].measured == "1, 100, 9"
    said = judge_weights(upstream / "weights").summary()["claims"]
    assert said == "2 contradicted by what was measured: file size, parameters"


def test_claims_that_hold_are_not_contradicted() -> None:
    assert judge_weights(SAMPLE_VERSION).summary()["claims"].startswith("none is contradicted")


@pytest.mark.parametrize(
    ("document", "what", "agrees"),
    [
        ({"model_specs": {"parameter_count": 441_984}}, "parameters", "yes"),
        ({"num_parameters": "575,829"}, "parameters", "yes"),
        ({"parameters": 12}, "parameters", "no"),
        ({"parameters": "many"}, "parameters", "unknown"),
        ({"architecture": {"num_blocks": 3}}, "layers", "yes"),
        ({"architecture": {"conv_layers": 9}}, "layers", "yes"),
        ({"architecture": {"num_layers": 4}}, "layers", "no"),
        ({"hidden_dims": [64, 128, 256]}, "channels", "yes"),
        ({"hidden_dims": [64, 128]}, "channels", "no"),
        ({"kernel_size": 3}, "kernel", "yes"),
        ({"latent_dim": 64}, "latent size", "yes"),
        ({"anywhere": [{"input_shape": [1, 100, 6]}]}, "input shape", "no"),
        ({"anywhere": [{"input_shape": [1, 9, 1, 100]}]}, "input shape", "yes"),
        ({"files": {"checkpoint": "tcn_vae.pth"}}, "weights file", "yes"),
        ({"files": {"checkpoint": "best.pth"}}, "weights file", "no"),
        ({"files": {"onnx": "x.onnx"}}, "weights file", "unknown"),
        ({"version": "0.1.0"}, "version", "yes"),
        ({"version": "v0.2.0"}, "version", "no"),
        ({"test_accuracy": 0.9}, "test_accuracy", "unknown"),
        ({"motifs": {"names": ["a"]}}, "motifs", "no"),
    ],
)
def test_each_kind_of_claim(
    sample: tuple[VersionFolder, TrainedModel], document: Any, what: str, agrees: str
) -> None:
    found = row(sample, document)
    assert (found.what, found.agrees) == (what, agrees)
    assert found.claimed
    assert found.measured


def test_what_nobody_claims_is_shown_too(sample: tuple[VersionFolder, TrainedModel]) -> None:
    folder, trained = sample
    bare = VersionFolder(
        path=SAMPLE_VERSION,
        weights_dir=SAMPLE_VERSION,
        files={"tcn_vae.pth": folder.files["tcn_vae.pth"]},
    )
    assert [(c.what, c.claimed) for c in claims_of(bare, trained)] == [
        (what, "not stated") for what in ("parameters", "layers", "latent size", "input shape")
    ]


def test_a_folder_whose_name_says_nothing_compares_no_version(
    sample: tuple[VersionFolder, TrainedModel],
) -> None:
    (only,) = rows(sample, "model_config.json", {"version": "v7.0.0"}, Path("/somewhere/mine"))
    assert (only.agrees, only.measured) == ("unknown", "the folder's name says none: this one is taken")


def test_metrics_are_claimed_only(sample: tuple[VersionFolder, TrainedModel]) -> None:
    metrics = {"schema": 1, "seed": 3, "top1": 0.99, "loss": 0.1, "per_class": {"walk": {"f1_score": 0.5}}}
    found = rows(sample, "eval_metrics.json", metrics)
    assert [claim.what for claim in found] == ["top1", "loss", "f1_score"]
    assert {(claim.measured, claim.agrees) for claim in found} == {("not measured here", "unknown")}
    (broken,) = rows(sample, "eval_metrics.json", b"{")
    assert "not JSON" in broken.measured
    assert rows(sample, "eval_metrics.json", b"[" * 100_000)[0].agrees == "unknown"
    many = rows(sample, "eval_metrics.json", {f"accuracy{i}": i for i in range(1000)})
    assert len(many) < 100


def test_a_model_cards_figures_are_read(sample: tuple[VersionFolder, TrainedModel]) -> None:
    card = "A TCN with BatchNorm.\nIt has **1,104,240 parameters**.\nValidation accuracy: 57.68%\n"
    found = {claim.what: claim for claim in rows(sample, "model_card.md", card.encode())}
    assert (found["parameters"].claimed, found["parameters"].agrees) == ("1,104,240", "no")
    assert (found["layers"].agrees, found["layers"].claimed) == ("no", "A TCN with BatchNorm.")
    assert "6 Conv1d with weight norm" in found["layers"].measured
    assert found["accuracy"].measured == "not measured here"


def test_numbers_and_text() -> None:
    assert [number_of(v) for v in (3, 2.5, "1,104,240", "12", "1,2", "x", True, None, [1])] == [
        3,
        2.5,
        1_104_240,
        12,
        None,
        None,
        None,
        None,
        None,
    ]
    assert printable("a\nb\ud800µ") == "a\\nb\\ud800µ"
    assert len(printable("x" * 1000)) == 160


def test_a_number_is_the_whole_text(sample: tuple[VersionFolder, TrainedModel]) -> None:
    """And of a length: what begins like a number may end as anything."""
    for text in ("1" * 40 + " params", "1" * 41, "1" * 5000, "1," + "000," * 20 + "x"):
        assert number_of(text) is None
        assert row(sample, {"parameters": text}, "eval_metrics.json").agrees == "unknown"
    assert number_of(" " + "1" * 39 + " ") == int("1" * 39)


def test_what_trips_the_reader_of_claims_is_a_row_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def trip(value: object) -> None:
        raise ArithmeticError(f"of {value}")

    whole = judge_weights(SAMPLE_VERSION).claims
    monkeypatch.setattr(claims, "number_of", trip)
    found = judge_weights(SAMPLE_VERSION).claims
    unread = [claim for claim in found if claim.claimed == "could not be read"]
    assert "eval_metrics.json" in [claim.where for claim in unread]
    assert all(claim.measured.startswith("ArithmeticError: of ") for claim in unread)
    assert {claim.agrees for claim in unread} == {"unknown"}
    assert {claim.where for claim in found} & {claim.where for claim in whole}


def test_the_command_prints_the_judgement(capsys: pytest.CaptureFixture[str]) -> None:
    for place in (SAMPLE_VERSION, SAMPLE_VERSION.parent.parent):
        assert main([str(place)]) == 0
        text = capsys.readouterr().out
        for words in (
            f"accepted: {SAMPLE_VERSION}",
            "checkpoint: tcn_vae.pth",
            "normalization.json and model_config.json, which agree",
            "sha256sum.txt: verified eval_metrics.json",
            "e75da1a9c9f24ec07bd78516c5755bc280c0f57c65bacafeafac0b946116020f  2316215",
            "441984 (folded encoder), 575829 (whole file)",
            "mz       -39.186",
        ):
            assert words in text


def test_the_command_speaks_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(SAMPLE_VERSION), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert said["summary"]["version"] == "v0.1.0"
    assert said["files"]["tcn_vae.pth"]["bytes"] == 2316215
    assert said["motif_head"]["provenance"] == "checkpoint"
    assert main([str(tmp_path), "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["ok"] is False
    assert "refused:  no <model>/<version>/ folder" in output.err


def test_a_refusal_is_one_block_with_the_place_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(SAMPLE_VERSION, tmp_path / "v0.1.0")
    (folder / "tcn_vae.pth").chmod(0o644)
    (folder / "tcn_vae.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert main([str(folder)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "refused:  is a Git LFS pointer, not the file\n"
        f"where:    {folder}/tcn_vae.pth\n"
        "hint:     git lfs pull\n"
    )


def test_weights_are_refused_before_a_missing_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of any name without a stated version: its weights file is judged first."""
    (tmp_path / "w.pth").write_text("PLACEHOLDER")
    assert main([str(tmp_path)]) == 1
    assert "is a text file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("lfs_pointer", "git lfs pull"),
        ("placeholder", "PLACEHOLDER_TCN_VAE_MODEL"),
        ("mismatched", "another training"),
    ],
)
def test_the_users_folders_are_judged_from_a_shell(upstream: Path, folder: str, words: str) -> None:
    """As somebody runs it, on a terminal that knows ASCII alone."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [sys.executable, "-m", "assets.weights", str(upstream / "bad_weights" / folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_a_head_file_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "v0.1.0"
    folder.mkdir()
    head = to_json(head_from_centres(npy(centres()), "c.npy", temperature=2.0))
    for name, data in {**without_classifier(), "motif_head.json": head}.items():
        (folder / name).write_bytes(data)
    told = judge_weights(folder).summary()["motif head"]
    assert told.startswith("file, 5 motifs: cluster_0, ")
    assert "k-means centres of c.npy" in told
    assert "temperature 2" in told


def test_claims_refuse_nothing(tmp_path: Path) -> None:
    """An absurd metric, card and configuration beside weights that are in order."""
    folder = tmp_path / "v0.1.0"
    folder.mkdir()
    for name, data in sample_files().items():
        (folder / name).write_bytes(data)
    (folder / "eval_metrics.json").write_text("[[[")
    (folder / "model_card.md").write_bytes(b"\xff\xfe 999 parameters")
    config = json.loads((folder / "model_config.json").read_bytes())
    config.update(parameter_count=1, files={"x": "other.pth"}, version=["?"], hidden_dims={"a": []})
    (folder / "model_config.json").write_text(json.dumps(config))
    found = [claim.agrees for claim in judge_weights(folder).claims]
    assert found.count("no") >= 3
