"""``releasectl inspect``: HEF and HAR in words and as JSON, and what is neither."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cli import main
from runtime.har_file import MAX_FACTS, HarError, read_har
from tests.hef_writer import ENCODER_INPUT, ENCODER_OUTPUT, make_hef, stream
from tests.simulators import ROOT, TINY_ENCODER, clean_environment

Capture = pytest.CaptureFixture[str]
METADATA = {"state": "quantized_model", "hw_arch": "hailo8", "versions": {"dfc": "3.33.0"}, "nodes": [1, 2]}


def har(**members: bytes | dict[str, Any]) -> bytes:
    """A HAR with these members; underscores in a name stand for dots."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WHOLE = har(
    encoder_hn={"name": "encoder", "layers": {}}, encoder_npz=b"PK" * 50, encoder_metadata_json=METADATA
)


def inspect(capsys: Capture, folder: Path, name: str, data: bytes, *more: str) -> tuple[int, str, str]:
    path = folder / name
    path.write_bytes(data)
    code = main(["inspect", str(path), *more])
    out, err = capsys.readouterr()
    return code, out, err


# HEF


def test_a_hef_is_a_table(tmp_path: Path, capsys: Capture) -> None:
    data = make_hef(sdk_version="3.33.0", timestamp_ms=1758555299622)
    code, out, err = inspect(capsys, tmp_path, "x.hef", data)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"file        {tmp_path / 'x.hef'}, {len(data)} bytes",
        "kind        HEF, header version 2, its xxh3 is right",
        "chip        HAILO8P, taken by HAILO8",
        "compiler    Hailo's Dataflow Compiler 3.33.0, 2025-09-22T15:34:59+00:00",
        "HailoRT     4.20 or newer reads it; its compiler was released with 4.23",
        "for hailo8  can be a release's artifact",
        "for hailo8l no: was compiled for HAILO8P, a HAILO8L takes HAILO8L",
        "",
        "network     encoder: 1 context, the compiler estimates 1234 frames/s",
        "     NAME                  SHAPE    ORDER  TYPE   SCALE      ZERO POINT  TAKES FROM  TO",
        "in   encoder/input_layer1  1x100x9  NHCW   uint8  0.0627451  127         -8          8",
        "out  encoder/conv8         64       NC     uint8  0.0313726  127         -4          4",
    ]


