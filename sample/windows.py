"""Write the sample windows: calibration, evaluation and golden sets, with an index of digests.

    python -m sample.windows [--out DIR]

The three sets share no window with each other or with the training set. Running this twice writes
the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sample import motions
from sample.motions import Labels, Windows

DEFAULT_OUT = Path("calib_data")
PER_MOTIF = MappingProxyType({"calibration": 100, "evaluation": 40, "golden": 2})


class OverlappingSetsError(ValueError):
    """Two sets share a window, so one would be judged on what shaped the other."""


def draw_sets() -> dict[str, tuple[Windows, Labels]]:
    """Draw every set: name -> windows, float32 (N, 100, 9) in physical units, and labels (N,).

    Raises:
        OverlappingSetsError: A window occurs twice.
    """
    sets = {name: motions.draw_set(count, motions.SEEDS[name]) for name, count in PER_MOTIF.items()}
    check_disjoint({name: windows for name, (windows, _) in sets.items()})
    return sets


def check_disjoint(sets: dict[str, Windows]) -> None:
    """Refuse a window that occurs twice, in one set or in two.

    Raises:
        OverlappingSetsError: Names both places.
    """
    seen: dict[str, str] = {}
    for name, windows in sets.items():
        for position, window in enumerate(windows):
            place, key = f"{name}[{position}]", motions.digest(window)
            if key in seen:
                raise OverlappingSetsError(f"{place} is the same window as {seen[key]}")
            seen[key] = place


def describe(file: Path, windows: Windows, labels: Labels) -> dict[str, Any]:
    """Return the index entry of one written set; its strata are its labels."""
    counts = dict(Counter(labels.tolist()))
    return {
        "file": file.name,
        "count": len(windows),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "windows_sha256": motions.digest(windows),
        "labels": counts,
        "strata": counts,
        "digests": [motions.digest(window) for window in windows],
    }


def write_sets(out: Path) -> dict[str, Any]:
    """Write the sets and ``index.json`` into a folder and return the index."""
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, (windows, labels) in draw_sets().items():
        file = out / f"{name}.npz"
        np.savez_compressed(file, windows=windows, labels=labels)
        entries[name] = describe(file, windows, labels)
    index = {
        "schema": 2,
        "origin": "synthetic",
        "generator": "sample/windows.py",
        "sampling_rate_hz": motions.RATE_HZ,
        "channel_order": list(motions.CHANNEL_ORDER),
        "units": {"accelerometer": "m/s²", "gyroscope": "rad/s", "magnetometer": "\u00b5T"},
        "strata": {
            "by": "labels",
            "measure": "the label that each window was given",
            "references": {},
            "names": [],
            "edges": [],
        },
        "sets": entries,
    }
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    (out / "index.json").write_text(text, encoding="utf-8")
    return index


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sample.windows",
        description="Write the sample calibration, evaluation and golden sets.",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    for name, entry in write_sets(out)["sets"].items():
        print(f"{name}: {entry['count']} windows in {entry['file']}, sha256 {entry['sha256']}")


if __name__ == "__main__":
    main()
