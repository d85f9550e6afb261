"""Parse and optimize: the canonical graph, quantized with the calibration set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from assets.build_cache import BuildCache, through
from assets.calibration import parse_sets
from assets.input_gate import gate_for_model
from assets.product import Product, ProductMissingError, Workbench
from assets.toolchain import Built, Toolchain
from assets.weights import read_model
from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.release import ToolchainRecord
from runtime.contract.window import normalize

_FACTS: Final = ("stage", "kind", "suffix", "record")


def keep_built(bench: Workbench, asset: str, built: Built, made_from: Sequence[Product]) -> Product:
    """Keep what a stage made, with the facts by which a later link takes it up again."""
    facts = {**built.facts, "stage": built.stage, "kind": built.kind, "suffix": built.suffix}
    facts["record"] = to_json(built.record).decode()
    return bench.put(asset, {f"encoder{built.suffix}": built.data}, made_from=made_from, facts=facts)


def take_built(bench: Workbench, product: Product) -> Built:
    """Take up what an earlier stage made, verified; of an artifact also what it was compiled from."""
    if missing := [name for name in _FACTS if name not in product.facts]:
        raise ProductMissingError(
            f"does not say its {', '.join(missing)}: an earlier version of this project made it",
            where=product.asset,
            hint=f"materialize {product.asset} again",
        )
    stage, kind, suffix, record = (product.facts[name] for name in _FACTS)
    target, _, link = product.asset.partition("/")
    stand_in = bench.read(bench.ancestor(product, f"{target}/quantized_har")) if link == "hef" else b""
    return Built(
        stage=stage,
        kind=kind,
        suffix=suffix,
        data=bench.read(product),
        record=from_json(ToolchainRecord, record.encode(), f"{product.asset}: record"),
        facts=said_of(product),
        stand_in=stand_in,
    )


def said_of(product: Product) -> dict[str, str]:
    """What the toolchain said about how a product was made."""
    return {name: value for name, value in product.facts.items() if name not in _FACTS}


def make_quantized_har(
    bench: Workbench,
    toolchain: Toolchain,
    *,
    onnx_model: Product,
    calibration_set: Product,
    cache: BuildCache | None = None,
) -> Product:
    """Quantize the canonical graph on the normalized calibration windows.

    Where ``cache`` holds what came of them before, that is taken; the input gate is held all the same.

    Raises:
        CalibrationError: The input gate refuses the windows beside the model's normalization.
        ToolchainError: The toolchain refused the graph or failed.
    """
    # Their normalization shapes the bytes and is no part of the graph: two sets of weights may share one.
    model_weights = bench.ancestor(onnx_model, "model_weights")
    _, trained = read_model(bench, model_weights)
    sets = parse_sets(bench.read_all(calibration_set))
    gate_for_model(sets, trained.statistics, toolchain.target)
    windows = normalize(sets.calibration.windows, trained.statistics)
    graph = bench.read(onnx_model)
    inputs = {"onnx_model": sha256_bytes(graph), "windows": sha256_bytes(windows.tobytes())}
    quantized = through(
        cache, "optimize", toolchain, inputs, lambda: toolchain.optimize(toolchain.parse(graph), windows)
    )
    asset = f"{toolchain.target}/quantized_har"
    return keep_built(bench, asset, quantized, [model_weights, onnx_model, calibration_set])
