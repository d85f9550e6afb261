"""How long bodies stop everybody else: the usual ones, and the worst that the bounds let through.

``python -m bench.bodies`` prints the best of five calls of each, and for batches the longest piece.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from time import perf_counter

from bench.serving import machine
from runtime.contract.errors import PipelineError
from runtime.infer_body import WindowBatch, read_body, read_octets
from runtime.infer_endpoint import SLICE
from tests.simulators import imu_windows, infer_body

_MIDDLE = b"1.000000000000000111022302462515654042363166809082031250"


def _window(number: bytes) -> bytes:
    return b"[" + b",".join([b"[" + b",".join([number] * 9) + b"]"] * 100) + b"]"


def _batch(window: bytes, count: int) -> bytes:
    return b'{"x":[' + b",".join([window] * count) + b"]}"


def pieces(body: bytes, read: Callable[[bytes], object]) -> list[float]:
    """Seconds of each piece of work that has no turn for others in it."""
    found, begin = [], perf_counter()
    try:
        batch = read(body)
        found.append(perf_counter() - begin)
        start = 0
        while isinstance(batch, WindowBatch) and start < len(batch):
            begin, stop = perf_counter(), batch.slice_end(start, SLICE)
            batch.windows(start, stop)
            found.append(perf_counter() - begin)
            start = stop
    except PipelineError:
        found.append(perf_counter() - begin)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    argparse.ArgumentParser(prog="python -m bench.bodies", description=__doc__).parse_args(argv)
    windows = imu_windows(277)
    long = _MIDDLE + b"1" * (140 - len(_MIDDLE))
    json_cases = {
        "one window": infer_body(windows[0]),
        "one window, long numbers": b'{"x":' + _window(long) + b"}",
        "50 windows": json.dumps({"x": windows[:50].tolist()}).encode(),
        "7 windows, long numbers": _batch(_window(long), 7),
        "250,000 parts": _batch(b"[[1]]" + b",[]" * 27_000 + b",1" * 220_000, 1),
        "deep": b'{"x":' + b"[" * 990_000,
        "one number": b'{"x":[[[' + b"1" * 990_000 + b"]]]}",
        "white": b'{"x":[[[' + b" " * 990_000 + b"1]]]}",
    }
    print(f"{machine()}\n\n| body | bytes | pieces | longest ms | all ms |\n|---|---|---|---|---|")
    cases = [(name, body, read_body) for name, body in json_cases.items()]
    for name, body, read in [*cases, ("277 windows as float32", windows.tobytes(), read_octets)]:
        runs = [pieces(body, read) for _ in range(5)]
        best = min(runs, key=sum)
        print(f"| {name} | {len(body)} | {len(best)} | {max(best) * 1000:.2f} | {sum(best) * 1000:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
