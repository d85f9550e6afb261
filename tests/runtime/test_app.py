"""The HTTP surface through falcon's simulator: every answer's status, shape and headers."""

from __future__ import annotations

import logging
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import EngineError
from runtime.contract.window import FloatArray
from runtime.engine_failures import MOST_IN_A_ROW
from runtime.engines.emulator import EmulatorEngine
from runtime.infer_endpoint import ROUTES
from runtime.metrics_page import CONTENT_TYPE
from tests.runtime.service import NO_RELEASE, Service, logged
from tests.runtime.test_infer_body import GOOD, WRONG, with_value
from tests.simulators import FakeEngine, ReleaseSimulator, imu_windows, infer_body


def test_a_window_gives_latent_and_scores(service: Service) -> None:
    model = service.holder.model
    assert model is not None
    window = imu_windows(1, seed=8)[0]
    result = service.post(infer_body(window))
    assert result.status_code == 200
    assert set(result.json) == {"latent", "motif_scores"}
    latent, scores = model.infer(window)
    np.testing.assert_array_equal(np.array(result.json["latent"], np.float32), latent)
    np.testing.assert_array_equal(result.json["motif_scores"], scores)
    headers = result.headers
    assert headers["x-release"] == model.release_id
    assert (headers["x-target"], headers["x-numbers"]) == ("emulator", "emulated")
    assert headers["x-calibration-origin"] == "synthetic"
    assert headers["x-motif-head"] == "checkpoint"
    assert headers["content-type"] == "application/json"


def test_two_windows_give_two_latents(service: Service) -> None:
    first, second = (service.post(infer_body(window)).json for window in imu_windows(2, seed=9))
    assert first["latent"] != second["latent"]


@pytest.mark.parametrize(("body", "code", "message"), WRONG)
def test_a_wrong_body_is_400(service: Service, body: bytes, code: str, message: str) -> None:
    if body.startswith(b'{"x":[[['):
        message = "100000 arrays"  # far more than several windows have
    result = service.post(body)
    assert result.status_code == 400
    assert result.json["error"] == code
    assert message in result.json["message"] + result.json.get("hint", "")
    assert "100 rows" in result.json["schema"]
    assert "x-request-id" in result.headers


def test_a_value_too_large_to_normalize_is_400(tmp_path: Path, service: Service) -> None:
    result = service.post(with_value("3.4e38"))
    assert result.status_code == 400
    assert result.json["error"] == "window_value"
    assert "x[3][4]" in result.json["message"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300) | st.just(GOOD),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"]),
    path=st.sampled_from(
        ["/infer", "/healthz", "/metrics", "/", "/infer/", "//infer", "//", "/infer/infer", "/../etc"]
    ),
    content_type=st.none() | st.sampled_from(["application/json", "text/plain", "", "application/", ";"]),
)
def test_no_request_gives_a_5xx(
    service: Service, body: bytes, method: str, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    result = service.client.simulate_request(method, path, body=body, headers=headers)
    assert result.status_code in (200, 400, 404, 405, 415)
    if result.status_code >= 400 and method != "HEAD":
        assert set(result.json) >= {"error", "message"}
        assert ("schema" in result.json) is (result.status_code == 400)
        assert "hint" in result.json or result.status_code == 400


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("//infer", "/infer"),
        ("/infer/", "/infer"),
        ("///infer//", "/infer"),
        ("//", "/"),
        ("///", "/"),
        ("//infer//infer/", "/infer/infer"),
    ],
)
def test_slashes_too_many_are_the_same_route(service: Service, path: str, route: str) -> None:
    """EdgeInfer appends ``/infer`` to an address that may end with a slash."""
    counted = {"route": route, "status": "200"}
    before = service.sample("hailo_runtime_requests_total", **counted) or 0
    with logged("ERROR") as lines:
        result = service.client.simulate_post(path, body=GOOD)
    assert (result.status_code, len(result.json["latent"])) == (200, 64)
    assert service.sample("hailo_runtime_requests_total", **counted) == before + 1
    assert lines == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "//healthz", 200),
        ("GET", "/metrics/", 200),
        ("GET", "//infer", 405),
        ("POST", "/infer//x", 404),
        ("POST", "/infer/infer/infer", 404),
        ("POST", "/x/", 404),
    ],
)
def test_slashes_too_many_make_no_other_answer(service: Service, method: str, path: str, status: int) -> None:
    assert service.client.simulate_request(method, path, body=GOOD).status_code == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonx", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_the_content_type_is_json_or_absent(service: Service, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    result = service.client.simulate_post("/infer", body=GOOD, headers=headers)
    assert result.status_code == status
    if status == 415:
        assert result.json["error"] == "unsupported_media_type"
        assert content_type in result.json["message"]


