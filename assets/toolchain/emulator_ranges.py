"""The emulator's range policy: which real values the 256 integers of each activation stand for.

Ranges come from the smallest and largest value that calibration saw, with three departures that
are each measured to pay (ARCHITECTURE.md, 2026-11-24): values that a later Relu turns into zero
take no integers, the output has room for values that calibration did not see, and the input is
clipped where its rarest values cost more resolution than they bring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.quant_utils import compute_scale_zp

from assets.onnx_run import exact_session
from runtime.contract.window import GRAPH_INPUT_NAME, GRAPH_OUTPUT_NAME, FloatArray, to_graph_layout

RANGE_MANTISSA_BITS: Final = 10
DEAD_ROOM: Final = 1.1
"""How far below the exact dead range an addend is clipped: other windows combine addends otherwise."""
OUTPUT_ROOM: Final = 1.2
"""Nothing averages an error of the output away, and a set has only one value of it per window: a
fifth more range costs 1.6 dB of the output's own noise, a clipped latent costs far more."""
INPUT_FACTORS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
INPUT_TOLERANCE_DB: Final = 0.25
"""The widest input range within this of the best one: what is rare here may be less so elsewhere."""
INPUT_WINDOWS: Final = 256
POLICY: Final = (
    f"min and max; below {DEAD_ROOM} x what an Add and its Relu turn into zero: clipped; "
    f"output x {OUTPUT_ROOM}; input x {INPUT_FACTORS[-1]} to 1, the widest within {INPUT_TOLERANCE_DB} dB of "
    f"the best output on {INPUT_WINDOWS} windows; snapped outward to {RANGE_MANTISSA_BITS} mantissa bits"
)

_Ranges = dict[str, tuple[np.float32, np.float32]]


@dataclass(frozen=True)
class _Seen:
    """What calibration saw: by tensor its ends, by addend its dead end, and the latents by window."""

    lows: dict[str, np.float32]
    highs: dict[str, np.float32]
    dead: dict[str, np.float32]
    latents: FloatArray


def choose_ranges(model: onnx.ModelProto, windows: FloatArray, threads: int = 1) -> TensorsData:
    """The range of every activation, as ``quantize_static`` takes them.

    Args:
        model: The canonical graph, float32.
        windows: float32 (N, 100, 9), normalized: the calibration set.
        threads: Threads of the float kernels; the ranges do not depend on it.
    """
    seen = _look(model, windows, threads)
    lows, highs = dict(seen.lows), dict(seen.highs)
    for name, dead in seen.dead.items():
        lows[name] = max(lows[name], np.float32(DEAD_ROOM) * dead)
    for ends in (lows, highs):
        ends[GRAPH_OUTPUT_NAME] *= np.float32(OUTPUT_ROOM)
    factor = np.float32(_input_factor(model, windows, seen, threads))
    for ends in (lows, highs):
        ends[GRAPH_INPUT_NAME] *= factor
    names = list(lows)
    snapped = [snap_outward(np.array([ends[name] for name in names])) for ends in (lows, highs)]
    ranges: _Ranges = {name: (low, high) for name, low, high in zip(names, *snapped, strict=True)}
    return TensorsData(CalibrationMethod.MinMax, ranges)


