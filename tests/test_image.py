"""The image: built for real, and serving from a read-only mount as uid 1000 with a read-only root."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest

from runtime.contract.store import Release
from tests.chain import ROOT
from tests.doubles.hailort_files import make_package, package_name, wheel_name
from tests.image import Container, build, file_system, run
from tests.monitoring import JOB, asked, prometheus
from tests.simulators import ReleaseSimulator, free_port, imu_windows, infer_body, wait_for

MOST_BYTES = 230_000_000
"""Above the base and its Python: what the runtime brings."""
PACKAGES = ROOT / "deploy" / "image" / "packages.sh"


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def rootfs(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's file system."""
    built = build(testbed, "hailo-inference")
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return file_system(testbed, "hailo-inference", tmp_path_factory.mktemp("image") / "root")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return ReleaseSimulator().publish(tmp_path / "store", "canary")


@pytest.fixture
def container(rootfs: Path, release: Release, tmp_path: Path) -> Container:
    trust = tmp_path / "trust"
    trust.mkdir()
    shutil.copy(os.environ["TRUST_ROOT"], trust / "root.json")
    return Container(rootfs, tmp_path / "store", trust, free_port())


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
    with container.serving(tmp_path / "log"):
        wait_for(lambda: container.health().get("release"), "the release")
        body = infer_body(imu_windows(1)[0])
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{container.url}/infer", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["latent"]) == 64
        # HEALTHCHECK's own words.
        asked_for = f"{container.url}/healthz"
        told = container.run("curl", "--fail", "--silent", "--output", "/dev/null", asked_for)
        assert told.returncode == 0, told
    brought = size_of(rootfs / "opt" / "runtime") + size_of(rootfs / "app")
    print(f"\nthe image brings {brought / 1e6:.0f} MB above base and Python")
    assert brought < MOST_BYTES


@pytest.mark.slow
@pytest.mark.needs("bwrap", "prometheus")
@pytest.mark.timeout(1500)
def test_a_prometheus_finds_it_under_the_committed_job(
    container: Container, release: Release, tmp_path: Path
) -> None:
    """As ``deploy/prometheus/prometheus.yml`` asks, but for the address."""
    with (
        container.serving(tmp_path / "log"),
        prometheus([f"127.0.0.1:{container.port}"], tmp_path / "prometheus") as url,
    ):
        build_info = f"hailo_build_info{{{JOB}}}"
        wait_for(lambda: asked(url, build_info), "hailo_build_info of the image")
        (up,) = asked(url, f"up{{{JOB}}}")
        assert up["value"][1] == "1"
        assert up["metric"]["instance"] == f"127.0.0.1:{container.port}"
        wait_for(
            lambda: [each["metric"]["release"] for each in asked(url, build_info)] == [release.id],
            "the release that it serves",
        )


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


WHEEL = wheel_name("4.23.0")


@pytest.mark.needs("dpkg")
@pytest.mark.parametrize(
    ("engine", "files", "words"),
    [
        ("hailo", [], "needs HailoRT's Python wheel"),
        ("hailo", [WHEEL], "needs HailoRT's library"),
        ("hailo", [WHEEL, package_name("4.22.0")], "two versions of HailoRT"),
        ("hailo", [WHEEL, WHEEL.replace("4.23", "4.22"), package_name("4.22.0")], "several versions"),
        ("cuda", [], "none of emulator, hailo"),
    ],
)
def test_what_hailo_supplies_is_asked_for(tmp_path: Path, engine: str, files: list[str], words: str) -> None:
    assert words in packages(tmp_path, engine, *files)


@pytest.mark.needs("dpkg")
def test_a_package_without_its_library_is_refused(tmp_path: Path) -> None:
    another = make_package(tmp_path, "4.22.0")
    image = tmp_path / "deploy" / "image"
    shutil.copytree(PACKAGES.parent, image)
    (image / "hailort" / WHEEL).write_bytes(b"")
    shutil.move(another, image / "hailort" / package_name("4.23.0"))
    told = run("sh", image / "packages.sh", "hailo", tmp_path / "venv", tmp_path / "out", cwd=tmp_path)
    assert told.returncode != 0
    assert f"{package_name('4.23.0')} holds no libhailort.so.4.23.0" in told.stderr


@pytest.mark.needs("dpkg")
@pytest.mark.parametrize(
    ("lib", "command", "taken"),
    [
        ("usr/lib", True, {"usr/bin/hailortcli"}),
        ("usr/lib/aarch64-linux-gnu", False, set[str]()),
    ],
)
def test_of_the_package_its_library_and_command_alone(
    tmp_path: Path, lib: str, command: bool, taken: set[str]
) -> None:
    """What else is in it is the host's; and a folder `lib` cannot be copied over the image's link."""
    image, out = tmp_path / "deploy" / "image", tmp_path / "out"
    shutil.copytree(PACKAGES.parent, image, ignore=shutil.ignore_patterns("*.whl", "*.deb"))
    (image / "hailort" / WHEEL).write_bytes(b"")
    shutil.move(make_package(tmp_path, lib=lib, command=command), image / "hailort")
    # It ends at the environment, whose script is not in this folder.
    told = run("sh", image / "packages.sh", "hailo", tmp_path / "venv", out, cwd=tmp_path)
    assert "setup_venv.py" in told.stderr, told
    found = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    assert found == {f"{lib}/libhailort.so", f"{lib}/libhailort.so.4.23.0", *taken}
    assert (out / lib / "libhailort.so").is_symlink()
    assert not (out / "lib").exists()
    assert not (tmp_path / "out.deb").exists()


def test_without_a_builder_it_says_which(tmp_path: Path) -> None:
    told = run("sh", PACKAGES.with_name("build.sh"), env={**os.environ, "BUILDER": "no-such-builder"})
    assert told.returncode == 1
    assert "docker, podman, buildah" in told.stderr
