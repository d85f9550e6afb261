"""``releasectl diff``: what changed between two releases, and nothing that did not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import main
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import ManifestError
from runtime.contract.release import Manifest, manifest_bytes, parse_manifest
from runtime.contract.store import Release
from runtime.release_diff import diff_releases
from tests.simulators import ReleaseSimulator, motif_head, parity

Capture = pytest.CaptureFixture[str]


def plain() -> Manifest:
    simulator = ReleaseSimulator()
    return simulator.manifest(simulator.contents())


def named(manifest: Manifest) -> Release:
    return Release(sha256_bytes(manifest_bytes(manifest)), Path("nowhere"), manifest, 0)


def changes(a: Manifest, b: Manifest) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = diff_releases(named(a), named(b)).document()["changes"]
    return {section: list(entries) for section, entries in found.items() if entries}


def test_nothing_where_nothing_changed(tmp_path: Path, capsys: Capture) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    arguments = ["diff", release.id[:8], release.id, "--store", str(tmp_path)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16
    assert all(line.endswith(" nothing") for line in lines[4:])
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["a"], answer["b"], answer["same"]) == (release.id, release.id, True)
    assert not any(answer["changes"].values())


def test_two_builds(tmp_path: Path, capsys: Capture) -> None:
    a = ReleaseSimulator().publish(tmp_path)
    worse = dataclasses.replace(
        a.manifest.parity, metrics={"mean_cosine": 0.998, "gain": 1.5}, thresholds={"mean_cosine": 0.9}
    )
    toolchain = dataclasses.replace(
        a.manifest.toolchain, tools={"onnxruntime": "1.33.0", "scipy": "1.14"}, options={}
    )
    b = ReleaseSimulator(
        version="v2.0.0", changes={"parity": worse, "toolchain": toolchain}, kernel_family="aarch64"
    ).publish(tmp_path)
    assert main(["diff", a.id, b.id, "--store", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["same"] is False
    found = {section: entries for section, entries in answer["changes"].items() if entries}

    def entry(name: str, before: object, after: object, difference: float | None = None) -> dict[str, object]:
        return {"name": name, "a": before, "b": after, "difference": difference}

    assert found.pop("metrics") == [
        entry("gain", None, 1.5),
        entry("mean_cosine", 0.999, 0.998, pytest.approx(-0.001)),  # type: ignore[arg-type]
        entry("sqnr_db", 32.5, None),
    ]
    assert found.pop("bounds") == [
        entry("parity.thresholds.mean_cosine", 0.95, 0.9, pytest.approx(-0.05))  # type: ignore[arg-type]
    ]
    assert found == {
        "model": [entry("model.version", "v1.0.0", "v2.0.0")],
        "tools and options": [
            entry("options.integer_path", "u8s8", None),
            entry("tools.onnxruntime", "1.32.0", "1.33.0"),
            entry("tools.scipy", None, "1.14"),
        ],
        "golden windows": [entry("kernel_family", "recorded-elsewhere", "aarch64")],
    }
    assert main(["diff", a.id, b.id, "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for text in ("removed  u8s8", "added    1.14", "a  v1.0.0", "b  v2.0.0", "-0.001", "SYNTHETIC windows"):
        assert text in out
    assert "calibration        nothing" in out
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_what_is_asked_first_comes_first() -> None:
    a = plain()
    upstream = {"model_weights": "1" * 64, "calibration_set": "2" * 64}
    a = dataclasses.replace(a, upstream=upstream)
    other = dataclasses.replace(a.calibration, origin="captured", windows=300)
    worse = dataclasses.replace(a.parity, metrics={**a.parity.metrics, "sqnr_db": 30.0})
    windows = dataclasses.replace(
        a, calibration=other, parity=worse, upstream=upstream | {"calibration_set": "3" * 64}
    )
    said = overview(a, windows)
    assert "weights the same" in said
    assert f"other windows: {a.calibration.windows} synthetic -> 300 captured" in said
    assert "tools, options the same" in said
    assert "metrics sqnr_db 32.5 -> 30 each on its own evaluation windows" in said
    trained = dataclasses.replace(
        a,
        upstream=upstream | {"model_weights": "4" * 64},
        toolchain=dataclasses.replace(a.toolchain, tools={**a.toolchain.tools, "onnx": "9.9"}),
    )
    said = overview(a, trained)
    assert "weights others calibrated on the same windows tools, options differ: tools.onnx" in said
    assert said.endswith("metrics the same")
    assert "weights not named on both sides" in overview(a, dataclasses.replace(a, upstream={}))


def overview(a: Manifest, b: Manifest) -> str:
    said = "\n".join(diff_releases(named(a), named(b)).lines())
    return " ".join(said.partition("\n\n")[2].partition("\n\n")[0].split())


def test_another_head_of_the_same_size_differs_in_its_numbers() -> None:
    manifest = plain()
    bias = (manifest.motif_head.bias[0] + 0.25, *manifest.motif_head.bias[1:])
    other = dataclasses.replace(manifest, motif_head=dataclasses.replace(manifest.motif_head, bias=bias))
    (section,) = changes(manifest, other).items()
    assert section[0] == "motif head"
    digest, far = section[1]
    assert digest["name"] == "numbers_sha256"
    assert (far["name"], far["b"]) == ("largest difference of a number", pytest.approx(0.25))


def test_a_head_of_another_size_is_told_by_size_and_names() -> None:
    manifest = plain()
    found = changes(manifest, dataclasses.replace(manifest, motif_head=motif_head(5)))
    assert {entry["name"] for entry in found["motif head"]} == {"names", "numbers_sha256", "size"}


def test_a_file_that_is_named_after_the_version_is_one_that_changed() -> None:
    manifest = plain()
    first, *rest = manifest.artifacts
    renamed = dataclasses.replace(first, name="tiny-v2.onnx", sha256=sha256_bytes(b"v2"), size=first.size + 1)
    other = dataclasses.replace(manifest, artifact=renamed.name, artifacts=(renamed, *rest))
    found = changes(manifest, other)
    assert list(found) == ["artifacts"]
    assert [entry["name"] for entry in found["artifacts"]] == [
        "artifact",
        "artifacts.emulated-int8.name",
        "artifacts.emulated-int8.sha256",
        "artifacts.emulated-int8.size",
    ]
    assert found["artifacts"][3]["difference"] == 1


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [place for index, item in enumerate(value[:2]) for place in leaves(item, (*path, index))]
    return [path]


def other_than(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return sha256_bytes(value.encode()) if len(value) == 64 else f"{value}x"


def test_no_value_of_a_manifest_changes_unseen() -> None:
    """Each one by itself, where the manifest lets it change at all."""
    seen = []
    for place in leaves(json.loads(manifest_bytes(plain()))):
        document = inner = json.loads(manifest_bytes(plain()))
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = other_than(inner[place[-1]])
        try:
            changed = parse_manifest(to_json(document))
        except ManifestError:
            continue
        found = changes(plain(), changed)
        assert found, place
        assert "other" not in found, place
        seen.append(place[0])
    assert set(seen) >= {"artifacts", "calibration", "golden", "input", "model", "motif_head", "parity"}
    assert len(seen) > 30


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_there_is_2(tmp_path: Path, place: int, capsys: Capture) -> None:
    names = [ReleaseSimulator().publish(tmp_path).id] * 2
    names[place] = "f" * 12
    assert main(["diff", *names, "--store", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "no_release"


def test_a_failed_verdict_shows() -> None:
    manifest = plain()
    failed = dataclasses.replace(
        parity(b"other"), artifact_sha256=manifest.primary.sha256, failures=("too low",), passed=False
    )
    found = changes(manifest, dataclasses.replace(manifest, parity=failed))
    assert [entry["name"] for entry in found["parity"]] == ["failures[0]", "passed"]
