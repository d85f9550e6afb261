"""Which release is to be served: the one that the settings name, or the last that was, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.config import RuntimeConfig
from runtime.contract.channel_log import Floor
from runtime.contract.errors import (
    NoManifestError,
    PipelineError,
    ReleaseNotFoundError,
    StoreError,
    StoreMissingError,
    TargetAmbiguousError,
    store_errors,
)
from runtime.contract.files import is_directory, list_directory
from runtime.contract.release import TARGETS
from runtime.contract.store_reader import Release, StoreReader, open_release
from runtime.contract.trust import Trust
from runtime.store_state import StoreState

_MOST_REFUSED: Final = 3
_WHERE_TO_LOOK: Final = "publish one with `make run`, or set RELEASE_STORE"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A release whose signature holds; its artifacts are not yet verified.

    Args:
        release: To be verified and loaded.
        keys: ``development keys`` or ``own keys``: whose signature that is.
        alarm: Why it is not what the store seems to say; empty where it is.
        alarm_kind: The alarm in one word: the error's code, or ``refused`` where something beside what is
            served claims to be newer and does not hold; empty without an alarm.
        sequence: Number of the channel's entry that names it; 0 where none does.
    """

    release: Release
    keys: str
    alarm: str = ""
    alarm_kind: str = ""
    sequence: int = 0


