"""A channel on the disk: its newest entry for readers, its whole chain for writers and auditors.

Readers need no lock: an entry appears whole, and its signature and links say whether it counts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.channels import (
    ENTRY_TYPE,
    LAST_SEQUENCE,
    ChannelEntry,
    SignedEntry,
    check_entry,
    entry_name,
    is_entry_name,
    read_entry,
    sign_entry,
    unverified_entry,
)
from runtime.contract.errors import (
    ChannelMovedError,
    ManifestError,
    PipelineError,
    StoreError,
    collect_problems,
    store_errors,
)
from runtime.contract.files import (
    is_no_file,
    list_directory,
    make_directory,
    read_bounded,
    sync_directory,
    write_synced,
)
from runtime.contract.judgements import Judgements
from runtime.contract.trust import (
    MAX_ENVELOPE_BYTES,
    Root,
    SignatureError,
    SigningKey,
    Trust,
    UnsignedError,
    verify,
)

LARGEST_JUMP: Final = 1000
"""Entries by which a channel may be ahead of what was seen: a stolen key cannot use up all numbers."""


class NotThereYetError(StoreError):
    """A store that is still being copied: what is missing may come."""

    code = "not_there_yet"


class ReplayedError(PipelineError):
    """A channel that ends before what was seen of it."""

    code = "replayed"


class ForkError(PipelineError):
    """A channel that continues differently from what was seen of it."""

    code = "fork"


class JumpError(PipelineError):
    """A channel further ahead than is believed: its key was stolen, or this reader was away for long."""

    code = "jump"


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The newest entry that a reader has seen of a channel: nothing older counts again.

    ``keyids`` signed it; once none of them may act for the channel, the floor is void.
    """

    sequence: int
    digest: str
    keyids: tuple[str, ...]

    @classmethod
    def at(cls, head: SignedEntry) -> Floor:
        """The floor that this entry makes."""
        return cls(sequence=head.entry.sequence, digest=head.digest, keyids=head.keyids)


@dataclass(frozen=True)
class Head:
    """A channel's newest entry that holds, and a sentence for each that claims to be newer and does not."""

    signed: SignedEntry
    refused: tuple[str, ...]

    @property
    def entry(self) -> ChannelEntry:
        """What it says."""
        return self.signed.entry


