"""The manifest and the gate: what contradicts itself is refused in words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from runtime.contract.document import to_json
from runtime.contract.errors import ManifestError, PublicationRefusedError
from runtime.contract.gate import check_publishable
from runtime.contract.release import (
    MAX_ARTIFACT_BYTES,
    Manifest,
    ParityResult,
    manifest_bytes,
    parse_manifest,
    release_id,
)
from tests.simulators import ReleaseSimulator


@pytest.fixture(name="manifest")
def a_manifest() -> Manifest:
    simulator = ReleaseSimulator()
    return simulator.manifest(simulator.contents())


def test_what_was_written_is_read(manifest: Manifest) -> None:
    data = manifest_bytes(manifest)
    assert parse_manifest(data) == manifest
    assert manifest_bytes(parse_manifest(data)) == data
    assert len(release_id(data)) == 64


def test_what_was_emulated_is_for_no_hardware() -> None:
    """An emulator's release whose target was changed, and a device's that holds an emulator's artifact."""
    emulated = ReleaseSimulator()
    with pytest.raises(ManifestError, match="hardware is False, the target is hailo8"):
        dataclasses.replace(emulated.manifest(emulated.contents()), target="hailo8")
    posing = ReleaseSimulator(target="hailo8", kind="emulated-int8")
    with pytest.raises(ManifestError, match="kind is emulated-int8, the target is hailo8"):
        posing.manifest(posing.contents())
    device = ReleaseSimulator(target="hailo8")
    manifest = device.manifest(device.contents())
    with pytest.raises(ManifestError, match="numbers are emulated"):
        dataclasses.replace(manifest, output=dataclasses.replace(manifest.output, provenance="emulated"))
    judged_by_its_compiler = dataclasses.replace(manifest.parity, provenance="emulated")
    dataclasses.replace(manifest, parity=judged_by_its_compiler)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 4, "this version reads 1, 2, 3"),
        (("target",), "hailo15", "target"),
        (("artifact",), "other.onnx", "not among the artifacts"),
        (("golden", "file"), "other.npz", "golden.file"),
        (("artifacts", 0, "name"), "../escape", "cannot name an artifact"),
        (("artifacts", 0, "name"), "manifest.json", "cannot name an artifact"),
        (("artifacts", 0, "name"), "golden.npz", "share a name"),
        (("artifacts", 0, "sha256"), "ABC", "SHA-256"),
        (("artifacts", 0, "size"), -1, "artifacts[tiny.onnx].size"),
        (("artifacts", 0, "size"), MAX_ARTIFACT_BYTES + 1, "artifacts[tiny.onnx].size"),
        (("artifacts", 0, "size"), 2**63, "artifacts[tiny.onnx].size"),
        (("motif_head", "bias", 0), 1e308, "motif_head"),
        (("golden", "artifact_tolerance"), 10**400, "golden.artifact_tolerance"),
        (("upstream", "onnx_model"), "short", "upstream.onnx_model"),
        (("input", "units", "gyroscope"), "deg/s", "input"),
        (("input", "channels", 0), "gx", "input"),
        (("output", "shape", 1), 32, "output"),
        (("output", "provenance"), "invented", "output.provenance"),
        (("output", "provenance"), "measured", "output.provenance"),
        (("parity", "provenance"), "measured", "output.provenance"),
        (("artifacts", 0, "kind"), "hef", "kind is hef"),
        (("toolchain", "hardware"), True, "toolchain.hardware"),
        (("input", "normalization", "std", 4), 0, "std[gy]"),
        (("surprise",), 1, "unknown key 'surprise'"),
    ],
)
def test_a_wrong_field_is_named(
    manifest: Manifest, path: tuple[str | int, ...], value: object, message: str
) -> None:
    document: Any = json.loads(manifest_bytes(manifest))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ManifestError) as caught:
        parse_manifest(to_json(document), "/store/manifest.json")
    assert message in str(caught.value)
    assert caught.value.where.startswith("/store/manifest.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artifact_sha256": "0" * 64}, "parity was computed on 000000000000"),
        ({"passed": False}, "parity failed"),
        ({"failures": ("mean_cosine is 0.5",)}, "mean_cosine is 0.5"),
        ({"metrics": {"mean_cosine": 0.9}}, r"mean_cosine is 0\.9, at least 0\.95"),
        ({"metrics": {}}, "mean_cosine was not computed"),
        ({"thresholds": {}}, "no thresholds"),
        ({"windows": 0}, "no window"),
        ({"metrics": {"mean_cosine": float("nan")}}, "mean_cosine is nan"),
    ],
)
def test_the_gate_refuses_in_words(manifest: Manifest, changes: dict[str, Any], message: str) -> None:
    parity: ParityResult = dataclasses.replace(manifest.parity, **changes)
    with pytest.raises(PublicationRefusedError, match=message):
        check_publishable(dataclasses.replace(manifest, parity=parity))


def test_the_gate_lets_a_passed_parity_out(manifest: Manifest) -> None:
    check_publishable(manifest)
