"""A release of manifest schema 1, made by the version that knew no other, is read and served still."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.active_model import ModelHolder, load_active_model
from runtime.cli import main
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.release import MANIFEST_NAME
from tests.keys import a_store
from tests.runtime.older import SCHEMA_1, config, sign_directory, signed_copy
from tests.simulators import GOLDEN, ReleaseSimulator, flip_bit, imu_windows, npz_bytes

RELEASE = "892c1b557d6d1112bc0e21c76810e1aa931107ba0408b2550e12b785a945a609"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(name="store")
def a_signed_store(tmp_path: Path) -> Path:
    return signed_copy(SCHEMA_1, tmp_path / "store")


def printed(capsys: Capture, store: Path, *arguments: str) -> str:
    assert main([*arguments, "--store", str(store)]) == 0
    return capsys.readouterr().out


def test_it_is_of_schema_1() -> None:
    data = (SCHEMA_1 / "releases" / RELEASE / MANIFEST_NAME).read_bytes()
    document = json.loads(data)
    assert document["schema"] == 1
    assert "calibration" not in document
    manifest = a_store(SCHEMA_1).open(RELEASE).manifest
    assert (manifest.schema, manifest.calibration.origin) == (1, "unknown")
    assert (manifest.golden.output, manifest.golden.kernel_family, manifest.parity.ceilings) == (None, "", {})
    assert manifest.minimum_runtime == "0.1.0"


def test_as_it_was_made_it_is_unsigned_and_refused(tmp_path: Path, capsys: Capture) -> None:
    """Nothing was signed then: neither the channel nor the release counts, and both can be looked at."""
    state = ModelHolder.load(config(SCHEMA_1)).state
    assert state.code == "unsigned"  # type: ignore[union-attr]
    assert "was written before entries were signed" in str(state)
    state = ModelHolder.load(config(SCHEMA_1, hef_path=SCHEMA_1 / "releases" / RELEASE)).state
    assert state.code == "unsigned"  # type: ignore[union-attr]
    assert main(["verify", "--store", str(SCHEMA_1)]) == 1
    release, entry, count = capsys.readouterr().out.splitlines()
    assert "manifest.dsse.json: has no signature" in release
    assert "00000001.json: was written before entries were signed" in entry
    assert count == "1 release checked, 2 problems"
    assert main(["list", "--store", str(SCHEMA_1)]) == 1
    listed = capsys.readouterr()
    assert RELEASE[:12] in listed.out
    assert "was written before entries were signed" in listed.err


def test_a_signed_entry_takes_the_old_ones_place(store: Path) -> None:
    (old,) = (SCHEMA_1 / "channels/emulator/stable").iterdir()
    (kept,) = (store / "channels/emulator/stable").glob(".refused-*/*")
    assert (kept.name, kept.read_bytes()) == (old.name, old.read_bytes())
    (entry,) = a_store(store).history("emulator", "stable")
    assert (entry.sequence, entry.previous, entry.release) == (1, "", RELEASE)


def test_it_is_listed_shown_and_verified(store: Path, capsys: Capture) -> None:
    assert printed(capsys, store, "list").splitlines()[1].split()[-2:] == ["unknown", "checkpoint"]
    out = printed(capsys, store, "show", RELEASE[:8])
    assert "calibration windows of unknown origin" in out
    assert "kernels that schema 1 does not name" in out
    assert printed(capsys, store, "verify") == "1 release checked, 0 problems\n"
    assert "parity.json is of an older form" in printed(capsys, store, "show", "--parity", RELEASE)


def test_it_is_self_tested_by_its_own_tolerance(store: Path, capsys: Capture) -> None:
    answer = json.loads(printed(capsys, store, "selftest", RELEASE, "--json"))
    golden = answer["golden"]
    assert (answer["ok"], answer["publishable"], answer["calibration_origin"]) == (True, True, "unknown")
    assert (golden["unit"], golden["allowed"], golden["recorded_kernel_family"]) == ("latent units", 0.07, "")
    assert golden["worst"] <= 0.07
    assert "unknown ones (schema 1)" in printed(capsys, store, "selftest", RELEASE)


def test_it_is_served(store: Path) -> None:
    model = load_active_model(config(store))
    assert (model.release_id, model.calibration_origin) == (RELEASE, "unknown")
    latent, scores = model.infer(imu_windows(1)[0])
    assert latent.shape == (64,)
    assert scores.sum() == pytest.approx(1)
    model.close()


def test_its_tolerance_still_counts(store: Path) -> None:
    """The same manifest with golden outputs that are off; its digest and signature follow."""
    directory = store / "releases" / RELEASE
    with np.load(directory / GOLDEN) as archive:
        arrays = dict(archive)
    arrays["artifact"][1, 5] += np.float32(0.2)
    golden = npz_bytes(**arrays)
    document = json.loads((directory / MANIFEST_NAME).read_bytes())
    changed = with_golden(store, document, golden)
    state = ModelHolder.load(config(store, hef_path=changed)).state
    assert state.code == "golden_mismatch"  # type: ignore[union-attr]
    assert "window 1, dimension 5 differs by 0.2 latent units" in str(state)


def with_golden(store: Path, document: dict[str, object], golden: bytes) -> Path:
    artifacts: list[dict[str, object]] = document["artifacts"]  # type: ignore[assignment]
    for artifact in artifacts:
        if artifact["name"] == GOLDEN:
            artifact |= {"sha256": sha256_bytes(golden), "size": len(golden)}
    data = to_json(document)
    directory = store / "releases" / sha256_bytes(data)
    shutil.copytree(store / "releases" / RELEASE, directory)
    for name, content in ((MANIFEST_NAME, data), (GOLDEN, golden)):
        (directory / name).unlink()
        (directory / name).write_bytes(content)
    sign_directory(directory)
    return directory


def test_a_changed_byte_is_seen(store: Path, capsys: Capture) -> None:
    flip_bit(store / "releases" / RELEASE / GOLDEN, 100)
    assert main(["verify", "--store", str(store)]) == 1
    assert GOLDEN in capsys.readouterr().out


def test_it_is_compared_with_one_of_today(store: Path, capsys: Capture) -> None:
    today = ReleaseSimulator().publish(store)
    answer = json.loads(printed(capsys, store, "diff", RELEASE, today.id, "--json"))
    found = {entry["name"]: (entry["a"], entry["b"]) for entry in answer["changes"]["calibration"]}
    assert found["origin"] == ("unknown", "synthetic")
    assert {entry["name"]: entry["b"] for entry in answer["changes"]["golden windows"]} == {
        "kernel_family": "recorded-elsewhere",
        "output.scale": 1 / 32,
        "output.zero_point": 128,
    }
