"""Laws of the output's integers, and of reading a manifest of schema 1."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.document import to_json
from runtime.contract.errors import ManifestError
from runtime.contract.release import FIRST_RUNTIME, OutputQuantization, manifest_bytes, parse_manifest
from tests.simulators import ReleaseSimulator

SCALES = st.floats(2.0**-20, 2.0**10, width=32)
INTEGERS = st.integers(-(2**15), 2**16 - 1)


@given(st.lists(INTEGERS, min_size=1, max_size=64), SCALES, INTEGERS)
def test_integers_come_back_from_latents(values: list[int], scale: float, zero_point: int) -> None:
    """As an artifact makes them: the difference as float32 times a float32 step."""
    integers = np.asarray(values, np.int64)
    latents = (integers - zero_point).astype(np.float32) * np.float32(scale)
    assert latents.dtype == np.float32
    output = OutputQuantization(scale=scale, zero_point=zero_point)
    np.testing.assert_array_equal(output.integers(latents), integers)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), SCALES, INTEGERS)
def test_no_finite_latent_wraps_around(latent: float, scale: float, zero_point: int) -> None:
    """A difference of any two integers keeps its sign, however wild a latent is."""
    output = OutputQuantization(scale=scale, zero_point=zero_point)
    here, zero = output.integers(np.asarray([latent, 0], np.float32))
    assert np.sign(here - zero) in (0, np.sign(latent))
    assert abs(int(here)) <= 2**53


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_step_is_above_zero(scale: float) -> None:
    with pytest.raises(ManifestError, match=r"output\.scale"):
        OutputQuantization(scale=scale, zero_point=0)


@pytest.mark.parametrize("zero_point", [-(2**15) - 1, 2**16, 10**30])
def test_a_zero_point_fits_16_bits(zero_point: int) -> None:
    with pytest.raises(ManifestError, match=r"output\.zero_point"):
        OutputQuantization(scale=1.0, zero_point=zero_point)


def schema_1() -> dict[str, Any]:
    """What a manifest of today would have been in schema 1."""
    simulator = ReleaseSimulator()
    document: dict[str, Any] = json.loads(manifest_bytes(simulator.manifest(simulator.contents())))
    document["schema"] = 1
    del document["minimum_runtime"]
    del document["calibration"], document["parity"]["ceilings"]
    del document["golden"]["output"], document["golden"]["kernel_family"]
    return document


DOCUMENT = schema_1()
OBJECTS: tuple[tuple[str, ...], ...] = (
    (),
    ("golden",),
    ("input",),
    ("input", "normalization"),
    ("model",),
    ("motif_head",),
    ("output",),
    ("parity",),
    ("toolchain",),
)
JSON: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just({}) | st.just([])
)


def test_what_was_not_said_is_not_known() -> None:
    manifest = parse_manifest(to_json(DOCUMENT))
    assert (manifest.schema, manifest.calibration.origin, manifest.calibration.windows) == (1, "unknown", 0)
    assert manifest.minimum_runtime == FIRST_RUNTIME


def keys_of(place: tuple[str, ...]) -> set[str]:
    value: Any = DOCUMENT
    for step in place:
        value = value[step]
    return set(value)


@given(st.sampled_from(OBJECTS), st.text(max_size=12), JSON)
def test_an_unknown_key_is_never_accepted(place: tuple[str, ...], key: str, value: object) -> None:
    check_refused(place, key, value)


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ((), "calibration"),
        ((), "minimum_runtime"),
        (("parity",), "ceilings"),
        (("golden",), "output"),
        (("golden",), "kernel_family"),
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        {},
        None,
        "",
        "x86-64",
        {"scale": 1.0, "zero_point": 0},
        {"sqnr_db": 1.0},
        {"origin": "captured", "windows": 1, "windows_sha256": "", "strata": {}},
        {"origin": "unknown", "windows": 0, "windows_sha256": "", "strata": {}},
    ],
)
def test_schema_1_may_not_say_what_it_did_not_know(place: tuple[str, ...], key: str, value: object) -> None:
    """Else a document of schema 1 could claim what nobody recorded."""
    check_refused(place, key, value)


def check_refused(place: tuple[str, ...], key: str, value: object) -> None:
    if key in keys_of(place):
        return
    document = inner = json.loads(json.dumps(DOCUMENT))
    for step in place:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(ManifestError) as refused:
        parse_manifest(to_json(document))
    assert "canonically" not in str(refused.value)
