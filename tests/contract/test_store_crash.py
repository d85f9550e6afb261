"""Killed at any call, cut off from power at any call, the disk full: the old state or the new one."""

from __future__ import annotations

import errno
import functools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from runtime.contract.audit import store_problems
from runtime.contract.errors import ChannelMovedError, StoreError
from runtime.contract.pruning import prune
from runtime.contract.release import parse_manifest
from tests.contract.crash import (
    KILLED,
    Call,
    at_once,
    audited,
    counted,
    expected_events,
    fail_at,
    in_child,
    kill_at,
    no_sync,
    watched,
)
from tests.contract.disk import ALL, NOTHING, Disk, Tree, read_tree, write_tree
from tests.contract.store_operations import (
    OPERATIONS,
    STORE,
    TARGET,
    Operation,
    View,
    leftovers,
    made,
    name_of,
    published,
    store_in,
    view,
)
from tests.keys import KEY_OF

SEEDS: Final = 4
WRITERS: Final = 20
PARSED: Final = functools.lru_cache(parse_manifest)
MAY_FAIL: Final = ("open", "write", "pwrite", "mkdir", "link", "rename", "replace", "fsync")


@dataclass(repr=False)
class Prepared:
    """An operation, the folder before it, what readers see before and after, and every call of it."""

    operation: Operation
    before: Path
    old: View
    new: View
    calls: list[Call]
    base: Path
    after: Tree
    events: list[tuple[str, str]]
    fresh: Callable[[], Path]


@functools.cache
def _prepared(operation: Operation, root: Path) -> Prepared:
    numbers = iter(range(1_000_000))

    def fresh() -> Path:
        folder = root / str(next(numbers))
        shutil.rmtree(root / str(int(folder.name) - 1), ignore_errors=True)
        return folder

    before, base = root / "before", root / "run"
    before.mkdir(parents=True)
    with no_sync():
        operation.prepare(before)
    shutil.copytree(before, base)
    calls, events = in_child(lambda: audited(lambda: operation.run(base)))
    return Prepared(operation, before, view(before), view(base), calls, base, read_tree(base), events, fresh)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each operation, for all tests of it."""
    return {op.name: tmp_path_factory.mktemp(op.name.replace(" ", "-")) / "it" for op in OPERATIONS}


IN_TURN: Final = [
    pytest.param(op, id=op.name.replace(" ", "-"), marks=[pytest.mark.slow] if "first" in op.name else [])
    for op in OPERATIONS
]


@pytest.fixture(params=IN_TURN)
def it(
    request: pytest.FixtureRequest, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Prepared]:
    """Each operation in turn; nobody waits for a disk, or reads the same manifest a thousand times."""
    monkeypatch.setattr("runtime.contract.release_directory.parse_manifest", PARSED)
    assert made(9)  # before a fork, so that no child has to
    operation: Operation = request.param
    prepared = _prepared(operation, places[operation.name])
    with no_sync():
        yield prepared


@pytest.fixture(params=[10, pytest.param(1, marks=pytest.mark.slow)], ids=["quick", "all"])
def every(request: pytest.FixtureRequest) -> int:
    """After each so many kills everything else is tried, too; so many of the other points are left out."""
    number: int = request.param
    return number


def test_no_change_escapes(it: Prepared) -> None:
    """The interpreter's own reports are the calls that were counted, and a replay gives the same files."""
    assert it.events == expected_events(it.calls)
    disk = Disk(it.before)
    disk.apply(it.calls, it.base)
    assert disk.after(ALL) == it.after


