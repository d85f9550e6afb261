"""The release manifest: frozen values, one parser, one digest.

A release is named by the SHA-256 of its manifest's bytes; the manifest names every artifact by
the SHA-256 of its own. What the digest covers depends on the inputs alone: no time, run id, host,
path or duration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import ManifestError, PublicationRefusedError
from runtime.contract.motifs import MotifHead
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

SCHEMA: Final = 1
MANIFEST_NAME: Final = "manifest.json"
TARGETS: Final = ("emulator", "hailo8", "hailo8l")
NUMBER_PROVENANCES: Final = ("measured", "emulated", "estimated")
EMULATED_KIND: Final = "emulated-int8"
"""Kind of the emulator's artifacts, and of nothing else."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
MAX_ARTIFACT_BYTES: Final = 2**30
"""An artifact is read into memory to be verified; a HEF has a few MB."""

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
        kind: What it is: ``emulated-int8``, ``hef``, ``golden-windows``, ``parity-report``.
        sha256: Digest of its bytes.
        size: Bytes, 0 to ``MAX_ARTIFACT_BYTES``.
    """

    name: str
    kind: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name) or self.name == MANIFEST_NAME:
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
        failures: One sentence for each threshold that was missed.
        passed: No failures and at least one threshold.
    """

    artifact_sha256: str
    provenance: str
    windows: int
    metrics: dict[str, float]
    thresholds: dict[str, float]
    failures: tuple[str, ...]
    passed: bool


@dataclass(frozen=True, kw_only=True)
class GoldenRecord:
    """Windows with recorded outputs that travel with the release.

    Args:
        file: Artifact (npz): ``windows`` float32 (N,100,9) in physical units, ``labels`` (N,),
            ``full_precision`` and ``artifact`` float32 (N,64).
        windows: N.
        full_precision_tolerance: Largest absolute difference by which two machines' float
            kernels may differ.
        artifact_tolerance: Largest absolute difference by which an engine may differ from
            ``artifact``; two steps of the quantized output.
    """

    file: str
    windows: int
    full_precision_tolerance: float
    artifact_tolerance: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a Pi needs to know of a release, and everything that it came from.

    Raises:
        ManifestError: A field contradicts the contract or another field; names it.
    """

    schema: int
    target: str
    model: ModelIdentity
    artifact: str
    artifacts: tuple[Artifact, ...]
    input: InputSpec
    output: OutputSpec
    motif_head: MotifHead
    upstream: dict[str, str]
    toolchain: ToolchainRecord
    parity: ParityResult
    golden: GoldenRecord

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {SCHEMA}", where="schema")
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
        if (self.primary.kind == EMULATED_KIND) != emulator:
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
    """Read a manifest; ManifestError names the document, ``where``, and the field that is wrong."""
    return from_json(Manifest, data, where)


def check_publishable(manifest: Manifest) -> None:
    """Let a release out only with a passed parity about this very artifact.

    The verdict is worked out again from the recorded numbers: a report that merely says
    ``passed`` is not believed, and a policy without thresholds refuses.

    Raises:
        PublicationRefusedError: Parity is missing, failed, about other bytes, or was judged by
            nothing.
    """
    parity = manifest.parity
    if parity.artifact_sha256 != manifest.primary.sha256:
        raise PublicationRefusedError(
            f"parity was computed on {parity.artifact_sha256[:12]}, the artifact is "
            f"{manifest.primary.sha256[:12]}",
            where="parity.artifact_sha256",
            hint="materialize parity_report for this artifact",
        )
    missed = missed_thresholds(parity.metrics, parity.thresholds)
    if not parity.passed or missed or parity.failures:
        reasons = "; ".join(dict.fromkeys((*parity.failures, *missed))) or "the report says failed"
        raise PublicationRefusedError(f"parity failed: {reasons}", where="parity")
    if parity.windows < 1:
        raise PublicationRefusedError("parity was judged on no window", where="parity.windows")


def missed_thresholds(metrics: dict[str, float], thresholds: dict[str, float]) -> tuple[str, ...]:
    """One sentence for each threshold that is missed; a missing metric and no policy miss too."""
    if not thresholds:
        return ("the policy has no thresholds",)
    missed = []
    for name, smallest in sorted(thresholds.items()):
        value = metrics.get(name)
        if value is None:
            missed.append(f"{name} was not computed")
        elif not value >= smallest:
            missed.append(f"{name} is {value:.4g}, at least {smallest:.4g} is required")
    return tuple(missed)
