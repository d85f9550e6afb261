"""What repeats in a set: copies of windows, windows and channels without change, samples that are held.

A sensor with coarse steps repeats itself at rest; only what repeats in motion, or reads nothing that a
sensor at rest reads, is held against a set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from assets.findings import REFUSE, WARN, make_finding
from assets.physical import REST_ACCELERATION, lengths
from assets.strata import EDGES, Mask, motion_of
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, FloatArray

COPIES: Final = 0.1
"""Share of copies, or of windows without change, from which to refuse; any are worth a word."""
HELD: Final = (0.02, 0.2)
"""Share of samples of moving windows that repeat the one before, from which to warn and to refuse."""
DEAD: Final = 0.5
FEWEST_MOVING: Final = 16


def distinct(windows: FloatArray) -> int:
    """How many different windows there are."""
    return len({window.tobytes() for window in windows})


def check_repetition(windows: FloatArray, name: str) -> list[Finding]:
    """Copies, constant windows and channels, samples that repeat the one before.

    Args:
        windows: float32 (N, 100, 9).
        name: ``calibration``, ``evaluation`` or ``golden``.
    """
    if not len(windows):
        return []
    constant = np.all(windows == windows[:, :1], axis=1)
    whole = constant.all(axis=1)
    findings = [*_check_copies(windows[~whole], len(windows), name), *_check_whole(windows, whole, name)]
    moving = ~whole & (motion_of(windows) >= EDGES[1])
    if moving.sum() < FEWEST_MOVING:
        moving = ~whole
    if moving.any():
        findings.extend(_check_channels(constant[moving], name))
        findings.extend(_check_held(windows[moving], name))
    return findings


def _check_copies(windows: FloatArray, of: int, name: str) -> Iterator[Finding]:
    copies = len(windows) - distinct(windows)
    if copies:
        severity = REFUSE if copies / of > COPIES else WARN
        text, cause = f"{copies} copies of other windows of {of}", "windows written several times: keep one"
        yield make_finding("repeated", severity, "all", name, text, f"at most {COPIES:.0%}", cause)


def _check_whole(windows: FloatArray, whole: Mask, name: str) -> Iterator[Finding]:
    """A sensor with coarse steps may rest without a change, but then it reads gravity."""
    if not whole.any():
        return
    gravity = lengths(windows[whole, :1], "accelerometer")
    odd = int(np.sum((gravity < REST_ACCELERATION[0]) | (gravity > REST_ACCELERATION[1])))
    text = f"{int(whole.sum())} windows without any change of {len(windows)}"
    if odd / len(windows) > COPIES:
        cause = "a sensor that hung, or padding: leave these windows out"
        text += f", and {odd} of them do not read gravity"
        yield make_finding("constant", REFUSE, "all", name, text, f"at most {COPIES:.0%}", cause)
    else:
        cause = "a sensor that hung, padding, or steps so coarse that nothing shows at rest: look at them"
        yield make_finding("constant", WARN, "all", name, text, "none", cause)


def _check_channels(constant: Mask, name: str) -> Iterator[Finding]:
    for channel, share in zip(CHANNELS, constant.mean(axis=0).tolist(), strict=True):
        if share > DEAD:
            cause = "a dead channel, or one that was filled in: connect it, or capture again"
            text = f"constant in {share:.0%} of the windows that move"
            yield make_finding("constant", REFUSE, channel, name, text, f"at most {DEAD:.0%}", cause)


def _check_held(moving: FloatArray, name: str) -> Iterator[Finding]:
    held = float(np.mean(np.all(moving[:, 1:] == moving[:, :-1], axis=2)))
    if held > HELD[0]:
        severity, bound = (REFUSE, HELD[1]) if held > HELD[1] else (WARN, HELD[0])
        cause = "padding, or a slower sensor whose samples were repeated: capture or resample at 100 Hz"
        text = f"{held:.0%} of the samples of windows that move repeat the one before in every channel"
        yield make_finding("held_samples", severity, "all", name, text, f"at most {bound:.0%}", cause)
