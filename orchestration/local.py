"""``python -m orchestration.local run|smoke``: the whole platform on one machine.

Builds the chain, publishes the canary, serves it, and shows Dagster's UI. ``run`` stays until
Ctrl-C; ``smoke`` asks one question on free ports and ends. Neither leaves a process behind.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import numpy as np

from assets.report import report_link
from orchestration.build import READY, RELEASES, REPORTS, make_home
from orchestration.processes import Child, Children, Stopped, log_folder
from orchestration.settings import ROOT, BuildSettings, signing_settings
from runtime.contract.errors import PipelineError
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import Trust

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 120.0
BUILD_SECONDS: Final = 1800.0  # another build may be at work first
BUILD_GRACE: Final = 1.0
"""Python drops an interrupt in a weak reference's callback, as while torch is imported: it would publish."""
_SCRIPTS: Final = Path(sys.executable).parent


class LocalError(PipelineError):
    """The platform did not come up, or did not answer as it should."""

    code = "local"


def say(text: str = "") -> None:
    """Print for the person who is waiting."""
    print(text, flush=True)


def free_port(*spoken_for: int) -> int:
    """A port that nobody listens on now, and none of those that somebody will listen on."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in spoken_for:
            return port


def wanted_ports() -> tuple[int, int, int]:
    """The ports of the runtime, of the UI and of the reports, as the environment asks: different, and free.

    0 for the reports where it does not ask: a free one is chosen when they are served.

    Raises:
        LocalError: Not a port, the same port twice, or in use.
    """
    wanted = {"PORT": _port("PORT", 9000), "UI_PORT": _port("UI_PORT", 3000)}
    if os.environ.get("REPORTS_PORT"):
        wanted["REPORTS_PORT"] = _port("REPORTS_PORT", 0)
    taken: dict[int, str] = {}
    for variable, port in wanted.items():
        if port in taken:
            raise LocalError(
                f"{taken[port]} and {variable} are both {port}", hint="set one of them to another port"
            )
        taken[port] = variable
    for variable, port in wanted.items():
        check_free(variable, port)
    return wanted["PORT"], wanted["UI_PORT"], wanted.get("REPORTS_PORT", 0)


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise LocalError(f"{variable}={text} is not a port", hint="1 to 65535")
    return int(text)


def check_free(variable: str, port: int) -> None:
    """Refuse a port that somebody uses; ``variable`` is what sets it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise LocalError(
                f"port {port} cannot be used: {error.strerror}", hint=f"end what uses it, or set {variable}"
            ) from error


