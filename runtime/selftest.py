"""Self-test: does this release run here, and give what it gave where it was made?

Needs no write access to the release, and no passed parity: the build side asks before it judges.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.contract.errors import (
    DigestMismatchError,
    EngineError,
    PipelineError,
    PublicationRefusedError,
    WindowError,
)
from runtime.contract.hef_errors import HefError
from runtime.contract.store import Release
from runtime.contract.window import FloatArray
from runtime.engines import Engine, open_engine
from runtime.golden import GoldenComparison, compare_golden
from runtime.release_text import origin_text
from runtime.window_file import read_windows, write_latents


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What a self-test found.

    Args:
        release: The release.
        engine: Program and version that ran the artifact; empty where none opened.
        golden: How the golden windows compared; None where they were not run.
        refused: Why the gate does not let the release out; empty where it does. No problem by itself.
        latents: Where the given windows' latents are; None where none were given or all is not well.
        windows: How many windows were given and run.
        problems: One sentence for each thing that is wrong.
    """

    release: Release
    engine: str
    golden: GoldenComparison | None
    refused: str
    latents: Path | None
    windows: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file is in place and the golden windows were repeated."""
        return not self.problems and self.golden is not None

    def document(self) -> dict[str, Any]:
        """Everything as plain JSON values, under the names that ``releasectl list --json`` has."""
        manifest = self.release.manifest
        golden = asdict(self.golden) | {"exact": self.golden.exact} if self.golden else None
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "release": self.release.id,
            "target": manifest.target,
            "model": manifest.model.name,
            "version": manifest.model.version,
            "artifact": manifest.artifact,
            "artifact_sha256": manifest.primary.sha256,
            "numbers": manifest.output.provenance,
            "calibration_origin": manifest.calibration.origin,
            "engine": self.engine,
            "golden": golden,
            "publishable": not self.refused,
            "refused": self.refused,
            "latents": {"file": str(self.latents), "windows": self.windows} if self.latents else None,
        }

    def lines(self) -> list[str]:
        """The same for a terminal."""
        manifest, golden = self.release.manifest, self.golden
        rows = [
            ("release", self.release.id),
            ("model", f"{manifest.model.name} {manifest.model.version}"),
            ("target", f"{manifest.target}, numbers {manifest.output.provenance}"),
            ("calibration", origin_text(manifest.calibration.origin)),
            ("engine", self.engine or "none"),
        ]
        if golden:
            recorded = golden.recorded_kernel_family or "unknown ones (schema 1)"
            exact = "yes" if golden.exact else "no"
            rows += [
                ("kernels", f"{golden.kernel_family} here, recorded on {recorded}"),
                ("golden", f"{golden.windows} windows, exact: {exact}"),
                ("worst", f"{golden.worst:.4g} {golden.unit}, at most {golden.allowed:.4g} allowed"),
            ]
        if self.latents:
            rows.append(("latents", f"{self.windows} windows, {self.latents}"))
        rows.append(("publishable", f"no: {self.refused}" if self.refused else "yes"))
        rows += [("problem", problem) for problem in self.problems]
        rows.append(("result", "ok" if self.ok else "FAILED"))
        return [f"{name:<11} {text}" for name, text in rows]


def self_test(release: Release, windows: Path | None = None, latents: Path | None = None) -> SelfTest:
    """Verify every file, open the release's own engine, and repeat its golden windows.

    Args:
        release: Any release, also one that was not judged yet.
        windows: npz with ``windows`` float32 (N, 100, 9), physical units, to be run besides.
        latents: Where their float32 (N, 64) go, as ``latents`` of an npz; not written where a
            problem was found.

    Raises:
        WindowError: ``windows`` cannot be used; names the window.
        ReleaseNotFoundError: ``windows`` is not there.
        StoreError: A file cannot be read or written.
    """
    problems = release.file_problems()
    refused, program, golden = "", "", None
    try:
        release.check_publishable()
    except PublicationRefusedError as error:
        refused = error.what
    given: FloatArray | None = None
    if not problems:
        # What is wrong with the given windows or the disk is no verdict on the release.
        try:
            release.check_artifact()
            with open_engine(release) as engine:
                program = engine.program
                golden = compare_golden(engine, release)
                golden.check(release.manifest.artifact)
                given = _run(engine, windows) if windows else None
        except (HefError, EngineError, DigestMismatchError) as error:
            problems.append(str(error))
    if given is not None and latents is not None:
        write_latents(latents, given)
    return SelfTest(
        release=release,
        engine=program,
        golden=golden,
        refused=refused,
        latents=latents if given is not None else None,
        windows=0 if given is None else len(given),
        problems=tuple(problems),
    )


def _run(engine: Engine, path: Path) -> FloatArray:
    latents = []
    for index, window in read_windows(path):
        try:
            latents.append(engine.infer(window))
        except WindowError as error:
            raise error.within(f"{path}, window {index}") from error
    return np.stack(latents)


def as_report(error: PipelineError) -> dict[str, object]:
    """What ``selftest --json`` prints where it could not begin, or the given windows are none."""
    return {"ok": False, "error": error.code, "problems": [str(error)]}
