"""The release manifest: frozen values, one parser, one digest.

A release is named by the SHA-256 of its manifest's bytes; the manifest names every artifact by
the SHA-256 of its own. What the digest covers depends on the inputs alone: no time, run id, host,
path or duration.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import ManifestError
from runtime.contract.motifs import MotifHead
from runtime.contract.quantization import OutputQuantization as OutputQuantization
from runtime.contract.version import check_minimum_runtime
from runtime.contract.window import (
    CHANNELS,
    GRAPH_INPUT_NAME,
    GRAPH_INPUT_SHAPE,
    GRAPH_OUTPUT_NAME,
    LATENT_SIZE,
    SAMPLING_RATE_HZ,
    UNITS,
    WINDOW_SHAPE,
    ChannelStatistics,
)

SCHEMA: Final = 3
READABLE_SCHEMAS: Final = (1, 2, 3)
FIRST_RUNTIME: Final = "0.1.0"
"""The oldest runtime that reads schema 3, and all that earlier schemas were read by."""
MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.dsse.json"
"""Beside the manifest: who vouches for it. Replaced when keys are; no part of the release's name."""
TARGETS: Final = ("emulator", "hailo8", "hailo8l")
NUMBER_PROVENANCES: Final = ("measured", "emulated", "estimated")
EMULATED_KIND: Final = "emulated-int8"
"""Kind of the emulator's artifacts, and of nothing else."""
FULL_PRECISION_KIND: Final = "full_precision"
"""The ``onnx_model`` itself, for measuring what quantization gains; no gate lets it out."""
ORIGINS: Final = ("captured", "synthetic")
UNKNOWN_ORIGIN: Final = "unknown"
"""Of schema 1, which did not say."""
LSB_ELSEWHERE: Final = 2
"""Steps by which a golden output may differ on another kernel family than the one that recorded it."""
MAX_ARTIFACT_BYTES: Final = 2**30
"""An artifact is read into memory to be verified; a HEF has a few MB."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


def check_digest(value: str, where: str) -> str:
    """Return ``value`` where it is 64 lower-case hexadecimal digits, else raise ManifestError."""
    if not _DIGEST.fullmatch(value):
        raise ManifestError(f"{value!r} is not a SHA-256 in lower-case hexadecimal", where=where)
    return value


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file of a release.

    Args:
        name: File name inside the release directory; no folder, no leading dot.
        kind: What it is: ``emulated-int8``, ``hef``, ``golden-windows``, ``calibration-statistics``, ...
        sha256: Digest of its bytes.
        size: Bytes, 0 to ``MAX_ARTIFACT_BYTES``.
    """

    name: str
    kind: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name) or self.name in (MANIFEST_NAME, SIGNATURE_NAME):
            raise ManifestError(f"{self.name!r} cannot name an artifact", where="artifacts.name")
        check_digest(self.sha256, f"artifacts[{self.name}].sha256")
        if not 0 <= self.size <= MAX_ARTIFACT_BYTES:
            raise ManifestError(
                f"is not within 0 to {MAX_ARTIFACT_BYTES} bytes",
                where=f"artifacts[{self.name}].size",
            )


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which trained model: the folder names of its weights."""

    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the runtime takes, and what the graph takes.

    ``window`` is (time, channel) in ``units``; the engine normalizes it and lays it out as
    ``graph_shape`` (NCHW).
    """

    name: str
    window: tuple[int, ...]
    graph_shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]
    units: dict[str, str]
    sampling_rate_hz: int
    normalization: ChannelStatistics

    @classmethod
    def for_encoder(cls, normalization: ChannelStatistics) -> InputSpec:
        """The only input that this contract's version knows, with the model's own statistics."""
        return cls(
            name=GRAPH_INPUT_NAME,
            window=WINDOW_SHAPE,
            graph_shape=GRAPH_INPUT_SHAPE,
            dtype="float32",
            channels=CHANNELS,
            units=dict(UNITS),
            sampling_rate_hz=SAMPLING_RATE_HZ,
            normalization=normalization,
        )


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """What the artifact gives; ``provenance`` says how its numbers come about."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    provenance: str

    @classmethod
    def for_encoder(cls, provenance: str) -> OutputSpec:
        """The latent, whose numbers are ``measured`` (a device) or ``emulated``."""
        return cls(
            name=GRAPH_OUTPUT_NAME,
            shape=(1, LATENT_SIZE),
            dtype="float32",
            unit="dimensionless",
            provenance=provenance,
        )


@dataclass(frozen=True, kw_only=True)
class ToolchainRecord:
    """Who made the artifact.

    Args:
        id: ``emulator`` or ``hailo-dfc``.
        hardware: Whether the artifact runs on the target's own chip.
        tools: Version of each tool that shaped the bytes.
        options: What was chosen, the emulator's ``integer_path`` for one.
    """

    id: str
    hardware: bool
    tools: dict[str, str]
    options: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Agreement of the artifact with full_precision, and the policy that judged it.

    Args:
        artifact_sha256: Digest of the artifact that was judged.
        provenance: How the artifact's numbers came about.
        windows: How many windows, disjoint from the calibration set.
        metrics: Name to value; a dB, a cosine or a share, as the name says.
        thresholds: Name to smallest accepted value.
        ceilings: Name to largest accepted value; none in schema 1.
        failures: One sentence for each bound that was missed.
        passed: No failures and at least one bound.
    """

    artifact_sha256: str
    provenance: str
    windows: int
    metrics: dict[str, float]
    thresholds: dict[str, float]
    ceilings: dict[str, float]
    failures: tuple[str, ...]
    passed: bool


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The windows that the artifact's ranges come from.

    Args:
        origin: ``captured`` or ``synthetic`` (``unknown`` in schema 1); shown wherever the release is.
        windows: How many.
        windows_sha256: Digest of their values; empty in schema 1.
        strata: Windows in each stratum.
    """

    origin: str
    windows: int
    windows_sha256: str
    strata: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class GoldenRecord:
    """Windows with recorded outputs that travel with the release.

    Args:
        file: Artifact (npz): ``windows`` float32 (N,100,9) in physical units, ``labels`` (N,),
            ``full_precision`` and ``artifact`` float32 (N,64).
        windows: N.
        full_precision_tolerance: Largest absolute difference by which two machines' float
            kernels may differ.
        artifact_tolerance: Largest absolute difference by which an engine on another kernel
            family may differ from ``artifact``; ``LSB_ELSEWHERE`` steps of the quantized output.
        output: How the artifact's output integers become ``artifact``; None in schema 1, whose
            outputs are compared by ``artifact_tolerance`` everywhere.
        kernel_family: The kernels that computed ``artifact`` (``cpu.kernel_family``, or a chip): an
            engine on the same ones must give the same integers. Empty in schema 1.
    """

    file: str
    windows: int
    full_precision_tolerance: float
    artifact_tolerance: float
    output: OutputQuantization | None
    kernel_family: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a Pi needs to know of a release, and everything that it came from.

    ``minimum_runtime`` is the oldest runtime that knows what to do with all of it.

    Raises:
        ManifestError: A field contradicts the contract or another field; names it.
    """

    schema: int
    minimum_runtime: str
    target: str
    model: ModelIdentity
    artifact: str
    artifacts: tuple[Artifact, ...]
    input: InputSpec
    output: OutputSpec
    motif_head: MotifHead
    upstream: dict[str, str]
    calibration: CalibrationRecord
    toolchain: ToolchainRecord
    parity: ParityResult
    golden: GoldenRecord

    def __post_init__(self) -> None:
        _check_schema(self.schema)
        check_minimum_runtime(self.minimum_runtime)
        if self.target not in TARGETS:
            raise ManifestError(f"{self.target!r} is none of {', '.join(TARGETS)}", where="target")
        names = [artifact.name for artifact in self.artifacts]
        if len(set(names)) != len(names):
            raise ManifestError("two artifacts share a name", where="artifacts")
        for field, name in (("artifact", self.artifact), ("golden.file", self.golden.file)):
            if name not in names:
                raise ManifestError(f"{name!r} is not among the artifacts", where=field)
        for name, digest in self.upstream.items():
            check_digest(digest, f"upstream.{name}")
        self._check_specs()

    def _check_specs(self) -> None:
        origins = ORIGINS if self.schema > 1 else (UNKNOWN_ORIGIN,)
        if self.calibration.origin not in origins:
            raise ManifestError(
                f"{self.calibration.origin!r} is none of {', '.join(origins)}", where="calibration.origin"
            )
        if self.schema > 1 and (self.golden.output is None or not self.golden.kernel_family):
            raise ManifestError("does not say which integers and kernels it holds", where="golden")
        expected = InputSpec.for_encoder(self.input.normalization)
        if self.input != expected:
            raise ManifestError("not the window that this contract knows", where="input")
        for field, provenance in (
            ("output.provenance", self.output.provenance),
            ("parity.provenance", self.parity.provenance),
        ):
            if provenance not in NUMBER_PROVENANCES:
                raise ManifestError(f"{provenance!r} is none of {', '.join(NUMBER_PROVENANCES)}", where=field)
        if self.output != OutputSpec.for_encoder(self.output.provenance):
            raise ManifestError("not the latent that this contract knows", where="output")
        self._check_honest()

    def _check_honest(self) -> None:
        """What was emulated is for the target ``emulator``, says so, and is nothing else."""
        emulator = self.target == "emulator"
        if self.toolchain.hardware == emulator:
            raise ManifestError(
                f"hardware is {self.toolchain.hardware}, the target is {self.target}",
                where="toolchain.hardware",
            )
        if (self.primary.kind in (EMULATED_KIND, FULL_PRECISION_KIND)) != emulator:
            raise ManifestError(
                f"kind is {self.primary.kind}, the target is {self.target}",
                where=f"artifacts[{self.artifact}]",
            )
        # An artifact for hardware may have been judged in its compiler's own emulation, and then says that.
        if (self.output.provenance == "emulated") != emulator or (
            emulator and self.parity.provenance != "emulated"
        ):
            raise ManifestError(
                f"numbers are {self.output.provenance}, parity is {self.parity.provenance}, "
                f"the target is {self.target}",
                where="output.provenance",
            )

    def artifact_named(self, name: str) -> Artifact:
        """The artifact of that name; ManifestError where there is none."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise ManifestError(f"no artifact {name!r}", where="artifacts")

    @property
    def primary(self) -> Artifact:
        """The artifact that an engine loads."""
        return self.artifact_named(self.artifact)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes whose digest names the release."""
    return to_json(manifest)


