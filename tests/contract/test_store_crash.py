"""Killed at any call, cut off from power at any call, the disk full: the old state or the new one."""

from __future__ import annotations

import errno
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from runtime.contract.audit import store_problems
from runtime.contract.errors import ChannelMovedError, PipelineError, StoreError
from tests.contract.crash import (
    KILLED,
    Call,
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
    promoted,
    published,
    store_in,
    view,
)
from tests.keys import BUILD, KEY_OF

SEEDS: Final = 4
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
    return Prepared(
        operation, before, view(before), view(base), calls, base, read_tree(base), events, fresh
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each operation, for all tests of it."""
    return {op.name: tmp_path_factory.mktemp(op.name.replace(" ", "-")) / "it" for op in OPERATIONS}


@pytest.fixture(params=OPERATIONS, ids=lambda operation: operation.name.replace(" ", "-"))
def it(request: pytest.FixtureRequest, places: dict[str, Path]) -> Iterator[Prepared]:
    """Each operation in turn; nobody waits for a disk."""
    number = len(made(9)[1])
    assert number  # made before a fork, so that no child has to
    operation: Operation = request.param
    prepared = _prepared(operation, places[operation.name])
    with no_sync():
        yield prepared


@pytest.fixture(params=[10, pytest.param(1, marks=pytest.mark.slow)], ids=["quick", "all"])
def every(request: pytest.FixtureRequest) -> int:
    """After each so many points everything else is tried, too."""
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
    for number, (index, half) in enumerate(points):
        folder = it.fresh()
        shutil.copytree(it.before, folder)
        work = functools.partial(it.operation.run, folder)
        child = functools.partial(watched, work, kill_at(index, half=half))
        assert in_child(child) == KILLED, calls[index]
        _check(it, folder, number, every)
    with capsys.disabled():
        print(f"\nkill points of {it.operation.name}: {len(points)} at {len(calls)} calls")


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
        if every > 1 and number % 3:
            continue
        folder = it.fresh()
        write_tree(tree, folder)
        _check(it, folder, number, every)
    with capsys.disabled():
        print(f"\nstates of the disk of {it.operation.name}: {number}")


def test_what_was_done_stays(it: Prepared) -> None:
    """Also where it was done by repeating what was killed: a success is on the disk."""
    done = store_in(it.base).identifiers()
    for length in range(len(it.calls) + 1):
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
        folder = it.fresh()
        shutil.copytree(it.before, folder)
        with pytest.raises(StoreError, match=os.strerror(code)):
            watched(functools.partial(it.operation.run, folder), fail_at(index, code))
        if not (it.operation.name == "prune" and call.name == "fsync"):
            assert leftovers(folder) == []
        _check(it, folder, index, every)
