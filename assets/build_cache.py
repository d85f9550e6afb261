"""What the long steps made, kept by what they were made from: the same work is never done twice.

In front of ``optimize`` and ``compile``, which take hours for a chip. The key holds everything that shapes
the bytes: step, code version, the toolchain's own record (its tools' versions and options), the digest of its
source and the digests of what went in. A hit passes the toolchain's checks as a new result does. The cache
knows nothing of Dagster, so any of its homes finds it. ``python -m assets.build_cache`` lists and prunes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from assets.product import CODE_VERSION
from assets.toolchain import Built, Toolchain
from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import ManifestError, PipelineError, StoreError
from runtime.contract.files import move_aside, read_bounded, write_directory
from runtime.contract.release import ToolchainRecord

SCHEMA: Final = 1
MOST_DAYS: Final = 90
"""Since an entry was used last."""
MOST_BYTES: Final = 20 * 2**30
NOT_USED: Final = "not used (use_cache: false)"
DEGRADED: Final = "degradations"
"""The fact in which a toolchain says what went worse than asked, and was accepted."""
_STAGES: Final = {"optimize": "quantized", "compile": "compiled"}
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_ENTRY: Final = "entry.json"
_DATA: Final = "data"
_MOST_ENTRY_BYTES: Final = 16 * 2**20
_LEFT_SECONDS: Final = 24 * 3600.0
"""After which what a killed process left half-written is taken away."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One kept result, without its bytes.

    Args:
        schema: ``SCHEMA``.
        step: ``optimize`` or ``compile``.
        target: For which.
        inputs: Name to digest of what went in.
        record: The toolchain that made it.
        stage, kind, suffix, facts: As in ``Built``.
        sha256: Of the bytes.
        seconds: How long it took.
        made_at: When, UTC.
    """

    schema: int
    step: str
    target: str
    inputs: dict[str, str]
    record: ToolchainRecord
    stage: str
    kind: str
    suffix: str
    facts: dict[str, str]
    sha256: str
    seconds: float
    made_at: str


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A folder by an entry's name that tells nobody what it holds.

    Args:
        folder: Where it is.
        why: What is wrong with it.
        size: Bytes.
        unused: Seconds since it was made or used last.
        ours: Whether it holds nothing but an entry's files, or less: else it is left alone.
    """

    folder: Path
    why: str
    size: int
    unused: float
    ours: bool


