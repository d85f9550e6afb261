"""The acceptance report: what a canary did on the Pi that it is for, in one file, bound to its release.

``releasectl accept`` writes it where the runtime is; ``releasectl attach`` verifies it and keeps it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from runtime.contract.document import from_json, to_json
from runtime.contract.errors import ManifestError, PipelineError, store_errors
from runtime.contract.evidence import evidence_kind, read_evidence
from runtime.contract.release import LSB_ELSEWHERE, TARGETS, Manifest, check_digest
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import StoreReader

ACCEPTANCE_KIND: Final = "acceptance"
ACCEPTANCE_SCHEMA: Final = 1
LEAST_WINDOWS: Final = 2000
LEAST_RATE: Final = 20.0
"""Windows a second, as EdgeInfer asks. That it was reached is in the latencies: they count from when a window
was due, so who falls behind is late."""

DEADLINE_MS: Final = 45.0
MOST_LATE: Final = 0.01
"""Share: what a p99 below the deadline says."""

MOST_AGE: Final = timedelta(days=30)
"""A report is believed for a month: by then HailoRT, firmware, kernel and cooling may be others, and a trial
takes two minutes."""

_MOST_AHEAD: Final = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class DeviceIdentity:
    """Where it ran.

    Args:
        machine: Processor, operating system and kernel, in one line.
        device: The chip's architecture and serial number; empty on the emulator.
        hailort, firmware: Their versions; empty on the emulator.
        runtime: Version of the runtime that answered.
    """

    machine: str
    device: str
    hailort: str
    firmware: str
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What was seen of one release on one device.

    Args:
        schema: ``ACCEPTANCE_SCHEMA``.
        release, artifact_sha256, target: What was tried.
        provenance: Of all numbers: ``measured`` on a chip, ``emulated`` on the emulator.
        identity: Where.
        golden_windows: How many were posted.
        golden_worst: Largest difference of a latent from what the toolchain emulated, in its own units.
        golden_allowed: The largest that the release allows.
        windows: Posted at ``rate`` a second.
        rate: Windows a second: the next one is due whether or not the last was answered.
        lost: Not answered by 200.
        p50_ms, p95_ms, p99_ms, largest_ms: From when a window was due to its answer, at the client.
        later_than_45_ms: Share, those among them that had no answer.
        cpu_share: Of one core, by the server, over the run; None where it cannot be read.
        celsius: Of the chip at the end; None on the emulator or where it cannot be read.
        at: When it ended, ISO 8601, UTC.

    Raises:
        ManifestError: A field contradicts another one.
    """

    schema: int
    release: str
    artifact_sha256: str
    target: str
    provenance: str
    identity: DeviceIdentity
    golden_windows: int
    golden_worst: float
    golden_allowed: float
    windows: int
    rate: float
    lost: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    largest_ms: float
    later_than_45_ms: float
    cpu_share: float | None
    celsius: float | None
    at: str

    def __post_init__(self) -> None:
        if self.schema != ACCEPTANCE_SCHEMA:
            raise ManifestError(
                f"schema {self.schema}, this version reads {ACCEPTANCE_SCHEMA}", where="schema"
            )
        if self.target not in TARGETS:
            raise ManifestError(f"{self.target[:40]!r} is none of {', '.join(TARGETS)}", where="target")
        check_digest(self.release, "release")
        check_digest(self.artifact_sha256, "artifact_sha256")
        hardware = self.target != "emulator"
        if self.provenance != ("measured" if hardware else "emulated"):
            raise ManifestError(f"{self.provenance[:40]!r} for {self.target}", where="provenance")
        if hardware and not all((self.identity.device, self.identity.hailort, self.identity.firmware)):
            raise ManifestError(
                "measured, and does not say on which device, HailoRT and firmware", where="identity"
            )
        numbers = (self.p50_ms, self.p95_ms, self.p99_ms, self.largest_ms)
        if list(numbers) != sorted(numbers) or not all(math.isfinite(n) and n >= 0 for n in numbers):
            raise ManifestError(f"{numbers} are no percentiles", where="p50_ms")
        if not (
            0 <= self.lost <= self.windows and 0 <= self.later_than_45_ms <= 1 and 0 < self.rate < math.inf
        ):
            raise ManifestError("counts that cannot be", where="windows")
        readings = [each for each in (self.cpu_share, self.celsius) if each is not None]
        if not all(map(math.isfinite, readings)):
            raise ManifestError("a reading that is no number", where="cpu_share")
        # Who got no answer is later than any, and in no percentile.
        late = self.later_than_45_ms * self.windows - self.lost
        if self.p99_ms < DEADLINE_MS and late > MOST_LATE * (self.windows - self.lost) + 1:
            raise ManifestError(
                f"{self.later_than_45_ms:.3g} of all are late, and p99 is {self.p99_ms:.4g} ms",
                where="later_than_45_ms",
            )
        self.time  # noqa: B018  a time that is none is refused here

    @property
    def time(self) -> datetime:
        """``at``; ManifestError where that is no time in UTC."""
        try:
            found = datetime.fromisoformat(self.at)
        except ValueError as error:
            raise ManifestError(f"{self.at[:40]!r} is no time", where="at") from error
        if found.utcoffset() != timedelta(0):
            raise ManifestError(f"{self.at[:40]!r} is not in UTC", where="at")
        return found

    def failures(self) -> tuple[str, ...]:
        """A sentence for each thing by which it was not accepted."""
        found = []
        if self.windows < LEAST_WINDOWS:
            found.append(f"{self.windows} windows, {LEAST_WINDOWS} are asked")
        if self.rate < LEAST_RATE:
            found.append(f"{self.rate:g} windows a second, {LEAST_RATE:g} are asked")
        if self.golden_windows < 1:
            found.append("no golden window")
        elif not self.golden_worst <= self.golden_allowed:
            found.append(
                f"golden windows differ by {self.golden_worst:.4g}, {self.golden_allowed:.4g} is allowed"
            )
        if self.lost:
            found.append(f"{self.lost} windows were not answered")
        if not self.p99_ms < DEADLINE_MS:
            found.append(f"p99 is {self.p99_ms:.4g} ms, EdgeInfer waits {DEADLINE_MS:g} ms")
        return tuple(found)


