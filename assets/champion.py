"""This build beside the champion: the release that the target's ``stable`` names today.

No part of a release's digest: the store of the day has a say in it, so it is kept with the publication.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from assets.metrics import decibels
from assets.policy import FamilyPolicy
from assets.product import Product, Workbench
from assets.quantized_har import take_built
from assets.toolchain import Toolchain
from assets.weights import read_model
from runtime.contract.errors import ManifestError
from runtime.contract.parity import COMPARED, ITSELF, NO_CHAMPION, ChampionComparison
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE, FloatArray, normalize

CHAMPION_CHANNEL: Final = "stable"
_MOVE_STABLE: Final = "nothing can be compared with this release: move stable to another one"


def compare_with_champion(
    bench: Workbench, toolchain: Toolchain, store: ReleaseStore, policy: FamilyPolicy, *, hef: Product
) -> ChampionComparison:
    """Hold SQNR against the champion's, on the golden windows that the champion carries.

    They are foreign to this build: neither its calibration nor its evaluation windows shaped them, so a
    mistake that both of its own sets share shows here. Each side is held against its own full_precision:
    retrained weights live in another basis.

    Raises:
        StoreError, ManifestError, DigestMismatchError: There is a champion, and it cannot be read.
        ToolchainError: This build's contexts could not be run.
    """
    entry = store.current(toolchain.target, CHAMPION_CHANNEL)
    if entry is None:
        return _comparison(NO_CHAMPION, policy)
    champion = store.resolve(toolchain.target, CHAMPION_CHANNEL)
    windows, reference, found = champion_golden(champion)
    _, trained = read_model(bench, bench.ancestor(hef, "model_weights"))
    normalized = normalize(windows, trained.statistics)
    parsed = toolchain.parse(bench.read(bench.ancestor(hef, "onnx_model")))
    mine = toolchain.infer(parsed, normalized)
    sqnr = _sqnr(mine, toolchain.infer(take_built(bench, hef), normalized))
    theirs = _sqnr(reference, found)
    same = champion.manifest.primary.sha256 == hef.digest
    failures = []
    if not sqnr >= theirs - policy.champion_drop_db:
        failures.append(
            f"SQNR is {sqnr:.4g} dB on the champion's golden windows, the champion {champion.id[:12]} has "
            f"{theirs:.4g} dB: at most {policy.champion_drop_db:g} dB below is allowed"
        )
    model = champion.manifest.model
    return _comparison(
        ITSELF if same else COMPARED,
        policy,
        release=champion.id,
        model=f"{model.name} {model.version}",
        windows=len(windows),
        sqnr_db=sqnr,
        champion_sqnr_db=theirs,
        # Both sides are what a toolchain said, also where parity was judged on a device.
        provenance="emulated",
        metrics=champion.manifest.parity.metrics,
        failures=tuple(failures),
    )


def _comparison(state: str, policy: FamilyPolicy, **found: Any) -> ChampionComparison:
    empty: dict[str, Any] = {"release": "", "model": "", "windows": 0, "metrics": {}, "failures": ()}
    empty |= {"sqnr_db": None, "champion_sqnr_db": None, "provenance": ""}
    return ChampionComparison(state=state, allowed_drop_db=policy.champion_drop_db, **{**empty, **found})


def champion_golden(champion: Release) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Windows (N, 100, 9) in physical units, full_precision and artifact (N, 64) of a release, verified."""
    name = champion.manifest.golden.file
    data, where = champion.read(name), f"champion {champion.id[:12]}/{name}"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            windows, *latents = (archive[key] for key in ("windows", "full_precision", "artifact"))
    except Exception as error:
        # numpy and zipfile raise nearly anything for a file that is none of theirs.
        what = f"cannot be read: {type(error).__name__}: {error}"
        raise ManifestError(what, where=where, hint=_MOVE_STABLE) from error
    shapes: list[tuple[int, ...]] = [windows.shape, *(array.shape for array in latents)]
    count = champion.manifest.golden.windows
    if count < 1 or shapes != [(count, *WINDOW_SHAPE), (count, LATENT_SIZE), (count, LATENT_SIZE)]:
        what = f"shapes are {shapes}, the manifest says {count} windows"
        raise ManifestError(what, where=where, hint=_MOVE_STABLE)
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in (windows, *latents)):
        raise ManifestError("holds something else than finite float32", where=where, hint=_MOVE_STABLE)
    return windows, latents[0], latents[1]


def _sqnr(reference: FloatArray, found: FloatArray) -> float:
    wide: npt.NDArray[np.float64] = reference.astype(np.float64)
    return decibels(np.sum(wide**2), np.sum((found - wide) ** 2))
