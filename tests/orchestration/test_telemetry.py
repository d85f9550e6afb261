"""The asset ``telemetry_candidates``, and a scripted day: what a real runtime keeps ends as candidates."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import numpy as np
import pytest

from orchestration.resources import Places
from orchestration.telemetry import ASSET, telemetry_candidates
from runtime.active_model import ActiveModel
from runtime.engines.emulator import EmulatorEngine
from sample import motions
from tests.assets.test_telemetry import RELEASE, kept_windows, moving, put
from tests.runtime.test_telemetry_server import counted
from tests.simulators import ReleaseSimulator, running_server

pytestmark = pytest.mark.build


@pytest.fixture(name="instance")
def an_instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def places(root: Path, folder: Path | None) -> Places:
    return Places(
        weights_dir="",
        calib_dir="",
        build_dir=str(root / "bench"),
        release_store=str(root / "store"),
        trust_root=os.environ["TRUST_ROOT"],
        telemetry_dir=str(folder or ""),
    )


def materialized(root: Path, folder: Path | None, instance: dg.DagsterInstance) -> dict[str, Any]:
    """Make the offer in this process; its metadata, and its data version as ``version``."""
    result = dg.materialize(
        [telemetry_candidates], instance=instance, resources={"places": places(root, folder)}
    )
    (event,) = result.asset_materializations_for_node(ASSET)
    found = {
        name: value.records if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in event.metadata.items()
    }
    return found | {"version": (event.tags or {}).get("dagster/data_version")}


def records(table: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in table]


def test_an_offer_shows_reasons_findings_paths_digest_and_size(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    put(tmp_path / "in", "one", kept_windows(moving(90, 1)))
    put(tmp_path / "in", "two", kept_windows(moving(4, 2), "constant_channel"))
    (tmp_path / "in" / "junk.jsonl.gz").write_bytes(b"junk")
    found = materialized(tmp_path, tmp_path / "in", instance)
    assert (found["origin"], found["windows"], found["candidates"], found["files"]) == ("captured", 94, 90, 2)
    assert [(row["reason"], row["windows"], row["verdict"]) for row in records(found["reasons"])] == [
        ("constant_channel", 4, "not offered"),
        ("low_margin", 90, "offered"),
    ]
    assert [row["file"] for row in records(found["left out"])] == ["junk.jsonl.gz"]
    assert "not in this store" in found["z-scores"]
    assert RELEASE[:12] in found["z-scores"]
    with np.load(found["candidate windows"], allow_pickle=False) as archive:
        assert archive["windows"].shape == (90, 100, 9)
    assert len(Path(found["to label"]).read_text().splitlines()) == 94
    assert found["version"] == found["digest"]
    assert found["size"] == sum(path.stat().st_size for path in Path(found["path"]).iterdir())
    again = materialized(tmp_path, tmp_path / "in", instance)
    assert again["version"] == found["version"]


def test_an_offer_of_nothing_says_why(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    dead = moving(3, 2)
    dead[:, :, 3] = 0.5
    put(tmp_path / "in", "one", kept_windows(dead, "disagreement"))
    found = materialized(tmp_path, tmp_path / "in", instance)
    assert found["candidates"] == 0
    assert found["input gate"] == "nothing is offered: 3 cannot be right: constant_channel"
    assert records(found["not offered"]) == [{"windows": 3, "why": "cannot be right: constant_channel"}]
    assert [row["verdict"] for row in records(found["reasons"])] == ["not offered"]


def test_where_nothing_is_named_nothing_is_offered_and_that_is_said(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    found = materialized(tmp_path, None, instance)
    assert (found["candidates"], found["input gate"]) == (0, "TELEMETRY_DIR is not set")


def test_a_folder_that_is_not_there_fails_with_advice(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    result = dg.materialize(
        [telemetry_candidates],
        instance=instance,
        resources={"places": places(tmp_path, tmp_path / "nowhere")},
        raise_on_error=False,
    )
    (failure,) = result.get_step_failure_events()
    assert "is no folder" in str(failure.step_failure_data.user_failure_data)


def test_it_is_in_the_ui_and_no_part_of_a_build() -> None:
    from orchestration.definitions import defs

    graph = defs.resolve_asset_graph()
    key = dg.AssetKey([ASSET])
    assert key in graph.materializable_asset_keys
    assert graph.get(key).group_name == "telemetry"
    assert key not in defs.resolve_job_def("build_canary").asset_layer.executable_asset_keys


def test_a_scripted_day_ends_as_candidates(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """Ordinary, ambiguous and implausible windows and health checks, sent to a real runtime."""
    release = ReleaseSimulator(calibrated=True).publish(tmp_path / "pi", "stable")
    model = ActiveModel(release, EmulatorEngine(release))
    drawn, _ = motions.draw_set(12, 5)
    margins = [float(np.diff(np.sort(model.infer(window)[1])[-2:])[0]) for window in drawn]
    bound = 0.1
    ambiguous = {window.tobytes() for window, margin in zip(drawn, margins, strict=True) if margin < bound}
    assert 0 < len(ambiguous) < len(drawn)
    degrees = drawn[:6].copy()
    degrees[:, :, 3:6] = np.float32(400) * np.sin(np.linspace(0, 6, 100, dtype=np.float32))[None, :, None]
    probes = np.random.default_rng(1).uniform(-1, 1, (5, 100, 9)).astype(np.float32)
    settings = {
        "TELEMETRY_DIR": str(tmp_path / "kept"),
        "TELEMETRY_MARGIN": str(bound),
        "TELEMETRY_DISTANCE": "1000",
        "TELEMETRY_PER_MINUTE": "60000",
    }
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path / "pi"), **settings) as server:
        with httpx.Client(base_url=server.url) as client:
            headers = {"Content-Type": "application/octet-stream"}
            for window in (*drawn, *degrees, *probes):
                answer = client.post("/infer", content=window.tobytes(), headers=headers)
                assert answer.status_code == 200
        dropped = counted(server, "hailo_telemetry_dropped_total") or 0
    found = materialized(tmp_path, tmp_path / "kept", instance)
    listed = [json.loads(line) for line in Path(found["to label"]).read_text().splitlines()]
    assert {line["release"] for line in listed} == {release.id}
    # Whatever had a reason is there, or was dropped and counted: a fast machine sends more than is let in.
    with_reason = len(ambiguous) + len(degrees)
    assert len(listed) + dropped == with_reason
    with np.load(found["candidate windows"], allow_pickle=False) as archive:
        candidates = {window.tobytes() for window in archive["windows"]}
    assert candidates
    assert candidates <= ambiguous
    reasons = {row["reason"]: row["verdict"] for row in records(found["reasons"])}
    assert reasons["low_margin"] in ("offered", "partly offered")  # some of the degrees are uncertain, too
    assert reasons["gyroscope_unit"] == "not offered"
