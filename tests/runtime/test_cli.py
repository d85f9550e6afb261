"""``releasectl``: what it prints, and what its exit code says."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import main
from runtime.contract.document import sha256_bytes
from runtime.contract.store import Release
from tests.simulators import (
    ARTIFACT,
    GOLDEN,
    ROOT,
    ReleaseSimulator,
    clean_environment,
    flip_bit,
    motif_head,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(name="releases")
def two_releases(tmp_path: Path) -> list[Release]:
    first = ReleaseSimulator().publish(tmp_path, "canary", "stable")
    second = ReleaseSimulator(version="v2.0.0").publish(tmp_path, "canary")
    return [first, second]


def run(capsys: Capture, store: Path, *arguments: str) -> tuple[int, str, str]:
    code = main([arguments[0], "--store", str(store), *arguments[1:]])
    out, err = capsys.readouterr()
    return code, out, err


def test_list_as_json(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    code, out, _ = run(capsys, tmp_path, "list", "--json")
    assert code == 0
    rows: dict[str, Any] = {row["release"]: row for row in json.loads(out)}
    assert set(rows) == {release.id for release in releases}
    assert rows[releases[0].id] == {
        "release": releases[0].id,
        "target": "emulator",
        "channels": ["stable"],
        "model": "tiny",
        "version": "v1.0.0",
        "artifact": ARTIFACT,
        "numbers": "emulated",
        "calibration_origin": "synthetic",
        "motif_head": "checkpoint",
        "keys": "development keys",
        "signed": True,
        "marked_bad": [],
    }
    assert rows[releases[1].id]["channels"] == ["canary"]


def test_list_as_a_table(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    code, out, _ = run(capsys, tmp_path, "list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("RELEASE")
    assert lines[3:] == ["development keys"]
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(release.id[:12]) for line in lines) for release in releases)


def test_list_says_what_nobody_who_may_signed(
    tmp_path: Path, releases: list[Release], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (releases[1].directory / "manifest.dsse.json").unlink()
    code, out, _ = run(capsys, tmp_path, "list", "--json")
    assert code == 1
    rows = {row["release"]: row for row in json.loads(out)}
    assert [rows[release.id]["signed"] for release in releases] == [True, False]
    code, out, _ = run(capsys, tmp_path, "list")
    assert code == 1
    table = {line[:12]: line for line in out.splitlines()[1:3]}
    assert "REFUSED" in table[releases[1].id[:12]]
    assert "REFUSED" not in table[releases[0].id[:12]]
    assert out.splitlines()[3].startswith(f"{releases[1].id[:12]} REFUSED: ")
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    # Without a root of trust nothing is judged, and nothing refused.
    monkeypatch.delenv("TRUST_ROOT")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, tmp_path, "list", "--json")
    assert (code, {row["signed"] for row in json.loads(out)}) == (0, {None})


def test_list_shows_what_cannot_be_read(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    flip_bit(releases[0].directory / "manifest.json", 30)
    code, out, _ = run(capsys, tmp_path, "list")
    assert code == 1
    assert "cannot be read" in out
    code, out, _ = run(capsys, tmp_path, "list", "--json")
    assert code == 1
    (broken,) = [row for row in json.loads(out) if "problem" in row]
    assert broken["release"] == releases[0].id


@pytest.fixture(name="bad_channel")
def a_bad_channel(tmp_path: Path, releases: list[Release]) -> Path:
    """The first release's channel, stable, cannot be read."""
    entry = tmp_path / "channels" / "emulator" / "stable" / "00000001.json"
    flip_bit(entry)
    return entry


def test_a_bad_channel_hides_no_release(
    tmp_path: Path, releases: list[Release], bad_channel: Path, capsys: Capture
) -> None:
    code, out, err = run(capsys, tmp_path, "list", "--json")
    assert code == 1
    rows = {row["release"]: row for row in json.loads(out)}
    assert {row["target"] for row in rows.values()} == {"emulator"}
    assert [rows[release.id]["channels"] for release in releases] == [[], ["canary"]]
    assert not any("problem" in row for row in rows.values())
    assert err.count("\n") == 1
    code, out, err = run(capsys, tmp_path, "list")
    assert code == 1
    assert [line[:12] for line in out.splitlines()[1:3]] == sorted(each.id[:12] for each in releases)
    assert out.splitlines()[3:] == ["development keys"]
    assert err.startswith("releasectl: channel stable of emulator cannot be read: ")
    assert (err.count("\n"), err.count(str(bad_channel))) == (1, 1)