@pytest.mark.parametrize(
    ("encoding", "status"), [("identity", 200), ("Identity", 200), ("gzip", 415), ("br, gzip", 415)]
)
def test_an_encoded_body_is_refused_by_name(service: Service, encoding: str, status: int) -> None:
    result = service.post(GOOD, headers={"Content-Encoding": encoding})
    assert result.status_code == status
    if status == 415:
        assert f"content encoding '{encoding}'" in result.json["message"]
        assert result.json["hint"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/infer", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/nothing", 404, "not_found"),
    ],
)
def test_wrong_paths_and_methods_have_the_same_shape(
    service: Service, method: str, path: str, status: int, code: str
) -> None:
    result = service.client.simulate_request(method, path)
    assert result.status_code == status
    assert result.json["error"] == code
    assert path in result.json["message"]
    if status == 405:
        assert result.headers["allow"] in result.json["hint"]
    else:
        assert "POST /infer" in result.json["hint"]


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_head_is_get_without_the_body(service: Service, without_model: Service, path: str) -> None:
    for each in (service, without_model):
        got, head = each.client.simulate_get(path), each.client.simulate_head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("given_id", ["abc", "a" * 128, "8e1f-9.x_y~z", "00-4bf9-00f0-01"])
def test_a_sane_request_id_is_kept(service: Service, given_id: str) -> None:
    assert service.post(GOOD, headers={"X-Request-Id": given_id}).headers["x-request-id"] == given_id


