"""``releasectl accept URL`` and ``attach FILE``: a release tried on the device that it is for, in one file.

The golden windows and two thousand more go to a runtime that serves the release; what it is, what it answered
and how long that took becomes one document, bound to the release's digest.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import time
import urllib.parse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from runtime.contract.acceptance import (
    ACCEPTANCE_SCHEMA,
    DEADLINE_MS,
    LEAST_WINDOWS,
    Acceptance,
    DeviceIdentity,
    keep_acceptance,
    parse_acceptance,
)
from runtime.contract.document import to_json
from runtime.contract.errors import PipelineError, StoreError, store_errors
from runtime.contract.files import read_bounded, write_document
from runtime.contract.release import LSB_ELSEWHERE
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import SHORTEST_SIGNED
from runtime.contract.window import LATENT_SIZE, FloatArray, Window
from runtime.golden import GoldenWindow

RATE: Final = 20.0
TIMEOUT_SECONDS: Final = 5.0
_ADDRESS: Final = "as http://127.0.0.1:9000"
_LOST: Final = (OSError, http.client.HTTPException, UnicodeError)
"""What a request ends in without an answer; the last where a host's name cannot be asked for."""

_WHAT_IS_IT: Final = "is it a runtime?"
_OCTETS: Final = "application/octet-stream"
_MOST_BYTES: Final = 1024 * 1024
_RUNS_ON: Final = ("machine", "program", "kernel_family")
Samples = dict[str, list[tuple[dict[str, str], float]]]


class AcceptanceError(PipelineError):
    """A runtime that cannot be tried: it does not answer, or serves something else."""

    code = "acceptance"


