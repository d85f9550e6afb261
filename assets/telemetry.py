"""Windows that runtimes kept, read and offered: candidates for the next calibration set, and a list to label.

``python -m assets.telemetry FOLDER --out candidates`` and the asset ``telemetry_candidates``. The files come
from elsewhere: each is read within bounds, and one that is none is named and left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from assets.findings import REFUSE
from assets.input_gate import check_normalized, check_physical
from assets.judgement import refusal
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import CalibrationError, PipelineError
from runtime.contract.files import read_bounded, write_directory
from runtime.contract.parity import Finding
from runtime.contract.telemetry import (
    ENDING,
    IMPLAUSIBLE,
    MOST_FILE_BYTES,
    KeptWindow,
    TelemetryError,
    TelemetryFile,
    parse_file,
)
from runtime.contract.window import WINDOW_SHAPE, ChannelStatistics, FloatArray

MOST_FILES: Final = 16_384
MOST_WINDOWS: Final = 65_536
"""250 MB of windows; what is beyond is named as left out."""

CANDIDATES: Final = "candidates.npz"
REFUSED: Final = "refused"
TO_LABEL: Final = "to_label.jsonl"
REPORT: Final = "report.json"
FILES: Final = (CANDIDATES, TO_LABEL, REPORT)
NOT_OF_ITSELF: Final = frozenset({"count", "coverage", "z_reach"})
"""Checks that say that a set is no whole one: what is added to another one need not be."""

FEWEST_TO_JUDGE: Final = 16
"""Windows of a group below which chance alone would refuse it: it is judged among all."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that was not read, and why."""

    file: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One window, once, however often it was kept.

    Args:
        id: SHA-256 of its values.
        kept: As it was kept first, with the reasons of all.
        file: Where, below the folder.
        machine: On which.
    """

    id: str
    kept: KeptWindow
    file: str
    machine: str

    @property
    def plausible(self) -> bool:
        """Whether its values can be right; a later version's reason that is not known here says nothing."""
        return not set(IMPLAUSIBLE) & set(self.kept.reasons)


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What a folder held."""

    windows: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    files: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """The windows of one release that were kept for one reason; a window may be in several.

    Args:
        release: Id of the release that answered.
        reason: Why they were kept.
        windows: How many different ones.
        verdict: ``offered``, ``refused``, ``not offered`` (nothing to calibrate with).
        findings: Of the input gate; empty where they are too few to be judged apart.
    """

    release: str
    reason: str
    windows: int
    verdict: str
    findings: tuple[Finding, ...]

    def of_the_windows(self) -> list[Finding]:
        """The findings about the windows themselves, without that they are no whole set."""
        return _of_the_windows(self.findings)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is offered of what was captured.

    Args:
        captured: What the folder held.
        groups: By release and reason.
        candidates: Windows for the next calibration set; empty where the gate refuses them.
        findings: Of the input gate on all candidates together.
    """

    captured: Captured
    groups: tuple[Group, ...]
    candidates: tuple[Candidate, ...]
    findings: tuple[Finding, ...]


def read_folder(folder: Path) -> Captured:
    """Read every telemetry file of a folder and those below it, without following a link.

    Raises:
        TelemetryError: The folder cannot be read.
    """
    if not folder.is_dir():
        raise TelemetryError(
            "is no folder", where=str(folder), hint="copy a Pi's TELEMETRY_DIR there: docs/telemetry.md"
        )
    found: dict[str, Candidate] = {}
    left_out: list[LeftOut] = []
    read = 0
    for path in _files(folder, left_out):
        name = str(path.relative_to(folder))
        try:
            held = _read(path, name)
            if len(found) + len(held.windows) > MOST_WINDOWS:
                raise TelemetryError(f"more than {MOST_WINDOWS} windows altogether", where=name)
        except TelemetryError as error:
            left_out.append(LeftOut(file=_shown(name), why=str(error)))
            continue
        read += 1
        for kept in held.windows:
            _add(found, kept, name, held.origin.machine)
    # By time and then by value: the same files give the same order, whatever they are called.
    windows = tuple(sorted(found.values(), key=lambda each: (each.kept.time, each.id)))
    return Captured(windows=windows, left_out=tuple(left_out), files=read)


