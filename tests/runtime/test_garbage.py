"""What a full collection of garbage has to walk while everybody waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.simulators import ROOT, ReleaseSimulator, clean_environment

_SERVED = """
import asyncio, gc
from runtime.asgi import app

async def told():
    events = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    async def receive(): return events.pop()
    async def send(event): pass
    await app({"type": "lifespan"}, receive, send)

asyncio.run(told())
print("walked", len(gc.get_objects()), gc.get_freeze_count())
"""


def test_what_is_there_at_the_start_is_walked_once(tmp_path: Path) -> None:
    """It is all of numpy, Falcon and the engine, and takes 10 ms and more."""
    ReleaseSimulator().publish(tmp_path)
    environment = clean_environment() | {"RELEASE_STORE": str(tmp_path), "LOG_LEVEL": "ERROR"}
    told = subprocess.run(
        [sys.executable, "-c", _SERVED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    walked, kept = told.stdout.rpartition("walked")[2].split()
    assert int(walked) < 5000 < 20_000 < int(kept)