class ReleaseChoice:
    """Follows a channel, or a path, for as long as the process lives.

    Args:
        config: The settings.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        self._config = config
        self._state: StoreState | None = None
        self._followed: tuple[StoreReader, str, str] | None = None
        self.served_before = ""
        """What the process before this one served, where nothing else remembers it; empty where none did."""

    @property
    def memory(self) -> str:
        """How long what was seen of the store is remembered, for ``/healthz``."""
        if self._state is not None and self._state.problem:
            return self._state.problem
        return "STATE_DIR" if self._config.state_dir else "this process only: STATE_DIR is not set"

    def find(self) -> Choice:
        """Find the release that the settings name.

        Raises:
            TrustRootError: ``TRUST_ROOT`` names no root of trust.
            SignatureError: Nobody who may has signed the entry or the release.
            ReplayedError, ForkError, JumpError: The store is not the one that was seen here.
            StoreMissingError: There is no store, and one was seen here.
            NotThereYetError: It is still being copied.
            ReleaseNotFoundError: The path, store, target or channel names nothing.
            TargetAmbiguousError: Several targets in the store and no ``TARGET``.
        """
        trust, state = self._trust()
        if self._config.hef_path is not None:
            release = _release_at(self._config.hef_path)
            root = trust.follow(release.directory.resolve().parent.parent / "trust").root
            release.check_signature(root)
            return Choice(release=release, keys=root.kind)
        store, target, channel = self._followed = self._place(trust, state)
        known = state.of(target, channel)
        floor = known.floor
        if floor or known.serving:
            _check_there(store.root)
        head = store.head(target, channel, floor)
        if head:
            state.saw(target, channel, Floor.at(head.signed), store.trust)
        release, now = store.release_of(target, channel, head), store.trust
        alarm = _in_short([*now.refused, *(head.refused if head else ())])
        return Choice(
            release=release,
            keys=now.root.kind,
            alarm=alarm,
            alarm_kind="refused" if alarm else "",
            sequence=head.entry.sequence if head else 0,
        )

    @property
    def served(self) -> str:
        """The release that was served last; empty where none was."""
        if self._followed is None or self._state is None:
            return ""
        return self._state.of(*self._followed[1:]).serving or self.served_before

    @property
    def follows(self) -> bool:
        """Whether a channel is followed, rather than a path."""
        return self._config.hef_path is None

    def signs(self) -> tuple[object, ...]:
        """What changes whenever ``find`` may find something else; cheap."""
        if self._followed is None:
            # Nothing was found yet: whatever appears may be what is wanted.
            store = StoreReader(self._config.release_store, None)
            return tuple(store.signs(target, self._config.release_channel) for target in TARGETS)
        store, target, channel = self._followed
        return store.signs(target, channel)

    def last(self, reason: Exception) -> Choice | None:
        """The release that was served last, where the present one cannot be; None where it is not here.

        Args:
            reason: Why the present one cannot be.
        """
        if self._config.hef_path is not None:
            return None
        trust, state = self._trust()
        store, target, channel = self._place(trust, state)
        name = state.of(target, channel).serving or self.served_before
        with store_errors(store.root):
            if not name or not store.holds(name):
                return None
        # Its digest was remembered when its signature held: that stays so while keys are rotated.
        kind = reason.code if isinstance(reason, PipelineError) else "internal"
        return Choice(release=store.open(name), keys=trust.root.kind, alarm=str(reason), alarm_kind=kind)

    def serves(self, choice: Choice) -> None:
        """Remember that this one was loaded and answers."""
        if self._config.hef_path is None and self._state is not None:
            target = choice.release.manifest.target
            self._state.serves(target, self._config.release_channel, choice.release.id)

    def _trust(self) -> tuple[Trust, StoreState]:
        trust = Trust.load(self._config.trust_root)
        if self._state is None or self._state.anchor != trust.anchor_digest:
            self._state = StoreState.load(self._config.state_dir, trust)
        return self._state.trust_since(trust), self._state

    def _place(self, trust: Trust, state: StoreState) -> tuple[StoreReader, str, str]:
        store, channel = StoreReader(self._config.release_store, trust), self._config.release_channel
        return store, self._config.target or _target(store, channel, state.target_of(channel)), channel


def _check_there(root: Path) -> None:
    """Refuse a folder without anything of a store, before it is taken for a store that was set back.

    A disk that is not mounted leaves an empty folder, or none: nobody replayed anything, and it may come.
    """
    with store_errors(root):
        there = set(list_directory(root)) if is_directory(root) else set()
    if not there & {"releases", "channels"}:
        raise StoreMissingError(
            "the store is not there, and was seen here before",
            where=str(root),
            hint="is its disk mounted? it is looked for again by itself; RELEASE_STORE names the folder",
        )


def _in_short(refused: Sequence[str]) -> str:
    """The first few sentences: a store may be full of entries that nobody signed."""
    rest = len(refused) - _MOST_REFUSED
    return "; ".join([*refused[:_MOST_REFUSED], *([f"and {rest} more"] if rest > 0 else [])])


def _release_at(path: Path) -> Release:
    # Resolved once: a link that moves later cannot mix two releases.
    with store_errors(path):
        place = Path(os.path.realpath(path))
        directory = is_directory(place)
        if not directory and not place.exists():
            raise ReleaseNotFoundError("no such file", where=str(path), hint="HEF_PATH names it")
    if directory:
        return open_release(place)
    release = open_release(place.parent)
    if place.name != release.manifest.artifact:
        raise NoManifestError(
            f"the manifest beside it names {release.manifest.artifact!r} as the artifact",
            where=str(path),
            hint="HEF_PATH takes a release directory or the artifact inside one",
        )
    return release


def _target(store: StoreReader, channel: str, known: str) -> str:
    """The only one, or the one that was served: what somebody adds to a store takes nothing away."""
    if known:
        try:
            if known in store.targets() or not store.served_targets(channel):
                return known
        except StoreError:
            return known
    return _only_target(store, channel)


def _only_target(store: StoreReader, channel: str) -> str:
    with store_errors(store.root):
        there = is_directory(store.root)
    if not there:
        raise ReleaseNotFoundError("is no directory", where=str(store.root), hint=_WHERE_TO_LOOK)
    # A canary of another target, or a file that claims to be an entry, is no second choice of stable's.
    targets = store.served_targets(channel) or store.targets()
    if not targets:
        raise ReleaseNotFoundError("no channel names a release", where=str(store.root), hint=_WHERE_TO_LOOK)
    if len(targets) > 1:
        raise TargetAmbiguousError(
            f"the store has releases for {', '.join(targets)}", where=str(store.root), hint="set TARGET"
        )
    return targets[0]