def get(url: str, data: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
    """Ask a server on this machine: status, body, headers (lower-case names)."""
    headers = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data=data, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


class Platform:
    """Builder, runtime and UI of one machine.

    Args:
        children: Ends the processes, whatever happens.
        logs: Folder for what the servers write, nobody else's.
    """

    def __init__(self, settings: BuildSettings, children: Children, logs: Path) -> None:
        self.targets = settings.targets
        self.missing: tuple[str, ...] = ()  # known when the build ended
        self.target = "emulator" if "emulator" in self.targets else self.targets[0]
        self.children, self.logs = children, logs
        self.url = self.ui_url = self.watched = ""  # known when they are started
        self.reports_url, self.reports_dir = settings.reports_url, settings.reports_dir.resolve()
        self.keys = signing_settings(settings)
        self.store = ReleaseStore(settings.release_store, Trust.load(settings.trust_root))
        self.home = make_home(settings.dagster_home)

    def start_ui(self, port: int) -> Child:
        """Start Dagster's webserver and daemon on the instance that the build writes to."""
        self.ui_url = f"http://{HOST}:{port}"
        return self.children.start(
            "dagster",
            [_SCRIPTS / "dagster", "dev", "-w", ROOT / "workspace.yaml", "-h", HOST, "-p", str(port)],
            log=self.logs / "ui.log",
            environment={**self._dagster(), "PYTHONWARNINGS": "ignore"},
        )

    def _dagster(self) -> dict[str, str]:
        urls = {"REPORTS_URL": self.reports_url, "UI_URL": os.environ.get("UI_URL") or self.ui_url}
        watched = {"RUNTIME_URLS": self.watched} if self.watched else {}
        return {"DAGSTER_HOME": str(self.home), **urls, **watched, **self.keys}

    def start_reports(self, port: int) -> Child:
        """Serve the folder of parity reports, to this machine alone; builds that start later link there."""
        self.reports_url = f"http://{HOST}:{port}"
        self.reports_dir.mkdir(parents=True, exist_ok=True)
        return self.children.start(
            "reports",
            [sys.executable, "-m", "http.server", "--bind", HOST, "--directory", self.reports_dir, str(port)],
            log=self.logs / "reports.log",
            environment={},
        )

    def start_build(self) -> Child:
        """Start materializing the chain; returns once Dagster's instance is there for others."""
        child = self.children.start(
            "build",
            [sys.executable, "-m", "orchestration.build", "--report", self.logs],
            environment=self._dagster(),
            grace=BUILD_GRACE,
        )
        if not child.wait_for((self.logs / READY).exists, BUILD_SECONDS):
            raise LocalError("Dagster's instance was not made", hint="the lines above say why")
        return child

    def built(self, child: Child) -> Release:
        """The release that the build published, which ``canary`` must name.

        Another target's branch may have failed: ``missing`` says which.

        Raises:
            LocalError: An asset failed, a check blocked, or somebody moved the channel meanwhile.
        """
        status, releases = child.wait(), self.releases()
        self.missing = tuple(target for target in self.targets if target not in releases)
        if self.target not in releases or (status != 0 and not self.missing):
            where = f", and so does {report}" if (report := self.report()) else ""
            raise LocalError("the chain was not built", hint=f"the FAILED line says why{where}; then repeat")
        mine = releases[self.target]
        entry = self.store.current(self.target, "canary")
        if entry is None or entry.release != mine:
            raise LocalError(
                f"canary names {entry.release[:12] if entry else 'nothing'}, this build made {mine[:12]}",
                hint="another build moved it meanwhile: repeat",
            )
        return self.store.open(mine)

    def releases(self) -> dict[str, str]:
        """Target to the release that the build published; empty where it did not get that far."""
        try:
            found: dict[str, str] = json.loads((self.logs / RELEASES).read_text())
        except FileNotFoundError:
            return {}
        return found

    def report(self) -> Path | None:
        """The parity report that the build wrote; None where it did not get that far."""
        try:
            return Path(json.loads((self.logs / REPORTS).read_text())[self.target])
        except (FileNotFoundError, KeyError):
            return None

    def start_runtime(self, port: int) -> Child:
        """Start the runtime on the canary channel, as a Pi would."""
        self.url = f"http://{HOST}:{port}"
        return self.children.start(
            "runtime",
            [_SCRIPTS / "gunicorn", "-c", ROOT / "runtime" / "gunicorn.conf.py", "runtime.asgi:app"],
            log=self.logs / "runtime.log",
            environment={
                "HOST": HOST,
                "PORT": str(port),
                "RELEASE_STORE": str(self.store.root),
                "TRUST_ROOT": self.keys["TRUST_ROOT"],
                "RELEASE_CHANNEL": "canary",
                "TARGET": self.target,
                "HEF_PATH": "",
                "GUNICORN_CMD_ARGS": "",
                "WEB_CONCURRENCY": "1",
            },
        )

    def wait_until_answers(self, child: Child, url: str) -> None:
        """Wait for an answer, which must be 200: what is refused at start stays refused.

        Raises:
            LocalError: Another answer, an early end, or no answer at all; with its last lines.
        """
        last = "no answer"

        def answers() -> bool:
            nonlocal last
            try:
                status, body, _ = get(url)
            except OSError as error:
                last = str(error)
                return False
            if status != 200:
                raise LocalError(f"{child.name} refuses: {reason_given(status, body)}\n{child.last_lines()}")
            return True

        if not child.wait_for(answers, START_SECONDS):
            raise LocalError(f"{child.name} does not serve {url}: {last}\n{child.last_lines()}")


def reason_given(status: int, body: bytes) -> str:
    """Why a server does not answer 200, in its own words."""
    try:
        document = json.loads(body)
        return f"{status} {document['reason']}: {document['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status} {body[:300].decode(errors='replace')}"


def summary(release: Release) -> str:
    """The parity of a release, as a table for a terminal."""
    parity, model = release.manifest.parity, release.manifest.model
    calibration = release.manifest.calibration
    origin = calibration.origin if calibration.origin == "captured" else calibration.origin.upper()
    lines = [f"model:  {model.name} {model.version}, calibrated on {calibration.windows} {origin} windows"]
    lines += [f"parity: passed ({parity.provenance}, {parity.windows} windows)"]
    for name, value in sorted(parity.metrics.items()):
        bounds = [f"at least {parity.thresholds[name]:g}"] if name in parity.thresholds else []
        bounds += [f"at most {parity.ceilings[name]:g}"] if name in parity.ceilings else []
        lines.append(f"  {name:24} {value:8.4f}   {', '.join(bounds) or 'not judged'}")
    return "\n".join(lines)


def golden_question(release: Release) -> tuple[bytes, Any]:
    """A golden window as a request body, and the latent that the release recorded for it."""
    golden = np.load(io.BytesIO(release.read(release.manifest.golden.file)), allow_pickle=False)
    return json.dumps({"x": golden["windows"][0].tolist()}).encode(), golden["artifact"][0]


def check_answer(platform: Platform, release: Release) -> None:
    """Ask ``/infer`` once and hold the answer against the release.

    Raises:
        LocalError: Another status, shape, release or latent than the release promises.
    """
    body, expected = golden_question(release)
    status, answer, headers = get(f"{platform.url}/infer", body)
    if status != 200:
        raise LocalError(f"/infer answered {status}: {answer[:300].decode(errors='replace')}")
    try:
        document = json.loads(answer)
        latent, scores = list(document["latent"]), list(document["motif_scores"])
    except (ValueError, LookupError, TypeError) as error:
        raise LocalError(f"/infer answered {answer[:300].decode(errors='replace')}") from error
    motifs = release.manifest.motif_head.size
    if len(latent) != len(expected) or len(scores) != motifs:
        raise LocalError(f"/infer answered latent[{len(latent)}], motif_scores[{len(scores)}]")
    if headers.get("x-release") != release.id:
        raise LocalError(f"the runtime serves {headers.get('x-release')}, canary is {release.id}")
    worst = float(np.abs(np.asarray(latent) - expected).max())
    if not worst <= release.manifest.golden.artifact_tolerance:
        raise LocalError(f"a golden window's latent is {worst:.4g} away from the recorded one")
    best = max(range(motifs), key=scores.__getitem__)
    name = release.manifest.motif_head.names[best]
    say(f"/infer: 200, latent[{len(latent)}], motif_scores[{motifs}], best motif {name} {scores[best]:.3f}")
    say(f"        numbers {headers.get('x-numbers')}, golden window repeated within {worst:.3g}")
    say(f"release: {release.id}")
    say(f"signed:  {platform.store.trust.root.kind}")


def bring_up(
    platform: Platform, port: int | None = None, ui_port: int | None = None
) -> tuple[Release, list[Child]]:
    """Build and start everything; returns the release and the servers when both answer.

    A port that is not given is chosen when its server starts: nobody can take it during the build.
    """
    if port and not (os.environ.get("PROMETHEUS_URL") or os.environ.get("RUNTIME_URLS")):
        platform.watched = f"http://{HOST}:{port}"
    say(f"building for {', '.join(platform.targets)} (Dagster's home: {platform.home}):")
    build = platform.start_build()
    ui = platform.start_ui(ui_port or free_port())
    release = platform.built(build)
    say(summary(release))
    # The UI first: once it listens, its port cannot be chosen for the runtime.
    platform.wait_until_answers(ui, f"{platform.ui_url}/server_info")
    server = platform.start_runtime(port or free_port())
    platform.wait_until_answers(server, f"{platform.url}/healthz")
    return release, [server, ui]


def curl_line(url: str, body: Path) -> str:
    """A command for a shell that asks ``/infer`` with the file."""
    words = ["curl", "-s", f"{url}/infer", "-H", "Content-Type: application/json", "-d", f"@{body}"]
    return shlex.join(words)


def not_built(platform: Platform) -> str:
    """Which targets were asked for and have no release."""
    return f"{', '.join(platform.missing)} was not built, {platform.target} was"


def smoke() -> None:
    """Bring everything up on free ports, ask once, end."""
    settings = BuildSettings.from_environment(os.environ)
    with log_folder(settings.dagster_home / "logs", "smoke") as logs, Children() as children:
        platform = Platform(settings, children, logs)
        release, _ = bring_up(platform)
        check_answer(platform, release)
        if report := platform.report():
            say(f"report:  {report}")
        if platform.missing:
            raise LocalError(not_built(platform), hint="the FAILED line says why")
    say("smoke: passed, nothing left running")


def run() -> None:
    """Bring everything up on the known ports and serve until Ctrl-C."""
    port, ui_port, reports_port = wanted_ports()
    settings = BuildSettings.from_environment(os.environ)
    with log_folder(settings.dagster_home / "logs", "run") as logs, Children() as children:
        platform = Platform(settings, children, logs)
        reports = platform.start_reports(reports_port or free_port(port, ui_port))
        platform.wait_until_answers(reports, f"{platform.reports_url}/")
        release, servers = bring_up(platform, port, ui_port)
        check_answer(platform, release)
        body = platform.home / "window.json"
        body.write_bytes(golden_question(release)[0])
        say()
        say(f"runtime     {platform.url}   (healthz, metrics, infer)")
        say(f"Dagster UI  {platform.ui_url}")
        report = platform.report()
        say(f"report      {report_link(report, platform.reports_url) if report else platform.reports_url}")
        say(f"logs        {logs}")
        say(f"try         {curl_line(platform.url, body)}")
        if platform.missing:
            say(f"NOT BUILT   {', '.join(platform.missing)}: the FAILED line says why")
        say("serving until Ctrl-C")
        ended = children.wait_for_first([*servers, reports])
        raise LocalError(f"{ended.name} ended by itself\n{ended.last_lines()}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit status 0 only where everything was so."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.local", description=__doc__)
    parser.add_argument("verb", choices=["run", "smoke"])
    verb = parser.parse_args(argv).verb
    try:
        run() if verb == "run" else smoke()
    except (Stopped, KeyboardInterrupt):
        say("stopped")
        return 0 if verb == "run" else 1
    except (PipelineError, OSError) as error:
        print(f"{verb}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
