"""``releasectl pull``: what is taken, what is not, and what is left when it is ended in the middle."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime import rsync_copy
from runtime.cli import main
from runtime.contract.audit import store_problems
from runtime.contract.channels import CHANNELS, entry_name
from runtime.contract.errors import ConfigError, ReleaseNotFoundError, StoreBusyError, StoreError
from runtime.contract.promotion import Decision, mark_bad, promote, roll_back
from runtime.contract.pruning import prune
from runtime.contract.release import SIGNATURE_NAME
from runtime.contract.release_directory import sign_release
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import UnknownKeyError
from runtime.contract.writers_lock import writing
from runtime.key_commands import sign_again
from runtime.pull import Pulled, pull
from runtime.pull_releases import ReleaseTaker
from runtime.pull_staging import LOCK_NAME, STAGING
from runtime.rsync_copy import (
    NoRsyncError,
    NoSpaceError,
    Source,
    TransferError,
    TransferTimeoutError,
)
from tests.keys import BUILD, MANAGER, a_store
from tests.moves import NEW, STRANGER, an_entry, next_root, published, put, put_entry, tree
from tests.simulators import ARTIFACT, GOLDEN, ROOT, ReleaseSimulator, flip_bit, wait_for

pytestmark = pytest.mark.needs("rsync")
WHY = Decision(actor="Ada", reason="looked at it")
LARGE = "extra.bin"
LARGE_BYTES = 6 * 1024 * 1024


def pulled(tmp_path: Path, **options: Any) -> Pulled:
    """From ``source`` into ``pi``."""
    place = Source(place=str(tmp_path / "source"))
    return pull(a_store(tmp_path / "pi"), options.pop("source", place), **options)


def problems(found: Pulled) -> dict[str, str]:
    return {each.place: each.problem for each in found.channels if each.problem}


def entries(found: Pulled) -> dict[str, int]:
    return {each.place: each.entries for each in found.channels}


def rsh(*options: str) -> str:
    return shlex.join([sys.executable, "-S", str(ROOT / "tests" / "rsh.py"), *options])


def large_release(root: Path, version: str = "v1") -> Release:
    data = random.Random(version).randbytes(LARGE_BYTES)
    return ReleaseSimulator(version=version, files={LARGE: data}).publish(root, "canary", "stable")


def test_what_channels_name_and_the_one_before(tmp_path: Path) -> None:
    releases = published(tmp_path / "source", *(f"v{number}" for number in range(4)))
    found = pulled(tmp_path)
    assert found.ok
    assert set(found.releases) == {releases[-1].id, releases[-2].id}
    assert entries(found) == {"emulator/canary": 4, "emulator/stable": 4}
    store = a_store(tmp_path / "pi")
    assert store.identifiers() == sorted(each.id for each in releases[-2:])
    assert store.resolve("emulator", "stable").id == releases[-1].id
    assert store_problems(store) == []
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "pi" / "releases").rglob("*.*")} == {
        "0o444"
    }
    before = tree(tmp_path / "pi")
    again = pulled(tmp_path)
    assert (again.ok, again.releases, set(entries(again).values())) == (True, {}, {0})
    assert tree(tmp_path / "pi") == before


def test_more_is_kept_where_more_is_asked_for(tmp_path: Path) -> None:
    releases = published(tmp_path / "source", *(f"v{number}" for number in range(4)))
    assert set(pulled(tmp_path, keep=1).releases) == {releases[-1].id}
    assert set(pulled(tmp_path, keep=3).releases) == {releases[1].id, releases[2].id}


def test_nothing_is_removed_here_and_a_pruned_predecessor_is_said_to_be(tmp_path: Path) -> None:
    first, second = published(tmp_path / "source", "v1", "v2")
    pulled(tmp_path)
    published(tmp_path / "source", "v3")
    shutil.rmtree(second.directory)
    found = pulled(tmp_path)
    assert (found.ok, len(found.releases), found.absent) == (True, 1, [])
    assert {first.id, second.id} < set(a_store(tmp_path / "pi").identifiers())
    shutil.rmtree(tmp_path / "pi")
    assert pulled(tmp_path).absent == [second.id]
    assert len(a_store(tmp_path / "pi").identifiers()) == 1


def test_what_was_marked_bad_is_not_pulled_to_return_to(tmp_path: Path) -> None:
    first, second, third = published(tmp_path / "source", "v1", "v2", "v3")
    mark_bad(a_store(tmp_path / "source"), second.id, "stable", WHY, MANAGER)
    mark_bad(a_store(tmp_path / "source"), second.id, "canary", WHY, BUILD)
    assert set(pulled(tmp_path).releases) == {first.id, third.id}


def test_only_the_targets_that_are_asked_for(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path / "source", "canary", "stable")
    chip = ReleaseSimulator(target="hailo8").publish(tmp_path / "source", "canary", "stable")
    place = Source(place=str(tmp_path / "source"))
    found = pull(a_store(tmp_path / "pi", accepts_doubles=True), place, targets=["hailo8"])
    assert set(found.releases) == {chip.id}
    assert a_store(tmp_path / "pi").targets() == ["hailo8"]
    refused = pulled(tmp_path)  # a store as people have it takes no compiler's double
    assert refused.ok  # it is there already
    shutil.rmtree(tmp_path / "pi")
    refused = pulled(tmp_path, targets=["hailo8"])
    assert set(problems(refused)) == {"hailo8/canary", "hailo8/stable"}
    assert a_store(tmp_path / "pi").identifiers() == []
    with pytest.raises(ReleaseNotFoundError, match="holds no channel of hailo8l"):
        pulled(tmp_path, targets=["hailo8l"])


def test_over_a_remote_shell(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "a source", "v1")
    log = tmp_path / "log"
    source = Source(place=f"anna@site:{tmp_path}/a source", rsh=rsh("--log", str(log)))
    assert set(pulled(tmp_path, source=source).releases) == {release.id}
    assert {line.split()[0] for line in log.read_text().splitlines()} == {"site"}
    assert store_problems(a_store(tmp_path / "pi")) == []


def test_from_an_account_that_may_do_nothing_else(tmp_path: Path) -> None:
    if not shutil.which("rrsync"):
        pytest.skip("rrsync is missing: rsync from 3.2.4 on brings it")
    (release,) = published(tmp_path / "source", "v1")
    source = Source(place="site:", rsh=rsh("--at", str(tmp_path / "source")))
    assert set(pulled(tmp_path, source=source).releases) == {release.id}


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    release = large_release(tmp_path / "source")
    log, part = tmp_path / "log", tmp_path / "pi" / STAGING / "releases" / release.id / LARGE
    address = f"site:{tmp_path}/source"
    command = [sys.executable, "-m", "runtime.cli", "pull", address, str(tmp_path / "pi"), "--rsh"]
    process = subprocess.Popen([*command, rsh("--stop", str(LARGE_BYTES // 2))], cwd=ROOT)
    try:
        wait_for(lambda: part.exists() and part.stat().st_size > LARGE_BYTES // 4, "a part of it")
        assert part.stat().st_mode & 0o200, "nobody but root could go on with it"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert a_store(tmp_path / "pi").identifiers() == []
    assert a_store(tmp_path / "pi").head("emulator", "stable") is None
    found = pulled(tmp_path, source=Source(place=address, rsh=rsh("--log", str(log))))
    assert (found.ok, set(found.releases)) == (True, {release.id})
    assert store_problems(a_store(tmp_path / "pi")) == []
    sent = sum(int(line.split()[1]) for line in log.read_text().splitlines())
    assert sent < LARGE_BYTES * 4 // 5, "what was there was copied again"


def test_a_prune_before_the_channels_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    (second,) = published(tmp_path / "source", "v2")
    take = ReleaseTaker.take

    def then_pruned(self: ReleaseTaker, wanted: Sequence[str]) -> Any:
        taken = take(self, wanted)
        assert prune(a_store(tmp_path / "pi"), 10, dry_run=False).removed == (second.id,)
        return taken

    monkeypatch.setattr(ReleaseTaker, "take", then_pruned)
    found = pulled(tmp_path)
    assert set(problems(found)) == {"emulator/canary", "emulator/stable"}
    assert "was taken away here" in problems(found)["emulator/stable"]
    assert set(named(tmp_path / "pi").values()) == {first.id}
    monkeypatch.undo()
    assert pulled(tmp_path).ok
    assert set(named(tmp_path / "pi").values()) == {second.id}


def test_what_was_begun_and_is_no_longer_wanted_is_taken_away(tmp_path: Path) -> None:
    (first,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    (second,) = published(tmp_path / "source", "v2")
    staging = tmp_path / "pi" / STAGING
    gone = "ab" * 32
    put(staging / "releases" / gone / LARGE, b"as far as it came")
    # Killed after it was here, and before that was noted.
    put(staging / "releases" / first.id / ARTIFACT, b"as far as it came")
    for left in (".names-a", ".said-a", f"releases/{second.id}/.{ARTIFACT}.a", "channels/emulator/.a"):
        put(staging / left, b"of a process that was killed")
    assert pulled(tmp_path).ok
    kept = {name for name in tree(staging) if not name.startswith(("channels/emulator/", "trust/"))}
    assert kept == {LOCK_NAME}
    assert list((staging / "releases").iterdir()) == []
    assert not (staging / "channels" / "emulator" / ".a").exists()


def test_room_is_made_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (release,) = published(tmp_path / "source", "v1")
    (release.directory / ARTIFACT).unlink()
    left, part = (tmp_path / "pi" / STAGING / "releases" / each for each in ("ab" * 32, release.id))
    put(left / LARGE, b"as far as it came")
    monkeypatch.setattr(
        "runtime.pull_releases.check_space", lambda to, _: full(to) if left.exists() else None
    )
    put(part / GOLDEN, (release.directory / GOLDEN).read_bytes())
    assert not pulled(tmp_path).ok  # an artifact is missing there
    assert (part / GOLDEN).exists(), "what is still wanted is kept, to go on with"


def test_two_pulls_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_release(tmp_path / "source")
    staging = tmp_path / "pi" / STAGING
    monkeypatch.setattr("runtime.pull_staging._PATIENCE_SECONDS", 0.1)
    address = f"site:{tmp_path}/source"
    command = [sys.executable, "-m", "runtime.cli", "pull", address, str(tmp_path / "pi"), "--rsh"]
    process = subprocess.Popen([*command, rsh("--stop", str(LARGE_BYTES // 2))], cwd=ROOT)
    try:
        wait_for(lambda: (staging / "releases").exists(), "the first one's copy")
        with pytest.raises(StoreBusyError, match="another pull"):
            pulled(tmp_path)
    finally:
        process.kill()
        process.wait()
    monkeypatch.undo()
    assert pulled(tmp_path).ok  # rsync ended with it, and gave the lock back


@pytest.mark.parametrize("name", [ARTIFACT, GOLDEN])
def test_a_release_is_verified_before_it_counts(tmp_path: Path, name: str) -> None:
    first, second = published(tmp_path / "source", "v1", "v2")
    flip_bit(second.directory / name, 5000)
    found = pulled(tmp_path)
    assert set(problems(found)) == {"emulator/canary", "emulator/stable"}
    assert "sha256 is" in problems(found)["emulator/stable"]
    store = a_store(tmp_path / "pi")
    assert store.identifiers() == [first.id]
    assert store.head("emulator", "stable") is None
    flip_bit(second.directory / name, 5000)
    assert pulled(tmp_path).ok  # the damaged copy was not kept
    assert store.resolve("emulator", "stable").id == second.id


@pytest.mark.parametrize("key", [STRANGER, MANAGER])
def test_a_release_that_nobody_released(tmp_path: Path, key: Any) -> None:
    (first,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    (second,) = published(tmp_path / "source", "v2")
    put(
        second.directory / SIGNATURE_NAME,
        sign_release((second.directory / "manifest.json").read_bytes(), key),
    )
    found = pulled(tmp_path)
    assert f"key {key.keyid[:16]} signed it" in problems(found)["emulator/stable"]
    assert a_store(tmp_path / "pi").resolve("emulator", "stable").id == first.id


def test_a_release_that_is_not_there_yet(tmp_path: Path) -> None:
    (first,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    (second,) = published(tmp_path / "source", "v2")
    data = (second.directory / ARTIFACT).read_bytes()
    put(second.directory / ARTIFACT, data[:9000])
    (second.directory / SIGNATURE_NAME).rename(tmp_path / "later")
    assert "has no manifest.dsse.json" in problems(pulled(tmp_path))["emulator/stable"]
    (tmp_path / "later").rename(second.directory / SIGNATURE_NAME)
    assert "9000 bytes, the manifest says" in problems(pulled(tmp_path))["emulator/stable"]
    assert a_store(tmp_path / "pi").resolve("emulator", "stable").id == first.id
    put(second.directory / ARTIFACT, data)
    assert pulled(tmp_path).ok
    assert a_store(tmp_path / "pi").resolve("emulator", "stable").id == second.id


def test_a_channel_never_moves_back_and_the_other_goes_on(tmp_path: Path) -> None:
    published(tmp_path / "source", "v1", "v2")
    pulled(tmp_path)
    channels = tmp_path / "source" / "channels" / "emulator"
    (channels / "stable" / entry_name(2)).unlink()
    (third,) = published(tmp_path / "source", "v3", channels=("canary",))
    found = pulled(tmp_path)
    assert set(problems(found)) == {"emulator/stable"}
    assert "ends at entry 1 there, entry 2 is here" in problems(found)["emulator/stable"]
    store = a_store(tmp_path / "pi")
    assert len(store.history("emulator", "stable")) == 2
    assert store.resolve("emulator", "canary").id == third.id


def of_one_second(root: Path) -> None:
    """Give every entry the same time."""
    for path in (root / "channels").rglob("*.json"):
        os.utime(path, (10**9, 10**9))


def test_another_history_is_refused(tmp_path: Path) -> None:
    published(tmp_path / "source", "v1", "v2")
    of_one_second(tmp_path / "source")
    pulled(tmp_path)
    before = tree(tmp_path / "pi" / "channels")
    shutil.rmtree(tmp_path / "source")
    published(tmp_path / "source", "v1", "v5", "v6")
    of_one_second(tmp_path / "source")
    found = pulled(tmp_path)
    assert set(problems(found)) == {"emulator/canary", "emulator/stable"}
    # Made within one second, the first entries are the same; then the first that differs is said.
    said = problems(found)["emulator/stable"]
    assert "is another one than the store's" in said or "continues another history" in said
    assert tree(tmp_path / "pi" / "channels") == before


def test_what_nobody_signed_above_the_head_stops_nothing(tmp_path: Path) -> None:
    (first,) = published(tmp_path / "source", "v1")
    folder = tmp_path / "source" / "channels" / "emulator" / "stable"
    put(folder / entry_name(7), b"{}")
    (folder / entry_name(8)).symlink_to("/etc/hostname")
    put(folder / entry_name(9), b"x" * 3_000_000)
    assert pulled(tmp_path).ok
    assert a_store(tmp_path / "pi").resolve("emulator", "stable").id == first.id
    copied = tmp_path / "pi" / "channels" / "emulator" / "stable"
    assert [path.name for path in copied.iterdir()] == [entry_name(1)]


def test_a_channel_that_vanished_there(tmp_path: Path) -> None:
    published(tmp_path / "source", "v1", "v2")
    pulled(tmp_path)
    before = named(tmp_path / "pi")
    shutil.rmtree(tmp_path / "source" / "channels" / "emulator" / "stable")
    found = pulled(tmp_path)
    assert not found.ok
    assert list(problems(found)) == ["emulator/stable"]
    assert "has no entry there, 2 are here" in problems(found)["emulator/stable"]
    assert named(tmp_path / "pi") == before
    shutil.rmtree(tmp_path / "source" / "channels")
    with pytest.raises(ReleaseNotFoundError, match="holds no channel"):
        pulled(tmp_path)


def test_a_roll_back_arrives(tmp_path: Path) -> None:
    first, second = published(tmp_path / "source", "v1", "v2")
    pulled(tmp_path)
    roll_back(a_store(tmp_path / "source"), "emulator", "stable", WHY, MANAGER)
    found = pulled(tmp_path)
    assert (found.releases, entries(found)["emulator/stable"]) == ({}, 1)
    assert a_store(tmp_path / "pi").resolve("emulator", "stable").id == first.id
    assert second.id in a_store(tmp_path / "pi").identifiers()


def test_new_roots_and_what_was_signed_again(tmp_path: Path) -> None:
    (first,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    source, store = a_store(tmp_path / "source"), a_store(tmp_path / "pi")
    source.add_root(next_root(build=NEW, manager=MANAGER))
    assert sign_again(source, "build", NEW, "Ada")[1] == []
    found = pulled(tmp_path)
    assert (found.ok, found.roots, store.trust.root.version) == (True, 1, 2)
    assert store.resolve("emulator", "canary").id == first.id
    assert store_problems(store) == []


def rotated(source: ReleaseStore, holder: str, **keys: Any) -> list[str]:
    """The source under a new root with a new key, and what could not be signed again."""
    source.add_root(next_root(**{"build": BUILD, "manager": MANAGER} | keys))
    return sign_again(source, holder, NEW, "Ada")[1]


def named(root: Path) -> dict[str, str]:
    """What each channel here names, as a runtime that starts now takes it."""
    store = a_store(root, accepts_doubles=True)
    places = [(target, channel) for target in store.targets() for channel in CHANNELS]
    return {f"{target}/{channel}": store.resolve(target, channel).id for target, channel in places}


def of_two_targets(root: Path) -> tuple[Release, Release]:
    """A release for the emulator and one for a chip, in every channel."""
    ours = ReleaseSimulator().publish(root, "canary", "stable")
    return ours, ReleaseSimulator(target="hailo8").publish(root, "canary", "stable")


def held(found: Pulled) -> list[str]:
    return [each for each in found.problems if "is held back" in each]


def test_new_roots_bring_the_targets_along_that_were_not_asked_for(tmp_path: Path) -> None:
    of_two_targets(tmp_path / "source")
    pi, place = a_store(tmp_path / "pi", accepts_doubles=True), Source(place=str(tmp_path / "source"))
    pull(pi, place)
    before = named(tmp_path / "pi")
    assert rotated(a_store(tmp_path / "source", accepts_doubles=True), "build", build=NEW) == []
    found = pull(pi, place, targets=["hailo8"])
    assert (found.ok, found.roots, pi.trust.root.version) == (True, 1, 2)
    assert named(tmp_path / "pi") == before
    assert set(entries(found)) == set(before)


def test_new_roots_wait_for_a_target_that_the_source_has_no_longer(tmp_path: Path) -> None:
    ours, _ = of_two_targets(tmp_path / "source")
    pi, place = a_store(tmp_path / "pi", accepts_doubles=True), Source(place=str(tmp_path / "source"))
    pull(pi, place)
    before = named(tmp_path / "pi")
    shutil.rmtree(tmp_path / "source" / "channels" / "emulator")
    assert rotated(a_store(tmp_path / "source", accepts_doubles=True), "release-manager", manager=NEW) == []
    found = pull(pi, place, targets=["hailo8"])
    assert (found.ok, found.roots, pi.trust.root.version) == (False, 0, 1)
    (said,) = held(found)
    assert f"root 2: is held back: under it emulator/stable, which names release {ours.id[:16]}" in said
    assert named(tmp_path / "pi") == before


def test_new_roots_wait_for_a_channel_that_was_refused(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    pi, before = a_store(tmp_path / "pi"), named(tmp_path / "pi")
    flip_bit(release.directory / ARTIFACT, 5000)
    assert len(rotated(a_store(tmp_path / "source"), "build", build=NEW)) == 1  # it is not signed again
    for _ in range(2):
        found = pulled(tmp_path)
        assert (found.ok, found.roots, pi.trust.root.version) == (False, 0, 1)
        for place, said in zip(sorted(before), sorted(held(found)), strict=True):
            assert place in said
            assert release.id[:16] in said
        assert named(tmp_path / "pi") == before
    flip_bit(release.directory / ARTIFACT, 5000)
    assert sign_again(a_store(tmp_path / "source"), "build", NEW, "Ada")[1] == []
    found = pulled(tmp_path)
    assert (found.ok, found.roots, named(tmp_path / "pi")) == (True, 1, before)


def test_what_moved_counts_on_while_roots_are_held_back(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    before, source = named(tmp_path / "pi"), a_store(tmp_path / "source")
    # Both keys are new, and stable cannot be signed again there.
    rotated(source, "build", build=NEW, manager=STRANGER)
    shutil.rmtree(tmp_path / "source" / "channels" / "emulator" / "stable")
    # Published anew there: without the signature that counts here.
    manifest = (release.directory / "manifest.json").read_bytes()
    put(release.directory / SIGNATURE_NAME, sign_release(manifest, NEW))
    found = pulled(tmp_path)
    assert (found.ok, found.roots, len(held(found))) == (False, 0, 1)
    assert "entry 2 counts under root 2, which is held back" in problems(found)["emulator/canary"]
    assert "has no entry there, 1 are here" in problems(found)["emulator/stable"]
    assert named(tmp_path / "pi") == before


def test_a_key_that_was_stolen_ends_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (release,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    rotated(a_store(tmp_path / "source"), "build", build=NEW)
    # With the old key a thief wrote far ahead, here alone.
    ahead = an_entry(channel="canary", sequence=900, previous_entry="0" * 64, release=release.id)
    put_entry(tmp_path / "pi", ahead, BUILD)
    command = ["pull", str(tmp_path / "source"), str(tmp_path / "pi")]
    assert main(command) == 1
    assert "root 2: is held back" in (said := capsys.readouterr().out)
    assert "--take-roots" in said
    assert a_store(tmp_path / "pi").trust.root.version == 1
    assert main([*command, "--take-roots"]) == 0
    assert "1 new roots of trust" in capsys.readouterr().out
    pi = a_store(tmp_path / "pi")
    assert (pi.trust.root.version, len(pi.history("emulator", "canary"))) == (2, 2)
    assert named(tmp_path / "pi") == {"emulator/canary": release.id, "emulator/stable": release.id}


def test_a_key_that_was_stolen_ends_though_nothing_is_left_to_serve(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    flip_bit(release.directory / ARTIFACT, 5000)
    rotated(a_store(tmp_path / "source"), "build", build=NEW)
    found = pulled(tmp_path, take_roots=True)
    assert (found.ok, found.roots, held(found)) == (False, 1, [])
    with pytest.raises(UnknownKeyError):
        a_store(tmp_path / "pi").resolve("emulator", "stable")


def test_a_damaged_release_here_is_put_back(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "source", "v1")
    pulled(tmp_path)
    flip_bit(tmp_path / "pi" / "releases" / release.id / ARTIFACT, 5000)
    assert set(pulled(tmp_path).releases) == {release.id}
    assert store_problems(a_store(tmp_path / "pi")) == []


def test_a_promotion_after_a_pull(tmp_path: Path) -> None:
    (release,) = published(tmp_path / "source", "v1", channels=("canary",))
    pulled(tmp_path)
    promote(a_store(tmp_path / "source"), "emulator", release.id, WHY, MANAGER)
    found = pulled(tmp_path)
    assert (found.releases, entries(found)["emulator/stable"]) == ({}, 1)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_release(tmp_path / "source")
    real = shutil.disk_usage

    def nearly_full(path: Path) -> Any:
        return real(path)._replace(free=rsync_copy.LEFT_FREE_BYTES + LARGE_BYTES // 2)

    monkeypatch.setattr("shutil.disk_usage", nearly_full)
    with pytest.raises(NoSpaceError, match=r"MiB are to come and 64 MiB stay free"):
        pulled(tmp_path)
    assert a_store(tmp_path / "pi").identifiers() == []
    monkeypatch.undo()
    assert pulled(tmp_path).ok


def test_a_disk_that_fills_up_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "source", "v1")
    address = Source(place=f"site:{tmp_path}/source", rsh=rsh("--stop", "0"))
    monkeypatch.setattr(rsync_copy, "check_space", lambda folder, wanted: full(folder))
    with pytest.raises(NoSpaceError):
        pulled(tmp_path, source=address)


def full(folder: Path) -> None:
    raise NoSpaceError("is full", where=str(folder))


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    published(tmp_path / "source", "v1")
    address = Source(place=f"site:{tmp_path}/source", rsh=rsh("--stop", "0"))
    with pytest.raises(TransferTimeoutError, match=r"not done after 0\.5 s"):
        pulled(tmp_path, source=address, seconds=0.5)
    assert pulled(tmp_path).ok


def test_a_source_that_sends_nothing_more_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = large_release(tmp_path / "source")
    monkeypatch.setattr(rsync_copy, "STALLED_SECONDS", 2)
    address = f"site:{tmp_path}/source"
    hangs = Source(place=address, rsh=rsh("--stop", str(LARGE_BYTES // 2)))
    # While it connects, rsync's own clock may be first; once a file is on its way, it never is.
    with pytest.raises(TransferTimeoutError, match=r"nothing came for 2 s|rsync ended with 30"):
        pulled(tmp_path, source=hangs, seconds=20)
    monkeypatch.undo()
    assert set(pulled(tmp_path).releases) == {release.id}


def test_a_host_that_is_not_reached(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="rsync ended with 12"):
        pulled(tmp_path, source=Source(place="site:/nowhere", rsh="false"))
    with pytest.raises(TransferError, match="No such file or directory"):
        pulled(tmp_path, source=Source(place=f"site:{tmp_path}/nowhere", rsh=rsh()))


def test_a_source_that_is_none(tmp_path: Path) -> None:
    for place in ("rsync://site/releases", "site::releases", "-e", ""):
        with pytest.raises(ConfigError, match="neither a directory nor host:path"):
            pulled(tmp_path, source=Source(place=place))
    with pytest.raises(ReleaseNotFoundError, match="is no directory"):
        pulled(tmp_path)
    (tmp_path / "source").mkdir()
    with pytest.raises(ReleaseNotFoundError, match="holds no channel"):
        pulled(tmp_path)


def test_rsync_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "source", "v1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoRsyncError, match=r"is not installed \(apt-get install rsync\)"):
        pulled(tmp_path)


def test_another_writer_is_waited_for_and_nothing_is_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path / "source", "v1")
    monkeypatch.setattr("runtime.contract.store.writing", lambda root: writing(root, 0.05))
    with writing(tmp_path / "pi"):
        found = pulled(tmp_path)
    assert all("writes to it" in problem for problem in problems(found).values())
    assert a_store(tmp_path / "pi").identifiers() == []
    assert pulled(tmp_path).ok


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    published(tmp_path / "source", "v1")
    (tmp_path / "pi").touch()
    with pytest.raises(StoreError):
        pulled(tmp_path)


def test_the_lock_is_no_link(tmp_path: Path) -> None:
    published(tmp_path / "source", "v1")
    (tmp_path / "pi" / STAGING).mkdir(parents=True)
    (tmp_path / "pi" / STAGING / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        pulled(tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release,) = published(tmp_path / "source", "v1")
    source, store = str(tmp_path / "source"), str(tmp_path / "pi")
    assert main(["pull", source, store]) == 0
    assert f"emulator/stable  {release.id[:16]}  1 new move\n" in capsys.readouterr().out
    assert main(["pull", source, "--store", store, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["releases"]) == (True, {})
    assert told["channels"]["emulator/stable"] == {"release": release.id, "entries": 0, "problem": ""}
    (second,) = published(tmp_path / "source", "v2")
    (second.directory / ARTIFACT).unlink()
    assert main(["pull", source, store]) == 1
    assert "REFUSED: " in capsys.readouterr().out
    assert main(["pull", str(tmp_path / "nowhere"), store]) == 2
    assert main(["pull", "site:x", store, "--rsh", "false", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "transfer"
    for wrong in (["--keep", "0"], ["--seconds", "nan"], ["--target", "tpu"]):
        with pytest.raises(SystemExit) as ended:
            main(["pull", source, store, *wrong])
        assert ended.value.code == 2
