"""Synthetic motions: windows of a 9-axis inertial sensor, in physical units.

A recipe describes how a body moves for one second: its attitude R(t) and its linear acceleration.
``sense`` mounts a sensor on that body and reads it: specific force (gravity included), angular
velocity derived from R(t), and the earth's field plus a hard-iron offset. World frame: x along
the initial heading, y left, z up; m, s, rad, µT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Windows = NDArray[np.float32]
Labels = NDArray[np.str_]

RATE_HZ = 100
STEPS = 100
CHANNEL_ORDER = ("ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz")
GRAVITY = 9.81  # m/s²
FIELD = 48.0  # µT, total intensity in central Europe

# Each set of windows has a seed of its own; tests use seeds from 100 upwards.
SEEDS = MappingProxyType({"training": 1, "held_out": 2, "calibration": 3, "evaluation": 4, "golden": 5})

# Full scale and resolution per sensor. A power of two keeps every value exact in float32 and
# lets the files compress.
_FULL_SCALE = np.repeat([156.0, 34.875, 1000.0], 3)  # ±16 g, ±2000 deg/s, ±10 gauss
_LSB = np.repeat([2.0**-8, 2.0**-10, 2.0**-4], 3)
_NOISE = np.repeat([0.03, 0.006, 0.3], 3)
_BIAS = np.repeat([0.04, 0.008, 2.0], 3)  # the magnetometer's is the hard-iron offset

# Attitude is known half a sample before and after each reading, so that the angular velocity
# over one sample is exact.
_GRID: Floats = (np.arange(2 * STEPS + 1) - 1) / (2 * RATE_HZ)


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One second of movement of a rigid body.

    Attributes:
        attitude: (201, 3, 3), rotations body -> world at 200 Hz; reading i is at index 2 i + 1.
        acceleration: (100, 3), linear acceleration in the world frame at each reading [m/s²].
    """

    attitude: Floats
    acceleration: Floats


@dataclass(frozen=True, kw_only=True)
class _Path:
    """What a recipe returns, on the 200 Hz grid: (201,) each, or a constant.

    Angles yaw, pitch, roll [rad] turn in that order; forward, left, up are accelerations [m/s²].
    """

    yaw: Floats | float = 0.0
    pitch: Floats | float = 0.0
    roll: Floats | float = 0.0
    forward: Floats | float = 0.0
    left: Floats | float = 0.0
    up: Floats | float = 0.0


def _sine(frequency: float, phase: float) -> Floats:
    wave: Floats = np.sin(2 * np.pi * frequency * _GRID + phase)
    return wave


def _pulse(centre: float, width: float) -> Floats:
    """Raised cosine of height 1 and area width / 2."""
    offset = (_GRID - centre) / width
    return np.where(np.abs(offset) < 0.5, 0.5 + 0.5 * np.cos(2 * np.pi * offset), 0.0)


def _ramp(centre: float, width: float) -> Floats:
    """Smooth step from 0 to 1 whose slope is a ``_pulse``."""
    offset = np.clip((_GRID - centre) / width, -0.5, 0.5)
    return offset + 0.5 + np.sin(2 * np.pi * offset) / (2 * np.pi)


def _phase(rng: Generator) -> float:
    return rng.uniform(0, 2 * np.pi)


