"""Releases that are marked bad, and which release a mark is about, whatever is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.contract.channels import CHANNELS, SignedEntry
from runtime.contract.errors import ManifestError, collect_problems
from runtime.contract.release import TARGETS
from runtime.contract.store_reader import StoreReader


@dataclass(frozen=True)
class Marks:
    """Every mark of a store.

    Args:
        by_release: Id and target of a release to the entries that mark it, the canaries' first.
        broken: A sentence for each history that does not hold, so that marks may be missing.
    """

    by_release: dict[tuple[str, str], list[SignedEntry]]
    broken: tuple[str, ...]

    def of(self, identifier: str, target: str | None) -> list[SignedEntry]:
        """Those of one release; of whichever target where its own cannot be told."""
        targets = [target] if target else TARGETS
        return [signed for name in targets for signed in self.by_release.get((identifier, name), ())]


def all_marks(store: StoreReader) -> Marks:
    """The marks in all histories of a store, each verified, as far as they hold.

    Raises:
        TrustRootError: There is no root of trust.
    """
    found: dict[tuple[str, str], list[SignedEntry]] = {}
    broken: list[str] = []
    for target, channel in _channels():
        chain: list[SignedEntry] = []
        with collect_problems(broken):
            try:
                chain = store.whole_chain(target, channel)
            except ManifestError:
                chain = store.chain(target, channel)
                raise
        for signed in chain:
            if signed.entry.marked:
                found.setdefault((signed.entry.marked, target), []).append(signed)
    return Marks(found, tuple(broken))


def _channels() -> Iterator[tuple[str, str]]:
    for target in sorted(TARGETS):
        for channel in CHANNELS:
            yield target, channel
