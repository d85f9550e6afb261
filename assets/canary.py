"""The canary: assemble a release from its products, and publish it through the gate."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from assets import policy
from assets.calibration import parse_sets
from assets.onnx_model import check_agreement, source_latents
from assets.parity import REPORT_NAME, ParityEvidence
from assets.product import Product, ProductMixedError, Workbench
from assets.quantized_har import take_built
from assets.toolchain import Toolchain
from assets.weights import TrainedModel, read_model
from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.errors import PublicationRefusedError
from runtime.contract.release import (
    LSB_ELSEWHERE,
    SCHEMA,
    Artifact,
    CalibrationRecord,
    GoldenRecord,
    InputSpec,
    Manifest,
    OutputSpec,
    ToolchainRecord,
)
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.window import normalize

GOLDEN_NAME: Final = "golden.npz"
FULL_PRECISION_TOLERANCE: Final = 1e-4
"""The gate between a source and its ONNX, which two machines' float kernels keep as well."""


def assemble(
    bench: Workbench, toolchain: Toolchain, *, hef: Product, parity_report: Product
) -> tuple[Manifest, dict[str, bytes]]:
    """Put a release together.

    Args:
        bench: Where the products lie.
        toolchain: The one that made the artifact; runs the golden windows.
        hef: The artifact to release.
        parity_report: What judged it.

    Returns:
        The manifest and its artifacts by file name. Equal inputs give equal bytes.

    Raises:
        ProductMixedError: The report is about an artifact with another lineage.
        ToolchainError: The artifact was made by another version than would be recorded.
        OnnxModelError: The graph does not agree with its source on the golden windows.
    """
    artifact = take_built(bench, hef)
    toolchain.check_made(artifact)
    identity, trained = read_model(bench, bench.ancestor(hef, "model_weights"))
    evidence = from_json(ParityEvidence, bench.read(parity_report), REPORT_NAME)
    upstream = bench.ancestry(hef)
    if evidence.upstream != upstream:
        raise ProductMixedError(
            "judged the artifact with other sources than it has now",
            where=parity_report.asset,
            hint=f"materialize {parity_report.asset} again",
        )
    exporter = bench.ancestor(hef, "onnx_model").facts["exporter"]
    golden, record = _golden(bench, toolchain, hef, trained)
    artifact_name = f"{identity.name}-{identity.version}{hef.facts['suffix']}"
    files = {
        artifact_name: artifact.data,
        GOLDEN_NAME: golden,
        REPORT_NAME: bench.read(parity_report),
    }
    kinds = {artifact_name: hef.facts["kind"], GOLDEN_NAME: "golden-windows", REPORT_NAME: "parity-report"}
    manifest = Manifest(
        schema=SCHEMA,
        target=toolchain.target,
        model=identity,
        artifact=artifact_name,
        artifacts=tuple(
            Artifact(name=name, kind=kinds[name], sha256=sha256_bytes(data), size=len(data))
            for name, data in sorted(files.items())
        ),
        input=InputSpec.for_encoder(trained.statistics),
        output=OutputSpec.for_encoder(evidence.result.provenance),
        motif_head=evidence.motif_head,
        upstream={**upstream, hef.asset: hef.digest, parity_report.asset: parity_report.digest},
        calibration=_calibration(bench, hef),
        toolchain=_with_tools(toolchain.record(), exporter, evidence.tools),
        parity=evidence.result,
        golden=record,
    )
    return manifest, files


def _golden(
    bench: Workbench, toolchain: Toolchain, hef: Product, trained: TrainedModel
) -> tuple[bytes, GoldenRecord]:
    """Golden windows with what full_precision and the artifact say to them.

    full_precision is held against the source once more: the golden windows may be newer than the
    export.
    """
    sets = parse_sets(bench.read_all(bench.ancestor(hef, "calibration_set")))
    full_precision = toolchain.parse(bench.read(bench.ancestor(hef, "onnx_model")))
    windows = normalize(sets.golden.windows, trained.statistics)
    artifact = take_built(bench, hef)
    reference = toolchain.infer(full_precision, windows)
    check_agreement(source_latents(trained, windows), reference)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        windows=sets.golden.windows,
        labels=np.asarray(sets.golden.labels),
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


def _calibration(bench: Workbench, hef: Product) -> CalibrationRecord:
    sets = parse_sets(bench.read_all(bench.ancestor(hef, "calibration_set")))
    return CalibrationRecord(
        origin=sets.index.origin,
        windows=len(sets.calibration.windows),
        windows_sha256=sets.calibration.sha256,
        strata=sets.index.sets["calibration"].labels,
    )


def _with_tools(record: ToolchainRecord, exporter: str, more: Mapping[str, str]) -> ToolchainRecord:
    """The toolchain's record with whatever else had a part in the release's numbers."""
    name, _, version = exporter.partition(" ")
    others = {name: version} if version else {}
    return replace(record, tools={**record.tools, **others, **more})


def publish_canary(
    bench: Workbench,
    toolchain: Toolchain,
    store: ReleaseStore,
    *,
    hef: Product,
    parity_report: Product,
    actor: str,
    reason: str,
) -> Release:
    """Assemble, publish and point ``canary`` of the toolchain's target to the release.

    Raises:
        PublicationRefusedError: Parity is missing, failed, about another artifact, or was judged
            by another policy than the committed one.
    """
    manifest, files = assemble(bench, toolchain, hef=hef, parity_report=parity_report)
    if manifest.parity.thresholds != policy.load_policy():
        raise PublicationRefusedError(
            f"parity was judged by {manifest.parity.thresholds}, the policy is {policy.load_policy()}",
            where="parity.thresholds",
            hint=f"materialize {parity_report.asset} again",
        )
    release = store.publish(manifest, files)
    store.point("canary", release, actor=actor, reason=reason)
    return release


def release_product(release: Release, made_from: Sequence[Product]) -> Product:
    """The release as a product, so that its lineage and digest stand beside the others'."""
    artifacts = release.manifest.artifacts
    return Product(
        asset=f"{release.manifest.target}/canary_release",
        digest=release.id,
        files={artifact.name: artifact.sha256 for artifact in artifacts},
        size=sum(artifact.size for artifact in artifacts),
        made_from={product.asset: product.digest for product in made_from},
    )
