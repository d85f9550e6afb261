"""Parse and optimize: the canonical graph, quantized with the calibration set."""

from __future__ import annotations

from collections.abc import Iterable

from assets.calibration import parse_sets
from assets.product import Product, Workbench
from assets.toolchain import Built, Toolchain
from assets.weights import parse_model
from runtime.contract.window import normalize


def keep_built(
    bench: Workbench, asset: str, built: Built, made_from: Iterable[Product], name: str
) -> Product:
    """Keep what a stage made; its facts let a later link take it up again."""
    facts = {"stage": built.stage, "kind": built.kind, "suffix": built.suffix, **built.options}
    return bench.put(asset, {f"{name}{built.suffix}": built.data}, made_from=made_from, facts=facts)


def take_built(bench: Workbench, product: Product) -> Built:
    """Take up what an earlier stage made, verified."""
    facts = dict(product.facts)
    stage, kind, suffix = (facts.pop(key) for key in ("stage", "kind", "suffix"))
    return Built(stage=stage, kind=kind, suffix=suffix, data=bench.read(product), options=facts)


def make_quantized_har(
    bench: Workbench,
    toolchain: Toolchain,
    *,
    model_weights: Product,
    onnx_model: Product,
    calibration_set: Product,
) -> Product:
    """Quantize the canonical graph on the normalized calibration windows.

    Raises:
        ToolchainError: The toolchain refused the graph or failed.
    """
    trained = parse_model({name: bench.read(model_weights, name) for name in model_weights.files})
    sets = parse_sets({name: bench.read(calibration_set, name) for name in calibration_set.files})
    windows = normalize(sets.calibration.windows, trained.statistics)
    quantized = toolchain.optimize(toolchain.parse(bench.read(onnx_model)), windows)
    made_from = (model_weights, onnx_model, calibration_set)
    asset = f"{toolchain.target}/quantized_har"
    return keep_built(bench, asset, quantized, made_from, model_weights.facts["model"])
