"""One error family: what happened, where, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self


class PipelineError(Exception):
    """Base of every error that this project raises on purpose.

    Args:
        what: What happened, as a sentence fragment a person can act on.
        where: The file, tensor, field or place concerned; empty where there is none.
        hint: What to do about it; empty where nothing better than the fact is known.
    """

    code: ClassVar[str] = "error"

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = _encodable(what)
        self.where = _encodable(where)
        self.hint = _encodable(hint)
        super().__init__(str(self))

    def within(self, place: str) -> Self:
        """The same error, its ``where`` said to be inside a document or folder."""
        where = f"{place}.{self.where}" if self.where else place
        return type(self)(self.what, where=where, hint=self.hint)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{advice}"


def _encodable(text: str) -> str:
    """Without lone surrogates, which neither JSON nor a log carries, and without what a terminal obeys.

    What an error names (a file, a key's id) may be of somebody's making.
    """
    if text.isprintable():
        return text
    text = text.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class ConfigError(PipelineError):
    """A setting that does not parse or contradicts another one."""

    code = "config"


class WindowError(PipelineError):
    """A window that cannot be what the encoder was trained on."""

    code = "window"


class WindowShapeError(WindowError):
    """Shape or type is not the release's input spec."""

    code = "window_shape"


class WindowValueError(WindowError):
    """A value is not a finite float32."""

    code = "window_value"


class ManifestError(PipelineError):
    """A manifest that is not what its schema says."""

    code = "manifest"


class NoManifestError(ManifestError):
    """An artifact or folder without a release manifest beside it."""

    code = "no_manifest"


class ReleaseNotFoundError(PipelineError):
    """No such release, channel or target in the store."""

    code = "no_release"


class TargetAmbiguousError(PipelineError):
    """Several targets in the store and none chosen."""

    code = "target_ambiguous"


class TargetMismatchError(PipelineError):
    """A release made for another target."""

    code = "target_mismatch"


class MotifCountError(PipelineError):
    """A release with another number of motifs than ``NUM_MOTIFS`` says."""

    code = "num_motifs"


class DigestMismatchError(PipelineError):
    """Bytes that are not what their digest says."""

    code = "digest_mismatch"


class IncompleteError(DigestMismatchError):
    """A file of a release that is missing, or ends early: it may still be being copied."""

    code = "not_there_yet"


class PublicationRefusedError(PipelineError):
    """A release that the gate does not let out."""

    code = "publication_refused"


class ChannelMovedError(PipelineError):
    """Somebody else moved the channel first."""

    code = "channel_moved"


class StoreBusyError(PipelineError):
    """Somebody else writes to the store, for longer than we wait."""

    code = "store_busy"


class StoreError(PipelineError):
    """The store cannot be read or written."""

    code = "store"


class StoreMissingError(StoreError):
    """There is no store where one was: its folder is gone, or has nothing of a store in it."""

    code = "store_missing"


class EngineError(PipelineError):
    """An engine cannot open or run an artifact."""

    code = "engine"


class NoEngineError(EngineError):
    """Nothing here can run artifacts of the target: its software is not installed, or no device is there.

    Says nothing about the artifact; any other EngineError may.
    """

    code = "no_engine"


class DeviceError(EngineError):
    """A device that cannot be used now and may be later: what it served is opened again.

    ``longest_wait`` is how many seconds may pass between two attempts. ``of_release`` is False where no
    device was open yet: nothing that was to be loaded can have caused it.
    """

    code = "device"
    longest_wait: ClassVar[float] = 60.0
    of_release: bool = True


class DeviceInUseError(EngineError):
    """A device that does something else for this process, for longer than who asks may wait.

    No DeviceError, and no failure of the engine: nothing was tried, and asked again it may do.
    """

    code = "device_in_use"


class GoldenMismatchError(EngineError):
    """An artifact that does not repeat its golden windows on this machine."""

    code = "golden_mismatch"


class WeightsError(PipelineError):
    """Trained weights that are not what they should be."""

    code = "weights"


class CalibrationError(PipelineError):
    """Windows that cannot be used to calibrate or to judge."""

    code = "calibration"


class ToolchainError(PipelineError):
    """A toolchain that cannot do what it was asked."""

    code = "toolchain"


class OnnxModelError(PipelineError):
    """A graph that is not, or does not agree with, the encoder."""

    code = "onnx_model"


@contextlib.contextmanager
def store_errors(place: Path) -> Iterator[None]:
    """Let an OSError inside out as a StoreError that names the file, or ``place``."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.strerror or error}{free_space(error, place)}",
            where=str(error.filename or place),
            hint="check the store's path, rights and free space",
        ) from error


def free_space(error: OSError, place: Path) -> str:
    """How much is free where something could not be written for want of room; empty for other errors.

    Args:
        error: Why it could not be written.
        place: The file or folder; where it is not there, the folder above it counts.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ""
    for folder in (place, *place.parents):
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            mebibytes = found.f_bavail * found.f_frsize / 2**20
            return f", {mebibytes:.1f} MiB are free in {folder}"
    return ""


@contextlib.contextmanager
def collect_problems(found: list[str]) -> Iterator[None]:
    """Note an error of ours as a sentence and go on after the block."""
    try:
        yield
    except PipelineError as error:
        found.append(str(error))
