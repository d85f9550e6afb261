"""Telemetry files: windows that a runtime kept, as gzip'd JSON lines; written on a Pi, read by who builds.

The first line says what the file is, each further one holds one window. Numbers are float32, little endian,
in base64: nothing in such a file is ever run. Whoever reads one trusts nothing in it.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from runtime.contract.document import from_json
from runtime.contract.errors import PipelineError
from runtime.contract.release import check_digest
from runtime.contract.window import (
    CHANNELS,
    LATENT_SIZE,
    SAMPLING_RATE_HZ,
    UNITS,
    WINDOW_SHAPE,
    ChannelStatistics,
    FloatArray,
)

SCHEMA: Final = 1
FORMAT: Final = "hailo-pipeline-telemetry"
ENDING: Final = ".jsonl.gz"
MOST_FILE_BYTES: Final = 4 * 2**20
MOST_UNPACKED_BYTES: Final = 32 * 2**20
MOST_WINDOWS: Final = 4096

LOW_MARGIN: Final = "low_margin"
FAR: Final = "far_from_calibration"
DISAGREEMENT: Final = "disagreement"
IMPLAUSIBLE: Final = ("gyroscope_unit", "z_beyond_40", "constant_channel")
"""Reasons of windows whose values cannot be right: nothing to calibrate with. Beyond ``GYROSCOPE_LIMIT``;
beyond ``Z_LIMIT``; one value throughout the window."""
REASONS: Final = (LOW_MARGIN, FAR, DISAGREEMENT, *IMPLAUSIBLE)

GYROSCOPE_LIMIT: Final = 35.0
"""rad/s. A consumer's gyroscope ends at 2000 deg/s, which are 34.9 rad/s: what is beyond is in deg/s."""

Z_LIMIT: Final = 40.0
"""Standard deviations of the training windows."""

GYROSCOPE: Final = slice(3, 6)
ZBounds = tuple[FloatArray, FloatArray]
"""float32 (9,) each, physical units: the least and the largest value within ``Z_LIMIT``."""

_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_MOST_TEXT: Final = 200
_MOST_REASONS: Final = 16
_REASON: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")


def z_bounds(statistics: ChannelStatistics) -> ZBounds:
    """What values may be to a model of these statistics."""
    mean, std = statistics.arrays()
    with np.errstate(over="ignore"):
        return mean - Z_LIMIT * std, mean + Z_LIMIT * std


def implausible_kinds(window: FloatArray, bounds: ZBounds | None = None) -> tuple[str, ...]:
    """Which of ``IMPLAUSIBLE`` are in the values themselves.

    Args:
        window: float32 (100, 9), physical units.
        bounds: ``z_bounds`` of a model; None where none is known: then ``z_beyond_40`` is not asked for.
    """
    largest, smallest = np.maximum.reduce(window, 0), np.minimum.reduce(window, 0)
    fastest = max(float(largest[GYROSCOPE].max()), -float(smallest[GYROSCOPE].min()))
    found = (
        fastest > GYROSCOPE_LIMIT,
        bounds is not None and bool(((largest > bounds[1]) | (smallest < bounds[0])).any()),
        bool((largest == smallest).any()),
    )
    return tuple(kind for kind, there in zip(IMPLAUSIBLE, found, strict=True) if there)


