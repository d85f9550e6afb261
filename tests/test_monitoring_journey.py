"""A real Prometheus scrapes three real runtimes under load: every query of ``deploy/`` finds something."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from runtime.contract.motifs import MotifHead
from runtime.contract.release_directory import Release
from tests.doubles.hailo import HailoDouble
from tests.keys import BUILD, a_store
from tests.monitoring import (
    alerts,
    as_grafana_asks,
    asked,
    panel_queries,
    prometheus,
    records,
    selectors,
)
from tests.simulators import (
    ReleaseSimulator,
    RuntimeServer,
    flip_bit,
    imu_windows,
    infer_body,
    motif_head,
    running_server,
    wait_for,
)

MAY_BE_EMPTY: Final = {
    'hailo_shadow_golden_total{job="hailo-inference",result!="repeated"}': "a canary that misses golden "
    "windows does not pass the look before it runs; tests/runtime/test_shadow.py makes one that does later",
}


def bodies() -> list[bytes]:
    """Windows, a health check's noise, a dead sensor, what is no window, more at once than a canary takes."""
    windows = imu_windows(40, seed=5)
    noise = np.random.default_rng(1).uniform(-1, 1, (100, 9)).astype(np.float32)
    dead = windows[0].copy()
    dead[:, 4] = 0.0
    batch = b'{"x": [' + b", ".join(infer_body(window)[6:-1] for window in windows) + b"]}"
    return [*map(infer_body, windows[:8]), infer_body(noise), infer_body(dead), b'{"x": [[1]]}', batch]


class Clients:
    """Somebody at each server who asks all the time, whatever is answered; can be told to be quiet."""

    def __init__(self, servers: Sequence[RuntimeServer]) -> None:
        self._done = threading.Event()
        self.quiet: set[RuntimeServer] = set()
        self._threads = [threading.Thread(target=self._ask, args=(server,)) for server in servers]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, server: RuntimeServer) -> None:
        sent, number = bodies(), 0
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not self._done.wait(0.03):
                if server not in self.quiet:
                    number += 1
                    with contextlib.suppress(httpx.TransportError):
                        client.post("/infer", content=sent[number % len(sent)])


def sum_of(url: str, query: str) -> float:
    return sum(float(each["value"][1]) for each in asked(url, query))


def health(server: RuntimeServer) -> Any:
    return httpx.get(f"{server.url}/healthz").json()


def child_of(server: RuntimeServer) -> int:
    """The canary's process."""
    (worker,) = server.children()
    for task in Path(f"/proc/{worker}/task").iterdir():
        for pid in (task / "children").read_text().split():
            if "shadow_start" in Path(f"/proc/{pid}/cmdline").read_text():
                return int(pid)
    return 0


def sure_of_itself() -> MotifHead:
    """A head whose first motif leads clearly on any window: only such are compared."""
    head = motif_head()
    return dataclasses.replace(head, weight=tuple(tuple(20 * w for w in row) for row in head.weight))


def on_canary(root: Path, version: str) -> Release:
    return ReleaseSimulator(target="hailo8", version=version).publish(root, "canary")


def all_queries() -> dict[str, str]:
    """Where it stands to what is asked."""
    found: dict[str, str] = {}
    for title, queries in panel_queries().items():
        found |= {f"panel {title} {number}": as_grafana_asks(q) for number, q in enumerate(queries)}
    found |= {f"record {name}": name for name in records()}
    for name, alert in alerts().items():
        found |= {f"alert {name}: {each}": each for each in selectors(alert["expr"])}
    return found


