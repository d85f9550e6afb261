"""The app with a client, for tests: what it answers, counts and logs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import falcon.testing

from runtime.active_model import ModelHolder
from runtime.app import App, create_app
from runtime.contract.errors import ReleaseNotFoundError
from runtime.logs import JsonFormatter, configure_logging
from runtime.metrics import RuntimeMetrics

NO_RELEASE = ReleaseNotFoundError("no channel names a release", where="/store", hint="publish one")


class Service:
    """The app with a client and what it counts."""

    def __init__(self, holder: ModelHolder, clock: Callable[[], float] = perf_counter) -> None:
        self.holder = holder
        self.metrics = RuntimeMetrics()
        self.metrics.show_model(holder.model, holder.alarm_kind)
        self.app = create_app(holder, self.metrics, clock=clock)
        self.client = falcon.testing.TestClient(self.app)

    def post(self, body: bytes, **options: Any) -> falcon.testing.Result:
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        return self.client.simulate_post("/infer", body=body, headers=headers, **options)

    def sample(self, name: str, **labels: str) -> float | None:
        """The sum of all samples with these labels, whatever others they have; None where there is none."""
        found = [
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


async def ask(app: App, scope: dict[str, Any], body: bytes = b"") -> int:
    """Hand a whole request over as a server does, in the loop that runs; the answer's status."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    await app(scope, receive, send)
    return statuses[0]


@contextlib.contextmanager
def logged(level: str) -> Iterator[list[dict[str, Any]]]:
    """The log's lines, there when the block has ended."""
    lines: list[dict[str, Any]] = []
    logger, stream = logging.getLogger("runtime"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    before = logger.handlers, logger.level, logger.propagate
    configure_logging(level)
    logger.handlers = [handler]
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
        lines += [json.loads(line) for line in stream.getvalue().splitlines()]
