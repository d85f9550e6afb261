"""``make run`` and ``make smoke``: ports, waiting and what is printed, without a build."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from assets.report import report_link
from orchestration import local
from orchestration.build import RELEASES, REPORTS
from orchestration.local import LocalError, Platform, bring_up, check_answer, curl_line, golden_question
from orchestration.processes import Child, Children
from orchestration.settings import BuildSettings
from runtime.contract.store import Release
from tests.running import free_ports
from tests.simulators import ReleaseSimulator

pytestmark = pytest.mark.build
REFUSAL = {"ok": False, "reason": "num_motifs", "message": "12 motifs, NUM_MOTIFS is 5"}


class Refusing(HTTPServer):
    """Answers 503 as a runtime without a model does, and counts."""

    asked = 0


class Refusal(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Refusing)
        self.server.asked += 1
        body = json.dumps(REFUSAL).encode()
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with Refusing(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RELEASE_STORE", str(tmp_path / "store"))
    return tmp_path / "home"


def platform_of(children: Children, logs: Path) -> Platform:
    return Platform(BuildSettings.from_environment(os.environ), children, logs)


def waiting_child(children: Children, folder: Path) -> Child:
    """A child that said something and stays."""
    log = folder / "runtime.log"
    command = ["sh", "-c", "echo said at its start; exec sleep 60"]
    child = children.start("runtime", command, environment={}, log=log)
    assert child.wait_for(lambda: log.read_text().endswith("\n"), 10)
    return child


def test_a_refusal_is_final_and_says_why_once(
    home: Path, tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "START_SECONDS", 2.0)
    with Children() as children:
        child = waiting_child(children, tmp_path)
        url = f"http://127.0.0.1:{refusing.server_port}/healthz"
        with pytest.raises(LocalError) as caught:
            platform_of(children, tmp_path).wait_until_answers(child, url)
    assert refusing.asked == 1
    said = str(caught.value)
    assert "503 num_motifs: 12 motifs, NUM_MOTIFS is 5" in said
    assert said.count("said at its start") == 1


def test_no_connection_is_waited_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [ConnectionRefusedError("not yet"), TimeoutError("loading")]

    def get(url: str) -> tuple[int, bytes, dict[str, str]]:
        if failures:
            raise failures.pop(0)
        return 200, b"{}", {}

    monkeypatch.setattr(local, "get", get)
    with Children() as children:
        child = waiting_child(children, tmp_path)
        platform_of(children, tmp_path).wait_until_answers(child, "http://127.0.0.1/healthz")
    assert failures == []


def test_the_reports_have_a_port_of_their_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = dict(zip(("PORT", "UI_PORT", "REPORTS_PORT"), map(str, free_ports(3)), strict=True))
    for name, port in ports.items():
        monkeypatch.setenv(name, port)
    assert local.wanted_ports() == tuple(map(int, ports.values()))
    monkeypatch.delenv("REPORTS_PORT")
    assert local.wanted_ports()[2] == 0
    monkeypatch.setenv("REPORTS_PORT", ports["UI_PORT"])
    with pytest.raises(LocalError, match="UI_PORT and REPORTS_PORT are both"):
        local.wanted_ports()


@pytest.mark.parametrize("settings", [{"PORT": "9123", "UI_PORT": "9123"}, {"PORT": "3000"}])
def test_one_port_for_both_is_refused_in_one_line(
    home: Path,
    settings: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "bring_up", lambda *_: pytest.fail("something was started"))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert local.main(["run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"run: PORT and UI_PORT are both {settings['PORT']} (set one of them to another port)\n")
    assert not home.exists()


class NotedChild(Child):
    """Does at once whatever is waited for."""

    def __init__(self, name: str, events: list[str], status: int) -> None:
        self.name, self.events, self.status = name, events, status
        self.log = None

    def wait(self) -> int:
        self.events.append(f"{self.name} done")
        return self.status

    def wait_for(self, condition: object, seconds: float) -> bool:
        return True


class NotedChildren(Children):
    """Starts nothing; notes what it is asked to start, and with what. The build reports ``release``, and
    that it wrote ``parity``."""

    def __init__(self, events: list[str], release: str, status: int = 0, parity: Path | None = None) -> None:
        super().__init__()
        self.parity = parity
        self.events = events
        self.release = release
        self.status = status
        self.environments: dict[str, Mapping[str, str]] = {}
        self.commands: dict[str, list[str]] = {}
        self.logs: list[Path] = []

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        log: Path | None = None,
        grace: float = 0.0,
    ) -> Child:
        self.events.append(f"start {name}")
        self.environments[name] = environment
        self.commands[name] = [str(part) for part in command]
        self.logs += [log] if log else []
        if name == "build":
            report = Path(command[command.index("--report") + 1])
            (report / RELEASES).write_text(json.dumps({"emulator": self.release}))
            (report / REPORTS).write_text(json.dumps({"emulator": str(self.parity)} if self.parity else {}))
        return NotedChild(name, self.events, self.status)


def test_a_free_port_is_chosen_when_its_server_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store", "canary")
    events: list[str] = []

    def free_port() -> int:
        events.append("choose a port")
        return 5000 + len(events)

    monkeypatch.setattr(local, "free_port", free_port)
    children = NotedChildren(events, release.id)
    platform = platform_of(children, tmp_path)
    assert bring_up(platform)[0].id == release.id
    assert events == [
        "start build",
        "choose a port",
        "start dagster",
        "build done",
        "choose a port",
        "start runtime",
    ]
    assert (platform.ui_url, platform.url) == ("http://127.0.0.1:5002", "http://127.0.0.1:5005")
    assert children.environments["runtime"]["PORT"] == "5005"
    assert "5002" in children.commands["dagster"]


def test_run_and_smoke_in_one_home_write_to_logs_of_their_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store", "canary")
    started: list[NotedChildren] = []

    def children() -> NotedChildren:
        started.append(NotedChildren([], release.id))
        return started[-1]

    monkeypatch.setattr(local, "Children", children)
    monkeypatch.setattr(local, "check_answer", lambda *_: None)
    for _ in range(2):
        assert local.main(["smoke"]) == 0
    logs = [log for each in started for log in each.logs]
    assert len(set(logs)) == 4
    assert all(log.is_relative_to(home / "logs") for log in logs)


def test_a_canary_of_another_build_is_not_taken_for_its_own(home: Path, tmp_path: Path) -> None:
    """Two builds with one store: each would otherwise ask for the golden windows of whoever was last."""
    other = ReleaseSimulator().publish(tmp_path / "store", "canary")
    events: list[str] = []
    with pytest.raises(LocalError, match=f"canary names {other.id[:12]}, this build made {'a' * 12}"):
        bring_up(platform_of(NotedChildren(events, "a" * 64), tmp_path))
    assert "start runtime" not in events


def test_a_failed_build_is_not_served(home: Path, tmp_path: Path) -> None:
    """Also where an earlier build's canary is there to be served."""
    release = ReleaseSimulator().publish(tmp_path / "store", "canary")
    events: list[str] = []
    with pytest.raises(LocalError, match="the chain was not built"):
        bring_up(platform_of(NotedChildren(events, release.id, status=1), tmp_path))
    assert "start runtime" not in events


