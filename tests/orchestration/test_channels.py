"""Channels in Dagster's UI: whoever moved one, and wherever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from orchestration.channels import channels_asset, channels_watch
from orchestration.release_check import whole_check
from orchestration.resources import Places
from runtime.contract.promotion import Decision, mark_bad, promote, roll_back
from tests.keys import BUILD, MANAGER, a_store
from tests.simulators import ReleaseSimulator
from tests.verdicts import judged_well

pytestmark = pytest.mark.build
KEY = dg.AssetKey(["emulator", "release_channels"])
ANNA = Decision(actor="anna", reason="good on the bench")


class Watched:
    """A store, and a daemon that looks when a test says so."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root, self.instance = root, instance
        self.store = a_store(root)
        self.places = Places(
            weights_dir="",
            calib_dir="",
            build_dir="",
            release_store=str(root),
            trust_root=os.environ["TRUST_ROOT"],
        )
        self._cursor: str | None = None
        self._sensor = channels_watch(("emulator",))

    def look(self) -> dg.SensorResult:
        with dg.build_sensor_context(
            self.instance, self._cursor, resources={"places": self.places}
        ) as context:
            result = self._sensor(context)
        assert isinstance(result, dg.SensorResult)
        self._cursor = result.cursor
        return result

    def rows(self) -> dict[str, dict[str, object]]:
        """What the one event of a look shows, by channel."""
        (event,) = self.look().asset_events
        assert event.asset_key == KEY
        table = event.metadata["channels"]
        assert isinstance(table, dg.TableMetadataValue)
        return {str(each.data["channel"]): dict(each.data) for each in table.records}


@pytest.fixture(name="watched")
def a_store_that_is_watched(tmp_path: Path) -> Iterator[Watched]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Watched(tmp_path / "store", instance)


def test_each_move_is_recorded_once(watched: Watched) -> None:
    assert "no channel moved" in str(watched.look().skip_reason)
    first = ReleaseSimulator(version="v1").publish(watched.root, "canary")
    rows = watched.rows()
    assert (rows["canary"]["release"], rows["canary"]["action"]) == (first.id, "publish")
    assert watched.look().asset_events == []
    promote(watched.store, "emulator", first.id, ANNA, MANAGER)
    second = ReleaseSimulator(version="v2").publish(watched.root, "canary")
    judged_well(watched.store, second)
    promote(watched.store, "emulator", second.id, ANNA, MANAGER)
    rows = watched.rows()
    stable = rows["stable"]
    assert (stable["release"], stable["by"], stable["reason"]) == (second.id, "anna", "good on the bench")
    assert "verdict" in str(stable["evidence"])
    assert stable["since"]
    roll_back(watched.store, "emulator", "stable", Decision(actor="bert", reason="heat"), MANAGER)
    rows = watched.rows()
    assert (rows["stable"]["release"], rows["stable"]["by"]) == (first.id, "bert")


def test_a_mark_is_no_move_of_the_channel(watched: Watched) -> None:
    """Since when and by whom are those of the move that put the release there."""
    first, _ = (ReleaseSimulator(version=v).publish(watched.root, "canary") for v in ("v1", "v2"))
    before = watched.rows()["canary"]
    mark_bad(watched.store, first.id, "canary", Decision(actor="bert", reason="heat"), BUILD)
    after = watched.rows()["canary"]
    assert after["entry"] != before["entry"]
    assert {name: after[name] for name in ("by", "since", "action")} == {
        name: before[name] for name in ("by", "since", "action")
    }


def test_a_channel_that_names_nothing_says_so(watched: Watched) -> None:
    ReleaseSimulator().publish(watched.root, "canary")
    roll_back(watched.store, "emulator", "canary", ANNA, BUILD)
    assert watched.rows()["canary"]["release"] == "nothing"


def test_a_store_that_cannot_be_read_is_said(watched: Watched) -> None:
    watched.places = Places(**{**watched.places.model_dump(), "trust_root": "/nowhere/root.json"})
    result = watched.look()
    assert result.asset_events == []
    assert "/nowhere" in str(result.skip_reason)


def test_nobody_makes_it() -> None:
    graph = dg.Definitions(assets=[channels_asset("emulator")]).resolve_asset_graph()
    assert not graph.get(KEY).is_executable
    assert graph.get(KEY).owners == ["team:release-managers"]


def test_a_damaged_canary_fails_its_check(watched: Watched) -> None:
    check = whole_check("emulator")

    def found() -> dg.AssetCheckResult:
        result = check(places=watched.places)
        assert isinstance(result, dg.AssetCheckResult)
        return result

    assert found().passed  # nothing was published
    release = ReleaseSimulator().publish(watched.root, "canary")
    assert (found().passed, found().metadata["release"].value) == (True, release.id)
    path = release.directory / release.manifest.artifact
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    damaged = found()
    assert not damaged.passed
    assert release.manifest.artifact in str(damaged.description)
