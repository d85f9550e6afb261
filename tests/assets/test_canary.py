"""Only a release whose own artifact passed parity gets out, and equal inputs give equal bytes."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from assets.assembly import GOLDEN_NAME
from assets.calibration import read_files
from assets.canary import assemble, publish_canary
from assets.parity import make_parity_report
from assets.policy import load_policy
from assets.product import Product, ProductMissingError, ProductMixedError, Workbench
from assets.quantized_har import make_quantized_har, take_built
from assets.toolchain.emulator import INTEGER_PATHS, EmulatorToolchain
from runtime.contract.audit import store_problems
from runtime.contract.calibration_statistics import CalibrationStatistics, read_calibration_statistics
from runtime.contract.document import to_json
from runtime.contract.errors import (
    DigestMismatchError,
    OnnxModelError,
    PublicationRefusedError,
    StoreError,
    ToolchainError,
)
from runtime.contract.parity import LATENTS_NAME, REPORT_NAME
from runtime.contract.promotion import Decision, mark_bad
from runtime.contract.release import CalibrationRecord, manifest_bytes
from runtime.contract.store import ReleaseStore
from runtime.contract.window import normalize
from sample.motions import MOTIFS
from tests.assets.test_calibration import load, with_set
from tests.chain import CALIB_DATA, SAMPLE_VERSION, Chain, build_chain, strict_policy
from tests.keys import BUILD, MANAGER, a_store
from tests.simulators import ReleaseSimulator

pytestmark = pytest.mark.build


def publish(chain: Chain, store: Path, **changed: Product) -> str:
    products = {name: chain.products[name] for name in ("hef", "parity_report")} | changed
    release = publish_canary(
        chain.bench, chain.toolchain, a_store(store), **products, actor="test", reason="test", key=BUILD
    )
    return release.id


def report_with(chain: Chain, bench: Workbench, **changes: object) -> Product:
    """A parity report that says something else, made from the same products."""
    evidence = replace(chain.evidence, result=replace(chain.evidence.result, **changes))  # type: ignore[arg-type]
    latents = chain.bench.read(chain.products["parity_report"], LATENTS_NAME)
    files = {REPORT_NAME: to_json(evidence), LATENTS_NAME: latents}
    return bench.put("emulator/parity_report", files, made_from=[chain.products["hef"]])


def test_release_carries_what_a_pi_needs(chain: Chain, tmp_path: Path) -> None:
    store = a_store(tmp_path)
    release = store.open(publish(chain, tmp_path))
    manifest = release.manifest
    entry = store.current("emulator", "canary")
    assert entry is not None
    assert (entry.release, entry.previous, entry.actor) == (release.id, "", "test")
    assert manifest.artifact == "tcn_encoder-v0.1.0.emulated-int8.onnx"
    assert manifest.input.normalization == chain.trained.statistics
    assert manifest.motif_head == chain.trained.head
    assert manifest.output.provenance == "emulated"
    assert not manifest.toolchain.hardware
    assert manifest.upstream == {product.asset: product.digest for product in chain.products.values()}
    assert manifest.toolchain.options["integer_path"] in ("u8s8", "u8s8-7bit")
    golden = np.load(io.BytesIO(release.read(GOLDEN_NAME)))
    full = chain.toolchain.infer(
        chain.toolchain.parse(chain.bench.read(chain.products["onnx_model"])),
        normalize(golden["windows"], chain.trained.statistics),
    )
    np.testing.assert_allclose(golden["full_precision"], full, atol=1e-4)
    written = chain.sets.index.sets
    assert tuple(golden["strata"]) == chain.sets.golden.strata
    assert Counter(golden["strata"].tolist()) == written["golden"].strata
    assert manifest.calibration == CalibrationRecord(
        origin="synthetic",
        windows=1200,
        windows_sha256=written["calibration"].windows_sha256,
        strata=dict.fromkeys(MOTIFS, 100),
    )
    # No looser than what another kind of CPU may need: the runtime's golden check would see nothing.
    step = chain.toolchain.output_quantization(take_built(chain.bench, chain.products["hef"])).scale
    assert manifest.golden.artifact_tolerance == 2 * step
    assert step < 0.2
    assert len(golden["windows"]) == manifest.golden.windows >= 16


def test_release_carries_what_its_calibration_looked_like(chain: Chain, tmp_path: Path) -> None:
    release = a_store(tmp_path).open(publish(chain, tmp_path))
    found = read_calibration_statistics(release)
    assert isinstance(found, CalibrationStatistics)
    windows = normalize(chain.sets.calibration.windows, chain.trained.statistics)
    graph = chain.bench.read(chain.products["onnx_model"])
    latents = chain.toolchain.infer(chain.toolchain.parse(graph), windows).astype(np.float64)
    assert found.windows == len(windows)
    assert found.windows_sha256 == release.manifest.calibration.windows_sha256
    np.testing.assert_allclose(found.input_mean, windows.mean((0, 1), dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(found.latent_mean, latents.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.latent_sd, latents.std(0), atol=1e-5)
    assert release.manifest.golden.output is not None
    assert found.latent_step == release.manifest.golden.output.scale


def test_a_second_build_elsewhere_is_the_same_release(chain: Chain, tmp_path: Path) -> None:
    """Other directory, other number of calibration threads: byte for byte the same."""
    toolchain = EmulatorToolchain(threads=2)
    again = build_chain(tmp_path / "elsewhere", toolchain=toolchain)
    (first, files), (second, other_files) = (
        assemble(
            each.bench,
            each.toolchain,
            hef=each.products["hef"],
            parity_report=each.products["parity_report"],
        )
        for each in (chain, again)
    )
    assert manifest_bytes(first) == manifest_bytes(second)
    assert files == other_files
    assert publish(chain, tmp_path / "a") == publish(again, tmp_path / "b")


@pytest.mark.slow
def test_the_path_without_vnni_is_recorded_and_passes(tmp_path: Path) -> None:
    """Forced: 7-bit weights still meet the policy, the manifest says so, and the runtime takes it."""
    from runtime.active_model import load_active_model
    from runtime.config import RuntimeConfig

    forced = build_chain(tmp_path / "bench", toolchain=EmulatorToolchain("u8s8-7bit"))
    assert forced.evidence.result.passed
    release = a_store(tmp_path / "store").open(publish(forced, tmp_path / "store"))
    assert release.manifest.toolchain.options["integer_path"] == "u8s8-7bit"
    config = RuntimeConfig(
        release_store=tmp_path / "store",
        release_channel="canary",
        trust_root=Path(os.environ["TRUST_ROOT"]),
    )
    model = load_active_model(config)
    latent, scores = model.infer(forced.sets.golden.windows[0])
    assert (latent.shape, scores.shape) == ((64,), (12,))
    model.close()


def test_publishing_again_moves_nothing(chain: Chain, tmp_path: Path) -> None:
    assert publish(chain, tmp_path) == publish(chain, tmp_path)
    assert len(a_store(tmp_path).history("emulator", "canary")) == 1
    assert not list((tmp_path / "releases").glob(".*"))


def test_canary_does_not_return_to_what_was_marked_bad(chain: Chain, tmp_path: Path) -> None:
    """The same inputs give the same release: a build again would undo what a person said."""
    store = a_store(tmp_path)
    identifier = publish(chain, tmp_path)
    other = ReleaseSimulator(version="other").publish(tmp_path, "canary")
    mark_bad(store, identifier, "stable", Decision(actor="Ada", reason="too hot"), MANAGER)
    with pytest.raises(
        PublicationRefusedError, match=r"emulator/canary: marked bad by Ada on .*: too hot"
    ) as e:
        publish(chain, tmp_path)
    assert "change what it is built from" in e.value.hint
    assert store.resolve("emulator", "canary").id == other.id
    assert store.holds(identifier)


def nothing_published(store: Path) -> bool:
    return not list(store.rglob("*.json"))


def test_failed_parity_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assets.policy.load_policy", strict_policy)
    failed = build_chain(tmp_path / "bench")
    assert not failed.evidence.result.passed
    with pytest.raises(PublicationRefusedError, match=r"sqnr_db is .* at least 60"):
        publish(failed, tmp_path / "store")
    assert nothing_published(tmp_path / "store")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"artifact_sha256": "ab" * 32}, "parity was computed on abababababab"),
        ({"passed": False}, "parity failed"),
        ({"metrics": {}}, "was not computed"),
        ({"thresholds": {}}, "the policy is"),
        ({"thresholds": {"mean_cosine": -1.0}}, "the policy is"),
        ({"failures": ("something",)}, "something"),
        ({"windows": 0}, "no window"),
    ],
)
def test_a_report_that_does_not_hold_publishes_nothing(
    chain: Chain, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """Also one that merely says ``passed``: the verdict is worked out again."""
    report = report_with(chain, chain.bench, **changes)
    with pytest.raises(PublicationRefusedError, match=words):
        publish(chain, tmp_path, parity_report=report)
    assert nothing_published(tmp_path)


def test_parity_about_an_earlier_artifact_publishes_nothing(chain: Chain, tmp_path: Path) -> None:
    """An artifact of the other integer path with this one's report."""
    (path,) = {*INTEGER_PATHS} - {EmulatorToolchain().integer_path}
    other = build_chain(tmp_path / "bench", toolchain=EmulatorToolchain(path))
    assert other.products["hef"].digest != chain.products["hef"].digest
    foreign = replace(chain.evidence, upstream=other.evidence.upstream)
    latents = other.bench.read(other.products["parity_report"], LATENTS_NAME)
    files = {REPORT_NAME: to_json(foreign), LATENTS_NAME: latents}
    report = other.bench.put("emulator/parity_report", files)
    with pytest.raises(PublicationRefusedError, match="parity was computed on"):
        publish(other, tmp_path / "s", parity_report=report)
    assert nothing_published(tmp_path / "s")


