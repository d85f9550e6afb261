"""From publication to stable over HTTP, with real processes and a real Prometheus; and what is stopped."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from assets.canary_policy import load_canary_policy
from assets.canary_source import Prometheus
from assets.canary_verdict import carry_out, verdict_on
from runtime.contract.promotion import Decision, promote
from runtime.contract.release_directory import Release
from runtime.contract.verdict import PROMOTE, ROLL_BACK, Verdict
from runtime.contract.window import FloatArray
from tests.keys import BUILD, MANAGER, a_store
from tests.monitoring import JOB_NAME, prometheus
from tests.simulators import (
    ARTIFACT,
    GOLDEN,
    STATISTICS,
    TINY_ENCODER,
    ReleaseSimulator,
    RuntimeServer,
    flip_bit,
    imu_windows,
    infer_body,
    npz_bytes,
    reference_latents,
    running_server,
    wait_for,
)

POLICY: Final = dataclasses.replace(
    load_canary_policy()[0], least_minutes=0.05, least_windows=30, clear_share_windows=3, window_minutes=10.0
)
DIGEST: Final = "0" * 64
CRASHER: Final = """
import os, sys
with open({crashing!r}) as listed:
    if "runtime.shadow_start" in sys.orig_argv and any(n in sys.orig_argv[-2] for n in listed.read().split()):
        os.abort()
"""


class Clients:
    """Somebody who asks all the time, and knows what is right."""

    def __init__(self, server: RuntimeServer) -> None:
        windows = imu_windows(6, seed=41)
        self._expected = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
        self._bodies = [infer_body(window) for window in windows]
        self._server = server
        self.amiss: list[str] = []
        self.asked = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=20) as client:
            while not self._done.wait(0.02):
                number = self.asked % len(self._bodies)
                self.asked += 1
                try:
                    answer = client.post("/infer", content=self._bodies[number])
                except httpx.TransportError as error:
                    self.amiss.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.amiss.append(answer.text[:200])
                elif not np.allclose(answer.json()["latent"], self._expected[number], atol=0.08):
                    self.amiss.append(f"window {number} is wrong")


def judge_until(root: Path, url: str, decision: str) -> Verdict:
    """Judge as the sensor does, until it says so; carried out then."""
    store = a_store(root, accepts_doubles=True)

    def said() -> Any:
        found = verdict_on(store, "emulator", lambda: Prometheus(url, 10.0, JOB_NAME), POLICY, DIGEST)
        assert found is not None
        canary, verdict = found
        time.sleep(0.2)  # Prometheus looks once a second
        if verdict.decision != decision:
            assert verdict.decision != (PROMOTE if decision == ROLL_BACK else ROLL_BACK), verdict.rows
            return None
        carry_out(store, canary, verdict, POLICY, BUILD)
        return verdict

    found: Verdict = wait_for(said, f"a verdict: {decision}", 120)
    return found


def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load(str(TINY_ENCODER))
    change(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def turned(model: onnx.ModelProto) -> None:
    """Another encoder that is as sure of itself: its latents point elsewhere."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = "straight"
    model.graph.node.append(helper.make_node("Gather", ["straight", "order"], [output], axis=1))
    order = np.roll(np.arange(64, dtype=np.int64), 17)
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))


def burdened(model: onnx.ModelProto) -> None:
    """The same encoder, with work beside it that no optimizer can leave out."""
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = "light"
    for name, value in (
        ("column", np.array([900, 1], np.int64)),
        ("row", np.array([1, 900], np.int64)),
        ("small", np.array(1e-30, np.float32)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name))
    source = graph.input[0].name
    graph.node.extend(
        [
            helper.make_node("Reshape", [source, "column"], ["c"]),
            helper.make_node("Reshape", [source, "row"], ["r"]),
            helper.make_node("MatMul", ["c", "r"], ["outer"]),
            helper.make_node("Mul", ["outer", "small"], ["tiny"]),
            *(
                helper.make_node("MatMul", [f"p{n}" if n else "tiny", "outer"], [f"p{n + 1}"])
                for n in range(2)
            ),
            helper.make_node("ReduceMean", ["p2"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "small"], ["nothing"]),
            helper.make_node("Add", ["light", "nothing"], [output]),
        ]
    )


def golden_of(model: bytes) -> dict[str, bytes]:
    """Golden windows that the model itself repeats."""
    windows = imu_windows(4, seed=3)
    latents: FloatArray = reference_latents(model, windows, STATISTICS)
    labels = np.arange(4, dtype=np.float32)
    return {GOLDEN: npz_bytes(windows=windows, labels=labels, full_precision=latents, artifact=latents)}


def bad(kind: str, root: Path, crashing: Path) -> Release:
    """A canary that is bad in this way and passed every gate before."""
    version = f"v9-{kind}"
    if kind == "numerically wrong":
        model = changed(turned)
        simulator = ReleaseSimulator(version=version, model=model, files=golden_of(model))
    elif kind == "slow":
        simulator = ReleaseSimulator(version=version, model=changed(burdened))
    else:
        simulator = ReleaseSimulator(version=version)
    if kind == "crashing":
        crashing.write_text(simulator.identifier())
    release = simulator.publish(root, judged=False)
    if kind == "corrupt":
        flip_bit(release.directory / ARTIFACT, 5000)
    store = a_store(root, accepts_doubles=True)
    store.point("canary", release, actor="test", reason=kind, key=BUILD)
    return release


REASONS: Final = {
    "numerically wrong": "p95 of 1 - cosine",
    "slow": "p95 of the engine",
    "crashing": "failures beside stable is died ",
    "corrupt": "failures beside stable is digest_mismatch ",
}


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.needs("prometheus")
@pytest.mark.timeout(900)
def test_only_a_good_canary_becomes_stable_and_no_client_notices(tmp_path: Path) -> None:
    root, site, crashing = tmp_path / "store", tmp_path / "site", tmp_path / "crashing"
    site.mkdir()
    crashing.touch()
    (site / "sitecustomize.py").write_text(CRASHER.format(crashing=str(crashing)))
    ReleaseSimulator(version="v1").publish(root, "canary", "stable")
    store = a_store(root, accepts_doubles=True)
    settings = {"RELEASE_STORE": str(root), "CANARY_MODE": "shadow", "PYTHONPATH": str(site)}
    with (
        running_server(tmp_path, **settings) as server,
        prometheus([f"127.0.0.1:{server.port}"], tmp_path / "prometheus") as url,
        Clients(server) as clients,
    ):
        good = ReleaseSimulator(version="v2").publish(root, "canary", judged=False)
        verdict = judge_until(root, url, PROMOTE)
        assert (verdict.release, verdict.provenance) == (good.id, "emulated")
        promote(store, "emulator", good.id, Decision(actor="anna", reason="the verdict says so"), MANAGER)
        wait_for(lambda: httpx.get(f"{server.url}/healthz").json()["release"] == good.id, "the new stable")
        for kind, reason in REASONS.items():
            release = bad(kind, root, crashing)
            verdict = judge_until(root, url, ROLL_BACK)
            assert verdict.release == release.id
            assert any(each.startswith(reason) for each in verdict.reasons()), (kind, verdict.rows)
            assert store.resolve("emulator", "canary").id == good.id
            assert httpx.get(f"{server.url}/healthz").json()["release"] == good.id
        assert clients.asked > 200
    assert clients.amiss == []
    print(f"{clients.asked} requests, none lost, none wrong")
