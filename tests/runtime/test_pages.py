"""Pages and documents: what EdgeInfer's scripts expect to be there, and an API that is as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.answers import CODES
from runtime.contract.errors import DeviceInUseError, EngineError, WindowError
from runtime.engines.hailo_errors import _KINDS, DeviceFailedError, DeviceLostError
from runtime.infer_body import BodyError
from runtime.openapi import ENGINE_ERRORS, document, infer_errors
from runtime.protocol import REFUSALS
from tests.runtime.service import Service
from tests.simulators import ROOT, FakeEngine, ReleaseSimulator, imu_windows, infer_body

GETS = ("/", "/status", "/docs", "/openapi.json", "/healthz", "/metrics")


@pytest.mark.parametrize("path", GETS)
def test_scripts_find_what_they_ask_for(service: Service, path: str) -> None:
    answer = service.client.simulate_get(path)
    assert answer.status_code == 200
    assert answer.headers["x-release"] == service.holder.model.release_id  # type: ignore[union-attr]
    head = service.client.simulate_head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_a_golden_window_is_repeated_on_request(service: Service) -> None:
    answer = service.client.simulate_post("/test", body=b"anything")
    assert (answer.status_code, answer.json["ok"]) == (200, True)
    assert answer.json["release"] == service.holder.model.release_id  # type: ignore[union-attr]


def test_a_machine_that_computes_otherwise_now_says_so(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    engine = FakeEngine(release.manifest, lambda _: np.zeros(64, np.float32))
    answer = Service(ModelHolder(ActiveModel(release, engine))).client.simulate_post("/test")
    assert (answer.status_code, answer.json["ok"]) == (503, False)
    assert "golden window 0 differs" in answer.json["message"]
    assert (answer.headers["retry-after"], answer.json["error"]) == ("1", "golden_mismatch")


def test_a_device_that_fails_in_the_test_is_lost_for_everybody(tmp_path: Path) -> None:
    """Otherwise ``/healthz`` would go on saying that all is well until a client's window fails."""

    def fails(_: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        raise DeviceLostError("is gone", where="HailoRT")

    release = ReleaseSimulator().publish(tmp_path)
    service = Service(ModelHolder(ActiveModel(release, FakeEngine(release.manifest, fails))))
    assert service.client.simulate_post("/test").status_code == 503
    health = service.client.simulate_get("/healthz")
    assert (health.status_code, health.json["reason"]) == (503, "device_lost")
    assert service.holder.trouble.is_set()
    assert service.sample("hailo_runtime_engine_errors_total", code="device_lost") == 1


def test_without_a_model_pages_answer_and_the_test_fails(without_model: Service) -> None:
    for path in ("/", "/status", "/docs", "/openapi.json"):
        assert without_model.client.simulate_get(path).status_code == 200
    assert without_model.client.simulate_get("/status").json["ok"] is False
    health = without_model.client.simulate_get("/healthz")
    assert (health.status_code, health.headers["retry-after"]) == (503, "1")
    answer = without_model.client.simulate_post("/test")
    assert (answer.status_code, answer.json["ok"]) == (503, False)


@pytest.mark.parametrize(
    ("accept", "kind"), [("text/html,*/*;q=0.8", "text/html"), ("*/*", "application/json")]
)
def test_a_browser_gets_a_page(service: Service, accept: str, kind: str) -> None:
    answer = service.client.simulate_get("/", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_anywhere(service: Service, path: str) -> None:
    answer = service.client.simulate_get(path, headers={"Accept": "text/html"})
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    found = re.findall(r"(?:src|href)=\"([^\"]*)\"", answer.text)
    assert all(place.startswith("/") and not place.startswith("//") for place in found)
    assert not re.search(r"<script|@import|url\(", answer.text)


def test_every_route_is_described_and_every_description_a_route(service: Service) -> None:
    described = {
        (path, method.upper()) for path, methods in document()["paths"].items() for method in methods
    }
    routes: set[tuple[str, str]] = set()
    for path in service.app.routes:
        for method in ("GET", "POST", "PUT"):
            answer = service.client.simulate_request(method, path, body=b"{}")
            if answer.status_code != 405:
                routes.add((path, method))
    assert routes == described


def resolved(schema: dict[str, Any], found: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": found["components"]})


def test_answers_are_what_the_document_says(service: Service) -> None:
    found = service.client.simulate_get("/openapi.json").json
    assert found["components"]["schemas"]["MotifScores"]["maxItems"] == 12
    post = found["paths"]["/infer"]["post"]
    body = resolved(post["requestBody"]["content"]["application/json"]["schema"], found)
    answer = resolved(post["responses"]["200"]["content"]["application/json"]["schema"], found)
    windows = imu_windows(3)
    for value in (windows[0].tolist(), windows.tolist()):
        assert body.is_valid({"x": value})
        assert answer.is_valid(service.client.simulate_post("/infer", json={"x": value}).json)
    assert not body.is_valid({"x": windows[0, :99].tolist()})
    error = resolved(post["responses"]["400"]["content"]["application/json"]["schema"], found)
    for wrong in (b"", b"{}", infer_body(windows[0])[:-1]):
        assert error.is_valid(service.post(wrong).json)
    named = set(post["responses"]["200"]["headers"])
    told = {name for name in service.post(infer_body(windows[0])).headers if name.startswith("x-")}
    assert told <= {name.lower() for name in named}


def codes_in_the_source() -> set[str]:
    """Every ``error`` that code makes for an answer of ``/infer``: an argument here, a class's code there."""
    found: set[str] = set()
    for path in sorted((ROOT / "runtime").glob("*.py")):
        if path.name in ("app.py", "openapi.py"):  # other routes' errors; what is tried here
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called not in ("error_answer", "self._refuse"):
                continue
            error = node.args[called == "error_answer"]
            told = ast.unparse(error)
            if isinstance(error, ast.Constant):
                found.add(str(error.value))
            elif match := re.fullmatch(r"CODES\[(\d+)\]", told):
                found.add(CODES[int(match[1])])
            else:
                # Classes' codes, and the connection's table: looked at below.
                assert (path.name, told) in (("answers.py", "error.code"), ("protocol.py", "error")), told
    return found


def kinds_of(family: type[Any]) -> set[type[Any]]:
    below = {kind for kind in family.__subclasses__() if kind.__module__.startswith("runtime.")}
    return below.union(*map(kinds_of, below))


def test_every_error_that_infer_may_answer_is_on_the_page(service: Service) -> None:
    page = service.client.simulate_get("/docs").text
    listed = {
        error: int(status)
        for status, error in re.findall(r"<tr><td>(\d+)<td><code>(\w+)</code><td>[A-Za-z][^<]{9}", page)
    }
    assert listed == {error: status for error, (status, _) in infer_errors().items()}
    bodies = {kind.code for kind in kinds_of(BodyError) | kinds_of(WindowError) | {BodyError}}
    kinds: list[type[EngineError]] = [
        EngineError,
        DeviceInUseError,
        DeviceFailedError,
        *(kind for kind, _ in _KINDS),
    ]
    engines = {kind.code for kind in kinds}
    made = codes_in_the_source()
    assert len(made) > 8
    assert {*REFUSALS.items()} <= {*listed.items()}
    assert set(listed) == made | bodies | engines
    assert engines == {kind.code for kind in ENGINE_ERRORS}


def test_the_document_names_each_answers_errors(service: Service) -> None:
    """And an answer with another error, or under another status, is not what it says."""
    found = service.client.simulate_get("/openapi.json").json
    responses = found["paths"]["/infer"]["post"]["responses"]
    assert {status for status, _ in infer_errors().values()} == {int(each) for each in responses} - {200}
    for error, (status, to_do) in infer_errors().items():
        assert to_do in str(responses[str(status)])
        for described, answer in responses.items():
            if described != "200":
                schema = resolved(answer["content"]["application/json"]["schema"], found)
                assert schema.is_valid({"error": error, "message": "m"}) is (described == str(status))
