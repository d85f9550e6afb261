"""A body on its way in: read as a whole, within what all of them together may take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, Self

from runtime.admission import AnsweredError, overloaded
from runtime.answers import CLOSE, CODES, Answer, Headers, error_answer
from runtime.infer_body import MAX_BODY_BYTES

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

MOST_BODY_BYTES: Final = 32 * 1024 * 1024
"""Of all bodies that are being read or whose windows wait, together."""

FREE_BODY_BYTES: Final = 64 * 1024
"""Of each body, not counted: a window is never refused for what others send. Connections bound their sum."""


class NobodyThereError(Exception):
    """The client has left."""


class BodyMemory:
    """What bodies take that are there in part or wait, of the whole process.

    Args:
        most: Bytes beyond which a body is refused that grows.
    """

    def __init__(self, most: int = MOST_BODY_BYTES) -> None:
        self.most = most
        self.held = 0


class HeldBody:
    """One body's share, given back at the end of the block.

    Args:
        memory: What it is a share of.
    """

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory, self._size = memory, 0

    def grow(self, size: int) -> None:
        """It has this many bytes now.

        Raises:
            AnsweredError: 503 that ends the connection: there is no room for it.
        """
        more = max(0, size - FREE_BODY_BYTES) - self._size
        if more > 0 and self._memory.held + more > self._memory.most:
            what = f"bodies that are being read have {self._memory.held} bytes"
            answer = overloaded(what).answer
            raise AnsweredError(replace(answer, extra=(*answer.extra, CLOSE)))
        self._size += more
        self._memory.held += more

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.held -= self._size
        self._size = 0


async def read_whole(receive: Receive, held: HeldBody) -> bytes:
    """The whole body.

    Raises:
        NobodyThereError: The client has left.
        AnsweredError: 413, or 503 where there is no room for it.
    """
    event = await receive()
    if event["type"] == "http.disconnect":
        raise NobodyThereError
    body: bytes = event.get("body", b"")
    if not event.get("more_body"):
        return body
    parts, size = [body], len(body)
    held.grow(size)
    while event.get("more_body"):
        event = await receive()
        if event["type"] == "http.disconnect":
            raise NobodyThereError
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise too_large()
        if event.get("more_body"):  # What is there in whole is not refused any more.
            held.grow(size)
    return b"".join(parts)


async def end_with(answer: Answer, headers: Headers, receive: Receive, send: Send) -> None:
    """Answer a request whose body goes on, drop what still comes of it, and end the connection.

    Who still sends has not read the answer, and would lose it if the connection were closed at once.
    """
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    size = 0
    while size <= MAX_BODY_BYTES:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size += len(event.get("body", b""))
        if not event.get("more_body"):
            break
    await send({"type": "http.response.body", "body": b""})


def too_large() -> AnsweredError:
    """413."""
    return AnsweredError(error_answer(413, CODES[413], f"the body has more than {MAX_BODY_BYTES} bytes"))
