"""The image: built for real, and serving from a read-only mount as uid 1000 with a read-only root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chain import ROOT
from tests.requirements import program
from tests.running import free_ports
from tests.simulators import ReleaseSimulator, imu_windows, infer_body, wait_for

MOST_BYTES = 230_000_000
"""Above the base and its Python: what the runtime brings."""
PACKAGES = ROOT / "deploy" / "image" / "packages.sh"


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def rootfs(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's file system."""
    built = run(testbed / "image", "build", "amd64", "Dockerfile.runtime", "hailo-inference", cwd=ROOT)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    folder = tmp_path_factory.mktemp("image") / "root"
    copied = run(testbed / "image", "rootfs", "hailo-inference", folder)
    assert copied.returncode == 0, copied.stderr
    return folder


class Container:
    """The image's command in a sandbox: its root read-only, uid 1000, nothing to write but memory."""

    def __init__(self, rootfs: Path, store: Path, trust: Path, port: int) -> None:
        self.port = port
        self._words = [
            str(program("bwrap")),
            *("--ro-bind", str(rootfs), "/", "--proc", "/proc", "--dev", "/dev"),
            *("--tmpfs", "/tmp", "--tmpfs", "/dev/shm"),
            *("--ro-bind", str(store), "/models", "--ro-bind", str(trust), "/etc/hailo-pipeline"),
            *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--uid", "1000", "--gid", "1000"),
            *("--die-with-parent", "--new-session", "--clearenv"),
        ]
        settings = {
            "PATH": "/opt/runtime/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": "/app",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "RELEASE_STORE": "/models",
            "TRUST_ROOT": "/etc/hailo-pipeline/root.json",
            "RELEASE_CHANNEL": "canary",
        }
        for name, value in settings.items():
            self._words += ["--setenv", name, value]
        self._words += ["--chdir", "/app"]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return run(*self._words, *command)

    def serve(self, log: Path) -> subprocess.Popen[bytes]:
        """As the image's ENTRYPOINT and CMD say."""
        words = ["/usr/bin/tini", "--", "gunicorn", "-c", "/app/runtime/gunicorn.conf.py"]
        with log.open("wb") as out:
            return subprocess.Popen(
                [*self._words, *words, "--worker-tmp-dir", "/dev/shm", "runtime.asgi:app"],
                stdout=out,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture
def container(rootfs: Path, tmp_path: Path) -> Container:
    ReleaseSimulator().publish(tmp_path / "store", "canary")
    trust = tmp_path / "trust"
    trust.mkdir()
    shutil.copy(os.environ["TRUST_ROOT"], trust / "root.json")
    return Container(rootfs, tmp_path / "store", trust, free_ports(1)[0])


@pytest.mark.slow
@pytest.mark.needs("bwrap")
@pytest.mark.timeout(1500)
def test_it_serves_as_uid_1000_with_a_read_only_root(
    container: Container, rootfs: Path, tmp_path: Path
) -> None:
    said = container.run(
        "sh", "-c", "id -u; touch /x /models/x /app/x 2>&1; python3 --version; releasectl list"
    )
    lines = said.stdout.splitlines()
    assert lines[0] == "1000"
    assert sum("Read-only file system" in line for line in lines) == 3, said
    assert "Python 3.11" in said.stdout
    assert "emulator" in said.stdout
    process = container.serve(tmp_path / "log")
    url = f"http://127.0.0.1:{container.port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.TransportError:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return False

    try:
        wait_for(answers, "the container's server", 60)
        body = infer_body(imu_windows(1)[0])
        answer = httpx.post(f"{url}/infer", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["latent"]) == 64
        # HEALTHCHECK's own words.
        asked = container.run("curl", "--fail", "--silent", "--output", "/dev/null", f"{url}/healthz")
        assert asked.returncode == 0, asked
    finally:
        process.terminate()
        process.wait(30)
    brought = size_of(rootfs / "opt" / "runtime") + size_of(rootfs / "app")
    print(f"\nthe image brings {brought / 1e6:.0f} MB above base and Python")
    assert brought < MOST_BYTES


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nothing_else_is_inside(rootfs: Path) -> None:
    assert {path.name for path in (rootfs / "app").iterdir()} == {"pyproject.toml", "runtime"}
    packages = {path.name for path in (rootfs / "opt" / "runtime").glob("lib/python3.11/site-packages/*")}
    assert {"onnxruntime", "falcon", "gunicorn"} <= packages
    assert not packages & {"pip", "dagster", "torch", "onnx", "cryptography"}
    assert not list((rootfs / "var" / "lib" / "apt" / "lists").glob("*_Packages*"))


def packages(folder: Path, engine: str, *files: str) -> str:
    """What `packages.sh` says where these files were supplied; it must refuse before it installs."""
    image = folder / "deploy" / "image"
    shutil.copytree(PACKAGES.parent, image)
    for name in files:
        (image / "hailort" / name).write_bytes(b"")
    told = run("sh", image / "packages.sh", engine, folder / "venv", folder / "out", cwd=folder)
    assert told.returncode != 0
    assert not (folder / "venv").exists()
    return told.stderr


WHEEL = f"hailort-4.23.0-cp311-cp311-linux_{os.uname().machine}.whl"


@pytest.mark.needs("dpkg")
@pytest.mark.parametrize(
    ("engine", "files", "words"),
    [
        ("hailo", [], "needs HailoRT's Python wheel"),
        ("hailo", [WHEEL], "needs HailoRT's library"),
        ("hailo", [WHEEL, "hailort_4.22.0_{arch}.deb"], "two versions of HailoRT"),
        ("hailo", [WHEEL, WHEEL.replace("4.23", "4.22"), "hailort_4.22.0_{arch}.deb"], "several versions"),
        ("cuda", [], "none of emulator, hailo"),
    ],
)
def test_what_hailo_supplies_is_asked_for(tmp_path: Path, engine: str, files: list[str], words: str) -> None:
    arch = run("dpkg", "--print-architecture").stdout.strip()
    assert words in packages(tmp_path, engine, *(name.format(arch=arch) for name in files))


def test_without_a_builder_it_says_which(tmp_path: Path) -> None:
    told = run("sh", PACKAGES.with_name("build.sh"), env={**os.environ, "BUILDER": "no-such-builder"})
    assert told.returncode == 1
    assert "docker, podman, buildah" in told.stderr
