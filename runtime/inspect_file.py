"""``releasectl inspect``: what a file of Hailo's is, without Hailo's software."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from runtime.contract.errors import PipelineError
from runtime.contract.files import open_regular
from runtime.contract.gate import check_encoder
from runtime.contract.hailo_compatibility import DEVICES, HEADER_SINCE, TAKES, released_with
from runtime.contract.hef_errors import HefError
from runtime.contract.hef_file import HefFile, HefNetworkGroup, HefStream, read_hef
from runtime.contract.hef_header import MAGIC
from runtime.har_file import HarFile, read_har

_HEADER: Final = ("", "NAME", "SHAPE", "ORDER", "TYPE", "SCALE", "ZERO POINT", "TAKES FROM", "TO")
_TYPES: Final = {1: "uint8", 2: "uint16"}


class FileMissingError(PipelineError):
    """No file of that name."""

    code = "no_file"


class FileKindError(PipelineError):
    """A file that is neither a HEF nor a HAR."""

    code = "file_kind"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found: ``document`` for programs, ``lines`` for a terminal."""

    document: dict[str, Any]
    lines: tuple[str, ...]


def inspect_file(path: Path) -> Inspection:
    """Say what a HEF or a HAR is.

    Raises:
        FileMissingError: There is no such file.
        FileKindError: It is neither; an emulated artifact for one.
        HefError: It should be a HEF and is none; each kind its own.
        HarError: It should be a HAR and is none.
    """
    head = _head(path)
    if head[: len(MAGIC)] != MAGIC and (path.suffix == ".har" or head[257:262] == b"ustar"):
        return _har(path, read_har(path))
    if path.suffix == ".onnx":
        raise FileKindError(
            "is an ONNX graph, such as the emulator's artifacts: neither a HEF nor a HAR",
            where=str(path),
            hint="`releasectl show` says what a release with it is",
        )
    return _hef(path, read_hef(path))


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(512)
    except FileNotFoundError as error:
        raise FileMissingError("no such file", where=str(path)) from error
    except (OSError, ValueError):
        # Whoever reads it will say why it cannot.
        return b""


def _hef(path: Path, hef: HefFile) -> Inspection:
    taken_by = [device for device, taken in TAKES.items() if hef.architecture in taken]
    releasable = {target: _obstacle(hef, target) for target in DEVICES}
    major, minor = HEADER_SINCE[hef.header_version]
    document = {
        "kind": "hef",
        "file": str(path),
        "architecture": hef.architecture,
        "taken_by": taken_by,
        "hailort_since": f"{major}.{minor}",
        "dfc_version": hef.dfc_version,
        "compiled_at": hef.compiled_at,
        "double": hef.is_double,
        "releasable": {target: not obstacle for target, obstacle in releasable.items()},
        "obstacles": {target: obstacle for target, obstacle in releasable.items() if obstacle},
        **asdict(hef),
    }
    rows = [
        ("file", f"{path}, {hef.size} bytes"),
        ("kind", f"HEF, header version {hef.header_version}, its {hef.checksum} is right"),
        (
            "chip",
            f"{hef.architecture}, taken by {' and '.join(taken_by) or 'no device that this project knows'}",
        ),
        ("compiler", _compiler(hef)),
        ("HailoRT", f"{major}.{minor} or newer reads it{released_with(hef.dfc_version)}"),
    ]
    rows += [
        (f"for {target}", f"no: {obstacle}" if obstacle else "can be a release's artifact")
        for target, obstacle in releasable.items()
    ]
    lines = _rows(rows)
    for group in hef.network_groups:
        lines += ["", *_network_lines(group)]
    return Inspection(document=document, lines=tuple(map(_printable, lines)))


def _obstacle(hef: HefFile, target: str) -> str:
    """Why it cannot be the artifact of a release for the target; empty where it can."""
    if hef.is_double:
        return "a test double of the compiler wrote it"
    try:
        check_encoder(hef, target, "")
    except HefError as error:
        return error.what
    return ""


def _compiler(hef: HefFile) -> str:
    when = f", {hef.compiled_at}" if hef.compiled_at else ""
    if hef.is_double:
        return f"A TEST DOUBLE of Hailo's Dataflow Compiler ({hef.sdk_version}){when}: no chip runs this"
    return f"Hailo's Dataflow Compiler {hef.dfc_version or 'of unknown version'}{when}"


def _network_lines(group: HefNetworkGroup) -> list[str]:
    contexts = f"{group.contexts} context{'' if group.contexts == 1 else 's'}"
    fps = f", the compiler estimates {group.bottleneck_fps:.0f} frames/s" if group.bottleneck_fps else ""
    host = f", {' and '.join(group.host_operations)} on the host" if group.host_operations else ""
    cells: list[Sequence[str]] = [_HEADER]
    cells += [_cells("in", stream) for stream in group.inputs]
    cells += [_cells("out", stream) for stream in group.outputs]
    return [f"network     {group.name or '(no name)'}: {contexts}{fps}{host}", *_table(cells)]


def _cells(direction: str, stream: HefStream) -> tuple[str, ...]:
    scale = f"{stream.scale:.6g}" if not stream.scales else f"{len(stream.scales)} values"
    zero = f"{stream.zero_point:g}" if not stream.zero_points else f"{len(stream.zero_points)} values"
    return (
        direction,
        stream.name,
        "x".join(map(str, stream.shape)),
        stream.order,
        _TYPES.get(stream.element_bytes, f"{stream.element_bytes} bytes"),
        scale,
        zero,
        *(f"{limit:.6g}" for limit in stream.limits),
    )


def _har(path: Path, har: HarFile) -> Inspection:
    document = {"kind": "har", "file": str(path), **asdict(har)}
    lines = _rows([("file", str(path)), ("kind", f"HAR, {har.size} bytes, {len(har.members)} members")])
    lines += [""]
    lines += _table([("MEMBER", "BYTES", "IS"), *((m.name, str(m.size), m.kind) for m in har.members)])
    lines += ["", "metadata" if har.facts else "metadata    none"]
    lines += [f"  {key} {value}" for key, value in har.facts.items()]
    lines += [f"note        {note}" for note in har.notes]
    return Inspection(document=document, lines=tuple(map(_printable, lines)))


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name:<11} {text}" for name, text in rows]


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _printable(line: str) -> str:
    """Names come from the file: none may move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
