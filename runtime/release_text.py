"""Releases for a terminal: the table of a store, and one release on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.contract.channels import ChannelEntry, SignedEntry
from runtime.contract.errors import PipelineError
from runtime.contract.evidence import evidence_kind
from runtime.contract.release import UNKNOWN_ORIGIN, Manifest, ParityResult
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import Root

Row = dict[str, Any]
WIDTH: Final = 80
# No artifact's name, and columns one space apart: a terminal is not wider. `show` has it all.
_HEADER: Final = ("RELEASE", "TARGET", "CHANNELS", "MODEL", "NUMBERS", "ORIGIN", "MOTIF HEAD")
REFUSED: Final = "REFUSED"
_ORIGINS: Final = {
    "captured": "captured windows",
    "synthetic": "SYNTHETIC windows, not captured on a device",
    UNKNOWN_ORIGIN: "windows of unknown origin (schema 1 did not say)",
}


def entry_line(entry: ChannelEntry, keyids: Sequence[str] = ()) -> str:
    """One move of a channel, in a line; with the keys that signed it, where those were asked."""
    moved = f"{entry.previous[:12] or 'nothing'} -> {entry.release[:12] or 'nothing'}"
    what = f"marks {entry.marked[:12]} bad" if entry.marked else moved
    kinds = sorted({each.kind for each in entry.evidence})
    evidence = f"  evidence: {', '.join(kinds)}" if kinds else ""
    signed = f"  key {', '.join(keyid[:12] for keyid in keyids)}" if keyids else ""
    forced = f"  OVERRODE: {'; '.join(entry.overridden)}" if entry.overridden else ""
    return (
        f"{entry.target}/{entry.channel}  {entry.sequence}  {entry.at}  {entry.action} {what}  "
        f"{entry.actor}: {entry.reason}{forced}{evidence}{signed}"
    )


def table_row(
    store: ReleaseStore, identifier: str, entries: Sequence[ChannelEntry], root: Root | None
) -> Row:
    """One release of a list: what it is, or under ``problem`` why it cannot be read.

    ``signed`` is whether a release key of the root vouches for it, ``refused`` why none does; None where
    that is not judged.
    """
    channels = [entry.channel for entry in entries if entry.release == identifier]
    row: Row = {"release": identifier, "target": None, "channels": channels, "signed": None}
    try:
        release = store.open(identifier)
    except PipelineError as error:
        return row | {"problem": str(error)}
    try:
        row["signed"] = bool(release.check_signature(root)) if root else None
    except PipelineError as error:
        row |= {"signed": False, "refused": str(error)}
    manifest = release.manifest
    return row | {
        "target": manifest.target,
        "model": manifest.model.name,
        "version": manifest.model.version,
        "artifact": manifest.artifact,
        "numbers": manifest.output.provenance,
        "calibration_origin": manifest.calibration.origin,
        "motif_head": manifest.motif_head.provenance,
    }


def table_lines(rows: Sequence[Row]) -> list[str]:
    """A table, and below it what nobody who may signed, and what cannot be read."""
    cells = [_HEADER]
    for row in rows:
        if "problem" not in row:
            model = f"{row['model']} {row['version']}"
            channels = ", ".join(row["channels"]) or "-"
            # Where nobody who may vouches for it, its numbers are nobody's.
            numbers = REFUSED if row["signed"] is False else row["numbers"]
            last = (numbers, row["calibration_origin"], row["motif_head"])
            cells.append((row["release"][:12], row["target"], channels, model, *last))
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    lines = [" ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    for row in rows:
        if row["signed"] is False:
            lines += wrapped(row["release"][:12], f"{REFUSED}: {row['refused']}", 12)
    bad = [row for row in rows if "problem" in row]
    return lines + [f"{row['release'][:12]}  cannot be read: {row['problem']}" for row in bad]


def origin_text(origin: str) -> str:
    """Where windows came from, said so that nobody takes synthetic ones for others."""
    return _ORIGINS.get(origin, f"{origin} windows")


def wrapped(name: str, text: str, width: int = 11) -> list[str]:
    """A name and what there is to say, in lines that a terminal does not break."""
    indent = " " * (width + 1)
    lines = textwrap.wrap(text, WIDTH - len(indent), break_on_hyphens=False) or [""]
    return [f"{name:<{width}} {lines[0]}", *(f"{indent}{line}" for line in lines[1:])]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a release stands: what people ask of it before anything else.

    Args:
        signature: As ``audit.signature_of``.
        entries: Of the channels that name it now.
        history: Every move of its target's channels that is about it, as far as their histories hold.
        broken: A sentence for each history that does not hold.
        judged: Whether there is a root of trust; without one the last three are empty.
    """

    signature: Mapping[str, object]
    entries: Sequence[ChannelEntry]
    history: Sequence[SignedEntry]
    broken: Sequence[str]
    judged: bool

    @property
    def marks(self) -> list[SignedEntry]:
        """The moves that mark it bad."""
        return [signed for signed in self.history if signed.entry.marked]

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = ["pruned      its manifest was kept as evidence"] if self.signature["pruned"] else []
        lines += wrapped("signature", _signature(self.signature))
        for entry in (signed.entry for signed in self.marks):
            lines += wrapped("MARKED BAD", f"by {entry.actor} on {entry.at}: {entry.reason}", 10)
        if not self.judged:
            unjudged = "not judged: no root of trust"
            return [*lines, f"channels    {unjudged}", f"history     {unjudged}"]
        lines.append("channels" if self.entries else "channels    none")
        lines += [f"  {entry.channel}  {entry.at}  {entry.actor}: {entry.reason}" for entry in self.entries]
        for problem in self.broken:
            lines += wrapped("history", f"DOES NOT HOLD, so that moves and marks may be missing: {problem}")
        if not self.broken:
            lines.append("history" if self.history else "history     none")
        return lines + [f"  {entry_line(signed.entry)}" for signed in self.history]


