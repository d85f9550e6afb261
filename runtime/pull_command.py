"""``releasectl pull`` as a command: its options, and what it prints."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.contract.release import TARGETS
from runtime.contract.store import ReleaseStore
from runtime.pull import KEPT, MOST_SECONDS, Pulled, pull
from runtime.rsync_copy import Source


def add_pull(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``releasectl pull``."""
    parser = verb("pull", "bring this store up to another one, verified", _pull)
    parser.add_argument("source", metavar="SOURCE", help="a directory, or [user@]host:path (rsync over ssh)")
    # Under the name of --store, whose value stays where this is left out.
    parser.add_argument(
        "store",
        metavar="STORE",
        type=Path,
        nargs="?",
        default=argparse.SUPPRESS,
        help="pulled into; default: as --store",
    )
    parser.add_argument(
        "--target", choices=TARGETS, action="append", default=[], help="again for more; default: all"
    )
    parser.add_argument(
        "--keep",
        type=_whole,
        default=KEPT,
        metavar="N",
        help="releases that each channel named last; default: %(default)s",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=MOST_SECONDS,
        metavar="S",
        help="for all copying together; default: %(default)g",
    )
    parser.add_argument(
        "-e", "--rsh", metavar="COMMAND", default="", help="in place of ssh; default: RSYNC_RSH, else ssh"
    )
    parser.add_argument(
        "--take-roots",
        action="store_true",
        help="take new roots of trust first, whatever then counts no longer: after a key was stolen",
    )


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(text)
    return number


def _pull(store: ReleaseStore, options: argparse.Namespace) -> int:
    source = Source(place=options.source, rsh=options.rsh)
    found = pull(
        store,
        source,
        targets=options.target,
        keep=options.keep,
        seconds=options.seconds,
        take_roots=options.take_roots,
    )
    document = {
        "ok": found.ok,
        "releases": found.releases,
        "channels": {
            each.place: {"release": each.release, "entries": each.entries, "problem": each.problem}
            for each in found.channels
        },
        "roots": found.roots,
        "absent": found.absent,
        "problems": found.problems,
    }
    options.show(options, document, lambda: list(_lines(found)))
    return 0 if found.ok else 1


def _lines(found: Pulled) -> Iterator[str]:
    for name, size in found.releases.items():
        yield f"{name}  verified, {size} bytes"
    for each in found.channels:
        moved = f"{each.entries} new move{'' if each.entries == 1 else 's'}"
        said = f"REFUSED: {each.problem}" if each.problem else moved
        yield f"{each.place}  {each.release[:16] or 'names nothing'}  {said}"
    if found.roots:
        yield f"{found.roots} new roots of trust"
    yield from (f"{name[:16]}  the source has it no longer" for name in found.absent)
    yield from (f"REFUSED: {problem}" for problem in found.problems)