def test_killed_at_any_call(it: Prepared, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    calls = counted(it.calls)
    points = [(index, half) for index, call in enumerate(calls) for half in _halves(call)]
    tried = points[:: 1 + len(points) // 40] if every > 1 else points
    for number, (index, half) in enumerate(tried):
        folder = it.fresh()
        shutil.copytree(it.before, folder)
        work = functools.partial(it.operation.run, folder)
        child = functools.partial(watched, work, kill_at(index, half=half))
        assert in_child(child) == KILLED, calls[index]
        _check(it, folder, number, every)
    with capsys.disabled():
        print(
            f"\nkill points of {it.operation.name}: {len(points)} at {len(calls)} calls, {len(tried)} tried"
        )


def _check(it: Prepared, folder: Path, number: int, every: int) -> None:
    it.operation.check_between(folder, it.old, it.new)
    it.operation.check_again(folder, it.new)
    if number % every == 0:
        it.operation.check_next(folder)


def _halves(call: Call) -> tuple[bool, ...]:
    return (False, True) if call.name in ("write", "pwrite") else (False,)


def _states(it: Prepared) -> Iterator[Tree]:
    """What any loss of power leaves, each once."""
    seen: set[str] = set()
    for length in range(len(it.calls) + 1):
        disk = Disk(it.before)
        disk.apply(it.calls[:length], it.base)
        choices = [NOTHING, ALL]
        for seed in range(SEEDS if disk.open_changes > 1 else 0):
            choices.append(_some(random.Random(f"{length} {seed}"), disk.open_changes))
        for choice in choices:
            tree = disk.after(choice)
            if (key := repr(tree)) not in seen:
                seen.add(key)
                yield tree


def _some(luck: random.Random, number: int) -> Callable[[int], float]:
    shares = [luck.choice((0.0, 0.4, 1.0, 1.0)) for _ in range(number)]
    return shares.__getitem__


def test_power_lost_at_any_call(it: Prepared, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    number = 0
    for number, tree in enumerate(_states(it), 1):
        if number % every:
            continue
        folder = it.fresh()
        write_tree(tree, folder)
        _check(it, folder, number, every)
    with capsys.disabled():
        print(f"\nstates of the disk of {it.operation.name}: {number}")


def test_what_was_done_stays(it: Prepared, every: int) -> None:
    """Also where it was done by repeating what was killed: a success is on the disk."""
    done = store_in(it.base).identifiers()
    step = 1 + len(it.calls) // 40 if every > 1 else 1
    for length in range(len(it.calls), -1, -step):
        disk = Disk(it.before)
        disk.apply(it.calls[:length], it.base)
        folder = it.fresh()
        write_tree(disk.after(ALL), folder)
        calls = watched(functools.partial(it.operation.run, folder))
        if not counted(calls) and it.operation.name == "roll back":
            continue  # it was not done again: the channel was there
        disk.apply(calls, folder)
        luck = _some(random.Random(length), disk.open_changes)
        for kept in (NOTHING, luck) if disk.open_changes else (NOTHING,):
            shutil.rmtree(folder)
            write_tree(disk.after(kept), folder)
            assert view(folder) == it.new, it.calls[length - 1 :][:2]
            assert store_in(folder).identifiers() == done
            assert store_problems(store_in(folder)) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_the_disk_refuses_any_call(it: Prepared, every: int, code: int) -> None:
    for index, call in enumerate(counted(it.calls)):
        if call.name not in MAY_FAIL or (code == errno.ENOSPC and call.name == "fsync"):
            continue
        if every > 1 and code == errno.EIO and call.name != "fsync":
            continue
        folder = it.fresh()
        shutil.copytree(it.before, folder)
        with pytest.raises(StoreError, match=os.strerror(code)):
            watched(functools.partial(it.operation.run, folder), fail_at(index, code))
        if not (it.operation.name == "prune" and call.name == "fsync"):
            assert leftovers(folder) == []
        _check(it, folder, index, every)


def test_what_reads_changes_nothing(it: Prepared) -> None:
    calls = watched(lambda: (view(it.base), store_problems(store_in(it.base))))
    assert counted(calls) == []


def test_a_read_only_store_is_read_and_not_written(it: Prepared, tmp_path: Path) -> None:
    """As a user who may not write: root may everywhere."""
    folder = tmp_path / "it"
    shutil.copytree(it.before, folder)
    (folder / STORE).mkdir(exist_ok=True)
    (folder / STORE).chmod(0o555)
    for path in (folder / STORE).rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def as_nobody() -> tuple[View, list[str], str]:
        os.chdir(folder)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        here = Path()
        seen, problems = view(here), store_problems(store_in(here))
        with pytest.raises(StoreError) as caught:
            it.operation.run(here)
        assert view(here) == seen
        return seen, problems, str(caught.value)

    try:
        seen, problems, message = in_child(as_nobody)
    finally:
        for path in [folder / STORE, *(folder / STORE).rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert (seen, problems) == (it.old, [])
    assert "Permission denied" in message
    assert leftovers(folder) == []


def test_a_release_that_returned_is_pruned_again(tmp_path: Path) -> None:
    """A pruning of it was killed, then it was published again."""
    published(tmp_path, 1, "canary")
    folder = published(tmp_path, 3).directory
    shutil.copytree(folder, folder.with_name(f".pruned-{folder.name}"))
    assert prune(store_in(tmp_path), 1, dry_run=False).removed == (name_of(3),)
    assert leftovers(tmp_path) == []


def test_of_twenty_that_move_a_channel_one_does(tmp_path: Path) -> None:
    """Each decided on the same head; the others hear who was first."""
    with no_sync():
        for number in range(100, 100 + WRITERS):
            published(tmp_path, number)
        published(tmp_path, 1, "canary", "stable")
        for channel, action in (("canary", "publish"), ("stable", "promote")):
            answers = at_once([_mover(tmp_path, channel, action, number) for number in range(WRITERS)])
            (winner,) = (answer for answer in answers if answer.isdigit())
            losers = [answer for answer in answers if not answer.isdigit()]
            assert len(losers) == WRITERS - 1
            assert all(f"writer {winner} moved it first" in loser for loser in losers)
            entries = store_in(tmp_path).history(TARGET, channel)
            assert [entry.release for entry in entries] == [name_of(1), name_of(100 + int(winner))]
    assert store_problems(store_in(tmp_path)) == []
    assert leftovers(tmp_path) == []


def _mover(folder: Path, channel: str, action: str, number: int) -> Callable[[], str]:
    store = store_in(folder)
    head = store.head(TARGET, channel)
    assert head is not None
    assert head.entry.sequence == 1
    actor, release = f"writer {number}", name_of(100 + number)

    def move() -> str:
        try:
            store.move(
                TARGET,
                channel,
                release,
                action=action,
                actor=actor,
                reason="?",
                key=KEY_OF[channel],
                seen=head,
            )
        except ChannelMovedError as error:
            return str(error)
        return str(number)

    return move


def test_twenty_publish_at_once(tmp_path: Path) -> None:
    names = [name_of(100 + number) for number in range(WRITERS)]
    works = [functools.partial(_publish, tmp_path, 100 + number) for number in range(WRITERS)]
    assert at_once(works) == names
    assert store_in(tmp_path).identifiers() == sorted(names)
    assert store_problems(store_in(tmp_path)) == []
    assert leftovers(tmp_path) == []


def _publish(folder: Path, number: int) -> str:
    return published(folder, number).id
