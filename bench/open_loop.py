"""An open-loop load generator in a process of its own: requests at a fixed rate, whatever comes back.

``python -m bench.open_loop PORT RATE SECONDS BODY_FILE`` prints one JSON object at the end of
its input, or when the time is over. A latency counts from when the request was due: a server that stalls
is late for everybody who should have been asked meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.load import post_request

WAIT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 60.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    """Requests that are due, and what came of them."""

    def __init__(self, port: int, rate: float, seconds: float, request: bytes) -> None:
        self._port = port
        self._rate = rate
        self._seconds = seconds
        self._request = request
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stopping = False
        self.answers: list[tuple[float, float, int, str, int]] = []
        self.lost: list[str] = []
        self._seen: dict[str, int] = {}

    async def run(self) -> None:
        """Ask until the time is over or the input ends."""
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, self._stop)
        begin = time.monotonic()
        asking: set[asyncio.Task[None]] = set()
        number = 0
        while not self._stopping and number < self._seconds * self._rate:
            due = begin + number / self._rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._ask(due))
            asking.add(task)
            task.add_done_callback(asking.discard)
            number += 1
        if asking:
            await asyncio.wait(asking)

    def _stop(self) -> None:
        if not sys.stdin.read(1):
            self._stopping = True

    async def _ask(self, due: float) -> None:
        try:
            reader, writer = await self._connection()
            writer.write(self._request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)
            fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
            body = await reader.readexactly(int(fields[b"content-length"]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.lost.append(f"{type(error).__name__}: {error}")
            return
        latency = time.monotonic() - due
        # Bodies are many and few: each is named by the order in which it was first seen.
        answer = self._seen.setdefault(body.decode(), len(self._seen))
        release = fields.get(b"x-release", b"").decode()
        self.answers.append((due, latency * 1000, int(head.split(b" ", 2)[1]), release, answer))
        self._idle.append((time.monotonic(), reader, writer))

    async def _connection(self) -> Connection:
        """A pooled one, as EdgeInfer's client pools them: what was idle for a minute is not used again."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def result(self) -> dict[str, Any]:
        """``answers`` as (due on the monotonic clock, ms, status, release, number in ``bodies``)."""
        return {"answers": self.answers, "lost": self.lost, "bodies": list(self._seen)}


def main(arguments: Sequence[str]) -> int:
    """Run one load and print what came."""
    port, rate, seconds, path = arguments
    load = Load(int(port), float(rate), float(seconds), post_request(int(port), Path(path).read_bytes()))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(load.run())
    print(json.dumps(load.result()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