def _files(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith("."):
                continue  # half written
            if not name.endswith(ENDING):
                left_out.append(LeftOut(file=_shown(str(path.relative_to(folder))), why="no telemetry file"))
            elif len(found) >= MOST_FILES:
                why = f"more than {MOST_FILES} files"
                left_out.append(LeftOut(file=_shown(str(path.relative_to(folder))), why=why))
            else:
                found.append(path)
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise TelemetryError(f"cannot be read: {error.strerror}", where=str(error.filename)) from error


def _read(path: Path, name: str) -> TelemetryFile:
    if path.is_symlink():
        raise TelemetryError("is a link", where=_shown(name))
    try:
        data = read_bounded(path, MOST_FILE_BYTES)
    except OSError as error:
        raise TelemetryError(f"cannot be read: {error.strerror or error}", where=_shown(name)) from error
    return parse_file(data, _shown(name))


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _add(found: dict[str, Candidate], kept: KeptWindow, file: str, machine: str) -> None:
    identifier = sha256_bytes(kept.window.astype("<f4").tobytes())
    new = Candidate(id=identifier, kept=kept, file=_shown(file), machine=machine)
    old = found.get(identifier, new)
    first = min(old, new, key=lambda each: (each.kept.time, each.file))
    reasons = tuple(sorted({*old.kept.reasons, *kept.reasons}))
    found[identifier] = dataclasses.replace(first, kept=dataclasses.replace(first.kept, reasons=reasons))


def offer(captured: Captured, statistics: ChannelStatistics | None = None) -> Offer:
    """Run the calibration gate on what was captured, group by group and together, and say what is offered.

    Args:
        captured: What the folder held.
        statistics: The model's normalization, for the gate's second stage; None leaves it out.
    """
    groups: list[Group] = []
    refused: set[str] = set()
    for (release, reason), windows in sorted(_grouped(captured.windows).items()):
        findings: tuple[Finding, ...] = ()
        verdict = "not offered" if reason in IMPLAUSIBLE else "offered"
        if verdict == "offered" and len(windows) >= FEWEST_TO_JUDGE:
            findings = _gate([each for each in windows if each.plausible], statistics)
            if _wrong(findings):
                verdict = REFUSED
                refused.update(each.id for each in windows)
        count = len(windows)
        groups.append(
            Group(release=release, reason=reason, windows=count, verdict=verdict, findings=findings)
        )
    chosen = [each for each in captured.windows if each.plausible and each.id not in refused]
    findings = _gate(chosen, statistics)
    return Offer(
        captured=captured,
        groups=tuple(groups),
        candidates=() if _wrong(findings) else tuple(chosen),
        findings=findings,
    )


def _grouped(windows: Iterable[Candidate]) -> dict[tuple[str, str], list[Candidate]]:
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for each in windows:
        for reason in each.kept.reasons:
            groups.setdefault((each.kept.release, reason), []).append(each)
    return groups


def _gate(windows: Sequence[Candidate], statistics: ChannelStatistics | None) -> tuple[Finding, ...]:
    if not windows:
        return ()
    values, labels = _stacked(windows), [""] * len(windows)
    findings = check_physical(values, labels, name="calibration")
    if statistics is not None and not _wrong(findings):
        findings += check_normalized(values, labels, statistics, name="calibration")
    return tuple(findings)


def _of_the_windows(findings: Iterable[Finding]) -> list[Finding]:
    return [each for each in findings if each.check not in NOT_OF_ITSELF]


def _wrong(findings: Iterable[Finding]) -> bool:
    """Whether the windows themselves are refused."""
    return any(each.severity == REFUSE for each in _of_the_windows(findings))


def _stacked(windows: Sequence[Candidate]) -> FloatArray:
    if not windows:
        return np.empty((0, *WINDOW_SHAPE), np.float32)
    return np.stack([each.kept.window for each in windows])


def files_of(offered: Offer) -> dict[str, bytes]:
    """The files of an offer; the same captured files give the same bytes.

    ``candidates.npz``, as ``python -m assets.calibration`` takes it, only where there are candidates;
    ``to_label.jsonl``, every window; ``report.json``.
    """
    files = {TO_LABEL: _to_label(offered), REPORT: to_json(report_of(offered))}
    if offered.candidates:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, windows=_stacked(offered.candidates))
        files[CANDIDATES] = buffer.getvalue()
    return files


