"""The canary beside stable: compared on the same windows, and never in a client's way."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runtime.active_model import ActiveModel, ModelHolder, load_active_model
from runtime.config import RuntimeConfig
from runtime.contract.errors import ConfigError, EngineError, PipelineError, WindowValueError
from runtime.contract.promotion import Decision, promote
from runtime.contract.release_directory import Release
from runtime.contract.window import FloatArray, Window
from runtime.engines import Engine
from runtime.metrics import RuntimeMetrics
from runtime.plausibility import is_probe
from runtime.shadow import GOLDEN_SECONDS, MOST_WAITING, Shadow
from runtime.shadow_child import (
    COMPARED,
    FAILED,
    GOLDEN_MISSED,
    PROBE,
    UNFIT,
    Comparison,
    Reply,
    golden_frame,
    window_frame,
)
from runtime.shadow_metrics import ShadowCollector
from runtime.shadow_process import Child, Look, ShadowError, start_child
from runtime.shadow_start import LOAD_ALARM_SECONDS
from tests.keys import MANAGER, a_store, key_folder
from tests.requirements import program
from tests.simulators import (
    ROOT,
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
        if "shadow_start" in Path(f"/proc/{pid}/cmdline").read_text()
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
    assert not is_probe(np.zeros((100, 9), np.float32))  # a dead sensor is no health check
    assert not is_probe(np.full((100, 9), np.nan, np.float32))


class Stub:
    """A child that answers what a test says."""

    def __init__(self, reply: Reply | ShadowError) -> None:
        self.reply = reply
        self.frames: list[bytes] = []
        self.ended = 0
        self.has_ended = True

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

    def asked(self, kind: bytes) -> int:
        return sum(frame.startswith(kind) for frame in self.child.frames)

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
    for source in ("traffic", "golden"):
        timed = {"release": pair[2].id, "source": source}
        assert bench.count("hailo_shadow_engine_duration_seconds_count", **timed) == 1


@pytest.mark.parametrize("outcome", [COMPARED, PROBE])
def test_traffic_and_probes_put_no_golden_window_off(bench: Bench, outcome: int) -> None:
    bench.child.reply = Reply(outcome=outcome)
    bench.shadow.step()
    before = bench.asked(b"G")
    for _ in range(240):
        bench.offer()
        bench.pass_time(0.25)
    assert bench.asked(b"G") - before == pytest.approx(60 / GOLDEN_SECONDS, abs=1)
    assert bench.asked(b"W") >= 200


def test_with_canaries_of_two_targets_it_is_the_one_of_stables(
    bench: Bench, pair: tuple[Path, Release, Release]
) -> None:
    ReleaseSimulator(target="hailo8").publish(pair[0], "canary")
    bench.shadow.step()
    assert (bench.shadow.told()["state"], bench.shadow.told()["canary"]) == ("running", pair[2].id)


def test_no_second_process_beside_one_that_does_not_end(bench: Bench) -> None:
    bench.child.reply, bench.child.has_ended = ShadowError("said nothing", "stalled"), False
    bench.shadow.step()
    bench.pass_time(1000)
    assert bench.started == 1
    assert bench.shadow.told()["state"] == "the canary's process was killed and has not ended yet"
    bench.child.has_ended = True
    bench.pass_time(1)
    assert bench.started == 2


@pytest.mark.parametrize(
    ("reply", "name", "labels"),
    [
        (Reply(outcome=PROBE), "hailo_shadow_probes_total", {}),
        (Reply(outcome=GOLDEN_MISSED), "hailo_shadow_golden_total", {"result": "missed"}),
        (Reply(outcome=UNFIT), "hailo_shadow_dropped_total", {"reason": "not_normalized"}),
    ],
)
def test_what_is_no_comparison_is_none(bench: Bench, reply: Reply, name: str, labels: dict[str, str]) -> None:
    bench.child.reply = reply
    bench.shadow.step()
    bench.pass_time(6)
    assert bench.count(name, **labels) >= 1
    for none in ("windows", "failures"):
        assert bench.count(f"hailo_shadow_{none}_total") == 0


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
    child = start_child(canary.directory, stable.directory)
    try:
        child.ready(60)
        far = child.ask(window_frame(imu_windows(1)[0], -np.ones(64, np.float32)), 10)
        assert far.outcome == COMPARED
        assert far.distance > 0.1
        assert child.ask(golden_frame(2**40 + 1), 10).distance < 1e-6
    finally:
        child.end()


class Answers(Engine):
    """An engine of a test's, without the checks of the base class."""

    kernel_family = program = "a test"

    def __init__(self, answer: FloatArray | PipelineError) -> None:
        self.answer = answer

    def infer(self, window: Window) -> FloatArray:
        if isinstance(self.answer, PipelineError):
            raise self.answer
        return self.answer

    def _infer(self, tensor: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "traffic", "golden"),
    [
        (WindowValueError("is too large"), UNFIT, FAILED),
        (EngineError("failed"), FAILED, FAILED),
        (np.full(64, np.nan, np.float32), FAILED, GOLDEN_MISSED),
        (np.full(64, np.inf, np.float32), FAILED, GOLDEN_MISSED),
    ],
    ids=["not normalized", "engine", "NaN", "infinite"],
)
def test_what_is_a_failure_and_what_is_none(
    pair: tuple[Path, Release, Release], answer: FloatArray | PipelineError, traffic: int, golden: int
) -> None:
    comparison = Comparison(Answers(answer), pair[2], pair[1])
    assert comparison.window(imu_windows(1)[0], np.ones(64, np.float32)).outcome == traffic
    assert comparison.golden(0).outcome == golden


