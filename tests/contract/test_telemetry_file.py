"""Telemetry files: what was written is read; whatever else is refused whole, by one kind of error."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.telemetry import (
    MOST_FILE_BYTES,
    MOST_UNPACKED_BYTES,
    REASONS,
    KeptWindow,
    Origin,
    Scored,
    TelemetryError,
    encode_file,
    encode_window,
    parse_file,
    printable,
    time_text,
)

ORIGIN = Origin(runtime_version="0.1.0", machine="pi-kitchen", cpu="Raspberry Pi 5")
RELEASE = "ab" * 32


def kept(seed: int = 0, **changes: Any) -> KeptWindow:
    random = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "time": time_text(1_796_000_000.25 + seed),
        "release": RELEASE,
        "reasons": ("low_margin",),
        "window": random.normal(0, 5, (100, 9)).astype(np.float32),
        "latent": random.normal(0, 1, 64).astype(np.float32),
        "motifs": (Scored(motif="walk", score=0.5), Scored(motif="run", score=0.45)),
        "distance": 0.75,
    }
    return KeptWindow(**values | changes)


def a_file(*windows: KeptWindow) -> bytes:
    return encode_file([encode_window(window) for window in windows], ORIGIN)


def lines_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(data).splitlines()]


def packed(lines: list[Any]) -> bytes:
    return gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def same(a: KeptWindow, b: KeptWindow) -> bool:
    arrays = (a.window, b.window), (a.latent, b.latent)
    rest = [(w.time, w.release, w.reasons, w.motifs, w.distance) for w in (a, b)]
    return rest[0] == rest[1] and all(x.tobytes() == y.tobytes() for x, y in arrays)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    seed=st.integers(0, 999),
    value=finite,
    reasons=st.lists(st.sampled_from(REASONS), min_size=1, unique=True),
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=2),
    names=st.tuples(st.text(max_size=300), st.text(max_size=300)),
    distance=st.none() | st.floats(0, 1e30),
)
def test_what_is_written_is_read(
    seed: int,
    value: float,
    reasons: list[str],
    scores: list[float],
    names: tuple[str, str],
    distance: float | None,
) -> None:
    ordered = sorted(scores, reverse=True)
    motifs = [Scored(motif=printable(n), score=s) for n, s in zip(names, ordered, strict=False)]
    one = kept(seed, reasons=tuple(reasons), motifs=tuple(motifs), distance=distance)
    one.window[3, 4] = value
    two = kept(seed + 1)
    found = parse_file(a_file(one, two), "file")
    assert found.origin == ORIGIN
    assert len(found.windows) == 2
    assert same(found.windows[0], one)
    assert same(found.windows[1], two)
    expected = ordered[0] - ordered[1] if len(ordered) > 1 else None
    assert found.windows[0].margin == expected


def test_the_same_windows_give_the_same_bytes_and_say_what_they_are() -> None:
    assert a_file(kept()) == a_file(kept())
    header, line = lines_of(a_file(kept()))
    assert (header["format"], header["schema"], header["windows"]) == ("hailo-pipeline-telemetry", 1, 1)
    assert (header["shape"], header["dtype"], header["channels"][5]) == ([100, 9], "<f4", "gz")
    assert header["units"]["gyroscope"] == "rad/s"
    assert line["time"] == "2026-11-30T00:53:20.250000Z"
    assert np.frombuffer(base64.b64decode(line["window"]), "<f4").tobytes() == kept().window.tobytes()


GOOD = a_file(kept(1), kept(2))


@given(place=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_a_changed_bit_is_refused_or_changes_no_window(place: int, bit: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    try:
        found = parse_file(bytes(data), "file")
    except TelemetryError as error:
        assert error.where.startswith("file")  # noqa: PT017
    else:
        # gzip's own header has bits of no meaning.
        assert all(same(a, b) for a, b in zip(found.windows, (kept(1), kept(2)), strict=True))


@given(length=st.integers(0, len(GOOD) - 1))
def test_a_file_that_was_cut_is_refused(length: int) -> None:
    with pytest.raises(TelemetryError):
        parse_file(GOOD[:length], "file")


@given(data=st.binary(max_size=400))
def test_junk_is_refused(data: bytes) -> None:
    for junk in (data, gzip.compress(data), gzip.compress(data + b"\n")):
        with pytest.raises(TelemetryError):
            parse_file(junk, "file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@given(line=st.integers(0, 2), key=st.integers(0, 20), value=json_values, whole=st.booleans())
def test_any_other_value_in_any_place_is_refused_by_our_error(
    line: int, key: int, value: Any, whole: bool
) -> None:
    lines: list[Any] = lines_of(GOOD)
    if whole:
        lines[line] = value
    else:
        names = sorted(lines[line])
        lines[line][names[key % len(names)]] = value
    try:
        found = parse_file(packed(lines), "file")
    except TelemetryError:
        return
    # What is let through is what a writer may write.
    for window in found.windows:
        assert window.window.shape == (100, 9)
        assert np.isfinite(window.window).all()
        assert np.isfinite(window.latent).all()
        assert all(0 <= scored.score <= 1 for scored in window.motifs)


@pytest.mark.parametrize(
    ("line", "changes", "match"),
    [
        (0, {"schema": 2}, "schema is 2, expected 1"),
        (0, {"windows": 3}, "windows is 3, expected 2"),
        (0, {"channels": ["ax"]}, "channels is"),
        (0, {"machine": "x\x1b[2J"}, "printable"),
        (0, {"machine": "x" * 201}, "printable"),
        (1, {"window": ""}, r"0 bytes, expected float32 \(100, 9\)"),
        (1, {"window": "?"}, "base64"),
        (1, {"window": "é" * 4}, "base64"),
        (1, {"latent": base64.b64encode(np.full(64, np.nan, "<f4").tobytes()).decode()}, "not finite"),
        (1, {"release": "../../etc"}, "SHA-256"),
        (1, {"reasons": []}, "different words"),
        (1, {"reasons": ["far", "far"]}, "different words"),
        (1, {"reasons": ["../x"]}, "different words"),
        (1, {"time": "yesterday"}, "no time"),
        (1, {"motifs": [{"motif": "a", "score": 1.5}]}, "within 0 to 1"),
        (1, {"motifs": []}, "one or two"),
        (1, {"more": 1}, "unknown key 'more'"),
        (2, {"distance": -1}, "line 3: distance"),
    ],
)
def test_what_is_wrong_is_named(line: int, changes: dict[str, Any], match: str) -> None:
    lines = lines_of(GOOD)
    lines[line] |= changes
    with pytest.raises(TelemetryError, match=match):
        parse_file(packed(lines), "file")


def test_a_small_file_does_not_become_a_large_one() -> None:
    bomb = gzip.compress(b"0" * (MOST_UNPACKED_BYTES + 1), 9)
    assert len(bomb) < MOST_FILE_BYTES
    with pytest.raises(TelemetryError, match="bytes unpacked"):
        parse_file(bomb, "file")
    with pytest.raises(TelemetryError, match="more than"):
        parse_file(bytes(MOST_FILE_BYTES + 1), "file")
    with pytest.raises(TelemetryError, match="follows its end"):
        parse_file(GOOD + GOOD, "file")