def test_a_failed_build_names_its_parity_report(home: Path, tmp_path: Path) -> None:
    """What people want to see most when parity failed."""
    parity = tmp_path / "emulator-parity-12.html"
    children = NotedChildren([], "a" * 64, status=1, parity=parity)
    with pytest.raises(LocalError) as caught:
        bring_up(platform_of(children, tmp_path))
    assert str(parity) in str(caught.value)


def test_reports_are_served_to_this_machine_and_linked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILD_DIR", str(tmp_path / "bench"))
    with Children() as children:
        platform = platform_of(children, tmp_path)
        assert not platform.reports_dir.exists()
        child = platform.start_reports(local.free_port())
        platform.wait_until_answers(child, f"{platform.reports_url}/")
        page = platform.reports_dir / "emulator-parity-12.html"
        page.write_bytes(b"<p>a report")
        assert local.get(report_link(page, platform.reports_url))[:2] == (200, b"<p>a report")
    noted = NotedChildren([], ReleaseSimulator().publish(tmp_path / "store", "canary").id)
    platform = platform_of(noted, tmp_path / "other")
    (tmp_path / "other").mkdir()
    platform.start_reports(4321)
    bring_up(platform)
    for name in ("build", "dagster"):
        assert noted.environments[name]["REPORTS_URL"] == "http://127.0.0.1:4321"
    assert noted.commands["reports"][3:5] == ["--bind", "127.0.0.1"]