class ChannelLog:
    """One channel of one target.

    Args:
        folder: ``channels/<target>/<channel>`` of a store.
        trust: Whose entries count.
        judgements: What was judged already; shared by those who ask for the same history.
    """

    def __init__(self, folder: Path, trust: Trust, judgements: Judgements | None = None) -> None:
        self.folder = folder
        self.channel = folder.name
        self._trust = trust
        self._judgements = judgements or Judgements()

    @property
    def where(self) -> str:
        """``target/channel``, for messages."""
        return f"{self.folder.parent.name}/{self.channel}"

    def names(self) -> list[str]:
        """File names of the entries, oldest first."""
        with store_errors(self.folder):
            return [name for name in list_directory(self.folder) if is_entry_name(name)]

    def head(self, floor: Floor | None = None) -> Head | None:
        """The newest entry whose signature holds; None where the channel never pointed anywhere.

        Args:
            floor: What was seen before; the entry must continue it.

        Raises:
            SignatureError, ManifestError: There are entries, and none holds: why the newest does not.
            ReplayedError: The store is older than what was seen.
            ForkError: It says something else than what was seen.
            JumpError: It is too far ahead.
            NotThereYetError: Entries between are missing.
            StoreError: The store cannot be read.
        """
        root = self._trust.root
        refused: list[PipelineError] = []
        for name in reversed(self.names()):
            try:
                signed = read_entry(self.folder / name, [root])
            except StoreError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue
                if not is_no_file(error.__cause__, self.folder / name):
                    raise
                refused.append(error)
            except PipelineError as error:
                refused.append(error)
            else:
                self._check_floor(signed, floor)
                return Head(signed, tuple(map(str, refused)))
        self._check_floor(None, floor)
        if refused:
            raise refused[0]
        return None

    def _check_floor(self, head: SignedEntry | None, floor: Floor | None) -> None:
        if floor is None or not set(floor.keyids) & set(self._trust.root.roles[self.channel].keyids):
            return
        sequence = head.entry.sequence if head else 0
        if head is None or sequence < floor.sequence:
            raise ReplayedError(
                f"ends at entry {sequence}, entry {floor.sequence} was seen here",
                where=self.where,
                hint="an older copy of the store lies here: copy the present one",
            )
        if sequence > floor.sequence + LARGEST_JUMP:
            raise JumpError(
                f"entry {sequence} is more than {LARGEST_JUMP} ahead of {floor.sequence}",
                where=self.where,
                hint="read `releasectl history`: where these moves are yours, this reader was away for long: "
                "remove store-state.json from its STATE_DIR and restart it; where they are not, the key was "
                "stolen: `releasectl keys rotate`",
            )
        digest = head.digest if sequence == floor.sequence else self._digest_at(head, floor.sequence)
        if digest != floor.digest:
            raise ForkError(
                f"says something else at entry {floor.sequence} than what was seen here",
                where=self.where,
                hint="two stores were mixed, or a key signs behind our back: see `releasectl history`",
            )

    def _digest_at(self, head: SignedEntry, sequence: int) -> str:
        """What the chain says was signed at ``sequence``: walked from the head, link by link."""
        following = head
        for number in range(head.entry.sequence - 1, sequence, -1):
            path = self.folder / entry_name(number)
            try:
                before = unverified_entry(path)
            except StoreError as error:
                raise self._not_there_yet(number) from error
            except ManifestError as error:
                raise self._not_there_yet(number) from error
            if before.digest != following.entry.previous_entry:
                raise ForkError("is not what the entry after it continues", where=str(path))
            following = before
        return following.entry.previous_entry

    def _not_there_yet(self, number: int) -> NotThereYetError:
        return NotThereYetError(
            "is not there yet, a later entry is",
            where=str(self.folder / entry_name(number)),
            hint="wait for the copy of the store to end",
        )

    def chain(self) -> list[SignedEntry]:
        """Every entry, oldest first, each signed by a key of its time and continuing the one before.

        It ends where it no longer holds (``problems`` says why). StoreError: the store cannot be read.
        """
        return self._walk()[0]

    def whole(self) -> list[SignedEntry]:
        """As ``chain``, which must reach the head: nothing may be decided by half a history.

        What lies above the head and does not hold is nobody's, and no obstacle.

        Raises:
            ManifestError: The head counts, and the history before it does not hold; names what is wrong.
            StoreError: The store cannot be read.
        """
        return self.whole_and_head()[0]

    def whole_and_head(self) -> tuple[list[SignedEntry], Head | None]:
        """As ``whole``, and the head; None where nothing holds under the present keys."""
        try:
            head = self.head()  # First: what a writer adds meanwhile is in the walk, and left out of it.
        except (SignatureError, ManifestError):
            return self._walk()[0], None  # what was signed under earlier keys is the history
        chain, found = self._walk()
        ends = {each.digest: end for end, each in enumerate(chain, 1)}
        reached = ends.get(head.signed.digest, 0) if head else 0
        if head and not reached:
            raise ManifestError(
                f"entry {head.entry.sequence} counts, but the history before it does not hold: "
                f"{'; '.join(found[:1])}",
                where=self.where,
                hint="`releasectl verify` names all; copy the missing entries back",
            )
        return chain[:reached], head

    def displaced(self) -> list[str]:
        """One sentence for each file above the chain that may have been an entry and does not hold.

        A mark may be lost there. A link was never an entry, and an unsigned history gives way to a new one.
        """
        found = []
        for name in self.names()[len(self.chain()) :]:
            path = self.folder / name
            if path.is_symlink() or not path.is_file():
                continue
            try:
                read_entry(path, self._trust.roots)
            except PipelineError as error:
                if not isinstance(error, UnsignedError):
                    found.append(str(error))
        return found

    def problems(self) -> list[str]:
        """One sentence for each entry that does not hold or does not continue the one before."""
        return self._walk()[1]

    def _walk(self) -> tuple[list[SignedEntry], list[str]]:
        chain: list[SignedEntry] = []
        found: list[str] = []
        roots = self._trust.roots
        names = self.names()
        judged = 0
        for number, name in enumerate(names, 1):
            path = self.folder / name
            if name != entry_name(number):
                found.append(f"{self.folder}: {entry_name(number)} is missing, a later entry is there")
                break
            judged = number
            with collect_problems(found):
                signed, version = self._signed_at(path, roots)
                roots = [root for root in roots if root.version >= version]
                check_link(chain[-1] if chain else None, signed, path)
                chain.append(signed)
            if found:
                break
        for name in names[judged:]:
            with collect_problems(found):
                read_entry(self.folder / name, self._trust.roots)
        return chain, found

    def _signed_at(self, path: Path, roots: Sequence[Root]) -> tuple[SignedEntry, int]:
        """The entry, and the version of the newest root whose keys vouch for it: it never falls."""
        signed = self._judgements.read_entry(path, roots)
        newest = [r.version for r in roots if set(signed.keyids) & set(r.roles[self.channel].keyids)]
        return signed, newest[-1]

    def append(self, entry: ChannelEntry, key: SigningKey) -> SignedEntry:
        """Sign an entry and add it, where nobody else was first.

        Raises:
            SignatureError: The key may not move this channel.
            ChannelMovedError: Somebody added this number first; says who.
            StoreError: It cannot be written; nothing is left.
        """
        document = sign_entry(entry, key)
        path = self.folder / entry_name(entry.sequence)
        signed = check_entry(document, path, [self._trust.root])
        self.add(document, entry.sequence)
        return signed

    def add(self, document: bytes, sequence: int) -> None:
        """Add an entry that was verified; raises as ``append``. The caller holds the writers' lock."""
        path = self.folder / entry_name(sequence)
        with store_errors(self.folder):
            make_directory(self.folder)
            descriptor, name = tempfile.mkstemp(prefix=".entry-", dir=self.folder)
            os.close(descriptor)
            temporary = Path(name)
            try:
                write_synced(temporary, document)
                self._make_room(path)
                # A link onto an existing number fails: of two writers exactly one wins.
                os.link(temporary, path)
                sync_directory(self.folder)
            except FileExistsError as error:
                winner = read_entry(path, self._trust.roots).entry
                raise ChannelMovedError(
                    f"{winner.actor} moved it first, to {winner.release[:12] or 'nothing'}: {winner.reason}",
                    where=self.where,
                    hint="look at the channel again, then repeat",
                ) from error
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, path: Path) -> None:
        """Move what does not hold at the next number aside, under a name that no reader looks at.

        The caller holds the writers' lock, so that it is nobody's entry of this moment.
        """
        try:
            read_entry(path, [self._trust.root])
        except StoreError as error:
            nothing = isinstance(error.__cause__, FileNotFoundError)
            if not nothing and not is_no_file(error.__cause__, path):
                raise
            if not nothing or path.is_symlink():
                self._move_aside(path)
        except PipelineError as error:
            if self._is_ours(path):
                raise ManifestError(
                    f"a key of this channel signed it, and it cannot be read: {error.what}",
                    where=str(path),
                    hint="a newer version wrote it: update this one; moving on would fork the history",
                ) from error
            self._move_aside(path)

    def _is_ours(self, path: Path) -> bool:
        """Whether a key that may signed what lies there, whatever it says."""
        try:
            data = read_bounded(path, MAX_ENVELOPE_BYTES)
            verify(data, ENTRY_TYPE, self._trust.root, self.channel, str(path))
        except (PipelineError, OSError):
            return False
        return True

    def _move_aside(self, path: Path) -> None:
        aside = tempfile.mkdtemp(prefix=f".refused-{path.stem}-", dir=self.folder)
        path.rename(Path(aside) / path.name)


def next_sequence(tip: SignedEntry | None, where: str) -> int:
    """The number after a channel's newest entry."""
    sequence = tip.entry.sequence + 1 if tip else 1
    if sequence > LAST_SEQUENCE:
        raise JumpError("has no number left", where=where, hint="rotate the key that used them up")
    return sequence


def check_link(before: SignedEntry | None, signed: SignedEntry, path: Path) -> None:
    """ManifestError where an entry does not continue the one before: its digest, and what it named."""
    expected = (before.digest, before.entry.release) if before else ("", "")
    if (signed.entry.previous_entry, signed.entry.previous) != expected:
        raise ManifestError(
            f"continues {signed.entry.previous_entry[:16] or 'nothing'} and previous is "
            f"{signed.entry.previous[:16] or 'nothing'}, the entry before is {expected[0][:16] or 'none'} "
            f"and names {expected[1][:16] or 'nothing'}",
            where=str(path),
        )
