"""What this machine remembers of a store, so that an older copy of it is never served again.

About 3 kB in ``STATE_DIR``: for each channel the newest entry that was seen, and the release that was
served last; and the newest root of trust. Without ``STATE_DIR`` it lasts as long as the process. Runtimes
that share a ``STATE_DIR`` write one after the other, each what all of them know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.channel_log import Floor
from runtime.contract.document import from_json, to_json
from runtime.contract.errors import ConfigError, ManifestError, PipelineError, store_errors
from runtime.contract.files import read_bounded, write_document
from runtime.contract.release import check_digest
from runtime.contract.trust import Trust
from runtime.contract.writers_lock import writing

STATE_NAME: Final = "store-state.json"
STATE_SCHEMA: Final = 1
MAX_STATE_BYTES: Final = 1024 * 1024
_PATIENCE_SECONDS: Final = 5.0
_LOGGER: Final = logging.getLogger("runtime.model")


@dataclass(frozen=True, kw_only=True)
class ChannelState:
    """Of one channel: ``floor`` is the newest entry seen, ``serving`` the release served last, or empty."""

    floor: Floor | None = None
    serving: str = ""

    def __post_init__(self) -> None:
        if self.serving:
            check_digest(self.serving, "serving")


@dataclass(frozen=True, kw_only=True)
class _Document:
    schema: int
    anchor: str
    roots: tuple[str, ...]
    channels: dict[str, ChannelState]

    def __post_init__(self) -> None:
        if self.schema != STATE_SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {STATE_SCHEMA}", where="schema")


class StoreState:
    """What is remembered, and where. Several runtimes may share a file: each adds to what it says.

    Args:
        path: The file; None remembers for this process alone.
        trust: Begins with the first root of trust: another one makes all that is remembered void.
    """

    def __init__(self, path: Path | None, trust: Trust) -> None:
        self.path = path
        self.anchor = trust.anchor_digest
        self.channels: dict[str, ChannelState] = {}
        """``target/channel`` to what is known of it."""
        self.roots: tuple[str, ...] = ()
        """Envelopes of the roots that followed the first, oldest first."""
        self.problem = ""
        """Why the file cannot be used, for ``/healthz``; empty where it can."""
        self._anchor_document, self._root = trust.documents[0], trust.roots[0]

    @classmethod
    def load(cls, folder: Path | None, trust: Trust) -> StoreState:
        """Read what is remembered; an empty state where nothing is, or where it was of another root.

        Raises:
            ConfigError: The file cannot be read or is damaged. Nothing is guessed: what was seen is lost
                only where somebody removes the file.
        """
        state = cls(folder / STATE_NAME if folder else None, trust)
        if state.path is not None:
            state._merge_file(state.path)
        return state

    def trust_since(self, trust: Trust) -> Trust:
        """The roots seen so far: a store that hides the newest does not take it back.

        Raises:
            ConfigError: They do not follow each other: the file is damaged.
        """
        return self._follow(trust, self.roots)

    def _follow(self, trust: Trust, roots: tuple[str, ...]) -> Trust:
        for number, text in enumerate(roots):
            try:
                trust.add(text.encode(errors="replace"), f"root {number}")
            except PipelineError as error:
                raise self._damaged(error) from error
        return trust

    def _damaged(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"cannot be read: {error}",
            where=str(self.path or "what was seen"),
            hint="remove it to begin anew; an older copy of the store is then no longer noticed",
        )

    def of(self, target: str, channel: str) -> ChannelState:
        """What is known of a channel."""
        return self.channels.get(f"{target}/{channel}", ChannelState())

    def target_of(self, channel: str) -> str:
        """The only target whose channel of this name was served; empty where none was, or several."""
        served = [place.split("/") for place, known in self.channels.items() if known.serving]
        targets = [target for target, name in served if name == channel]
        return targets[0] if len(targets) == 1 else ""

    def saw(self, target: str, channel: str, floor: Floor, trust: Trust) -> None:
        """Remember the newest entry of a channel that was verified, and the roots that it was by."""
        roots = tuple(document.decode() for document in trust.documents[1:])
        if self.of(target, channel).floor != floor or roots != self.roots:
            self._keep(f"{target}/{channel}", ChannelState(floor=floor), roots)

    def serves(self, target: str, channel: str, release: str) -> None:
        """Remember which release a channel's clients are served."""
        if self.of(target, channel).serving != release:
            self._keep(f"{target}/{channel}", ChannelState(serving=release), self.roots)

    def _keep(self, place: str, news: ChannelState, roots: tuple[str, ...]) -> None:
        """Add what is new to what this process knows, and to what others wrote meanwhile."""
        self._merge({place: news}, roots)
        if self.path is None:
            return
        try:
            with writing(self.path.parent, _PATIENCE_SECONDS), store_errors(self.path):
                self._merge_file(self.path)
                self._merge({place: news}, roots)  # what is served here was said last
                document = _Document(
                    schema=STATE_SCHEMA, anchor=self.anchor, roots=self.roots, channels=self.channels
                )
                write_document(self.path, to_json(document))
        except PipelineError as error:
            # Serving goes on: what was seen is still known until the process ends, and that is said.
            damaged = isinstance(error, ConfigError)
            self.problem = f"STATE_DIR {error.what if damaged else f'cannot be written: {error.what}'}"
            _LOGGER.error(self.problem, extra={"fields": {"event": "state_not_kept"}})
        else:
            self.problem = ""

    def _merge_file(self, path: Path) -> None:
        """Take in what the file says; ConfigError where it is damaged, so that it is not written over."""
        try:
            document = from_json(_Document, read_bounded(path, MAX_STATE_BYTES), str(path))
        except FileNotFoundError:
            return
        except (OSError, ManifestError) as error:
            raise self._damaged(error) from error
        if document.anchor == self.anchor:
            self._merge(document.channels, document.roots)

    def _merge(self, channels: Mapping[str, ChannelState], roots: tuple[str, ...]) -> None:
        """Keep the longer line of roots, and of each channel the newest entry; serving is what came last.

        A floor whose keys may no longer act for the channel is void, whatever its number: a thief's is high.

        Raises:
            ConfigError: The roots do not follow each other.
        """
        if len(roots) > len(self.roots):
            self._root = self._follow(Trust(self._anchor_document, "TRUST_ROOT"), roots).root
            self.roots = roots
        for place, news in channels.items():
            known, role = self.channels.get(place, ChannelState()), self._root.roles.get(place.split("/")[-1])
            acting = set(role.keyids) if role else set()
            floors = [each.floor for each in (known, news) if each.floor]
            newest = max(floors, key=lambda f: (not acting.isdisjoint(f.keyids), f.sequence), default=None)
            self.channels[place] = ChannelState(floor=newest, serving=news.serving or known.serving)
