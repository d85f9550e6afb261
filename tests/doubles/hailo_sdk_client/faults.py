"""What a test can make go wrong, by DFC_DOUBLE_FAULT in the wrapper that starts this interpreter."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FAULT = os.environ.get("DFC_DOUBLE_FAULT", "")


def begin() -> None:
    """Faults of the import itself; and its environment, told where a test asks."""
    if place := os.environ.get("DFC_DOUBLE_ENVIRONMENT"):
        with Path(place).open("a") as file:
            file.write(json.dumps({"verb": sys.argv[1], "environment": dict(os.environ)}) + "\n")
    if FAULT == "import":
        raise ImportError("libtensorflow_framework.so.2: cannot open shared object file")
    if FAULT == "licence":
        raise RuntimeError("License agreement was not accepted")


def fail(call: str) -> None:
    """Faults of one call: ``optimize:kill`` and the like."""
    where, _, kind = FAULT.partition(":")
    if where != call:
        return
    if kind == "memory":
        raise MemoryError
    if kind == "segv":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        os._exit(7)
    if kind == "quit":
        os._exit(0)
    if kind == "licence":
        raise RuntimeError("Could not find a valid license for this product")
    if kind == "hang":
        hang()
    if kind == "wait":
        hang(Path(os.environ["DFC_DOUBLE_GO"]))


def hang(until: "Path | None" = None) -> None:
    """Sleep with a child that sleeps too and does not listen, as a pool of processes would.

    Args:
        until: A file that ends it; without one it is for good.
    """
    sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", sleep])
    pids = f"{os.getpid()} {child.pid}"
    print(f"[info] hanging {pids}", flush=True)
    place = os.environ.get("DFC_DOUBLE_PIDS")
    if place:
        temporary = Path(place + ".new")
        temporary.write_text(pids)
        temporary.rename(place)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (until and until.exists()):
        time.sleep(0.05)
    if until:
        child.kill()
        child.wait()
