"""Drift from calibration: what good windows, single motions and mistakes come to, as a runtime measures it.

``python -m bench.drift [--store STORE]`` takes the release that canary names (else it builds the sample's),
runs its artifact on the committed evaluation windows, which calibration never saw, and prints the numbers of
``/metrics``. Alerts have their bounds from here: docs/telemetry.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from assets.calibration import parse_sets, read_files
from assets.canary import publish_canary
from bench.serving import machine
from runtime.active_model import ActiveModel
from runtime.contract.errors import CalibrationError
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import Release
from runtime.contract.trust import Trust
from runtime.contract.window import FloatArray
from runtime.drift import FEWEST_WINDOWS, DriftValues, LatestWindows
from runtime.engines.emulator import EmulatorEngine
from tests.chain import CALIB_DATA, SAMPLE_WEIGHTS, build_chain
from tests.keys import BUILD, a_store, use_test_keys
from tests.mistakes import MISTAKES, Labels

DRAWS: Final = 200
COUNTS: Final = (FEWEST_WINDOWS, 256)
SHOWN: Final = (
    "acc in g",
    "gyro in deg/s",
    "gyro converted twice",
    "mag in gauss",
    "half in deg/s",
    "az sign-flipped",
    "gravity's other sign",
    "axes x<->z",
    "axes x<->y",
    "turned about z",
    "constant channel",
    "50 Hz",
)
"""Mistakes of ``tests/mistakes.py`` that a device can make."""


@dataclass(frozen=True)
class Row:
    """What one kind of traffic comes to: the largest of each metric over its draws."""

    name: str
    input_mean: float
    input_spread: float
    latent_worst: float
    latent_rms: float

    @classmethod
    def of(cls, name: str, found: Sequence[DriftValues]) -> Row:
        """The largest of each."""
        return cls(
            name,
            max(max(each.input_mean) for each in found),
            max(max(each.input_spread) for each in found),
            max(each.latent_worst for each in found),
            max(each.latent_rms for each in found),
        )

    def line(self) -> str:
        """Of a table."""
        numbers = (self.input_mean, self.input_spread, self.latent_worst, self.latent_rms)
        return f"| {self.name} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |"


def drift_of(model: ActiveModel, windows: FloatArray, latents: FloatArray) -> DriftValues:
    """As the runtime's thread measures it.

    Args:
        model: Of a release that holds calibration statistics.
        windows: float32 (N, 100, 9), physical units.
        latents: float32 (N, 64), what its artifact answers.

    Raises:
        CalibrationError: It holds none, or the windows are too few.
    """
    if isinstance(model.calibration, str):
        raise CalibrationError(model.calibration, where=model.release_id)
    latest = LatestWindows(model.calibration, model.manifest.input.normalization, max(len(windows), 1))
    for window, latent in zip(windows, latents, strict=True):
        latest.add(window, latent)
    values = latest.values()
    if values is None:
        raise CalibrationError(f"fewer than {FEWEST_WINDOWS} windows")
    return values


def measure(model: ActiveModel, windows: FloatArray, labels: Labels) -> Iterator[Row]:
    """All rows, good windows first."""

    def latents_of(these: FloatArray) -> FloatArray:
        return np.stack([model.infer(window)[0] for window in these])

    latents, random = latents_of(windows), np.random.default_rng(1)
    yield Row.of(f"all {len(windows)} evaluation windows", [drift_of(model, windows, latents)])
    for count in COUNTS:
        drawn = [random.permutation(len(windows))[:count] for _ in range(DRAWS)]
        found = [drift_of(model, windows[these], latents[these]) for these in drawn]
        yield Row.of(f"{count} of them, worst of {DRAWS} draws", found)
    for name in dict.fromkeys(labels.tolist()):
        chosen = labels == name
        yield Row.of(f"{name} alone", [drift_of(model, windows[chosen], latents[chosen])])
    for name in SHOWN:
        changed, _ = MISTAKES[name].apply(windows, labels, model.manifest.input.normalization, random)
        yield Row.of(f"*{name}*", [drift_of(model, changed, latents_of(changed))])


def release_of(store: Path | None, folder: Path) -> Release:
    """What canary names in this store; without one, the sample's own release, built now."""
    if store is not None:
        return ReleaseStore(store, Trust.load(Path(os.environ["TRUST_ROOT"]))).resolve("emulator", "canary")
    use_test_keys()
    chain = build_chain(folder, weights=Path(os.environ.get("WEIGHTS_DIR") or SAMPLE_WEIGHTS))
    hef, report = chain.products["hef"], chain.products["parity_report"]
    return publish_canary(
        chain.bench,
        chain.toolchain,
        a_store(folder / "store"),
        hef=hef,
        parity_report=report,
        actor="bench",
        reason="drift",
        key=BUILD,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__)
    parser.add_argument("--store", type=Path, help="else the sample's release is built; needs TRUST_ROOT")
    options = parser.parse_args(argv)
    evaluation = parse_sets(read_files(CALIB_DATA)).evaluation
    with tempfile.TemporaryDirectory() as folder:
        release = release_of(options.store, Path(folder))
        with closing(ActiveModel(release, EmulatorEngine(release))) as model:
            rows = list(measure(model, evaluation.windows, np.asarray(evaluation.labels)))
    print(f"{machine()}; release {release.id[:12]}, windows: {CALIB_DATA.name}/evaluation.npz")
    print("\n| traffic | inputs, mean | inputs, spread | latents, worst | latents, rms |")
    print("|---|---|---|---|---|")
    print("\n".join(row.line() for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