def test_show_survives_a_bad_channel(
    tmp_path: Path, releases: list[Release], bad_channel: Path, capsys: Capture
) -> None:
    code, out, err = run(capsys, tmp_path, "show", releases[1].id, "--json")
    assert code == 1
    assert [entry["channel"] for entry in json.loads(out)["channels"]] == ["canary"]
    assert str(bad_channel) in err


def test_an_unreadable_release_keeps_its_channels(
    tmp_path: Path, releases: list[Release], capsys: Capture
) -> None:
    flip_bit(releases[0].directory / "manifest.json", 30)
    rows = json.loads(run(capsys, tmp_path, "list", "--json")[1])
    (broken,) = [row for row in rows if "problem" in row]
    assert broken["channels"] == ["stable"]


def test_an_empty_store_is_an_empty_list(tmp_path: Path, capsys: Capture) -> None:
    assert run(capsys, tmp_path, "list", "--json")[:2] == (0, "[]\n")


def test_show_takes_a_prefix(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    release = releases[0]
    code, out, _ = run(capsys, tmp_path, "show", release.id[:6])
    assert code == 0
    for text in (
        release.id,
        "tiny v1.0.0",
        "emulator",
        release.manifest.primary.sha256,
        "onnxruntime 1.32.0",
        release.manifest.upstream["onnx_model"],
        "mean_cosine",
        "at least 0.95",
        "checkpoint, 12 motifs",
        "test: simulated",
    ):
        assert text in out


def test_show_as_json_is_the_manifest(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    code, out, _ = run(capsys, tmp_path, "show", releases[0].id, "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["release"] == releases[0].id
    assert shown["channels"][0]["channel"] == "stable"
    manifest = json.loads((releases[0].directory / "manifest.json").read_bytes())
    assert {key: shown[key] for key in manifest} == manifest


@pytest.mark.parametrize(
    ("prefix", "message"),
    [("abc", "at least 6"), ("f" * 12, "names no release"), ("../../etc", "no release")],
)
def test_show_of_nothing_is_2(
    tmp_path: Path, releases: list[Release], capsys: Capture, prefix: str, message: str
) -> None:
    code, out, err = run(capsys, tmp_path, "show", prefix)
    assert code == 2
    assert out == ""
    assert err.startswith("releasectl: ")
    assert message in err
    assert err.count("\n") == 1


def test_verify_of_a_good_store_is_0(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    assert run(capsys, tmp_path, "verify")[:2] == (0, "2 releases checked, 0 problems\n")
    code, out, _ = run(capsys, tmp_path, "verify", "--json")
    assert code == 0
    expected = {"ok": True, "checked": sorted(release.id for release in releases), "problems": []}
    assert json.loads(out) == expected


def test_verify_names_each_wrong_file(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    flip_bit(releases[0].directory / ARTIFACT, 100)
    (releases[1].directory / GOLDEN).unlink()
    code, out, _ = run(capsys, tmp_path, "verify")
    assert code == 1
    assert str(releases[0].directory / ARTIFACT) in out
    assert str(releases[1].directory / GOLDEN) in out
    assert "2 problems" in out
    code, out, _ = run(capsys, tmp_path, "verify", releases[0].id[:10], "--json")
    assert code == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert report["checked"] == [releases[0].id]
    assert ARTIFACT in report["problems"][0]


def test_no_store_is_2(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, tmp_path / "none", "list")
    assert code == 2
    assert "no such store" in err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["show"], ["list", "--nope"]])
def test_a_wrong_command_line_is_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "releasectl" in capsys.readouterr().err


def test_the_store_comes_from_the_environment(
    tmp_path: Path, releases: list[Release], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELEASE_STORE", str(tmp_path))
    assert main(["verify"]) == 0
    assert "2 releases" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_narrow_locale_is_no_error(tmp_path: Path, encoding: str) -> None:
    """A manifest has m/s² and µT; here a name has what latin-1 lacks, too."""
    head = motif_head(2)
    changes = {"motif_head": dataclasses.replace(head, names=("drücken", "歩く"))}
    release = ReleaseSimulator(changes=changes).publish(tmp_path, "canary")
    environment = clean_environment() | {"LC_ALL": "C", "PYTHONIOENCODING": encoding}

    def printed(*arguments: str) -> str:
        command = [sys.executable, "-m", "runtime.cli", *arguments, "--store", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode(encoding)

    shown = json.loads(printed("show", release.id, "--json"))
    manifest = json.loads((release.directory / "manifest.json").read_bytes())
    assert {key: shown[key] for key in manifest} == manifest
    assert "\\u6b69\\u304f" in printed("show", release.id)
    assert len(json.loads(printed("list", "--json"))) == 1


def test_a_reader_that_leaves_is_no_error(tmp_path: Path, releases: list[Release]) -> None:
    command = [
        sys.executable,
        "-m",
        "runtime.cli",
        "show",
        releases[0].id,
        "--json",
        "--store",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.wait(30)
    process.stderr.close()


@pytest.mark.parametrize("arguments", [["list"], ["show", "f" * 12], ["verify"], ["verify", "f" * 12]])
def test_json_is_printed_whatever_is_wrong(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    code, out, err = run(capsys, tmp_path / "none", *arguments, "--json")
    answer = json.loads(out)
    assert (code, err.count("\n")) == (2, 1)
    if arguments[0] == "verify":
        assert (answer["ok"], answer["checked"]) == (False, [])
        assert "no such store" in answer["problems"][0]
    else:
        assert answer["error"] == "no_release"
        assert "no such store" in answer["message"]


def test_what_cannot_be_named_is_json_too(tmp_path: Path, releases: list[Release], capsys: Capture) -> None:
    code, out, _ = run(capsys, tmp_path, "verify", "f" * 12, "--json")
    assert code == 2
    assert json.loads(out)["ok"] is False
    code, out, _ = run(capsys, tmp_path, "show", "f" * 12, "--json")
    assert code == 2
    assert json.loads(out)["error"] == "no_release"


def circle(root: Path) -> Path:
    path = root / "circle"
    path.symlink_to("circle")
    return path


def too_long(root: Path) -> Path:
    return root / ("a" * 5000)


@pytest.mark.parametrize("place", [circle, too_long])
@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_store_that_cannot_be_read_is_1_in_one_line(
    tmp_path: Path, place: Callable[[Path], Path], command: str, capsys: Capture
) -> None:
    store = place(tmp_path)
    code, out, err = run(capsys, store, command)
    assert (code, out, err.count("\n")) == (1, "", 1)
    code, out, err = run(capsys, store, command, "--json")
    assert (code, err.count("\n")) == (1, 1)
    key, value = ("ok", False) if command == "verify" else ("error", "store")
    assert json.loads(out)[key] == value


def test_another_directory_is_no_store(tmp_path: Path, capsys: Capture) -> None:
    assert run(capsys, tmp_path, "verify")[:2] == (0, "0 releases checked, 0 problems\n")
    (tmp_path / "passwd").write_text("")
    code, out, err = run(capsys, tmp_path, "verify")
    assert (code, out) == (2, "")
    assert "is not a release store" in err


@pytest.mark.parametrize("name", ["releases", "channels"])
def test_a_file_in_a_folders_place_is_a_problem(
    tmp_path: Path, releases: list[Release], name: str, capsys: Capture
) -> None:
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).write_text("")
    code, out, _ = run(capsys, tmp_path, "verify", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert any(str(tmp_path / name) in problem for problem in report["problems"])
    assert run(capsys, tmp_path, "list")[0] == 1


def test_an_error_inside_a_manifest_names_the_release(tmp_path: Path, capsys: Capture) -> None:
    data = ReleaseSimulator().publish(tmp_path).directory.joinpath("manifest.json").read_bytes()
    changed = data.replace(b'"schema": 3', b'"schema": 4')
    directory = tmp_path / "releases" / sha256_bytes(changed)
    directory.mkdir()
    (directory / "manifest.json").write_bytes(changed)
    code, out, _ = run(capsys, tmp_path, "verify")
    assert code == 1
    assert out.startswith(f"{directory / 'manifest.json'}.schema: schema 4, this version reads 1, 2, 3 (")
