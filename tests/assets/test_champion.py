"""The champion: what ``stable`` names, compared on the golden windows that it carries."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.assembly import GOLDEN_NAME
from assets.canary import assemble, publish_canary
from assets.champion import champion_golden, compare_with_champion, sqnr_by_window
from assets.policy import load_policy
from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import DigestMismatchError, ManifestError, PublicationRefusedError
from runtime.contract.parity import (
    EVALUATION_WINDOWS,
    GOLDEN_WINDOWS,
    ITSELF,
    NO_CHAMPION,
    REPORT_NAME,
    ChampionComparison,
    ParityEvidence,
)
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import SignatureError
from runtime.contract.window import FloatArray
from tests.chain import Chain
from tests.keys import BUILD, MANAGER, a_store
from tests.simulators import flip_bit

DATA = Path(__file__).parent.parent / "data"
pytestmark = pytest.mark.build

ELSEWHERE = {"evaluation_sha256": "0" * 64}
"""As if this build had been judged on other windows than the champion."""


def compare(chain: Chain, store: ReleaseStore, **changes: Any) -> ChampionComparison:
    return compare_with_champion(
        chain.bench,
        chain.toolchain,
        store,
        load_policy(),
        hef=chain.products["hef"],
        evidence=dataclasses.replace(chain.evidence, **changes),
    )


def publish(chain: Chain, store: ReleaseStore) -> Release:
    return publish_canary(
        chain.bench,
        chain.toolchain,
        store,
        hef=chain.products["hef"],
        parity_report=chain.products["parity_report"],
        actor="test",
        reason="test",
        key=BUILD,
    )


def with_golden(
    chain: Chain, store: ReleaseStore, noise: float, damage: Callable[[bytes], bytes] = lambda data: data
) -> Release:
    """A stable release whose artifact said something noisier, or more exact, about its golden windows.

    ``damage`` is done to the file before it is published, so that its digest is right.
    """

    def noisier(data: bytes) -> bytes:
        with np.load(io.BytesIO(data)) as archive:
            arrays: dict[str, FloatArray] = dict(archive)
        error = np.random.default_rng(1).normal(size=arrays["full_precision"].shape)
        error *= noise * np.linalg.norm(arrays["full_precision"]) / np.linalg.norm(error)
        arrays["artifact"] = (arrays["full_precision"] + error).astype(np.float32)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return damage(buffer.getvalue())

    return stable_with(chain, store, GOLDEN_NAME, noisier)


def with_sqnr(chain: Chain, store: ReleaseStore, better_db: float) -> Release:
    """A stable release whose parity, on the same evaluation windows, was better by so much."""

    def better(data: bytes) -> bytes:
        evidence = from_json(ParityEvidence, data, REPORT_NAME)
        metrics = {**evidence.result.metrics, "sqnr_db": evidence.result.metrics["sqnr_db"] + better_db}
        return to_json(
            dataclasses.replace(evidence, result=dataclasses.replace(evidence.result, metrics=metrics))
        )

    return stable_with(chain, store, REPORT_NAME, better)


def stable_with(chain: Chain, store: ReleaseStore, name: str, change: Callable[[bytes], bytes]) -> Release:
    """The chain's release with one file changed, published and named by ``stable``."""
    manifest, files = assemble(
        chain.bench,
        chain.toolchain,
        hef=chain.products["hef"],
        parity_report=chain.products["parity_report"],
    )
    files[name] = change(files[name])
    changed = tuple(
        dataclasses.replace(a, sha256=sha256_bytes(files[name]), size=len(files[name]))
        if a.name == name
        else a
        for a in manifest.artifacts
    )
    release = store.publish(dataclasses.replace(manifest, artifacts=changed), files, BUILD)
    store.point("stable", release, actor="test", reason="test", key=MANAGER)
    return release


def test_no_champion_is_no_obstacle_and_says_so(chain: Chain, tmp_path: Path) -> None:
    found = compare(chain, a_store(tmp_path / "none"))
    assert (found.state, found.passed) == (NO_CHAMPION, True)
    assert (found.sqnr_db, found.champion_sqnr_db, found.metrics) == (None, None, {})


def test_a_stable_from_before_signatures_is_nobodys(chain: Chain, tmp_path: Path) -> None:
    """Else a store that was made before could never be built into again."""
    shutil.copytree(DATA / "schema1", tmp_path / "store")
    store = a_store(tmp_path / "store")
    assert compare(chain, store).state == NO_CHAMPION
    publish(chain, store)
    assert store.current("emulator", "canary") is not None


def test_a_stable_that_was_altered_is_an_obstacle(chain: Chain, tmp_path: Path) -> None:
    store = a_store(tmp_path)
    release = publish(chain, store)
    store.point("stable", release, actor="test", reason="test", key=MANAGER)
    path = tmp_path / "channels/emulator/stable/00000001.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"sig": "', b'"sig": "AAAA'))
    with pytest.raises(SignatureError):
        compare(chain, store)


