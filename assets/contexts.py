"""The contexts whose numbers are compared, each run on the same windows."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from assets.metrics import ParityError, context_metrics
from assets.onnx_model import source_latents
from assets.toolchain import Built, Toolchain
from assets.weights import TrainedModel
from runtime.contract.errors import PipelineError
from runtime.contract.parity import ContextResult
from runtime.contract.release import (
    LSB_ELSEWHERE,
    MANIFEST_NAME,
    Manifest,
    ToolchainRecord,
    manifest_bytes,
    release_id,
)
from runtime.contract.window import LATENT_SIZE, FloatArray, normalize

ENGINE_SECONDS: Final = 1800.0
_ROOT: Final = Path(__file__).resolve().parent.parent


class EngineRunError(PipelineError):
    """The engine of an artifact's target could not run it, in a process of its own."""

    code = "engine_run"


class NoEngineHereError(EngineRunError):
    """Nothing on this machine runs artifacts of the target, which says nothing about this artifact."""

    code = "no_engine_here"


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """What each context said.

    Args:
        results: One for each of ``parity.CONTEXTS``, in that order, and those that the toolchain has besides.
        reference: float32 (N, 64), full_precision.
        found: float32 (N, 64), the judged context.
        judged: Its name.
        provenance: How its numbers came about.
    """

    results: tuple[ContextResult, ...]
    reference: FloatArray
    found: FloatArray
    judged: str
    provenance: str


def run_contexts(
    toolchain: Toolchain,
    trained: TrainedModel,
    stages: Mapping[str, Built],
    candidate: tuple[Manifest, Mapping[str, bytes]],
    windows: FloatArray,
) -> Contexts:
    """Run every context that can run here; one that cannot says why.

    Judged is the compiled artifact as its engine runs it. Where the target is hardware and there is no
    device here, it is the toolchain's own emulation, and the numbers say ``emulated``. A device that is
    here and fails is a failure: its emulation never stands in for it.

    Args:
        toolchain: The one that made the artifact.
        trained: The weights as they came.
        stages: ``parsed``, ``quantized`` and ``compiled``.
        candidate: A release of the artifact that nobody has judged yet.
        windows: float32 (N, 100, 9), physical units.

    Raises:
        ToolchainError: A context that must run failed.
        EngineRunError: The engine failed on the artifact, or there is none for a target that needs no
            device.
        ParityError: The engine says something else than the emulation of the same artifact.
    """
    normalized = normalize(windows, trained.statistics)
    reference = toolchain.infer(stages["parsed"], normalized)
    tool = toolchain.record()
    ran_by = _toolchain(tool)
    results = [_source(trained, normalized, reference), _ran("full_precision", "measured", _runtime())]
    for name, latents in toolchain.contexts(stages["quantized"], normalized).items():
        if isinstance(latents, str):
            results.append(_not_run(name, latents))
        else:
            results.append(_ran(name, "emulated", ran_by, context_metrics(reference, latents)))
    emulated = toolchain.infer(stages["quantized"], normalized)
    results.append(_ran("emulator", "emulated", ran_by, context_metrics(reference, emulated)))
    engine = _artifact(toolchain, candidate, windows)
    if isinstance(engine, str):
        results += [_not_run("artifact", engine), _not_run("hardware", engine)]
        return Contexts(
            results=tuple(results),
            reference=reference,
            found=emulated,
            judged="emulator",
            provenance="emulated",
        )
    found, ran_by = engine
    provenance = candidate[0].output.provenance
    metrics = context_metrics(reference, found)
    metrics["lsb_from_emulator"] = _steps_apart(toolchain, stages["compiled"], emulated, found)
    results.append(_ran("artifact", provenance, ran_by, metrics))
    if tool.hardware:
        results.append(_ran("hardware", "measured", ran_by, metrics))
    else:
        results.append(_not_run("hardware", "the target is the emulator: nothing of it runs on a device"))
    return Contexts(
        results=tuple(results), reference=reference, found=found, judged="artifact", provenance=provenance
    )


def _source(trained: TrainedModel, normalized: FloatArray, reference: FloatArray) -> ContextResult:
    torch = f"torch {metadata.version('torch').split('+')[0]}"
    tool = torch if trained.source == "checkpoint" else _runtime()
    said = source_latents(trained, normalized)
    return _ran("source", "measured", f"{tool}: {trained.weights_file}", context_metrics(reference, said))


