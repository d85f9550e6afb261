"""Captured windows made into the sets of a build: gated, put into strata, and written with their index."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from assets.calibration import (
    INDEX,
    ORIGINS,
    SCHEMA,
    SETS,
    WindowIndex,
    WindowSet,
    WindowSets,
    describe_set,
    gate_sets,
    make_set,
    parse_sets,
    read_files,
)
from assets.findings import REFUSE
from assets.input_gate import check_enough, model_findings, pose_checkable
from assets.judgement import refusal
from assets.normalization import read_statistics
from assets.strata import BY_MOTION, StrataDefinition, counts_of, define_strata, labelled
from assets.window_files import WindowFile, read_window_files
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import CalibrationError, PipelineError
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, SAMPLING_RATE_HZ, UNITS, ChannelStatistics

MIN_GOLDEN: Final = 16
GOLDEN_OF_STRATUM: Final = 2
TARGETS: Final = ("emulator", "hailo8", "hailo8l")

DESCRIPTION: Final = """\
Make captured windows into the sets of a build. The input gate looks at each set in physical units:
gravity and rotation at rest, the earth's field, the order of the channels, the turning of field and
gravity, copies, coverage of every activity, and what the sets have in common. A set that is refused
writes nothing."""
EPILOG: Final = """\
Windows are 1 s at 100 Hz, (100, 9) = (time, channel): ax ay az [m/s²], gx gy gz [rad/s], mx my mz [µT].
  .npz    windows (N, 100, 9), and labels (N,) where there are any
  .npy    windows (N, 100, 9)
  .jsonl  {"x": [[9 numbers] x 100], "label": "walk"} a line; a .json may be one such object
Split by recording or by person: windows of one recording are near copies of each other.