def _sign(rng: Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _radians(rng: Generator, low: float, high: float) -> float:
    """Draw an angle given in degrees."""
    return float(np.radians(rng.uniform(low, high)))


def _rest(rng: Generator) -> _Path:
    """Lie still."""
    return _Path()


def _walk(rng: Generator) -> _Path:
    """Steps at 1.6 to 2.1 Hz; the trunk sways at half that rate."""
    step, phase, bounce = rng.uniform(1.6, 2.1), _phase(rng), rng.uniform(1.5, 3.0)
    return _Path(
        yaw=_radians(rng, 4, 10) * _sine(step / 2, phase / 2),
        pitch=_radians(rng, 2, 5) * _sine(step, phase + 1.0),
        roll=_radians(rng, 3, 6) * _sine(step / 2, phase / 2 + 0.8),
        forward=rng.uniform(0.4, 0.8) * bounce * _sine(step, phase + np.pi / 2),
        left=rng.uniform(0.3, 0.5) * bounce * _sine(step / 2, phase / 2),
        up=bounce * (_sine(step, phase) + rng.uniform(0.2, 0.45) * _sine(2 * step, 2 * phase + 0.5)),
    )


def _run(rng: Generator) -> _Path:
    """Steps at 2.5 to 3.1 Hz with flight: the ground pushes only during part of each step."""
    step, phase, duty = rng.uniform(2.5, 3.1), _phase(rng), rng.uniform(0.6, 0.85)
    place = (step * _GRID + phase / (2 * np.pi)) % 1.0 - 0.5
    contact = np.where(np.abs(place) < duty / 2, 0.5 + 0.5 * np.cos(2 * np.pi * place / duty), 0.0)
    return _Path(
        yaw=_radians(rng, 7, 14) * _sine(step / 2, phase / 2),
        pitch=_radians(rng, 5, 12) + _radians(rng, 3, 7) * _sine(step, phase),
        roll=_radians(rng, 4, 8) * _sine(step / 2, phase / 2 + 0.6),
        forward=rng.uniform(2.5, 4.5) * _sine(step, phase + np.pi / 2),
        left=rng.uniform(1.5, 3.0) * _sine(step / 2, phase / 2),
        up=GRAVITY * (contact * 2 / duty - 1),
    )


def _climb(rng: Generator) -> _Path:
    """Stairs: slow steps, leaning forward, with a hard push on every stair."""
    step, phase, push = rng.uniform(0.9, 1.3), _phase(rng), rng.uniform(2.0, 3.5)
    return _Path(
        yaw=_radians(rng, 3, 8) * _sine(step / 2, phase / 2),
        pitch=_radians(rng, 10, 20) + _radians(rng, 5, 10) * _sine(step, phase + 0.7),
        roll=_radians(rng, 4, 8) * _sine(step / 2, phase / 2 + 0.4),
        forward=rng.uniform(0.5, 0.9) * push * _sine(step, phase + 2.0),
        left=rng.uniform(0.4, 0.7) * push * _sine(step / 2, phase / 2),
        up=push * (_sine(step, phase) + rng.uniform(0.5, 0.8) * _sine(2 * step, 2 * phase + 1.0)),
    )


def _jump(rng: Generator) -> _Path:
    """Push off, fly, land: the speed gained and lost equals what gravity takes in flight."""
    speed, push, landing = rng.uniform(1.6, 2.2), rng.uniform(0.2, 0.28), rng.uniform(0.16, 0.24)
    flight = 2 * speed / GRAVITY
    take_off = rng.uniform(0.12, 0.3)
    touch_down = take_off + flight
    airborne = np.abs(_GRID - take_off - flight / 2) < flight / 2
    up = 2 * speed / push * _pulse(take_off - push / 2, push)
    up = up + 2 * speed / landing * _pulse(touch_down + landing / 2, landing)
    return _Path(
        yaw=_radians(rng, -6, 6) * _ramp(take_off + flight / 2, flight),
        pitch=_radians(rng, 4, 10) * _sine(1 / (push + flight + landing), _phase(rng)),
        roll=_radians(rng, -4, 4) * _sine(1.0, _phase(rng)),
        forward=rng.uniform(-1.0, 2.0) * _pulse(take_off - push / 2, push),
        up=np.where(airborne, -GRAVITY, up),
    )


def _fall(rng: Generator) -> _Path:
    """Topple by 65 to 95 degrees in any direction, hit the ground, lie still.

    The ground takes up exactly the speed gained on the way down.
    """
    start, duration = rng.uniform(0.05, 0.25), rng.uniform(0.35, 0.5)
    drop, impact = rng.uniform(0.5, 0.75) * GRAVITY, rng.uniform(0.2, 0.28)
    angle, direction = _radians(rng, 65, 95), _phase(rng)
    down = start + duration
    hit = _pulse(down + impact / 2, impact)
    slide = rng.uniform(2.0, 6.0) * hit
    turned = _ramp((start + down) / 2 + 0.03, duration + 0.06)
    falling = np.abs(_GRID - start - duration / 2) < duration / 2
    return _Path(
        yaw=_radians(rng, -15, 15) * turned,
        pitch=angle * np.cos(direction) * turned,
        roll=angle * np.sin(direction) * turned,
        forward=-np.cos(direction) * slide,
        left=np.sin(direction) * slide,
        up=2 * drop * duration / impact * hit - drop * falling,
    )


def _turn(rng: Generator) -> _Path:
    """One turn on the spot by 60 to 170 degrees, leaning slightly into it."""
    centre, duration, sign = rng.uniform(0.4, 0.6), rng.uniform(0.55, 0.9), _sign(rng)
    return _Path(
        yaw=sign * _radians(rng, 60, 170) * _ramp(centre, duration),
        pitch=_radians(rng, -4, 4) * _pulse(centre, duration),
        roll=-sign * _radians(rng, 2, 8) * _pulse(centre, duration),
        left=sign * rng.uniform(0.3, 1.2) * _pulse(centre, duration),
    )


def _spin(rng: Generator) -> _Path:
    """Steady rotation about the vertical with the sensor a few centimetres off the axis."""
    rate, wobble, radius = rng.uniform(5.0, 9.0) * _sign(rng), rng.uniform(0.0, 0.08), rng.uniform(0, 0.06)
    yaw = rate * (_GRID + wobble * np.cos(2 * np.pi * _GRID + _phase(rng)))
    return _Path(
        yaw=yaw,
        pitch=_radians(rng, 0, 3) * _sine(abs(rate) / (2 * np.pi), _phase(rng)),
        forward=-radius * rate**2 * np.cos(yaw),
        left=-radius * rate**2 * np.sin(yaw),
    )


def _shake(rng: Generator) -> _Path:
    """Fast shaking at 4 to 7 Hz along any direction, with some twisting."""
    rate, phase, strength = rng.uniform(4.0, 7.0), _phase(rng), rng.uniform(8.0, 16.0)
    direction = rng.normal(size=3)
    forward, left, up = strength * direction / np.linalg.norm(direction)
    swing = _sine(rate, phase) + rng.uniform(0.0, 0.2) * _sine(2 * rate, 2 * phase)
    return _Path(
        yaw=_radians(rng, 2, 8) * _sine(rate, phase + rng.uniform(-0.5, 0.5)),
        pitch=_radians(rng, 2, 8) * _sine(rate, phase + rng.uniform(-0.5, 0.5)),
        roll=_radians(rng, 2, 8) * _sine(rate, phase + rng.uniform(-0.5, 0.5)),
        forward=forward * swing,
        left=left * swing,
        up=up * swing,
    )


def _lever(radius: float, swing: float, rate: float, phase: float) -> tuple[Floats, Floats]:
    """Accelerations, sideways and up, of a point ``radius`` above a pivot swinging sinusoidally."""
    angle = swing * _sine(rate, phase)
    velocity = swing * 2 * np.pi * rate * _sine(rate, phase + np.pi / 2)
    spin_up = -((2 * np.pi * rate) ** 2) * angle
    sideways = np.cos(angle) * spin_up - np.sin(angle) * velocity**2
    return radius * sideways, -radius * (np.sin(angle) * spin_up + np.cos(angle) * velocity**2)


def _wave(rng: Generator) -> _Path:
    """Swing from side to side by 25 to 50 degrees at 1.4 to 2.2 Hz."""
    rate, phase, swing = rng.uniform(1.4, 2.2), _phase(rng), _radians(rng, 25, 50)
    sideways, up = _lever(rng.uniform(0.04, 0.1), swing, rate, phase)
    return _Path(
        yaw=_radians(rng, 2, 8) * _sine(rate, phase + 1.0),
        pitch=_radians(rng, -8, 8) + _radians(rng, 1, 4) * _sine(2 * rate, _phase(rng)),
        roll=swing * _sine(rate, phase),
        left=-sideways,
        up=up,
    )


def _nod(rng: Generator) -> _Path:
    """Pitch up and down by 12 to 28 degrees at 1.0 to 1.9 Hz."""
    rate, phase, swing = rng.uniform(1.0, 1.9), _phase(rng), _radians(rng, 12, 28)
    forward, up = _lever(rng.uniform(0.04, 0.1), swing, rate, phase)
    return _Path(
        yaw=_radians(rng, 0, 3) * _sine(rate / 2, _phase(rng)),
        pitch=swing * _sine(rate, phase),
        roll=_radians(rng, 0, 4) * _sine(rate, _phase(rng)),
        forward=forward,
        up=up,
    )


def _ride(rng: Generator) -> _Path:
    """Sit in a vehicle: engine and road between 9 and 24 Hz, speeding up or braking gently."""
    strength = rng.uniform(0.6, 1.6)

    def vibration(share: float) -> Floats:
        tones = [rng.uniform(0.4, 1.0) * _sine(rng.uniform(9, 24), _phase(rng)) for _ in range(4)]
        return np.asarray(share * strength * np.sum(tones, axis=0))

    return _Path(
        yaw=_radians(rng, -6, 6) * _GRID,
        pitch=_radians(rng, 0.3, 1.5) * _sine(rng.uniform(0.6, 1.5), _phase(rng)),
        roll=_radians(rng, 0.3, 1.5) * _sine(rng.uniform(0.6, 1.5), _phase(rng)),
        forward=rng.uniform(-1.5, 1.5) + vibration(0.4),
        left=vibration(0.5),
        up=vibration(1.0),
    )


_RECIPES: MappingProxyType[str, Callable[[Generator], _Path]] = MappingProxyType(
    {
        recipe.__name__[1:]: recipe
        for recipe in (
            *(_rest, _walk, _run, _climb, _jump, _fall),
            *(_turn, _spin, _shake, _wave, _nod, _ride),
        )
    }
)
MOTIFS = tuple(_RECIPES)


def rotation(axis: int, angle: Floats | float) -> Floats:
    """Return rotations about coordinate axis 0, 1 or 2 by ``angle`` [rad]: (..., 3, 3)."""
    angle = np.asarray(angle, dtype=np.float64)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[..., axis, axis] = 1.0
    matrix[..., first, first] = matrix[..., second, second] = np.cos(angle)
    matrix[..., second, first] = np.sin(angle)
    matrix[..., first, second] = -np.sin(angle)
    return matrix


def move(motif: str, rng: Generator) -> Motion:
    """Draw one performance of a motif: amplitude, frequency and phase are random.

    Raises:
        KeyError: ``motif`` is not in ``MOTIFS``.
    """
    path = _RECIPES[motif](rng)
    yaw, pitch, roll = (np.broadcast_to(angle, _GRID.shape) for angle in (path.yaw, path.pitch, path.roll))
    pushes = [np.broadcast_to(push, _GRID.shape) for push in (path.forward, path.left, path.up)]
    return Motion(
        attitude=rotation(2, yaw) @ rotation(1, pitch) @ rotation(0, roll),
        acceleration=np.stack(pushes, axis=1)[1::2],
    )


def angular_velocity(attitude: Floats) -> Floats:
    """Return the body's own angular velocity (100, 3) [rad/s] from attitudes (201, 3, 3).

    Reading i is the rotation from half a sample before it to half a sample after it. The step
    must stay below a quarter turn, which is 157 rad/s.
    """
    step = attitude[:-2:2].transpose(0, 2, 1) @ attitude[2::2]
    skew = (step - step.transpose(0, 2, 1)) / 2
    axis = np.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], axis=1)
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    return np.asarray(axis / np.sinc(np.arcsin(np.clip(sine, 0.0, 1.0)) / np.pi) * RATE_HZ)


