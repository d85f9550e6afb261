"""Toolchains: parse, optimize, compile, infer. Adapters write the private halves."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from runtime.contract.document import sha256_bytes
from runtime.contract.errors import PipelineError, ToolchainError
from runtime.contract.parity import LayerNoise
from runtime.contract.release import TARGETS, OutputQuantization, ToolchainRecord
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE, FloatArray

if TYPE_CHECKING:
    from assets.toolchain.dfc_process import Listener

HAILO_TARGETS: Final = ("hailo8", "hailo8l")
OTHER_CHIPS: Final = ("hailo8r", "hailo10h", "hailo15h", "hailo15m", "hailo15l")
"""Known by name, and not built for: all but the first take the Dataflow Compiler 5.x and HailoRT 5.x."""
EMULATOR_TOOLS: Final = ("numpy", "onnx", "onnxruntime", "onnxsim")
"""Distributions whose versions shape what the emulator's toolchain makes."""
STAGES: Final = ("parsed", "quantized", "compiled")
_ASSETS: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Built:
    """What one stage made.

    Args:
        stage: One of ``STAGES``.
        kind: What the bytes are, honestly named: ``onnx``, ``emulated-int8``, ``har``, ``hef``.
        suffix: File name suffix that goes with the kind.
        data: The bytes.
        record: Who quantized it, with which versions; None before ``optimize``.
        facts: What a toolchain says about how it was made: its log, its script, what went worse than asked.
            No part of the bytes, nor of their digest.
        stand_in: What ``infer`` runs for it where it cannot run ``data`` itself: the graph that a HAR was
            parsed from, the quantized model that an artifact for a chip was compiled from.
    """

    stage: str
    kind: str
    suffix: str
    data: bytes
    record: ToolchainRecord | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    stand_in: bytes = b""


def source_digest(*patterns: str) -> str:
    """Digest of source files of ``assets``, by which results are told apart that other code made.

    To be called while the toolchain is imported: of the code that runs, not of what is put there later.

    Args:
        patterns: Globs below ``assets/``, each of one file or more.
    """
    lines = []
    for pattern in patterns:
        paths = sorted(_ASSETS.glob(pattern))
        assert paths, pattern
        lines += [f"{path.relative_to(_ASSETS)} {sha256_bytes(path.read_bytes())}" for path in paths]
    return sha256_bytes("\n".join(lines).encode())


