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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from assets.captured import read_folder
from assets.judgement import refusal
from assets.telemetry_offer import Offer, offer, stacked
from runtime.contract.document import to_json
from runtime.contract.errors import CalibrationError, PipelineError
from runtime.contract.files import write_directory
from runtime.contract.telemetry import TelemetryError

CANDIDATES: Final = "candidates.npz"
TO_LABEL: Final = "to_label.jsonl"
REPORT: Final = "report.json"
FILES: Final = (CANDIDATES, TO_LABEL, REPORT)


def files_of(offered: Offer) -> dict[str, bytes]:
    """The files of an offer; the same captured files give the same bytes.

    ``candidates.npz``, as ``python -m assets.calibration`` takes it, only where there are candidates;
    ``to_label.jsonl``, every window; ``report.json``.
    """
    files = {TO_LABEL: _to_label(offered), REPORT: to_json(report_of(offered))}
    if offered.candidates:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, windows=stacked(offered.candidates))
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
                "why_not": offered.why_not.get(each.id, ""),
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
        "not_offered": offered.left(),
        "why_none": offered.why_none(),
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
    lines += [f"not offered: {count} {why}" for why, count in offered.left().items()]
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
            what = f"no window can be offered: {offered.why_none()}"
            raise CalibrationError(what, where=str(options.folder))
    except PipelineError as error:
        print(refusal(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