def release_lines(release: Release, standing: Standing, evidence: Sequence[Path]) -> list[str]:
    """One release: its verdict, where it stands, then all that its manifest says, and what lies beside it."""
    manifest = release.manifest
    head, toolchain = manifest.motif_head, manifest.toolchain
    lines = [
        f"release     {release.id}",
        f"parity      {_verdict(manifest.parity)}",
        *standing.lines(),
        f"model       {manifest.model.name} {manifest.model.version}",
        f"target      {manifest.target}, numbers {manifest.output.provenance}",
        *wrapped("calibration", f"{origin_text(manifest.calibration.origin)}{_calibration(manifest)}"),
        *wrapped("motif head", f"{head.provenance}, {head.size} motifs: {', '.join(head.names)}"),
        "artifacts",
    ]
    for artifact in manifest.artifacts:
        mark = " (served)" if artifact.name == manifest.artifact else ""
        lines.append(f"  {artifact.sha256}  {artifact.size:>9}  {artifact.name}  {artifact.kind}{mark}")
    lines.append("made from")
    lines += [f"  {digest}  {name}" for name, digest in sorted(manifest.upstream.items())]
    hardware = "on hardware" if toolchain.hardware else "not on hardware"
    lines.append(f"toolchain   {toolchain.id}, {hardware}")
    for name, value in sorted({**toolchain.tools, **toolchain.options}.items()):
        lines += wrapped(f"  {name}", str(value), len(name) + 2)
    lines += [f"golden      {_golden(manifest)}", "metrics", *_metrics(manifest.parity)]
    lines.append("evidence" if evidence else "evidence    none")
    lines += [f"  {evidence_kind(path)}  {path}" for path in evidence]
    return lines


def _signature(signature: Mapping[str, object]) -> str:
    if signature["ok"]:
        by = signature["by"]
        assert isinstance(by, list)
        return f"holds, {signature['keys']}, key {', '.join(str(keyid)[:16] for keyid in by)}"
    return f"{'NOT JUDGED' if signature['ok'] is None else REFUSED}: {signature['problem']}"


def _calibration(manifest: Manifest) -> str:
    record = manifest.calibration
    strata = ", ".join(f"{name} {count}" for name, count in sorted(record.strata.items()))
    return f"; {record.windows}: {strata}" if record.windows else ""


def _golden(manifest: Manifest) -> str:
    golden = manifest.golden
    kernels = golden.kernel_family or "kernels that schema 1 does not name"
    return f"{golden.windows} windows, recorded on {kernels}"


def _verdict(parity: ParityResult) -> str:
    return f"{'passed' if parity.passed else 'FAILED'}, {parity.provenance}, {parity.windows} windows"


def _metrics(parity: ParityResult) -> list[str]:
    lines = []
    for name in sorted({*parity.metrics, *parity.thresholds, *parity.ceilings}):
        value = f"{parity.metrics[name]:.6g}" if name in parity.metrics else "not computed"
        least = f"  at least {parity.thresholds[name]:.6g}" if name in parity.thresholds else ""
        most = f"  at most {parity.ceilings[name]:.6g}" if name in parity.ceilings else ""
        lines.append(f"  {name:<28} {value:>12}{least}{most}")
    return lines + [f"  {failure}" for failure in parity.failures]
