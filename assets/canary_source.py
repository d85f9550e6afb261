"""Where samples of a running canary come from: Prometheus, or the runtimes' own ``/metrics``.

Both give the same samples by name and labels. What is not there is not made up.
"""

from __future__ import annotations

import copy
import http.client
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client.parser import text_string_to_metric_families

from runtime.contract.errors import PipelineError

ASK_SECONDS: Final = 5.0
"""For a whole answer, however slowly it trickles."""

ALL_SECONDS: Final = 20.0
"""For all that Prometheus is asked at one look: a look has to end before Dagster ends it."""

MOST_BYTES: Final = 8 * 1024 * 1024
MOST_TOLD: Final = 5
SERVED: Final = "hailo_release_served_seconds"
BESIDE: Final = "hailo_shadow_running"
_COUNTERS: Final = (
    "hailo_runtime_requests_total",
    "hailo_runtime_windows_total",
    "hailo_golden_replays_total",
    "hailo_shadow_windows_total",
    "hailo_shadow_golden_total",
)
"""A process that starts again sets all of them back; between them, one of them counts in any runtime."""

Place = tuple[str, str]
"""``job`` and ``instance`` of who was scraped."""


class NoEvidenceError(PipelineError):
    """The source of the numbers could not be asked, or answered something that is none."""

    code = "no_evidence"


@dataclass(frozen=True)
class Sample:
    """One number with its labels."""

    labels: Mapping[str, str]
    value: float

    @property
    def place(self) -> Place:
        """Who was scraped; empty texts where nothing says it."""
        return self.labels.get("job", ""), self.labels.get("instance", "")


class Source(Protocol):
    """Where samples come from."""

    @property
    def name(self) -> str:
        """Its address, for people."""

    def within(self, minutes: float) -> Source:
        """The same, which looks no further back than this, where it looks back at all."""

    def counted(self, name: str, release: str) -> list[Sample]:
        """What the counters of a release counted; NoEvidenceError where that cannot be told."""

    def now(self, name: str, release: str = "") -> list[Sample]:
        """What gauges say; of all releases where none is named."""

    def gaps(self, canary: str) -> tuple[str, ...]:
        """A sentence for each runtime whose counts are known to be missing, whole or in part."""