@pytest.mark.parametrize(
    ("verb", "said"),
    [("run", "report      http://127.0.0.1:3/emulator-parity-12.html\n"), ("smoke", "report:  {parity}\n")],
)
def test_where_the_report_is_is_said(
    home: Path,
    tmp_path: Path,
    release: Release,
    verb: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BUILD_DIR", str(tmp_path / "bench"))
    parity = tmp_path / "bench" / "reports" / "emulator-parity-12.html"
    noted = NotedChildren([], release.id, parity=parity)
    monkeypatch.setattr(noted, "wait_for_first", lambda servers: servers[-1])
    monkeypatch.setattr(local, "Children", lambda: noted)
    monkeypatch.setattr(local, "check_answer", lambda *_: None)
    monkeypatch.setattr(local, "wanted_ports", lambda: (1, 2, 3))
    local.main([verb])
    assert said.format(parity=parity) in capsys.readouterr().out


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return ReleaseSimulator().publish(tmp_path / "store", "canary")


def answer_to(release: Release, **changes: object) -> tuple[int, bytes, dict[str, str]]:
    """What a runtime that serves the release answers to its golden window, with changes."""
    latent = golden_question(release)[1].tolist()
    scores = [1.0] + [0.0] * (release.manifest.motif_head.size - 1)
    document = {"latent": latent, "motif_scores": scores, **changes}
    return 200, json.dumps(document).encode(), {"x-release": release.id, "x-numbers": "emulated"}


def test_a_right_answer_is_shown(
    home: Path, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked: list[tuple[str, bytes | None]] = []

    def get(url: str, data: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
        asked.append((url, data))
        return answer_to(release)

    monkeypatch.setattr(local, "get", get)
    platform = platform_of(Children(), tmp_path)
    platform.url = "http://there"
    check_answer(platform, release)
    assert asked == [("http://there/infer", golden_question(release)[0])]
    out = capsys.readouterr().out
    for words in ("200, latent[64], motif_scores[12]", "best motif motif0 1.000", release.id):
        assert words in out


def wrong_answers(release: Release) -> dict[str, tuple[int, bytes, dict[str, str]]]:
    """Words of the refusal to an answer that deserves it."""
    status, body, headers = answer_to(release)
    latent = golden_question(release)[1]
    off = latent + 1.01 * release.manifest.golden.artifact_tolerance
    return {
        "answered 503": (503, b"{}", headers),
        "answered <html>": (status, b"<html>", headers),
        "answered null": (status, b"null", headers),
        r"answered {}": (status, b"{}", headers),
        r"latent\[63\], motif_scores\[12\]": answer_to(release, latent=latent[:63].tolist()),
        r"latent\[64\], motif_scores\[11\]": answer_to(release, motif_scores=[0.1] * 11),
        "the runtime serves None": (status, body, {}),
        "the runtime serves other": (status, body, {"x-release": "other"}),
        "away from the recorded one": answer_to(release, latent=off.tolist()),
        "is nan away": answer_to(release, latent=[float("nan")] * 64),
    }


def test_every_wrong_answer_is_a_failure(
    home: Path, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = platform_of(Children(), tmp_path)
    for words, wrong in wrong_answers(release).items():
        monkeypatch.setattr(local, "get", lambda *_, wrong=wrong: wrong)
        with pytest.raises(LocalError, match=words):
            check_answer(platform, release)


@pytest.mark.parametrize("verb", ["run", "smoke"])
def test_a_wrong_answer_ends_it_with_one_line(
    home: Path, tmp_path: Path, release: Release, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(local, "Children", lambda: NotedChildren([], release.id))
    monkeypatch.setattr(local, "get", lambda *_: answer_to(release, latent=[]))
    monkeypatch.setattr(local, "wanted_ports", lambda: (1, 2, 3))
    assert local.main([verb]) == 1
    out, err = capsys.readouterr()
    assert err == f"{verb}: /infer answered latent[0], motif_scores[12]\n"
    assert "passed, nothing left running" not in out
    assert "serving" not in out


@pytest.mark.parametrize("verb", ["smoke", "run"])
def test_a_branch_that_was_not_built_is_said_and_the_others_are_served(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    """The build failed, for one target; ``smoke`` fails too, once it has asked the other."""
    release = ReleaseSimulator().publish(tmp_path / "store", "canary")
    monkeypatch.setattr(local, "Children", lambda: NotedChildren([], release.id, status=1))
    monkeypatch.setattr(local, "check_answer", lambda *_: local.say("asked"))
    monkeypatch.setattr(local, "wanted_ports", lambda: (9000, 3000, 0))
    monkeypatch.setattr(NotedChildren, "wait_for_first", lambda *_: pytest.fail("ended"), raising=False)
    monkeypatch.setenv("BUILD_TARGETS", "hailo8,emulator")
    if verb == "smoke":
        assert local.main([verb]) == 1
    else:
        with pytest.raises(pytest.fail.Exception, match="ended"):
            local.main([verb])
    out, err = capsys.readouterr()
    assert "asked" in out
    if verb == "smoke":
        assert "smoke: hailo8 was not built, emulator was (the FAILED line says why)" in err
        assert "smoke: passed" not in out
    else:
        assert "NOT BUILT   hailo8: the FAILED line says why" in out


def test_the_curl_line_takes_any_path(tmp_path: Path) -> None:
    body = tmp_path / "it's a $(home)" / "window.json"
    words = shlex.split(curl_line("http://127.0.0.1:9000", body))
    assert words[0] == "curl"
    assert words[-2:] == ["-d", f"@{body}"]
