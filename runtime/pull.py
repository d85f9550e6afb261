"""``releasectl pull``: a Pi's release store brought up to another one, verified before anything of it counts.

In this order: roots of trust and channels into a staging folder in the store; of the releases that the
channels name, manifests and signatures; then artifacts, whose sizes are known by then. A release is renamed
into place once every byte was verified, a channel's entries follow, the newest first. Roots come last, where
all that counts here goes on counting under them. Whoever is killed in between leaves the old state or the
new, and what was copied: the next pull goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.contract.arrivals import append_entries, new_entries
from runtime.contract.channel_log import NotThereYetError, ReplayedError
from runtime.contract.channels import CHANNELS, ChannelEntry
from runtime.contract.errors import (
    ManifestError,
    PipelineError,
    ReleaseNotFoundError,
    store_errors,
)
from runtime.contract.files import make_directory
from runtime.contract.release import TARGETS
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import MAX_ENVELOPE_BYTES
from runtime.pull_releases import ReleaseTaker
from runtime.pull_roots import take_roots as keep_roots
from runtime.pull_staging import LOCK_NAME, STAGING, Staged, alone, sweep
from runtime.rsync_copy import Copier, Source

MOST_SECONDS: Final = 1800.0
KEPT: Final = 2
"""Releases of each channel that are pulled: what it names, and the one before, to return to."""


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
        there: Whether the source has entries of it.
    """

    place: str
    release: str = ""
    entries: int = 0
    problem: str = ""
    names: str = ""
    wanted: list[str] = field(default_factory=list)
    last: int = 0
    there: bool = False


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull brought.

    Args:
        channels: Every channel that the source or this store has, of the targets that were asked for; with
            new roots, of this store's other targets, too.
        releases: Id to bytes of each release that is new here.
        problems: A sentence for each channel that holds new roots back, and each earlier release that could
            not be taken.
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
    take_roots: bool = False,
) -> Pulled:
    """Bring a store up to the one at ``source``. Nothing is removed from it, and no channel moves back.

    With new roots, every target that the store has is pulled: they end what was not signed again.

    Args:
        store: Pulled into; made where it is not there.
        source: Where the other one is.
        targets: Of ``TARGETS``; all that the source has where none is named.
        keep: How many different releases each channel named last, 1 or more.
        seconds: For all copying together.
        take_roots: Take new roots first, though channels and releases here count no longer under them.

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
    with alone(staging / LOCK_NAME) as lock:
        copier = Copier(source, staging, seconds, lock)
        return _Pull(store, staging, copier, targets or TARGETS).run(source, keep, take_roots)


class _Pull:
    def __init__(self, store: ReleaseStore, staging: Path, copier: Copier, targets: Sequence[str]) -> None:
        self._store, self._staging, self._copier, self._targets = store, staging, copier, targets
        self._staged, self._here = Staged(staging), Staged(store.root)

    def run(self, source: Source, keep: int, take_roots: bool) -> Pulled:
        also = self._copy_roots()
        taken = keep_roots(self._store, self._trust, whatever=True)[0] if take_roots else 0
        self._copy_channels([*self._targets, *also])
        looked = [self._look(target, channel, keep) for target in self._targets for channel in CHANNELS]
        if not any(each and each.there for each in looked):
            raise ReleaseNotFoundError(
                f"holds no channel of {', '.join(self._targets)}",
                where=source.place,
                hint="name the folder with `releases` and `channels` in it; --target takes another one",
            )
        looked += [self._look(target, channel, 1) for target in also for channel in CHANNELS]
        channels = [each for each in looked if each]
        wanted = list(dict.fromkeys(name for each in channels for name in each.wanted))
        sweep(self._staging, wanted)  # first: its room may be needed
        self._taker = ReleaseTaker(self._store, self._staging, self._copier, self._trust.root)
        found, refused = self._taker.take(wanted)
        for each in channels:
            if each.names in refused:
                each.problem = each.problem or str(refused[each.names])
            if not each.problem:
                self._move(each)
        sweep(self._staging, refused)
        new, held = keep_roots(self._store, self._trust, whatever=False)
        if held:
            self._tell_held(channels)
        earlier = {name: refused[name] for name in set(refused) - {each.names for each in channels}}
        absent = sorted(name for name, error in earlier.items() if isinstance(error, NotThereYetError))
        return Pulled(
            channels=channels,
            releases=found,
            problems=[*held, *(str(earlier[name]) for name in sorted(set(earlier) - set(absent)))],
            absent=absent,
            roots=taken + new,
        )

    def _copy_roots(self) -> list[str]:
        """Roots before channels: where a root is seen, what was signed for it is there already.

        Returns:
            Targets that the store has and that were not asked for, where there are new roots.
        """
        self._copier.mirror("trust", ["trust/*.root.json"], MAX_ENVELOPE_BYTES)
        here = self._store.trust
        self._from = StoreReader(self._staging, here)
        self._trust = self._from.trust
        if self._trust.root.version == here.root.version:
            return []
        return [target for target in self._store.targets() if target not in self._targets]

    def _copy_channels(self, targets: Sequence[str]) -> None:
        patterns = []
        for target in targets:
            patterns.append(f"channels/{target}/")
            for channel in CHANNELS:
                folder = f"channels/{target}/{channel}/"
                patterns += [folder, folder + "[0-9]" * 8 + ".json"]
        self._copier.mirror("channels", patterns, MAX_ENVELOPE_BYTES)

    def _look(self, target: str, channel: str, keep: int) -> PulledChannel | None:
        """What the source says of a channel; None where it says nothing, and nothing is known here."""
        found = PulledChannel(place=f"{target}/{channel}")
        found.there = bool(self._staged.names(f"channels/{found.place}/"))
        known = self._here.names(f"channels/{found.place}/")
        if not found.there and not known:
            return None
        try:
            mine = self._store.present(target, channel)
            found.release = mine.entry.release if mine else ""
            if not found.there:
                raise ReplayedError(
                    f"has no entry there, {len(known)} are here",
                    where=found.place,
                    hint="the source is another store, or lost it; nothing is taken away here",
                )
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
        """Add a channel's new entries, where what the newest names is here."""
        target, channel = found.place.split("/")
        try:
            with self._store.writing():
                sequences = self._new(found)  # asked again: others may have written meanwhile
                # No channel named it until now: a prune may have taken it away since it came.
                if sequences and found.names and not self._taker.is_here(found.names):
                    raise NotThereYetError(
                        f"release {found.names[:16]}... was taken away here before it could be named",
                        where=found.place,
                        hint="a prune was at work: the next pull brings it again",
                    )
                append_entries(self._store, self._staged, target, channel, sequences, self._trust)
        except PipelineError as error:
            found.problem = str(error)
        else:
            found.entries, found.release = len(sequences), found.names

    def _tell_held(self, channels: Sequence[PulledChannel]) -> None:
        """Say of channels that moved where they are without the new roots."""
        for each in channels:
            target, channel = each.place.split("/")
            mine = self._store.present(target, channel)
            if not each.problem and (mine is None or mine.entry.sequence < each.last):
                each.release = mine.entry.release if mine else ""
                each.problem = (
                    f"{each.place}: entry {each.last} counts under root {self._trust.root.version}, "
                    "which is held back"
                )


def _last_named(head: ChannelEntry, history: Sequence[ChannelEntry], keep: int) -> list[str]:
    """The last different releases that a channel named, the present one first, without those marked bad."""
    left_out = {entry.marked for entry in history} | {head.release, ""}
    before = [entry.release for entry in reversed(history) if entry.release not in left_out]
    named = [head.release] if head.release else []
    return [*named, *dict.fromkeys(before)][:keep]