def read(motion: Motion, mounting: Floats, field: Floats) -> Floats:
    """Read an ideal sensor on a moving body.

    Args:
        motion: What the body does.
        mounting: (3, 3), rotation sensor -> body.
        field: (3,), magnetic field in the world frame [µT].

    Returns:
        (100, 9) in ``CHANNEL_ORDER``: specific force [m/s²], angular velocity [rad/s], field [µT].
    """
    sensor = motion.attitude @ mounting
    to_sensor = sensor[1::2].transpose(0, 2, 1)
    force = motion.acceleration + np.array([0.0, 0.0, GRAVITY])
    return np.concatenate(
        [(to_sensor @ force[:, :, None])[:, :, 0], angular_velocity(sensor), to_sensor @ field], axis=1
    )


def _mounting(rng: Generator) -> Floats:
    """Draw how the sensor sits on the body: up to 25 degrees off level, 25 off straight ahead."""
    azimuth = _phase(rng)
    tilt = rotation(2, azimuth) @ rotation(1, _radians(rng, 0, 25)) @ rotation(2, -azimuth)
    return tilt @ rotation(2, _radians(rng, -25, 25))


def _earth_field(rng: Generator) -> Floats:
    """Draw a heading and a dip of 58 to 68 degrees: the field in the world frame [µT]."""
    heading, dip = _phase(rng), _radians(rng, 58, 68)
    horizontal = FIELD * np.cos(dip)
    return np.array([horizontal * np.cos(heading), -horizontal * np.sin(heading), -FIELD * np.sin(dip)])


