"""The chain as Dagster assets: each a thin skin over a plain function in ``assets``.

The heavy imports (torch, onnx, onnxruntime, scipy) are inside the functions: the code location has
to load in a few seconds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, get_type_hints

import dagster as dg
from pydantic import Field

from assets.policy import policy_digest
from assets.product import CODE_VERSION, Product, Workbench
from assets.toolchain.made_with import made_with
from orchestration.conditions import code_changed, inputs_or_code_changed
from orchestration.inputs_view import weights_shown, windows_shown
from orchestration.resources import Places, failures
from runtime.contract.document import sha256_bytes

P = ParamSpec("P")
R = TypeVar("R")

PRODUCTS = "products"
ENGINEERS, BUILDERS, MANAGERS = "team:ml-engineers", "team:gpusrv", "team:release-managers"
"""Whom to ask about an asset."""
CHANNELS_GROUP = "channels"
"""What channels name: beside a target's own group, which reads from weights to canary."""
BUILDS = "builds"
"""The pool of all that builds: one run at a time, whoever asks for it (``dagster.yaml``)."""
Result = dg.MaterializeResult[Product]


class MotifConfig(dg.Config):
    """How many motifs a head gets that is fitted because the weights came without one."""

    motifs: int = Field(default=12, ge=2, le=64, description="Number of k-means clusters.")


class LongStepConfig(dg.Config):
    """Whether a long step may be spared."""

    use_cache: bool = Field(
        default=True,
        description="Take what the same inputs, tools and options gave before. Without it the step is done "
        "again, and its result replaces the kept one.",
    )


def _explained(function: Callable[P, R]) -> Callable[P, R]:
    """A link whose errors of ours become Dagster failures with place and advice."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with failures():
            return function(*args, **kwargs)

    # Dagster reads MaterializeResult in a return annotation as "hands on no value" where an asset
    # has checks of its own; without the annotation the product goes to the IO manager. It wants
    # the other annotations as types, not as the strings that they are in this module.
    hints = get_type_hints(function)
    hints.pop("return", None)
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=hints[name]) for name, p in signature.parameters.items()]
    wrapper.__annotations__ = hints
    setattr(wrapper, "__signature__", inspect.Signature(parameters))  # noqa: B010
    return wrapper


def _result(
    bench: Workbench,
    product: Product,
    extra: Mapping[str, Any] | None = None,
    code_version: str = CODE_VERSION,
    data_version: str = "",
    **rest: Any,
) -> Result:
    """What every materialization records; the data version is the content's digest, or what holds it."""
    metadata: dict[str, Any] = {
        **(extra or {}),
        "digest": product.digest,
        "size": dg.MetadataValue.int(product.size),
        "code_version": code_version,
    }
    metadata.setdefault("path", dg.MetadataValue.path(str(bench.directory(product))))
    return dg.MaterializeResult(
        value=product, metadata=metadata, data_version=dg.DataVersion(data_version or product.digest), **rest
    )


@dg.observable_source_asset(
    io_manager_key=PRODUCTS,
    group_name="inputs",
    tags={"dagster/kind/pytorch": ""},
    description="The newest version folder of trained weights, made elsewhere: identified, or refused. "
    "Builds read what was observed last.",
)
@_explained
def model_weights(places: Places) -> dg.ObserveResult:
    """Look at the weights; keep what was accepted for the builds that follow."""
    from pathlib import Path

    from assets.judgement import judge_weights
    from assets.weights import keep_weights

    bench = places.bench()
    judgement = judge_weights(Path(places.weights_dir))
    product = keep_weights(bench, judgement.folder)
    bench.remember(product)
    return dg.ObserveResult(
        data_version=dg.DataVersion(product.digest), metadata=weights_shown(bench, product, judgement)
    )


@dg.asset(
    code_version=CODE_VERSION,
    io_manager_key=PRODUCTS,
    pool=BUILDS,
    owners=[ENGINEERS],
    group_name="inputs",
    kinds={"numpy"},
    automation_condition=code_changed(),
    description="IMU windows for calibration and evaluation, and golden windows; disjoint.",
)
@_explained
def calibration_set(places: Places) -> Result:
    """Read the window sets that a build uses."""
    from pathlib import Path

    from assets.calibration import make_calibration_set

    bench = places.bench()
    product, sets = make_calibration_set(bench, Path(places.calib_dir))
    return _result(bench, product, windows_shown(sets))


