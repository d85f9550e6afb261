"""What every request leaves: an id, a duration in its answer, a count, and now and then a line in the log."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import Any, Final

from runtime.active_model import ModelHolder
from runtime.answers import Answer, Headers
from runtime.logs import Sampler
from runtime.metrics import RuntimeMetrics

COMPLETE_AT: Final = "runtime.complete_at"
"""Key in a scope: when the whole request was there, on ``perf_counter``'s clock."""

ANSWER: Final = "runtime.answer"
"""Key in a scope: takes an ``Answer`` and its headers, sends them as one piece, says whether it did."""

QUEUED: Final = "runtime.queued"
"""Key in a scope: whether it is counted as waiting; there as soon as it was, or never will be."""

CROWDED: Final = "runtime.crowded"
"""Key in a scope: there are more connections than are served."""

INFER_ROUTES: Final = ("/infer", "/", "/infer/infer")
"""Of ``POST``: what is sent there is to be inferred."""

_SLASHES: Final = re.compile("//+")
_REQUESTS: Final = logging.getLogger("runtime.request")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")
SUCCESS_SECONDS: Final = 1.0
"""At most one successful request is logged in each; the line says how many were not."""

ERRORS_A_SECOND: Final = 20
"""Refused requests that are logged; a client that sends nonsense must not fill the disk."""


def request_id(given: bytes) -> bytes:
    """The client's own where it is a sane one, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()


def plain_path(path: str) -> str:
    """A path with one slash for several and none at its end: clients append to what ends with one."""
    if "//" in path or path[-1:] == "/":
        return _SLASHES.sub("/", path).rstrip("/") or "/"
    return path


class Queue:
    """Inferences that are there in whole and have not had their turn."""

    def __init__(self) -> None:
        self.waiting = 0

    def arrived(self, scope: Any, now: float) -> None:
        """A request is there; ``now`` is ``perf_counter``."""
        scope[COMPLETE_AT] = now
        if scope["method"] != "POST" or plain_path(scope["path"]) not in INFER_ROUTES:
            return
        # Who was answered before the end of the body has left before coming.
        if scope.setdefault(QUEUED, True):
            self.waiting += 1

    def left(self, scope: Any) -> None:
        """It has its turn, or will never have one; again changes nothing."""
        if scope.get(QUEUED):
            self.waiting -= 1
        scope[QUEUED] = False


class RequestRecord:
    """Counts each request, times it, and logs it where that is not too much.

    Args:
        holder: What is served.
        metrics: Where requests are counted.
        clock: Seconds that only grow.
    """

    def __init__(self, holder: ModelHolder, metrics: RuntimeMetrics, clock: Callable[[], float]) -> None:
        self._holder = holder
        self._metrics = metrics
        self.clock = clock
        self._successes = Sampler(SUCCESS_SECONDS, 1)
        self._errors = Sampler(1.0, ERRORS_A_SECOND)

    def begin(self, scope: Any) -> float:
        """When the request was there: where the server did not note it, now."""
        complete: float | None = scope.get(COMPLETE_AT)
        return self.clock() if complete is None else complete

    def headers(self, answer_id: bytes, release: str, seconds: float | None) -> Headers:
        """What every answer carries; no duration where none is known."""
        named = [(b"x-request-id", answer_id)]
        if seconds is not None:
            named.append((b"server-timing", b"total;dur=%.3f" % (seconds * 1000)))
        if release:
            named.append((b"x-release", release.encode()))
        return named

    def release(self) -> str:
        """The release that is served now; empty where none is."""
        model = self._holder.model
        return model.release_id if model else ""

    def done(
        self, answer_id: bytes, method: str, route: str, status: int, seconds: float | None, release: str
    ) -> None:
        """Count one answered request and perhaps write its line.

        Args:
            answer_id: Its id.
            method: Of the request; empty where its head was not read.
            route: One of a few known texts.
            status: The answer's.
            seconds: From the whole request's being there; None where it never was: counted, and not timed.
            release: The one that answered, or was served then; empty for none.
        """
        infers = method == "POST" and route in INFER_ROUTES
        self._metrics.request_done(route, status, seconds, release, infers=infers)
        sampler = self._successes if status < 400 else self._errors
        unlogged = sampler.take(self.clock())
        if unlogged is None or not _REQUESTS.isEnabledFor(logging.INFO):
            return
        fields = {
            "request_id": answer_id.decode(),
            "method": method[:16],
            "route": route,
            "status": status,
            "latency_ms": None if seconds is None else round(seconds * 1000, 3),
            "release": release or None,
        }
        if unlogged:
            fields["unlogged"] = unlogged
        _REQUESTS.info("request", extra={"fields": fields})


def fixed_headers(answer: Answer) -> Headers:
    """Type and length of an answer's body, and what belongs to its status."""
    length = str(len(answer.body)).encode()
    return [(b"content-type", answer.media_type), (b"content-length", length), *answer.extra]