def test_a_stricter_policy_wants_a_new_judgement(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = load_policy()
    stricter = {**committed.metrics, "mean_cosine": replace(committed.metrics["mean_cosine"], at_least=0.951)}
    monkeypatch.setattr("assets.policy.load_policy", lambda: replace(committed, metrics=stricter))
    with pytest.raises(PublicationRefusedError, match="materialize emulator/parity_report again"):
        publish(chain, tmp_path)
    assert nothing_published(tmp_path)


@pytest.mark.parametrize("changed", [{"active_share": 0.1}, {"clear_margin": 0.2}])
def test_other_meanings_of_the_metrics_want_a_new_judgement(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, float]
) -> None:
    """Fewer active dimensions would make a better worst one: bounds are not all of a policy."""
    committed = replace(load_policy(), **changed)  # type: ignore[arg-type]
    monkeypatch.setattr("assets.policy.load_policy", lambda: committed)
    with pytest.raises(PublicationRefusedError, match="materialize emulator/parity_report again"):
        publish(chain, tmp_path)
    assert nothing_published(tmp_path)


@pytest.mark.parametrize("change", [{"schema": 1}, {"later": True}])
def test_a_report_of_another_version_is_refused_by_name(
    chain: Chain, tmp_path: Path, change: dict[str, object]
) -> None:
    document = {**json.loads(to_json(chain.evidence)), **change}
    latents = chain.bench.read(chain.products["parity_report"], LATENTS_NAME)
    files = {REPORT_NAME: to_json(document), LATENTS_NAME: latents}
    report = chain.bench.put("emulator/parity_report", files, made_from=[chain.products["hef"]])
    with pytest.raises(ProductMissingError, match="materialize emulator/parity_report again"):
        publish(chain, tmp_path, parity_report=report)
    assert nothing_published(tmp_path)


