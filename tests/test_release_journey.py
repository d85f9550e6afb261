"""``make run`` as a person sees it: real processes, real HTTP, and nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from assets.calibration import parse_sets, read_files
from assets.metrics import context_metrics
from assets.onnx_model import source_latents
from assets.weights import parse_model
from assets.weights import read_files as read_weights
from runtime.contract.window import normalize
from tests.chain import CALIB_DATA, ROOT, SAMPLE_VERSION
from tests.keys import a_store
from tests.running import Running, end, free_ports, start

pytestmark = [pytest.mark.build, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # With a space, which must not break what is printed.
    platform = start(tmp_path_factory.mktemp("plat form"))
    yield platform
    end(platform)


def ask(running: Running, window: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/infer", json={"x": np.asarray(window).tolist()})


def test_it_prints_what_a_person_needs(running: Running) -> None:
    for words in ("canary_release", "mean_cosine", running.url, running.ui_url, running.canary().id):
        assert words in running.printed


@pytest.mark.needs("curl")
def test_the_printed_curl_line_works(running: Running) -> None:
    (line,) = [line for line in running.printed.splitlines() if line.startswith("try")]
    answer = subprocess.run(
        shlex.split(line.removeprefix("try")), capture_output=True, text=True, check=True, cwd=ROOT
    )
    document = json.loads(answer.stdout)
    assert (len(document["latent"]), len(document["motif_scores"])) == (64, 12)


def test_nothing_is_written_beside_the_store(running: Running) -> None:
    places = sorted(path.name for path in running.store.root.parent.iterdir())
    assert places == ["build", "dagster_home", "releases"]
    assert (running.store.root.parent / "dagster_home" / "window.json").is_file()


def test_health_and_headers_name_the_release(running: Running) -> None:
    release = running.canary()
    health = httpx.get(f"{running.url}/healthz")
    assert health.status_code == 200
    document = health.json()
    assert document["ok"] is True
    assert document["model"] == release.manifest.artifact
    assert (document["release"], document["target"]) == (release.id, "emulator")
    answer = ask(running, np.zeros((100, 9)))
    assert answer.headers["x-release"] == release.id
    assert answer.headers["x-numbers"] == "emulated"


def test_answers_are_pytorchs_within_the_parity_reports_figures(running: Running) -> None:
    """All 480 evaluation windows over HTTP, against the checkpoint in PyTorch."""
    trained = parse_model(read_weights(SAMPLE_VERSION))
    evaluation = parse_sets(read_files(CALIB_DATA)).evaluation
    with httpx.Client() as client:
        answers = [
            client.post(f"{running.url}/infer", json={"x": window.tolist()}).json()
            for window in evaluation.windows
        ]
    served = np.asarray([answer["latent"] for answer in answers], np.float32)
    assert len(np.unique(served, axis=0)) == len(served)
    reference = source_latents(trained, normalize(evaluation.windows, trained.statistics))
    manifest = running.canary().manifest
    found = context_metrics(reference, served)
    assert found["sqnr_db"] == pytest.approx(manifest.parity.metrics["sqnr_db"], abs=0.01)
    assert found["mean_cosine"] == pytest.approx(manifest.parity.metrics["mean_cosine"], abs=1e-5)
    scores = np.asarray([answer["motif_scores"] for answer in answers])
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-6)
    names = np.asarray(manifest.motif_head.names)[scores.argmax(axis=1)]
    assert np.mean(names == np.asarray(evaluation.labels)) >= 0.95


def test_dagsters_ui_knows_the_run(running: Running) -> None:
    events = "assetMaterializations(limit: 1) { runId } assetObservations(limit: 1) { runId }"
    query = f"{{ assetNodes {{ assetKey {{ path }} {events} }} }}"
    answer = httpx.post(f"{running.ui_url}/graphql", json={"query": query}, timeout=30).json()
    nodes = answer["data"]["assetNodes"]
    named = {"/".join(node["assetKey"]["path"]): node for node in nodes}
    assert named.pop("model_weights")["assetObservations"]
    assert "emulator/canary_release" in named
    assert not named.pop("emulator/stable_release")["assetMaterializations"]
    for later in ("emulator/canary_verdict", "emulator/release_channels", "telemetry_candidates"):
        named.pop(later)  # by a sensor, which may have looked by now, or by a person
    assert all(node["assetMaterializations"] for node in named.values())


def test_a_flipped_bit_is_named_and_never_served(running: Running, tmp_path: Path) -> None:
    """``releasectl verify`` on a damaged copy, and a runtime started on it."""
    import shutil

    copy = tmp_path / "releases"
    shutil.copytree(running.store.root, copy)
    release = a_store(copy).resolve("emulator", "canary")
    path = release.directory / release.manifest.artifact
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    scripts = Path(sys.executable).parent
    verify = subprocess.run(
        [scripts / "releasectl", "verify", "--store", str(copy)], capture_output=True, text=True, check=False
    )
    assert verify.returncode == 1
    assert release.manifest.artifact in verify.stdout + verify.stderr
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [scripts / "gunicorn", "-c", "runtime/gunicorn.conf.py", "runtime.asgi:app"],
        cwd=ROOT,
        env={**os.environ, "RELEASE_STORE": str(copy), "RELEASE_CHANNEL": "canary", "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    transport = httpx.HTTPTransport(retries=8)  # until it listens
    try:
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            health = client.get("/healthz")
            answer = client.post("/infer", json={"x": np.zeros((100, 9)).tolist()})
        assert (health.status_code, health.json()["ok"]) == (503, False)
        assert health.json()["reason"] == "digest_mismatch"
        assert (answer.status_code, answer.json()["error"]) == (503, "model_unavailable")
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_started_in_the_background_it_ends_as_well(tmp_path: Path) -> None:
    """A shell's `&` makes children ignore SIGINT, and Dagster then SIGTERM too."""
    end(start(tmp_path, ignore_sigint=True))


@pytest.mark.parametrize("variable", ["PORT", "UI_PORT"])
def test_a_busy_port_is_one_clear_line(variable: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        ports = dict(zip(("PORT", "UI_PORT"), map(str, free_ports(2)), strict=True))
        run = subprocess.run(
            [sys.executable, "-m", "orchestration.local", "run"],
            cwd=ROOT,
            env={**os.environ, **ports, variable: port},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 1
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert port in run.stderr
    assert variable in run.stderr
