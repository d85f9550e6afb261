"""What writes to a store, each with the store before it; how it must look before, after and between."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.audit import store_problems
from runtime.contract.channel_log import NotThereYetError
from runtime.contract.errors import ReleaseNotFoundError
from runtime.contract.portable import export, import_file
from runtime.contract.promotion import Decision, promote, roll_back
from runtime.contract.pruning import prune
from runtime.contract.release import Manifest, manifest_bytes, release_id
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from tests.keys import BUILD, KEY_OF, MANAGER, a_store
from tests.simulators import ReleaseSimulator

TARGET: Final = "emulator"
STORE: Final = "store"
EXPORT: Final = "export.tar"
WHY: Final = Decision(actor="test", reason="a crash was tried", force=True)  # no judge is asked here
NOT_YET: Final = "not there yet"
GAP: Final = re.compile(r".*: [0-9]{8}\.json is missing, a later entry is there")
"""Of an import that was cut off between two entries; the same import again closes it."""


@functools.cache
def made(number: int) -> tuple[Manifest, dict[str, bytes]]:
    """A release of that number: the same in every process."""
    simulator = ReleaseSimulator(version=f"v{number}", motifs=2)
    contents = simulator.contents()
    return simulator.manifest(contents), contents


def name_of(number: int) -> str:
    """Its id."""
    return release_id(manifest_bytes(made(number)[0]))


def store_in(folder: Path) -> ReleaseStore:
    """The store of an operation."""
    return a_store(folder / STORE, accepts_doubles=True)


def published(folder: Path, number: int, *channels: str) -> Release:
    """Publish a release and let channels name it."""
    store = store_in(folder)
    release = store.publish(*made(number), BUILD)
    for channel in channels:
        store.point(channel, release, actor="test", reason="simulated", key=KEY_OF[channel])
    return release


def promoted(folder: Path, number: int) -> None:
    """Let stable take a release."""
    promote(store_in(folder), TARGET, name_of(number), WHY, MANAGER)


View = tuple[str, str]
"""What canary and stable name: an id, nothing, or ``NOT_YET``."""


def view(folder: Path) -> View:
    """What a reader gets, verified to the last byte and readable for everybody."""
    return _named(folder, "canary"), _named(folder, "stable")


def _named(folder: Path, channel: str) -> str:
    try:
        resolved = store_in(folder).follow(TARGET, channel)
    except NotThereYetError:
        return NOT_YET
    except ReleaseNotFoundError:
        return ""
    assert not resolved.head.refused
    release = resolved.release
    release.verify()
    assert release.file_problems() == []
    assert release.directory.stat().st_mode & 0o555 == 0o555
    assert {path.stat().st_mode & 0o777 for path in release.directory.iterdir()} == {0o444}
    return release.id


def leftovers(folder: Path) -> list[str]:
    """What is no part of a store, but for the writers' lock."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name != ".lock" or path.parent != folder / STORE
    ]


@dataclass(frozen=True)
class Operation:
    """Something that writes.

    Args:
        prepare: Makes the folder as it is before.
        run: Does it; where it was done already, changes nothing.
        may_gap: Several entries come: a history may lack some until it is run again.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    may_gap: bool = False

    def check_between(self, folder: Path, old: View, new: View) -> None:
        """The old state or the new one, for each channel; nothing but leftovers beside."""
        seen = view(folder)
        for is_now, was, will_be in zip(seen, old, new, strict=True):
            assert is_now in (was, will_be), seen
        problems = store_problems(store_in(folder))
        wrong = [p for p in problems if not (self.may_gap and GAP.fullmatch(p))]
        assert wrong == [], wrong

    def check_again(self, folder: Path, new: View) -> None:
        """The same again works."""
        self.run(folder)
        assert view(folder) == new
        assert not (wrong := store_problems(store_in(folder))), wrong

    def check_next(self, folder: Path) -> None:
        """Everything else works; pruning takes what killed writers left."""
        published(folder, 9, "canary")
        promoted(folder, 9)
        prune(store_in(folder), 1, dry_run=False)
        assert view(folder) == (name_of(9), name_of(9))
        assert store_in(folder).identifiers() == [name_of(9)]
        assert store_problems(store_in(folder)) == []
        assert leftovers(folder) == [], leftovers(folder)


def _two_releases(folder: Path) -> None:
    published(folder, 1, "canary")
    promoted(folder, 1)
    published(folder, 2, "canary")


def _two_stable(folder: Path) -> None:
    _two_releases(folder)
    promoted(folder, 2)


def _unneeded(folder: Path) -> None:
    for number in (3, 4):
        release = published(folder, number, "canary")
        store_in(folder).add_evidence(release, "parity", "json", b'{"made": "up"}\n')
    _two_stable(folder)


def _nothing(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _roll_back(folder: Path) -> None:
    store = store_in(folder)
    entry = store.current(TARGET, "stable")
    if entry and entry.release == name_of(2):
        roll_back(store, TARGET, "stable", WHY, MANAGER, to=name_of(1))


def _exported(folder: Path, *, before: bool) -> None:
    """An export of a store with a longer history; beside it an older copy of the store, or none."""
    other = folder / "other"
    if before:
        published(other, 1, "canary")
        shutil.copytree(other / STORE, folder / STORE)
    for number in (2, 3):
        published(other, number, "canary")
        promoted(other, number)
    store = store_in(other)
    release = store.open(name_of(3))
    store.add_evidence(release, "parity", "json", b'{"made": "up"}\n')
    export(store, release.id, folder / EXPORT)
    shutil.rmtree(other)


OPERATIONS: Final = (
    Operation("publish", _two_stable, lambda folder: published(folder, 5, "canary")),
    Operation("first publish", _nothing, lambda folder: published(folder, 5, "canary")),
    Operation("promote", _two_releases, lambda folder: promoted(folder, 2)),
    Operation("roll back", _two_stable, _roll_back),
    Operation(
        "import",
        functools.partial(_exported, before=True),
        lambda folder: import_file(store_in(folder), folder / EXPORT),
        may_gap=True,
    ),
    Operation(
        "first import",
        functools.partial(_exported, before=False),
        lambda folder: import_file(store_in(folder), folder / EXPORT),
        may_gap=True,
    ),
    Operation("prune", _unneeded, lambda folder: prune(store_in(folder), 1, dry_run=False)),
)