class TelemetryError(PipelineError):
    """A telemetry file that is none, or damaged."""

    code = "telemetry"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One motif and its score, 0 to 1."""

    motif: str
    score: float


@dataclass(frozen=True, kw_only=True)
class KeptWindow:
    """One window that was kept, and why.

    Args:
        time: When it was answered, UTC, ``2026-11-30T03:45:00.123456Z``.
        release: Id of the release that answered.
        reasons: Of ``REASONS``; a later version may know others.
        window: float32 (100, 9), physical units.
        latent: float32 (64,), the answer.
        motifs: The first two, largest score first; one where the head has one.
        distance: ``LatentDistance``; None where the release holds no calibration statistics.
    """

    time: str
    release: str
    reasons: tuple[str, ...]
    window: FloatArray
    latent: FloatArray
    motifs: tuple[Scored, ...]
    distance: float | None

    @property
    def margin(self) -> float | None:
        """First score minus second; None where there is one motif only."""
        return self.motifs[0].score - self.motifs[1].score if len(self.motifs) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who kept the windows of a file.

    Args:
        runtime_version: Of the runtime.
        machine: Its host's name.
        cpu: The board and its CPU.
    """

    runtime_version: str
    machine: str
    cpu: str


@dataclass(frozen=True, kw_only=True)
class TelemetryFile:
    """What one file held."""

    origin: Origin
    windows: tuple[KeptWindow, ...]


@dataclass(frozen=True, kw_only=True)
class _Header:
    format: str
    schema: int
    runtime_version: str
    machine: str
    cpu: str
    windows: int
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]
    units: dict[str, str]
    sampling_rate_hz: int


@dataclass(frozen=True, kw_only=True)
class _Line:
    time: str
    release: str
    reasons: tuple[str, ...]
    window: str
    latent: str
    motifs: tuple[Scored, ...]
    distance: float | None