@dg.asset(
    code_version=CODE_VERSION,
    io_manager_key=PRODUCTS,
    pool=BUILDS,
    owners=[ENGINEERS],
    group_name="inputs",
    kinds={"onnx"},
    automation_condition=inputs_or_code_changed(),
    description="The canonical graph: imu_window [1,9,1,100] to latent [1,64], opset 17.",
)
@_explained
def onnx_model(places: Places, model_weights: Product) -> Result:
    """Export the encoder, and hold it against its source on the golden windows."""
    from pathlib import Path

    from assets.calibration import parse_sets, read_files
    from assets.onnx_model import make_onnx_model

    bench = places.bench()
    golden = parse_sets(read_files(Path(places.calib_dir)), places.calib_dir).golden.windows
    product, agreement = make_onnx_model(bench, model_weights=model_weights, golden=golden)
    # Two sets of weights may share a graph, and differ in normalization or head, which later links take
    # from the weights behind it: those are out of date when the weights are others, whatever the graph is.
    version = sha256_bytes(f"{product.digest} {model_weights.digest}".encode())
    return _result(bench, product, {**agreement, "golden windows": len(golden)}, data_version=version)


def target_assets(target: str, dfc_python: str = "") -> Sequence[dg.AssetsDefinition]:
    """The links whose products are for one target; its name is their key's prefix.

    Another compiler, or another configuration of it, is other code of what they make: see ``made_with``.
    """
    compiled_by = f"{CODE_VERSION}-{made_with(target, dfc_python=dfc_python)[:12]}"
    long_steps = _quantized_har(target, compiled_by), _hef(target, compiled_by)
    return [*long_steps, _parity_report(target), _canary_release(target)]


def _link(
    target: str,
    name: str,
    kind: str,
    description: str,
    own: Sequence[str] = (),
    code_version: str = CODE_VERSION,
    in_one_run: bool = True,
    owner: str = ENGINEERS,
    **options: Any,
) -> Callable[[Callable[..., Result]], dg.AssetsDefinition]:
    """An asset of one target; ``own`` names those of its inputs that are of the same target."""
    decorator: Callable[[Callable[..., Result]], dg.AssetsDefinition] = dg.asset(
        name=name,
        key_prefix=[target],
        code_version=code_version,
        io_manager_key=PRODUCTS,
        pool=BUILDS,
        owners=[owner],
        group_name=target,
        kinds={kind},
        description=description,
        ins={each: dg.AssetIn(key=dg.AssetKey([target, each])) for each in own},
        automation_condition=inputs_or_code_changed(in_one_run=in_one_run),
        **options,
    )
    return decorator


def _quantized_har(target: str, compiled_by: str) -> dg.AssetsDefinition:
    @_link(
        target,
        "quantized_har",
        "onnx",
        "Parse and optimize: 8-bit, calibrated.",
        owner=BUILDERS,
        code_version=compiled_by,
    )
    @_explained
    def quantized_har(
        context: dg.AssetExecutionContext,
        places: Places,
        config: LongStepConfig,
        onnx_model: Product,
        calibration_set: Product,
    ) -> Result:
        from assets.quantized_har import make_quantized_har
        from orchestration.toolchain_view import said

        bench, toolchain = places.bench(), places.toolchain(target, context.log)
        cache = places.cache(config.use_cache, context.log)
        product = make_quantized_har(
            bench, toolchain, onnx_model=onnx_model, calibration_set=calibration_set, cache=cache
        )
        context.log.info(f"optimize: {cache.told}")
        record = toolchain.record()
        extra = {"kind": product.facts["kind"], "toolchain": record.id, **record.options, **said(product)}
        extra |= {"cache": cache.told}
        return _result(bench, product, {**extra, "tools": dg.MetadataValue.json(record.tools)}, compiled_by)

    return quantized_har