def release_id(data: bytes) -> str:
    """Name of the release with these manifest bytes: 64 hexadecimal digits."""
    return sha256_bytes(data)


def parse_manifest(data: bytes, where: str = MANIFEST_NAME) -> Manifest:
    """Read a manifest of any schema in ``READABLE_SCHEMAS``.

    What an older schema did not say is filled in as not known, never guessed.

    Raises:
        RuntimeTooOldError: A newer runtime is needed; known before anything else is read.
        ManifestError: Names the document, ``where``, and the field that is wrong; or the same content
            would have another id, too, since it is not written as ``manifest_bytes`` writes it.
    """
    manifest = from_json(Manifest, data, where, upgrade=_from_older_schemas)
    if not _is_canonical(data):
        raise ManifestError(
            "is not written canonically: one content has one id", where=where, hint="publish it again"
        )
    return manifest


def _is_canonical(data: bytes) -> bool:
    try:
        return to_json(json.loads(data)) == data
    except ValueError:  # half a character, which no writer writes
        return False


def _check_schema(schema: int) -> None:
    if schema not in READABLE_SCHEMAS:
        raise ManifestError(
            f"schema {schema}, this version reads {', '.join(map(str, READABLE_SCHEMAS))}",
            where="schema",
            hint="a newer version wrote it: update this one",
        )


def _from_older_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """What older schemas did not say yet; documents of this one are left alone."""
    schema, minimum = document.get("schema"), document.get("minimum_runtime")
    if type(minimum) is str:
        # Before the schema, which an older runtime cannot know.
        check_minimum_runtime(minimum)
    if type(schema) is not int:
        return document
    _check_schema(schema)
    upgraded = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    nothing = {"origin": UNKNOWN_ORIGIN, "windows": 0, "windows_sha256": "", "strata": {}}
    added: list[tuple[int, Any, dict[str, Any]]] = [
        (1, upgraded, {"calibration": nothing}),
        (1, upgraded.get("parity"), {"ceilings": {}}),
        (1, upgraded.get("golden"), {"output": None, "kernel_family": ""}),
        (2, upgraded, {"minimum_runtime": FIRST_RUNTIME}),
    ]
    for last, place, fields in added:
        if schema <= last and isinstance(place, dict):
            if claimed := fields.keys() & place.keys():
                raise ManifestError(f"unknown key {min(claimed)!r} in schema {schema}")
            place |= fields
    return upgraded