def draw(motif: str, rng: Generator) -> Windows:
    """Draw one window as a real sensor would report it.

    Args:
        motif: One of ``MOTIFS``.
        rng: Source of all randomness; the same state gives the same window.

    Returns:
        float32 (100, 9) at 100 Hz: ax ay az [m/s²], gx gy gz [rad/s], mx my mz [µT], with bias and
        noise, clipped to the sensor's full scale and rounded to its resolution.
    """
    ideal = read(move(motif, rng), _mounting(rng), _earth_field(rng))
    noisy = ideal + _BIAS * rng.normal(size=9) + _NOISE * rng.normal(size=ideal.shape)
    counts = np.round(np.clip(noisy, -_FULL_SCALE, _FULL_SCALE) / _LSB)
    return np.asarray(counts * _LSB, dtype=np.float32)


def draw_set(per_motif: int, seed: int) -> tuple[Windows, Labels]:
    """Draw a stratified set, motifs taking turns, so that any prefix is stratified too.

    Each window has a stream of its own: a longer set starts with the shorter one.

    Returns:
        Windows, float32 (12 per_motif, 100, 9), and their motif names, (12 per_motif,).
    """
    keys = [(turn, index) for turn in range(per_motif) for index in range(len(MOTIFS))]
    streams = (np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)) for key in keys)
    windows = [draw(MOTIFS[key[1]], rng) for key, rng in zip(keys, streams, strict=True)]
    return np.stack(windows), np.array([MOTIFS[index] for _, index in keys])


def digest(windows: Windows) -> str:
    """Return the SHA-256 of the values as C-contiguous little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype="<f4").tobytes()).hexdigest()
