"""Mistakes that people make with calibration windows, and which check of the gate refuses each.

``MISTAKES[name].apply`` changes a good set of the sample into one with the mistake. ``alone`` names the
checks one of which refuses it where only the calibration set has it, ``both`` where the evaluation set
has it too; empty where the gate cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.window import ChannelStatistics, FloatArray, normalize

Labels = npt.NDArray[np.str_]
Changed = tuple[FloatArray, Labels]
Apply = Callable[[FloatArray, Labels, ChannelStatistics, np.random.Generator], Changed]


@dataclass(frozen=True)
class Mistake:
    """One mistake, and who sees it.

    Args:
        name: Its key in ``MISTAKES``.
        apply: Windows float32 (N, 100, 9), labels (N,), normalization, randomness -> the same with the
            mistake.
        alone: Checks that refuse it in the calibration set alone; one of them must.
        both: Checks that refuse it in calibration and evaluation set.
        harmless: Why nobody needs to see it; empty where it does harm.
    """

    name: str
    apply: Apply
    alone: tuple[str, ...]
    both: tuple[str, ...]
    harmless: str = ""


def _columns(*order: int) -> Apply:
    return lambda windows, labels, statistics, rng: (windows[:, :, list(order)], labels)


def _scaled(sensor: int, factor: float) -> Apply:
    def apply(
        windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
    ) -> Changed:
        changed = windows.copy()
        changed[:, :, 3 * sensor : 3 * sensor + 3] *= np.float32(factor)
        return changed, labels

    return apply


def _flipped(*channels: int) -> Apply:
    signs = np.ones(9, np.float32)
    signs[list(channels)] = -1
    return lambda windows, labels, statistics, rng: (windows * signs, labels)


def _only(*names: str) -> Apply:
    return lambda windows, labels, statistics, rng: (
        windows[np.isin(labels, names)],
        labels[np.isin(labels, names)],
    )


def _without(*names: str) -> Apply:
    return lambda windows, labels, statistics, rng: (
        windows[~np.isin(labels, names)],
        labels[~np.isin(labels, names)],
    )


def _normalized(times: int) -> Apply:
    def apply(
        windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
    ) -> Changed:
        for _ in range(times):
            windows = normalize(windows, statistics)
        return windows, labels

    return apply


def _drawn(draw: Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.float64]]) -> Apply:
    return lambda windows, labels, statistics, rng: (draw(rng, windows.shape).astype(np.float32), labels)


def _reshaped(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    """(9, 100) windows, reshaped where they should have been transposed."""
    return np.ascontiguousarray(windows.transpose(0, 2, 1)).reshape(windows.shape), labels


def _flattened(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    """(100, 9) windows, taken for (9, 100) and transposed."""
    return np.ascontiguousarray(windows.reshape(-1, 9, 100).transpose(0, 2, 1)), labels


def _first(count: int, repeat: bool = False) -> Apply:
    def apply(
        windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
    ) -> Changed:
        places = np.arange(len(windows)) % count if repeat else np.arange(count)
        return windows[places], labels[places]

    return apply


def _constant_channel(channel: int) -> Apply:
    def apply(
        windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
    ) -> Changed:
        changed = windows.copy()
        changed[:, :, channel] = 0.5
        return changed, labels

    return apply


def _gravity_removed(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    changed = windows.copy()
    changed[:, :, :3] -= changed[:, :, :3].mean(axis=1, keepdims=True)
    return changed, labels


def _half_rate(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    """50 Hz: every second sample, padded with the last."""
    half = windows[:, ::2]
    return np.concatenate([half, np.repeat(half[:, -1:], 50, axis=1)], axis=1), labels


def _half_rate_joined(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    """50 Hz: two seconds, the window and then the same motion undone, taken for one."""
    back = windows[:, ::-2] * np.repeat(np.asarray([1, -1, 1], np.float32), 3)
    return np.concatenate([windows[:, ::2], back], axis=1), labels


def _turned_about_z(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    """The device mounted a quarter turn further: right-handed, and gravity stays where it is."""
    turned = windows[:, :, [1, 0, 2, 4, 3, 5, 7, 6, 8]] * np.asarray([1, -1, 1] * 3, np.float32)
    return np.ascontiguousarray(turned), labels


def _mixed(sensor: int, factor: float) -> Apply:
    def apply(
        windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
    ) -> Changed:
        changed = windows.copy()
        half = rng.permutation(len(windows))[: len(windows) // 2]
        changed[half, :, 3 * sensor : 3 * sensor + 3] *= np.float32(factor)
        return changed, labels

    return apply


def _backwards(
    windows: FloatArray, labels: Labels, statistics: ChannelStatistics, rng: np.random.Generator
) -> Changed:
    return np.ascontiguousarray(windows[:, ::-1]), labels


BURSTS: Final = ("run", "jump", "fall", "shake", "wave")
DEGREES: Final = 180 / np.pi
G: Final = 1 / 9.80665
_REST: Final = ("rest_acceleration",)
_MOVED: Final = ("axes", "resting_pose")
_POSE: Final = ("resting_pose", "outside_range")
_LIST: Final = (
    Mistake("already normalized", _normalized(1), _REST, _REST),
    Mistake("normalized twice", _normalized(2), _REST, _REST),
    Mistake("acc in g", _scaled(0, G), _REST, _REST),
    Mistake("acc in milli-g", _scaled(0, 1000 * G), _REST, _REST),
    Mistake("gyro in deg/s", _scaled(1, DEGREES), ("rest_rotation",), ("rest_rotation",)),
    Mistake("gyro converted twice", _scaled(1, 1 / DEGREES), ("drift",), ("z_spread",)),
    Mistake(
        "mag in gauss",
        _scaled(2, 0.01),
        ("magnetic_field",),
        ("magnetic_field",),
        harmless="in a range for the whole input the magnetometer is not what sets it",
    ),
    Mistake("mag in nT", _scaled(2, 1000), ("magnetic_field",), ("magnetic_field",)),
    Mistake("order g a m", _columns(3, 4, 5, 0, 1, 2, 6, 7, 8), ("channel_order",), ("channel_order",)),
    Mistake("order m a g", _columns(6, 7, 8, 0, 1, 2, 3, 4, 5), ("channel_order",), ("channel_order",)),
    Mistake("order a m g", _columns(0, 1, 2, 6, 7, 8, 3, 4, 5), ("channel_order",), ("channel_order",)),
    Mistake("axes x<->z", _columns(2, 1, 0, 5, 4, 3, 8, 7, 6), _MOVED, _MOVED),
    Mistake("axes x<->y", _columns(1, 0, 2, 4, 3, 5, 7, 6, 8), ("axes",), ("axes",)),
    Mistake("axes turned x>y>z", _columns(1, 2, 0, 4, 5, 3, 7, 8, 6), _POSE, ("resting_pose",)),
    Mistake(
        "turned about z",
        _turned_about_z,
        (),
        (),
        harmless="a way to mount a device, right for one so mounted; elsewhere some bursts are clipped",
    ),
    Mistake("gyro axes x<->z", _columns(0, 1, 2, 5, 4, 3, 6, 7, 8), ("axes",), ("axes",)),
    Mistake("acc axes x<->y", _columns(1, 0, 2, 3, 4, 5, 6, 7, 8), ("axes",), ("axes",)),
    Mistake("gx sign-flipped", _flipped(3), ("axes",), ("axes",)),
    Mistake("az sign-flipped", _flipped(2), _MOVED, _MOVED),
    Mistake("gravity's other sign", _flipped(0, 1, 2), _POSE, ("resting_pose",)),
    Mistake("time backwards", _backwards, ("axes",), ("axes",)),
    Mistake("reshaped", _reshaped, ("layout",), ("layout",)),
    Mistake("time-flattened", _flattened, ("layout",), ("layout",)),
    Mistake("only rest", _only("rest"), ("coverage",), ("coverage",)),
    Mistake("only run", _only("run"), ("coverage",), ("coverage",)),
    Mistake("no bursts", _without(*BURSTS), ("coverage", "outside_range"), ("z_reach",)),
    Mistake("8 windows", _first(8), ("count",), ("count",)),
    Mistake("1 window repeated", _first(1, repeat=True), ("count", "repeated"), ("count", "repeated")),
    Mistake("each window twice", _first(100, repeat=True), ("repeated",), ("repeated",)),
    Mistake("noise N(0,1)", _drawn(lambda rng, shape: rng.normal(size=shape)), ("coverage",), ("coverage",)),
    Mistake(
        "noise U(-1,1)", _drawn(lambda rng, shape: rng.uniform(-1, 1, shape)), ("coverage",), ("coverage",)
    ),
    Mistake("zeros", _drawn(lambda rng, shape: np.zeros(shape)), ("constant",), ("constant",)),
    Mistake("constant channel", _constant_channel(4), ("constant",), ("constant",)),
    Mistake("gravity removed", _gravity_removed, _REST, _REST),
    Mistake("50 Hz padded", _half_rate, ("held_samples",), ("held_samples",)),
    Mistake("50 Hz", _half_rate_joined, ("turning_rate",), ("turning_rate",)),
    Mistake(
        "half in g", _mixed(0, G), ("rest_acceleration", "mixed_units"), ("rest_acceleration", "mixed_units")
    ),
    Mistake("half in deg/s", _mixed(1, DEGREES), ("peak_rotation",), ("peak_rotation",)),
)
MISTAKES: Final = {mistake.name: mistake for mistake in _LIST}
