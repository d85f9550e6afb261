"""What was answered, by release: a page that stays small, and totals that never fall."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runtime.metrics import RuntimeMetrics
from runtime.served_metrics import MOST_RELEASES

ROUTES = ("/infer", "/", "/infer/infer", "/healthz", "/metrics", "/status", "/test", "other")


def release(number: int) -> str:
    return f"{number:064x}"


def totals(metrics: RuntimeMetrics, prefix: str = "http_") -> dict[tuple[str, ...], float]:
    """Every sample of a counter or histogram whose name begins so."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        if family.type in ("counter", "histogram")
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


def of_release(metrics: RuntimeMetrics, name: str, number: int) -> float:
    found = totals(metrics, name)
    return sum(value for key, value in found.items() if key[0] == name and release(number) in key)


def served(metrics: RuntimeMetrics, number: int) -> None:
    """One request of each kind."""
    for route in ROUTES:
        for status in (200, 400, 404, 503):
            metrics.request_done(route, status, 0.001, release(number), infers=route == "/infer")
    metrics.windows_done(1, 0.0002, release(number), ("constant_channel",))
    metrics.engine_failed("engine", release(number))
    metrics.replayed(release(number), "repeated")
    metrics.replayed(release(number), "missed")
    metrics.switch_failed(release(number), "golden_mismatch")


def test_no_total_falls_however_many_releases_are_served() -> None:
    metrics, before = RuntimeMetrics("stable"), dict[tuple[str, ...], float]()
    for number in range(3 * MOST_RELEASES):
        served(metrics, number)
        now = totals(metrics)
        assert all(now[key] >= value for key, value in before.items())
        before = now
    requests = "http_requests_total", "/infer", "200"
    assert before["http_requests_total", *sorted(requests[1:])] == 3 * MOST_RELEASES
    seconds = "http_request_duration_seconds_count", "/infer"
    assert before[seconds] == 4 * 3 * MOST_RELEASES


def test_no_series_falls_while_it_is_shown() -> None:
    """One that was pushed out begins again, as Prometheus takes it for a series that ended."""
    metrics, before = RuntimeMetrics("stable"), dict[tuple[str, ...], float]()
    for number in [*range(6), 1, 5, 1, *range(9, 4, -1)]:
        served(metrics, number)
        now = totals(metrics, "")
        assert all(now[key] >= value for key, value in before.items() if key in now)
        before = now


def test_the_one_that_is_served_is_never_pushed_out() -> None:
    """Though it was the first of all: an operator went back to it."""
    metrics = RuntimeMetrics("stable")
    for number in range(MOST_RELEASES):
        served(metrics, number)
    for number in range(MOST_RELEASES, 3 * MOST_RELEASES):
        served(metrics, 0)
        served(metrics, number)
    served(metrics, 0)
    expected = len(ROUTES) * 4 * (2 * MOST_RELEASES + 2)
    assert of_release(metrics, "hailo_runtime_requests_total", 0) == expected
    assert of_release(metrics, "hailo_golden_replays_total", 0) == 2 * (2 * MOST_RELEASES + 2)
    assert of_release(metrics, "hailo_release_switch_failures_total", 0) == 2 * MOST_RELEASES + 2
    assert of_release(metrics, "hailo_runtime_requests_total", 1) == 0


def test_a_page_stays_as_small_as_it_is_with_a_few_releases() -> None:
    metrics = RuntimeMetrics("stable")
    sizes: list[int] = []
    for number in range(20 * MOST_RELEASES):
        served(metrics, number)
        sizes.append(len(generate_latest(metrics.registry)))
    assert max(sizes) < 1.02 * sizes[MOST_RELEASES - 1]
