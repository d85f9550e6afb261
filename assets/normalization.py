"""Normalization as the files beside the weights state it: read, compared, or refused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.contract.errors import ManifestError, WeightsError
from runtime.contract.window import (
    CHANNELS,
    LATENT_SIZE,
    SAMPLING_RATE_HZ,
    UNITS,
    WINDOW_LENGTH,
    WINDOW_SHAPE,
    ChannelStatistics,
)


def read_statistics(documents: Mapping[str, dict[str, Any]]) -> ChannelStatistics:
    """The statistics that the files state; where several do, they must agree.

    Args:
        documents: File name to its JSON object, empty where there is no such file.

    Returns:
        Mean and standard deviation of each channel, rounded to float32, which is how they are used:
        two files that print them differently agree.

    Raises:
        WeightsError: No file states them, two differ, or one contradicts the window; names the file.
    """
    found = {}
    for name in stating(documents):
        document = documents[name]
        found[name] = _statistics_of(document["normalization"], document, name)
    names = " nor ".join(documents)
    if not found:
        raise WeightsError(
            f"neither {names} gives a normalization",
            hint="give the mean and standard deviation of each channel that training used",
        )
    first = next(iter(found.values()))
    if any(other != first for other in found.values()):
        raise WeightsError(
            f"{' and '.join(found)} give different statistics", hint="keep the one that training used"
        )
    return first


def stating(documents: Mapping[str, dict[str, Any]]) -> list[str]:
    """Names of the files that state a normalization, right or wrong."""
    return [name for name, document in documents.items() if isinstance(document.get("normalization"), dict)]


def _statistics_of(section: dict[str, Any], document: dict[str, Any], name: str) -> ChannelStatistics:
    order = document.get("channel_order", section.get("channel_order", list(CHANNELS)))
    if order != list(CHANNELS):
        raise WeightsError(
            f"channel order is {order!r}, expected {list(CHANNELS)}",
            where=name,
            hint="train on this order: what is served sends it",
        )
    for place in (document, section):
        _check_units(place.get("units") or {}, name)
    _check_claims(document, section, name)
    mean, std = (_numbers(section, key, name) for key in ("mean", "std"))
    try:
        return ChannelStatistics(mean=mean, std=std)
    except ManifestError as error:
        raise WeightsError(
            f"{error.where}: {error.what}",
            where=name,
            hint=error.hint or f"expected {len(CHANNELS)} finite numbers, in the order {' '.join(CHANNELS)}",
        ) from error


def _numbers(section: dict[str, Any], key: str, name: str) -> tuple[float, ...]:
    """A list of numbers under either of its spellings, as float32."""
    found = []
    for spelling in (f"zscore_{key}", key):
        values = section.get(spelling)
        if values is None:
            continue
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise WeightsError(
                f"normalization has no list of numbers for {spelling}",
                where=name,
                hint=f"expected {len(CHANNELS)} numbers, in the order {' '.join(CHANNELS)}",
            )
        found.append(tuple(_as_float32(value, spelling, name) for value in values))
    if not found:
        raise WeightsError(
            f"normalization has no list of numbers for {key}",
            where=name,
            hint=f"expected under zscore_{key} or {key}",
        )
    if len(set(found)) > 1:
        raise WeightsError(
            f"zscore_{key} and {key} differ", where=name, hint="keep the one that training used"
        )
    return found[0]


def _as_float32(value: float, spelling: str, name: str) -> float:
    try:
        with np.errstate(over="ignore"):  # infinite, and refused as such with its channel
            return float(np.float32(value))
    except OverflowError as error:  # a whole number that no float holds
        raise WeightsError(
            f"normalization.{spelling} holds a number of {int(value).bit_length()} bits",
            where=name,
            hint="expected finite float32 numbers",
        ) from error


def _check_units(units: object, name: str) -> None:
    if not isinstance(units, dict):
        raise WeightsError(
            "units is not an object of sensor to unit", where=name, hint=f"expected {dict(UNITS)}"
        )
    for sensor, unit in units.items():
        if sensor not in UNITS:
            raise WeightsError(
                f"units of {sensor!r}, expected those of {', '.join(UNITS)}",
                where=name,
                hint="name the sensors so: a unit that nobody reads is one that nobody checks",
            )
        if unicodedata.normalize("NFKC", str(unit)) != unicodedata.normalize("NFKC", UNITS[sensor]):
            raise WeightsError(
                f"{sensor} is in {unit!r}, expected {UNITS[sensor]}",
                where=name,
                hint="convert the statistics, and check the unit of the training windows",
            )


def _check_claims(document: dict[str, Any], section: dict[str, Any], name: str) -> None:
    """Refuse what contradicts the window: numbers for another scaling pass every later gate."""
    method = section.get("method", "z_score")
    z_score = re.match(r"z[-_ ]?score", str(method), re.IGNORECASE)
    if not z_score or section.get("per_channel", True) is not True:
        raise WeightsError(
            f"normalization is {method!r}, expected a z-score for each channel",
            where=name,
            hint="give mean and standard deviation of each channel",
        )
    specs = document.get("model_specs")
    specs = specs if isinstance(specs, dict) else {}
    claims: tuple[tuple[dict[str, Any], str, object], ...] = (
        (document, "sampling_rate_hz", SAMPLING_RATE_HZ),
        (document, "window_size", WINDOW_LENGTH),
        (specs, "sequence_length", WINDOW_LENGTH),
        (specs, "input_shape", [1, *WINDOW_SHAPE]),
        (specs, "latent_dimension", LATENT_SIZE),
        (specs, "output_shape", [1, LATENT_SIZE]),
    )
    for place, key, expected in claims:
        stated = place.get(key, expected)
        if key == "input_shape" and is_one_window(stated):
            continue
        if stated != expected:
            raise WeightsError(
                f"{key} is {place[key]!r}, expected {expected}",
                where=name,
                hint="an encoder of another window cannot be served here; a wrong word is for you to correct",
            )


def is_one_window(shape: object) -> bool:
    """Whether this is one window in any layout that is read: rank 3 or 4, channels first or last."""
    if not isinstance(shape, list):
        return False
    long = [size for size in shape if size != 1]
    return long in ([*WINDOW_SHAPE], [*WINDOW_SHAPE[::-1]])
