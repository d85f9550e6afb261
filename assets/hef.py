"""Compile: the artifact that an engine loads."""

from __future__ import annotations

from assets.product import Product, Workbench
from assets.quantized_har import keep_built, take_built
from assets.toolchain import Toolchain


def make_hef(bench: Workbench, toolchain: Toolchain, *, quantized_har: Product) -> Product:
    """Compile the quantized model.

    The artifact is only named ``.hef`` where a Hailo compiler made it; the emulator's ends in
    ``.emulated-int8.onnx``.

    Raises:
        ToolchainError: The toolchain failed.
    """
    compiled = toolchain.compile(take_built(bench, quantized_har))
    return keep_built(bench, f"{toolchain.target}/hef", compiled, [quantized_har])
