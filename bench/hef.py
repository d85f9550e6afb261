"""How long it takes to read a HEF."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.serving import machine
from runtime.contract.hef_file import read_hef
from runtime.contract.hef_header import HEADER_BYTES
from tests.hef_writer import container, make_hef, nested

AIM_MS = 50.0
SIZE = 3_000_000
ROUNDS = 21


def reading_time(path: Path) -> float:
    """Median milliseconds, from the path to the description."""
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        read_hef(path)
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.hef", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="HEF", help="default: written ones of 3 MB")
    options = parser.parse_args(argv)
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as place:
        files = options.files or written(Path(place))
        print(f"| HEF | bytes | header | checksum | median of {ROUNDS}, ms (aim: < {AIM_MS:.0f}) |")
        print("|---|---|---|---|---|")
        for path in files:
            hef = read_hef(path)
            taken = reading_time(path)
            print(f"| {path.name} | {hef.size} | {hef.header_version} | {hef.checksum} | {taken:.1f} |")
    return 0


def written(folder: Path) -> list[Path]:
    """One file of 3 MB for each header version; that of version 0 is all description, as genuine ones are."""
    paths = []
    for version in range(4):
        path = folder / f"version_{version}.hef"
        whole = make_hef(version=version, weights=bytes(SIZE))
        if version == 0:
            # Field 3 of the description (``mapping``) holds bytes that nobody looks at.
            whole = container(whole[HEADER_BYTES[0] :] + nested(3, bytes(SIZE)), version=0)
        path.write_bytes(whole)
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main())
