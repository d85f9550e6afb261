"""Motif heads that did not come with the encoder: from a file, or fitted to the calibration latents.

Both are cluster centres: k-means is linear under softmax. The score of centre c for latent z is softmax of
-|z - c|² / t; |z|² is the same for all centres and drops out, which leaves weight 2c/t and bias -|c|²/t.

``python -m assets.motif_head CENTRES --out motif_head.json`` writes the file for a version folder.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import CalibrationError, ManifestError, PipelineError, WeightsError
from runtime.contract.files import write_document
from runtime.contract.motifs import MotifHead
from runtime.contract.window import LATENT_SIZE, FloatArray

MOTIFS: Final = 12
SEED: Final = 20250831
SCHEMA: Final = 1
_WRITE: Final = "write it with python -m assets.motif_head"
K_MEANS: Final = "k-means centres"

Centres = npt.NDArray[np.float64]
"""float64 (M, 64): points among the latents."""


@dataclass(frozen=True, kw_only=True)
class HeadOrigin:
    """How a head file came about; shown, and decides nothing.

    Args:
        method: ``k-means centres`` as the command writes it, or any other in words.
        temperature: t, in squared units of the latent; None where the method has none.
        source: Name of the file that the head was made from; None where there is none.
        source_sha256: Its digest; None likewise.
    """

    method: str
    temperature: float | None
    source: str | None
    source_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class HeadFile:
    """``motif_head.json``, schema 1.

    Args:
        schema: 1.
        names: M motif names, unique.
        weight: M rows of 64 numbers.
        bias: M numbers.
        origin: How it came about.
    """

    schema: int
    names: tuple[str, ...]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    origin: HeadOrigin


def parse_head(data: bytes, where: str) -> tuple[MotifHead, HeadOrigin]:
    """Read a head file.

    Returns:
        The head, labelled ``file``, and how it came about.

    Raises:
        WeightsError: Not what the schema says; names the key.
    """
    try:
        file = from_json(HeadFile, data, where)
    except ManifestError as error:
        raise WeightsError(error.what, where=error.where, hint=_WRITE) from error
    if file.schema != SCHEMA:
        raise WeightsError(f"schema is {file.schema}, expected {SCHEMA}", where=where, hint=_WRITE)
    return make_head("file", file.names, file.weight, file.bias, where), file.origin


def make_head(
    provenance: str, names: Sequence[str], weight: npt.ArrayLike, bias: npt.ArrayLike, where: str
) -> MotifHead:
    """A head of float32 numbers, which is how any of its sources states them.

    Args:
        provenance: One of ``PROVENANCES``.
        names: M names.
        weight: M rows of 64 numbers.
        bias: M numbers.
        where: For messages.

    Raises:
        WeightsError: Counts differ, a number is not a finite float32, or a name cannot be shown.
    """
    for name in names:
        if not name.strip() or not name.isprintable():
            raise WeightsError(
                f"{name!r} cannot name a motif", where=where, hint="names are shown: use printable text"
            )
    try:
        with np.errstate(over="ignore"):  # too large becomes infinite, and is refused as such
            rows = np.asarray(weight, np.float64).astype(np.float32)
            values = np.asarray(bias, np.float64).astype(np.float32)
        return MotifHead(
            provenance=provenance,
            names=tuple(names),
            weight=tuple(tuple(float(v) for v in row) for row in rows),
            bias=tuple(float(v) for v in values),
        )
    except ManifestError as error:
        raise WeightsError(f"{error.where}: {error.what}", where=where, hint=error.hint or _WRITE) from error
    except (ValueError, TypeError) as error:  # rows of different lengths, or a number where rows belong
        raise WeightsError(
            f"weight is not M rows of {LATENT_SIZE} numbers with M biases", where=where, hint=_WRITE
        ) from error


def linear(centres: Centres, temperature: float) -> tuple[Centres, Centres]:
    """K-means centres as a linear layer.

    Args:
        centres: float64 (M, 64).
        temperature: t, above zero, in squared units of the latent.

    Returns:
        Weight float64 (M, 64) and bias float64 (M,).
    """
    return 2.0 * centres / temperature, -np.sum(centres**2, axis=1) / temperature


def fit_head(latents: FloatArray, motifs: int = MOTIFS) -> MotifHead:
    """Cluster calibration latents and write the clusters as a linear layer.

    The temperature is the mean squared distance of a latent to its centre.

    Args:
        latents: float32 (N, 64), full_precision latents of the calibration set.
        motifs: Number of clusters.

    Returns:
        A head labelled ``fitted``, its motifs named ``cluster_0`` and so on, largest first.

    Raises:
        CalibrationError: The latents do not fill that many clusters.
    """
    # scipy takes longer to import than all else here, and only fitting needs it.
    from scipy.cluster.vq import ClusterError, kmeans2

    values = latents.astype(np.float64)
    try:
        if len(np.unique(values, axis=0)) <= motifs:
            raise ClusterError("too few distinct latents")
        rng = np.random.default_rng(SEED)
        centres, members = kmeans2(values, motifs, iter=100, minit="++", missing="raise", seed=rng)
    except ClusterError as error:
        raise CalibrationError(
            f"{len(values)} calibration latents do not fill {motifs} clusters: {error}",
            hint="add varied windows",
        ) from error
    counts = np.bincount(members, minlength=motifs)
    spread = float(np.mean(np.sum((values - centres[members]) ** 2, axis=1)))
    weight, bias = linear(centres[np.argsort(-counts, kind="stable")], spread)
    names = [f"cluster_{index}" for index in range(motifs)]
    return make_head("fitted", names, weight, bias, "k-means")


def read_centres(data: bytes, name: str) -> Centres:
    """Read cluster centres.

    Args:
        data: A file's bytes: ``.npy``, ``.npz`` with one array, or ``.json`` with M rows of 64 numbers.
        name: Its name, which says which of these it is.

    Returns:
        float64 (M, 64).

    Raises:
        WeightsError: Another kind of file, damaged, of another shape, not finite, or with a centre twice.
    """
    try:
        array = np.asarray(_load(data, name))
    except PipelineError:
        raise
    except Exception as error:  # a damaged file makes numpy and zipfile raise almost anything
        raise WeightsError(
            f"cannot be read: {type(error).__name__}: {error}", where=name, hint="save the centres again"
        ) from error
    if array.ndim != 2 or array.shape[1] != LATENT_SIZE or not len(array) or array.dtype.kind not in "fiu":
        raise WeightsError(
            f"holds {array.dtype} {array.shape}, expected numbers (M, {LATENT_SIZE}), a row for each centre",
            where=name,
            hint="cluster the latents themselves, with no reduction before",
        )
    centres = array.astype(np.float64)
    if not np.isfinite(centres).all():
        row = int(np.argwhere(~np.isfinite(centres))[0][0])
        raise WeightsError(f"centre {row} is not finite", where=name, hint="look at the latents")
    if len(np.unique(centres, axis=0)) != len(centres):
        raise WeightsError(
            "a centre is there twice: its motifs would always tie", where=name, hint="ask for fewer clusters"
        )
    return centres


def _load(data: bytes, name: str) -> Any:
    if name.endswith(".json"):
        return json.loads(data)
    if not name.endswith((".npy", ".npz")):
        raise WeightsError(
            "unknown kind of file, expected .npy, .npz or .json", where=name, hint="save it with numpy.save"
        )
    loaded = np.load(io.BytesIO(data), allow_pickle=False)  # never code
    if isinstance(loaded, np.ndarray):
        return loaded
    if len(loaded.files) != 1:
        raise WeightsError(
            f"holds {len(loaded.files)} arrays ({', '.join(map(repr, loaded.files))}), expected one",
            where=name,
            hint="save the centres alone",
        )
    return loaded[loaded.files[0]]


def head_from_centres(
    data: bytes, name: str, *, names: Sequence[str] | None = None, temperature: float | None = None
) -> HeadFile:
    """A head file from cluster centres.

    Args:
        data: The centres, as ``read_centres`` takes them.
        name: Their file's name.
        names: M motif names; ``cluster_0`` and so on where there are none.
        temperature: t, above zero. Without: the mean squared distance of a centre to its nearest other
            one (1 for a single centre), since the spread of the latents is not in the centres. It makes
            scores sharper or softer and never changes which is largest.

    Raises:
        WeightsError: What ``read_centres`` refuses, another number of names, or a temperature that makes
            numbers that float32 does not hold.
    """
    centres = read_centres(data, name)
    chosen = _spacing(centres) if temperature is None else temperature
    if not (np.isfinite(chosen) and chosen > 0):
        raise WeightsError(
            f"temperature is {chosen}, expected a number above zero", where=name, hint="give --temperature"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by name
        weight, bias = linear(centres, float(chosen))
    labels = list(names) if names else [f"cluster_{index}" for index in range(len(centres))]
    head = make_head("file", labels, weight, bias, name)
    origin = HeadOrigin(
        method=K_MEANS, temperature=float(chosen), source=name, source_sha256=sha256_bytes(data)
    )
    return HeadFile(schema=SCHEMA, names=head.names, weight=head.weight, bias=head.bias, origin=origin)


def _spacing(centres: Centres) -> float:
    if len(centres) == 1:
        return 1.0
    nearest = []
    for index, centre in enumerate(centres):
        with np.errstate(over="ignore"):
            distances = np.sum((centres - centre) ** 2, axis=1)
        nearest.append(np.delete(distances, index).min())
    return float(np.mean(nearest))


def main(argv: Sequence[str] | None = None) -> int:
    """Write a head file from cluster centres.

    Returns:
        0, or 1 where the centres are refused or a file cannot be read or written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m assets.motif_head", description="Write motif_head.json from cluster centres."
    )
    parser.add_argument("centres", type=Path, help=".npy, .npz or .json with (M, 64) finite numbers")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--names", help="M motif names, separated by commas")
    parser.add_argument("--temperature", type=float, help="t; default: the centres' mean squared spacing")
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.names.split(",")] if options.names is not None else None
    try:
        head = head_from_centres(
            options.centres.read_bytes(), options.centres.name, names=names, temperature=options.temperature
        )
        write_document(options.out, to_json(head))
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(head.names)} motifs, temperature {head.origin.temperature:.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
