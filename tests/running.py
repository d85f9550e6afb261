"""``make run`` for tests: started on free ports, read until it serves, ended with Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from runtime.contract.store import Release, ReleaseStore
from tests.chain import ROOT
from tests.keys import a_store
from tests.simulators import free_port


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    return [free_port() for _ in range(count)]


@dataclass
class Running:
    """A platform that says that it serves."""

    process: subprocess.Popen[str]
    printed: str
    url: str
    ui_url: str
    reports_url: str
    store: ReleaseStore

    def canary(self) -> Release:
        return self.store.resolve("emulator", "canary")

    def family(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children


def start(root: Path, *, ignore_sigint: bool = False, **settings: str) -> Running:
    """Start ``run`` in the folder and read what it prints until it serves."""
    port, ui_port = free_ports(2)
    environment = {
        **os.environ,
        "PORT": str(port),
        "UI_PORT": str(ui_port),
        "BUILD_DIR": str(root / "build"),
        "RELEASE_STORE": str(root / "releases"),
        "DAGSTER_HOME": str(root / "dagster_home"),
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.local", "run"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell does to a command that it starts with `&`.
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignore_sigint else None,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "serving until Ctrl-C" in line:
            break
    printed = "".join(lines)
    assert "serving until Ctrl-C" in printed, printed
    reports = re.search(r"^report +(http://127\.0\.0\.1:\d+)", printed, re.M)
    assert reports, printed
    return Running(
        process,
        printed,
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{ui_port}",
        reports[1],
        a_store(root / "releases"),
    )


def end(running: Running) -> None:
    """Ctrl-C, and not one process may be left."""
    family = running.family()
    assert len(family) >= 5, [p.name() for p in family]
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    for url in (running.url, running.ui_url, running.reports_url):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
