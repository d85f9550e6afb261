"""The canary: assemble the release, hold it against policy and champion, publish, point the channel."""

from __future__ import annotations

from collections.abc import Sequence

from assets import policy
from assets.assembly import Verdict, put_together
from assets.calibration import parse_sets
from assets.parity import hold_against_champion, read_evidence
from assets.product import Product, ProductMixedError, Workbench
from assets.report import Report
from assets.toolchain import Toolchain
from runtime.contract.errors import PublicationRefusedError
from runtime.contract.evidence import PARITY_KIND
from runtime.contract.parity import REPORT_NAME
from runtime.contract.release import Manifest
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import SigningKey


def assemble(
    bench: Workbench, toolchain: Toolchain, *, hef: Product, parity_report: Product
) -> tuple[Manifest, dict[str, bytes]]:
    """Put a judged release together.

    Args:
        bench: Where the products lie.
        toolchain: The one that made the artifact; runs the golden windows.
        hef: The artifact to release.
        parity_report: What judged it.

    Returns:
        The manifest and its artifacts by file name. Equal inputs give equal bytes.

    Raises:
        ProductMixedError: The report is about an artifact with another lineage.
        ToolchainError: The artifact was made by another version than would be recorded.
        OnnxModelError: The graph does not agree with its source on the golden windows.
    """
    evidence = read_evidence(bench, parity_report)
    upstream = bench.ancestry(hef)
    if evidence.upstream != upstream:
        raise ProductMixedError(
            "judged the artifact with other sources than it has now",
            where=parity_report.asset,
            hint=f"materialize {parity_report.asset} again",
        )
    verdict = Verdict(
        result=evidence.result,
        motif_head=evidence.motif_head,
        report=bench.read(parity_report, REPORT_NAME),
        tools=evidence.tools,
    )
    whole = {**upstream, hef.asset: hef.digest, parity_report.asset: parity_report.digest}
    sets = parse_sets(bench.read_all(bench.ancestor(hef, "calibration_set")))
    return put_together(bench, toolchain, verdict, hef=hef, sets=sets, upstream=whole)


def publish_canary(
    bench: Workbench,
    toolchain: Toolchain,
    store: ReleaseStore,
    *,
    hef: Product,
    parity_report: Product,
    actor: str,
    reason: str,
    key: SigningKey,
) -> Release:
    """Assemble, publish and point ``canary`` of the toolchain's target to the release.

    The champion is asked again: ``stable`` may have moved since the report was made. What the comparison
    said is kept beside the release, with the report for people. ``key`` has the roles release and canary.

    Raises:
        SignatureError: The key may not release, or not move canary.
        PublicationRefusedError: Parity is missing, failed, about another artifact, or was judged
            by another policy than the committed one; or the artifact is worse than the champion. Or the
            release is marked bad: then it lies in the store, and canary stays where it is.
    """
    manifest, files = assemble(bench, toolchain, hef=hef, parity_report=parity_report)
    committed = policy.load_policy()
    evidence = read_evidence(bench, parity_report)
    judged_by = (manifest.parity.thresholds, manifest.parity.ceilings)
    # What a metric means is policy as much as its bound is.
    counted_by = (evidence.active_share, evidence.clear_margin)
    for place, was, now in (
        ("parity.thresholds", judged_by, (committed.thresholds, committed.ceilings)),
        ("parity.active_share", counted_by, (committed.active_share, committed.clear_margin)),
    ):
        if was != now:
            raise PublicationRefusedError(
                f"parity was judged by {was}, the policy is {now}",
                where=place,
                hint=f"materialize {parity_report.asset} again",
            )
    judged = hold_against_champion(bench, toolchain, store, hef=hef, parity_report=parity_report)
    if not judged.champion.passed:
        raise PublicationRefusedError(
            "; ".join(judged.champion.failures),
            where="champion",
            hint="calibrate on windows like those that the champion saw, or move stable first",
        )
    with store.writing():
        # Nobody prunes a release that no channel names yet.
        release = store.publish(manifest, files, key)
        keep_evidence(store, release, judged.report())
        store.point("canary", release, actor=actor, reason=reason, key=key)
    return release


def keep_evidence(store: ReleaseStore, release: Release, report: Report) -> None:
    """Keep the report for people, and the same numbers for programs, beside the release."""
    store.add_evidence(release, PARITY_KIND, "json", report.json)
    store.add_evidence(release, PARITY_KIND, "html", report.html)


def release_product(release: Release, made_from: Sequence[Product]) -> Product:
    """The release as a product, so that its lineage and digest stand beside the others'."""
    artifacts = release.manifest.artifacts
    return Product(
        asset=f"{release.manifest.target}/canary_release",
        digest=release.id,
        files={artifact.name: artifact.sha256 for artifact in artifacts},
        size=sum(artifact.size for artifact in artifacts),
        made_from={product.asset: product.digest for product in made_from},
    )
