"""``releasectl list``: every release of a store, whose signature holds, and which are marked bad."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from runtime.contract.channels import CHANNELS, ChannelEntry, as_document
from runtime.contract.errors import PipelineError, ReleaseNotFoundError, store_errors
from runtime.contract.files import is_directory, list_directory
from runtime.contract.marks import all_marks
from runtime.contract.release import TARGETS
from runtime.contract.store import ReleaseStore
from runtime.release_text import Row, table_lines, table_row, wrapped

BAD: Final = "BAD"
"""In place of its numbers, which nobody is to go by."""


def list_releases(store: ReleaseStore, options: argparse.Namespace) -> int:
    """Print the list; returns 1 where a release or a channel cannot be read or is refused.

    A mark is a decision, no damage: it is shown and returns 0.

    Raises:
        ReleaseNotFoundError: There is no store.
        StoreError: It cannot be read.
    """
    check_store(store.root)
    entries, bad = channel_entries(store)
    root = store.trust.root if store.has_trust else None
    rows = [table_row(store, identifier, entries, root) for identifier in store.identifiers()]
    bad += _mark(store, rows, bad)
    keys = root.kind if root else "no root of trust: signatures and marks are not judged"
    options.show(options, [row | {"keys": keys} for row in rows], lambda: [*_lines(rows), keys])
    sys.stdout.flush()
    for problem in bad:
        print(f"releasectl: {problem}", file=sys.stderr)
    return 1 if bad or any("problem" in row or row["signed"] is False for row in rows) else 0


def _mark(store: ReleaseStore, rows: Sequence[Row], told: Sequence[str]) -> list[str]:
    """Add the marks to each row, None where they are not judged; what keeps them from being known."""
    marks = all_marks(store) if store.has_trust else None
    for row in rows:
        found = marks.of(row["release"], row["target"]) if marks else []
        row["marked_bad"] = [as_document(signed) for signed in found] if marks else None
    broken = [problem for problem in (marks.broken if marks else ()) if not any(problem in t for t in told)]
    return [f"marks may be missing: {problem}" for problem in broken]


def _lines(rows: Sequence[Row]) -> list[str]:
    """The table, and below it what was refused, cannot be read, and was marked by whom and why."""
    lines = table_lines([row | {"numbers": BAD} if row["marked_bad"] else row for row in rows])
    for row in rows:
        for mark in row["marked_bad"] or ():
            what = f"MARKED BAD by {mark['actor']} on {mark['at']}: {mark['reason']}"
            lines += wrapped(row["release"][:12], what, 12)
    return lines


def check_store(root: Path) -> None:
    """Raise ReleaseNotFoundError where a directory is no store; StoreError where it cannot be read."""
    with store_errors(root):
        if not is_directory(root):
            raise ReleaseNotFoundError("no such store", where=str(root), hint="--store names one")
        names = list_directory(root)
    # A store into which nothing was published yet is empty.
    if names and not {"releases", "channels"} & set(names):
        raise ReleaseNotFoundError(
            "is not a release store", where=str(root), hint="there is neither releases/ nor channels/ in it"
        )


def channel_entries(store: ReleaseStore) -> tuple[list[ChannelEntry], list[str]]:
    """What each channel names now, and a sentence for each that cannot be read."""
    entries: list[ChannelEntry] = []
    bad: list[str] = []
    for target in TARGETS if store.has_trust else ():
        for channel in CHANNELS:
            try:
                entry = store.current(target, channel)
            except PipelineError as error:
                bad.append(f"channel {channel} of {target} cannot be read: {error}")
            else:
                entries += [entry] if entry else []
    return entries, bad