class Device:
    """A runtime, asked over one connection that is opened again where it is lost.

    Args:
        url: As ``http://pi:9000``.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
            self._connection = http.client.HTTPConnection(host or "", port or 80, timeout=TIMEOUT_SECONDS)
        except (ValueError, http.client.InvalidURL) as error:
            # A port that is none, half of an IPv6 address, a blank.
            raise AcceptanceError(f"is no address: {error}", where=url[:200], hint=_ADDRESS) from error
        if parts.scheme != "http" or not host:
            raise AcceptanceError("is no http address", where=url[:200], hint=_ADDRESS)
        self.url = url.rstrip("/")

    def close(self) -> None:
        """Close the connection; another request opens it again."""
        self._connection.close()

    def get(self, path: str) -> bytes:
        """A page; AcceptanceError where it does not come, or not with 200."""
        try:
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
            data = answer.read(_MOST_BYTES)
        except _LOST as error:
            self._connection.close()
            raise AcceptanceError(f"does not answer: {error}", where=self.url) from error
        if answer.status != 200:
            raise AcceptanceError(f"{path} is {answer.status}: {data[:200]!r}", where=self.url)
        return data

    def infer(self, window: Window) -> tuple[str, FloatArray] | None:
        """The release that answered and its latent, float32 (64,), unchecked; None where not with 200."""
        headers = {"Content-Type": _OCTETS, "Accept": _OCTETS}
        try:
            self._connection.request("POST", "/infer", window.astype("<f4").tobytes(), headers)
            answer = self._connection.getresponse()
            data = answer.read(_MOST_BYTES)
        except _LOST:
            self._connection.close()
            return None
        if answer.status != 200 or len(data) < 4 * LATENT_SIZE:
            return None
        return answer.getheader("X-Release", ""), np.frombuffer(data[: 4 * LATENT_SIZE], "<f4")

    def health(self) -> dict[str, Any]:
        """What it serves."""
        try:
            told = json.loads(self.get("/healthz"))
        except (ValueError, RecursionError) as error:
            raise AcceptanceError("/healthz is no JSON", where=self.url, hint=_WHAT_IS_IT) from error
        if not isinstance(told, dict):
            raise AcceptanceError("/healthz is no JSON object", where=self.url, hint=_WHAT_IS_IT)
        return told

    def samples(self) -> Samples:
        """What ``/metrics`` says."""
        found: Samples = {}
        try:
            for family in text_string_to_metric_families(self.get("/metrics").decode()):
                for each in family.samples:
                    found.setdefault(each.name, []).append((dict(each.labels), each.value))
        except (ValueError, LookupError, TypeError) as error:
            # prometheus_client's parser says no more of what it cannot read.
            raise AcceptanceError("/metrics cannot be read", where=self.url, hint=_WHAT_IS_IT) from error
        return found


def accept(
    device: Device,
    release: Release,
    windows: int = LEAST_WINDOWS,
    rate: float = RATE,
    say: Callable[[str], None] = lambda _: None,
) -> Acceptance:
    """Try a release on the device that serves it.

    Args:
        device: It must serve the release from the first window to the last.
        release: With its golden windows.
        windows: How many are sent, the golden ones over and over.
        rate: Windows a second: the next one is due whether or not the last was answered.
        say: Told how far it is.

    Raises:
        AcceptanceError: The device does not answer, or serves another release.
    """
    health = _serving(device, release)
    runs_on: dict[str, str] = health["runs_on"]
    golden = GoldenWindow.all_of(release)
    worst, unit, allowed = _golden(device, release, golden, runs_on["kernel_family"])
    say(f"golden windows: {len(golden)}, largest difference {worst:g} {unit}, allowed {allowed:g}")
    before, begin = device.samples(), time.perf_counter()
    latencies, lost = _sent(device, release, golden, windows, rate, say)
    seconds, after = time.perf_counter() - begin, device.samples()
    _serving(device, release)
    info = _labels(after, "hailo_device_info")
    late = sum(latency > DEADLINE_MS for latency in latencies) + lost
    p50, p95, p99, largest = _percentiles(latencies)
    return Acceptance(
        schema=ACCEPTANCE_SCHEMA,
        release=release.id,
        artifact_sha256=release.manifest.primary.sha256,
        target=release.manifest.target,
        provenance="emulated" if release.manifest.target == "emulator" else "measured",
        identity=DeviceIdentity(
            machine=runs_on["machine"],
            device=" ".join(info[name] for name in ("architecture", "serial") if info.get(name)),
            hailort=_hailort(runs_on["program"]),
            firmware=info.get("firmware", ""),
            runtime=_labels(after, "hailo_build_info").get("version", ""),
        ),
        golden_windows=len(golden),
        golden_worst=worst,
        golden_allowed=allowed,
        windows=windows,
        rate=float(rate),
        lost=lost,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        largest_ms=largest,
        later_than_45_ms=late / windows,
        cpu_share=_cpu(before, after, seconds),
        celsius=_largest(after, "hailo_device_temperature_celsius"),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _serving(device: Device, release: Release) -> dict[str, Any]:
    health = device.health()
    if health.get("release") != release.id:
        raise AcceptanceError(
            f"serves {str(health.get('release'))[:16]}, not {release.id[:16]}",
            where=device.url,
            hint="let its RELEASE_CHANNEL name this release, or ask for the one that it serves",
        )
    runs_on = health.get("runs_on")
    if not isinstance(runs_on, dict) or not all(isinstance(runs_on.get(name), str) for name in _RUNS_ON):
        raise AcceptanceError("does not say what it runs on", where=device.url, hint="update its runtime")
    return health


def _golden(
    device: Device, release: Release, golden: Sequence[GoldenWindow], kernel_family: str
) -> tuple[float, str, float]:
    """Largest difference from what the toolchain recorded, its unit, and the largest that is allowed."""
    record = release.manifest.golden
    worst = 0.0
    for each in golden:
        answer = device.infer(each.window)
        if answer is None or answer[0] != release.id:
            raise AcceptanceError(f"golden window {each.number} was not answered", where=device.url)
        if not np.isfinite(answer[1]).all():
            what = f"golden window {each.number} was answered with a number that is not finite"
            raise AcceptanceError(what, where=device.url, hint="do not use this release there")
        if record.output is None:
            off = float(np.abs(answer[1] - each.expected).max())
        else:
            steps = record.output.integers(answer[1]) - record.output.integers(each.expected)
            off = float(np.abs(steps).max())
        if not off <= worst:
            worst = off
    if record.output is None:
        return worst, "latent units", record.artifact_tolerance
    return worst, "LSB", 0.0 if record.kernel_family == kernel_family else float(LSB_ELSEWHERE)


def _sent(
    device: Device,
    release: Release,
    golden: Sequence[GoldenWindow],
    windows: int,
    rate: float,
    say: Callable[[str], None],
) -> tuple[list[float], int]:
    """Milliseconds from when each window was due to its answer, and how many had none."""
    latencies: list[float] = []
    lost, begin = 0, time.perf_counter()
    for number in range(windows):
        due = begin + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        answer = device.infer(golden[number % len(golden)].window)
        if answer is None or not np.isfinite(answer[1]).all():
            lost += 1
        elif answer[0] != release.id:
            raise AcceptanceError(
                f"{answer[0][:16]} answered window {number}: the channel moved",
                where=device.url,
                hint="run it again",
            )
        else:
            latencies.append(1000 * (time.perf_counter() - due))
        if number % 200 == 199:
            say(f"{number + 1} of {windows} windows, {lost} lost")
    return latencies, lost


def _percentiles(latencies: Sequence[float]) -> tuple[float, float, float, float]:
    if not latencies:
        raise AcceptanceError("no window was answered", hint="see its log")
    found = np.percentile(latencies, (50, 95, 99, 100))
    return tuple(round(float(each), 3) for each in found)  # type: ignore[return-value]


def _labels(samples: Samples, name: str) -> dict[str, str]:
    return samples[name][0][0] if samples.get(name) else {}


def _cpu(before: Samples, after: Samples, seconds: float) -> float | None:
    name = "process_cpu_seconds_total"
    if not (before.get(name) and after.get(name)):
        return None
    share = (after[name][0][1] - before[name][0][1]) / seconds
    return round(share, 4) if math.isfinite(share) else None


def _largest(samples: Samples, name: str) -> float | None:
    """None where nothing is said, or one of them is no number."""
    values = [value for _, value in samples.get(name, ())]
    return max(values) if values and all(map(math.isfinite, values)) else None


def _hailort(program: str) -> str:
    name, _, version = program.partition(" ")
    return version if name == "hailort" else ""


def lines(report: Acceptance) -> list[str]:
    """A report for people; every number says how it came about."""
    told, identity = report.provenance, report.identity
    cpu = "not known" if report.cpu_share is None else f"{100 * report.cpu_share:.3g} % of a core"
    return [
        f"release    {report.release}",
        f"on         {identity.machine}",
        f"device     {identity.device or 'none: the emulator'}"
        + (f", HailoRT {identity.hailort}, firmware {identity.firmware}" if identity.device else ""),
        f"golden     {report.golden_windows} windows, largest difference {report.golden_worst:g}, "
        f"allowed {report.golden_allowed:g} ({told})",
        f"windows    {report.windows} at {report.rate:g}/s, {report.lost} lost",
        f"latency    p50 {report.p50_ms} ms, p95 {report.p95_ms} ms, p99 {report.p99_ms} ms, largest "
        f"{report.largest_ms} ms, later than 45 ms {100 * report.later_than_45_ms:.3g} % ({told})",
        f"CPU        {cpu} ({told})",
        *([f"chip       {report.celsius:g} °C ({told})"] if report.celsius is not None else []),
        *(f"FAILED     {failure}" for failure in report.failures()),
    ]


def add_acceptance(verb: Callable[[str, str, Callable[..., int]], argparse.ArgumentParser]) -> None:
    """Add both verbs to ``releasectl``."""
    trial = verb("accept", "try a release on the device that serves it; writes a report", _accept)
    trial.add_argument("url", metavar="URL", help="of the runtime, as http://127.0.0.1:9000")
    trial.add_argument(
        "--release", metavar="ID", help="default: the one that it serves; must be in the store"
    )
    trial.add_argument("--out", type=Path, metavar="FILE", help="default: acceptance-<first digits>.json")
    trial.add_argument("--windows", type=int, default=LEAST_WINDOWS, help="fewer are no evidence")
    trial.add_argument("--rate", type=float, default=RATE, help="windows a second")
    kept = verb("attach", "verify an acceptance report and keep it beside its release", _attach)
    kept.add_argument("file", metavar="FILE", type=Path, help="what `accept` wrote")


def _accept(store: ReleaseStore, options: argparse.Namespace) -> int:
    with contextlib.closing(Device(options.url)) as device:
        return _tried(device, store, options)


def _tried(device: Device, store: ReleaseStore, options: argparse.Namespace) -> int:
    serves = str(device.health().get("release") or "")
    release = store.open_signed(store.named(options.release or serves, SHORTEST_SIGNED))
    release.verify()

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    report = accept(device, release, max(1, options.windows), max(0.1, options.rate), say)
    place = options.out or Path(f"acceptance-{release.id[:12]}.json")
    with store_errors(place):
        write_document(place.absolute(), to_json(report))
    shown = [*lines(report), f"written    {place}: `releasectl attach {place}` keeps it beside the release"]
    options.show(options, json.loads(to_json(report)), lambda: shown)
    return 1 if report.failures() else 0


def _attach(store: ReleaseStore, options: argparse.Namespace) -> int:
    try:
        with store_errors(options.file):
            data = read_bounded(options.file, _MOST_BYTES)
    except StoreError as error:
        raise AcceptanceError(
            error.what, where=str(options.file), hint="`releasectl accept` writes it"
        ) from error
    report = parse_acceptance(data, str(options.file))
    release = store.open_signed(report.release)
    keep_acceptance(store, release, data, str(options.file))
    options.show(options, json.loads(data), lambda: [*lines(report), "kept beside its release"])
    return 1 if report.failures() else 0
