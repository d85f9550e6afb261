"""The gate before a chip: only the encoder, for this chip, from a real compiler, is published."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from runtime.contract.audit import store_problems
from runtime.contract.errors import PipelineError, PublicationRefusedError
from runtime.contract.gate import check_hef
from runtime.contract.hef_errors import HefArchitectureError, HefError, HefInterfaceError
from runtime.contract.hef_file import DOUBLE_SDK_VERSION
from runtime.contract.store import ReleaseStore
from tests.hef_writer import (
    ENCODER_INPUT,
    ENCODER_OUTPUT,
    NETWORK,
    container,
    make_hef,
    nested,
    network_group,
    stream,
    text,
    uint,
)
from tests.keys import BUILD, a_store
from tests.simulators import TINY_ENCODER, ReleaseSimulator

WITH_NMS = container(
    nested(1, uint(1, 1) + text(3, "3.33.0"))
    + nested(
        2,
        nested(8, nested(4, network_group("a", [ENCODER_INPUT], [ENCODER_OUTPUT])))
        + nested(8, nested(5, b"")),
    )
)
REFUSED = [
    ("hailo8", TINY_ENCODER.read_bytes(), "hef_magic"),
    ("hailo8", b"", "hef_short"),
    ("hailo8", b'{"mock_hef": true}', "hef_json"),
    ("hailo8", make_hef()[:-1], "hef_truncated"),
    ("hailo8", make_hef(arch="HAILO8"), "hef_architecture"),
    ("hailo8", make_hef(arch="HAILO15H", version=3), "hef_architecture"),
    ("hailo8", make_hef(arch="HAILO10H", version=3), "hef_architecture"),
    ("hailo8l", make_hef(arch="HAILO8P"), "hef_architecture"),
    ("hailo8l", make_hef(arch="HAILO8R"), "hef_architecture"),
    ("hailo8", make_hef(networks=[NETWORK, "another"]), "hef_interface"),
    ("hailo8", make_hef(inputs=[]), "hef_interface"),
    ("hailo8", make_hef(inputs=[ENCODER_INPUT, stream("b", (1, 100, 9), limits=(0, 1))]), "hef_interface"),
    ("hailo8", make_hef(inputs=[stream("a", (2, 100, 9), limits=(0, 1))]), "hef_interface"),
    ("hailo8", make_hef(inputs=[stream("a", (100, 1, 9), limits=(0, 1))]), "hef_interface"),
    ("hailo8", make_hef(inputs=[stream("a", (1, 9, 100), limits=(0, 1))]), "hef_interface"),
    ("hailo8", make_hef(outputs=[]), "hef_interface"),
    ("hailo8", make_hef(outputs=[stream("a", (5,), limits=(0, 1), order="NC")]), "hef_interface"),
    (
        "hailo8",
        make_hef(outputs=[ENCODER_OUTPUT, dataclasses.replace(ENCODER_OUTPUT, name="b")]),
        "hef_interface",
    ),
    ("hailo8", make_hef(outputs=[dataclasses.replace(ENCODER_OUTPUT, scale=0.0)]), "hef_interface"),
    ("hailo8", WITH_NMS, "hef_interface"),
]


IDS = [f"{index}-{code}" for index, (_, _, code) in enumerate(REFUSED)]


@pytest.mark.parametrize(("target", "data", "code"), REFUSED, ids=IDS)
def test_what_is_not_the_encoder_for_the_chip_is_not_published(
    tmp_path: Path, target: str, data: bytes, code: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        ReleaseSimulator(target=target, hef=data).publish(tmp_path, "canary")
    assert (type(caught.value).code, caught.value.where) == (code, "tiny.hef")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "data"),
    [
        ("hailo8", make_hef(arch="HAILO8P")),
        ("hailo8", make_hef(arch="HAILO8R", version=0)),
        ("hailo8", make_hef(arch="HAILO8L", version=1)),
        ("hailo8l", make_hef(arch="HAILO8L", version=3)),
        ("hailo8", make_hef(outputs=[stream("a", (1, 1, 64), limits=(-1, 1))])),
        ("hailo8", make_hef(inputs=[dataclasses.replace(ENCODER_INPUT, order="NHWC")])),
    ],
    ids=["8P", "8R", "8L on 8", "8L on 8L", "NHWC output", "NHWC input"],
)
def test_the_encoder_for_the_chip_is_published(tmp_path: Path, target: str, data: bytes) -> None:
    release = ReleaseSimulator(target=target, hef=data).publish(tmp_path, "canary")
    assert release.read("tiny.hef") == data
    assert store_problems(a_store(tmp_path)) == []


def test_a_genuine_file_of_another_network_is_not_published(upstream: Path, tmp_path: Path) -> None:
    for name, kind in (
        ("fsq_m13_behavioral_analysis", HefInterfaceError),
        ("x_feature_224_320", HefInterfaceError),
        ("scrfd_2.5g", HefArchitectureError),
        ("mock_json", HefError),
        ("mock_text", HefError),
    ):
        data = (upstream / "hef" / f"{name}.hef").read_bytes()
        with pytest.raises(kind):
            ReleaseSimulator(target="hailo8", hef=data).publish(tmp_path)


# A double's file


def test_a_doubles_file_is_not_published(tmp_path: Path) -> None:
    simulator = ReleaseSimulator(target="hailo8")
    contents = simulator.contents()
    assert DOUBLE_SDK_VERSION.encode() in contents["tiny.hef"]
    with pytest.raises(PublicationRefusedError, match="test double") as caught:
        a_store(tmp_path).publish(simulator.manifest(contents), contents, BUILD)
    assert caught.value.where == "tiny.hef"
    assert list(tmp_path.iterdir()) == []


def test_a_compilers_file_is_published(tmp_path: Path) -> None:
    simulator = ReleaseSimulator(target="hailo8", hef=make_hef(sdk_version="3.33.0"))
    contents = simulator.contents()
    a_store(tmp_path).publish(simulator.manifest(contents), contents, BUILD)


def test_nothing_outside_of_tests_lets_a_doubles_file_out() -> None:
    """An argument in code does, and neither a setting nor a command line leads to it."""
    assert (
        inspect.signature(ReleaseStore).parameters["_accepts_doubles"].kind is inspect.Parameter.KEYWORD_ONLY
    )
    root = Path(__file__).resolve().parents[2]
    folders = ("runtime", "assets", "orchestration", "sample", "bench", "scripts")
    sources = [path for folder in folders for path in (root / folder).rglob("*.py")]
    assert [path.name for path in sources if "_accepts_doubles" in path.read_text()] == ["store.py"]


# A file that came around the gate


@pytest.mark.parametrize(("target", "data", "code"), REFUSED, ids=IDS)
def test_a_file_that_came_around_the_gate_is_a_problem(
    tmp_path: Path, target: str, data: bytes, code: str
) -> None:
    release = ReleaseSimulator(target=target, hef=data).place(tmp_path)
    with pytest.raises(HefError) as caught:
        release.check_artifact()
    assert (type(caught.value).code, caught.value.where) == (code, str(release.directory / "tiny.hef"))
    assert [str(caught.value)] == release.problems() == store_problems(a_store(tmp_path))


def test_the_emulators_artifact_is_not_looked_at(tmp_path: Path) -> None:
    assert ReleaseSimulator(model=b"anything").publish(tmp_path).check_artifact() == ()


def test_a_hef_is_read_before_it_is_judged() -> None:
    hef = check_hef(make_hef(), "hailo8", "x.hef")
    assert hef.network_groups[0].inputs == (ENCODER_INPUT,)
    with pytest.raises(HefArchitectureError, match="no device is known for target 'emulator'"):
        check_hef(make_hef(), "emulator", "x.hef")
