"""What this machine remembers of a store, so that an older copy of it is never served again.

About 3 kB in ``STATE_DIR``: for each channel the newest entry that was seen, and the release that was
served last; and the newest root of trust. Without ``STATE_DIR`` it lasts as long as the process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from runtime.contract.channel_log import Floor
from runtime.contract.document import from_json, to_json
from runtime.contract.errors import ConfigError, ManifestError, PipelineError
from runtime.contract.files import read_bounded, write_document
from runtime.contract.release import check_digest
from runtime.contract.trust import Trust

STATE_NAME: Final = "store-state.json"
STATE_SCHEMA: Final = 1
MAX_STATE_BYTES: Final = 1024 * 1024
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


@dataclass
class StoreState:
    """What is remembered, and where.

    Args:
        path: The file; None remembers for this process alone.
        anchor: SHA-256 of the first root of trust: another one makes all of it void.
        channels: ``target/channel`` to what is known of it.
        roots: Envelopes of the roots that followed the first, oldest first.
        problem: Why the file cannot be used, for ``/healthz``; empty where it can.
    """

    path: Path | None
    anchor: str
    channels: dict[str, ChannelState] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    problem: str = ""

    @classmethod
    def load(cls, folder: Path | None, trust: Trust) -> StoreState:
        """Read what is remembered; an empty state where nothing is, or where it was of another root.

        Raises:
            ConfigError: The file cannot be read or is damaged. Nothing is guessed: what was seen is lost
                only where somebody removes the file.
        """
        state = cls(folder / STATE_NAME if folder else None, trust.anchor_digest)
        if state.path is None:
            return state
        try:
            document = from_json(_Document, read_bounded(state.path, MAX_STATE_BYTES), str(state.path))
        except FileNotFoundError:
            return state
        except (OSError, ManifestError) as error:
            raise state._damaged(error) from error
        if document.anchor == trust.anchor_digest:
            state.channels, state.roots = dict(document.channels), document.roots
        return state

    def trust_since(self, trust: Trust) -> Trust:
        """The roots seen so far: a store that hides the newest does not take it back.

        Raises:
            ConfigError: They do not follow each other: the file is damaged.
        """
        for number, text in enumerate(self.roots):
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
        known = self.of(target, channel)
        if known.floor == floor and roots == self.roots:
            return
        self.roots = roots
        self._keep(target, channel, replace(known, floor=floor))

    def serves(self, target: str, channel: str, release: str) -> None:
        """Remember which release a channel's clients are served."""
        known = self.of(target, channel)
        if known.serving != release:
            self._keep(target, channel, replace(known, serving=release))

    def _keep(self, target: str, channel: str, state: ChannelState) -> None:
        self.channels[f"{target}/{channel}"] = state
        if self.path is None:
            return
        document = _Document(
            schema=STATE_SCHEMA, anchor=self.anchor, roots=self.roots, channels=self.channels
        )
        try:
            write_document(self.path, to_json(document))
        except OSError as error:
            # Serving goes on: what was seen is still known until the process ends, and that is said.
            self.problem = f"STATE_DIR cannot be written: {error.strerror}"
            _LOGGER.error(self.problem, extra={"fields": {"event": "state_not_kept"}})
        else:
            self.problem = ""
