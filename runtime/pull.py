"""``releasectl pull``: a Pi's release store brought up to another one, verified before anything of it counts.

In this order: roots of trust and channels into a staging folder in the store; of the releases that the
channels name, manifests and signatures; then artifacts, whose sizes are known by then. A release is renamed
into place once every byte was verified, a channel's entries follow, the newest first, and roots come last.
Whoever is killed in between leaves the old state or the new, and what was copied: the next pull goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.contract.arrivals import append_entries, new_entries
from runtime.contract.channel_log import NotThereYetError, ReplayedError
from runtime.contract.channels import CHANNELS, ChannelEntry, is_entry_name
from runtime.contract.errors import (
    ManifestError,
    PipelineError,
    ReleaseNotFoundError,
    StoreBusyError,
    store_errors,
)
from runtime.contract.files import list_directory, make_directory, read_bounded
from runtime.contract.release import TARGETS
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import MAX_ENVELOPE_BYTES
from runtime.pull_releases import ReleaseTaker
from runtime.rsync_copy import Copier, Source

STAGING: Final = ".pull"
"""In the store, so that a rename is all that is left to do; no reader looks at it, and a prune leaves it."""
LOCK_NAME: Final = "lock"
MOST_SECONDS: Final = 1800.0
KEPT: Final = 2
"""Releases of each channel that are pulled: what it names, and the one before, to return to."""
_PATIENCE_SECONDS: Final = 5.0
"""How long an rsync that a killed pull left may take to end."""
_LOOK_SECONDS: Final = 0.02


@dataclass
class PulledChannel:
    """What became of one channel.

    Args:
        place: ``target/channel``.
        release: What it names here now; empty for nothing.
        entries: How many moves were new.
        problem: Why it stayed where it was; empty where it is as the source has it.
        names: What the source's names.
        wanted: Releases to be pulled for it.
        last: Number of the source's newest entry that holds.
    """

    place: str
    release: str = ""
    entries: int = 0
    problem: str = ""
    names: str = ""
    wanted: list[str] = field(default_factory=list)
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull brought.

    Args:
        channels: Every channel that the source has, of the targets that were asked for.
        releases: Id to bytes of each release that is new here.
        problems: A sentence for each earlier release that could not be taken.
        absent: Ids of earlier releases that the source has no longer.
        roots: How many roots of trust were new.
    """

    channels: list[PulledChannel]
    releases: dict[str, int]
    problems: list[str]
    absent: list[str]
    roots: int

    @property
    def ok(self) -> bool:
        """Whether everything is as the source has it."""
        return not self.problems and not any(each.problem for each in self.channels)


def pull(
    store: ReleaseStore,
    source: Source,
    *,
    targets: Sequence[str] = (),
    keep: int = KEPT,
    seconds: float = MOST_SECONDS,
) -> Pulled:
    """Bring a store up to the one at ``source``. Nothing is removed from it, and no channel moves back.

    Args:
        store: Pulled into; made where it is not there.
        source: Where the other one is.
        targets: Of ``TARGETS``; all that the source has where none is named.
        keep: How many different releases each channel named last, 1 or more.
        seconds: For all copying together.

    Raises:
        ReleaseNotFoundError: The source is not there, or holds no channel of these targets.
        TrustRootError: There is no root of trust to verify by.
        StoreBusyError: Another pull, or another writer, is at work.
        NoRsyncError, TransferError, NoSpaceError: Nothing, or not everything, could be copied.
        StoreError: The store cannot be written.
    """
    source.check()
    if keep < 1:
        raise ManifestError("must be 1 or more", where="keep", hint="what a channel names is always pulled")
    _ = store.trust  # asked first: without a root, nothing is copied
    staging = store.root / STAGING
    with store_errors(staging):
        make_directory(staging)
        staging.chmod(0o700)
    with _alone(staging / LOCK_NAME) as lock:
        copier = Copier(source, staging, seconds, lock)
        return _Pull(store, staging, copier, targets or TARGETS).run(source, keep)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Be the only pull into a store; the descriptor of the lock."""
    with store_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with store_errors(path), contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise StoreBusyError("another pull is at work", where=str(path), hint="wait for it to end")
            time.sleep(_LOOK_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


class _Staged:
    """What was copied, as ``arrivals`` reads it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        with store_errors(folder):
            return [name for name in list_directory(folder) if is_entry_name(name)]

    def read(self, name: str) -> bytes:
        path = self.root / name
        with store_errors(path):
            return read_bounded(path, MAX_ENVELOPE_BYTES)