def killed_addends(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensors whose low values a later Relu may turn into zero, each with the other addend.

    A tensor counts if an Add is its only consumer and a Relu that Add's: then a value ``a`` with
    ``a + b <= 0`` says nothing but "zero". Outputs of a Conv or Add that feed a Relu need no such
    care: onnxruntime merges the Relu and quantizes only what comes out of it.
    """
    users: dict[str, list[str]] = {output.name: ["output"] for output in graph.output}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    computed = {GRAPH_INPUT_NAME, *(name for node in graph.node for name in node.output)}
    pairs = {}
    for node in graph.node:
        if node.op_type == "Add" and users[node.output[0]] == ["Relu"] and computed.issuperset(node.input):
            first, second = node.input
            pairs.update({n: o for n, o in ((first, second), (second, first)) if users[n] == ["Add"]})
    return pairs


def dead_below(addend: FloatArray, other: FloatArray) -> np.float32:
    """The largest value that an addend can be clipped below without changing ``relu(addend + other)``.

    Clipping at L changes nothing where ``addend >= L``, nor where ``L + other <= 0``. So L is the
    smallest ``max(addend, -other)``, and at most 0: then both addends may be clipped at once. It
    moves with the values continuously, as a minimum does: last bits of float sums stay last bits.
    """
    return min(np.float32(0), np.maximum(addend, -other).min())


def snap_outward(values: FloatArray) -> FloatArray:
    """Round away from zero to 10 mantissa bits, so that the last bits of a sum do not matter."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scaled = np.ldexp(mantissa, RANGE_MANTISSA_BITS)
    away = np.copysign(np.ceil(np.abs(scaled)), scaled)
    snapped: FloatArray = np.ldexp(away, exponent - RANGE_MANTISSA_BITS).astype(np.float32)
    return snapped


def spread(total: int, most: int) -> npt.NDArray[np.int64]:
    """Positions of at most ``most`` of ``total`` windows, in order, without a period.

    Sets are often written with their activities taking turns; every fifth or sixth window could
    be of the same few. A stride that shares no factor with the total meets all of them.
    """
    stride = next(n for n in range(max(1, round(total * 0.618)), total + 2) if math.gcd(n, total) == 1)
    positions: npt.NDArray[np.int64] = np.sort(np.arange(min(total, most)) * stride % total)
    return positions


def _look(model: onnx.ModelProto, windows: FloatArray, threads: int) -> _Seen:
    names = [GRAPH_INPUT_NAME, *(node.output[0] for node in model.graph.node)]
    addends = killed_addends(model.graph)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    session = exact_session(watched.SerializeToString(), threads)
    lows, highs = np.zeros(len(names), np.float32), np.zeros(len(names), np.float32)
    dead, latents = np.zeros(len(addends), np.float32), []
    for window in windows:
        graph_input = to_graph_layout(window)
        values = [graph_input, *session.run(None, {GRAPH_INPUT_NAME: graph_input})]
        lows = np.minimum(lows, [value.min() for value in values])
        highs = np.maximum(highs, [value.max() for value in values])
        named = dict(zip(names, values, strict=True))
        ends = [dead_below(named[name], named[other]) for name, other in addends.items()]
        dead = np.minimum(dead, np.array(ends, np.float32))
        latents.append(named[GRAPH_OUTPUT_NAME])
    return _Seen(
        dict(zip(names, lows, strict=True)),
        dict(zip(names, highs, strict=True)),
        dict(zip(addends, dead, strict=True)),
        np.concatenate(latents),
    )


def _input_factor(model: onnx.ModelProto, windows: FloatArray, seen: _Seen, threads: int) -> float:
    """How much of the input's range to keep, by the output's error when only the input is quantized.

    A few violent samples decide the input's range, and all others pay for it with resolution.
    """
    positions = spread(len(windows), INPUT_WINDOWS)
    windows, reference = windows[positions], seen.latents[positions].astype(np.float64)
    session = exact_session(model.SerializeToString(), threads)
    errors = []
    for factor in INPUT_FACTORS:
        ends = np.array([seen.lows[GRAPH_INPUT_NAME], seen.highs[GRAPH_INPUT_NAME]]) * np.float32(factor)
        found = _latents(session, _rounded(windows, *snap_outward(ends)))
        errors.append(float(np.sum((found - reference) ** 2)))
    allowed = min(errors) * 10 ** (INPUT_TOLERANCE_DB / 10)
    pairs = zip(INPUT_FACTORS, errors, strict=True)
    return next((factor for factor, error in pairs if error <= allowed), INPUT_FACTORS[0])


def _latents(session: ort.InferenceSession, windows: FloatArray) -> FloatArray:
    rows = [session.run(None, {GRAPH_INPUT_NAME: to_graph_layout(window)})[0] for window in windows]
    latents: FloatArray = np.concatenate(rows)
    return latents


def _rounded(values: FloatArray, low: np.float32, high: np.float32) -> FloatArray:
    """What QuantizeLinear and DequantizeLinear make of values, in uint8."""
    zero_point, scale = compute_scale_zp(np.asarray(low), np.asarray(high), np.array(0), np.array(255))
    integers = np.clip(np.rint(values / np.float32(scale)) + int(zero_point), 0, 255)
    real: FloatArray = ((integers - int(zero_point)) * np.float32(scale)).astype(np.float32)
    return real
