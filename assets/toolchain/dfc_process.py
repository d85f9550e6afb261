"""Runs the worker in the Dataflow Compiler's own Python, hears it while it works, and ends all of it.

Each call has a private folder that is new and gone afterwards (it stays where we are killed), a process group
and session of its own, and an environment without ours. The worker's children end with it, and all of them
with us, however we end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from assets.toolchain import dfc_errors
from assets.toolchain.dfc_errors import DfcOutputError, DfcStaleError
from runtime.contract.document import sha256_bytes

GRACE_SECONDS: Final = 5.0
MOST_LOG_CHARACTERS: Final = 200_000
_POLL_SECONDS: Final = 0.05
_WORKER: Final = Path(__file__).with_name("dfc_worker.py")
_OWN_LOGS: Final = ("hailo_sdk.client.log", "hailo_sdk.core.log", "acceleras.log")
_OURS: Final = re.compile(
    r"PYTHON.*|VIRTUAL_ENV.*|DAGSTER_.*|PYTEST_.*|BUILD_.*|RELEASE_.*|REPORTS_.*|GUNICORN_.*|WEIGHTS_DIR|CALIB_DIR"
    r"|HAILO_DFC_PYTHON|HAILO_LOCK_DIR|COVERAGE_.*|TOX_.*|HEF_PATH|NUM_MOTIFS|TARGET|HOST|PORT|UI_PORT|LOG_LEVEL|WEB_CONCURRENCY|MAKE.*|MFLAGS"
    r"|FAILURE_WEBHOOK_URL|PROMETHEUS_.*|RUNTIME_URLS|CANARY_.*|TRUST_ROOT|UI_URL|BUILDS|NIGHTLY_CRON|TELEMETRY_.*"
)
_SECRET: Final = re.compile(
    r"PG[A-Z]+|SSH_AUTH_SOCK|GPG_AGENT_INFO|"
    r".*(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIAL|WEBHOOK|ACCESS_KEY|API_KEY|PRIVATE_KEY|KEY_FILE"
    r"|DATABASE_URL|_DSN).*",
    re.IGNORECASE,
)
"""Whose names say that they are somebody's secrets, or the way to them."""
_FOR_THE_COMPILER: Final = re.compile(r"HAILO_.*|CUDA_.*|.*_PROXY", re.IGNORECASE)
"""What may look like a secret and is meant for it: its licence, the way to the network."""
_URL_WITH_PASSWORD: Final = re.compile(r"\w+://[^/@\s]*:[^/@\s]+@")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Listener:
    """Hears the worker while it works; this one hands it to Python's logging."""

    _log: Final = logging.getLogger(__name__)

    def line(self, verb: str, text: str) -> None:
        """The DFC printed a line."""
        self._log.info("%s: %s", verb, text)

    def fact(self, verb: str, name: str, value: str) -> None:
        """The worker told something worth keeping."""
        self._log.info("%s: %s is %s", verb, name, value)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call gave.

    Args:
        facts: What the worker told: ``dfc``, ``python``, ``gpus``, ...
        files: Its outputs by name.
        log: Everything that the DFC printed and what stands in its own log files, line by line; ``shortened``
            cuts it to what is kept.
    """

    facts: dict[str, str]
    files: dict[str, bytes]
    log: tuple[str, ...]


class DfcInterpreter:
    """The Python that has the DFC.

    Args:
        python: Its executable.
        listener: Hears the worker while it works.
    """

    def __init__(self, python: str, listener: Listener | None = None) -> None:
        self.python = python
        self.listener = listener or Listener()

    def ask(
        self,
        verb: str,
        options: Sequence[str] = (),
        *,
        inputs: Mapping[str, bytes] | None = None,
        outputs: Sequence[str] = (),
        seconds: float,
        listener: Listener | None = None,
    ) -> Answer:
        """Let the worker do one thing.

        Args:
            verb: One of the worker's.
            options: Its command line; files by their names, in the private folder.
            inputs: Files to put there.
            outputs: Files that must be there afterwards, written by this very call.
            seconds: It is ended after that.
            listener: Hears it this time; it may raise to end it.

        Raises:
            DfcError: One of ``dfc_errors``, which says what to do.
        """
        with tempfile.TemporaryDirectory(prefix="dfc-", ignore_cleanup_errors=True) as place:
            folder = Path(place)
            for name, data in (inputs or {}).items():
                (folder / name).write_bytes(data)
            (folder / "tmp").mkdir()
            # A copy: its folder is what Python puts first on its path.
            shutil.copy(_WORKER, folder)
            nonce = secrets.token_hex(16)
            command = [
                self.python,
                _WORKER.name,
                verb,
                *options,
                "--events",
                "events.jsonl",
                "--nonce",
                nonce,
            ]
            heard = _Heard(verb, nonce, folder, listener or self.listener)
            before = oom_kills()
            status = self._run(command, folder, heard, seconds)
            if status == 0 and heard.done is not None:
                return heard.answer(outputs)
            raise self._failure(status, heard, oom_kills() - before)

    def _failure(self, status: int, heard: _Heard, killed: int) -> dfc_errors.DfcError:
        """Why there is no answer, as far as anybody said."""
        verb = heard.verb
        if heard.failed is not None:
            return dfc_errors.failed(verb, heard.failed, heard.log())
        if heard.strangers:
            return DfcStaleError(
                f"{verb} ended, and what it told belongs to another call",
                where=self.python,
                hint="HAILO_DFC_PYTHON must start Python on the file that it is given, and keep nothing",
            )
        if status == 0:
            return DfcOutputError(
                f"{verb} ended without an error and without an answer",
                where=f"HAILO_DFC_PYTHON={self.python}",
                hint="is it a Python? `HAILO_DFC_PYTHON --version` must say 3.10 or newer",
            )
        return dfc_errors.ended(verb, status, heard.log(), oom_kills=killed)

    def _run(self, command: Sequence[str], folder: Path, heard: _Heard, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        with self._started(command, folder) as process:
            while (status := process.poll()) is None:
                heard.listen()
                if time.monotonic() > deadline:
                    raise dfc_errors.timed_out(heard.verb, seconds, heard.log())
                time.sleep(_POLL_SECONDS)
            heard.listen(last=True)
            return status

    @contextlib.contextmanager
    def _started(self, command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The worker; whatever happens inside, it and its children have ended afterwards."""
        theirs, ours = os.pipe()
        try:
            with (folder / _Heard.OUTPUT).open("xb") as output:
                process = subprocess.Popen(
                    [*command, "--alive", str(theirs)],
                    cwd=folder,
                    env=environment(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[theirs],
                )
        except OSError as error:
            os.close(ours)
            raise dfc_errors.python_unusable(self.python, error) from error
        finally:
            os.close(theirs)
        try:
            yield process
        finally:
            end_group(process)
            os.close(ours)


def end_group(process: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """End a process that leads its group, and everybody in it: asked first, then killed.

    Never by SIGINT: during fine-tuning the DFC takes that for "enough trained" and goes on.
    """
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        # Also where it ended by itself: a child of its own may have stayed. Or somebody lost patience.
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def environment(folder: Path) -> dict[str, str]:
    """What the worker gets: ours without what is for our Python, Dagster or this project, and no secrets.

    What is meant for the DFC (CUDA, proxies, its licence, and names that nobody here knows) is handed on.
    """
    kept = {name: value for name, value in os.environ.items() if not _withheld(name, value)}
    own = str(Path(sys.executable).parent)
    parts = kept.get("PATH", os.defpath).split(os.pathsep)
    kept["PATH"] = os.pathsep.join(part for part in parts if part != own)
    return {**kept, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder / "tmp")}


def _withheld(name: str, value: str) -> bool:
    if _OURS.fullmatch(name):
        return True
    if _FOR_THE_COMPILER.fullmatch(name):
        return False
    return bool(_SECRET.fullmatch(name) or _URL_WITH_PASSWORD.search(value))


def oom_kills() -> int:
    """How many processes this kernel ended for want of memory; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


class _Heard:
    """What a worker prints and tells, as far as it got."""

    OUTPUT: Final = "output.txt"
    EVENTS: Final = "events.jsonl"

    def __init__(self, verb: str, nonce: str, folder: Path, listener: Listener) -> None:
        self.verb, self.nonce, self.folder, self.listener = verb, nonce, folder, listener
        self.facts: dict[str, str] = {}
        self.done: dict[str, Any] | None = None
        self.failed: dict[str, Any] | None = None
        self.strangers = 0
        self.lines: list[str] = []
        self._read = {self.OUTPUT: 0, self.EVENTS: 0}

    def listen(self, *, last: bool = False) -> None:
        """Take in what came since; the last time also a line without an end."""
        for line in self._new(self.OUTPUT, last):
            self.lines.append(line)
            self.listener.line(self.verb, line)
        for line in self._new(self.EVENTS, last):
            self._event(line)

    def _new(self, name: str, last: bool) -> list[str]:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(self._read[name])
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data if last else data[: data.rfind(b"\n") + 1]
        self._read[name] += len(whole)
        return clean_lines(whole)

    def _event(self, line: str) -> None:
        try:
            event = json.loads(line)
            mine, kind = event["nonce"] == self.nonce, event["event"]
        except (ValueError, LookupError, TypeError):
            self.strangers += 1
            return
        if not mine:
            self.strangers += 1
        elif kind == "fact":
            name, value = str(event.get("name")), str(event.get("value"))
            self.facts[name] = value
            self.listener.fact(self.verb, name, value)
        elif kind == "done":
            self.done = event
        elif kind == "failed":
            self.failed = event

    def log(self) -> tuple[str, ...]:
        """What was printed, and what only stands in the DFC's own log files."""
        lines, printed = list(self.lines), set(self.lines)
        for name in _OWN_LOGS:
            with contextlib.suppress(OSError):
                said = clean_lines((self.folder / name).read_bytes())
                lines += [f"{name}: {line}" for line in said if line not in printed]
        return tuple(lines)

    def answer(self, outputs: Sequence[str]) -> Answer:
        """The outputs, each the file that the worker says it wrote."""
        told = (self.done or {}).get("files", {})
        files = {}
        for name in outputs:
            path = self.folder / name
            data = path.read_bytes() if path.is_file() else b""
            if not data or name not in told:
                state = "empty, or not what it wrote" if path.exists() else "not there"
                raise DfcOutputError(
                    f"{self.verb} says that it worked, and {name} is {state}",
                    hint="see the DFC's log for what it did instead",
                )
            if sha256_bytes(data) != told[name]:
                raise DfcOutputError(
                    f"{self.verb}: {name} is not the file that the worker wrote",
                    hint="something else wrote into its private folder",
                )
            files[name] = data
        return Answer(facts=dict(self.facts), files=files, log=self.log())


def shortened(lines: Sequence[str]) -> str:
    """The end of a log, at most ``MOST_LOG_CHARACTERS``; says how much is left out."""
    kept: list[str] = []
    size = 0
    for line in reversed(lines):
        size += len(line) + 1
        if size > MOST_LOG_CHARACTERS:
            kept.append(f"({len(lines) - len(kept)} lines before are left out)")
            break
        kept.append(line)
    return "\n".join(reversed(kept))


def clean_lines(data: bytes) -> list[str]:
    """Lines without colours and, of a progress bar, only its last state; none that is empty."""
    text = _COLOUR.sub("", data.decode(errors="replace"))
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line]
