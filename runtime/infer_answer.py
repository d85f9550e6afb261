"""The answer to windows: latents and motif scores as JSON, or as float32."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.contract.window import FloatArray

JSON_TYPE: Final = b"application/json"
OCTETS_TYPE: Final = b"application/octet-stream"
Scores = npt.NDArray[np.float64]

_ENCODER: Final = msgspec.json.Encoder()
_ACCEPT_BYTES: Final = 512
_QUALITY: Final = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_GENERAL: Final = (b"application/*", b"*/*")


def choose(accept: bytes) -> bytes | None:
    """The media type of an answer to this ``Accept``: JSON, octets where preferred, None for neither.

    A part whose quality is no number from 0 to 1 counts as one without; more than 512 bytes, which no client
    sends that knows what it wants, as no ``Accept`` at all.
    """
    return JSON_TYPE if not accept or len(accept) > _ACCEPT_BYTES else _choose(accept)


@lru_cache(64)
def _choose(accept: bytes) -> bytes | None:
    named: dict[bytes, float] = {}
    for part in accept.lower().split(b","):
        name, *parameters = (piece.strip() for piece in part.split(b";"))
        qualities = [found for found in map(_QUALITY.fullmatch, parameters) if found]
        named[name] = float(qualities[0][1]) if qualities else 1.0
    general = next((named[name] for name in _GENERAL if name in named), 0.0)
    json, octets = named.get(JSON_TYPE, general), named.get(OCTETS_TYPE, general)
    if json == octets == 0:
        return None
    return JSON_TYPE if json >= octets else OCTETS_TYPE


def one_as_json(latent: FloatArray, scores: Scores) -> bytes:
    """``{"latent": [64], "motif_scores": [M]}`` of float32 (64,) and float64 (M,)."""
    return _ENCODER.encode({"latent": latent.tolist(), "motif_scores": scores.tolist()})


def as_octets(latents: FloatArray, scores: Scores) -> bytes:
    """float32, little endian: for each window its latent, then its scores; of one or of N of each."""
    return np.concatenate([latents, scores], axis=-1).astype("<f4").tobytes()


class JsonParts:
    """The JSON answer to several windows, put together slice by slice."""

    def __init__(self) -> None:
        self._latents: list[bytes] = []
        self._scores: list[bytes] = []

    def add(self, latents: FloatArray, scores: Scores) -> None:
        """Add float32 (N, 64) and float64 (N, M)."""
        self._latents.append(_ENCODER.encode(latents.tolist())[1:-1])
        self._scores.append(_ENCODER.encode(scores.tolist())[1:-1])

    def body(self) -> bytes:
        """``{"latent": [[64], ...], "motif_scores": [[M], ...]}``."""
        latents, scores = b",".join(self._latents), b",".join(self._scores)
        return b'{"latent":[' + latents + b'],"motif_scores":[' + scores + b"]}"