def test_damage_to_stables_files_is_not_the_canarys(pair: tuple[Path, Release, Release]) -> None:
    _, stable, canary = pair

    def reason() -> str:
        child = start_child(canary.directory, stable.directory)
        try:
            with pytest.raises(ShadowError) as raised:
                child.ready(60)
            return raised.value.code
        finally:
            child.end()

    flip_bit(stable.directory / stable.manifest.artifact)
    assert reason() == "stable_unreadable"
    (stable.directory / "manifest.json").unlink()
    assert reason() == "stable_unreadable"
    flip_bit(canary.directory / canary.manifest.artifact)
    assert reason() == "digest_mismatch"


def scripted(code: str) -> Child:
    """A child that is this Python, as it begins where the canary's does."""
    return Child([sys.executable, "-c", f"import os, signal, sys, time\n{code}"])


@pytest.mark.parametrize(
    ("state", "worked", "code"),
    [
        ("S", 0.0, "stalled"),
        ("D", 0.0, "stalled"),
        ("T", 0.0, "stalled"),
        ("R", 3.0, "stalled"),
        ("R", 0.1, "starved"),
    ],
)
def test_a_silent_child_hung_or_had_no_core(
    monkeypatch: pytest.MonkeyPatch, state: str, worked: float, code: str
) -> None:
    looks = iter([Look(cpu=7.0, state="R", at=100.0), Look(cpu=7.0 + worked, state=state, at=104.0)])
    monkeypatch.setattr(Child, "look", lambda _: next(looks))
    child = scripted("sys.stdin.read()")
    try:
        with pytest.raises(ShadowError) as raised:
            child.ask(b"G", 0.05)
        assert raised.value.code == code
    finally:
        child.end()


def test_the_system_tells_a_busy_child_from_a_sleeping_one() -> None:
    busy, asleep = scripted("while True: pass"), scripted("sys.stdin.read()")
    try:

        def worked() -> bool:
            look = busy.look()
            return look is not None and look.cpu > 0.1 and look.state == "R"

        def sleeps() -> bool:
            look = asleep.look()
            return look is not None and look.state == "S"

        wait_for(worked, "a busy child")
        wait_for(sleeps, "a child that waits")
    finally:
        busy.end()
        asleep.end()
    assert busy.look() is None


def test_an_answer_that_is_there_counts_however_late_it_is_looked_for() -> None:
    child = scripted("os.write(1, bytes(18)); sys.stdin.read()")
    try:
        wait_for(lambda: child.has_said_something(0.0), "an answer")
        assert child.ask(b"G", -1.0).outcome == COMPARED
    finally:
        child.end()


