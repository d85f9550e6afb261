"""A version folder is found, read once, named, and held against its checksums."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from assets import version_folder
from assets.judgement import judge_folder
from assets.product import Workbench
from assets.version_folder import (
    CHECKSUMS,
    IDENTITY,
    _semver,
    check_sums,
    find_version,
    identify,
    read_files,
    read_object,
    read_version,
)
from assets.weights import keep_weights, make_model_weights, parse_model
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import WeightsError
from runtime.contract.files import read_bounded
from tests.chain import SAMPLE_VERSION, SAMPLE_WEIGHTS

pytestmark = pytest.mark.build


def test_newest_version_is_the_highest_number_then_the_name(tmp_path: Path) -> None:
    for name in ("v0.9.0", "v0.10.0", "v0.10.0-rc1", "zzz"):
        (tmp_path / "tcn_encoder" / name).mkdir(parents=True)
        (tmp_path / "tcn_encoder" / name / "w.pth").write_bytes(b"x")
    (tmp_path / "tcn_encoder" / "v9.0.0").mkdir()
    assert find_version(tmp_path).name == "v0.10.0"
    shutil.rmtree(tmp_path / "tcn_encoder" / "v0.10.0")
    for name in ("v0.10.0-rc2", "v0.10.0-rc.2", "v0.10.0-rc.10"):
        assert _semver("v0.10.0-rc.1") < _semver(name) < _semver("v0.10.0")
    assert _semver("v0.10.0-rc.2") < _semver("v0.10.0-rc.10")
    assert find_version(tmp_path).name == "v0.10.0-rc1"
    (tmp_path / "tcn_encoder" / "v0.11.0+cu121").mkdir()
    (tmp_path / "tcn_encoder" / "v0.11.0+cu121" / "w.pth").write_bytes(b"x")
    assert find_version(tmp_path).name == "v0.11.0+cu121"


def test_a_version_folder_may_be_named_itself() -> None:
    assert find_version(SAMPLE_VERSION) == SAMPLE_VERSION
    for weights_dir in (SAMPLE_VERSION, SAMPLE_WEIGHTS):
        identity = identify(SAMPLE_VERSION, weights_dir, None)
        assert (identity.name, identity.version) == ("tcn_encoder", "v0.1.0")


def test_a_folder_of_any_name_does_not_lend_it_to_the_release(tmp_path: Path) -> None:
    """Where somebody keeps a folder is no input: the same files give the same name."""
    for place in ("alice", "bob"):
        shutil.copytree(SAMPLE_VERSION, tmp_path / place)
        product, _ = make_model_weights(Workbench(tmp_path / "bench"), tmp_path / place)
        assert (product.facts["model"], product.facts["version"]) == ("tcn_encoder", "v0.1.0")
    with pytest.raises(WeightsError, match="which version"):
        identify(tmp_path / "alice", tmp_path / "alice", None)


def test_a_links_own_name_counts_and_not_where_it_leads(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE_VERSION, tmp_path / "home" / "exp42")
    (tmp_path / "w" / "tcn_encoder").mkdir(parents=True)
    link = tmp_path / "w" / "tcn_encoder" / "v0.2.0"
    link.symlink_to(tmp_path / "home" / "exp42")
    assert identify(find_version(tmp_path / "w"), tmp_path / "w", None).version == "v0.2.0"


def test_another_name_is_another_content(tmp_path: Path) -> None:
    for version in ("v0.1.0", "v0.2.0"):
        shutil.copytree(SAMPLE_VERSION, tmp_path / version / "tcn_encoder" / version)
    bench = Workbench(tmp_path / "bench")
    digests = {make_model_weights(bench, tmp_path / v)[0].digest for v in ("v0.1.0", "v0.2.0")}
    assert len(digests) == 2


@pytest.mark.parametrize(
    "line",
    [
        "{} tcn_vae.pth",
        "{}  ./tcn_vae.pth",
        "{}  v0.1.0/tcn_vae.pth",
        "{} *tcn_vae.pth",
        "{}  *tcn_vae.pth",
        "SHA256 (tcn_vae.pth) = {}",
    ],
)
def test_a_checksum_is_read_in_every_spelling(line: str) -> None:
    files = read_files(SAMPLE_VERSION)
    with pytest.raises(WeightsError, match=r"tcn_vae\.pth: is not the file whose sha256"):
        check_sums({**files, CHECKSUMS: line.format("0" * 64).encode()})
    right = sha256_bytes(files["tcn_vae.pth"]).upper()
    assert check_sums({**files, CHECKSUMS: line.format(right).encode()}) == ("tcn_vae.pth",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{'0' * 64}  other\n", r"does not list tcn_vae\.pth"),
        ("", r"does not list tcn_vae\.pth"),
        ("# sums\n\nnonsense\n", "line 3 is 'nonsense'"),
        (f"{'0' * 63}  tcn_vae.pth\n", "expected 64 hexadecimal digits"),
        (
            f"{'0' * 64}  a/tcn_vae.pth\n{'1' * 64}  b/tcn_vae.pth\n",
            "line 2 gives 'tcn_vae.pth' a second digest",
        ),
    ],
)
def test_a_list_that_says_nothing_certain_is_refused(text: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        check_sums({**read_files(SAMPLE_VERSION), CHECKSUMS: text.encode()})


def test_every_weights_file_must_be_listed() -> None:
    """Two that agree are both part of what is released."""
    files = read_files(SAMPLE_VERSION)
    with pytest.raises(WeightsError, match=r"does not list encoder\.onnx"):
        check_sums({**files, "encoder.onnx": b"x"})


def test_names_that_cannot_be_files_are_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "my model" / "v1.0.0"
    with pytest.raises(WeightsError, match="'my model' cannot name a model"):
        identify(folder, tmp_path, None)


def test_checksums_are_verified_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "tcn_encoder" / "v0.1.0"
    shutil.copytree(SAMPLE_VERSION, folder)
    make_model_weights(Workbench(tmp_path / "bench"), tmp_path)
    data = bytearray((folder / "tcn_vae.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "tcn_vae.pth").write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"tcn_vae\.pth: is not the file whose sha256"):
        make_model_weights(Workbench(tmp_path / "bench"), tmp_path)


def test_no_weights_and_two_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="WEIGHTS_DIR"):
        find_version(tmp_path)
    files = read_files(SAMPLE_VERSION)
    with pytest.raises(WeightsError, match=r"2 checkpoints \(other.pt, tcn_vae.pth\), expected one"):
        parse_model({**files, "other.pt": b"x"})
    with pytest.raises(WeightsError, match=r"2 ONNX files \(a.onnx, b.onnx\), expected one"):
        parse_model({**files, "a.onnx": b"x", "b.onnx": b"x"})


def test_files_are_read_once_and_judged_as_they_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(SAMPLE_VERSION, tmp_path / "v0.1.0")
    read: list[str] = []

    def once(path: Path, limit: int) -> bytes:
        read.append(path.name)
        data = read_bounded(path, limit)
        path.chmod(0o644)
        path.write_bytes(b"something else")
        return data

    monkeypatch.setattr(version_folder, "read_bounded", once)
    version = read_version(folder)
    parse_model(version.files)
    product = keep_weights(Workbench(tmp_path / "bench"), judge_folder(version).folder)
    kept = Workbench(tmp_path / "bench").read_all(product)
    kept.pop(IDENTITY)
    assert kept == {name: (SAMPLE_VERSION / name).read_bytes() for name in kept}
    assert "tcn_vae.pth" in kept
    assert sorted(read) == sorted(path.name for path in SAMPLE_VERSION.iterdir())
    assert version.identity().version == "v0.1.0"
    assert "Trained on synthetic data" in version.card()


def test_a_file_that_vanishes_while_it_is_read_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(SAMPLE_VERSION, tmp_path / "v0.1.0")

    def gone(path: Path, limit: int) -> bytes:
        path.unlink()
        return read_bounded(path, limit)

    monkeypatch.setattr(version_folder, "read_bounded", gone)
    with pytest.raises(WeightsError, match=r"tcn_vae\.pth: cannot be read: No such file.*try again"):
        read_files(folder)


def test_a_link_to_nothing_is_our_error(tmp_path: Path) -> None:
    folder = shutil.copytree(SAMPLE_VERSION, tmp_path / "v0.1.0")
    (folder / "normalization.json").unlink()
    (folder / "normalization.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"normalization\.json: cannot be read"):
        read_files(folder)


def test_what_a_copy_has_not_finished_is_no_weights_file(tmp_path: Path) -> None:
    """Tools that copy write a hidden file first."""
    folder = shutil.copytree(SAMPLE_VERSION, tmp_path / "v0.1.0")
    (folder / "tcn_vae.pth").rename(folder / ".tcn_vae.pth")
    with pytest.raises(WeightsError, match="no <model>/<version>/ folder"):
        find_version(folder)
    for hidden in (tmp_path / "w" / "tcn" / ".v0.9.0", tmp_path / "w" / ".tcn" / "v0.9.0"):
        shutil.copytree(SAMPLE_VERSION, hidden)
        with pytest.raises(WeightsError, match="no <model>/<version>/ folder"):
            find_version(tmp_path / "w")


def test_a_file_where_a_folder_belongs_says_so() -> None:
    with pytest.raises(WeightsError, match=r"tcn_vae\.pth: is a file, expected a folder"):
        find_version(SAMPLE_VERSION / "tcn_vae.pth")


def test_only_what_decides_is_part_of_the_data_version(tmp_path: Path) -> None:
    """Another word about the same weights makes no other release; another normalization file does."""
    bench = Workbench(tmp_path / "bench")
    original = make_model_weights(bench, SAMPLE_VERSION)[0].digest
    folder = shutil.copytree(SAMPLE_VERSION, tmp_path / "tcn_encoder" / "v0.1.0")
    assert make_model_weights(bench, folder)[0].digest == original
    (folder / CHECKSUMS).unlink()
    (folder / "eval_metrics.json").unlink()
    for name in ("model_card.md", "normalization.json"):
        data = (folder / name).read_bytes()
        (folder / name).chmod(0o644)
        (folder / name).write_bytes(data + b"\n")
        same = make_model_weights(bench, folder)[0].digest == original
        assert same == (name == "model_card.md")


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(WeightsError, match="'mean' is there twice"):
        read_object({"a.json": b'{"x": {"mean": 1, "mean": 2}}'}, "a.json")
