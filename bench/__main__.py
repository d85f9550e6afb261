"""``make bench``: every measurement, as tables with the machine named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import (
    bodies,
    chain,
    compare,
    drift,
    engine,
    hailo_engine,
    hef,
    load_test,
    parity,
    ranges,
    serving,
    shadow,
    store,
    switching,
    telemetry,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables."""
    argparse.ArgumentParser(prog="python -m bench", description=__doc__).parse_args(argv)
    print("## Building\n", flush=True)
    chain.main([])
    print("\n## Ranges of the emulator\n", flush=True)
    ranges.main([])
    print("\n## Parity\n", flush=True)
    parity.main([])
    print("\n## Drift from calibration\n", flush=True)
    drift.main([])
    print("\n## Reading HEF files\n", flush=True)
    hef.main([])
    print("\n## An engine beside a bare loop\n", flush=True)
    engine.main([])
    print("\n## The HailoRT engine, beside a double\n", flush=True)
    hailo_engine.main([])
    print("\n## The release store\n", flush=True)
    store.main([])
    print("\n## Bodies\n", flush=True)
    bodies.main([])
    print("\n## Serving beside other servers of the same app\n", flush=True)
    serving.main([])
    print("\n## Switches under load\n", flush=True)
    switching.main([])
    switching.main(["--configure-ms", "20"])
    print("\n## A canary beside stable\n", flush=True)
    shadow.main([])
    print("\n## Telemetry\n", flush=True)
    telemetry.main([])
    print("\n## The load that was asked for\n", flush=True)
    load_test.main([])
    print("\n## Beside the peers\n", flush=True)
    return compare.main([])


if __name__ == "__main__":
    sys.exit(main())
