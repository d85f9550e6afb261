"""The whole judgement of a version folder, and how it is shown; with Dagster and without."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.claims import NO, Claim, claims_of, printable
from assets.normalization import stating
from assets.version_folder import (
    CHECKSUMS,
    MODEL_CONFIG,
    MOTIF_HEAD,
    NORMALIZATION,
    VersionFolder,
    read_object,
    read_version,
)
from assets.weights import TrainedModel, parse_model, said_of
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import PipelineError
from runtime.contract.release import ModelIdentity
from runtime.contract.window import CHANNELS, UNITS


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A version folder that was accepted.

    Args:
        folder: Its files, as they were read.
        identity: The model and version.
        trained: What it holds.
        claims: What the files claim, next to what was measured.
    """

    folder: VersionFolder
    identity: ModelIdentity
    trained: TrainedModel
    claims: tuple[Claim, ...]

    def files(self) -> dict[str, tuple[str, int]]:
        """Name to SHA-256 and bytes of each file that was read."""
        return {n: (sha256_bytes(d), len(d)) for n, d in sorted(self.folder.files.items())}

    def summary(self) -> dict[str, str]:
        """What was found, as printable text by name, in the order in which to show it."""
        return {
            "model": self.identity.name,
            "version": self.identity.version,
            "source": self._source(),
            "motif head": self._head(),
            "normalization": " and ".join(self._stating()) + (", which agree" * (len(self._stating()) > 1)),
            "checksums": self._checksums(),
            "claims": self._contradicted(),
        }

    def _source(self) -> str:
        trained = self.trained
        text = f"{trained.source}: {printable(trained.weights_file)}"
        if trained.agrees_with:
            text += f"; {printable(trained.agrees_with)} beside it holds the same weights"
        return text

    def _head(self) -> str:
        head, origin = self.trained.head, self.trained.head_origin
        if head is None:
            return "none: one is fitted to the calibration latents"
        text = f"{head.provenance}, {head.size} motifs: {printable(', '.join(head.names))}"
        if origin is None:
            return text
        digest = (origin.source_sha256 or "no digest")[:12]
        source = f" of {origin.source} ({digest})" if origin.source else ""
        heat = "" if origin.temperature is None else f", temperature {origin.temperature:.6g}"
        return f"{text} ({MOTIF_HEAD}: {printable(f'{origin.method}{source}{heat}')})"

    def _stating(self) -> list[str]:
        names = (NORMALIZATION, MODEL_CONFIG)
        return stating({name: read_object(self.folder.files, name) for name in names})

    def _checksums(self) -> str:
        if CHECKSUMS not in self.folder.files:
            return f"none: there is no {CHECKSUMS}"
        return f"{CHECKSUMS}: verified {printable(', '.join(self.trained.verified))}"

    def _contradicted(self) -> str:
        wrong = [claim.what for claim in self.claims if claim.agrees == NO]
        if not wrong:
            return "none is contradicted by what was measured"
        return f"{len(wrong)} contradicted by what was measured: {printable(', '.join(wrong))}"

    def to_document(self) -> dict[str, Any]:
        """The same as JSON values."""
        statistics, head = self.trained.statistics, self.trained.head
        return {
            "ok": True,
            "folder": os.fspath(self.folder.path),
            "summary": self.summary(),
            "files": {name: {"sha256": sha, "bytes": size} for name, (sha, size) in self.files().items()},
            "claims": [dataclasses.asdict(claim) for claim in self.claims],
            "normalization": {"mean": list(statistics.mean), "std": list(statistics.std)},
            "motif_head": head and {"provenance": head.provenance, "names": list(head.names)},
        }


def judge_weights(weights_dir: Path) -> Judgement:
    """Find the version folder, read each of its files once, and judge them.

    Args:
        weights_dir: ``WEIGHTS_DIR``, or a version folder itself.

    Raises:
        WeightsError: The folder is refused; says what was found, where, and what to do.
    """
    return judge_folder(read_version(weights_dir))


def judge_folder(folder: VersionFolder) -> Judgement:
    """Judge a version folder that was read before.

    Raises:
        WeightsError: As ``judge_weights``.
    """
    with said_of(folder):
        trained = parse_model(folder.files, folder.path.absolute().name)
        identity = folder.identity()
        claims = claims_of(folder, trained)
    return Judgement(folder=folder, identity=identity, trained=trained, claims=claims)


def refusal(error: PipelineError) -> str:
    """A refusal as one block of lines: what was found, where, and what to do."""
    rows = (("refused", error.what), ("where", error.where), ("hint", error.hint))
    return "\n".join(f"{name + ':':<9} {text}" for name, text in rows if text)


def to_text(judgement: Judgement) -> str:
    """The judgement for a terminal."""
    return "\n".join(_lines(judgement)) + "\n"


def _lines(judgement: Judgement) -> Iterator[str]:
    yield f"accepted: {judgement.folder.path}"
    for name, text in judgement.summary().items():
        yield f"{name:<14}{text}"
    yield ""
    yield from _table(
        ("file", "sha256", "bytes"),
        [(printable(name), sha, str(size)) for name, (sha, size) in judgement.files().items()],
    )
    yield ""
    statistics = judgement.trained.statistics
    units = [unit for unit in UNITS.values() for _ in range(3)]
    rows = zip(CHANNELS, statistics.mean, statistics.std, units, strict=True)
    yield from _table(("channel", "mean", "std", "unit"), [(c, f"{m:g}", f"{s:g}", u) for c, m, s, u in rows])
    yield ""
    yield from _table(
        tuple(field.name for field in dataclasses.fields(Claim)),
        [dataclasses.astuple(claim) for claim in judgement.claims],
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Judge a folder and print what was found.

    Returns:
        0 where it is accepted, 1 where it is refused: why is then on stderr, with ``--json`` on stdout too.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show, and what is no text in a file's name, is shown escaped.
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        prog="python -m assets.weights", description="Judge a version folder of trained weights."
    )
    parser.add_argument("folder", type=Path, help="a WEIGHTS_DIR, or a version folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        judgement = judge_weights(options.folder)
    except PipelineError as error:
        if options.json:
            said = {"code": error.code, "what": error.what, "where": error.where, "hint": error.hint}
            print(json.dumps({"ok": False, **said}, indent=1))
        print(refusal(error), file=sys.stderr)
        return 1
    text = json.dumps(judgement.to_document(), indent=1) + "\n" if options.json else to_text(judgement)
    sys.stdout.write(text)
    return 0
