"""Structured logs: one JSON object a line on standard output, never a request's body.

A thread writes them: who reads our output may stall, and the event loop must not wait for that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from typing import Final

import msgspec

MOST_WAITING: Final = 2000
"""Lines that wait for a reader that stalls; further ones are dropped, and counted."""

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


class LogQueue(logging.Handler):
    """Hands finished lines to a thread; drops and counts them where it does not keep up."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self._lines.put_nowait(self.format(record))
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
                    rest = rest[os.write(sys.stdout.fileno(), rest) :]
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
