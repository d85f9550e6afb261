"""``make bench``: every measurement, as tables with the machine named."""

from __future__ import annotations

import sys

from bench import chain, engine, hailo_engine, hef, parity, ranges, serving, store


def main() -> int:
    """Print all tables."""
    print("## Building\n", flush=True)
    chain.main([])
    print("\n## Ranges of the emulator\n", flush=True)
    ranges.main([])
    print("\n## Parity\n", flush=True)
    parity.main([])
    print("\n## Reading HEF files\n", flush=True)
    hef.main([])
    print("\n## An engine beside a bare loop\n", flush=True)
    engine.main([])
    print("\n## The HailoRT engine, beside a double\n", flush=True)
    hailo_engine.main([])
    print("\n## The release store\n", flush=True)
    store.main([])
    print("\n## Serving\n", flush=True)
    return serving.main([])


if __name__ == "__main__":
    sys.exit(main())
