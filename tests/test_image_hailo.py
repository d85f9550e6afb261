"""``ENGINE=hailo``: no image without HailoRT, one that looks at the host's driver; HailoRT is a double."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import httpx
import pytest

from tests.chain import ROOT
from tests.doubles.hailort_files import make_package, make_wheel, wheel_name
from tests.image import Container, build, file_system
from tests.simulators import ReleaseSimulator, free_port, wait_for

TAG = "hailo-inference-hailo"
# What .dockerignore lets in.
CONTEXT = (
    "Dockerfile.runtime",
    ".dockerignore",
    "pyproject.toml",
    "runtime",
    "scripts/setup_venv.py",
    "locks",
    "deploy/image",
)


def context(folder: Path) -> Path:
    """A copy of what is built, for ``ENGINE=hailo``, and the folder in it for HailoRT's files."""
    for name in CONTEXT:
        source, copy = ROOT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.whl", "*.deb"))
        else:
            shutil.copy(source, copy)
    # The testbed hands no --build-arg on.
    dockerfile = folder / "Dockerfile.runtime"
    text = dockerfile.read_text()
    assert text.count("ARG ENGINE=emulator\n") == 2
    dockerfile.write_text(text.replace("ARG ENGINE=emulator\n", "ARG ENGINE=hailo\n"))
    return folder / "deploy" / "image" / "hailort"


@pytest.fixture(scope="module")
def rootfs(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file system of an image with doubles of HailoRT 4.23.0."""
    folder = tmp_path_factory.mktemp("hailo")
    supplied, work = context(folder / "context"), folder / "work"
    work.mkdir()
    for path in (make_wheel(work), make_package(work)):
        shutil.move(path, supplied)
    built = build(testbed, TAG, folder / "context")
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return file_system(testbed, TAG, folder / "root")


@pytest.mark.slow
@pytest.mark.needs("dpkg")
@pytest.mark.timeout(1500)
def test_without_hailort_there_is_no_image(testbed: Path, tmp_path: Path) -> None:
    context(tmp_path)
    told = build(testbed, f"{TAG}-none", tmp_path)
    assert told.returncode != 0
    assert (
        f"ENGINE=hailo needs HailoRT's Python wheel, {wheel_name('<version>')}" in told.stderr + told.stdout
    )


@pytest.mark.slow
@pytest.mark.needs("dpkg")
@pytest.mark.timeout(1500)
def test_hailort_is_inside_and_onnxruntime_is_not(rootfs: Path) -> None:
    packages = {path.name for path in (rootfs / "opt" / "runtime").glob("lib/python3.11/site-packages/*")}
    assert {"hailo_platform", "hailort-4.23.0.dist-info", "netaddr", "falcon"} <= packages
    assert "onnxruntime" not in packages
    assert (rootfs / "usr/lib/libhailort.so.4.23.0").is_file()
    assert (rootfs / "usr/bin/hailortcli").is_file()
    # Debian's link, which a folder of the package's would have taken the place of.
    assert (rootfs / "lib").is_symlink()
    assert (rootfs / "lib" / "systemd").resolve() == (rootfs / "usr" / "lib" / "systemd").resolve()
    for name in ("hailort.service", "*hailo*.rules", "hailort.h", "HailoRT", "hailort_service"):
        assert not list(rootfs.rglob(name)), name


@pytest.mark.slow
@pytest.mark.needs("dpkg", "bwrap")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("driver", "reason", "words"),
    [
        ("4.20.0", "driver_mismatch", "driver 4.20.0, HailoRT 4.23.0: they must be the same version"),
        ("4.23.0", "no_device", "no Hailo device on this machine"),
        ("", "no_device", "no Hailo device on this machine"),
    ],
)
def test_its_start_looks_at_the_driver_of_the_host(
    rootfs: Path, tmp_path: Path, driver: str, reason: str, words: str
) -> None:
    ReleaseSimulator(target="hailo8").publish(tmp_path / "store", "canary")
    trust, host, chip = tmp_path / "trust", tmp_path / "sys", tmp_path / "chip"
    for folder in (trust, host / "module" / "hailo_pci", chip):
        folder.mkdir(parents=True)
    shutil.copy(os.environ["TRUST_ROOT"], trust / "root.json")
    if driver:
        (host / "module" / "hailo_pci" / "version").write_text(f"{driver}\n")
    (chip / "settings.json").write_text(json.dumps({"devices": []}))
    container = Container(
        rootfs,
        tmp_path / "store",
        trust,
        free_port(),
        mounts={"/sys": host, "/mnt": chip},
        TARGET="hailo8",
        HAILO_DOUBLE="/mnt",
    )
    log = tmp_path / "log"
    with container.serving(log):
        wait_for(lambda: container.health()["reason"] == reason, f"{reason}: {container.health()}")
        answer = httpx.get(f"{container.url}/healthz")
        assert answer.status_code == 503
        assert words in answer.text
    assert words in log.read_text()
