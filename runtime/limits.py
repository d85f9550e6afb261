"""What a client may do and take: bounds of one connection, and of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from dataclasses import dataclass
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

MOST_IN_LINE: Final = 32
"""Requests of one connection that wait before reading pauses, and that are begun in one piece."""

READ_BYTES: Final = 32 * 1024
"""What is parsed of one connection before the others get their turn; a request has about 19 kB.

A piece may be chunks of one byte each, which are parsed one by one while everybody waits.
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one connection, and of all of them.

    Args:
        request_seconds: From a request's first byte to its last, and for a client to read its answer.
        idle_seconds: Without any request. EdgeInfer's client keeps idle connections for 60 s: who closes
            first loses a request, and that must not be us.
        head_bytes: Of the request line and the headers, and of trailers; up to ``READ_BYTES`` more where
            they begin in one piece with what was before them.
        connections: For a further one, the longest silent of those that never sent a whole head is closed;
            where there is none, it is told 503 when it asks for inference, and closed after its answer.
        waiting: Whole requests that wait for their turn, the newest: others are told 503.
    """

    request_seconds: float = 30.0
    idle_seconds: float = 75.0
    head_bytes: int = 32 * 1024
    connections: int = 512
    waiting: int = 96


class Flow(FlowControl):
    """Reads no further while many requests of the connection are in line: each takes memory, and has no turn.

    uvicorn's own reads on whenever one of them is taken up.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Where there is room in the line."""
        if len(self._pipeline) < MOST_IN_LINE:
            super().resume_reading()