def printable(text: str) -> str:
    """A name as a file may hold it: a motif's and a host's are somebody else's."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MOST_TEXT])


def time_text(seconds: float) -> str:
    """Seconds since 1970 as ``KeptWindow.time``."""
    return datetime.fromtimestamp(seconds, UTC).strftime(_TIME)


def encode_window(kept: KeptWindow) -> bytes:
    """One line of a file, with its end."""
    return _one_line(
        _Line(
            time=kept.time,
            release=kept.release,
            reasons=kept.reasons,
            window=_packed(kept.window),
            latent=_packed(kept.latent),
            motifs=kept.motifs,
            distance=kept.distance,
        )
    )


def encode_file(lines: Sequence[bytes], origin: Origin) -> bytes:
    """A file of lines that ``encode_window`` gave; the same lines give the same bytes."""
    header = _Header(
        format=FORMAT,
        schema=SCHEMA,
        runtime_version=origin.runtime_version,
        machine=origin.machine,
        cpu=origin.cpu,
        windows=len(lines),
        shape=WINDOW_SHAPE,
        dtype="<f4",
        channels=CHANNELS,
        units=dict(UNITS),
        sampling_rate_hz=SAMPLING_RATE_HZ,
    )
    return gzip.compress(b"".join([_one_line(header), *lines]), compresslevel=6, mtime=0)


def parse_file(data: bytes, where: str) -> TelemetryFile:
    """Read a file; nothing of it where anything is amiss.

    Args:
        data: Its bytes; more than ``MOST_FILE_BYTES`` are refused.
        where: How to name it.

    Raises:
        TelemetryError: It is none, cut short, too large unpacked, of another schema, or a line is not what it
            should be; names the line.
    """
    try:
        return _parse(data, where)
    except TelemetryError:
        raise
    except PipelineError as error:
        raise TelemetryError(error.what, where=error.where, hint=error.hint) from error


def _parse(data: bytes, where: str) -> TelemetryFile:
    lines = _unpacked(data, where).split(b"\n")
    if lines.pop() != b"":
        raise TelemetryError("its last line has no end: it was cut short", where=where)
    if not lines:
        raise TelemetryError("is empty", where=where)
    header = from_json(_Header, lines[0], f"{where}: line 1")
    expected: tuple[tuple[str, object, object], ...] = (
        ("format", header.format, FORMAT),
        ("schema", header.schema, SCHEMA),
        ("windows", header.windows, len(lines) - 1),
        ("shape", header.shape, WINDOW_SHAPE),
        ("dtype", header.dtype, "<f4"),
        ("channels", header.channels, CHANNELS),
        ("units", header.units, UNITS),
        ("sampling_rate_hz", header.sampling_rate_hz, SAMPLING_RATE_HZ),
    )
    for name, found, wanted in expected:
        if found != wanted:
            raise TelemetryError(f"{name} is {str(found)[:80]}, expected {wanted}", where=f"{where}: line 1")
    if len(lines) - 1 > MOST_WINDOWS:
        raise TelemetryError(f"more than {MOST_WINDOWS} windows", where=where)
    for name in ("runtime_version", "machine", "cpu"):
        _check_text(getattr(header, name), f"{where}: line 1: {name}")
    origin = Origin(runtime_version=header.runtime_version, machine=header.machine, cpu=header.cpu)
    windows = tuple(_window(line, f"{where}: line {number}") for number, line in enumerate(lines[1:], 2))
    return TelemetryFile(origin=origin, windows=windows)


def _unpacked(data: bytes, where: str) -> bytes:
    """The bytes of one gzip member; a small file cannot become a large one."""
    if len(data) > MOST_FILE_BYTES:
        raise TelemetryError(f"more than {MOST_FILE_BYTES} bytes", where=where)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(data, MOST_UNPACKED_BYTES)
    except zlib.error as error:
        raise TelemetryError(f"is not gzip: {error}", where=where) from error
    if not unpacker.eof:
        what = (
            f"more than {MOST_UNPACKED_BYTES} bytes unpacked" if unpacker.unconsumed_tail else "is cut short"
        )
        raise TelemetryError(what, where=where)
    if unpacker.unused_data:
        raise TelemetryError("something follows its end", where=where)
    return found


def _window(line: bytes, where: str) -> KeptWindow:
    found = from_json(_Line, line, where)
    check_digest(found.release, f"{where}: release")
    try:
        datetime.strptime(found.time, _TIME)  # no zone: the text says Z
    except ValueError as error:
        raise TelemetryError("is no time as 2026-11-30T03:45:00.123456Z", where=f"{where}: time") from error
    if not 1 <= len(set(found.reasons)) == len(found.reasons) <= _MOST_REASONS or not all(
        map(_REASON.fullmatch, found.reasons)
    ):
        raise TelemetryError("are not different words", where=f"{where}: reasons")
    scores = [scored.score for scored in found.motifs]
    if not 1 <= len(scores) <= 2 or scores != sorted(scores, reverse=True):
        raise TelemetryError("are not one or two scores, largest first", where=f"{where}: motifs")
    if scores[0] > 1 or scores[-1] < 0:
        raise TelemetryError("a score is not within 0 to 1", where=f"{where}: motifs")
    for scored in found.motifs:
        _check_text(scored.motif, f"{where}: motifs")
    if found.distance is not None and found.distance < 0:
        raise TelemetryError("is below zero", where=f"{where}: distance")
    return KeptWindow(
        time=found.time,
        release=found.release,
        reasons=found.reasons,
        window=_numbers(found.window, WINDOW_SHAPE, f"{where}: window"),
        latent=_numbers(found.latent, (LATENT_SIZE,), f"{where}: latent"),
        motifs=found.motifs,
        distance=found.distance,
    )


def _check_text(text: str, where: str) -> None:
    if len(text) > _MOST_TEXT or not text.isprintable():
        raise TelemetryError(f"is not up to {_MOST_TEXT} printable characters", where=where)


def _packed(values: FloatArray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _numbers(text: str, shape: tuple[int, ...], where: str) -> FloatArray:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:  # also of letters that are no ASCII
        raise TelemetryError("is not base64", where=where) from error
    if len(data) != 4 * int(np.prod(shape)):
        raise TelemetryError(f"{len(data)} bytes, expected float32 {shape}", where=where)
    values: FloatArray = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise TelemetryError("a value is not finite", where=where)
    return values


def _one_line(document: _Header | _Line) -> bytes:
    text = json.dumps(dataclasses.asdict(document), sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"
