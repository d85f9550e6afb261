"""Releases switched, and bad ones refused, while somebody asks: nothing lost, nothing wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from bench.switching import judged, load, measure
from runtime.contract.document import to_json
from runtime.contract.release_directory import Release
from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import tiny_hef
from tests.keys import a_store, write_entry
from tests.moves import after
from tests.simulators import (
    ARTIFACT,
    ReleaseSimulator,
    RuntimeServer,
    flip_bit,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

KINDS: Final = ("corrupt", "wrong target", "failing its golden windows", "crashing on load")
REASONS: Final = {
    "corrupt": "digest_mismatch",
    "wrong target": "target_mismatch",
    "failing its golden windows": "golden_mismatch",
    "crashing on load": "crashed_on_load",
}
CRASHER: Final = """
import os, sys
with open({crashing!r}) as listed:
    if "runtime.trial" in sys.orig_argv and any(name in sys.orig_argv[-1] for name in listed.read().split()):
        os.abort()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("configure_ms", [None, 30])
def test_switches_lose_nothing_and_answer_nothing_wrong(configure_ms: int | None) -> None:
    """``python -m bench.switching --switches 1000`` is the long run, with its figures."""
    outcome = measure(25, 100, 0.2, configure_ms)
    assert (outcome.lost, outcome.wrong) == ([], [])
    assert outcome.switches == 25
    assert len(outcome.during) + len(outcome.control) > 500
    print("\n".join(outcome.lines()))


class BadReleases:
    """A store whose stable channel is pointed to one bad release after the other, around every gate."""

    def __init__(self, root: Path, crashing: Path) -> None:
        self.store = root
        self._crashing = crashing
        self._writer = a_store(root, accepts_doubles=True)

    def point(self, release: str) -> None:
        """Signed by who may, whatever the gate would say."""
        head = self._writer.chain("emulator", "stable")[-1]
        write_entry(self.store, json.loads(to_json(after(head, release=release))))

    def make(self, kind: str, number: int) -> Release:
        """A release of its own that is bad in this way."""
        version = f"v2.0.{number}"
        if kind == "wrong target":
            return ReleaseSimulator(target="hailo8", version=version).publish(self.store)
        offset = 1.0 if kind == "failing its golden windows" else 0.0
        release = ReleaseSimulator(version=version, golden_offset=offset).publish(self.store)
        if kind == "corrupt":
            flip_bit(release.directory / ARTIFACT, 5000 + number, number % 8)
        if kind == "crashing on load":
            with self._crashing.open("a") as listed:
                listed.write(f"{release.id}\n")
        return release


def health(server: RuntimeServer) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{server.url}/healthz").json()
    return told


def refused(server: RuntimeServer, wanted: str, reason: str) -> bool:
    """Where the channel's own entry is refused, there is no release to name."""
    switch = health(server).get("switch")
    return bool(switch and switch["reason"] == reason and switch["wanted"] in (wanted, None))


def serves(server: RuntimeServer, wanted: str) -> bool:
    return bool(health(server).get("release") == wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_bad_releases_cost_nobody_anything(tmp_path: Path) -> None:
    """Each is refused by name while the old one serves, and the next good one is taken."""
    store, site, crashing = tmp_path / "store", tmp_path / "site", tmp_path / "crashing"
    site.mkdir()
    crashing.touch()
    (site / "sitecustomize.py").write_text(CRASHER.format(crashing=str(crashing)))
    good = [ReleaseSimulator(motifs=motifs).publish(store, "stable") for motifs in (12, 13)]
    bad = BadReleases(store, crashing)
    body = tmp_path / "body.json"
    body.write_bytes(infer_body(imu_windows(1, seed=5)[0]))
    environment = {
        "RELEASE_STORE": str(store),
        "LOG_LEVEL": "ERROR",
        "PYTHONPATH": str(site),
        "TARGET": "emulator",
    }
    with running_server(tmp_path, **environment) as server:
        (worker,) = server.children()
        with load(server.port, 40, 800, body) as process:
            for number in range(100):
                kind = KINDS[number % len(KINDS)]
                serving, release = health(server)["release"], bad.make(kind, number)
                bad.point(release.id)

                wait_for(partial(refused, server, release.id, REASONS[kind]), f"{kind} {number}")
                told = health(server)
                assert (told["ok"], told["release"]) == (True, serving)
                if number % 10 == 9:
                    wanted = good[number // 10 % 2].id
                    bad.point(wanted)
                    wait_for(partial(serves, server, wanted), f"the good one after {number}")
            told_by_load = told_of(process)
        assert server.children() == [worker]
        metrics = httpx.get(f"{server.url}/metrics").text
    outcome = judged([], told_by_load, good)
    assert (outcome.lost, outcome.wrong) == ([], [])
    assert len(outcome.control) > 1000
    for reason in REASONS.values():
        assert f'reason="{reason}",release="' in metrics


def told_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    told: dict[str, Any] = json.loads(process.stdout.read())
    return told


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("remembers", [True, False])
def test_a_hef_that_ends_the_worker_costs_one_restart(tmp_path: Path, remembers: bool) -> None:
    """HailoRT's ``configure`` is where no trial comes: the next worker serves the last good release."""
    store, chip = tmp_path / "store", HailoDouble(tmp_path / "chip", configure_ms=0)
    first = ReleaseSimulator(target="hailo8").publish(store, "stable")
    hef = tiny_hef(timestamp_ms=1_700_000_000_000)
    chip.set(doomed={hashlib.sha256(hef).hexdigest(): "configure"})
    environment = {"RELEASE_STORE": str(store), "LOG_LEVEL": "ERROR"} | chip.environment
    if remembers:
        (tmp_path / "state").mkdir()
        environment["STATE_DIR"] = str(tmp_path / "state")
    with running_server(tmp_path, **environment) as server:
        (worker,) = server.children()
        bad = ReleaseSimulator(target="hailo8", hef=hef, motifs=13).publish(store, "stable")
        wait_for(lambda: server.children() not in ([], [worker]), "another worker")
        server.wait_until_answering()
        wait_for(partial(serves, server, first.id), "the last good one")
        (again,) = server.children()
        wait_for(partial(refused, server, bad.id, "crashed_on_load"), "why the new one is not")
        good = ReleaseSimulator(target="hailo8", motifs=14).publish(store, "stable")
        wait_for(partial(serves, server, good.id), "the next good one")
        assert server.children() == [again]