@pytest.mark.parametrize("given_id", ["", "a" * 129, "a b", "a\tb", 'a"b', "a;b", "ä"])
def test_another_request_id_is_replaced(service: Service, given_id: str) -> None:
    made = service.post(GOOD, headers={"X-Request-Id": given_id}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_healthz_says_what_is_served(service: Service) -> None:
    model = service.holder.model
    assert model is not None
    result = service.client.simulate_get("/healthz")
    assert result.status_code == 200
    assert result.headers["cache-control"] == "no-store"
    assert model.runs_on["program"].startswith("onnxruntime ")
    assert model.runs_on["machine"].endswith(f"Python {platform.python_version()}")
    assert result.json == {
        "ok": True,
        "model": "tiny.onnx",
        "release": model.release_id,
        "target": "emulator",
        "numbers": "emulated",
        "calibration_origin": "synthetic",
        "motif_head": "checkpoint",
        "motifs": 12,
        "keys": "not judged",
        "runs_on": model.runs_on,
        "engine": None,
        "switch": None,
        "shadow": None,
        "drift": None,
        "telemetry": None,
        "store": {"alarm": None, "entry": 0, "memory": ""},
    }


def test_without_a_model_everybody_hears_the_reason(without_model: Service) -> None:
    health = without_model.client.simulate_get("/healthz")
    assert health.status_code == 503
    assert health.headers["cache-control"] == "no-store"
    assert health.json == {
        "ok": False,
        "error": "model_unavailable",
        "reason": "no_release",
        "message": str(NO_RELEASE),
        "hint": "publish one",
    }
    for body in (GOOD, b"nonsense"):
        result = without_model.post(body)
        assert result.status_code == 503
        assert result.json["error"] == "model_unavailable"
        assert result.json["reason"] == "no_release"
        assert result.json["message"] == str(NO_RELEASE)
        assert result.json["hint"] == "publish one"
    assert without_model.sample("hailo_model_loaded") == 0
    assert without_model.client.simulate_get("/metrics").status_code == 200


def with_answer(tmp_path: Path, answer: Any) -> Service:
    release = ReleaseSimulator().publish(tmp_path)
    return Service(ModelHolder(ActiveModel(release, FakeEngine(release.manifest, answer))))


def test_an_engine_error_is_503_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Any:
        raise EngineError("the device is gone", hint="reset it")

    monkeypatch.setattr(logging.getLogger("runtime"), "propagate", True)
    service = with_answer(tmp_path, fail)
    with caplog.at_level(logging.ERROR):
        result = service.post(GOOD)
    assert result.status_code == 503
    assert result.json == {
        "error": "engine",
        "message": "the device is gone (reset it)",
        "hint": "reset it",
    }
    assert service.sample("hailo_runtime_engine_errors_total", code="engine") == 1
    assert "the device is gone" in caplog.text


def test_a_mistake_of_ours_is_503_without_its_traceback(tmp_path: Path) -> None:
    def fail(_: object) -> Any:
        raise ZeroDivisionError("secret")

    service = with_answer(tmp_path, fail)
    result = service.post(GOOD)
    assert result.status_code == 503
    assert result.json["error"] == "internal"
    assert "secret" not in result.text
    assert service.sample("hailo_runtime_requests_total", route="/infer", status="503") == 1


@pytest.mark.parametrize("gives", ["an error", "no number", "a mistake of ours"])
def test_health_is_not_well_while_every_window_fails(tmp_path: Path, gives: str) -> None:
    """No device is lost, so the model is still served; three in a row, and until one is run."""
    fails = True

    def answer(_: object) -> FloatArray:
        if fails and gives == "an error":
            raise EngineError("cannot be run", hint="another release")
        if fails and gives == "a mistake of ours":
            raise ZeroDivisionError("secret")
        return np.full(64, np.nan if fails else 0.0, np.float32)

    service = with_answer(tmp_path, answer)
    for number in range(MOST_IN_A_ROW):
        health = service.client.simulate_get("/healthz")
        assert (health.status_code, health.json["ok"]) == (200, True), number
        assert service.sample("hailo_engine_failing") == 0
        assert service.post(GOOD).status_code == 503
        assert service.post(with_value("3.4e38")).status_code == 400  # says nothing of the engine
    with logged("WARNING") as lines:
        health = service.client.simulate_get("/healthz")
        assert (health.status_code, health.json["ok"]) == (503, False)
        expected = "internal" if gives == "a mistake of ours" else "engine"
        assert (health.json["error"], health.json["reason"]) == ("engine_failing", expected)
        assert health.json["engine"]["failed_in_a_row"] == MOST_IN_A_ROW
        assert health.json["release"] == service.holder.model.release_id  # type: ignore[union-attr]
        assert "secret" not in health.text
        assert service.sample("hailo_engine_failing") == 1
        assert service.client.simulate_get("/status").json["ok"] is False
        assert service.post(infer_body(imu_windows(1)[0])).status_code == 503
        fails = False
        assert service.post(GOOD).status_code == 200
    assert service.client.simulate_get("/healthz").json["ok"] is True
    assert service.sample("hailo_engine_failing") == 0
    assert [line["event"] for line in lines if "event" in line] == ["engine_recovered"]


def test_a_replaced_model_is_named_at_once(tmp_path: Path) -> None:
    releases = [ReleaseSimulator(version=f"v{i}").publish(tmp_path) for i in range(2)]
    models = [ActiveModel(release, EmulatorEngine(release)) for release in releases]
    service = Service(ModelHolder(models[0]))
    assert service.post(GOOD).headers["x-release"] == releases[0].id
    service.holder.replace(models[1])
    assert service.post(GOOD).headers["x-release"] == releases[1].id


def test_metrics_are_prometheus_text(service: Service) -> None:
    service.post(GOOD)
    service.post(b"")
    service.client.simulate_get("/no/such/path")
    result = service.client.simulate_get("/metrics")
    assert result.status_code == 200
    assert result.headers["content-type"] == CONTENT_TYPE
    families = {family.name: family for family in text_string_to_metric_families(result.text)}
    assert families["hailo_model_loaded"].samples[0].value == 1
    (build,) = families["hailo_build_info"].samples
    assert build.labels["release"] == service.holder.model.release_id  # type: ignore[union-attr]
    assert build.labels["target"] == "emulator"
    assert build.labels["calibration_origin"] == "synthetic"
    assert "process_resident_memory_bytes" in families
    routes = {sample.labels["route"] for sample in families["hailo_runtime_requests"].samples}
    assert routes <= {*ROUTES, "/healthz", "/metrics", "other"}
    edges = {
        sample.labels["le"]
        for sample in families["hailo_runtime_request_duration_seconds"].samples
        if "le" in sample.labels
    }
    assert "0.045" in edges
    theirs = ("hailo_inference_", "hailo_samples_processed")
    assert not [name for name in families if name.startswith(theirs)]


def test_inferences_alone_are_timed_as_such(tmp_path: Path) -> None:
    """Pages, and what a client did wrong, are quick whatever the release is like."""
    model_fails = iter([False, False, True])

    def answer(_: object) -> FloatArray:
        return np.full(64, np.nan if next(model_fails) else 0.0, np.float32)

    service = with_answer(tmp_path, answer)
    service.client.simulate_get("/")
    service.client.simulate_get("/infer")
    service.post(b"")
    name = "hailo_runtime_infer_duration_seconds_count"
    assert f"{name}{{" not in service.client.simulate_get("/metrics").text
    statuses = [service.post(GOOD).status_code for _ in range(3)]
    assert statuses == [200, 200, 503]
    assert service.sample(name, result="answered") == 2
    assert service.sample(name, result="failed") == 1


def test_statuses_are_counted_by_route(tmp_path: Path) -> None:
    service = with_answer(tmp_path, lambda _: np.zeros(64, np.float32))
    for body in (GOOD, GOOD, b""):
        service.post(body)
    assert service.sample("hailo_runtime_requests_total", route="/infer", status="200") == 2
    assert service.sample("hailo_runtime_requests_total", route="/infer", status="400") == 1
    assert service.sample("hailo_runtime_engine_duration_seconds_count") == 2
