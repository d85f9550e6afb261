"""The image in a sandbox: built by the testbed, its root read-only, its user 1000."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx

from tests.chain import ROOT
from tests.requirements import program
from tests.simulators import wait_for

ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
"""This machine's, as Debian names it."""


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def build(testbed: Path, tag: str, context: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Build a folder's ``Dockerfile.runtime`` for this machine; one build at a time, whoever asks."""
    # The testbed makes its base image at first use, at one place: two at once would write it together.
    with (Path(tempfile.gettempdir()) / "hailo-pipeline-image.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        return run(testbed / "image", "build", ARCHITECTURE, "Dockerfile.runtime", tag, cwd=context)


def file_system(testbed: Path, tag: str, folder: Path) -> Path:
    """The image's file system, in a folder that is made."""
    copied = run(testbed / "image", "rootfs", tag, folder)
    assert copied.returncode == 0, copied.stderr
    return folder


class Container:
    """The image's command in a sandbox: its root read-only, uid 1000, nothing to write but memory.

    Args:
        rootfs: The image's file system.
        store: Mounted read-only as ``/models``.
        trust: The folder with ``root.json``.
        port: Where it listens, on 127.0.0.1.
        mounts: Place inside to a folder of this machine, read-only.
        settings: Further variables of the runtime.
    """

    def __init__(
        self,
        rootfs: Path,
        store: Path,
        trust: Path,
        port: int,
        mounts: dict[str, Path] | None = None,
        **settings: str,
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._words = [
            str(program("bwrap")),
            *("--ro-bind", str(rootfs), "/", "--proc", "/proc", "--dev", "/dev"),
            *("--tmpfs", "/tmp", "--tmpfs", "/dev/shm"),
            *("--ro-bind", str(store), "/models", "--ro-bind", str(trust), "/etc/hailo-pipeline"),
            *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--uid", "1000", "--gid", "1000"),
            *("--die-with-parent", "--new-session", "--clearenv"),
        ]
        for place, folder in (mounts or {}).items():
            self._words += ["--ro-bind", str(folder), place]
        variables = {
            "PATH": "/opt/runtime/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": "/app",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "RELEASE_STORE": "/models",
            "TRUST_ROOT": "/etc/hailo-pipeline/root.json",
            "RELEASE_CHANNEL": "canary",
        }
        for name, value in (variables | settings).items():
            self._words += ["--setenv", name, value]
        self._words += ["--chdir", "/app"]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return run(*self._words, *command)

    @contextlib.contextmanager
    def serving(self, log: Path) -> Iterator[None]:
        """As the image's ENTRYPOINT and CMD say, from its first answer, whatever that is."""
        words = ["/usr/bin/tini", "--", "gunicorn", "-c", "/app/runtime/gunicorn.conf.py"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self._words, *words, "--worker-tmp-dir", "/dev/shm", "runtime.asgi:app"],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.url}/healthz")
                return True
            return False

        try:
            wait_for(answers, "the container's server", 60)
            yield
        finally:
            process.terminate()
            process.wait(30)

    def health(self) -> Any:
        """What ``/healthz`` says."""
        return httpx.get(f"{self.url}/healthz").json()
