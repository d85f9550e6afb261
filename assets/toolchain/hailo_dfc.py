"""Hailo's Dataflow Compiler as a toolchain, for the targets ``hailo8`` and ``hailo8l``.

Nothing of it was ever run with the real compiler: calls, shapes and messages are those that other people's
published work shows. What the compiler gives is therefore held against what we know by other means: its float
model against the canonical graph right after parsing, its HEF against what was asked for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from assets.metrics import context_metrics
from assets.onnx_run import run_graph
from assets.toolchain import HAILO_TARGETS, Built, Toolchain, dfc_errors, source_digest
from assets.toolchain.dfc_artifact import check_compiled, output_of
from assets.toolchain.dfc_config import DfcConfig, load_config, model_script, recorded
from assets.toolchain.dfc_errors import (
    DfcDegradedError,
    DfcError,
    DfcOutputError,
    DfcUnsupportedError,
    DfcVersionError,
)
from assets.toolchain.dfc_log import UNKNOWN, as_text, check_accepted, degradations
from assets.toolchain.dfc_process import Answer, DfcInterpreter, Listener, shortened
from assets.toolchain.onnx_check import check_graph
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import ToolchainError
from runtime.contract.parity import TOOLCHAIN_CONTEXTS, LayerNoise
from runtime.contract.release import OutputQuantization, ToolchainRecord
from runtime.contract.window import GRAPH_INPUT_NAME, GRAPH_INPUT_SHAPE, WINDOW_SHAPE, FloatArray

ID: Final = "hailo-dfc"
SUPPORTED: Final = ("3.30", "3.31", "3.32", "3.33")
"""Lines of the DFC whose HEF the supported HailoRT lines read, and whose calls are the ones made here."""
QUANTIZED: Final = "SDK_QUANTIZED"
LEAST_NATIVE_DB: Final = 60.0
"""SQNR of the DFC's float model beside the canonical graph: other kernels' order of sums costs no more than
leaves 100 dB."""
_TRIAL_WINDOWS: Final = 4


class HailoDfcToolchain(Toolchain):
    """The DFC in its own Python; there is no device here, so ``infer`` runs what the DFC emulates.

    ``parsed`` runs as the canonical graph on ONNX Runtime, ``quantized`` as the DFC's ``SDK_QUANTIZED``, and
    ``compiled`` as ``SDK_QUANTIZED`` of the very HAR that it was compiled from. That emulation is not
    bit-exact with the chip (Hailo says so), hence a kernel family of its own.

    Args:
        target: One of ``HAILO_TARGETS``.
        python: The Python that has the DFC.
        config: What is asked of it; the committed one where none is given.
        supported: Versions, or their beginnings, that are accepted.
        listener: Hears the DFC while it works.

    Raises:
        DfcMissingError: No Python is named.
    """

    sources = source_digest(
        "toolchain/__init__.py",
        "toolchain/hailo_dfc.py",
        "toolchain/dfc_*.py",
        "toolchain/onnx_check.py",
        "onnx_run.py",
        "metrics.py",
    )

    def __init__(
        self,
        target: str,
        python: str,
        *,
        config: DfcConfig | None = None,
        supported: Sequence[str] | None = None,
        listener: Listener | None = None,
    ) -> None:
        if target not in HAILO_TARGETS:
            raise ToolchainError(f"{target} is none of {', '.join(HAILO_TARGETS)}", where="BUILD_TARGETS")
        if not python:
            raise dfc_errors.python_missing(target)
        self.target = target
        self.config = config or load_config()
        self.supported = SUPPORTED if supported is None else tuple(supported)
        # Not resolved: a link is what makes a venv's Python its own.
        path = Path(python).expanduser()
        self.interpreter = DfcInterpreter(str(path.absolute() if os.sep in python else path), listener)
        self._versions: dict[str, str] | None = None
        self._parsed: dict[str, Built] = {}
        self._latents: dict[tuple[str, str, str], FloatArray] = {}

    def record(self) -> ToolchainRecord:
        """Versions as the DFC's Python tells them, asked once; the configuration and its script's digest."""
        told = self.versions()
        tools = {ID: told["dfc"]}
        tools |= {name: version for name, version in told.items() if name in ("python", "tensorflow")}
        return ToolchainRecord(id=ID, hardware=True, tools=tools, options=recorded(self.config, self.target))

    def versions(self) -> dict[str, str]:
        """What the DFC's Python says of itself.

        Raises:
            DfcError: It cannot be asked, or is a version that this was not written for.
        """
        if self._versions is None:
            told = self.interpreter.ask("versions", seconds=self.config.seconds["versions"]).facts
            check_version(told.get("dfc", ""), self.target, self.supported)
            self._versions = told
        return self._versions

    def output_quantization(self, built: Built) -> OutputQuantization:
        """Scale and zero point of the HEF's one output."""
        return output_of(built)

    def kernel_family(self) -> str:
        """The DFC's emulation of the chip: what a device gives need not be the same integers."""
        return f"{self.target} emulated by {ID}"

    def _parse(self, onnx_model: bytes) -> Built:
        key = sha256_bytes(onnx_model)
        if key not in self._parsed:
            unusual = check_graph(onnx_model)
            trial = _trial_windows()
            options = [
                "encoder.onnx",
                "--input",
                GRAPH_INPUT_NAME,
                "--har",
                "parsed.har",
                "--out",
                "trial.npz",
            ]
            options += ["--shape", ",".join(map(str, GRAPH_INPUT_SHAPE)), "--windows", "windows.npy"]
            inputs = {"encoder.onnx": onnx_model, "windows.npy": _windows_file(trial)}
            answer = self._ask("parse", options, inputs, ["parsed.har", "trial.npz"])
            (native,) = _latents_file(answer.files["trial.npz"], ["SDK_NATIVE"], len(trial))
            _check_native(run_graph(onnx_model, trial), native)
            facts = {**_said(answer), "unusual": "; ".join(unusual) or "nothing"}
            data = answer.files["parsed.har"]
            self._parsed[key] = Built(
                stage="parsed", kind="har", suffix=".har", data=data, facts=facts, stand_in=onnx_model
            )
        return self._parsed[key]

    def _optimize(self, parsed: Built, windows: FloatArray) -> Built:
        config, script = self.config, model_script(self.config)
        if len(windows) < config.calibration_windows:
            raise DfcDegradedError(
                f"{len(windows)} calibration windows, {config.calibration_windows} are asked for",
                where="assets/toolchain/dfc_config.json: calibration_windows",
                hint="capture more, or ask for fewer and accept `few_calibration_windows`",
            )
        # Known before, so refused before: what follows takes hours.
        check_accepted(degradations((), config, windows=len(windows)), config)
        options = [
            "parsed.har",
            "--script",
            "encoder.alls",
            "--windows",
            "windows.npy",
            "--har",
            "quantized.har",
        ]
        inputs = {
            "parsed.har": parsed.data,
            "encoder.alls": script.encode(),
            "windows.npy": _windows_file(windows),
        }
        watching = _Watching(self.interpreter.listener, config)
        answer = self._ask("optimize", options, inputs, ["quantized.har"], watching)
        gpus = answer.facts.get("gpus", UNKNOWN)
        found = degradations(answer.log, config, gpus=gpus, windows=len(windows))
        self.interpreter.listener.fact("optimize", "degradations", as_text(found))
        check_accepted(found, config)
        facts = {**parsed.facts, **_said(answer), "script": script, "degradations": as_text(found)}
        facts["log"] = _joined(parsed, answer)
        return Built(
            stage="quantized", kind="har", suffix=".har", data=answer.files["quantized.har"], facts=facts
        )

    def _compile(self, quantized: Built) -> Built:
        answer = self._ask(
            "compile",
            ["quantized.har", "--hef", "encoder.hef"],
            {"quantized.har": quantized.data},
            ["encoder.hef"],
        )
        data = answer.files["encoder.hef"]
        streams = check_compiled(data, self.target, self.versions()["dfc"])
        facts = {**quantized.facts, **_said(answer), **streams, "log": _joined(quantized, answer)}
        return Built(stage="compiled", kind="hef", suffix=".hef", data=data, facts=facts)

    def _check(self, built: Built) -> None:
        if built.stage == "compiled":
            check_compiled(built.data, self.target, self.versions()["dfc"])

    def _infer(self, built: Built, windows: FloatArray) -> FloatArray:
        if built.stage == "parsed":
            return run_graph(built.stand_in, windows)
        har = built.data if built.stage == "quantized" else built.stand_in
        if not har:
            raise ToolchainError(
                "does not say from which HAR it was compiled, and there is no device here",
                where=f"{self.target} {built.stage}",
                hint=f"materialize {self.target}/hef again",
            )
        return self._run(har, [QUANTIZED], windows)[0]

    def _contexts(self, quantized: Built, windows: FloatArray) -> dict[str, FloatArray | str]:
        names = list(TOOLCHAIN_CONTEXTS)
        try:
            *found, _ = self._run(quantized.data, [*(name.upper() for name in names), QUANTIZED], windows)
        except DfcError as error:
            # Whether a quantized HAR still runs as float depends on the version, and nothing is judged by it.
            return dict.fromkeys(names, error.what)
        return dict(zip(names, found, strict=True))

    def _layer_noise(self, parsed: Built, quantized: Built, windows: FloatArray) -> LayerNoise | None:
        """None: the DFC has an analysis of its own, whose result nobody here has seen."""
        return None

    def _run(self, har: bytes, contexts: Sequence[str], windows: FloatArray) -> list[FloatArray]:
        """Latents of each context; one start of the DFC for all, and none for what it said before."""
        subject = (sha256_bytes(har), sha256_bytes(windows.tobytes()))
        wanted = [name for name in contexts if (*subject, name) not in self._latents]
        if wanted:
            options = ["model.har", "--windows", "windows.npy", "--out", "latents.npz"]
            options += [word for name in wanted for word in ("--context", name)]
            inputs = {"model.har": har, "windows.npy": _windows_file(windows)}
            answer = self._ask("infer", options, inputs, ["latents.npz"])
            found = _latents_file(answer.files["latents.npz"], wanted, len(windows))
            self._latents |= {(*subject, name): each for name, each in zip(wanted, found, strict=True)}
        return [self._latents[(*subject, name)] for name in contexts]

    def _ask(
        self,
        verb: str,
        options: Sequence[str],
        inputs: Mapping[str, bytes],
        outputs: Sequence[str],
        listener: Listener | None = None,
    ) -> Answer:
        version = self.versions()["dfc"]
        answer = self.interpreter.ask(
            verb,
            [*options, "--hw-arch", self.target],
            inputs=inputs,
            outputs=outputs,
            seconds=self.config.seconds[verb],
            listener=listener,
        )
        if answer.facts.get("dfc") != version:
            raise DfcVersionError(
                f"{verb} ran with version {answer.facts.get('dfc')}, a moment ago it was {version}",
                where=f"HAILO_DFC_PYTHON={self.interpreter.python}",
                hint="somebody changed the installation meanwhile: repeat",
            )
        return answer


