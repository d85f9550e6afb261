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
from runtime.contract.parity import (
    COMPARED,
    EVALUATION_WINDOWS,
    GOLDEN_WINDOWS,
    ITSELF,
    NO_CHAMPION,
    REPORT_NAME,
    ChampionComparison,
    ParityEvidence,
    of_our_schema,
)
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import UnsignedError
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE, FloatArray, normalize

CHAMPION_CHANNEL: Final = "stable"
_MOVE_STABLE: Final = "nothing can be compared with this release: move stable to another one"


def compare_with_champion(
    bench: Workbench,
    toolchain: Toolchain,
    store: ReleaseStore,
    policy: FamilyPolicy,
    *,
    hef: Product,
    evidence: ParityEvidence,
) -> ChampionComparison:
    """Hold SQNR against the champion's, on the same windows.

    Where the champion was judged on the very evaluation windows of this build, both parities say it.
    Where it was not, on the golden windows that the champion carries: they are foreign to this build, so a
    mistake that its own sets share shows there. They are few, and one burst could decide the power of all
    errors together; so each window's SQNR counts alike. Each side is held against its own
    full_precision: retrained weights live in another basis.

    Raises:
        StoreError, ManifestError, DigestMismatchError: There is a champion, and it cannot be read.
        ToolchainError: This build's contexts could not be run.
    """
    try:
        entry = store.current(toolchain.target, CHAMPION_CHANNEL)
    except UnsignedError:
        entry = None  # written before entries were signed: nobody has promoted anything yet
    if entry is None or not entry.release:
        return _comparison(NO_CHAMPION, policy)
    champion = store.resolve(toolchain.target, CHAMPION_CHANNEL)
    found = _on_evaluation(champion, evidence) or _on_golden(bench, toolchain, champion, hef)
    failures = []
    if not found["sqnr_db"] >= found["champion_sqnr_db"] - policy.champion_drop_db:
        failures.append(
            f"SQNR is {found['sqnr_db']:.4g} dB on {found['compared_on']}, the champion {champion.id[:12]} "
            f"has {found['champion_sqnr_db']:.4g} dB: at most {policy.champion_drop_db:g} dB below is allowed"
        )
    model = champion.manifest.model
    return _comparison(
        ITSELF if champion.manifest.primary.sha256 == hef.digest else COMPARED,
        policy,
        release=champion.id,
        model=f"{model.name} {model.version}",
        metrics=champion.manifest.parity.metrics,
        failures=tuple(failures),
        **found,
    )


def _on_evaluation(champion: Release, evidence: ParityEvidence) -> dict[str, Any] | None:
    """Both parities' SQNR, where they were judged on the same windows."""
    if REPORT_NAME not in {artifact.name for artifact in champion.manifest.artifacts}:
        return None
    where = f"champion {champion.id[:12]}/{REPORT_NAME}"
    judged = of_our_schema(ParityEvidence, champion.read(REPORT_NAME), where)
    if judged is None:
        return None
    sqnr = [each.result.metrics.get("sqnr_db") for each in (evidence, judged)]
    if judged.evaluation_sha256 != evidence.evaluation_sha256 or None in sqnr:
        return None
    provenances = {each.result.provenance for each in (evidence, judged)}
    return {
        "windows": evidence.result.windows,
        "compared_on": EVALUATION_WINDOWS,
        "sqnr_db": sqnr[0],
        "champion_sqnr_db": sqnr[1],
        "provenance": "measured" if provenances == {"measured"} else "emulated",
    }


def _on_golden(bench: Workbench, toolchain: Toolchain, champion: Release, hef: Product) -> dict[str, Any]:
    """This build on the champion's golden windows, and what the champion recorded of them."""
    windows, reference, found = champion_golden(champion)
    _, trained = read_model(bench, bench.ancestor(hef, "model_weights"))
    normalized = normalize(windows, trained.statistics)
    parsed = toolchain.parse(bench.read(bench.ancestor(hef, "onnx_model")))
    mine = toolchain.infer(take_built(bench, hef), normalized)
    return {
        "windows": len(windows),
        "compared_on": GOLDEN_WINDOWS,
        "sqnr_db": sqnr_by_window(toolchain.infer(parsed, normalized), mine),
        "champion_sqnr_db": sqnr_by_window(reference, found),
        # Both sides are what a toolchain said, also where parity was judged on a device.
        "provenance": "emulated",
    }


def _comparison(state: str, policy: FamilyPolicy, **found: Any) -> ChampionComparison:
    empty: dict[str, Any] = {"release": "", "model": "", "windows": 0, "metrics": {}, "failures": ()}
    empty |= {"compared_on": "", "sqnr_db": None, "champion_sqnr_db": None, "provenance": ""}
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


def sqnr_by_window(reference: FloatArray, found: FloatArray) -> float:
    """Mean over windows of each window's own SQNR, dB; float32 (N, 64) each."""
    wide: npt.NDArray[np.float64] = reference.astype(np.float64)
    signal, noise = np.sum(wide**2, axis=1), np.sum((found - wide) ** 2, axis=1)
    return float(np.mean([decibels(each, error) for each, error in zip(signal, noise, strict=True)]))