class _Pull:
    def __init__(self, store: ReleaseStore, staging: Path, copier: Copier, targets: Sequence[str]) -> None:
        self._store, self._staging, self._copier, self._targets = store, staging, copier, targets
        self._staged = _Staged(staging)

    def run(self, source: Source, keep: int) -> Pulled:
        self._copy_histories()
        self._from = StoreReader(self._staging, self._store.trust)
        self._trust = self._from.trust
        looked = [self._look(target, channel, keep) for target in self._targets for channel in CHANNELS]
        channels = [each for each in looked if each]
        if not channels:
            raise ReleaseNotFoundError(
                f"holds no channel of {', '.join(self._targets)}",
                where=source.place,
                hint="name the folder with `releases` and `channels` in it; --target takes another one",
            )
        taker = ReleaseTaker(self._store, self._staging, self._copier, self._trust.root)
        wanted = list(dict.fromkeys(name for each in channels for name in each.wanted))
        found, refused = taker.take(wanted)
        for each in channels:
            if each.names in refused:
                each.problem = each.problem or str(refused[each.names])
            if not each.problem:
                self._move(each)
        earlier = {name: refused[name] for name in set(refused) - {each.names for each in channels}}
        absent = sorted(name for name, error in earlier.items() if isinstance(error, NotThereYetError))
        return Pulled(
            channels=channels,
            releases=found,
            problems=[str(earlier[name]) for name in sorted(set(earlier) - set(absent))],
            absent=absent,
            roots=self._take_roots(),
        )

    def _copy_histories(self) -> None:
        """Roots before channels: where a root is seen, what was signed for it is there already."""
        self._copier.mirror("trust", ["trust/*.root.json"], MAX_ENVELOPE_BYTES)
        patterns = []
        for target in self._targets:
            patterns.append(f"channels/{target}/")
            for channel in CHANNELS:
                folder = f"channels/{target}/{channel}/"
                patterns += [folder, folder + "[0-9]" * 8 + ".json"]
        self._copier.mirror("channels", patterns, MAX_ENVELOPE_BYTES)

    def _look(self, target: str, channel: str, keep: int) -> PulledChannel | None:
        """What the source says of a channel; None where it says nothing."""
        found = PulledChannel(place=f"{target}/{channel}")
        if not self._staged.names(f"channels/{found.place}/"):
            return None
        try:
            mine = self._store.present(target, channel)
            found.release = mine.entry.release if mine else ""
            head = self._from.head(target, channel)
            assert head is not None  # there are entries, and one holds
            found.last, found.names = head.entry.sequence, head.entry.release
            if mine and found.last < mine.entry.sequence:
                raise ReplayedError(
                    f"ends at entry {found.last} there, entry {mine.entry.sequence} is here",
                    where=found.place,
                    hint="the source is an older copy; nothing is moved back",
                )
            self._new(found)
            history = [e for e in self._from.history(target, channel) if e.sequence <= found.last]
            found.wanted = _last_named(head.entry, history, keep)
        except PipelineError as error:
            found.problem = str(error)
        return found

    def _new(self, found: PulledChannel) -> list[int]:
        target, channel = found.place.split("/")
        return new_entries(self._store, self._staged, target, channel, self._trust, last=found.last)

    def _move(self, found: PulledChannel) -> None:
        """Add a channel's new entries: what the newest names is here by now."""
        target, channel = found.place.split("/")
        try:
            with self._store.writing():
                sequences = self._new(found)  # asked again: others may have written meanwhile
                append_entries(self._store, self._staged, target, channel, sequences, self._trust)
        except PipelineError as error:
            found.problem = str(error)
        else:
            found.entries, found.release = len(sequences), found.names

    def _take_roots(self) -> int:
        """Last: under a new root nothing counts that it does not vouch for."""
        here = self._store.trust.root.version
        roots = zip(self._trust.roots, self._trust.documents, strict=True)
        new = [document for root, document in roots if root.version > here]
        for document in new:
            self._store.add_root(document)
        return len(new)


def _last_named(head: ChannelEntry, history: Sequence[ChannelEntry], keep: int) -> list[str]:
    """The last different releases that a channel named, the present one first, without those marked bad."""
    left_out = {entry.marked for entry in history} | {head.release, ""}
    before = [entry.release for entry in reversed(history) if entry.release not in left_out]
    named = [head.release] if head.release else []
    return [*named, *dict.fromkeys(before)][:keep]


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
    found = pull(store, source, targets=options.target, keep=options.keep, seconds=options.seconds)
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