class Prometheus:
    """Prometheus's HTTP API.

    Args:
        url: As ``http://127.0.0.1:9090``.
        minutes: How far back counters are looked at.
        job: Prometheus's own name for the runtimes: EdgeInfer exports metrics, too.
        get: Fetches an address.
    """

    def __init__(
        self, url: str, minutes: float, job: str = "", get: Callable[[str], bytes] | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._minutes = minutes
        self._job = f'job="{_escaped(job)}"' if job else ""
        self._get = get or fetched
        self._until = time.monotonic() + ALL_SECONDS

    @property
    def name(self) -> str:
        """Its address."""
        return self._url

    def within(self, minutes: float) -> Prometheus:
        """As ``Source``."""
        same = copy.copy(self)
        same._minutes = min(self._minutes, minutes)
        return same

    def counted(self, name: str, release: str) -> list[Sample]:
        """As ``Source``: the most that each counter of the release reached, which is never too much.

        Not ``increase``: it takes a counter's first value for nothing, and the only failure is that one.
        """
        return self._asked(f"max_over_time({self._ranged(name, release)})")

    def now(self, name: str, release: str = "") -> list[Sample]:
        """As ``Source``."""
        return self._asked(f"{name}{self._selector(release)}")

    def gaps(self, canary: str) -> tuple[str, ...]:
        """As ``Source``: runtimes that are down, that ran the canary and do not now, or that restarted."""
        ran = self._ran(canary)
        found = [(place, "ran it, and does not now") for place in ran - self._run(canary)]
        found += [(place, "is down") for place in self._down()]
        found += [
            (place, "restarted: what it counted before is lost") for place in ran & self._restarted(canary)
        ]
        told = [
            f"{' '.join(filter(None, place)) or 'a runtime'} {what}" for place, what in sorted(set(found))
        ]
        return (*told[:MOST_TOLD], *([f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else ()))

    def _ran(self, release: str) -> set[Place]:
        """Who served it as a canary, or ran it beside stable, at any time that is looked at."""
        return _running(self.counted(SERVED, release), self.counted(BESIDE, release))

    def _run(self, release: str) -> set[Place]:
        return _running(self.now(SERVED, release), self.now(BESIDE, release))

    def _down(self) -> set[Place]:
        up = self._asked("up" + self._selector(""))
        if not self._job:
            # Prometheus may scrape whatever else there is: those jobs count in which a runtime is known.
            jobs = {each.place[0] for name in (SERVED, BESIDE) for each in self.counted(name, "")}
            up = [each for each in up if each.place[0] in jobs]
        return {each.place for each in up if each.value != 1}

    def _restarted(self, release: str) -> set[Place]:
        queries = [f"changes({self._ranged('process_start_time_seconds', '')})"]
        queries += [f"resets({self._ranged(name, release)})" for name in _COUNTERS]
        return {each.place for query in queries for each in self._asked(query) if each.value != 0}

    def _ranged(self, name: str, release: str) -> str:
        return f"{name}{self._selector(release)}[{max(1, round(self._minutes * 60))}s]"

    def _selector(self, release: str) -> str:
        parts = [part for part in (self._job, f'release="{_escaped(release)}"' if release else "") if part]
        return "{" + ",".join(parts) + "}" if parts else ""

    def _asked(self, query: str) -> list[Sample]:
        if time.monotonic() > self._until:
            raise NoEvidenceError(f"takes more than {ALL_SECONDS:g} s for its answers", where=self._url)
        data = self._get(f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        try:
            answer = json.loads(data)
            if answer["status"] != "success" or answer["data"]["resultType"] != "vector":
                raise NoEvidenceError(f"answered {str(answer)[:200]}", where=self._url)
            return [
                Sample(
                    {str(name): str(value) for name, value in each["metric"].items()}, float(each["value"][1])
                )
                for each in answer["data"]["result"]
            ]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise NoEvidenceError(
                f"its answer cannot be read: {type(error).__name__}",
                where=self._url,
                hint="is it Prometheus?",
            ) from error


def _running(served: Sequence[Sample], beside: Sequence[Sample]) -> set[Place]:
    found = {each.place for each in served if each.labels.get("channel") == "canary"}
    return found | {each.place for each in beside if each.value == 1}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Runtimes:
    """The runtimes' own pages, all of them together: every one must answer.

    Args:
        urls: Of the runtimes, ``/metrics`` left away.
        get: Fetches an address.
    """

    def __init__(self, urls: Sequence[str], get: Callable[[str], bytes] | None = None) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        get = get or fetched
        self._samples: dict[str, list[Sample]] = {}
        for url in self._urls:
            try:
                text = get(f"{url}/metrics").decode()
                for family in text_string_to_metric_families(text):
                    for each in family.samples:
                        self._samples.setdefault(each.name, []).append(Sample(each.labels, each.value))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise NoEvidenceError(
                    f"its metrics cannot be read: {type(error).__name__}", where=url, hint="is it a runtime?"
                ) from error

    @property
    def name(self) -> str:
        """Their addresses."""
        return ", ".join(self._urls)

    def within(self, minutes: float) -> Runtimes:
        """As ``Source``: they count since their start, and know nothing of when."""
        return self

    def counted(self, name: str, release: str) -> list[Sample]:
        """As ``Source``; since each runtime's start."""
        return self.now(name, release)

    def now(self, name: str, release: str = "") -> list[Sample]:
        """As ``Source``."""
        found = self._samples.get(name, [])
        return [each for each in found if not release or each.labels.get("release") == release]

    def gaps(self, canary: str) -> tuple[str, ...]:
        """As ``Source``: none, since who does not answer is an error, and of before nothing is known."""
        return ()


def fetched(url: str, seconds: float = ASK_SECONDS) -> bytes:
    """The body of a page, bounded in time and size; NoEvidenceError where there is none, or not all of it.

    Runtimes and Prometheus are neighbours: no proxy is asked for them, and they send nobody elsewhere.
    """
    where = url.split("?", 1)[0][:200]
    begin = time.monotonic()
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NoEvidenceError("is no http address", where=where)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=seconds)
        page = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        status, data, missing = _read(connection, page, begin + seconds)
    except (OSError, ValueError, http.client.HTTPException) as error:
        late = time.monotonic() - begin >= seconds
        raise NoEvidenceError(
            f"does not answer: {f'not within {seconds:g} s' if late else str(error) or type(error).__name__}",
            where=where,
            hint="is it up, and is this its address?",
        ) from error
    if len(data) > MOST_BYTES:
        raise NoEvidenceError(f"answers more than {MOST_BYTES} bytes", where=where)
    if missing or time.monotonic() - begin >= seconds:
        raise NoEvidenceError(f"its answer ends after {len(data)} bytes, and is not whole", where=where)
    if status != 200:
        raise NoEvidenceError(f"answers {status}: {data[:200].decode(errors='replace')!r}", where=where)
    return data


def _read(connection: http.client.HTTPConnection, page: str, until: float) -> tuple[int, bytes, int]:
    """Status, body, and how many of its bytes are missing.

    A timeout of the socket begins anew with each byte that comes: so the connection is cut when time is up.
    """
    try:
        connection.connect()
        timer = threading.Timer(max(0.0, until - time.monotonic()), _cut, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            data = answer.read(MOST_BYTES + 1)
            return answer.status, data, answer.length or 0
        finally:
            timer.cancel()
    finally:
        connection.close()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