def test_evidence_that_cannot_be_kept_moves_no_channel(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release without its evidence is named by no channel; publishing again makes up for it."""
    store = a_store(tmp_path)

    def full(*_: object) -> None:
        raise StoreError("no space left")

    with monkeypatch.context() as disk:
        disk.setattr(ReleaseStore, "add_evidence", full)
        with pytest.raises(StoreError):
            publish(chain, tmp_path)
    assert store.current("emulator", "canary") is None
    (identifier,) = store.identifiers()
    assert publish(chain, tmp_path) == identifier
    assert {path.suffix for path in store.evidence(identifier)} == {".html", ".json"}
    entry = store.current("emulator", "canary")
    assert entry is not None
    assert entry.release == identifier


def test_a_release_names_the_tools_that_made_it(chain: Chain, tmp_path: Path) -> None:
    """Another version or path than the artifact's own may neither compile, judge nor publish."""
    other = EmulatorToolchain(
        "u8s8-7bit" if chain.toolchain.record().options["integer_path"] == "u8s8" else "u8s8"
    )
    hef, report = (chain.products[name] for name in ("hef", "parity_report"))
    with pytest.raises(ToolchainError, match=r"integer_path .* here it is"):
        other.compile(take_built(chain.bench, chain.products["quantized_har"]))
    with pytest.raises(ToolchainError, match="materialize emulator/quantized_har again"):
        make_parity_report(chain.bench, other, hef=hef)
    with pytest.raises(ToolchainError, match="integer_path"):
        assemble(chain.bench, other, hef=hef, parity_report=report)
    release = a_store(tmp_path).open(publish(chain, tmp_path))
    assert {"torch", "onnx", "onnxruntime", "onnxsim", "numpy"} == set(release.manifest.toolchain.tools)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_weights_under_two_names_share_a_workbench(tmp_path: Path) -> None:
    """Equal content, another model name: neither build may trip over the other's files."""
    import shutil

    shutil.copytree(SAMPLE_VERSION, tmp_path / "w" / "renamed" / "v0.1.0")
    store = tmp_path / "s"
    first = build_chain(tmp_path / "bench")
    assert a_store(store).open(publish(first, store)).manifest.model.name == "tcn_encoder"
    second = build_chain(tmp_path / "bench", weights=tmp_path / "w")
    assert a_store(store).open(publish(second, store)).manifest.model.name == "renamed"
    with pytest.raises(ProductMixedError, match="materialize emulator/parity_report again"):
        publish(first, store)


@pytest.mark.slow
def test_new_windows_with_the_same_artifact_are_a_new_judgement(tmp_path: Path) -> None:
    """Other evaluation windows leave the artifact as it is; report and release must not stay."""
    bench, toolchain = Workbench(tmp_path / "bench"), EmulatorToolchain()
    first = build_chain(tmp_path / "bench")
    files = read_files(CALIB_DATA)
    windows, labels = load(files, "evaluation")
    made = with_set(files, "evaluation", windows[:240], labels[:240])
    calibration_set = bench.put("calibration_set", made)
    quantized = make_quantized_har(
        bench, toolchain, onnx_model=first.products["onnx_model"], calibration_set=calibration_set
    )
    assert quantized.digest == first.products["quantized_har"].digest
    # hef is not made again: nothing that it reads has changed.
    report, evidence = make_parity_report(bench, toolchain, hef=first.products["hef"])
    assert evidence.result.windows == 240
    assert evidence.upstream["calibration_set"] == calibration_set.digest
    with pytest.raises(ProductMixedError):
        publish(first, tmp_path / "store")
    store = a_store(tmp_path / "store")
    release = publish_canary(
        bench,
        toolchain,
        store,
        hef=first.products["hef"],
        parity_report=report,
        actor="test",
        reason="test",
        key=BUILD,
    )
    assert release.manifest.upstream["calibration_set"] == calibration_set.digest


def test_another_normalization_of_the_same_graph_is_another_artifact(tmp_path: Path) -> None:
    """Normalization is not in the graph: an artifact may not pass for one of weights that it never saw."""
    import shutil

    from assets.onnx_model import make_onnx_model
    from assets.weights import make_model_weights

    first = build_chain(tmp_path / "bench")
    folder = tmp_path / "w" / "tcn_encoder" / "v0.1.0"
    shutil.copytree(SAMPLE_VERSION, folder)
    (folder / "sha256sum.txt").unlink()
    for name, key in (("normalization.json", "zscore_std"), ("model_config.json", "std")):
        document = json.loads((folder / name).read_text())
        document["normalization"][key] = [1.1 * value for value in document["normalization"][key]]
        (folder / name).write_text(json.dumps(document))
    weights, _ = make_model_weights(first.bench, tmp_path / "w")
    golden = first.sets.golden.windows
    onnx_model, _ = make_onnx_model(first.bench, model_weights=weights, golden=golden)
    assert onnx_model.digest == first.products["onnx_model"].digest
    # quantized_har and hef are not made again.
    with pytest.raises(ProductMixedError, match="materialize what follows model_weights again"):
        make_parity_report(first.bench, first.toolchain, hef=first.products["hef"])
    with pytest.raises(ProductMixedError, match="materialize what follows model_weights again"):
        publish(first, tmp_path / "store")
    assert nothing_published(tmp_path / "store")


def test_what_an_earlier_version_kept_is_refused_by_name(chain: Chain) -> None:
    product = replace(chain.products["hef"], facts={"stage": "compiled", "kind": "x", "suffix": ".x"})
    with pytest.raises(ProductMissingError, match="does not say its record"):
        take_built(chain.bench, product)


def test_golden_windows_are_held_against_the_source_at_publishing(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be newer than the export, which then never saw them."""
    monkeypatch.setattr(
        "assets.assembly.source_latents", lambda trained, windows: np.ones((len(windows), 64), np.float32)
    )
    with pytest.raises(OnnxModelError, match="differs from its source"):
        publish(chain, tmp_path)
    assert nothing_published(tmp_path)


def test_a_damaged_release_is_put_back_by_publishing(chain: Chain, tmp_path: Path) -> None:
    identifier = publish(chain, tmp_path)
    store = a_store(tmp_path)
    path = store.open(identifier).directory / GOLDEN_NAME
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    assert store_problems(store)
    assert publish(chain, tmp_path) == identifier
    assert store_problems(store) == []
    assert len(store.history("emulator", "canary")) == 1


def _put_often(root: Path) -> None:
    bench = Workbench(root)
    for number in range(60):
        bench.put("onnx_model", {"encoder.onnx": str(number).encode()})


def test_two_builds_may_share_a_workbench(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for done in [pool.submit(_put_often, tmp_path) for _ in range(2)]:
            done.result()
    assert len(list((tmp_path / "onnx_model").iterdir())) == 120


def test_products_are_verified_when_they_are_read(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    product = bench.put("onnx_model", {"m.onnx": b"0123"})
    path = bench.directory(product) / "m.onnx"
    path.write_bytes(b"0124")
    with pytest.raises(DigestMismatchError, match="not the file that was made"):
        bench.read(product)
    path.unlink()
    with pytest.raises(ProductMissingError, match="materialize onnx_model"):
        bench.read(product)
    assert bench.read(bench.put("onnx_model", {"m.onnx": b"0123"})) == b"0123"
    with pytest.raises(ProductMissingError, match="never made"):
        bench.latest("onnx_model")


def test_unchanged_content_has_an_unchanged_digest(tmp_path: Path) -> None:
    first = Workbench(tmp_path / "a").put("model_weights", {"b": b"2", "a": b"1"}, facts={"folder": "x"})
    second = Workbench(tmp_path / "b").put("model_weights", {"a": b"1", "b": b"2"}, facts={"folder": "y"})
    assert first.digest == second.digest
    assert first.digest != Workbench(tmp_path / "c").put("model_weights", {"a": b"1", "b": b"3"}).digest