def test_the_same_artifact_compares_as_equal(chain: Chain, tmp_path: Path) -> None:
    store = a_store(tmp_path)
    release = publish(chain, store)
    store.point("stable", release, actor="test", reason="test", key=MANAGER)
    found = compare(chain, store)
    assert (found.state, found.release, found.passed) == (ITSELF, release.id, True)
    assert (found.windows, found.provenance) == (480, "emulated")
    assert found.sqnr_db == pytest.approx(found.champion_sqnr_db, abs=1e-6)
    assert found.metrics == release.manifest.parity.metrics


@pytest.mark.parametrize(("better_db", "passes"), [(1.0, True), (2.0, False)])
def test_at_most_so_much_below_the_champion(
    chain: Chain, tmp_path: Path, better_db: float, passes: bool
) -> None:
    """1.5 dB is allowed: 1 dB below is published, 2 dB below is refused, though parity passed."""
    store = a_store(tmp_path)
    champion = with_sqnr(chain, store, better_db)
    found = compare(chain, store)
    assert (found.compared_on, found.windows) == (EVALUATION_WINDOWS, 480)
    assert found.champion_sqnr_db is not None
    assert found.sqnr_db is not None
    assert found.champion_sqnr_db - found.sqnr_db == pytest.approx(better_db)
    assert found.passed is passes
    if passes:
        publish(chain, store)
        return
    with pytest.raises(PublicationRefusedError, match=r"at most 1\.5 dB below is allowed"):
        publish(chain, store)
    assert store.identifiers() == [champion.id]
    assert store.current("emulator", "canary") is None


@pytest.mark.parametrize(("better_db", "passes"), [(1.0, True), (2.0, False)])
def test_other_evaluation_windows_leave_the_champions_golden_ones(
    chain: Chain, tmp_path: Path, better_db: float, passes: bool
) -> None:
    """Each window counts alike: one burst among 24 would decide the power of all errors together."""
    store = a_store(tmp_path)
    _, reference, artifact = champion_golden(publish(chain, a_store(tmp_path / "probe")))
    with_golden(chain, store, 0.03)
    _, _, recorded = champion_golden(store.resolve("emulator", "stable"))
    mine, theirs = sqnr_by_window(reference, artifact), sqnr_by_window(reference, recorded)
    noise = 0.03 * 10 ** ((theirs - mine - better_db) / 20)
    with_golden(chain, store, noise)
    found = compare(chain, store, **ELSEWHERE)
    assert (found.compared_on, found.windows) == (GOLDEN_WINDOWS, 24)
    assert found.sqnr_db == pytest.approx(mine, abs=0.01)
    assert found.champion_sqnr_db == pytest.approx(mine + better_db, abs=0.05)
    assert found.passed is passes
    loud = np.copy(artifact)
    loud[0] += 100
    assert sqnr_by_window(reference, loud) > mine - 4


def test_a_champion_that_cannot_be_read_is_an_error_and_no_missing_one(chain: Chain, tmp_path: Path) -> None:
    store = a_store(tmp_path)
    release = publish(chain, store)
    store.point("stable", release, actor="test", reason="test", key=MANAGER)
    flip_bit(release.directory / release.manifest.golden.file, byte=400)
    with pytest.raises(DigestMismatchError):
        compare(chain, store, **ELSEWHERE)


def without(name: str) -> Callable[[bytes], bytes]:
    """The file without one of its arrays."""
    return changed_array(lambda arrays: arrays.pop(name))


def changed_array(change: Callable[[dict[str, FloatArray]], object]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        with np.load(io.BytesIO(data)) as archive:
            arrays: dict[str, FloatArray] = dict(archive)
        change(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read: BadZipFile"),
        (lambda data: b"", "cannot be read: EOFError"),
        (without("full_precision"), "cannot be read: KeyError"),
        (changed_array(lambda a: a.update(artifact=a["artifact"] * np.nan)), "finite float32"),
        (changed_array(lambda a: a.update(windows=a["windows"][:4])), "the manifest says 24 windows"),
    ],
)
def test_a_champion_published_with_golden_windows_of_no_use_says_what_to_do(
    chain: Chain, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    store = a_store(tmp_path)
    with_golden(chain, store, 0.05, damage)
    with pytest.raises(ManifestError, match=words) as caught:
        compare(chain, store, **ELSEWHERE)
    assert "move stable" in caught.value.hint


def test_a_champion_of_the_same_weights_is_no_part_of_the_digest(chain: Chain, tmp_path: Path) -> None:
    """Another store of the day, the same release; the comparison is kept beside it."""
    alone, beside = a_store(tmp_path / "alone"), a_store(tmp_path / "beside")
    with_sqnr(chain, beside, 0.5)
    assert compare(chain, beside).state == ITSELF
    first, second = publish(chain, alone), publish(chain, beside)
    assert first.id == second.id
    kept = [{path.name for path in store.evidence(first.id)} for store in (alone, beside)]
    assert kept[0] != kept[1]
