"""Entries that were judged already: a history is verified once, however often it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.contract.channels import SignedEntry, check_entry
from runtime.contract.errors import store_errors
from runtime.contract.files import read_bounded
from runtime.contract.trust import MAX_ENVELOPE_BYTES, Root


class Judgements:
    """Remembers of each entry's file the bytes and the roots that it was judged by.

    A judgement follows from bytes, place and roots alone. So the bytes are read each time, and the same
    bytes under the same roots are not verified again; anything else is. What was refused is not remembered.
    It grows with the histories that are read through it: about 3 kB an entry.
    """

    def __init__(self) -> None:
        self._held: dict[Path, tuple[list[Root], SignedEntry]] = {}

    def read_entry(self, path: Path, roots: Sequence[Root]) -> SignedEntry:
        """As ``channels.read_entry``; raises as it does."""
        with store_errors(path):
            data = read_bounded(path, MAX_ENVELOPE_BYTES)
        held = self._held.get(path)
        if held and held[1].document == data and held[0] == [*roots]:
            return held[1]
        signed = check_entry(data, path, roots)
        self._held[path] = ([*roots], signed)
        return signed
