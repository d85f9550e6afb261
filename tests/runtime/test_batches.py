"""Several windows in one request, as JSON and as float32: each is answered as it is alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import falcon.testing
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.active_model import ActiveModel, ModelHolder
from runtime.admission import MOST_IN_BATCHES
from runtime.contract.errors import PipelineError
from runtime.contract.window import FloatArray
from runtime.infer_body import MAX_BODY_BYTES, MAX_WINDOWS, WindowBatch, read_body, read_octets
from runtime.infer_endpoint import SLICE
from tests.runtime.service import Service
from tests.simulators import FakeEngine, ReleaseSimulator, imu_windows, infer_body

OCTETS = "application/octet-stream"


def batch_body(windows: FloatArray) -> bytes:
    return json.dumps({"x": windows.tolist()}).encode()


def singles(service: Service, windows: FloatArray) -> tuple[Any, Any]:
    answers = [service.post(infer_body(window)).json for window in windows]
    return [answer["latent"] for answer in answers], [answer["motif_scores"] for answer in answers]


@pytest.mark.parametrize("count", [1, 2, SLICE, SLICE + 1, 30])
def test_a_batch_in_json_is_its_windows_alone(service: Service, count: int) -> None:
    windows = imu_windows(count, seed=6)
    answer = service.post(batch_body(windows))
    assert (answer.status_code, set(answer.json)) == (200, {"latent", "motif_scores"})
    latents, scores = singles(service, windows)
    assert answer.json["latent"] == latents
    np.testing.assert_allclose(answer.json["motif_scores"], scores, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 30, MAX_WINDOWS])
def test_float32_in_and_out_is_the_same(service: Service, count: int) -> None:
    windows = imu_windows(count, seed=7)
    headers = {"Content-Type": OCTETS, "Accept": OCTETS}
    answer = service.post(windows.tobytes(), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, OCTETS)
    assert answer.headers["x-columns"] == "latent=64; motif_scores=12"
    rows = np.frombuffer(answer.content, "<f4").reshape(count, 64 + 12)
    latents, scores = singles(service, windows[:20])
    np.testing.assert_array_equal(rows[:20, :64], np.asarray(latents, np.float32))
    np.testing.assert_allclose(rows[:20, 64:], np.asarray(scores, np.float32), rtol=1e-6)


def test_a_kind_of_body_does_not_choose_the_answers(service: Service) -> None:
    window = imu_windows(1, seed=8)[0]
    known = service.post(infer_body(window)).json
    assert service.post(window.tobytes(), headers={"Content-Type": OCTETS}).json == known
    answer = service.post(infer_body(window), headers={"Accept": OCTETS})
    assert np.frombuffer(answer.content, "<f4")[:64].tolist() == known["latent"]


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("*/*", 200, "application/json"),
        ("application/*", 200, "application/json"),
        ("text/html, */*;q=0.1", 200, "application/json"),
        ("application/octet-stream;q=0.5, application/json;q=0.4", 200, OCTETS),
        ("application/json, application/octet-stream", 200, "application/json"),
        ("APPLICATION/OCTET-STREAM", 200, OCTETS),
        ("application/octet-stream;q=0, */*", 200, "application/json"),
        ("text/html", 406, "application/json"),
        ("application/json;q=0", 406, "application/json"),
        ("\xff;;;,,,q=", 406, "application/json"),
        ("x" * 5000, 200, "application/json"),
    ],
)
def test_accept_chooses(service: Service, accept: str, status: int, kind: str) -> None:
    answer = service.post(infer_body(imu_windows(1)[0]), headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"x": [[[]]]}', "x[0]: 0 values"),
        (b'{"x": [[[1]]]}', "x[0]"),
        (batch_body(imu_windows(3)).replace(b"[[[", b"[[[true,"), "x[0][0]"),
        (batch_body(imu_windows(3))[:-3], "truncated"),
        (batch_body(imu_windows(3))[:-1] + b', "x": []}', "more than once"),
        (b'{"x": [' + b"[[1]]," * (MAX_WINDOWS) + b"[[1]]]}", f"{MAX_WINDOWS + 1} windows"),
        (b'{"x": [[[1]]' + b",1" * 400_000 + b"]}", "400000 commas"),
        (b'{"x": [[[1]]' + b",[]" * 300_000 + b"]}", "300003 arrays"),
        (batch_body(imu_windows(3)).replace(b"[[[", b'[[["1",'), "x[0][0][0]: Expected `float`"),
        (batch_body(imu_windows(3)).replace(b"[[[", b'[[[{"x": 1},'), "x[0][0][0]: Expected `float`"),
        (b'{"x": [[[' + b"1" * 140_000 + b"]]]}", "one window has at most"),
        (b'{"x": [[[' + b"1," * 2000 + b"1]]]}", "2000 commas"),
        (b'{"y": [[[1]]]}', "`y`"),
        (b'{"x": [[[NaN]]]}', "byte 9"),
    ],
)
def test_a_wrong_batch_names_its_place(service: Service, body: bytes, message: str) -> None:
    answer = service.post(body)
    assert answer.status_code == 400
    if message == "x[0]: 0 values":
        message = "x[0]: 1 rows"
    assert message in answer.json["message"]


def test_one_wrong_window_of_many_is_named(service: Service) -> None:
    windows = imu_windows(20).tolist()
    windows[13][7][2] = 1e39
    answer = service.post(json.dumps({"x": windows}).encode())
    assert (answer.status_code, answer.json["error"]) == (400, "window_value")
    assert "x[13][7][2]" in answer.json["message"]


def test_a_value_that_only_the_statistics_make_too_large_is_named(service: Service) -> None:
    windows = imu_windows(20)
    windows[13, 7, 4] = 3e38
    answer = service.post(windows.tobytes(), headers={"Content-Type": OCTETS})
    assert answer.status_code == 400
    assert "x[13][7][4]" in answer.json["message"]


@pytest.mark.parametrize("size", [0, 1, 3599, 3601, 7199])
def test_no_whole_number_of_windows_is_refused(service: Service, size: int) -> None:
    answer = service.post(b"\0" * size, headers={"Content-Type": OCTETS})
    assert (answer.status_code, answer.json["error"]) == (400, "invalid_body")
    assert f"{size} bytes" in answer.json["message"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(service: Service, value: float) -> None:
    windows = imu_windows(3)
    windows[2, 99, 8] = value
    answer = service.post(windows.tobytes(), headers={"Content-Type": OCTETS})
    assert answer.status_code == 400
    assert "x[2][99][8]" in answer.json["message"]


GOOD_BATCH = batch_body(imu_windows(2))


@given(st.lists(st.tuples(st.integers(0, len(GOOD_BATCH) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_to_a_batch_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    body = bytearray(GOOD_BATCH)
    for position, value in changes:
        body[position] = value
    try:
        found = read_body(bytes(body))
        windows = found.windows(0, len(found)) if isinstance(found, WindowBatch) else found
    except PipelineError:
        return
    assert np.isfinite(windows).all()


@given(st.binary(max_size=300).map(lambda tail: b'{"x":[[[' + tail) | st.binary(max_size=7300))
def test_any_bytes_are_windows_or_one_of_our_errors(body: bytes) -> None:
    for read in (read_body, read_octets):
        try:
            found = read(body)
            if isinstance(found, WindowBatch):
                found = found.windows(0, len(found))
        except PipelineError:
            continue
        assert np.isfinite(found).all()


def test_what_is_read_without_a_pause_is_bounded_by_bytes_too() -> None:
    long = b"1.5" + b"0" * 130
    window = b"[" + b",".join([b"[" + b",".join([long] * 9) + b"]"] * 100) + b"]"
    batch = read_body(b'{"x": [' + b",".join([window] * 7) + b"]}")
    assert isinstance(batch, WindowBatch)
    assert len(window) > 100_000
    assert [batch.slice_end(start, SLICE) for start in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    usual = read_body(batch_body(imu_windows(20)))
    assert isinstance(usual, WindowBatch)
    assert (usual.slice_end(0, SLICE), usual.slice_end(16, SLICE)) == (SLICE, 20)
    assert batch.windows(2, 3)[0, 0, 0] == 1.5


def test_the_largest_body_is_answered(service: Service) -> None:
    windows = np.zeros((MAX_WINDOWS, 100, 9), np.int64)
    windows[:, ::2] = 1
    body = json.dumps({"x": windows.tolist()}, separators=(",", ":")).encode()
    assert len(body) <= MAX_BODY_BYTES
    answer = service.post(body)
    assert answer.status_code == 200
    assert len(answer.json["latent"]) == MAX_WINDOWS


def asked(service: Service, requests: list[tuple[bytes, str]]) -> list[tuple[int, int, int]]:
    """All at once: for each its number, its status, and its place among the answers."""
    order: list[tuple[int, int]] = []

    async def one(number: int, body: bytes, kind: str) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                order.append((number, event["status"]))

        scope = falcon.testing.create_scope(path="/infer", method="POST", headers={"Content-Type": kind})
        await service.app(scope, receive, send)

    async def together() -> None:
        await asyncio.gather(*(one(number, *request) for number, request in enumerate(requests)))

    asyncio.run(together())
    return [(number, status, place) for place, (number, status) in enumerate(order)]


def test_small_requests_do_not_wait_for_a_large_batch(service: Service) -> None:
    """Asked after it, all are answered before it, though it began first."""
    batch = imu_windows(5 * SLICE).tobytes(), OCTETS
    small = infer_body(imu_windows(1)[0]), "application/json"
    answers = {number: place for number, _, place in asked(Service(service.holder), [batch, *[small] * 4])}
    assert answers[0] == 4


def test_batches_wait_for_each_other_and_not_too_many(service: Service) -> None:
    batch = imu_windows(MAX_WINDOWS).tobytes(), OCTETS
    answers = asked(Service(service.holder), [batch] * 6)
    statuses = {number: status for number, status, _ in answers}
    most = MOST_IN_BATCHES // MAX_WINDOWS
    assert [statuses[number] for number in range(6)] == [200] * most + [503] * (6 - most)
    served = [number for number, status, _ in answers if status == 200]
    assert served == sorted(served)


def with_engine(service: Service, answer: Callable[[FloatArray], FloatArray], tmp: Any) -> Service:
    release = ReleaseSimulator().publish(tmp)
    return Service(ModelHolder(ActiveModel(release, FakeEngine(release.manifest, answer))))


def test_a_batch_ends_on_the_model_that_it_began_with(service: Service, tmp_path: Any) -> None:
    first = with_engine(service, lambda _: np.zeros(64, np.float32), tmp_path)
    other = with_engine(service, lambda _: np.ones(64, np.float32), tmp_path / "other").holder.model
    assert first.holder.model is not None
    begun = first.holder.model
    seen: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": imu_windows(3 * SLICE).tobytes(), "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.body":
            seen.extend(json.loads(event["body"])["latent"][-1])

    async def story() -> None:
        scope = falcon.testing.create_scope(path="/infer", method="POST", headers={"Content-Type": OCTETS})
        asking = asyncio.create_task(first.app(scope, receive, send))
        await asyncio.sleep(0)
        assert begun.in_use == 1
        assert other is not None
        first.holder.replace(other)
        await asking

    asyncio.run(story())
    assert seen == [0] * 64
    assert begun.in_use == 0
