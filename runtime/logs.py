"""Structured logs: one JSON object a line on standard output, never a request's body.

Threads write them, and what the server's own libraries say on standard error: who reads our output may
stall, and the event loop must not wait for that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from time import monotonic
from typing import Final

import msgspec

MOST_WAITING: Final = 2000
"""Lines that wait for a reader that stalls; further ones are dropped, and counted."""

SERVER_LINES_A_SECOND: Final = 20
"""Of the server's libraries: asyncio says the same thing for each connection that it cannot accept."""

_STOP_SECONDS: Final = 2.0
_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)


class JsonFormatter(logging.Formatter):
    """Writes time (Unix seconds), level, logger, message and the record's own ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname,
            "logger": record.name,
            "message": _encodable(record.getMessage()),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = _encodable(self.formatException(record.exc_info))
        return _ENCODER.encode(line).decode()


class Sampler:
    """Lets ``count`` events pass in each ``seconds``."""

    def __init__(self, seconds: float, count: int) -> None:
        self._seconds = seconds
        self._count = count
        self._until = float("-inf")
        self._left = 0
        self._unlogged = 0

    def take(self, now: float) -> int | None:
        """How many did not pass since the last that did; None where this one does not."""
        if now >= self._until:
            self._until, self._left = now + self._seconds, self._count
        if self._left == 0:
            self._unlogged += 1
            return None
        self._left -= 1
        unlogged, self._unlogged = self._unlogged, 0
        return unlogged


class LogQueue(logging.Handler):
    """Hands finished lines to a thread; drops and counts them where it does not keep up.

    Args:
        stream: ``stdout`` or ``stderr``.
        sampler: What it does not let pass is not written, and the next line says how many; None for all.
    """

    def __init__(self, stream: str = "stdout", sampler: Sampler | None = None) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._sampler = sampler
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        unlogged = 0 if self._sampler is None else self._sampler.take(monotonic())
        if unlogged is None:
            return
        more = f"\n({unlogged} lines before this one were not written)" if unlogged else ""
        try:
            self._lines.put_nowait(self.format(record) + more)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is there, for at most two seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_STOP_SECONDS)
            self._thread.join(_STOP_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                # Past Python's buffer: a thread that stalls in it holds its lock, and an interpreter that
                # ends meanwhile aborts.
                rest = f"{line}\n".encode()
                while rest:
                    rest = rest[os.write(getattr(sys, self._stream).fileno(), rest) :]
            except (OSError, ValueError):  # Nobody reads any more, or it is closed.
                self.dropped += 1


def _encodable(text: str) -> str:
    """A path that is not UTF-8 holds lone surrogates, which JSON cannot carry."""
    return text.encode(errors="backslashreplace").decode()


def configure_logging(level: str) -> LogQueue:
    """Send the logs of ``runtime`` to standard output, from ``level`` upwards; once or again."""
    handler = LogQueue()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("runtime")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
    return handler


def configure_server_logging() -> LogQueue:
    """Send what all libraries in gunicorn's worker say to where gunicorn says it, by a thread.

    Called in the worker, before it serves. Files that gunicorn was told to write stay as they are.
    """
    given = logging.getLogger("gunicorn.error").handlers
    direct = [each for each in given if type(each) is logging.StreamHandler]
    queue = LogQueue("stderr", Sampler(1.0, SERVER_LINES_A_SECOND))
    if direct:
        queue.setFormatter(direct[0].formatter)
    handlers = [each for each in given if each not in direct]
    for name in ("gunicorn.error", "uvicorn.error", ""):
        logging.getLogger(name).handlers = [*handlers, queue] if direct or not given else list(given)
    return queue
