"""Compile: the artifact that an engine loads."""

from __future__ import annotations

from assets.build_cache import BuildCache, through
from assets.calibration import parse_sets
from assets.input_limits import check_input_limits
from assets.product import Product, Workbench
from assets.quantized_har import keep_built, take_built
from assets.toolchain import Built, Toolchain
from assets.weights import read_model
from runtime.contract.document import sha256_bytes
from runtime.contract.gate import check_hef
from runtime.contract.window import normalize


def make_hef(
    bench: Workbench, toolchain: Toolchain, *, quantized_har: Product, cache: BuildCache | None = None
) -> Product:
    """Compile the quantized model.

    The artifact is only named ``.hef`` where a Hailo compiler made it; the emulator's ends in
    ``.emulated-int8.onnx``. Where ``cache`` holds it, it is taken from there, and checked all the same.

    Raises:
        ToolchainError: The toolchain failed.
        HefError: For a chip: what the compiler wrote is not the encoder for it.
        InputLimitsError: For a chip: the artifact clips what it was calibrated on.
    """
    quantized = take_built(bench, quantized_har)
    toolchain.check_made(quantized)
    inputs = {"quantized_har": sha256_bytes(quantized.data)}
    compiled = through(
        cache, "compile", toolchain, inputs, lambda: toolchain.compile(quantized), quantized.data
    )
    if toolchain.target != "emulator":
        _check_compiled(bench, toolchain.target, compiled, quantized_har)
    return keep_built(bench, f"{toolchain.target}/hef", compiled, [quantized_har])


def _check_compiled(bench: Workbench, target: str, compiled: Built, quantized_har: Product) -> None:
    where = f"{target}/hef"
    hef = check_hef(compiled.data, target, where)
    sets = parse_sets(bench.read_all(bench.ancestor(quantized_har, "calibration_set")))
    _, trained = read_model(bench, bench.ancestor(quantized_har, "model_weights"))
    check_input_limits(hef, normalize(sets.calibration.windows, trained.statistics), where)
