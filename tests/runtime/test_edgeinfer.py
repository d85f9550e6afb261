"""EdgeInfer's simulator against the real server: nothing that it does gets its users random numbers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from runtime.contract.motifs import MotifScorer
from tests.edgeinfer import POOL_IDLE_SECONDS, EdgeInferClient, run_for
from tests.simulators import (
    STATISTICS,
    TINY_ENCODER,
    RuntimeServer,
    imu_windows,
    motif_head,
    reference_latents,
)

PATIENT = 10.0  # What is answered is tested here; when is measured by ``make bench``.


@pytest.fixture(name="client", params=["/infer", "", "/", "/infer/"])
def a_client(request: pytest.FixtureRequest, server: RuntimeServer) -> Iterator[EdgeInferClient]:
    """With either habit of setting MODEL_BACKEND_URL."""
    client = EdgeInferClient(f"{server.url}{request.param}", server.url, PATIENT)
    yield client
    client.close()


def test_a_minute_of_its_traffic_on_a_faster_clock(client: EdgeInferClient) -> None:
    windows = imu_windows(40, seed=21)
    latents = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
    scores = MotifScorer(motif_head()).scores(latents)
    answers = run_for(60, client, windows, lambda _: None)
    assert client.stubbed == []
    for number, answer in answers:
        np.testing.assert_allclose(answer["latent"], latents[number], atol=0.08)
        np.testing.assert_allclose(answer["motif_scores"], scores[number], atol=0.08)
    late = sum(latency > 0.045 for latency in client.latencies)
    print(f"{len(client.latencies)} answers, {late} later than 45 ms, largest {max(client.latencies):.4f} s")


def test_integers_are_numbers(client: EdgeInferClient) -> None:
    window = (np.arange(900.0).reshape(100, 9) % 19).astype(int).tolist()
    client.infer(window)
    assert client.stubbed == []


def test_a_window_of_another_length_is_400(client: EdgeInferClient) -> None:
    """Never guessed at: the address is tried with every length that ``synchrony`` sends."""
    statuses = {rows: client.synchrony(rows) for rows in range(1, 102)}
    assert statuses == {rows: 200 if rows == 100 else 400 for rows in range(1, 102)}


def test_what_it_would_stub_is_counted(server: RuntimeServer) -> None:
    """The simulator itself: it must not call an error an answer."""
    client = EdgeInferClient(f"{server.url}/nothing", server.url, PATIENT)
    assert len(client.infer([[0.0] * 9] * 100)["latent"]) == 64
    assert client.stubbed == ["status 404"]
    assert not client.probe()
    client.close()
    gone = EdgeInferClient("http://127.0.0.1:1/infer", "http://127.0.0.1:1", 0.2)
    gone.infer([[0.0] * 9] * 100)
    assert gone.stubbed == ["ConnectError"]
    gone.close()


def test_its_scripts_find_everything(server: RuntimeServer) -> None:
    for path in ("/", "/status", "/docs", "/openapi.json"):
        assert httpx.get(f"{server.url}{path}").status_code == 200, path
    assert httpx.post(f"{server.url}/test").status_code == 200
    assert httpx.get(f"{server.url}/healthz").json()["ok"] is True
    assert "hailo_build_info" in httpx.get(f"{server.url}/metrics").text


def test_several_of_it_at_once_each_hear_their_own_answer(server: RuntimeServer) -> None:
    windows = imu_windows(8, seed=22)
    latents = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)

    def talk(number: int) -> list[str]:
        client = EdgeInferClient(f"{server.url}/infer", server.url, PATIENT)
        for _ in range(40):
            answer = client.infer(windows[number].tolist())
            np.testing.assert_allclose(answer["latent"], latents[number], atol=0.08)
        client.close()
        return client.stubbed

    with ThreadPoolExecutor(len(windows)) as pool:
        assert list(pool.map(talk, range(len(windows)))) == [[]] * len(windows)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_pooled_connection_is_good_for_as_long_as_it_keeps_it(
    server: RuntimeServer, client: EdgeInferClient
) -> None:
    window = imu_windows(1)[0].tolist()
    for idle in (5.0, POOL_IDLE_SECONDS - 0.5):
        client.infer(window)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as pooled:
            pooled.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += pooled.recv(65536)
            time.sleep(idle)  # the passing of time is what is tested
            # A client that finds the connection closed opens another and says nothing: look at the socket.
            pooled.setblocking(False)
            with pytest.raises(BlockingIOError):
                pooled.recv(1)
        client.infer(window)
    assert client.stubbed == []