example:
  python -m assets.calibration --calibration captured/train/*.jsonl --evaluation captured/test/*.jsonl \\
      --origin captured --generator "wrist, 12 people, 2026" \\
      --normalization weights/tcn_encoder/v1.0.0/normalization.json --out calib_data"""


@dataclass(frozen=True, kw_only=True)
class Gated:
    """What the command made of its files, and what the gate found; not written yet."""

    sets: dict[str, WindowSet]
    strata: StrataDefinition
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Whether the sets must not be used."""
        return _refused(self.findings)


def take_golden(file: WindowFile, strata: Sequence[str]) -> tuple[WindowFile, WindowFile]:
    """Take golden windows out of the evaluation set, spanning its strata; the same ones every time.

    At least ``MIN_GOLDEN``, as evenly from each stratum as its windows allow, in the order of their digests.

    Args:
        file: The evaluation windows.
        strata: The stratum of each.

    Returns:
        Golden, and what is left for evaluation, both in their order.

    Raises:
        CalibrationError: There are too few to give some away.
    """
    places: dict[str, list[int]] = {}
    order = sorted(range(len(strata)), key=lambda place: sha256_bytes(file.windows[place].tobytes()))
    for place in order:
        places.setdefault(strata[place], []).append(place)
    each = max(GOLDEN_OF_STRATUM, -(-MIN_GOLDEN // max(1, len(places))))
    # A rare stratum gives half of what it has, and its only one rather than none.
    taken = {name: min(each, max(1, len(found) // 2)) for name, found in places.items()}
    for name in sorted(places, key=lambda name: (-len(places[name]), name)):
        missing = MIN_GOLDEN - sum(taken.values())
        taken[name] += max(0, min(missing, len(places[name]) // 2 - taken[name]))
    if sum(taken.values()) < MIN_GOLDEN:
        raise CalibrationError(
            f"{MIN_GOLDEN} golden windows cannot be taken out of {len(strata)} windows",
            where="evaluation",
            hint=f"give at least {2 * MIN_GOLDEN} evaluation windows, or --golden files",
        )
    chosen = np.zeros(len(strata), dtype=bool)
    for name, found in places.items():
        chosen[found[: taken[name]]] = True
    return _part(file, chosen), _part(file, ~chosen)


def _part(file: WindowFile, chosen: Any) -> WindowFile:
    labels = np.asarray(file.labels)[chosen].tolist()
    return WindowFile(windows=file.windows[chosen], labels=tuple(labels))


def gate_files(
    files: Mapping[str, WindowFile], *, target: str, statistics: ChannelStatistics | None = None
) -> Gated:
    """Put the windows of files into strata and run the gate.

    Args:
        files: ``calibration``, ``evaluation``, and ``golden`` where it is given; else it is taken out of
            evaluation.
        target: What is to be built.
        statistics: The model's normalization, for the gate's second stage.

    Raises:
        CalibrationError: Golden windows cannot be taken out of the evaluation set.
    """
    calibration = files["calibration"]
    _check_labels(files)
    strata = define_strata(calibration.windows, calibration.labels)
    sets = {name: make_set(file.windows, file.labels, strata) for name, file in files.items()}
    findings = gate_sets(sets, strata)
    # Whoever mistook the units shall read that, and not that some stratum is too small to share.
    if "golden" not in sets and not _refused(findings):
        golden, evaluation = take_golden(files["evaluation"], sets["evaluation"].strata)
        parts = {"evaluation": evaluation, "golden": golden}
        sets.update({name: make_set(part.windows, part.labels, strata) for name, part in parts.items()})
        findings = gate_sets(sets, strata)
    if statistics and not _refused(findings):
        judged = {name: sets[name] for name in ("calibration", "evaluation")}
        findings.extend(model_findings(judged, strata, statistics))
    findings.extend(check_enough(sets["calibration"].windows, name="calibration", target=target))
    return Gated(sets=sets, strata=strata, findings=tuple(findings))


def _refused(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == REFUSE for finding in findings)


def _check_labels(files: Mapping[str, WindowFile]) -> None:
    given = {name: labelled(file.labels) for name, file in files.items()}
    if len(set(given.values())) > 1:
        without = ", ".join(name for name, has in given.items() if not has)
        raise CalibrationError(
            "has no labels, and another set has",
            where=without,
            hint="label every set, or leave labels out of account: --strata motion",
        )


def write_sets(gated: Gated, out: Path, *, origin: str, generator: str) -> WindowSets:
    """Write the three files and their index into a folder; the index last, so that it never lies.

    Whenever it is interrupted, the folder holds the old sets or the new ones.

    Args:
        gated: What the gate let through.
        out: The folder; what else is in it stays.
        origin: ``captured`` or ``synthetic``.
        generator: How the windows came about, in words.

    Returns:
        The sets, read back.

    Raises:
        CalibrationError: The gate refuses them, or they cannot be written.
    """
    files, records, before = {}, {}, _named_before(out)
    for name in SETS:
        buffer, each = io.BytesIO(), gated.sets[name]
        np.savez_compressed(buffer, windows=each.windows, labels=np.asarray(each.labels, dtype=np.str_))
        data = buffer.getvalue()
        # No file of the present index is replaced: until there is a new one, the old sets stay whole.
        file = next((known for known in before if before[known] == data), f"{name}.npz")
        if before.get(file, data) != data:
            file = f"{name}-{sha256_bytes(data)[:12]}.npz"
        files[file] = data
        records[name] = describe_set(each, file, data)
    index = WindowIndex(
        schema=SCHEMA,
        origin=origin,
        generator=generator,
        sampling_rate_hz=SAMPLING_RATE_HZ,
        channel_order=CHANNELS,
        units=dict(UNITS),
        strata=gated.strata,
        sets=records,
    )
    files[INDEX] = to_json(index)
    sets = parse_sets(files, str(out))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as place:
            for name, data in files.items():
                (Path(place) / name).write_bytes(data)
            for name in files:
                (Path(place) / name).replace(out / name)
        for name in before.keys() - files.keys():
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise CalibrationError(f"cannot be written: {error.strerror}", where=str(out)) from error
    return sets


def _named_before(out: Path) -> dict[str, bytes]:
    """The files of the index that stands in a folder; none where there is none that can be read."""
    try:
        return {name: data for name, data in read_files(out).items() if name != INDEX}
    except CalibrationError:
        return {}


def to_document(gated: Gated, written: Path | None) -> dict[str, Any]:
    """The result as JSON values."""
    return {
        "ok": not gated.refused,
        "strata": dataclasses.asdict(gated.strata),
        "sets": {
            name: {"windows": len(each.windows), "strata": counts_of(each.strata)}
            for name, each in gated.sets.items()
        },
        "findings": [dataclasses.asdict(finding) for finding in gated.findings],
        "written": str(written) if written else None,
    }


def to_text(gated: Gated, pose: str, written: Path | None) -> str:
    """The result for a terminal."""
    refusals = sum(finding.severity == REFUSE for finding in gated.findings)
    warnings = len(gated.findings) - refusals
    verdict = f"refused: {refusals} refusals" if refusals else "accepted"
    lines = [f"{verdict}, {warnings} warnings", f"strata: {gated.strata.text()}", f"resting pose: {pose}"]
    for name, each in gated.sets.items():
        counts = ", ".join(f"{stratum} {count}" for stratum, count in counts_of(each.strata).items())
        lines.append(f"{name}: {len(each.windows)} windows: {counts}")
    for finding in sorted(gated.findings, key=lambda each: each.severity != REFUSE):
        lines += ["", f"{finding.severity} {finding.check} [{finding.channel}]"]
        lines += [f"  found     {finding.measured}", f"  expected  {finding.expected}"]
        lines += [f"  cause     {finding.cause}"]
    lines += ["", f"written: {written}" if written else "nothing was written"]
    return "\n".join(lines) + "\n"


def _pose(statistics: ChannelStatistics | None, gated: Gated) -> str:
    if statistics is None:
        return "not checked: no --normalization was given"
    if not pose_checkable(statistics):
        return "cannot be checked: training had no preferred pose"
    by_physics = gate_sets(gated.sets, gated.strata)
    return "not reached" if _refused(by_physics) else "checked against training's"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m assets.calibration",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--calibration", type=Path, nargs="+", required=True, metavar="FILE", help="windows for optimize")
    add("--evaluation", type=Path, nargs="+", required=True, metavar="FILE", help="windows for parity")
    add(
        "--golden",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=f"windows that a release carries (default: {MIN_GOLDEN} or more taken out of evaluation)",
    )
    add(
        "--origin",
        choices=ORIGINS,
        required=True,
        help="where the windows come from; shown with every release",
    )
    add("--generator", default="", metavar="TEXT", help="how they were captured or made, in words")
    add(
        "--normalization",
        type=Path,
        metavar="FILE",
        help="normalization.json of the weights: z-scores and the pose at rest are checked too",
    )
    add("--target", choices=TARGETS, default="emulator", help="for how many windows are enough")
    add("--strata", choices=("auto", BY_MOTION), default="auto", help="motion: leave labels out of account")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="folder to write (CALIB_DIR of a build)")
    where.add_argument("--check", action="store_true", help="gate only, write nothing")
    add("--json", action="store_true", help="print JSON")
    return parser


def read_normalization(path: Path | None) -> ChannelStatistics | None:
    """The statistics of a ``normalization.json``; None where none is named.

    Raises:
        CalibrationError: It cannot be read.
        PipelineError: It is none.
    """
    if path is None:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CalibrationError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(document, dict):
        raise CalibrationError("is no JSON object", where=str(path))
    return read_statistics({path.name: document})


def _read(options: argparse.Namespace) -> dict[str, WindowFile]:
    files = {name: read_window_files(paths) for name in SETS if (paths := getattr(options, name))}
    if options.strata == BY_MOTION:
        return {
            name: WindowFile(windows=file.windows, labels=("",) * len(file.labels))
            for name, file in files.items()
        }
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Gate the files, and write the sets where they are accepted.

    Returns:
        0 where they are accepted, 1 where they are refused: why is then on stderr, with ``--json`` on
        stdout.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(argv)
    try:
        statistics = read_normalization(options.normalization)
        gated = gate_files(_read(options), target=options.target, statistics=statistics)
        written = None if gated.refused else options.out
        if written:
            write_sets(gated, written, origin=options.origin, generator=options.generator)
    except PipelineError as error:
        if options.json:
            said = {"code": error.code, "what": error.what, "where": error.where, "hint": error.hint}
            print(json.dumps({"ok": False, **said}, indent=1))
        print(refusal(error), file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(to_document(gated, written), indent=1, ensure_ascii=False))
    else:
        text = to_text(gated, _pose(statistics, gated), written)
        print(text, end="", file=sys.stderr if gated.refused else sys.stdout)
    return int(gated.refused)
