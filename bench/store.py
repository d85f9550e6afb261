"""How long a store takes to answer: a list of many releases, a channel after many moves, one move."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.serving import machine
from runtime.cli import main as releasectl
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import StoreReader
from tests.keys import MANAGER, a_store, a_trust, use_test_keys
from tests.simulators import ReleaseSimulator

RELEASES = 1000
MOVES = 1000
ROUNDS = 11
AIM_LIST_S = 1.0
AIM_RESOLVE_MS = 20.0


def median_ms(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median milliseconds of an action."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken)


def many_releases(root: Path, count: int) -> None:
    """Publish releases that differ by their version."""
    for number in range(count):
        ReleaseSimulator(version=f"v{number}").publish(root)


def many_moves(store: ReleaseStore, count: int) -> list[float]:
    """Move stable between two releases; milliseconds of each move."""
    releases = [store.open(name) for name in store.identifiers()[:2]]
    taken = []
    for number in range(count):
        begin = time.perf_counter()
        store.point(
            "stable", releases[number % 2], actor="bench", reason="bench", key=MANAGER, action="promote"
        )
        taken.append(1000 * (time.perf_counter() - begin))
    return taken


def move_alone(root: Path) -> None:
    """One move by a store that was just opened, as a process makes it that does nothing else."""
    store = a_store(root)
    named = store.resolve("emulator", "stable").id
    other = next(name for name in store.identifiers()[:2] if name != named)
    store.point("stable", store.open(other), actor="bench", reason="bench", key=MANAGER, action="promote")


def listing(root: Path) -> None:
    """``releasectl list``, as a process would, without its start."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert releasectl(["list", "--store", str(root)]) == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    parser.add_argument("--releases", type=int, default=RELEASES)
    parser.add_argument("--moves", type=int, default=MOVES)
    options = parser.parse_args(argv)
    use_test_keys()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "store"
        many_releases(root, options.releases)
        moves = many_moves(a_store(root), options.moves)
        copy = Path(place) / "copy"
        shutil.copytree(root, copy)
        fresh = median_ms(lambda: StoreReader(copy, a_trust()).resolve("emulator", "stable"))
        chain = median_ms(lambda: StoreReader(copy, a_trust()).history("emulator", "stable"), 3)
        listed = median_ms(lambda: listing(root), 3) / 1000
        alone = median_ms(lambda: move_alone(root), 5)
        print("| what | median | aim |\n|---|---|---|")
        print(f"| list of {options.releases} releases | {listed:.2f} s | <= {AIM_LIST_S:g} s |")
        print(
            f"| resolve a channel after {options.moves} moves | {fresh:.1f} ms | <= {AIM_RESOLVE_MS:g} ms |"
        )
        print(f"| whole history, every signature | {chain:.0f} ms | |")
        first, last = statistics.median(moves[:10]), statistics.median(moves[-10:])
        print(f"| a move, all by one process, first and last ten | {first:.1f}, {last:.1f} ms | |")
        print(f"| a move of a process of its own, after {options.moves} | {alone:.0f} ms | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
