"""A release of manifest schema 2, made by the last version that signed nothing, is read and served still."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.active_model import ModelHolder, load_active_model
from runtime.cli import main
from runtime.contract.document import to_json
from runtime.contract.errors import ManifestError
from runtime.contract.release import FIRST_RUNTIME, MANIFEST_NAME, manifest_bytes, parse_manifest
from tests.keys import a_store
from tests.runtime.older import SCHEMA_2, config, signed_copy
from tests.simulators import GOLDEN, ReleaseSimulator, flip_bit, imu_windows

RELEASE = "39fc21d5fb8046946c90c75ff4adce458439ab2773831bfbd88741fce9c73fbb"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(name="store")
def a_signed_store(tmp_path: Path) -> Path:
    return signed_copy(SCHEMA_2, tmp_path / "store")


def printed(capsys: Capture, store: Path, *arguments: str) -> str:
    assert main([*arguments, "--store", str(store)]) == 0
    return capsys.readouterr().out


def old_manifest() -> bytes:
    return (SCHEMA_2 / "releases" / RELEASE / MANIFEST_NAME).read_bytes()


def test_it_is_of_schema_2() -> None:
    document = json.loads(old_manifest())
    assert document["schema"] == 2
    assert "minimum_runtime" not in document
    manifest = a_store(SCHEMA_2).open(RELEASE).manifest
    assert (manifest.schema, manifest.minimum_runtime) == (2, FIRST_RUNTIME)
    assert (manifest.calibration.origin, manifest.golden.kernel_family) == ("synthetic", "recorded-elsewhere")


def test_it_differs_from_todays_in_schema_and_minimum_alone() -> None:
    """Everything else that it says is read as it was meant."""
    simulator = ReleaseSimulator()
    today = json.loads(manifest_bytes(simulator.manifest(simulator.contents())))
    assert today.pop("minimum_runtime") == FIRST_RUNTIME
    read = json.loads(manifest_bytes(parse_manifest(old_manifest())))
    assert read.pop("minimum_runtime") == FIRST_RUNTIME
    assert read == json.loads(old_manifest())
    # Its golden windows were computed on another day, perhaps by other kernels.
    for document in (today, read):
        document["artifacts"] = [each for each in document["artifacts"] if each["name"] != GOLDEN]
    assert today | {"schema": 2} == read


@pytest.mark.parametrize("minimum", ["0.1.0", "0.0.1", "99.0.0", "", None, 1])
def test_schema_2_may_not_say_what_it_did_not_know(minimum: object) -> None:
    document = json.loads(old_manifest()) | {"minimum_runtime": minimum}
    with pytest.raises(ManifestError, match="minimum_runtime"):
        parse_manifest(to_json(document))


def test_as_it_was_made_it_is_unsigned_and_refused() -> None:
    for settings in ({}, {"hef_path": SCHEMA_2 / "releases" / RELEASE}):
        state = ModelHolder.load(config(SCHEMA_2, **settings)).state
        assert state.code == "unsigned"  # type: ignore[union-attr]


def test_it_is_listed_shown_and_verified(store: Path, capsys: Capture) -> None:
    assert printed(capsys, store, "list").splitlines()[1].split()[-2:] == ["synthetic", "checkpoint"]
    assert RELEASE in printed(capsys, store, "show", RELEASE[:8])
    assert printed(capsys, store, "verify") == "1 release checked, 0 problems\n"
    flip_bit(store / "releases" / RELEASE / GOLDEN, 100)
    assert main(["verify", "--store", str(store)]) == 1
    assert GOLDEN in capsys.readouterr().out


def test_it_is_self_tested_by_its_integers(store: Path, capsys: Capture) -> None:
    answer = json.loads(printed(capsys, store, "selftest", RELEASE, "--json"))
    golden = answer["golden"]
    assert (answer["ok"], answer["publishable"], answer["calibration_origin"]) == (True, True, "synthetic")
    assert (golden["unit"], golden["allowed"]) == ("LSB", 2)
    assert golden["recorded_kernel_family"] == "recorded-elsewhere"


def test_it_is_served(store: Path) -> None:
    model = load_active_model(config(store))
    assert (model.release_id, model.calibration_origin) == (RELEASE, "synthetic")
    latent, scores = model.infer(imu_windows(1)[0])
    assert latent.shape == (64,)
    assert scores.sum() == pytest.approx(1)
    model.close()
