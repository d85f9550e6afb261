"""The real server for a Hailo target, on the double of HailoRT: serves, waits, takes over, says why not."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.doubles.hailo import HailoDouble
from tests.runtime.hailo import hailo_release
from tests.simulators import (
    STATISTICS,
    TINY_ENCODER,
    RuntimeServer,
    imu_windows,
    infer_body,
    reference_latents,
    running_server,
    wait_for,
)

pytestmark = pytest.mark.slow
WINDOWS = imu_windows(1, seed=2)
BODY = infer_body(WINDOWS[0])


def settings(root: Path, double: HailoDouble) -> dict[str, str]:
    """Environment of a server on the double."""
    return {"RELEASE_STORE": str(root / "store"), "TARGET": "hailo8", **double.environment}


def health(server: RuntimeServer) -> tuple[int, str]:
    """Status of ``/healthz``, and the reason or the release's target."""
    answer = httpx.get(f"{server.url}/healthz")
    body = answer.json()
    return answer.status_code, body.get("reason") or body["target"]


@pytest.fixture(name="double")
def a_double(tmp_path: Path) -> HailoDouble:
    hailo_release(tmp_path / "store")
    return HailoDouble(tmp_path / "chip", configure_ms=20)


def alone_on_the_chip(journal: list[str]) -> bool:
    """Whether nobody opened the chip before the one before had let go, or ended."""
    return [line.split()[0] for line in journal] in (
        ["open", "release"] * (len(journal) // 2),
        [*["open", "release"] * (len(journal) // 2), "open"],
    )


def test_it_serves_and_lets_go_at_the_end(tmp_path: Path, double: HailoDouble) -> None:
    with running_server(tmp_path, **settings(tmp_path, double)) as server:
        assert health(server) == (200, "hailo8")
        answer = httpx.post(f"{server.url}/infer", content=BODY)
        expected = reference_latents(TINY_ENCODER.read_bytes(), WINDOWS, STATISTICS)[0]
        np.testing.assert_array_equal(np.float32(answer.json()["latent"]), expected)
        assert answer.headers["X-Numbers"] == "measured"
        temperature = 'hailo_device_temperature_celsius{sensor="ts0"} 41.5'
        wait_for(lambda: temperature in httpx.get(f"{server.url}/metrics").text, "a reading")
        (worker,) = server.children()
    assert double.journal() == [f"open {worker}", f"release {worker}"]


def test_a_second_one_waits_and_takes_over(tmp_path: Path, double: HailoDouble) -> None:
    environment = settings(tmp_path, double)
    with running_server(tmp_path, **environment) as first:
        with running_server(tmp_path, **environment) as second:
            assert health(second) == (503, "device_busy")
            (holder,) = first.children()
            assert f"process {holder} has the chip" in httpx.get(f"{second.url}/healthz").json()["message"]
            answer = httpx.post(f"{second.url}/infer", content=BODY)
            assert (answer.status_code, answer.json()["reason"]) == (503, "device_busy")
            assert health(first) == (200, "hailo8")
            first.stop()
            wait_for(lambda: health(second) == (200, "hailo8"), "the second to take over")
            assert "\nhailo_model_loaded 1.0\n" in httpx.get(f"{second.url}/metrics").text
        reasons = [json.loads(line).get("reason") for line in second.stdout.splitlines()]
        assert reasons.count("device_busy") == 1
    assert alone_on_the_chip(double.journal())


def test_it_takes_over_from_one_that_was_killed(tmp_path: Path, double: HailoDouble) -> None:
    environment = settings(tmp_path, double)
    with running_server(tmp_path, **environment) as first, running_server(tmp_path, **environment) as second:
        (holder,) = first.children()
        os.kill(first.process.pid, signal.SIGKILL)
        os.kill(holder, signal.SIGKILL)
        wait_for(lambda: health(second) == (200, "hailo8"), "the second to take over")


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGTTIN])
def test_no_signal_puts_two_on_the_chip(tmp_path: Path, double: HailoDouble, sent: signal.Signals) -> None:
    environment = settings(tmp_path, double)
    with running_server(tmp_path, **environment, WEB_CONCURRENCY="3") as server:
        before = server.children()
        server.process.send_signal(sent)
        if sent == signal.SIGHUP:
            wait_for(lambda: server.children() not in (before, []) and len(server.children()) == 1, "another")
        else:
            wait_for(lambda: "still 1 worker" in server.stderr, "a refusal")
        wait_for(lambda: health(server) == (200, "hailo8"), "serving")
        assert httpx.post(f"{server.url}/infer", content=BODY).status_code == 200
    assert alone_on_the_chip(double.journal())
    assert len(double.journal()) == (4 if sent == signal.SIGHUP else 2)


def test_a_second_master_waits_for_the_first(tmp_path: Path, double: HailoDouble) -> None:
    """``USR2`` starts one on the same socket, with a worker of its own."""
    script = str(Path(sys.executable).parent / "gunicorn")
    with running_server(tmp_path, script=script, **settings(tmp_path, double)) as server:
        before = server.children()
        server.process.send_signal(signal.SIGUSR2)
        (master,) = wait_for(lambda: [pid for pid in server.children() if pid not in before], "a master")
        try:
            wait_for(lambda: health(server) == (503, "device_busy"), "the new worker's answer")
            wait_for(lambda: health(server) == (200, "hailo8"), "the old worker's answer")
            assert len(double.journal()) == 1
            server.stop()
            wait_for(lambda: health(server) == (200, "hailo8"), "the new worker to take over")
        finally:
            os.kill(master, signal.SIGTERM)
        wait_for(lambda: len(double.journal()) == 4, "the new worker's end")
    assert alone_on_the_chip(double.journal())


def test_a_lost_device_is_opened_again(tmp_path: Path, double: HailoDouble) -> None:
    with running_server(tmp_path, **settings(tmp_path, double)) as server:
        double.set(completion_status=63, open_status=74)
        answer = httpx.post(f"{server.url}/infer", content=BODY)
        assert (answer.status_code, answer.json()["error"]) == (503, "device_lost")
        wait_for(lambda: health(server) == (503, "device_busy"), "an attempt")
        double.set(completion_status=0, open_status=0)
        wait_for(lambda: health(server) == (200, "hailo8"), "the device again")
        assert httpx.post(f"{server.url}/infer", content=BODY).status_code == 200
        assert "Traceback" not in server.stderr
    assert alone_on_the_chip(double.journal())


def no_hailort(root: Path) -> Mapping[str, str]:
    return {}


def no_device(root: Path) -> Mapping[str, str]:
    return HailoDouble(root / "chip", devices=[]).environment


def hailort_5(root: Path) -> Mapping[str, str]:
    return HailoDouble(root / "chip", version="5.2.0").environment


def skewed(root: Path) -> Mapping[str, str]:
    return HailoDouble(root / "chip", binding_version="4.20.0").environment


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (no_hailort, "no_hailort"),
        (no_device, "no_device"),
        (hailort_5, "hailort_version"),
        (skewed, "hailort_version"),
    ],
)
def test_without_hailort_or_a_device_it_starts_and_says_so(
    tmp_path: Path, prepare: object, reason: str
) -> None:
    assert callable(prepare)
    hailo_release(tmp_path / "store")
    environment = {"RELEASE_STORE": str(tmp_path / "store"), "TARGET": "hailo8", **prepare(tmp_path)}
    with running_server(tmp_path, **environment) as server:
        assert health(server) == (503, reason)
        answer = httpx.post(f"{server.url}/infer", content=BODY)
        assert (answer.status_code, answer.json()["error"]) == (503, "model_unavailable")
        assert answer.json()["reason"] == reason
        assert "Traceback" not in server.stderr + server.stdout