class _Watching(Listener):
    """Ends an optimization when it admits what nobody accepted: the rest would be hours for nothing."""

    def __init__(self, listener: Listener, config: DfcConfig) -> None:
        self._listener, self._config = listener, config

    def line(self, verb: str, text: str) -> None:
        self._listener.line(verb, text)
        check_accepted(degradations([text], self._config), self._config)

    def fact(self, verb: str, name: str, value: str) -> None:
        self._listener.fact(verb, name, value)
        if name == "gpus":
            check_accepted(degradations((), self._config, gpus=value), self._config)


def check_version(version: str, target: str, supported: Sequence[str] = SUPPORTED) -> None:
    """Refuse a DFC that this was not written for.

    Raises:
        DfcVersionError: Names the version and those that are accepted.
    """
    if any(version == each or version.startswith(f"{each}.") for each in supported):
        return
    newer = version.split(".")[0].isdecimal() and int(version.split(".")[0]) >= 5
    what = "is for Hailo-10 and Hailo-15 only" if newer else "is not one that this was written for"
    raise DfcVersionError(
        f"the Dataflow Compiler {version or '(it does not say which)'} {what}: {target} takes "
        f"{', '.join(supported)}",
        where="HAILO_DFC_PYTHON",
        hint="3.x and 5.x share the package's name: each needs an environment of its own; see docs/gpusrv.md",
    )