def _hef(target: str, compiled_by: str) -> dg.AssetsDefinition:
    @_link(
        target,
        "hef",
        "onnx",
        "Compile: the artifact that an engine loads.",
        own=["quantized_har"],
        owner=BUILDERS,
        code_version=compiled_by,
    )
    @_explained
    def hef(
        context: dg.AssetExecutionContext, places: Places, config: LongStepConfig, quantized_har: Product
    ) -> Result:
        from assets.hef import make_hef
        from orchestration.toolchain_view import said

        bench, toolchain = places.bench(), places.toolchain(target, context.log)
        cache = places.cache(config.use_cache, context.log)
        product = make_hef(bench, toolchain, quantized_har=quantized_har, cache=cache)
        context.log.info(f"compile: {cache.told}")
        extra = {"kind": product.facts["kind"], "file": next(iter(product.files)), "cache": cache.told}
        return _result(bench, product, {**said(product), **extra}, compiled_by)

    return hef


def _parity_report(target: str) -> dg.AssetsDefinition:
    # Another policy is another judgement: the report is then out of date.
    judged_by = f"{CODE_VERSION}-{policy_digest()[:12]}"
    check_spec = dg.AssetCheckSpec(
        "parity",
        asset=dg.AssetKey([target, "parity_report"]),
        blocking=True,
        description="Every bound of the parity policy is met, and SQNR is not far below the champion's.",
    )

    @_link(
        target,
        "parity_report",
        "json",
        "Agreement of the artifact with full_precision on windows it never saw; blocks the release.",
        own=["hef"],
        # It reads the motif head and the evaluation windows, which need not change the artifact. The head
        # is that of the weights behind the graph, not of those that were observed last.
        deps=[dg.AssetKey("onnx_model"), dg.AssetKey("calibration_set")],
        code_version=judged_by,
        check_specs=[check_spec],
    )
    @_explained
    def parity_report(
        context: dg.AssetExecutionContext, places: Places, config: MotifConfig, hef: Product
    ) -> Result:
        from assets.parity import hold_against_champion, judgement_version, make_parity_report
        from assets.report import keep_report
        from orchestration.parity_view import parity_check_result, parity_metadata

        bench, toolchain = places.bench(), places.toolchain(target, context.log)
        bench.check_latest(hef, "calibration_set", "onnx_model", f"{target}/quantized_har")
        product, evidence = make_parity_report(bench, toolchain, hef=hef, motifs=config.motifs)
        judged = hold_against_champion(bench, toolchain, places.store(), hef=hef, parity_report=product)
        report = judged.report()
        path = keep_report(places.reports(), target, report)
        where = path, places.reports_url
        metadata = parity_metadata(evidence, judged.champion, report.images, *where)
        check = parity_check_result(evidence, judged.champion, *where)
        version = judgement_version(evidence, judged.champion)
        return _result(bench, product, metadata, judged_by, version, check_results=[check])

    return parity_report


def _canary_release(target: str) -> dg.AssetsDefinition:
    @_link(
        target,
        "canary_release",
        "json",
        "An immutable release, published through the gate; the target's canary channel points to it.",
        own=["hef", "parity_report"],
        owner=MANAGERS,
        # Released in a run of its own, once parity was judged: a judgement that comes out the same, by other
        # bounds, is no new release.
        in_one_run=False,
    )
    @_explained
    def canary_release(
        context: dg.AssetExecutionContext,
        places: Places,
        hef: Product,
        parity_report: Product,
    ) -> Result:
        from assets.canary import publish_canary, release_product

        bench = places.bench()
        store = places.store()
        release = publish_canary(
            bench,
            places.toolchain(target, context.log),
            store,
            hef=hef,
            parity_report=parity_report,
            actor="build",
            reason=f"Dagster run {context.run.run_id}",
            key=places.build_key(),
        )
        manifest = release.manifest
        metadata = {
            "path": dg.MetadataValue.path(str(release.directory)),
            "channel": f"{target}/canary",
            "model": f"{manifest.model.name} {manifest.model.version}",
            "artifact": manifest.artifact,
            "numbers": manifest.output.provenance,
            "parity": f"passed, {manifest.parity.provenance}",
            "calibration": f"{manifest.calibration.windows} {manifest.calibration.origin} windows",
            "motif head": manifest.motif_head.provenance,
            "signed with": store.trust.root.kind,
        }
        return _result(bench, release_product(release, [hef, parity_report]), metadata)

    return canary_release
