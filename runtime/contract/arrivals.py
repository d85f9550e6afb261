"""Channel entries that come from elsewhere, by a file or by a copy: judged, then added to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from runtime.contract.channel_log import ChannelLog, ForkError, NotThereYetError, check_link
from runtime.contract.channels import LAST_SEQUENCE, check_entry, entry_name
from runtime.contract.errors import store_errors
from runtime.contract.files import make_directory, read_bounded, sync_directory
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import MAX_ENVELOPE_BYTES, Trust


class Arrived(Protocol):
    """What came, laid out as a store is."""

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, sorted, without the beginning."""

    def read(self, name: str) -> bytes:
        """Bytes of one document."""


def new_entries(
    store: ReleaseStore,
    arrived: Arrived,
    target: str,
    channel: str,
    trust: Trust,
    *,
    last: int = LAST_SEQUENCE,
) -> list[int]:
    """Numbers of entries that the store lacks.

    Each is signed and continues the one before; the last is signed by a present key.

    Args:
        store: Where they are to be added.
        arrived: Where they are.
        target: Whose channel.
        channel: One of ``CHANNELS``.
        trust: The roots, with those that came along.
        last: Entries above this number are not looked at.

    Raises:
        ForkError: Its history is another one than the store's.
        NotThereYetError: It does not reach back to the store's.
        SignatureError, ManifestError: An entry does not hold, or tells its past otherwise than it was.
        StoreError: The store, or what arrived, cannot be read.
    """
    prefix = f"channels/{target}/{channel}/"
    folder = store.root / "channels" / target / channel
    mine = ChannelLog(folder, trust).chain()
    known = {signed.entry.sequence: signed.digest for signed in mine}
    new: list[int] = []
    tip = mine[-1] if mine else None
    for name in arrived.names(prefix):
        if int(Path(name).stem) > last:
            break
        signed = check_entry(arrived.read(prefix + name), folder / name, trust.roots)
        sequence = signed.entry.sequence
        if sequence in known:
            if known[sequence] != signed.digest:
                raise ForkError(
                    f"entry {sequence} is another one than the store's", where=f"{target}/{channel}"
                )
            continue
        if sequence != (tip.entry.sequence + 1 if tip else 1):
            raise NotThereYetError(f"entry {sequence} has nothing before it", where=f"{target}/{channel}")
        if signed.entry.previous_entry != (tip.digest if tip else ""):
            raise ForkError(f"entry {sequence} continues another history", where=f"{target}/{channel}")
        check_link(tip, signed, folder / name)
        new.append(sequence)
        tip = signed
    if new and tip:
        check_entry(tip.document, folder / entry_name(tip.entry.sequence), [trust.root])
    return new


def append_entries(
    store: ReleaseStore, arrived: Arrived, target: str, channel: str, sequences: list[int], trust: Trust
) -> None:
    """Add entries, the newest first: a reader sees the old head or the new one and none between.

    Where this ends in the middle, nobody can continue a history with a gap; the same again closes it.
    The caller holds the writers' lock.
    """
    folder = store.root / "channels" / target / channel
    log = ChannelLog(folder, trust)
    with store_errors(folder):
        make_directory(folder)
        for sequence in reversed(sequences):
            name = entry_name(sequence)
            document = arrived.read(f"channels/{target}/{channel}/{name}")
            if not _is_there(folder / name, document):
                log.add(document, sequence)
        sync_directory(folder)  # those that were there, too


def _is_there(path: Path, document: bytes) -> bool:
    try:
        return read_bounded(path, MAX_ENVELOPE_BYTES) == document
    except FileNotFoundError:
        return False
