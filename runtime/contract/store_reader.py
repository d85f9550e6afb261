"""Releases and channels, read by whoever only follows them: a Pi, a report, an audit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.channel_log import ChannelLog, Floor, Head, NotThereYetError
from runtime.contract.channels import CHANNELS, ChannelEntry, SignedEntry
from runtime.contract.errors import (
    ManifestError,
    NoManifestError,
    ReleaseNotFoundError,
    StoreError,
    TargetMismatchError,
    store_errors,
)
from runtime.contract.evidence import FOLDER as EVIDENCE_FOLDER
from runtime.contract.evidence import list_evidence
from runtime.contract.files import (
    is_directory,
    list_directory,
)
from runtime.contract.judgements import Judgements
from runtime.contract.release import (
    TARGETS,
    check_digest,
)
from runtime.contract.release_directory import Release as Release
from runtime.contract.release_directory import open_release as open_release
from runtime.contract.trust import SignatureError, Trust, TrustRootError, UnsignedError

SHORTEST_PREFIX: Final = 6
SHORTEST_SIGNED: Final = 16
"""Whoever holds the build key can make releases until one has six digits of another's id, but not 16."""

_NEWEST: Final = 4


@dataclass(frozen=True)
class Resolved:
    """What a channel names: the release, verified as far as its manifest and signature, and the entry."""

    release: Release
    head: Head


