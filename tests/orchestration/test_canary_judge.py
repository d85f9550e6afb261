"""The judge in Dagster: looks, runs where there is something to say, moves canary and never stable."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.canary_judge import VERDICT, judge_job, judge_sensor, verdict_asset
from orchestration.resources import Places
from runtime.contract.verdict import HOLD, PROMOTE, ROLL_BACK, verdicts_on
from tests.keys import a_store
from tests.simulators import ReleaseSimulator

pytestmark = pytest.mark.build
KEY = dg.AssetKey(["emulator", VERDICT])
GOOD = """
hailo_release_served_seconds{{release="{canary}",channel="canary"}} 7200
hailo_golden_replays_total{{release="{canary}",channel="canary",result="repeated"}} 600
"""
BROKEN = (
    GOOD
    + """
hailo_golden_replays_total{{release="{canary}",channel="canary",result="missed"}} 1
"""
)


class Page:
    """A runtime's ``/metrics``, as a test writes it."""

    def __init__(self) -> None:
        self.text = ""
        page = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(page.text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(name="page")
def a_page() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


@pytest.fixture(name="instance")
def an_instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def places(root: Path, **changes: str) -> Places:
    told: dict[str, Any] = {
        "weights_dir": "",
        "calib_dir": "",
        "build_dir": str(root / "bench"),
        "release_store": str(root),
        "trust_root": os.environ["TRUST_ROOT"],
        "canary_key_file": os.environ["CANARY_KEY_FILE"],
    }
    return Places(**told | changes)


def judged(root: Path, instance: dg.DagsterInstance, **changes: str) -> dict[str, Any]:
    """Materialize the verdict; its metadata."""
    result = dg.materialize(
        [verdict_asset("emulator")], instance=instance, resources={"places": places(root, **changes)}
    )
    (event,) = result.asset_materializations_for_node(KEY.to_python_identifier())
    return {name: value.value for name, value in event.metadata.items()}


def looked(root: Path, instance: dg.DagsterInstance, **changes: str) -> tuple[int, str]:
    """How many runs the sensor asks for, and what it says."""
    sensor = judge_sensor(("emulator",), watched=True)
    context = dg.build_sensor_context(
        instance=instance, resources={"places": places(root, **changes)}, definitions=definitions()
    )
    found = sensor(context)
    assert isinstance(found, dg.SensorResult)
    message = found.skip_reason.skip_message if isinstance(found.skip_reason, dg.SkipReason) else ""
    return len(found.run_requests or ()), message or str(found.skip_reason or "")


def asked_for(
    root: Path, instance: dg.DagsterInstance, targets: tuple[str, ...] = ("emulator",), **changes: str
) -> list[str | None]:
    """Keys of the runs that the sensor asks for."""
    context = dg.build_sensor_context(
        instance=instance, resources={"places": places(root, **changes)}, definitions=definitions()
    )
    found = judge_sensor(targets, watched=True)(context)
    assert isinstance(found, dg.SensorResult)
    return [each.run_key for each in found.run_requests or ()]


def definitions() -> dg.Definitions:
    return dg.Definitions(
        assets=[verdict_asset("emulator")],
        jobs=[judge_job(("emulator",))],
        sensors=[judge_sensor(("emulator",), watched=False)],
        resources={"places": places(Path("nowhere"))},
    )


def test_without_a_source_it_holds_and_says_what_to_set(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    told = judged(tmp_path, instance)
    assert told["decision"] == HOLD
    assert "PROMETHEUS_URL, or RUNTIME_URLS" in told["reasons"]
    assert [each.decision for each in verdicts_on(a_store(tmp_path), release.id)] == [HOLD]


def test_a_good_canary_has_a_verdict_and_stable_does_not_move(
    tmp_path: Path, instance: dg.DagsterInstance, page: Page
) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    page.text = GOOD.format(canary=release.id)
    assert looked(tmp_path, instance, runtime_urls=page.url)[0] == 1
    told = judged(tmp_path, instance, runtime_urls=page.url)
    assert (told["decision"], told["canary moved"], told["numbers"]) == (PROMOTE, "no", "emulated")
    assert "missing" not in str(told["table"])
    store = a_store(tmp_path)
    assert verdicts_on(store, release.id)[-1].decision == PROMOTE
    assert store.head("emulator", "stable") is None
    # The same again is nothing new.
    assert looked(tmp_path, instance, runtime_urls=page.url) == (0, "emulator: promote: all kept")
    judged(tmp_path, instance, runtime_urls=page.url)
    assert len(verdicts_on(store, release.id)) == 1


def test_a_broken_canary_returns(tmp_path: Path, instance: dg.DagsterInstance, page: Page) -> None:
    good = ReleaseSimulator(version="v1").publish(tmp_path, "canary", "stable")
    release = ReleaseSimulator(version="v2").publish(tmp_path, "canary", judged=False)
    page.text = BROKEN.format(canary=release.id)
    assert looked(tmp_path, instance, runtime_urls=page.url)[0] == 1
    told = judged(tmp_path, instance, runtime_urls=page.url)
    assert (told["decision"], told["canary moved"]) == (ROLL_BACK, f"to {good.id}")
    assert "golden windows, served is missed 1, repeated 600" in told["reasons"]
    assert looked(tmp_path, instance, runtime_urls=page.url) == (0, "emulator: nothing to judge")
    assert judged(tmp_path, instance, runtime_urls=page.url)["decision"] == "nothing to judge"


def test_a_page_that_goes_away_holds(tmp_path: Path, instance: dg.DagsterInstance, page: Page) -> None:
    release = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    page.text = GOOD.format(canary=release.id)
    assert judged(tmp_path, instance, runtime_urls=page.url)["decision"] == PROMOTE
    told = judged(tmp_path, instance, runtime_urls="http://127.0.0.1:1")
    assert told["decision"] == HOLD
    assert "does not answer" in told["reasons"]


def test_hold_promote_and_hold_are_three_runs(
    tmp_path: Path, instance: dg.DagsterInstance, page: Page
) -> None:
    """Dagster makes one run of a key: the second hold must not be taken for the first."""
    release = ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    good = GOOD.format(canary=release.id)
    keys: list[str | None] = []
    for text, decision in (("", HOLD), (good, PROMOTE), ("", HOLD)):
        page.text = text
        keys += asked_for(tmp_path, instance, runtime_urls=page.url)
        assert judged(tmp_path, instance, runtime_urls=page.url)["decision"] == decision
    assert len(set(keys)) == 3


def test_a_run_that_failed_is_not_asked_for_at_each_look(
    tmp_path: Path, instance: dg.DagsterInstance, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.canary_judge.time.time", lambda: 1_764_000_000.0)
    ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    first, second = (asked_for(tmp_path, instance, runtime_urls=page.url) for _ in range(2))
    assert (len(first), first) == (1, second)


def test_one_target_that_cannot_be_judged_leaves_the_others(
    tmp_path: Path, instance: dg.DagsterInstance, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assets import canary_verdict

    look = canary_verdict.verdict_on

    def broken(store: Any, target: str, *others: Any) -> Any:
        if target == "hailo8":
            raise ZeroDivisionError("a mistake")
        return look(store, target, *others)

    monkeypatch.setattr(canary_verdict, "verdict_on", broken)
    ReleaseSimulator().publish(tmp_path, "canary", judged=False)
    targets = ("hailo8", "emulator")
    assert len(asked_for(tmp_path, instance, targets, runtime_urls=page.url)) == 1


def test_a_build_asks_for_no_verdict() -> None:
    from orchestration.definitions import build_canary, defs

    graph = defs.resolve_asset_graph()
    chosen = build_canary.selection.resolve(graph)
    assert KEY not in chosen
    assert KEY in graph.get_all_asset_keys()
