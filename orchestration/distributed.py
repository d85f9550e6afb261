"""``python -m orchestration.distributed``: the UI's host and GPUSrv, both on this machine.

What is started is what ``deploy/gpusrv`` describes for two real hosts: the very instance settings, workspace
and command lines of the systemd units, with Postgres from Debian in a folder. What ends by itself is started
again, as systemd would. Ctrl-C ends everything; a build in flight marks its run first.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from orchestration.local import HOST, LocalError, check_free, free_port, get, say
from orchestration.postgres import DATABASE, USER, Cluster
from orchestration.processes import Child, Children, Stopped, log_folder
from orchestration.settings import ROOT, BuildSettings, signing_settings
from runtime.contract.errors import PipelineError

DEPLOY: Final = ROOT / "deploy" / "gpusrv"
UNITS: Final = {
    "code": "hailo-pipeline-code.service",
    "webserver": "hailo-pipeline-webserver.service",
    "readonly": "hailo-pipeline-webserver-readonly.service",
    "daemon": "hailo-pipeline-daemon.service",
}
"""What systemd runs on the hosts; ``code`` is GPUSrv's, the others are the UI host's."""
CODE_MODULE: Final = "orchestration.definitions"
START_SECONDS: Final = 180.0
CODE_GRACE: Final = 30.0
"""A build that is asked to end waits for its compiler, then marks its run."""
RESTART_SECONDS: Final = 2.0
_INSTALLED: Final = "/opt/hailo-pipeline"
_SCRIPTS: Final = Path(sys.executable).parent
_READY: Final = """{
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } }
  instance { daemonHealth { allDaemonStatuses { required healthy } } }
}"""
LAUNCH: Final = """mutation($run: ExecutionParams!) {
  launchRun(executionParams: $run) { __typename ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } } }"""


class DistributedError(PipelineError):
    """One of the two hosts did not come up."""

    code = "distributed"


def unit_command(unit: str, environment: Mapping[str, str]) -> list[str]:
    """The command line of a systemd unit, as this checkout would run it.

    Args:
        unit: Its file in ``deploy/gpusrv/systemd``.
        environment: Values of its ``${VARIABLES}``.

    Raises:
        DistributedError: It names a variable that has no value, or has no ExecStart.
    """
    path = DEPLOY / "systemd" / unit
    found = re.search(r"^ExecStart=(.+)$", path.read_text(), re.M)
    if found is None:
        raise DistributedError("has no ExecStart", where=str(path))
    words = []
    for word in shlex.split(found[1]):
        missing = [name for name in re.findall(r"\$\{(\w+)\}", word) if name not in environment]
        if missing:
            raise DistributedError(f"{missing[0]} has no value", where=str(path))
        word = word.replace(f"{_INSTALLED}/.venv/bin", str(_SCRIPTS)).replace(_INSTALLED, str(ROOT))
        words.append(re.sub(r"\$\{(\w+)\}", lambda name: environment[name[1]], word))
    return words


def graphql(url: str, query: str, **variables: Any) -> dict[str, Any]:
    """What Dagster's UI answers.

    Raises:
        DistributedError: It refuses, or what it says is no answer.
        OSError: Nobody is there.
    """
    status, body, _ = get(f"{url}/graphql", json.dumps({"query": query, "variables": variables}).encode())
    try:
        answer = json.loads(body)
        data: dict[str, Any] = answer["data"]
    except (ValueError, LookupError, TypeError) as error:
        raise DistributedError(
            f"answered {status}: {body[:300].decode(errors='replace')}", where=url
        ) from error
    if answer.get("errors"):
        raise DistributedError(str(answer["errors"][0].get("message")), where=url)
    return data


def launch_question(job: str = "build_canary", *assets: str, **run_config: Any) -> dict[str, Any]:
    """Variables of the mutation that puts a run into the queue; ``assets``: of these of the job only."""
    selector: dict[str, Any] = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "hailo-pipeline",
        "jobName": job,
    }
    if assets:
        selector["assetSelection"] = [{"path": asset.split("/")} for asset in assets]
    return {"run": {"selector": selector, "runConfigData": run_config}}


class Hosts:
    """Both hosts of one folder.

    Args:
        folder: Postgres, both homes, compute logs and the workbench lie in it.
        base: Ends Postgres, after everything else.
        children: Ends the rest.
        logs: Folder for what they write, nobody else's.
        ports: ``postgres``, ``code``, ``webserver``, ``readonly``; a free one where it is not named.
        code_module: The code location, in place of the committed one.
    """

    def __init__(
        self,
        folder: Path,
        base: Children,
        children: Children,
        logs: Path,
        *,
        ports: Mapping[str, int] | None = None,
        code_module: str = CODE_MODULE,
    ) -> None:
        self.folder, self.base, self.children, self.logs = folder, base, children, logs
        self.code_module = code_module
        self.ports: dict[str, int] = {}
        for name in ("postgres", "code", "webserver", "readonly"):
            wanted = (ports or {}).get(name) or free_port(*self.ports.values())
            self.ports[name] = wanted
        self.url, self.readonly_url = (f"http://{HOST}:{self.ports[n]}" for n in ("webserver", "readonly"))
        self.cluster = Cluster(folder / "postgres", self.ports["postgres"])
        self.running: dict[str, Child] = {}
        self._started = 0

    def home(self, host: str) -> Path:
        """Dagster's home on ``ui`` or ``gpusrv``."""
        return self.folder / host / "dagster_home"

    def environment(self, host: str) -> dict[str, str]:
        """What the host's environment file would say."""
        home = self.home(host)
        common = {
            "DAGSTER_HOME": str(home),
            "DAGSTER_ARTIFACTS_DIR": str(home / "storage"),
            "DAGSTER_COMPUTE_LOGS_DIR": str(self.folder / "compute_logs"),
            "DAGSTER_CODE_HOST": HOST,
            "DAGSTER_CODE_PORT": str(self.ports["code"]),
            "DAGSTER_PG_HOST": HOST,
            "DAGSTER_PG_PORT": str(self.ports["postgres"]),
            "DAGSTER_PG_USER": USER,
            "DAGSTER_PG_PASSWORD": self.cluster.password,
            "DAGSTER_PG_DB": DATABASE,
            "PYTHONWARNINGS": "ignore",
        }
        if host == "ui":
            ports = {"DAGSTER_UI_PORT": "webserver", "DAGSTER_READONLY_PORT": "readonly"}
            return {**common, "DAGSTER_UI_HOST": HOST} | {k: str(self.ports[v]) for k, v in ports.items()}
        workbench = os.environ.get("BUILD_DIR") or str(self.folder / "gpusrv" / "build")
        settings = BuildSettings.from_environment({**os.environ, "BUILD_DIR": workbench})
        ours = {"BUILD_DIR": workbench, "DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD": "5"}
        return {**common, **ours, **signing_settings(settings)}

    def start(self) -> None:
        """Start everything; returns when a build can be launched.

        Raises:
            PostgresError: Postgres is not installed, or does not start.
            DistributedError: Another part does not come up; with its last lines.
        """
        self.cluster.make()
        self.start_one("postgres")
        for host in ("ui", "gpusrv"):
            home = self.home(host)
            home.mkdir(parents=True, exist_ok=True)
            link = home / "dagster.yaml"
            link.unlink(missing_ok=True)
            link.symlink_to(DEPLOY / "dagster.yaml")
        (self.folder / "compute_logs").mkdir(exist_ok=True)
        # One after the other: whoever is first makes Dagster's tables.
        for name, listening in (("code", "code"), ("webserver", "webserver"), ("readonly", "readonly")):
            child = self.start_one(name)
            if not child.wait_for(lambda port=self.ports[listening]: _listens(port), START_SECONDS):  # type: ignore[misc]
                raise DistributedError(f"{name} does not listen\n{child.last_lines()}")
        child = self.start_one("daemon")
        if not child.wait_for(self.ready, START_SECONDS):
            raise DistributedError(f"the UI does not see code location and daemon\n{child.last_lines()}")

    def start_one(self, name: str) -> Child:
        """Start ``postgres`` or one of ``UNITS``; its output goes to a file of its own."""
        self._started += 1
        log = self.logs / f"{name}-{self._started}.log"
        if name == "postgres":
            child = self.cluster.start(self.base, log)
        else:
            environment = self.environment("gpusrv" if name == "code" else "ui")
            command = unit_command(UNITS[name], environment)
            if name == "code":
                command = [self.code_module if word == CODE_MODULE else word for word in command]
            child = self.children.start(name, command, environment=environment, log=log, grace=CODE_GRACE)
            child.asked_by(signal.SIGTERM, all_of_it=True)  # as the units say
        self.running[name] = child
        return child

    def stop_one(self, name: str) -> None:
        """End one of them, and all that it started."""
        (self.base if name == "postgres" else self.children).end(self.running.pop(name))

    def ready(self) -> bool:
        """Whether the UI sees the code location, and a daemon at work."""
        try:
            answer = graphql(self.url, _READY)
            entries = answer["workspaceOrError"]["locationEntries"]
            daemons = answer["instance"]["daemonHealth"]["allDaemonStatuses"]
        except (OSError, DistributedError, LookupError, TypeError):
            return False
        located = [(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries]
        return located == ["RepositoryLocation"] and all(
            daemon["healthy"] for daemon in daemons if daemon["required"]
        )

    def launch(self, job: str = "build_canary", *assets: str, **run_config: Any) -> str:
        """Put a run into the queue, as the Launchpad does; its id.

        Raises:
            DistributedError: It was refused.
        """
        answer = graphql(self.url, LAUNCH, **launch_question(job, *assets, **run_config))["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise DistributedError(f"{job} was refused: {answer}", where=self.url)
        run_id: str = answer["run"]["runId"]
        return run_id

    def keep_alive(self) -> None:
        """Start again what ends by itself, until somebody asks to end."""
        while True:
            self.revive(self.children.wait_for_first(list(self.running.values())))

    def revive(self, ended: Child) -> None:
        """Start one again that ended by itself, as ``Restart=always`` does: first what it left is ended."""
        say(f"{ended.name} ended by itself ({ended.process.returncode}): started again")
        say(ended.last_lines(3))
        self.stop_one(ended.name)
        time.sleep(RESTART_SECONDS)
        self.start_one(ended.name)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder: two of these would start one cluster twice.

    Raises:
        DistributedError: Another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DistributedError(
                "another one is at work here", where=str(folder), hint="end it, or name another --folder"
            ) from error
        yield


@contextlib.contextmanager
def both_hosts(
    folder: Path, ports: Mapping[str, int] | None = None, code_module: str = CODE_MODULE
) -> Iterator[Hosts]:
    """Both hosts while they run; Postgres ends last, so that what ends before it can still say so."""
    folder = folder.resolve()
    with alone_in(folder), log_folder(folder / "logs", "distributed") as logs:  # noqa: SIM117 - in this order
        with Children() as base, Children() as children:
            hosts = Hosts(folder, base, children, logs, ports=ports, code_module=code_module)
            hosts.start()
            yield hosts


def tell(hosts: Hosts) -> None:
    """Addresses, and how to launch a build."""
    body = hosts.folder / "launch.json"
    body.write_text(json.dumps({"query": LAUNCH, "variables": launch_question()}))
    words = ["curl", "-s", f"{hosts.url}/graphql", "-H", "Content-Type: application/json", "-d", f"@{body}"]
    say()
    say(f"UI host     {hosts.url}   (webserver, daemon)")
    say(f"read only   {hosts.readonly_url}   (for people who look)")
    say(f"GPUSrv      {HOST}:{hosts.ports['code']}   (code location; builds are its children)")
    say(
        f"Postgres    {HOST}:{hosts.ports['postgres']}   (password: {hosts.folder / 'postgres' / 'password'})"
    )
    say(f"logs        {hosts.logs}")
    say(f"build       {hosts.url}/locations/hailo-pipeline/jobs/build_canary/playground")
    say(f"            or: {shlex.join(words)}")
    say("            New weights and changed windows are built without being asked.")
    say("serving until Ctrl-C")


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 where Ctrl-C ended it."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.distributed", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "artifacts" / "distributed")
    for name, default, what in (
        ("ui-port", 3000, "of the UI"),
        ("readonly-port", 3001, "of the read-only UI"),
        ("code-port", 4266, "of the code location on GPUSrv"),
        ("postgres-port", 0, "of Postgres"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"port {what} (default {default}, 0: a free one)"
        )
    options = parser.parse_args(argv)
    wanted = {"webserver": options.ui_port, "readonly": options.readonly_port, "code": options.code_port}
    try:
        named = [port for port in wanted.values() if port]
        if len(set(named)) < len(named):
            raise LocalError(f"ports {wanted} are not all different")
        for name, port in (wanted | {"postgres": options.postgres_port}).items():
            if port:
                check_free(f"--{name.replace('webserver', 'ui')}-port", port)
        say(f"starting Postgres, GPUSrv and the UI host in {options.folder}")
        with both_hosts(options.folder, {**wanted, "postgres": options.postgres_port}) as hosts:
            tell(hosts)
            hosts.keep_alive()
    except (Stopped, KeyboardInterrupt):
        say("stopped")
        return 0
    except (PipelineError, OSError) as error:
        print(f"distributed: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