class StoreReader:
    """Releases and channels in one directory, read: no lock, no write access, nothing that is not verified.

    Args:
        root: The directory.
        trust: The first root of trust; those in the store that continue it are followed. None where there
            is none: releases can be looked at, and nothing that needs a signature can be done.
    """

    def __init__(self, root: Path, trust: Trust | None) -> None:
        self.root = root
        self._anchor = trust
        self._judgements = Judgements()

    @property
    def trust(self) -> Trust:
        """The roots of trust, as the store continues them now.

        Raises:
            TrustRootError: There is none.
            StoreError: The store cannot be read.
        """
        if self._anchor is None:
            raise TrustRootError(
                "no root of trust was given",
                where=str(self.root),
                hint="TRUST_ROOT names the file; `releasectl keys init` or `make run` makes one",
            )
        return self._anchor.follow(self.root / "trust")

    @property
    def has_trust(self) -> bool:
        """Whether signatures can be judged here."""
        return self._anchor is not None

    def _log(self, target: str, channel: str) -> ChannelLog:
        return ChannelLog(self._channel(target, channel), self.trust, self._judgements)

    def chain(self, target: str, channel: str) -> list[SignedEntry]:
        """Every move of a channel, oldest first, as far as its history holds."""
        return self._log(target, channel).chain()

    def history(self, target: str, channel: str) -> list[ChannelEntry]:
        """What each move of a channel says, oldest first, as far as its history holds."""
        return [signed.entry for signed in self.chain(target, channel)]

    def whole_chain(self, target: str, channel: str) -> list[SignedEntry]:
        """As ``chain``, which must reach the head; raises as ``ChannelLog.whole``."""
        return self._log(target, channel).whole()

    def whole_history(self, target: str, channel: str) -> list[ChannelEntry]:
        """As ``history``, which must reach the head; raises as ``ChannelLog.whole``."""
        return [signed.entry for signed in self.whole_chain(target, channel)]

    def displaced(self, target: str, channel: str) -> list[str]:
        """As ``ChannelLog.displaced``."""
        return self._log(target, channel).displaced()

    def history_problems(self, target: str, channel: str) -> list[str]:
        """One sentence for each entry that does not hold."""
        return self._log(target, channel).problems()

    def head(self, target: str, channel: str, floor: Floor | None = None) -> Head | None:
        """The newest move of a channel that holds; raises as ``ChannelLog.head``."""
        return self._log(target, channel).head(floor)

    def signs(self, target: str, channel: str) -> tuple[object, ...]:
        """What changes whenever what a channel names may have; cheap enough to be asked twice a second.

        Names and times of the newest entries and roots, whoever wrote them: a copy in progress changes them
        once more when it ends. Equal signs are no proof: a full look now and then is needed all the same.
        """
        return tuple(_signs_of(folder) for folder in (self._channel(target, channel), self.root / "trust"))

    def current(self, target: str, channel: str) -> ChannelEntry | None:
        """What the newest move of a channel says, or None where it never pointed anywhere."""
        head = self.head(target, channel)
        return head.entry if head else None

    def is_marked_bad(self, release: Release) -> ChannelEntry | None:
        """The entry, of either channel of its target, that last marked a release bad.

        Raises:
            ManifestError: A history does not hold: nobody knows what was marked.
        """
        marks = (
            entry
            for channel in CHANNELS
            for entry in self.whole_history(release.manifest.target, channel)
            if entry.marked == release.id
        )
        return max(marks, key=lambda entry: entry.at, default=None)

    def open(self, identifier: str) -> Release:
        """Open a release by its id; ReleaseNotFoundError where the store does not hold it."""
        directory = self._directory(identifier)
        with store_errors(directory):
            there = is_directory(directory)
        if not there:
            raise ReleaseNotFoundError(
                f"no release {identifier[:16]}...", where=str(self.root), hint="releasectl list shows all"
            )
        return open_release(directory, identifier)

    def named(self, prefix: str, shortest: int = SHORTEST_PREFIX) -> str:
        """The only id in the store that begins so; ReleaseNotFoundError where there is none, or several.

        Args:
            prefix: The first digits.
            shortest: How many at least; ``SHORTEST_SIGNED`` where something is then signed.
        """
        wanted = prefix.lower()
        if len(wanted) < shortest:
            raise ReleaseNotFoundError(
                "is too short to name a release", where=prefix, hint=f"at least {shortest} digits"
            )
        found = [identifier for identifier in self.identifiers() if identifier.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        what = f"names {len(found)} releases" if found else "names no release"
        raise ReleaseNotFoundError(what, where=prefix, hint="`releasectl list` shows all")

    def open_signed(self, identifier: str) -> Release:
        """Open a release that a release key vouches for; raises as ``open`` and ``check_signature``."""
        release = self.open(identifier)
        release.check_signature(self.trust.root)
        return release

    def resolve(self, target: str, channel: str) -> Release:
        """Open the release that a channel names; ReleaseNotFoundError where it names none."""
        return self.follow(target, channel).release

    def follow(self, target: str, channel: str, floor: Floor | None = None) -> Resolved:
        """Open the release that a channel names, as one who saw it before.

        Raises:
            ReleaseNotFoundError: The channel names nothing.
            NotThereYetError: The release that it names is still being copied.
            TargetMismatchError: It names a release for another target.
            SignatureError, ReplayedError, ForkError, JumpError: As ``ChannelLog.head`` and
                ``Release.check_signature``.
        """
        head = self.head(target, channel, floor)
        return Resolved(self.release_of(target, channel, head), self._some(target, channel, head))

    def _some(self, target: str, channel: str, head: Head | None) -> Head:
        if head is None or not head.entry.release:
            raise ReleaseNotFoundError(
                f"channel {channel} of {target} names no release",
                where=str(self.root),
                hint="publish one with `make run`, or choose another RELEASE_CHANNEL",
            )
        return head

    def release_of(self, target: str, channel: str, head: Head | None) -> Release:
        """Open the release that a channel's head names, verified as far as its manifest and signature.

        Raises:
            ReleaseNotFoundError: It names nothing.
            NotThereYetError: The release, its manifest or its signature is not there.
            TargetMismatchError: It is for another target.
            SignatureError, ManifestError, DigestMismatchError: It is not what was released.
        """
        entry = self._some(target, channel, head).entry
        try:
            release = self.open_signed(entry.release)
        except (ReleaseNotFoundError, NoManifestError, UnsignedError) as error:
            if isinstance(error, UnsignedError) and not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise NotThereYetError(
                f"release {entry.release[:16]}... is not there, or not whole; entry "
                f"{entry.sequence} of channel {entry.channel} names it: {error.what}",
                where=str(self.root),
                hint="wait for the copy of the store to end",
            ) from error
        if release.manifest.target != entry.target:
            raise TargetMismatchError(
                f"names a release for {release.manifest.target}",
                where=f"channels/{entry.target}/{entry.channel}",
            )
        return release

    def evidence(self, identifier: str) -> list[Path]:
        """Files kept beside a release, sorted; read them with ``evidence.read_evidence``."""
        return list_evidence(self.evidence_folder(identifier))

    def identifiers(self) -> list[str]:
        """Ids of all releases in the store, sorted; unfinished copies are not among them."""
        return self._ids_in("releases")

    def with_evidence(self) -> list[str]:
        """Ids beside which evidence may lie, sorted: releases that were pruned are among them."""
        return self._ids_in(EVIDENCE_FOLDER)

    def _ids_in(self, name: str) -> list[str]:
        with store_errors(self.root / name):
            return [each for each in list_directory(self.root / name) if re.fullmatch(r"[0-9a-f]{64}", each)]

    def served_targets(self, channel: str) -> list[str]:
        """Targets whose channel of this name has a head that holds and names a release, sorted."""

        def names_one(target: str) -> bool:
            try:
                head = self.head(target, channel)
            except (SignatureError, ManifestError, StoreError):
                return False
            return head is not None and bool(head.entry.release)

        return [target for target in sorted(TARGETS) if names_one(target)]

    def targets(self) -> list[str]:
        """Targets with at least one channel that was ever moved, sorted."""
        return [t for t in sorted(TARGETS) if any(self._log(t, c).names() for c in CHANNELS)]

    def holds(self, identifier: str) -> bool:
        """Whether a directory of that name is there; OSError where it cannot be told."""
        return is_directory(self._directory(identifier))

    def _directory(self, identifier: str) -> Path:
        return self.root / "releases" / check_digest(identifier, "release")

    def evidence_folder(self, identifier: str) -> Path:
        """Where a release's evidence is kept."""
        return self.root / EVIDENCE_FOLDER / check_digest(identifier, "release")

    def _channel(self, target: str, channel: str) -> Path:
        if target not in TARGETS:
            raise ReleaseNotFoundError(f"no target {target!r}", hint=f"one of {', '.join(TARGETS)}")
        if channel not in CHANNELS:
            raise ReleaseNotFoundError(f"no channel {channel!r}", hint=f"one of {', '.join(CHANNELS)}")
        return self.root / "channels" / target / channel


def _signs_of(folder: Path) -> tuple[object, ...]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208  a path for each of a thousand names takes longer
        found = [folder.stat(), *((folder / name).stat() for name in names[-_NEWEST:])]
    except OSError as error:
        return (error.errno,)
    return (len(names), *((entry.st_ino, entry.st_size, entry.st_mtime_ns) for entry in found))
