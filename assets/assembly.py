"""Put a release together: its manifest and its files, judged or not yet."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from assets.calibration import WindowSet, WindowSets
from assets.onnx_model import check_agreement, source_latents
from assets.onnx_run import run_graph
from assets.product import Product, Workbench
from assets.quantized_har import take_built
from assets.toolchain import Built, Toolchain
from assets.weights import TrainedModel, read_model
from runtime.contract.calibration_statistics import FILE_NAME, KIND, measure_calibration
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.motifs import MotifHead
from runtime.contract.parity import REPORT_NAME
from runtime.contract.release import (
    FIRST_RUNTIME,
    LSB_ELSEWHERE,
    SCHEMA,
    Artifact,
    CalibrationRecord,
    GoldenRecord,
    InputSpec,
    Manifest,
    OutputSpec,
    ParityResult,
    ToolchainRecord,
)
from runtime.contract.window import normalize

GOLDEN_NAME: Final = "golden.npz"
FULL_PRECISION_TOLERANCE: Final = 1e-4
"""The gate between a source and its ONNX, which two machines' float kernels keep as well."""
NOT_JUDGED: Final = "not judged yet"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What parity adds to a release.

    Args:
        result: Metrics, bounds and verdict.
        motif_head: The head that was judged.
        report: Bytes of ``parity.json``; None before there is one.
        tools: Versions of what fitted the head.
    """

    result: ParityResult
    motif_head: MotifHead
    report: bytes | None
    tools: Mapping[str, str]


def unjudged(hef: Product, motif_head: MotifHead, provenance: str) -> Verdict:
    """The verdict of a candidate that is only run: no store takes it."""
    result = ParityResult(
        artifact_sha256=hef.digest,
        provenance=provenance,
        windows=0,
        metrics={},
        thresholds={},
        ceilings={},
        failures=(NOT_JUDGED,),
        passed=False,
    )
    return Verdict(result=result, motif_head=motif_head, report=None, tools={})


def put_together(
    bench: Workbench,
    toolchain: Toolchain,
    verdict: Verdict,
    *,
    hef: Product,
    sets: WindowSets,
    upstream: Mapping[str, str],
) -> tuple[Manifest, dict[str, bytes]]:
    """Make the manifest and collect the files.

    Args:
        bench: Where the products lie.
        toolchain: The one that made the artifact; runs the golden windows.
        verdict: What parity says, or ``unjudged``.
        hef: The artifact.
        sets: The windows of its ``calibration_set``.
        upstream: Asset key to digest of everything that the release is made from.

    Returns:
        The manifest and its artifacts by file name. Equal inputs give equal bytes.

    Raises:
        ToolchainError: The artifact was made by another version than would be recorded.
        OnnxModelError: The graph does not agree with its source on the golden windows.
    """
    artifact = take_built(bench, hef)
    toolchain.check_made(artifact)
    identity, trained = read_model(bench, bench.ancestor(hef, "model_weights"))
    onnx_model = bench.ancestor(hef, "onnx_model")
    graph = bench.read(onnx_model)
    golden, record = _golden(toolchain, toolchain.parse(graph), artifact, trained, sets.golden)
    name = f"{identity.name}-{identity.version}{hef.facts['suffix']}"
    files = {name: (hef.facts["kind"], artifact.data), GOLDEN_NAME: ("golden-windows", golden)}
    if verdict.report is not None:
        files[REPORT_NAME] = ("parity-report", verdict.report)
        files[FILE_NAME] = (KIND, _calibration_statistics(graph, trained, sets.calibration, record))
    manifest = Manifest(
        schema=SCHEMA,
        minimum_runtime=FIRST_RUNTIME,
        target=toolchain.target,
        model=identity,
        artifact=name,
        artifacts=tuple(
            Artifact(name=file, kind=kind, sha256=sha256_bytes(data), size=len(data))
            for file, (kind, data) in sorted(files.items())
        ),
        input=InputSpec.for_encoder(trained.statistics),
        # What a chip will give is measured there, however the artifact was judged here.
        output=OutputSpec.for_encoder("measured" if toolchain.record().hardware else "emulated"),
        motif_head=verdict.motif_head,
        upstream=dict(upstream),
        calibration=_calibration(sets),
        toolchain=_with_tools(toolchain.record(), onnx_model.facts["exporter"], verdict.tools),
        parity=verdict.result,
        golden=record,
    )
    return manifest, {file: data for file, (_, data) in files.items()}


def _golden(
    toolchain: Toolchain, full_precision: Built, artifact: Built, trained: TrainedModel, golden: WindowSet
) -> tuple[bytes, GoldenRecord]:
    """Golden windows with what full_precision and the artifact say to them.

    full_precision is held against the source once more: the golden windows may be newer than the
    export.
    """
    windows = normalize(golden.windows, trained.statistics)
    reference = toolchain.infer(full_precision, windows)
    check_agreement(source_latents(trained, windows), reference)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        windows=golden.windows,
        labels=np.asarray(golden.labels),
        strata=np.asarray(golden.strata),
        full_precision=reference,
        artifact=toolchain.infer(artifact, windows),
    )
    output = toolchain.output_quantization(artifact)
    record = GoldenRecord(
        file=GOLDEN_NAME,
        windows=len(windows),
        full_precision_tolerance=FULL_PRECISION_TOLERANCE,
        artifact_tolerance=LSB_ELSEWHERE * output.scale,
        output=output,
        kernel_family=toolchain.kernel_family(),
    )
    return buffer.getvalue(), record


def _calibration_statistics(
    graph: bytes, trained: TrainedModel, calibration: WindowSet, golden: GoldenRecord
) -> bytes:
    """What runtimes hold their windows against; by one float runtime for every target, so that none waits
    for its compiler's emulation of a thousand windows."""
    assert golden.output is not None, "whatever is built has a quantized output"
    windows = normalize(calibration.windows, trained.statistics)
    statistics = measure_calibration(
        windows,
        run_graph(graph, windows),
        latent_step=golden.output.scale,
        windows_sha256=calibration.sha256,
    )
    return to_json(statistics)


def _calibration(sets: WindowSets) -> CalibrationRecord:
    return CalibrationRecord(
        origin=sets.index.origin,
        windows=len(sets.calibration.windows),
        windows_sha256=sets.calibration.sha256,
        strata=sets.index.sets["calibration"].strata,
    )


def _with_tools(record: ToolchainRecord, exporter: str, more: Mapping[str, str]) -> ToolchainRecord:
    """The toolchain's record with whatever else had a part in the release's numbers."""
    name, _, version = exporter.partition(" ")
    others = {name: version} if version else {}
    return replace(record, tools={**record.tools, **others, **more})
