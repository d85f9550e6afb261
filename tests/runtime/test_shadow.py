"""The canary beside stable: compared on the same windows, and never in a client's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.active_model import ActiveModel, ModelHolder, load_active_model
from runtime.config import RuntimeConfig
from runtime.contract.errors import ConfigError
from runtime.contract.promotion import Decision, promote
from runtime.contract.release_directory import Release
from runtime.metrics import RuntimeMetrics
from runtime.shadow import MOST_WAITING, Child, Shadow, ShadowError
from runtime.shadow_child import COMPARED, GOLDEN_MISSED, PROBE, Reply, golden_frame, is_probe, window_frame
from runtime.shadow_metrics import ShadowCollector
from tests.keys import MANAGER, a_store, key_folder
from tests.requirements import program
from tests.simulators import (
    ReleaseSimulator,
    RuntimeServer,
    flip_bit,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

Samples = Callable[..., float]


def samples_of(server: RuntimeServer) -> Samples:
    """What ``/metrics`` says: the sum of all samples of a name with these labels."""

    def sample(name: str, **labels: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return sum(
            found.value
            for family in text_string_to_metric_families(text)
            for found in family.samples
            if found.name == name and labels.items() <= found.labels.items()
        )

    return sample


@pytest.fixture(name="pair")
def a_store_with_both(tmp_path: Path) -> tuple[Path, Release, Release]:
    stable = ReleaseSimulator(version="v1.0.0").publish(tmp_path, "canary", "stable")
    return tmp_path, stable, ReleaseSimulator(version="v2.0.0").publish(tmp_path, "canary")


def running(server: RuntimeServer) -> Any:
    return httpx.get(f"{server.url}/healthz").json()["shadow"]


def test_a_real_canary_is_compared_on_what_stable_answered(pair: tuple[Path, Release, Release]) -> None:
    root, stable, canary = pair
    with running_server(root, RELEASE_STORE=str(root), CANARY_MODE="shadow") as server:
        sample = samples_of(server)
        wait_for(lambda: running(server)["state"] == "running", "a canary beside stable")
        # No traffic yet: golden windows are evidence.
        wait_for(lambda: sample("hailo_shadow_windows_total", source="golden") >= 1, "a golden window")
        with httpx.Client(base_url=server.url) as client:
            for window in imu_windows(5, seed=3):
                answer = client.post("/infer", content=infer_body(window))
                assert (answer.status_code, answer.headers["x-release"]) == (200, stable.id)
            noise = np.random.default_rng(1).uniform(-1, 1, (100, 9)).astype(np.float32)
            assert client.post("/infer", content=infer_body(noise)).status_code == 200
        by = {"release": canary.id, "against": stable.id, "source": "traffic"}
        wait_for(lambda: sample("hailo_shadow_windows_total", **by) == 5, "five windows")
        wait_for(lambda: sample("hailo_shadow_probes_total", release=canary.id) == 1, "the noise")
        # The same encoder: nothing differs.
        assert sample("hailo_shadow_latent_cosine_distance_bucket", le="0.0001", **by) == 5
        assert sample("hailo_shadow_motif_disagreements_total", **by) == 0
        assert sample("hailo_shadow_golden_total", release=canary.id, result="repeated") >= 1
        assert sample("hailo_shadow_running", release=canary.id, against=stable.id) == 1
        promote(
            a_store(root, accepts_doubles=True),
            "emulator",
            canary.id,
            Decision(actor="anna", reason="x"),
            MANAGER,
        )
        wait_for(lambda: running(server)["state"] == "canary names what stable serves", "nothing to compare")
        assert sample("hailo_shadow_running") == 0


def child_of(server: RuntimeServer) -> int:
    (worker,) = server.children()
    listed = Path(f"/proc/{worker}/task")
    found = [
        int(pid)
        for task in listed.iterdir()
        for pid in (task / "children").read_text().split()
        if "shadow_child" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    return found[0] if found else 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=lambda end: end.name)
def test_a_canary_that_dies_or_hangs_touches_nobody(
    pair: tuple[Path, Release, Release], end: signal.Signals
) -> None:
    root, stable, canary = pair
    with running_server(root, RELEASE_STORE=str(root), CANARY_MODE="shadow") as server:
        (worker,) = server.children()
        wait_for(lambda: running(server)["state"] == "running", "a canary beside stable")
        os.kill(child_of(server), end)
        sample = samples_of(server)
        body = infer_body(imu_windows(1)[0])
        with httpx.Client(base_url=server.url) as client:

            def ask() -> bool:
                answer = client.post("/infer", content=body)
                assert (answer.status_code, answer.headers["x-release"]) == (200, stable.id)
                return sample("hailo_shadow_failures_total", release=canary.id) >= 1

            wait_for(ask, "a failure that is counted")
            reason = "stalled" if end == signal.SIGSTOP else "died"
            assert sample("hailo_shadow_failures_total", release=canary.id, reason=reason) == 1
            wait_for(lambda: running(server)["state"] == "running", "a new attempt")
        assert server.children() == [worker]


def test_a_corrupt_canary_is_named_and_stable_serves(pair: tuple[Path, Release, Release]) -> None:
    root, stable, canary = pair
    flip_bit(canary.directory / canary.manifest.artifact)
    with running_server(root, RELEASE_STORE=str(root), CANARY_MODE="shadow") as server:
        told = wait_for(lambda: running(server) if "reason" in running(server) else None, "a reason")
        assert (told["reason"], told["canary"]) == ("digest_mismatch", canary.id)
        sample = samples_of(server)
        assert sample("hailo_shadow_failures_total", release=canary.id, reason="digest_mismatch") >= 1
        assert httpx.get(f"{server.url}/healthz").json()["release"] == stable.id


def test_shadow_needs_stable() -> None:
    for wrong in ({"RELEASE_CHANNEL": "canary"}, {"HEF_PATH": "/somewhere"}):
        with pytest.raises(ConfigError, match="needs RELEASE_CHANNEL=stable"):
            RuntimeConfig.from_environment({"CANARY_MODE": "shadow", **wrong})


def test_only_what_is_noise_is_a_probe() -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, (100, 9)).astype(np.float32)
    assert is_probe(noise)
    assert not any(is_probe(window) for window in imu_windows(50))
    noise[50, 2] = 9.81
    assert not is_probe(noise)


class Stub:
    """A child that answers what a test says."""

    def __init__(self, reply: Reply | ShadowError) -> None:
        self.reply = reply
        self.frames: list[bytes] = []
        self.ended = 0

    def ready(self, seconds: float) -> None:
        pass

    def ask(self, frame: bytes, seconds: float) -> Reply:
        self.frames.append(frame)
        if isinstance(self.reply, ShadowError):
            raise self.reply
        return self.reply

    def end(self) -> None:
        self.ended += 1


class Bench:
    """A shadow whose thread is the test's, on a clock of its own."""

    def __init__(self, root: Path, reply: Reply | ShadowError) -> None:
        self.now = 100.0
        self.child = Stub(reply)
        self.started = 0
        self.crowded = False
        self.counted = ShadowCollector()
        config = RuntimeConfig(release_store=root, trust_root=key_folder() / "root.json")
        self.model: ActiveModel = load_active_model(config)
        self.holder = ModelHolder(self.model)
        self.shadow = Shadow(
            config, self.holder, self.counted, lambda: self.crowded, self.start, lambda: self.now
        )

    def start(self, canary: Path, stable: Path) -> Child:
        self.started += 1
        return self.child  # type: ignore[return-value]

    def offer(self, count: int = 1) -> None:
        for window in imu_windows(count):
            self.shadow.offer(self.model, window, np.zeros(64, np.float32))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.shadow.step()

    def count(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.counted.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@pytest.fixture(name="bench")
def a_bench(pair: tuple[Path, Release, Release]) -> Iterator[Bench]:
    bench = Bench(pair[0], Reply(outcome=COMPARED, distance=0.3, seconds=0.001, agrees=0))
    yield bench
    bench.model.close()


def test_what_does_not_fit_is_dropped_and_counted(bench: Bench) -> None:
    bench.offer()
    assert bench.count("hailo_shadow_dropped_total") == 0  # nothing runs yet
    bench.shadow.step()
    bench.offer(MOST_WAITING + 3)
    assert bench.count("hailo_shadow_dropped_total", reason="line_full") == 3
    bench.pass_time(0.5)
    bench.crowded = True
    bench.offer()
    assert bench.count("hailo_shadow_dropped_total", reason="busy") == 1


def test_no_more_windows_than_it_may_run(bench: Bench) -> None:
    bench.shadow.step()
    bench.offer(MOST_WAITING)
    before = len(bench.child.frames)
    for _ in range(10):
        bench.pass_time(0.001)
    assert len(bench.child.frames) - before <= 1


def test_disagreement_is_counted_by_both_releases(bench: Bench, pair: tuple[Path, Release, Release]) -> None:
    bench.shadow.step()
    bench.offer()
    bench.pass_time(0.1)
    by = {"release": pair[2].id, "against": pair[1].id, "source": "traffic"}
    assert bench.count("hailo_shadow_windows_total", **by) == 1
    assert bench.count("hailo_shadow_motif_disagreements_total", **by) == 1
    assert bench.count("hailo_shadow_latent_cosine_distance_bucket", le="0.2", **by) == 0
    assert bench.count("hailo_shadow_latent_cosine_distance_bucket", le="0.5", **by) == 1


@pytest.mark.parametrize(
    ("reply", "name", "labels"),
    [
        (Reply(outcome=PROBE), "hailo_shadow_probes_total", {}),
        (Reply(outcome=GOLDEN_MISSED), "hailo_shadow_golden_total", {"result": "missed"}),
    ],
)
def test_what_is_no_comparison_is_none(bench: Bench, reply: Reply, name: str, labels: dict[str, str]) -> None:
    bench.child.reply = reply
    bench.shadow.step()
    bench.pass_time(6)
    assert bench.count(name, **labels) >= 1
    assert bench.count("hailo_shadow_windows_total") == 0


def test_a_failure_ends_the_child_and_waits_longer_each_time(bench: Bench) -> None:
    bench.child.reply = ShadowError("said nothing", "stalled")
    bench.shadow.step()
    assert (bench.started, bench.child.ended) == (1, 1)
    starts = []
    for _ in range(100):
        before = bench.started
        bench.pass_time(1.0)
        starts += [bench.now] if bench.started > before else []
    gaps = np.diff([100.0, *starts])
    assert (gaps[1:] >= gaps[:-1]).all()
    assert gaps[0] >= 5
    assert bench.count("hailo_shadow_running") == 0
    told = bench.shadow.told()
    assert (told["state"], told["reason"]) == ("failed, is tried again", "stalled")


def test_a_window_that_another_release_answered_is_not_compared(
    bench: Bench, pair: tuple[Path, Release, Release]
) -> None:
    bench.shadow.step()
    bench.model.release_id = "f" * 64
    bench.offer()
    bench.pass_time(0.1)
    assert not any(frame.startswith(b"W") for frame in bench.child.frames)


def test_the_child_itself(pair: tuple[Path, Release, Release]) -> None:
    _, stable, canary = pair
    child = Child(
        [sys.executable, "-m", "runtime.shadow_child", str(canary.directory), str(stable.directory)]
    )
    try:
        child.ready(60)
        far = child.ask(window_frame(imu_windows(1)[0], -np.ones(64, np.float32)), 10)
        assert far.outcome == COMPARED
        assert far.distance > 0.1
        assert child.ask(golden_frame(2**40 + 1), 10).distance < 1e-6
    finally:
        child.end()


@pytest.mark.needs("promtool")
def test_promtool_accepts_what_is_counted() -> None:
    metrics = RuntimeMetrics("stable")
    counted, canary, stable = metrics.shadow(), "a" * 64, "b" * 64
    counted.running(canary, stable)
    for outcome in (COMPARED, PROBE, GOLDEN_MISSED):
        counted.compared(
            canary, stable, Reply(outcome=outcome, distance=0.1, agrees=0), golden=outcome > PROBE
        )
    counted.dropped(canary, "busy")
    counted.failed(canary, "died")
    metrics.replayed(canary, "repeated")
    command = [str(program("promtool")), "check", "metrics"]
    done = subprocess.run(command, input=metrics.text(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
