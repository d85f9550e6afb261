"""What may lie in a version folder besides good files: it is named, and nothing hangs."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from assets import version_folder
from assets.judgement import judge_weights
from assets.version_folder import read_files
from assets.weights import parse_model
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import WeightsError
from tests.assets.test_weights import sample_files, sample_state, saved, with_json
from tests.chain import SAMPLE_VERSION

pytestmark = pytest.mark.build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the sample, without the checksums, to be changed."""
    copy = Path(shutil.copytree(SAMPLE_VERSION, tmp_path / "w" / "tcn_encoder" / "v0.1.0"))
    (copy / "sha256sum.txt").unlink()
    return copy


@pytest.mark.parametrize("name", ["model_card.md", "motif_head.json", "normalization.json", "other.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    elif not name.endswith(".onnx"):  # a folder of that name is nobody's
        (folder / name).mkdir()
    else:
        return
    with pytest.raises(WeightsError, match=r"cannot be read: (is no regular file|Is a directory)") as refusal:
        judge_weights(folder.parent.parent)
    assert refusal.value.where == str(folder / name)
    assert "copied" not in refusal.value.hint


def test_a_file_without_end_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "model_card.md").open("r+b") as card:
        card.truncate((4 << 20) + 1)
    with pytest.raises(WeightsError, match=r"model_card\.md: is larger than 4 MiB"):
        read_files(folder)
    (folder / "model_card.md").unlink()
    assert version_folder.MOST_WEIGHTS == 2 << 30
    monkeypatch.setattr(version_folder, "MOST_WEIGHTS", 1 << 20)
    with pytest.raises(WeightsError, match=r"tcn_vae\.pth: is larger than 1 MiB"):
        read_files(folder)


def test_a_link_to_nothing_beside_good_weights_is_not_passed_over(folder: Path) -> None:
    (folder / "other.onnx").symlink_to("../../.git/annex/objects/gone")
    with pytest.raises(WeightsError, match=r"other\.onnx: cannot be read: No such file.*annex get"):
        judge_weights(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tcn_vae.pth", r"v0\.2\.0/tcn_vae\.pth: cannot be read: No such file .*where the link leads"),
        (
            "tcn_vae.PTH",
            r"v0\.2\.0: no weights file that is read \(\.pth, \.pt or .*; here are: .*\.PTH",
        ),
        ("m.safetensors", r"here are: .*m\.safetensors.*normalization\.json"),
    ],
)
@pytest.mark.parametrize("documents", [True, False])
def test_the_newest_version_is_refused_and_no_older_one_taken(
    folder: Path, name: str, words: str, documents: bool
) -> None:
    newest = folder.with_name("v0.2.0")
    shutil.copytree(folder, newest)
    (newest / "tcn_vae.pth").unlink()
    for path in [] if documents else list(newest.iterdir()):
        path.unlink()
    if name.endswith(".pth"):
        (newest / name).symlink_to("../../.git/annex/objects/gone")
    else:
        (newest / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=words if documents else words.rpartition(".*norm")[0] or words):
        judge_weights(folder.parent.parent)


@pytest.mark.parametrize(
    "name", ["normalization.json", "model_config.json", "motif_head.json", "sha256sum.txt", "model_card.md"]
)
def test_a_folder_with_any_known_document_was_meant(folder: Path, name: str) -> None:
    newest = folder.with_name("v0.2.0")
    newest.mkdir()
    (newest / "notes.txt").write_text("nobody's")
    (newest / ".normalization.json").write_text("{}")
    assert judge_weights(folder.parent.parent).identity.version == "v0.1.0"
    (newest / name).write_text("{}")
    with pytest.raises(WeightsError, match=r"v0\.2\.0: no weights file that is read"):
        judge_weights(folder.parent.parent)
    newest.rename(folder.with_name(".v0.2.0"))
    assert judge_weights(folder.parent.parent).identity.version == "v0.1.0"


def test_a_list_that_lists_itself_is_heeded_for_the_others(folder: Path) -> None:
    """``sha256sum * > sha256sum.txt``, run twice."""
    lines = [f"{sha256_bytes(p.read_bytes())}  {p.name}\n" for p in sorted(folder.iterdir())]
    (folder / "sha256sum.txt").write_text("".join([*lines, f"{'0' * 64}  sha256sum.txt\n"]))
    assert "sha256sum.txt" not in judge_weights(folder).trained.verified
    assert "tcn_vae.pth" in judge_weights(folder).trained.verified


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_list_of_two_versions_this_folders_lines_count(folder: Path, order: int) -> None:
    right, wrong = sha256_bytes((folder / "tcn_vae.pth").read_bytes()), "0" * 64
    for mine, other in (
        ("v0.1.0/", "v0.0.9/"),
        ("tcn/v0.1.0/", "tcn/v0.0.9/"),
        ("./", "v0.0.9/"),
        ("", "x/"),
    ):
        lines = [f"{right}  {mine}tcn_vae.pth\n", f"{wrong}  {other}tcn_vae.pth\n"]
        (folder / "sha256sum.txt").write_text("".join(lines[::order]))
        assert judge_weights(folder).trained.verified == ("tcn_vae.pth",)
        lines = [f"{wrong}  {mine}tcn_vae.pth\n", f"{right}  {other}tcn_vae.pth\n"]
        (folder / "sha256sum.txt").write_text("".join(lines[::order]))
        with pytest.raises(WeightsError, match="is not the file whose sha256"):
            judge_weights(folder)
    (folder / "sha256sum.txt").write_text(f"{right}  tcn_vae.pth\n{wrong}  v0.1.0/tcn_vae.pth\n")
    with pytest.raises(WeightsError, match=r"line 2 gives 'tcn_vae\.pth' a second digest"):
        judge_weights(folder)


@pytest.mark.parametrize("shape", [[1, 9, 1, 100], [1, 9, 100], [1, 100, 9], [9, 100], [1, 1, 100, 9]])
def test_an_input_shape_of_any_layout_is_one_window(shape: list[int]) -> None:
    parse_model(with_json("normalization.json", lambda d: d.update(model_specs={"input_shape": shape})))
    with pytest.raises(WeightsError, match="input_shape is"):
        parse_model(
            with_json("normalization.json", lambda d: d.update(model_specs={"input_shape": [*shape, 2]}))
        )


def repacked(extra: dict[str, bytes], compression: int) -> bytes:
    """The sample's checkpoint, its members written again."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(sample_files()["tcn_vae.pth"])) as given,
        zipfile.ZipFile(out, "w", compression) as made,
    ):
        for name in given.namelist():
            made.writestr(name, given.read(name))
        for name, data in extra.items():
            made.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (repacked({}, zipfile.ZIP_DEFLATED), "is compressed"),
        (
            repacked({"archive/constants.pkl": b"x"}, zipfile.ZIP_STORED),
            "TorchScript archive.*before torch.jit",
        ),
        (
            saved({"e": 3, "model_state_dict": sample_state()}),
            "training checkpoint.*_state_dict alone",
        ),
    ],
)
def test_other_archives_are_named(data: bytes, words: str) -> None:
    with pytest.raises(WeightsError, match=words) as refusal:
        parse_model({**sample_files(), "tcn_vae.pth": data})
    assert "weights_only" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_real_torchscript_archive_is_named(recwarn: pytest.WarningsRecorder) -> None:
    """Some of its members are compressed: that is not what to say of it."""
    import torch

    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    recwarn.clear()
    with pytest.raises(WeightsError, match="is a TorchScript archive"):
        parse_model({**sample_files(), "tcn_vae.pth": out.getvalue()})
    assert not [warning for warning in recwarn if warning.category is UserWarning]