def _to_label(offered: Offer) -> bytes:
    places = {each.id: place for place, each in enumerate(offered.candidates)}
    lines = [
        json.dumps(
            {
                "id": each.id,
                "label": "",
                "reasons": each.kept.reasons,
                "margin": each.kept.margin,
                "motifs": [[scored.motif, scored.score] for scored in each.kept.motifs],
                "distance": each.kept.distance,
                "time": each.kept.time,
                "machine": each.machine,
                "release": each.kept.release,
                "file": each.file,
                "candidate": places.get(each.id),
            }
        )
        for each in offered.captured.windows
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def report_of(offered: Offer) -> dict[str, Any]:
    """What was read, found and offered, as JSON values."""
    return {
        "origin": "captured",
        "files": offered.captured.files,
        "windows": len(offered.captured.windows),
        "candidates": len(offered.candidates),
        "groups": [dataclasses.asdict(group) for group in offered.groups],
        "findings": [dataclasses.asdict(finding) for finding in offered.findings],
        "left_out": [dataclasses.asdict(each) for each in offered.captured.left_out],
    }


def to_text(offered: Offer) -> str:
    """The same for a terminal."""
    captured = offered.captured
    lines = [
        f"{captured.files} files, {len(captured.windows)} windows, {len(captured.left_out)} files left out"
    ]
    lines += [f"  {each.file}: {each.why}" for each in captured.left_out[:20]]
    lines += [
        f"{each.release[:12]}  {each.reason:<22}{each.windows:>6}  {each.verdict}" for each in offered.groups
    ]
    lines += [f"{each.severity} {each.sentence()}" for each in offered.findings]
    lines.append(f"{len(offered.candidates)} candidates for the next calibration set, origin captured")
    return "\n".join(lines) + "\n"


def write_offer(offered: Offer, out: Path) -> None:
    """Write the files of an offer into a folder that is not there yet.

    Raises:
        TelemetryError: Something is there already, or it cannot be written.
    """
    if os.path.lexists(out):
        raise TelemetryError("is there already", where=str(out), hint="name another folder")
    try:
        write_directory(out, files_of(offered))
    except OSError as error:
        raise TelemetryError(f"cannot be written: {error.strerror}", where=str(out)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m assets.telemetry",
        description="Read windows that runtimes kept (TELEMETRY_DIR), run the calibration gate on them, and "
        f"write {CANDIDATES} for python -m assets.calibration --origin captured, {TO_LABEL} and {REPORT}.",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="telemetry files, in folders below it, too")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write; must not be there yet")
    add("--normalization", type=Path, metavar="FILE", help="normalization.json: z-scores are checked, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read, gate and write.

    Returns:
        0 where there are candidates, 1 where there are none or something failed: then why is on stderr.
    """
    from assets.calibration_command import read_normalization

    options = _parser().parse_args(argv)
    try:
        statistics = read_normalization(options.normalization)
        offered = offer(read_folder(options.folder), statistics)
        write_offer(offered, options.out)
        print(to_text(offered), end="")
        if not offered.candidates:
            raise CalibrationError("no window can be offered", where=str(options.folder))
    except PipelineError as error:
        print(refusal(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
