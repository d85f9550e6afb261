"""UI host and GPUSrv for real, on one machine: where a build runs, and what survives which failure."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from orchestration.distributed import LAUNCH, Hosts, both_hosts, graphql, launch_question
from runtime.contract.files import LEFTOVERS
from tests.chain import ROOT
from tests.dfc import all_ended, dfc_python
from tests.keys import a_store
from tests.running import free_ports
from tests.simulators import wait_for

pytestmark = [
    pytest.mark.build,
    pytest.mark.slow,
    pytest.mark.needs("postgres"),
    pytest.mark.timeout(600),
]
PATIENCE = 240.0
NO_PORTS = [word for name in ("ui", "readonly", "code") for word in (f"--{name}-port", "0")]
COMPILE = "hailo8/quantized_har"
"""Where the compiler is at work for long; a release of its double would be refused."""
EMULATOR = ("quantized_har", "hef", "parity_report", "canary_release")
TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename
  ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
LOGS = """query($run: ID!) { runOrError(runId: $run) { ... on Run { eventConnection { events {
  __typename ... on LogsCapturedEvent { fileKey } } } } } }"""
CAPTURED = """query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"""


class GpuSrv:
    """The two hosts, and what a test asks of them."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.pids, self.go = folder / "pids", folder / "go"
        self.store = a_store(folder / "releases")

    def compiler(self, fault: str) -> None:
        """What the compiler does from now on: ``optimize:wait`` waits for ``go``."""
        self.pids.unlink(missing_ok=True)
        self.go.unlink(missing_ok=True)
        environment = {"DFC_DOUBLE_PIDS": str(self.pids), "DFC_DOUBLE_GO": str(self.go)}
        dfc_python(self.folder, environment | ({"DFC_DOUBLE_FAULT": fault} if fault else {}))

    def compile(self) -> str:
        """Put a run into the queue that asks the compiler, whatever is in the cache."""
        spared = {"ops": {"hailo8__quantized_har": {"config": {"use_cache": False}}}}
        return self.hosts.launch("build_canary", COMPILE, **spared)

    def emulate(self) -> str:
        """Put a run into the queue that builds a canary for the emulator."""
        return self.hosts.launch("build_canary", *(f"emulator/{name}" for name in EMULATOR))

    def stuck_run(self, fault: str = "optimize:hang") -> str:
        """A run whose compiler is at work and stays so."""
        self.compiler(fault)
        run = self.compile()
        self.wait(self.pids.exists, "the compiler at work")
        return run

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        return wait_for(condition, what, PATIENCE)

    def ask(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        """What is in Postgres."""
        connection = psycopg2.connect(**self.hosts.cluster.settings())
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def status(self, run: str) -> str:
        ((status,),) = self.ask("SELECT status FROM runs WHERE run_id = %s", run)
        return str(status)

    def ends(self, run: str) -> str:
        """How the run ended, once it did."""
        ended = ("SUCCESS", "FAILURE", "CANCELED")
        self.wait(lambda: self.status(run) in ended, f"the end of run {run}")
        return self.status(run)

    def told(self, run: str, words: str) -> bool:
        """Whether an event of the run says so."""
        found = self.ask("SELECT 1 FROM event_logs WHERE run_id = %s AND event LIKE %s", run, f"%{words}%")
        return bool(found)

    def code(self) -> psutil.Process:
        """The server of the code location, on GPUSrv."""
        return psutil.Process(self.hosts.running["code"].process.pid)

    def worker(self) -> psutil.Process:
        """The process of the run whose compiler is at work."""
        compiler = psutil.Process(int(self.pids.read_text().split()[0]))
        (worker,) = [each for each in compiler.parents() if each.ppid() == self.code().pid]
        return worker

    def channels(self) -> dict[str, str | None]:
        moved = {target: self.store.current(target, "canary") for target in ("hailo8", "emulator")}
        return {target: entry.release if entry else None for target, entry in moved.items()}

    def leftovers(self) -> list[Path]:
        """What somebody began to write and did not end."""
        places = (self.folder / "releases", self.hosts.folder / "gpusrv" / "build")
        return [path for place in places for path in place.rglob(".*") if path.name.startswith(LEFTOVERS)]

    def nothing_half_made(self, before: dict[str, str | None]) -> None:
        """No channel moved, no file was begun, and every byte of the store is right."""
        assert self.channels() == before
        assert self.leftovers() == []
        for release in self.store.identifiers():
            self.store.open(release)

    def next_run_works(self) -> None:
        """A build on the same hosts, compiler included."""
        self.compiler("")
        assert self.ends(self.compile()) == "SUCCESS"


@pytest.fixture(scope="module")
def gpusrv() -> Iterator[GpuSrv]:
    # pytest's own folders are closed to the user that Postgres runs as where we are root.
    folder = Path(tempfile.mkdtemp(prefix="hailo-distributed-"))
    folder.chmod(0o711)
    settings = {
        "BUILD_TARGETS": "hailo8,emulator",
        "HAILO_DFC_PYTHON": dfc_python(folder, {}),
        "RELEASE_STORE": str(folder / "releases"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        with both_hosts(folder / "hosts", code_module="tests.orchestration.gpusrv_double") as hosts:
            one = GpuSrv(hosts, folder)
            assert one.ends(hosts.launch("observe_weights")) == "SUCCESS"
            inputs = hosts.launch("build_canary", "calibration_set", "onnx_model")
            assert one.ends(inputs) == "SUCCESS"
            yield one
    shutil.rmtree(folder)


def test_the_compiler_is_a_child_of_gpusrv_and_the_run_is_in_postgres(gpusrv: GpuSrv) -> None:
    run = gpusrv.stuck_run("optimize:wait")
    compiler, its_child = (psutil.Process(int(pid)) for pid in gpusrv.pids.read_text().split())
    assert gpusrv.code() in compiler.parents()
    assert gpusrv.code() in its_child.parents()
    for name in ("webserver", "daemon", "readonly"):
        host = psutil.Process(gpusrv.hosts.running[name].process.pid)
        assert host not in compiler.parents()
        assert host.environ()["DAGSTER_HOME"] != compiler.parents()[0].environ()["DAGSTER_HOME"]
    assert gpusrv.status(run) == "STARTED"
    gpusrv.go.touch()
    assert gpusrv.ends(run) == "SUCCESS"
    assert gpusrv.told(run, "Starting Model Optimization")
    assert not list(gpusrv.hosts.folder.rglob("*.db"))


def test_what_a_run_prints_is_read_in_the_ui(gpusrv: GpuSrv) -> None:
    run = gpusrv.emulate()
    assert gpusrv.ends(run) == "SUCCESS"
    events = graphql(gpusrv.hosts.url, LOGS, run=run)["runOrError"]["eventConnection"]["events"]
    (file,) = [event["fileKey"] for event in events if event["__typename"] == "LogsCapturedEvent"]
    printed = graphql(gpusrv.hosts.url, CAPTURED, key=[run, "compute_logs", file])["capturedLogs"]
    assert f"{run} - " in printed["stderr"]
    assert "emulator__canary_release" in printed["stderr"]
    assert gpusrv.channels()["emulator"]


def test_one_builds_and_the_other_waits_and_a_cancelled_one_makes_room(gpusrv: GpuSrv) -> None:
    before = gpusrv.channels()
    first = gpusrv.stuck_run()
    second = gpusrv.emulate()
    # Asked for later, and in no pool: the daemon passed the second by.
    assert gpusrv.ends(gpusrv.hosts.launch("observe_weights")) == "SUCCESS"
    assert (gpusrv.status(first), gpusrv.status(second)) == ("STARTED", "QUEUED")
    answer = graphql(gpusrv.hosts.url, TERMINATE, run=first)["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess", answer
    assert gpusrv.ends(first) == "CANCELED"
    gpusrv.wait(lambda: all_ended(gpusrv.pids), "the end of the compiler and its child")
    assert gpusrv.ends(second) == "SUCCESS"
    gpusrv.nothing_half_made(before)


def test_the_queue_is_kept_while_the_code_server_restarts(gpusrv: GpuSrv) -> None:
    before = gpusrv.channels()
    first = gpusrv.stuck_run()
    second = gpusrv.emulate()
    gpusrv.hosts.stop_one("code")
    try:
        assert gpusrv.ends(first) == "FAILURE"
        assert all_ended(gpusrv.pids)
        gpusrv.wait(lambda: gpusrv.told(second, "re-submitting the run into the queue"), "an attempt in vain")
        # While it is tried it is said to be starting.
        gpusrv.wait(lambda: gpusrv.status(second) == "QUEUED", "its return into the queue")
    finally:
        gpusrv.hosts.start_one("code")
    assert gpusrv.ends(second) == "SUCCESS"
    gpusrv.nothing_half_made(before)


def test_a_killed_worker_is_marked_and_its_compiler_ends(gpusrv: GpuSrv) -> None:
    before = gpusrv.channels()
    run = gpusrv.stuck_run()
    gpusrv.worker().kill()
    assert gpusrv.ends(run) == "FAILURE"
    gpusrv.wait(lambda: all_ended(gpusrv.pids), "the end of the compiler and its child")
    gpusrv.nothing_half_made(before)
    gpusrv.next_run_works()


def test_a_killed_server_takes_its_build_along_and_is_started_again(gpusrv: GpuSrv) -> None:
    before = gpusrv.channels()
    run = gpusrv.stuck_run()
    gpusrv.code().kill()
    gpusrv.hosts.children.wait_for_first([gpusrv.hosts.running["code"]])
    gpusrv.hosts.revive(gpusrv.hosts.running["code"])
    assert gpusrv.ends(run) == "FAILURE"
    gpusrv.wait(lambda: all_ended(gpusrv.pids), "the end of the compiler and its child")
    gpusrv.nothing_half_made(before)
    gpusrv.next_run_works()


def test_a_build_during_which_the_database_was_away_is_marked(gpusrv: GpuSrv) -> None:
    before = gpusrv.channels()
    run = gpusrv.stuck_run("optimize:wait")
    worker = gpusrv.worker()
    gpusrv.hosts.stop_one("postgres")
    gpusrv.go.touch()
    gpusrv.wait(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "its end")
    # Dagster's server wants to mark the run, cannot, and from then on looks after nobody's worker.
    log = gpusrv.hosts.running["code"].log
    assert log is not None
    gpusrv.wait(lambda: "Exception in thread grpc-server-cleanup" in log.read_text(), "its thread's end")
    gpusrv.hosts.start_one("postgres")
    assert gpusrv.ends(run) == "FAILURE"
    assert gpusrv.told(run, f"its worker (process {worker.pid}) is gone")
    gpusrv.nothing_half_made(before)
    gpusrv.next_run_works()
    run = gpusrv.stuck_run()
    gpusrv.worker().kill()
    assert gpusrv.ends(run) == "FAILURE"
    assert all_ended(gpusrv.pids)


def test_who_must_not_promote_has_a_ui_that_only_shows(gpusrv: GpuSrv) -> None:
    for url in (gpusrv.hosts.url, gpusrv.hosts.readonly_url):
        answer = graphql(url, LAUNCH, **launch_question("observe_weights"))["launchRun"]["__typename"]
        refused = url == gpusrv.hosts.readonly_url
        assert answer == ("UnauthorizedError" if refused else "LaunchRunSuccess")


def started(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """``make up-distributed``, and what it printed until it serves or ends."""
    ports = [
        word
        for name, port in zip(("ui", "readonly", "code"), free_ports(3), strict=True)
        for word in (f"--{name}-port", str(port))
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.distributed", "--folder", str(folder), *ports],
        cwd=ROOT,
        env={**os.environ, "RELEASE_STORE": str(folder / "releases")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if "serving until Ctrl-C" in line:
            break
    return process, printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals) -> None:
    folder = Path(tempfile.mkdtemp(prefix="hailo-distributed-"))
    folder.chmod(0o711)
    process, printed = started(folder)
    try:
        assert "serving until Ctrl-C" in printed, printed
        family = psutil.Process(process.pid).children(recursive=True)
        words = {Path(word).name for one in family for word in one.cmdline()[:2]}
        assert {"postgres", "dagster", "dagster-daemon", "dagster-webserver"} <= words
        other = subprocess.run(
            [sys.executable, "-m", "orchestration.distributed", "--folder", folder, *NO_PORTS],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "another one is at work here" in other.stderr
        process.send_signal(number)
        assert process.wait(60) == (0 if number == signal.SIGINT else -signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert alive == []
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(folder)
