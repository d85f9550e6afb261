"""The page that Prometheus asks for, written piece by piece: it is written where requests are answered."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from time import perf_counter
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


_PIECE: Final = 64
"""Lines that are written at a stretch: half a millisecond on a desktop's core."""


class MetricsPage:
    """All families of a registry as text; one page at a time, and others have a turn after each piece.

    Args:
        registry: What is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._one = asyncio.Lock()
        self._text = b""
        self._begun = float("-inf")

    async def text(self) -> bytes:
        """Everything in Prometheus' text format, as ``CONTENT_TYPE`` says, none of it older than the call.

        Each family is of one moment. Who asks while a page is being written waits for the next one, and
        shares it with all who wait.
        """
        asked = perf_counter()
        async with self._one:
            if self._begun < asked:
                begun, parts = perf_counter(), []
                for family in self._registry.collect():
                    for piece in _pieces(family):
                        parts.append(piece)
                        await asyncio.sleep(0)
                self._text, self._begun = b"".join(parts), begun
        return self._text


def _pieces(family: Metric) -> Iterator[bytes]:
    samples = family.samples
    for start in range(0, max(1, len(samples)), _PIECE):
        part = copy.copy(family)
        part.samples = samples[start : start + _PIECE]
        text = generate_latest(_Alone(part))
        # Its help and type are told once.
        yield text if not start else text.split(b"\n", 2)[2]


class _Alone(Collector):
    """One family as a registry: ``generate_latest`` asks for no more."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        """That one."""
        yield self._family