def _said(answer: Answer) -> dict[str, str]:
    names = ("dfc", "python", "tensorflow", "gpus", "calibration windows")
    told = {name: answer.facts[name] for name in names if name in answer.facts}
    return {**told, "log": shortened(answer.log)}


def _joined(earlier: Built, answer: Answer) -> str:
    """The log of everything that a model came through."""
    return shortened([*earlier.facts.get("log", "").splitlines(), *answer.log])


def _trial_windows() -> FloatArray:
    """Noise, so that every step and channel counts."""
    random = np.random.default_rng(20)
    return random.standard_normal((_TRIAL_WINDOWS, *WINDOW_SHAPE)).astype(np.float32)


def _windows_file(windows: FloatArray) -> bytes:
    """float32 (N, 1, 100, 9): batch, height, width, channels, whatever the ONNX has."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(windows[:, None], np.float32), allow_pickle=False)
    return buffer.getvalue()


def _latents_file(data: bytes, names: Sequence[str], windows: int) -> list[FloatArray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            found: list[FloatArray] = [archive[name] for name in names]
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise DfcOutputError(f"the latents cannot be read: {error}", hint="report it with the log") from error
    for name, latents in zip(names, found, strict=True):
        if latents.dtype != np.float32 or latents.ndim != 2 or len(latents) != windows:
            raise DfcOutputError(f"{name} gave {latents.dtype} {latents.shape} for {windows} windows")
    return found


def _check_native(reference: FloatArray, native: FloatArray) -> None:
    """Refuse a HAR whose float model says something else than the graph: an axis or a weight went wrong."""
    same = native.shape == reference.shape and np.isfinite(native).all()
    reached = context_metrics(reference, native)["sqnr_db"] if same else float("-inf")
    if not reached >= LEAST_NATIVE_DB:
        raise DfcUnsupportedError(
            f"the Dataflow Compiler parsed the graph into another one: SDK_NATIVE has {reached:.4g} dB "
            f"beside full_precision, expected {LEAST_NATIVE_DB:g}",
            where="onnx_model",
            hint="its log says which layers it made; nothing that follows would be worth anything",
        )