class BuildCache:
    """Kept results, in a folder of their own.

    Args:
        root: The folder; made when something is put into it.
        use: Whether kept results are taken: without it each step is done, and kept for the next time.
        say: Told where an entry is damaged, or nothing can be kept: neither stops a build.
    """

    def __init__(
        self, root: Path, *, use: bool = True, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.root, self.use, self._say = root, use, say
        self.told = ""
        """What became of the last step, for people."""

    def through(
        self, step: str, toolchain: Toolchain, inputs: Mapping[str, str], make: Callable[[], Built]
    ) -> Built:
        """What was made from these inputs before, else what is made now.

        Args:
            step: ``optimize`` or ``compile``.
            toolchain: Whose record belongs to the key.
            inputs: Name to digest of everything that goes in.
            make: Does the work.
        """
        key = self._key(step, toolchain, inputs)
        found = self._taken(key, step, toolchain, inputs) if self.use else None
        if found is not None:
            entry, built = found
            self.told = f"hit: made {entry.made_at} in {entry.seconds:.1f} s, {key[:12]}"
            return built
        begin = time.monotonic()
        built = make()
        seconds = time.monotonic() - begin
        self.told = f"made now in {seconds:.1f} s, {key[:12]}" if self.use else NOT_USED
        self._keep(key, step, toolchain, inputs, built, seconds)
        return built

    @staticmethod
    def _key(step: str, toolchain: Toolchain, inputs: Mapping[str, str]) -> str:
        what = {
            "schema": SCHEMA,
            "step": step,
            "code": CODE_VERSION,
            "sources": toolchain.sources,
            "target": toolchain.target,
            "toolchain": asdict(toolchain.record()),
            "inputs": dict(inputs),
        }
        return sha256_bytes(to_json(what))

    def _taken(
        self, key: str, step: str, toolchain: Toolchain, inputs: Mapping[str, str]
    ) -> tuple[Entry, Built] | None:
        folder = self.root / key
        if not folder.exists():
            return None
        try:
            entry, built = _opened(folder)
            if (entry.step, entry.target, entry.inputs) != (step, toolchain.target, dict(inputs)):
                raise ManifestError(f"is of {entry.step} for {entry.target}, from other inputs")
            # As what is made now would be: another CPU, or a check that was added meanwhile.
            toolchain.check(built, _STAGES[step])
        except (OSError, PipelineError) as error:
            self._say(f"cache entry {key[:12]} cannot be used ({error}): made anew")
            self._aside(folder)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # used: the last to be pruned
        return entry, built

    def _keep(
        self,
        key: str,
        step: str,
        toolchain: Toolchain,
        inputs: Mapping[str, str],
        built: Built,
        seconds: float,
    ) -> None:
        if built.facts.get(DEGRADED, "none") != "none":
            # Accepted for this once: where there is a GPU next time, it is to be made with it.
            self.told += ", not kept: degraded"
            return
        assert built.record is not None  # of both steps
        entry = Entry(
            schema=SCHEMA,
            step=step,
            target=toolchain.target,
            inputs=dict(inputs),
            record=built.record,
            stage=built.stage,
            kind=built.kind,
            suffix=built.suffix,
            facts=dict(built.facts),
            sha256=sha256_bytes(built.data),
            seconds=round(seconds, 3),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            if (self.root / key).exists() and not self.use:
                self._aside(self.root / key)
            write_directory(self.root / key, {_ENTRY: to_json(entry), _DATA: built.data})
            self.prune()
        except (OSError, StoreError) as error:
            # The result itself goes on to the workbench, which says so where there is no room for it.
            self._say(f"not kept in the cache, or not pruned: {error} ({self.root})")

    def _aside(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            if not _strangers(folder.iterdir()):
                _remove(folder)

    def _folders(self) -> list[Path]:
        """What has an entry's name; a link is none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            named = [path for path in self.root.iterdir() if _NAME.fullmatch(path.name)]
            return [path for path in named if path.is_dir() and not path.is_symlink()]
        return []

    def entries(self) -> list[tuple[Path, Entry, int, float]]:
        """Folder, entry, bytes and seconds since its last use; the last used first."""
        found, now = [], time.time()
        for folder in self._folders():
            with contextlib.suppress(OSError, ManifestError):
                size = sum(path.stat().st_size for path in folder.iterdir())
                found.append((folder, _read(folder), size, now - folder.stat().st_mtime))
        return sorted(found, key=lambda each: each[3])

    def unreadable(self) -> list[Unreadable]:
        """What is there and cannot be told: damaged, or of another version; the newest first."""
        found, now = [], time.time()
        for folder in self._folders():
            try:
                _read(folder)
                continue
            except ManifestError as error:
                why = error.what
            except FileNotFoundError:
                why = f"has no {_ENTRY}"
            except OSError as error:
                why = error.strerror or str(error)
            with contextlib.suppress(OSError):
                files, unused = list(folder.iterdir()), now - folder.stat().st_mtime
                strange = _strangers(files)
                size = sum(path.lstat().st_size for path in files)
                why += f"; {strange[0].name} is no part of an entry: left alone" if strange else ""
                found.append(Unreadable(folder=folder, why=why, size=size, unused=unused, ours=not strange))
        return sorted(found, key=lambda each: each.unused)

    def prune(self, days: float = MOST_DAYS, most_bytes: int = MOST_BYTES) -> list[Path]:
        """Take away what was not used for so long, and beyond so many bytes the longest unused.

        What cannot be read goes by its age alone.

        Raises:
            StoreError: An entry cannot be taken away.
        """
        total, gone = 0, []
        for folder, _, size, unused in self.entries():
            total += size
            if unused > days * 86400 or total > most_bytes:
                gone.append(folder)
        gone += [each.folder for each in self.unreadable() if each.ours and each.unused > days * 86400]
        # By the names that this module makes, and no others: a folder may be somebody's home.
        for left in (*self.root.glob(".incoming-*"), *self.root.glob(".damaged-*")):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        for folder in gone:
            try:
                # Renamed first: nobody reads half of one.
                _remove(folder)
            except FileNotFoundError:
                continue  # another build was first
            except OSError as error:
                raise StoreError(
                    f"{error.strerror}", where=str(folder), hint="check the folder's rights"
                ) from error
        return gone


def _strangers(files: Iterable[Path]) -> list[Path]:
    """What no entry holds: somebody else's, and not to be taken away."""
    return [path for path in files if path.name not in (_ENTRY, _DATA) or path.is_dir()]


def _remove(folder: Path) -> None:
    aside = move_aside(folder)
    grave = aside if aside.name.startswith(".damaged-") else aside.parent
    assert grave.name.startswith(".damaged-"), grave
    shutil.rmtree(grave)


def through(
    cache: BuildCache | None,
    step: str,
    toolchain: Toolchain,
    inputs: Mapping[str, str],
    make: Callable[[], Built],
    stand_in: bytes = b"",
) -> Built:
    """As ``BuildCache.through``, where there is one; ``stand_in`` is what ``infer`` may need."""
    built = make() if cache is None else cache.through(step, toolchain, inputs, make)
    return replace(built, stand_in=stand_in)


def _opened(folder: Path) -> tuple[Entry, Built]:
    entry = _read(folder)
    data = (folder / _DATA).read_bytes()
    if sha256_bytes(data) != entry.sha256:
        raise ManifestError("is damaged")
    built = Built(
        stage=entry.stage,
        kind=entry.kind,
        suffix=entry.suffix,
        data=data,
        record=entry.record,
        facts=entry.facts,
    )
    return entry, built


def _read(folder: Path) -> Entry:
    entry = from_json(Entry, read_bounded(folder / _ENTRY, _MOST_ENTRY_BYTES), str(folder / _ENTRY))
    if entry.schema != SCHEMA:
        raise ManifestError(f"schema {entry.schema}, this version reads {SCHEMA}", where=str(folder))
    return entry


def _left(cache: BuildCache) -> str:
    left = cache.unreadable()
    return f", {len(left)} that cannot be read stay (`list` says why)" if left else ""


def main(argv: Sequence[str] | None = None) -> int:
    """List or prune."""
    parser = argparse.ArgumentParser(prog="python -m assets.build_cache", description="The build cache.")
    parser.add_argument("folder", type=Path, help="BUILD_CACHE_DIR, else BUILD_DIR/cache")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="what is kept")
    pruning = verbs.add_parser("prune", help="take away what was not used for long")
    pruning.add_argument("--days", type=float, default=MOST_DAYS, help=f"default: {MOST_DAYS}")
    pruning.add_argument("--gigabytes", type=float, default=MOST_BYTES / 2**30, help="kept at most")
    options = parser.parse_args(argv)
    cache = BuildCache(options.folder)
    try:
        if options.verb == "prune":
            gone = cache.prune(options.days, round(options.gigabytes * 2**30))
            print(f"{len(gone)} entries taken away, {len(cache.entries())} kept{_left(cache)}")
            return 0
    except StoreError as error:
        print(f"build_cache: {error}", file=sys.stderr)
        return 1
    for folder, entry, size, unused in cache.entries():
        tools = ", ".join(f"{name} {version}" for name, version in sorted(entry.record.tools.items()))
        print(
            f"{folder.name[:12]}  {entry.target:9} {entry.step:9} {size:>11} bytes  made {entry.made_at} "
            f"in {entry.seconds:.1f} s, last used {unused / 86400:.1f} days ago  {tools}"
        )
    for each in cache.unreadable():
        print(
            f"{each.folder.name[:12]}  cannot be read: {each.why}  {each.size} bytes, "
            f"last used {each.unused / 86400:.1f} days ago"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