@pytest.mark.slow
@pytest.mark.needs("prometheus")
@pytest.mark.timeout(600)
def test_every_query_finds_something(tmp_path: Path) -> None:
    root, chips = tmp_path / "store", tmp_path / "chips"
    decided = {"motif_head": sure_of_itself()}
    ReleaseSimulator(version="v1", changes=decided, calibrated=True).publish(root, "canary", "stable")
    ReleaseSimulator(version="v2", changes=decided).publish(root, "canary")
    chips.mkdir()
    double = HailoDouble(tmp_path / "chip", configure_ms=20)
    keeping = {"CANARY_MODE": "shadow", "TELEMETRY_DIR": str(tmp_path / "kept")}
    on_chip = {"RELEASE_STORE": str(chips), "TARGET": "hailo8", "RELEASE_CHANNEL": "canary"}
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    with (
        running_server(tmp_path / "a", RELEASE_STORE=str(root), **keeping) as beside,
        running_server(tmp_path / "b", **on_chip, **double.environment) as chip,
        prometheus([f"127.0.0.1:{each.port}" for each in (beside, chip)], tmp_path / "prometheus") as url,
        Clients([beside, chip]) as clients,
    ):
        # Nothing is there yet: 503, and no model.
        wait_for(lambda: sum_of(url, 'hailo_runtime_requests_total{status="503"}') > 5, "503")
        good = on_canary(chips, "v1")
        wait_for(lambda: health(chip).get("release") == good.id, "the chip's release", 60)
        wait_for(lambda: health(beside)["shadow"]["state"] == "running", "a canary beside stable")
        os.kill(child_of(beside), signal.SIGKILL)
        wait_for(lambda: sum_of(url, "hailo_shadow_failures_total") > 0, "a canary's end")
        # A chip that fails: under load, and while nobody asks, so that golden windows meet it.
        double.set(completion_status=4)
        wait_for(lambda: sum_of(url, "hailo_runtime_engine_errors_total") > 0, "a window that failed")
        clients.quiet.add(chip)
        double.set(completion_status=0)
        wait_for(lambda: health(chip).get("release") == good.id, "the chip again", 60)
        wait_for(lambda: sum_of(url, "hailo_golden_replays_total") > 0, "a golden window")
        double.set(completion_status=4)
        wait_for(lambda: sum_of(url, 'hailo_golden_replays_total{result="failed"}') > 0, "one that failed")
        double.set(completion_status=0)
        wait_for(lambda: health(chip).get("release") == good.id, "the chip once more", 60)
        clients.quiet.clear()
        better = on_canary(chips, "v2")
        wait_for(lambda: health(chip).get("release") == better.id, "a switch", 60)
        # A dead sensor's windows, more of them than a minute lets in.
        wait_for(lambda: sum_of(url, "hailo_telemetry_windows_total") > 0, "a window that is kept", 60)
        wait_for(lambda: sum_of(url, 'hailo_telemetry_dropped_total{why="rate"}') > 0, "one that is not")
        # A release that it cannot take.
        damaged = ReleaseSimulator(target="hailo8", version="v3").publish(chips)
        flip_bit(damaged.directory / damaged.manifest.artifact, 500)
        a_store(chips, accepts_doubles=True).point("canary", damaged, actor="t", reason="t", key=BUILD)
        wait_for(lambda: sum_of(url, "hailo_release_switch_failing") > 0, "a switch that fails", 60)
        check(url)


def check(url: str) -> None:
    """Ask everything until everything finds something."""
    queries = {where: q for where, q in all_queries().items() if q not in MAY_BE_EMPTY}
    missing = dict(queries)

    def found_all() -> bool:
        for where, query in list(missing.items()):
            # 0 through 0 is an answer, and shows nothing.
            if any(math.isfinite(float(each["value"][1])) for each in asked(url, query)):
                del missing[where]
        return not missing

    with contextlib.suppress(TimeoutError):
        wait_for(found_all, "data for every query", 90)
    assert missing == {}
    groups = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"]
    judged = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in judged if rule["health"] != "ok"} == set()
    firing = {rule["name"] for rule in judged if rule.get("state") in ("firing", "pending")}
    assert {"HailoSwitchFailing", "HailoCanaryFails", "HailoGoldenMissed"} <= firing
    print(f"{len(queries)} queries; firing or pending: {', '.join(sorted(firing))}")