def _runtime() -> str:
    return f"onnxruntime {metadata.version('onnxruntime')}"


def _toolchain(tool: ToolchainRecord) -> str:
    """Who runs what a toolchain's stages made: itself, or the onnxruntime that it is made of."""
    if tool.id in tool.tools:
        return f"{tool.id} {tool.tools[tool.id]}"
    return f"{tool.id} toolchain, {_runtime()}" if "onnxruntime" in tool.tools else f"{tool.id} toolchain"


def _ran(name: str, provenance: str, ran_by: str, metrics: dict[str, float] | None = None) -> ContextResult:
    return ContextResult(
        name=name, provenance=provenance, ran_by=ran_by, not_run="", metrics=dict(metrics or {})
    )


def _not_run(name: str, reason: str) -> ContextResult:
    return ContextResult(name=name, provenance="", ran_by="", not_run=reason, metrics={})


def _artifact(
    toolchain: Toolchain, candidate: tuple[Manifest, Mapping[str, bytes]], windows: FloatArray
) -> tuple[FloatArray, str] | str:
    """Latents and who ran them; or why nobody can here, which only hardware may answer."""
    try:
        return run_as_engine(*candidate, windows)
    except NoEngineHereError as error:
        if not toolchain.record().hardware:
            raise
        return error.what


def _steps_apart(toolchain: Toolchain, compiled: Built, emulated: FloatArray, found: FloatArray) -> float:
    """Largest difference between engine and emulation, in steps (LSB) of the output."""
    output = toolchain.output_quantization(compiled)
    apart = float(np.abs(output.integers(found) - output.integers(emulated)).max())
    if apart > LSB_ELSEWHERE and not toolchain.record().hardware:
        raise ParityError(
            f"the engine is {apart:.0f} steps away from the emulation of the same artifact",
            where=compiled.kind,
            hint=f"at most {LSB_ELSEWHERE} are allowed: engine and toolchain run different kernels",
        )
    return apart


def run_as_engine(
    manifest: Manifest, files: Mapping[str, bytes], windows: FloatArray
) -> tuple[FloatArray, str]:
    """Run an artifact the way the Pi will: ``releasectl selftest``, in a process of its own.

    Args:
        manifest: A release, which need not have been judged yet.
        files: Its artifacts by name.
        windows: float32 (N, 100, 9), physical units.

    Returns:
        float32 (N, 64), and which engine ran it on which kernels.

    Raises:
        NoEngineHereError: Nothing here runs artifacts of the release's target.
        EngineRunError: The engine failed, or does not repeat the golden windows; in its own words.
    """
    with tempfile.TemporaryDirectory(prefix="selftest-") as place:
        data = manifest_bytes(manifest)
        directory = Path(place, release_id(data))
        directory.mkdir()
        for name, content in {**files, MANIFEST_NAME: data}.items():
            (directory / name).write_bytes(content)
        asked, told = Path(place, "windows.npz"), Path(place, "latents.npz")
        np.savez(asked, windows=windows)
        command = [sys.executable, "-m", "runtime.cli", "selftest", str(directory), "--json"]
        command += ["--windows", str(asked), "--latents", str(told)]
        try:
            run = subprocess.run(
                command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=ENGINE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineRunError(f"the self-test did not end: {error}", where=manifest.artifact) from error
        report = _report(run.stdout)
        if no_engine := report.get("no_engine"):
            raise NoEngineHereError(str(no_engine), where=manifest.artifact)
        if run.returncode != 0 or report.get("ok") is not True:
            raise EngineRunError(
                f"the self-test failed: {_reason(report, run.stderr)}",
                where=manifest.artifact,
                hint=f"exit status {run.returncode} of releasectl selftest",
            )
        with np.load(told, allow_pickle=False) as archive:
            latents: FloatArray = archive["latents"]
    if latents.shape != (len(windows), LATENT_SIZE) or latents.dtype != np.float32:
        raise EngineRunError(
            f"the self-test gave {latents.dtype} {latents.shape} for {len(windows)} windows",
            where=manifest.artifact,
        )
    kernels = report["golden"]["kernel_family"]
    return latents, f"releasectl selftest: {report['engine']} on {kernels}"


def _reason(report: dict[str, Any], errors: str) -> str:
    """Why a self-test failed, in its own words."""
    problems = report.get("problems") or [report.get("message") or errors.strip()[-500:] or "no reason given"]
    return "; ".join(map(str, problems))


def _report(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