def test_a_hef_is_json(tmp_path: Path, capsys: Capture) -> None:
    code, out, _ = inspect(capsys, tmp_path, "x.hef", make_hef(arch="HAILO8L", version=3), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["kind"] == "hef"
    assert (found["architecture"], found["taken_by"]) == ("HAILO8L", ["HAILO8", "HAILO8L"])
    assert (found["header_version"], found["checksum"], found["hailort_since"]) == (3, "xxh3", "4.21")
    (network,) = found["network_groups"]
    for key, expected in (("inputs", ENCODER_INPUT), ("outputs", ENCODER_OUTPUT)):
        assert network[key] == [json.loads(json.dumps(dataclasses.asdict(expected)))]
    # A double's file is good for nothing but tests, and says so.
    assert found["double"] is True
    assert found["releasable"] == {"hailo8": False, "hailo8l": False}
    assert set(found["obstacles"].values()) == {"a test double of the compiler wrote it"}


def test_a_doubles_file_is_seen_at_once(tmp_path: Path, capsys: Capture) -> None:
    _, out, _ = inspect(capsys, tmp_path, "x.hef", make_hef())
    assert "compiler    A TEST DOUBLE of Hailo's Dataflow Compiler (0.0.0-double): no chip runs this" in out


def test_what_a_hef_may_lack_is_told(tmp_path: Path, capsys: Capture) -> None:
    output = dataclasses.replace(
        stream("a", (2,), limits=(0, 1), order="NC"), scales=(0.5, 0.25), zero_points=(1.0, 2.0)
    )
    data = make_hef(arch=77, sdk_version="", outputs=[output], networks=["", "b"])
    code, out, _ = inspect(capsys, tmp_path, "x.hef", data)
    assert code == 0
    assert "unknown (77), taken by no device that this project knows" in out
    assert "Dataflow Compiler of unknown version\n" in out
    assert "network     (no name): 1 context" in out
    assert "NC     uint8  2 values   2 values  " in out


def test_names_in_a_file_do_not_move_the_cursor(tmp_path: Path, capsys: Capture) -> None:
    data = make_hef(
        networks=["\x1b[2Jevil\r\n"], inputs=[dataclasses.replace(ENCODER_INPUT, name="\x07a\u202eb")]
    )
    _, out, _ = inspect(capsys, tmp_path, "x.hef", data)
    assert "\\x1b[2Jevil\\r\\n: 1 context" in out
    assert "\\x07a\\u202eb" in out
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(out)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fsq_m13_behavioral_analysis", ["HAILO8P", "3.32.0", "2x100x9", "0.999991", "released with 4.22"]),
        ("x_feature_224_320", ["header version 0, its md5", "3.27.0", "released with 4.17", "FCR"]),
        ("scrfd_2.5g", ["HAILO15H, taken by no device that this project knows", "5.2.0", "no: was compiled"]),
    ],
)
def test_genuine_files_are_shown(upstream: Path, name: str, words: list[str], capsys: Capture) -> None:
    assert main(["inspect", str(upstream / "hef" / f"{name}.hef")]) == 0
    out, _ = capsys.readouterr()
    assert [word for word in words if word not in out] == []
    assert main(["inspect", str(upstream / "hef" / f"{name}.hef"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["releasable"] == {"hailo8": False, "hailo8l": False}


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("x.hef", b"", "hef_short"),
        ("x.hef", b"DUMMY_HEF_CONTENT", "hef_text"),
        ("x.hef", b'{"mock_hef": true}', "hef_json"),
        ("x.hef", b"version https://git-lfs.github.com/spec/v1\n", "hef_lfs_pointer"),
        ("x.hef", make_hef()[:-1], "hef_truncated"),
        ("x.hef", make_hef() + b"1", "hef_overlong"),
        ("x.hef", make_hef()[:-1] + b"1", "hef_checksum"),
        ("x.hef", TINY_ENCODER.read_bytes(), "hef_magic"),
        ("x.onnx", TINY_ENCODER.read_bytes(), "file_kind"),
        ("encoder.emulated-int8.onnx", TINY_ENCODER.read_bytes(), "file_kind"),
        ("x.bin", bytes(100), "hef_magic"),
        ("x.har", bytes(100), "har"),
        ("x.har", b"", "har"),
        ("x.har", gzip.compress(WHOLE), "har"),
        ("x.har", WHOLE[:700], "har"),
        ("x.tar", har(readme=b"hello"), "har"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_neither_has_its_error(
    tmp_path: Path, name: str, data: bytes, code: str, capsys: Capture
) -> None:
    status, out, err = inspect(capsys, tmp_path, name, data, "--json")
    assert (status, json.loads(out)["error"], err.count("\n")) == (1, code, 1)
    assert str(tmp_path / name) in err


def test_an_emulated_artifact_is_said_to_be_neither(tmp_path: Path, capsys: Capture) -> None:
    _, _, err = inspect(capsys, tmp_path, "encoder.emulated-int8.onnx", TINY_ENCODER.read_bytes())
    assert "is an ONNX graph, such as the emulator's artifacts: neither a HEF nor a HAR" in err


def test_a_missing_file_is_2(tmp_path: Path, capsys: Capture) -> None:
    assert main(["inspect", str(tmp_path / "missing.hef"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "no_file"


@pytest.mark.parametrize("name", ["pipe.hef", "pipe.har"])
def test_nothing_waits_for_a_pipe(tmp_path: Path, name: str, capsys: Capture) -> None:
    os.mkfifo(tmp_path / name)
    assert main(["inspect", str(tmp_path / name)]) == 1
    assert "is no regular file" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 1


def test_it_needs_no_store(tmp_path: Path) -> None:
    (tmp_path / "x.hef").write_bytes(make_hef())
    command = [sys.executable, "-m", "runtime.cli", "inspect", str(tmp_path / "x.hef")]
    environment = clean_environment() | {"RELEASE_STORE": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


# HAR


def test_a_har_is_listed(tmp_path: Path, capsys: Capture) -> None:
    code, out, err = inspect(capsys, tmp_path, "x.har", WHOLE)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"file        {tmp_path / 'x.har'}",
        f"kind        HAR, {len(WHOLE)} bytes, 3 members",
        "",
        "MEMBER                 BYTES  IS",
        "encoder.hn             33     graph",
        "encoder.npz            100    weights",
        f"encoder.metadata.json  {len(json.dumps(METADATA)):<5}  metadata",
        "",
        "metadata",
        "  state quantized_model",
        "  hw_arch hailo8",
        "  versions.dfc 3.33.0",
        "  nodes 2 items",
    ]


def test_a_har_is_json(tmp_path: Path, capsys: Capture) -> None:
    code, out, _ = inspect(capsys, tmp_path, "archive", WHOLE, "--json")
    found = json.loads(out)
    assert (code, found["kind"], found["size"]) == (0, "har", len(WHOLE))
    assert found["members"][0] == {"name": "encoder.hn", "size": 33, "kind": "graph"}
    assert found["facts"] == {
        "state": "quantized_model",
        "hw_arch": "hailo8",
        "versions.dfc": "3.33.0",
        "nodes": "2 items",
    }


def test_metadata_that_cannot_be_read_are_a_note(tmp_path: Path, capsys: Capture) -> None:
    for metadata, words in (
        (b"\x80", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (2**20 + 1), "at most 1048576 are read"),
    ):
        code, out, _ = inspect(capsys, tmp_path, "x.har", har(a_hn=b"{}", a_metadata_json=metadata))
        assert code == 0
        assert "metadata    none" in out
        assert words in out


def test_numbers_that_json_does_not_know_are_words(tmp_path: Path, capsys: Capture) -> None:
    data = har(a_hn=b"{}", a_metadata_json=b'{"a": NaN, "b": 1e999, "c": 1.5, "d": null}')
    _, out, _ = inspect(capsys, tmp_path, "x.har", data, "--json")
    assert json.loads(out)["facts"] == {"a": "nan", "b": "inf", "c": 1.5, "d": None}


def test_much_metadata_is_cut(tmp_path: Path, capsys: Capture) -> None:
    data = har(a_hn=b"{}", a_metadata_json={str(i): "x" * 1000 for i in range(500)})
    _, out, _ = inspect(capsys, tmp_path, "x.har", data)
    assert out.count("  ") < 500
    assert f"note        more than {MAX_FACTS} metadata" in out
    assert max(map(len, out.splitlines())) < 250


def test_links_are_listed_and_not_followed(tmp_path: Path, capsys: Capture) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        archive.addfile(tarfile.TarInfo("a.hn"))
        link = tarfile.TarInfo("../../a.metadata.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    code, out, _ = inspect(capsys, tmp_path, "x.har", buffer.getvalue())
    assert code == 0
    assert "../../a.metadata.json  0      not a file" in out
    assert "root:" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.har"]


def test_a_har_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = har(a_hn=b"{}", a_npz=bytes(3000))
    path = tmp_path / "x.har"
    end = 512 * (1 + 1 + 1 + 6)  # two headers, their members, and then a block of zeros
    for size in [*range(0, end + 512, 7), end, end + 511]:
        path.write_bytes(whole[:size])
        with pytest.raises(HarError):
            read_har(path)
    path.write_bytes(whole[: end + 512])
    assert len(read_har(path).members) == 2


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    data[1024] ^= 1
    path = tmp_path / "x.har"
    path.write_bytes(data)
    with pytest.raises(HarError, match="damaged or cut off after 1 members"):
        read_har(path)


def test_claimed_lengths_are_not_believed(tmp_path: Path) -> None:
    """A member of 8 GB, and an extension of a header that says to be as long."""
    path = tmp_path / "x.har"
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("a.metadata.json")
        info.size, info.type = 8 * 2**30, kind
        path.write_bytes(har(a_hn=b"{}")[:1024] + info.tobuf() + bytes(1024))
        tracemalloc.start()
        with pytest.raises(HarError):
            read_har(path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.stop()


def test_an_extension_of_a_header_that_is_really_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.har"
    info = tarfile.TarInfo("a.metadata.json")
    info.size, info.type = 30 * 10**6, tarfile.GNUTYPE_LONGNAME
    path.write_bytes(har(a_hn=b"{}")[:1024] + info.tobuf() + bytes(31 * 10**6))
    tracemalloc.start()
    with pytest.raises(HarError, match="at most 2097152 are read"):
        read_har(path)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_deep_metadata_are_only_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.har"
    path.write_bytes(har(a_hn=b"{}", a_metadata_json=b'{"a":' * 300 + b"1" + b"}" * 300))
    assert read_har(path).facts == {"a.a.a.a": "1 items"}


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"' + b"k" * 500_000 + b'": {' + b",".join(b'"%d": 1' % i for i in range(50_000)) + b"}}",
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"[" + b"[]," * 300_000 + b"1]",
    ],
    ids=["long key", "deep", "many"],
)
def test_no_metadata_are_large_to_read(tmp_path: Path, metadata: bytes) -> None:
    path = tmp_path / "x.har"
    path.write_bytes(har(a_hn=b"{}", a_metadata_json=metadata))
    tracemalloc.start()
    read_har(path)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_more_members_than_any_har_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.har"
    path.write_bytes(har(**{f"a{i}": b"" for i in range(1100)}))
    with pytest.raises(HarError, match="more than 1000 members"):
        read_har(path)


@pytest.fixture(name="scratch", scope="module")
def a_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "x.har"


def read_or_refuse(path: Path) -> bool:
    try:
        read_har(path)
    except HarError as error:
        return error.where == str(path)
    return True


@given(changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6))
def test_a_changed_har_is_read_or_refused(scratch: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    scratch.write_bytes(data)
    assert read_or_refuse(scratch)


@given(header=st.binary(min_size=512, max_size=512), more=st.binary(max_size=600))
def test_a_strange_header_is_read_or_refused(scratch: Path, header: bytes, more: bytes) -> None:
    """Right checksum, anything else."""
    block = bytearray(header)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    scratch.write_bytes(WHOLE[:1024] + bytes(block) + more)
    assert read_or_refuse(scratch)