class Toolchain(abc.ABC):
    """Hailo's three stages and the emulation of what they made.

    The public methods check stages, shapes and values and let out only our errors; an adapter
    writes the underscored ones.
    """

    target: str
    """The target that the artifacts are for."""
    sources: ClassVar[str]
    """``source_digest`` of the code that makes and checks what this toolchain gives, this module's too."""

    @abc.abstractmethod
    def record(self) -> ToolchainRecord:
        """Id, tool versions and options that shape what this toolchain makes."""

    @abc.abstractmethod
    def output_quantization(self, built: Built) -> OutputQuantization:
        """How the integers of a quantized model's output become latents."""

    @abc.abstractmethod
    def kernel_family(self) -> str:
        """The integer kernels that ``infer`` runs an artifact on: ``cpu.kernel_family``, or a chip."""

    def parse(self, onnx_model: bytes) -> Built:
        """Take the canonical ONNX graph in.

        Raises:
            ToolchainError: The toolchain cannot take the graph; names the node.
        """
        return self._checked("parse", "parsed", lambda: self._parse(onnx_model))

    def optimize(self, parsed: Built, windows: FloatArray) -> Built:
        """Quantize with a calibration set.

        Args:
            parsed: What ``parse`` gave.
            windows: float32 (N, 100, 9), normalized as the graph takes them.

        Raises:
            ToolchainError: Wrong stage, no windows, or the toolchain failed.
        """
        _check_stage(parsed, "parsed")
        _check_windows(windows)
        quantized = self._checked("optimize", "quantized", lambda: self._optimize(parsed, windows))
        quantized = replace(quantized, record=self.record())
        self.check(quantized, "quantized")
        return quantized

    def compile(self, quantized: Built) -> Built:
        """Make the artifact that an engine loads.

        Raises:
            ToolchainError: Wrong stage, quantized by another version or with other options than
                this toolchain's, or the toolchain failed.
        """
        _check_stage(quantized, "quantized")
        self.check_made(quantized)
        compiled = self._checked("compile", "compiled", lambda: self._compile(quantized))
        compiled = replace(compiled, record=quantized.record, stand_in=quantized.data)
        self.check(compiled, "compiled")
        return compiled

    def check(self, built: Built, stage: str) -> None:
        """Hold a result against what this toolchain promises of it here, made just now or kept from before.

        Raises:
            ToolchainError: Of another stage, made by another toolchain, or not what may be used here.
        """
        _check_stage(built, stage)
        self.check_made(built)
        try:
            self._check(built)
        except PipelineError:
            raise
        except Exception as error:
            raise ToolchainError(f"{stage} cannot be checked: {error}", where=self.target) from error

    def check_made(self, built: Built) -> None:
        """Refuse what another toolchain, version or choice of options made.

        Otherwise a release could name tools that had no part in its bytes.

        Raises:
            ToolchainError: The records differ; names both sides of the first difference.
        """
        mine = self.record()
        if built.record != mine:
            raise ToolchainError(
                f"was made by {_difference(built.record, mine)}",
                where=f"{self.target} {built.stage}",
                hint=f"materialize {self.target}/quantized_har again, then what follows it",
            )

    def infer(self, built: Built, windows: FloatArray) -> FloatArray:
        """Run what any stage made.

        Args:
            built: What a stage gave; ``parsed`` is full_precision.
            windows: float32 (N, 100, 9), normalized.

        Returns:
            float32 (N, 64).

        Raises:
            ToolchainError: A result is missing or not finite.
        """
        _check_windows(windows)
        try:
            latents = self._infer(built, windows)
        except PipelineError:
            raise
        except Exception as error:
            raise ToolchainError(f"infer failed: {error}", where=self.target) from error
        _check_latents(latents, len(windows), f"{self.target} {built.stage}")
        return latents

    def contexts(self, quantized: Built, windows: FloatArray) -> dict[str, FloatArray | str]:
        """What else the toolchain can run a quantized model as, beside ``infer``.

        Args:
            quantized: What ``optimize`` made.
            windows: float32 (N, 100, 9), normalized.

        Returns:
            float32 (N, 64) for each of ``parity.TOOLCHAIN_CONTEXTS`` that it has, or why it could not:
            nothing is judged by them.

        Raises:
            ToolchainError: One of them gave something else.
        """
        _check_stage(quantized, "quantized")
        _check_windows(windows)
        try:
            found = self._contexts(quantized, windows)
        except PipelineError:
            raise
        except Exception as error:
            raise ToolchainError(f"contexts failed: {error}", where=self.target) from error
        for name, latents in found.items():
            if not isinstance(latents, str):
                _check_latents(latents, len(windows), f"{self.target} {name}")
        return found

    def layer_noise(self, parsed: Built, quantized: Built, windows: FloatArray) -> LayerNoise | None:
        """Where a quantized model's noise comes from, layer by layer.

        Args:
            parsed: full_precision.
            quantized: What ``optimize`` made of it.
            windows: float32 (N, 100, 9), normalized, not of the calibration set.

        Returns:
            None where the toolchain has no way to tell.

        Raises:
            ToolchainError: The analysis failed.
        """
        _check_stage(parsed, "parsed")
        _check_stage(quantized, "quantized")
        _check_windows(windows)
        try:
            return self._layer_noise(parsed, quantized, windows)
        except PipelineError:
            raise
        except Exception as error:
            raise ToolchainError(f"layer analysis failed: {error}", where=self.target) from error

    def _checked(self, verb: str, stage: str, work: Callable[[], Built]) -> Built:
        try:
            built = work()
        except PipelineError:
            raise
        except Exception as error:
            # Tools raise whatever they like; the family's promise is that only ours get out.
            raise ToolchainError(f"{verb} failed: {error}", where=self.target) from error
        if built.stage != stage or not built.data:
            raise ToolchainError(
                f"{verb} gave stage {built.stage!r} with {len(built.data)} bytes", where=self.target
            )
        return built

    def _contexts(self, quantized: Built, windows: FloatArray) -> dict[str, FloatArray | str]:
        return {}

    @abc.abstractmethod
    def _parse(self, onnx_model: bytes) -> Built: ...

    @abc.abstractmethod
    def _optimize(self, parsed: Built, windows: FloatArray) -> Built: ...

    @abc.abstractmethod
    def _compile(self, quantized: Built) -> Built: ...

    @abc.abstractmethod
    def _check(self, built: Built) -> None: ...

    @abc.abstractmethod
    def _layer_noise(self, parsed: Built, quantized: Built, windows: FloatArray) -> LayerNoise | None: ...

    @abc.abstractmethod
    def _infer(self, built: Built, windows: FloatArray) -> FloatArray: ...


