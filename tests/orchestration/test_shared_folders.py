"""Folders that several users and hosts share: the documented modes, the units' umask, real users."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from orchestration.distributed import DEPLOY, UNITS
from runtime.contract.errors import PipelineError
from runtime.contract.store import ReleaseStore
from runtime.pull import pull
from runtime.rsync_copy import Source
from tests.chain import ROOT
from tests.contract.crash import in_child
from tests.keys import a_store
from tests.orchestration.test_deploy import example
from tests.simulators import ReleaseSimulator

pytestmark = pytest.mark.build
SYSTEMD = DEPLOY / "systemd"
DOCUMENT = (ROOT / "docs" / "gpusrv.md").read_text()
SERVICE, RELEASES, STRANGER = 880, 54321, 65534
"""Numbers of the service's user and group, of a group ``hailo-releases``, and of somebody else."""
UMASK: Final = 0o027


def installed() -> dict[str, tuple[str, str, int]]:
    """Folder to owner, group and mode, as the document has them made."""
    found = {}
    for owner, group, mode, folders in re.findall(
        r"^install -d -o (\S+) -g (\S+) -m (\d+) ([^#\n]+)", DOCUMENT, re.M
    ):
        for folder in folders.split():
            assert folder not in found, folder
            found[folder] = owner, group, int(mode, 8)
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_shared_folder_of_the_environment_files_is_made_with_owner_group_and_mode() -> None:
    made = installed()
    assert "install -d /" not in DOCUMENT
    for name in ("code.env", "ui.env"):
        for variable, value in example(name).items():
            if value.startswith(("/srv/", "/var/lib/")) and variable != "DAGSTER_ARTIFACTS_DIR":
                assert value in made, (name, variable)
    assert made[example("code.env")["RELEASE_STORE"]] == ("hailo-pipeline", "hailo-releases", 0o2750)
    assert example("code.env")["DAGSTER_COMPUTE_LOGS_DIR"] == example("ui.env")["DAGSTER_COMPUTE_LOGS_DIR"]


@pytest.mark.parametrize("unit", UNITS.values())
def test_the_units_agree_with_it(unit: str) -> None:
    text = (SYSTEMD / unit).read_text()
    said = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    assert (said["User"], said["Group"]) == ("hailo-pipeline", "hailo-pipeline")
    assert int(said["UMask"], 8) == UMASK
    assert f"`UMask={said['UMask']}`" in DOCUMENT
    place = "/var/lib/" + said["StateDirectory"]
    assert installed()[place] == ("hailo-pipeline", "hailo-pipeline", int(said["StateDirectoryMode"], 8))
    assert said["RequiresMountsFor"] in installed()
    assert f"--uid {SERVICE} --gid {SERVICE}" in DOCUMENT


@pytest.fixture(name="shared")
def a_folder_that_everybody_reaches() -> Iterator[Path]:
    """pytest's own are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(user: int, groups: list[int], work: Callable[[], Any]) -> Any:
    """What ``work`` returns as this user, in a process of its own with the units' umask."""

    def told() -> Any:
        os.umask(UMASK)
        os.setgroups(groups)
        os.setgid(user)
        os.setuid(user)
        return work()

    return in_child(told)


def publish(root: Path) -> None:
    for version in ("v1", "v2"):
        ReleaseSimulator(version=version).publish(root, "canary")


def test_what_is_published_is_for_the_group_of_the_stores_folder(tmp_path: Path) -> None:
    root = tmp_path / "releases"
    root.mkdir()
    wanted = installed()[example("code.env")["RELEASE_STORE"]][2]
    root.chmod(wanted)
    before = os.umask(UMASK)
    try:
        publish(root)
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        if path.name == ".lock":
            assert mode(path) == 0o640
        elif path.is_dir():
            # A release's own folder is open: what is above it is not.
            assert mode(path) in (wanted, 0o755), path
        else:
            assert mode(path) == 0o444, path
    assert mode(next(root.glob("channels/*/canary"))) == wanted


@pytest.mark.needs("rsync")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_pis_fetch_as_a_user_of_the_group_and_nobody_else_reads(shared: Path) -> None:
    """The service is no member of the group: the folder hands it on."""
    root = shared / "releases"
    root.mkdir()
    os.chown(root, SERVICE, RELEASES)
    root.chmod(installed()[example("code.env")["RELEASE_STORE"]][2])
    as_user(SERVICE, [], lambda: publish(root))
    assert {path.stat().st_gid for path in root.glob("channels/**/")} == {RELEASES}
    for name in ("pi", "others"):
        (shared / name).mkdir()
        os.chown(shared / name, STRANGER, STRANGER)

    def fetched() -> str:
        store = a_store(shared / "pi")
        assert pull(store, Source(place=str(root))).ok
        with pytest.raises(PipelineError, match="Permission denied"):
            publish(root)
        return store.resolve("emulator", "canary").id

    def refused() -> str:
        with pytest.raises((PipelineError, OSError)) as caught:
            pull(a_store(shared / "others"), Source(place=str(root)))
        return str(caught.value)

    newest: ReleaseStore = a_store(root)
    assert as_user(STRANGER, [RELEASES], fetched) == newest.resolve("emulator", "canary").id
    assert "Permission denied" in as_user(STRANGER, [], refused)


def test_compute_logs_are_for_the_services_own_user_and_group(tmp_path: Path) -> None:
    """The UI's host reads them as the same number."""

    @dg.op
    def speaks() -> None:
        print("heard")

    @dg.job(executor_def=dg.in_process_executor)
    def talk() -> None:
        speaks()

    before = os.umask(UMASK)
    try:
        with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
            assert isinstance(instance.compute_log_manager, LocalComputeLogManager)
            assert talk.execute_in_process(instance=instance).success
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if "compute_logs" in path.parts]
    assert any(path.read_text() == "heard\n" for path in made if path.suffix == ".out")
    assert {mode(path) for path in made} == {0o750, 0o640}
