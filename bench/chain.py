"""The build side: what the code location costs to load, what Dagster adds, how long ``make run`` takes."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.serving import machine
from orchestration.local import free_port

ROOT = Path(__file__).resolve().parent.parent

_IMPORT = """
import json, resource, sys, time
begin = time.perf_counter()
import orchestration.definitions
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "mebibytes": peak, "torch": "torch" in sys.modules}))
"""

_PLAIN = """
import json, sys, time
from pathlib import Path
begin = time.perf_counter()
from tests.chain import build_chain
from assets.canary import publish_canary
from tests.keys import BUILD, a_store
from runtime.contract.store import ReleaseStore
imported = time.perf_counter()
chain = build_chain(Path(sys.argv[1]))
products = {name: chain.products[name] for name in ("hef", "parity_report")}
store = a_store(Path(sys.argv[1]) / "releases")
publish_canary(chain.bench, chain.toolchain, store, **products, actor="bench", reason="bench", key=BUILD)
print(json.dumps({"seconds": time.perf_counter() - imported, "import": imported - begin}))
"""

_DAGSTER = """
import json, os, time
begin = time.perf_counter()
import dagster as dg
from orchestration.definitions import defs
imported = time.perf_counter()
with dg.DagsterInstance.get() as instance:
    config = {"loggers": {"progress": {}}}
    for name in ("observe_weights", "build_canary"):
        assert defs.resolve_job_def(name).execute_in_process(instance=instance, run_config=config).success
print(json.dumps({"seconds": time.perf_counter() - imported, "import": imported - begin}))
"""


def _run(script: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a script in a fresh process; the JSON that it prints last, and the process's time."""
    begin = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return {**document, "process": time.perf_counter() - begin}


def _until_it_serves(places: dict[str, str]) -> dict[str, float]:
    """``make run`` on free ports: seconds until both servers answer, and of the chain within them."""
    ports = {"PORT": str(free_port()), "UI_PORT": str(free_port())}
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "orchestration.local", "run"],
        cwd=ROOT,
        env={**os.environ, **places, **ports},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        chain = math.nan
        for line in process.stdout:
            if found := re.search(r"built in ([\d.]+) s", line):
                chain = float(found[1])
            if "serving until Ctrl-C" in line:
                break
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0, "make run failed"
    return {"seconds": seconds, "chain": chain}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds, each in a process and folder of its own."""
    samples: dict[str, list[dict[str, Any]]] = {"import": [], "plain": [], "dagster": [], "run": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            places = {name: f"{folder}/{name}" for name in ("BUILD_DIR", "RELEASE_STORE", "DAGSTER_HOME")}
            Path(places["DAGSTER_HOME"]).mkdir()
            samples["import"].append(_run(_IMPORT))
            samples["plain"].append(_run(_PLAIN, f"{folder}/plain"))
            samples["dagster"].append(_run(_DAGSTER, **places))
        with tempfile.TemporaryDirectory() as folder:
            samples["run"].append(_until_it_serves({name: f"{folder}/{name}" for name in places}))
    assert not any(sample["torch"] for sample in samples["import"])
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "torch"}
        for name, rows in samples.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The medians as Markdown."""
    location, plain, dagster, run = (found[name] for name in ("import", "plain", "dagster", "run"))
    ratio = dagster["seconds"] / plain["seconds"]
    rows = [
        ("import orchestration.definitions", f"{location['seconds']:.2f} s", "3 s"),
        ("... peak resident memory", f"{location['mebibytes']:.0f} MiB", "170 MB, no torch"),
        ("the chain's functions, called plainly", f"{plain['seconds']:.2f} s", ""),
        ("the chain through Dagster, in process", f"{dagster['seconds']:.2f} s ({ratio:.2f}x)", "60 s"),
        ("... with start of Python and imports", f"{dagster['process']:.2f} s", ""),
        ("make run, nothing left to install: until both servers answer", f"{run['seconds']:.1f} s", ""),
        ("... the chain within it, while Dagster's UI starts", f"{run['chain']:.1f} s", "60 s"),
    ]
    lines = ["| what | median | aim, at most |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} | {aim} |" for name, value, aim in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.chain", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(argv).rounds
    print(f"{machine()}; {rounds} rounds, medians\n\n{table(measure(rounds))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