def _difference(found: ToolchainRecord | None, mine: ToolchainRecord) -> str:
    if found is None:
        return "nobody knows whom"
    if found.id != mine.id:
        return f"{found.id}, this is {mine.id}"
    theirs, ours = {**found.tools, **found.options}, {**mine.tools, **mine.options}
    name = next((key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)), "hardware")
    return f"{name} {theirs.get(name)}, here it is {ours.get(name)}"


def _check_stage(built: Built, stage: str) -> None:
    if built.stage != stage:
        raise ToolchainError(f"got a {built.stage} model, expected a {stage} one")


def _check_windows(windows: FloatArray) -> None:
    if windows.ndim != 3 or windows.shape[1:] != WINDOW_SHAPE or windows.dtype != np.float32:
        raise ToolchainError(f"windows are {windows.dtype} {windows.shape}, expected float32 (N, 100, 9)")
    if len(windows) == 0:
        raise ToolchainError("no windows", hint="put windows under calib_data/")
    if not np.isfinite(windows).all():
        raise ToolchainError("a window holds a value that is not finite")


def _check_latents(latents: FloatArray, windows: int, where: str) -> None:
    if latents.shape != (windows, LATENT_SIZE) or not np.isfinite(latents).all():
        raise ToolchainError(
            f"latents of shape {latents.shape}, expected finite {(windows, LATENT_SIZE)}", where=where
        )


def open_toolchain(target: str, *, dfc_python: str = "", listener: Listener | None = None) -> Toolchain:
    """The toolchain that makes artifacts for a target.

    Args:
        target: One of ``TARGETS``.
        dfc_python: The Python that has Hailo's Dataflow Compiler; a target of Hailo's needs it.
        listener: Hears a compiler while it works; without one it is logged.

    Raises:
        ToolchainError: The target is unknown, this version has no toolchain for it, or what it needs is
            missing. Never a stand-in: the emulator is chosen by name or not at all.
    """
    if target == "emulator":
        from assets.toolchain.emulator import EmulatorToolchain

        return EmulatorToolchain()
    if target in HAILO_TARGETS:
        from assets.toolchain.hailo_dfc import HailoDfcToolchain

        return HailoDfcToolchain(target, dfc_python, listener=listener)
    if target in OTHER_CHIPS:
        raise ToolchainError(
            f"{target} is not built for: only {', '.join(HAILO_TARGETS)} are, with the Dataflow Compiler 3.x",
            where="BUILD_TARGETS",
            hint=f"one of {', '.join(TARGETS)}",
        )
    raise ToolchainError(
        f"unknown target {target!r}", where="BUILD_TARGETS", hint=f"one of {', '.join(TARGETS)}"
    )


def parse_targets(text: str) -> Sequence[str]:
    """Targets of a comma-separated setting, in order; ToolchainError names an unknown one."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        raise ToolchainError(
            f"{text!r} names {_strangers(unknown) if unknown else 'no target'}",
            where="BUILD_TARGETS",
            hint=f"a comma-separated choice of {', '.join(TARGETS)}",
        )
    return names


def _strangers(names: Sequence[str]) -> str:
    known = [name for name in names if name in OTHER_CHIPS]
    return (
        "what this version does not build for: " + ", ".join(known)
        if known
        else f"unknown {', '.join(names)}"
    )
