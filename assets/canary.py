"""The canary: assemble a release from its products, and publish it through the gate."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from assets.calibration import WindowSets, parse_sets
from assets.parity import REPORT_NAME, ParityEvidence
from assets.product import Product, Workbench, check_lineage
from assets.quantized_har import take_built
from assets.toolchain import Toolchain
from assets.weights import parse_model
from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.release import (
    SCHEMA,
    Artifact,
    GoldenRecord,
    InputSpec,
    Manifest,
    ModelIdentity,
    OutputSpec,
)
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.window import ChannelStatistics, normalize

GOLDEN_NAME: Final = "golden.npz"
FULL_PRECISION_TOLERANCE: Final = 1e-4
"""The gate between a source and its ONNX, which two machines' float kernels keep as well."""


def assemble(
    bench: Workbench, toolchain: Toolchain, products: Mapping[str, Product]
) -> tuple[Manifest, dict[str, bytes]]:
    """Put a release together.

    Args:
        bench: Where the products lie.
        toolchain: The one that made the artifact; runs the golden windows.
        products: ``model_weights``, ``onnx_model``, ``calibration_set``, ``quantized_har``,
            ``hef`` and ``parity_report`` by these names.

    Returns:
        The manifest and its artifacts by file name. Equal inputs give equal bytes.

    Raises:
        ProductMixedError: The products were not made from one another.
    """
    check_lineage(*products.values())
    weights, hef = products["model_weights"], products["hef"]
    trained = parse_model({name: bench.read(weights, name) for name in weights.files})
    evidence = from_json(ParityEvidence, bench.read(products["parity_report"]), REPORT_NAME)
    golden, record = _golden(bench, toolchain, products, trained.statistics)
    artifact_name = _artifact_name(hef, weights)
    files = {
        artifact_name: bench.read(hef),
        GOLDEN_NAME: golden,
        REPORT_NAME: bench.read(products["parity_report"]),
    }
    kinds = {artifact_name: hef.facts["kind"], GOLDEN_NAME: "golden-windows", REPORT_NAME: "parity-report"}
    manifest = Manifest(
        schema=SCHEMA,
        target=toolchain.target,
        model=ModelIdentity(name=weights.facts["model"], version=weights.facts["version"]),
        artifact=artifact_name,
        artifacts=tuple(
            Artifact(name=name, kind=kinds[name], sha256=sha256_bytes(data), size=len(data))
            for name, data in sorted(files.items())
        ),
        input=InputSpec.for_encoder(trained.statistics),
        output=OutputSpec.for_encoder(evidence.result.provenance),
        motif_head=evidence.motif_head,
        upstream={name: product.digest for name, product in products.items()},
        toolchain=toolchain.record(),
        parity=evidence.result,
        golden=record,
    )
    return manifest, files


def _artifact_name(hef: Product, weights: Product) -> str:
    return f"{weights.facts['model']}-{weights.facts['version']}{hef.facts['suffix']}"


def _golden(
    bench: Workbench, toolchain: Toolchain, products: Mapping[str, Product], statistics: ChannelStatistics
) -> tuple[bytes, GoldenRecord]:
    """Golden windows with what full_precision and the artifact say to them."""
    calibration = products["calibration_set"]
    sets: WindowSets = parse_sets({name: bench.read(calibration, name) for name in calibration.files})
    windows = normalize(sets.golden.windows, statistics)
    artifact = take_built(bench, products["hef"])
    buffer = io.BytesIO()
    np.savez(
        buffer,
        windows=sets.golden.windows,
        labels=np.asarray(sets.golden.labels),
        full_precision=toolchain.infer(toolchain.parse(bench.read(products["onnx_model"])), windows),
        artifact=toolchain.infer(artifact, windows),
    )
    record = GoldenRecord(
        file=GOLDEN_NAME,
        windows=len(windows),
        full_precision_tolerance=FULL_PRECISION_TOLERANCE,
        artifact_tolerance=2 * toolchain.output_step(artifact),
    )
    return buffer.getvalue(), record


def publish_canary(
    bench: Workbench,
    toolchain: Toolchain,
    store: ReleaseStore,
    products: Mapping[str, Product],
    *,
    actor: str,
    reason: str,
) -> Release:
    """Assemble, publish and point ``canary`` of the toolchain's target to the release.

    Raises:
        PublicationRefusedError: Parity is missing, failed or about another artifact.
    """
    manifest, files = assemble(bench, toolchain, products)
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
