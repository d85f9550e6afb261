"""Structured logs: one JSON object a line on standard output, never a request's body."""

from __future__ import annotations

import logging
import sys
from typing import Final

import msgspec

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


def _encodable(text: str) -> str:
    """A path that is not UTF-8 holds lone surrogates, which JSON cannot carry."""
    return text.encode(errors="backslashreplace").decode()


def configure_logging(level: str) -> None:
    """Send the logs of ``runtime`` to standard output, from ``level`` upwards; once or again."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("runtime")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