def parse_acceptance(data: bytes, where: str) -> Acceptance:
    """Read a report; ManifestError names what is wrong."""
    report: Acceptance = from_json(Acceptance, data, where)
    if to_json(report) != data:
        raise ManifestError("is not as `releasectl accept` writes it", where=where, hint="run it again")
    return report


def check_about(report: Acceptance, manifest: Manifest, identifier: str) -> None:
    """ManifestError where a report is about another release or artifact, or other golden windows."""
    if report.release != identifier or report.target != manifest.target:
        raise ManifestError(
            f"is about {report.release[:16]} for {report.target}", where=identifier[:16], hint="run it again"
        )
    if report.artifact_sha256 != manifest.primary.sha256:
        raise ManifestError(
            f"tried artifact {report.artifact_sha256[:16]}, the release's is {manifest.primary.sha256[:16]}",
            where="artifact_sha256",
            hint="run `releasectl accept` against a runtime that serves this release",
        )
    golden = manifest.golden
    if report.golden_windows != golden.windows:
        raise ManifestError(
            f"{report.golden_windows} golden windows, the release has {golden.windows}",
            where="golden_windows",
        )
    most = golden.artifact_tolerance if golden.output is None else float(LSB_ELSEWHERE)
    if not 0 <= report.golden_allowed <= most:
        raise ManifestError(
            f"{report.golden_allowed:.4g} is allowed by it, and {most:.4g} by the release",
            where="golden_allowed",
        )


def keep_acceptance(
    store: ReleaseStore, release: Release, data: bytes, where: str, now: datetime | None = None
) -> Acceptance:
    """Verify a report and keep it beside its release.

    Raises:
        ManifestError: As ``parse_acceptance`` and ``check_about``; or it is of a time that is still to come.
        StoreError: It cannot be written.
    """
    report = parse_acceptance(data, where)
    check_about(report, release.manifest, release.id)
    if report.time > (now or datetime.now(UTC)) + _MOST_AHEAD:
        raise ManifestError(
            f"is of {report.at}, which is still to come", where=where, hint="set its device's clock"
        )
    store.add_evidence(release, ACCEPTANCE_KIND, "json", data)
    return report


@dataclass(frozen=True)
class _Attached:
    """A report, and when it was laid there: a device whose clock has no battery says anything in ``at``."""

    report: Acceptance
    modified: int

    def is_before(self, other: _Attached) -> bool:
        """By both clocks: the store's, which may say the same of two, and the device's."""
        return self.modified <= other.modified and self.report.time < other.report.time


def said_by_acceptance(store: StoreReader, release: Release, now: datetime | None = None) -> tuple[str, ...]:
    """What speaks against a promotion: a chip's release needs a measured report that failed nothing, is not
    old, and is newer, as attached and by its own time, than each that failed.

    Args:
        store: Where they lie.
        release: To be promoted.
        now: The time; the present one where none is given.
    """
    if release.manifest.target == "emulator":
        return ()
    attached = _attached(store, release)
    if not attached:
        return ("no acceptance report: `releasectl accept` makes one on its device",)
    failed = [each for each in attached if each.report.failures()]
    passed = [each for each in attached if each not in failed]
    good = [each.report for each in passed if all(other.is_before(each) for other in failed)]
    if not good:
        worst = max(failed, key=lambda each: (each.modified, each.report.time)).report
        return (f"the acceptance report of {worst.at} says: {'; '.join(worst.failures())}"[:900],)
    now = now or datetime.now(UTC)
    if any(-_MOST_AHEAD <= now - report.time <= MOST_AGE for report in good):
        return ()
    newest = max(good, key=lambda report: report.time)
    return (f"the acceptance report is of {newest.at}, and counts for {MOST_AGE.days} days",)


def _attached(store: StoreReader, release: Release) -> list[_Attached]:
    found: list[_Attached] = []
    for path in store.evidence(release.id):
        try:
            if evidence_kind(path) == ACCEPTANCE_KIND:
                report = parse_acceptance(read_evidence(path), str(path))
                check_about(report, release.manifest, release.id)
                with store_errors(path):
                    found.append(_Attached(report, path.stat().st_mtime_ns))
        except PipelineError:
            continue  # It is none: whoever may write the store can lay anything there.
    return found