def test_it_is_asked_beside_a_thousand_connections(pair: tuple[Path, Release, Release]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        for _ in range(1100):
            held.enter_context(Path(os.devnull).open())
        child = scripted("os.write(1, bytes(18)); sys.stdin.read()")
        held.callback(child.end)
        assert child.ask(b"G", 20).outcome == COMPARED


def status_of(pid: int, name: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"{name}:")[2].partition("\n")[0].strip()


def test_it_is_out_of_the_way_before_it_loads_anything(pair: tuple[Path, Release, Release]) -> None:
    _, stable, canary = pair
    child = start_child(canary.directory, stable.directory)
    try:
        child.ready(60)
        child.ask(golden_frame(0), 20)
        tasks = [int(each.name) for each in Path(f"/proc/{child.pid}/task").iterdir()]
        for task in tasks:
            assert os.sched_getscheduler(task) == os.SCHED_IDLE
            assert os.getpriority(os.PRIO_PROCESS, task) == 19
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
        environment = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
        assert {b"OMP_NUM_THREADS=1", b"OPENBLAS_NUM_THREADS=1"} <= set(environment)
    finally:
        child.end()


def output_of(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_nothing_heavy_is_imported_before_it_is_settled() -> None:
    code = "import runtime.shadow_start as s, sys; s.settle(); print(sorted(sys.modules))"
    told = output_of(code)
    assert not any(name in told for name in ("numpy", "onnxruntime", "runtime.contract"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda sent: sent.name)
def test_what_is_sent_to_all_processes_of_a_service_is_not_its_death(
    pair: tuple[Path, Release, Release], sent: signal.Signals
) -> None:
    _, stable, canary = pair
    child = start_child(canary.directory, stable.directory)
    try:
        os.kill(child.pid, sent)  # while it begins
        child.ready(60)
        os.kill(child.pid, sent)
        assert child.ask(golden_frame(0), 20).outcome == COMPARED
    finally:
        child.end()


PARENT = """
import signal, sys, time
from runtime import shadow_process
child = shadow_process.Child([sys.executable, "-c", {code!r}])
print(child.pid, flush=True)
child.ready(60)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("hangs", ["while True: pass", "import time; time.sleep(600)"])
def test_it_ends_with_its_parent_though_it_hangs(hangs: str) -> None:
    code = f"import runtime.shadow_start as s; s.settle(); print('{{\"ready\": 1}}', flush=True); {hangs}"
    if hangs.startswith("while"):
        code = code.replace("; while", "\nwhile")
    command = [sys.executable, "-c", PARENT.format(code=code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        parent.kill()

    def is_gone() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return status_of(pid, "State").startswith("Z")
        return True

    wait_for(is_gone, "the end of the child")


def test_without_a_parent_it_does_not_begin() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    code = "import runtime.shadow_start as s; s.settle(); print('went on')"
    with os.fdopen(reading) as orphaned:
        done = subprocess.run([sys.executable, "-c", code], stdin=orphaned, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_loading_has_an_end_of_its_own() -> None:
    code = "import runtime.shadow_start as s, signal; s.settle(); print(signal.alarm(0))"
    assert int(output_of(code)) == pytest.approx(LOAD_ALARM_SECONDS, abs=5)


def test_ending_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a disk that does not answer cannot be killed."""
    child = scripted("time.sleep(600)")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "kill", lambda _: None)
        patched.setattr("runtime.shadow_process.STOP_SECONDS", 0.01)
        child.end()
        assert not child.has_ended
    child.kill()
    wait_for(lambda: child.has_ended, "its end")


@pytest.mark.needs("promtool")
def test_promtool_accepts_what_is_counted() -> None:
    metrics = RuntimeMetrics("stable")
    counted, canary, stable = metrics.shadow(), "a" * 64, "b" * 64
    counted.running(canary, stable)
    for outcome, golden in ((COMPARED, False), (PROBE, False), (UNFIT, False), (GOLDEN_MISSED, True)):
        counted.compared(canary, stable, Reply(outcome=outcome, distance=0.1, agrees=0), golden=golden)
    counted.dropped(canary, "busy")
    counted.failed(canary, "died")
    metrics.replayed(canary, "repeated")
    metrics.windows_done(3, 0.001, canary, probes=1)
    command = [str(program("promtool")), "check", "metrics"]
    done = subprocess.run(command, input=generate_latest(metrics.registry), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
