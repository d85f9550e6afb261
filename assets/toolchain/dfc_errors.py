"""What can go wrong with Hailo's Dataflow Compiler: each its own error, with what to do about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.contract.errors import ToolchainError

TAIL_LINES: Final = 12


class DfcError(ToolchainError):
    """The DFC failed in a way that has no error of its own here."""

    code = "dfc"


class DfcMissingError(DfcError):
    """No interpreter of the DFC is named."""

    code = "dfc_missing"


class DfcInterpreterError(DfcError):
    """The named interpreter is none, cannot be run, or is a Python that the DFC does not take."""

    code = "dfc_interpreter"


class DfcImportError(DfcError):
    """The interpreter runs and has no DFC that can be imported."""

    code = "dfc_import"


class DfcVersionError(DfcError):
    """A DFC that this was not written for, or another one than a moment ago."""

    code = "dfc_version"


class DfcLicenceError(DfcError):
    """The DFC says something about its licence."""

    code = "dfc_licence"


class DfcKilledError(DfcError):
    """The DFC's process was ended by a signal that was not ours, or crashed."""

    code = "dfc_killed"


class DfcMemoryError(DfcError):
    """There was not enough memory."""

    code = "dfc_memory"


class DfcTimeoutError(DfcError):
    """It took longer than it may."""

    code = "dfc_timeout"


class DfcOutputError(DfcError):
    """It claims success, and a file that it should have written is missing, empty or another one."""

    code = "dfc_output"


class DfcStaleError(DfcError):
    """What came back is from an earlier run."""

    code = "dfc_stale"


class DfcUnsupportedError(DfcError):
    """A graph that the DFC does not take, or is not known to take."""

    code = "dfc_unsupported"


class DfcShapeError(DfcError):
    """The DFC wants its input in another shape."""

    code = "dfc_shape"


class DfcMappingError(DfcError):
    """The network was parsed and quantized, and does not fit onto the chip."""

    code = "dfc_mapping"


class DfcDegradedError(DfcError):
    """It would have worked, with less than was asked for, and nobody accepted that by name."""

    code = "dfc_degraded"


_LICENCE: Final = re.compile(r"(?<![/\w])licen[cs]e(?![/\w])", re.IGNORECASE)
_INSTALL: Final = "docs/gpusrv.md says how to install it; `python -m assets.toolchain doctor` checks it"
_MEMORY: Final = "free memory or take a machine with more, then repeat"
_BY_NAME: Final[Mapping[str, tuple[type[DfcError], str]]] = {
    "MemoryError": (DfcMemoryError, _MEMORY),
    "ResourceExhaustedError": (
        DfcMemoryError,
        "the GPU's memory is full: end what else uses it, repeat",
    ),
    "UnsupportedModelError": (DfcUnsupportedError, "see the DFC's words; the graph is `onnx_model`'s"),
    "UnsupportedShuffleLayerError": (DfcUnsupportedError, "a reshape or transpose that the chip has not"),
    "UnexpectedNodeError": (DfcUnsupportedError, "see the DFC's words; the graph is `onnx_model`'s"),
    "ParsingWithRecommendationException": (
        DfcUnsupportedError,
        "the DFC recommends end nodes, see its words: cutting the graph there changes what the artifact is",
    ),
    "BadInputsShape": (DfcShapeError, "windows go in as (N, 1, 100, 9): report this, with the DFC's version"),
    "BackendAllocatorException": (DfcMappingError, "see the DFC's words for the layer that does not fit"),
}


def python_missing(target: str) -> DfcMissingError:
    """The target needs the DFC, and nobody said where it is."""
    return DfcMissingError(
        f"no Dataflow Compiler: {target} is built with Hailo's, and HAILO_DFC_PYTHON is not set",
        where=f"BUILD_TARGETS: {target}",
        hint=f"set HAILO_DFC_PYTHON to the Python that has it; {_INSTALL}; or build for `emulator`, which is "
        "honest about being one",
    )


def python_unusable(python: str, error: OSError) -> DfcInterpreterError:
    """It could not be started at all."""
    return DfcInterpreterError(
        f"cannot be run: {error.strerror}",
        where=f"HAILO_DFC_PYTHON={python}",
        hint=f"name the executable of a Python that has the Dataflow Compiler; {_INSTALL}",
    )


def failed(verb: str, said: Mapping[str, Any], log: Sequence[str]) -> DfcError:
    """The worker caught an exception and told."""
    message, kind = str(said.get("message") or "no message"), str(said.get("type"))
    what = f"{verb} failed: {kind}: {message}"
    if said.get("stage") == "python":
        return DfcInterpreterError(
            message, where="HAILO_DFC_PYTHON", hint="the DFC needs Python 3.10 to 3.12"
        )
    # Where it says so outright; how the DFC words a refused licence is not known.
    if _LICENCE.search(message):
        return DfcLicenceError(
            what, hint="accept or renew the licence in Hailo's Developer Zone, then repeat"
        )
    if said.get("stage") == "import":
        return DfcImportError(
            f"hailo_sdk_client cannot be imported: {kind}: {message}", where="HAILO_DFC_PYTHON", hint=_INSTALL
        )
    for name in said.get("bases") or [kind]:
        if name in _BY_NAME:
            error, hint = _BY_NAME[name]
            return error(what, hint=hint)
    return DfcError(what, hint=_last(log))


def ended(verb: str, status: int, log: Sequence[str], *, oom_kills: int = 0) -> DfcError:
    """The worker ended without a word: ``status`` as ``Popen.returncode`` has it.

    Args:
        oom_kills: By how much the kernel's count of out-of-memory kills went up meanwhile.
    """
    if status == -signal.SIGKILL:
        witness = (
            "the kernel ended a process for want of memory meanwhile"
            if oom_kills
            else "the kernel's own count did not move, so a container's limit or somebody's hand did it"
        )
        return DfcMemoryError(
            f"{verb} was killed (SIGKILL), which is how a process ends that needs too much memory: {witness}",
            hint=_MEMORY,
        )
    if status < 0:
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-status, f"signal {-status}")
        return DfcKilledError(f"{verb} was ended by {name}", hint=_last(log))
    if status in (126, 127) or (status and not log):
        return DfcInterpreterError(
            f"{verb}: exit status {status} without a word of the worker",
            where="HAILO_DFC_PYTHON",
            hint=_INSTALL,
        )
    return DfcKilledError(f"{verb} ended with exit status {status} without saying why", hint=_last(log))


def timed_out(verb: str, seconds: float, log: Sequence[str]) -> DfcTimeoutError:
    """It took too long and was ended."""
    return DfcTimeoutError(
        f"{verb} took longer than {seconds:g} s and was ended",
        hint=f"give it more in assets/toolchain/dfc_config.json, or a machine with a GPU; {_last(log)}",
    )


def _last(log: Sequence[str]) -> str:
    if not log:
        return "it printed nothing"
    return "its last lines: " + " | ".join(log[-TAIL_LINES:])
