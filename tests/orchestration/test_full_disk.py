"""A disk that is full while a build works: it fails by name, leaves nothing half-made, the next one works."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assets.product import Workbench
from runtime.contract.errors import StoreError, free_space
from runtime.contract.files import LEFTOVERS
from tests.chain import ROOT
from tests.keys import a_store

pytestmark = [pytest.mark.build, pytest.mark.timeout(600)]
MOST_FILE = 2**20
"""Where we may mount nothing, no file may be larger instead: weights and windows are."""


@contextlib.contextmanager
def little_room(folder: Path, mebibytes: int) -> Iterator[Callable[[], int]]:
    """A file system of that size at the folder, where we may mount one; what is yielded makes room."""
    folder.mkdir()
    if os.geteuid() != 0:
        yield lambda: 0
        return
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    subprocess.run([*mount, f"size={mebibytes}m"], check=True)
    try:
        yield lambda: subprocess.check_call(["mount", "-o", "remount,size=256m", str(folder)])
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def build(places: dict[str, str], *, limited: bool = False) -> subprocess.CompletedProcess[str]:
    """One build of the whole chain."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE, MOST_FILE))

    return subprocess.run(
        [sys.executable, "-m", "orchestration.build"],
        cwd=ROOT,
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit if limited else None,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "mebibytes", "failed"),
    [("BUILD_DIR", 8, "emulator/"), ("RELEASE_STORE", 1, "emulator/canary_release")],
)
def test_a_build_on_a_full_disk_fails_and_the_next_one_works(
    tmp_path: Path, variable: str, mebibytes: int, failed: str
) -> None:
    places = {name: str(tmp_path / name) for name in ("DAGSTER_HOME", "BUILD_DIR", "RELEASE_STORE")}
    places["BUILD_CACHE_DIR"] = str(tmp_path / "cache")
    full = tmp_path / "full"
    with little_room(full, mebibytes) as make_room:
        places[variable] = str(full / "place")
        mounted = os.geteuid() == 0
        run = build(places, limited=not mounted)
        (said,) = (line for line in run.stdout.splitlines() if " FAILED  " in line)
        assert run.returncode == 1
        assert (failed if mounted else "model_weights") in said
        assert f"{places[variable if mounted else 'BUILD_DIR']}" in said
        assert ("No space left on device" if mounted else "File too large") in said
        assert "MiB are free in" in said
        assert "Traceback" not in run.stdout + run.stderr
        store = a_store(Path(places["RELEASE_STORE"]))
        # The evidence beside a release may be what did not fit: then the release is whole, and nobody's.
        assert [store.open(each).id for each in store.identifiers()] == store.identifiers()
        assert store.current("emulator", "canary") is None
        left = [path for path in tmp_path.rglob(".*") if path.name.startswith(LEFTOVERS)]
        assert left == []
        make_room()
        run = build(places)
        assert run.returncode == 0, run.stdout + run.stderr
        canary = store.current("emulator", "canary")
        assert canary is not None
        store.open(canary.release)


def test_what_is_free_is_said_where_room_is_what_lacks(tmp_path: Path) -> None:
    said = free_space(OSError(28, "No space left on device"), tmp_path / "not" / "there")
    assert said.endswith(f"MiB are free in {tmp_path}")
    assert free_space(PermissionError(13, "Permission denied"), tmp_path) == ""


def test_what_was_made_last_stays_so_where_it_cannot_be_written(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    product = bench.put("onnx_model", {"a": b"1"})
    (tmp_path / "onnx_model" / "latest.json").mkdir()
    with pytest.raises(StoreError, match="onnx_model"):
        bench.remember(product)
