"""Who is let in under overload: by age, not only by number; decisions on a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import falcon.testing
import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.admission import IN_TIME_SECONDS, SLICE_SECONDS, Pace, windows_in_slice
from runtime.contract.window import FloatArray
from runtime.turns import Turns
from tests.doubles.hailo import HailoDouble
from tests.runtime.hailo import hailo_release, open_on
from tests.runtime.service import Service, ask
from tests.runtime.test_infer_body import GOOD
from tests.runtime.test_protocol import WHOLE, Serving, parted, run
from tests.simulators import FakeEngine, ReleaseSimulator, imu_windows

OCTETS = "application/octet-stream"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A service whose every window takes as long as ``seconds`` says, by its own clock."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.clock, self.seconds = Clock(), seconds
        self.each_window: Callable[[], None] = lambda: None
        release = ReleaseSimulator().publish(root)
        engine = FakeEngine(release.manifest, self._answer)
        self.service = Service(ModelHolder(ActiveModel(release, engine)), clock=self.clock)

    def _answer(self, tensor: FloatArray) -> FloatArray:
        self.clock.now += self.seconds
        self.each_window()
        return np.zeros(64, np.float32)

    def arrived(self, kind: str = "application/json") -> dict[str, Any]:
        """A whole request that is there now."""
        scope = falcon.testing.create_scope(path="/infer", method="POST", headers={"Content-Type": kind})
        self.service.app.queue.arrived(scope, self.clock.now)
        return scope

    def turn(self, scope: dict[str, Any], body: bytes = GOOD) -> tuple[int, dict[str, str], Any]:
        """Its turn has come."""
        answered = self.service.app.at_once(scope, body)
        assert answered is not None
        answer, headers = answered
        fields = {name.decode(): value.decode() for name, value in headers}
        return answer.status, fields, json.loads(answer.body)

    def asked(
        self, scope: dict[str, Any], body: bytes, beside: Callable[[], Awaitable[None]] | None = None
    ) -> int:
        """As ``turn``, for what takes a task, with something beside it; the status."""

        async def both() -> int:
            asking = asyncio.create_task(ask(self.service.app, scope, body))
            if beside:
                await asyncio.gather(asking, beside())
            return await asking

        return asyncio.run(both())


def test_an_answer_under_overload_is_in_time_or_503(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 0.002)
    scopes = [bench.arrived() for _ in range(90)]
    answers = [bench.turn(scope) for scope in scopes]
    statuses = [status for status, _, _ in answers]
    assert statuses == [200] * 20 + [503] * 70
    for status, fields, body in answers:
        if status == 200:
            assert float(fields["server-timing"].partition("dur=")[2]) <= IN_TIME_SECONDS * 1000 + 0.001
        else:
            assert (fields["retry-after"], body["error"]) == ("1", "overloaded")
            assert "within 40 ms" in body["message"]
    assert bench.service.app.queue.waiting == 0
    assert bench.turn(bench.arrived())[0] == 200


def test_a_chip_that_is_too_slow_for_anybody_is_still_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 0.1)
    for _ in range(5):
        first, second = bench.arrived(), bench.arrived()
        assert [bench.turn(first)[0], bench.turn(second)[0]] == [200, 503]
    bench.seconds = 0.001
    assert [bench.turn(bench.arrived())[0] for _ in range(5)] == [200] * 5


def test_a_window_that_came_in_pieces_has_the_same_bound(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 0.002)
    late, in_time = bench.arrived(), bench.arrived()
    assert bench.asked(in_time, GOOD) == 200
    bench.clock.now += IN_TIME_SECONDS
    assert bench.asked(late, GOOD) == 503


@pytest.mark.parametrize(("windows", "status"), [(1, 503), (2, 200)])
def test_who_asks_for_several_windows_may_wait(tmp_path: Path, windows: int, status: int) -> None:
    bench = Bench(tmp_path, 0.002)
    batch = imu_windows(windows)
    as_json, as_octets = bench.arrived(), bench.arrived(OCTETS)
    bench.clock.now += 2 * IN_TIME_SECONDS
    assert bench.asked(as_json, json.dumps({"x": batch.tolist()}).encode()) == status
    assert bench.asked(as_octets, batch.tobytes()) == status


@pytest.mark.parametrize(
    ("seconds", "stretches"),
    [
        (0.0, [1, 8, 8, 3]),
        (0.000248, [1, 8, 8, 3]),
        (0.0009, [1] + [2] * 9 + [1]),
        (0.002, [1] * 20),
        (0.05, [1] * 20),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_a_batch_has_the_loop_for_about_2_ms(
    tmp_path: Path, seconds: float, stretches: list[int], as_json: bool
) -> None:
    """Whatever a window costs; counted in windows that are run before anybody else has a turn."""
    bench, ran = Bench(tmp_path, seconds), [0]
    bench.each_window = lambda: ran.__setitem__(-1, ran[-1] + 1)
    windows = imu_windows(20)
    body = json.dumps({"x": windows.tolist()}).encode() if as_json else windows.tobytes()

    async def beside() -> None:
        while sum(ran) < len(windows):
            if ran[-1]:
                ran.append(0)
            await asyncio.sleep(0)

    scope = bench.arrived("application/json" if as_json else OCTETS)
    assert bench.asked(scope, body, beside) == 200
    assert [count for count in ran if count] == stretches


def test_a_batch_that_becomes_slow_gives_way_sooner() -> None:
    assert [windows_in_slice(took, 8, 8) for took in (0.001, 0.002, 0.004, 0.016, 1.0)] == [8, 8, 4, 1, 1]


def test_one_slow_window_among_many_is_no_pace() -> None:
    pace = Pace()
    for _ in range(50):
        pace.took(0.001)
    pace.took(0.020)
    assert 0.001 < pace.seconds < 0.004


def test_what_comes_meanwhile_is_read_after_a_while() -> None:
    """Turns are taken in order, a few at a stretch: what is not read has no age that anybody knows."""
    clock, soon, taken = Clock(), list[Callable[[], None]](), list[int]()

    class Connection:
        loop = property(lambda self: self)

        def call_soon(self, what: Callable[[], None]) -> None:
            soon.append(what)

        def take_turn(self, cycle: int) -> None:
            taken.append(cycle)
            clock.now += SLICE_SECONDS / 2
            if cycle == 0:
                turns.wait(connection, 10)
            if cycle == 3:
                raise ValueError("a mistake of ours")

        def drop(self, cycle: int) -> None:
            taken.append(-cycle)

    turns, connection = Turns(clock), Connection()
    for cycle in range(5):
        turns.wait(connection, cycle)
    stretches: list[list[int]] = []
    while soon:
        soon.pop(0)()
        stretches.append(list(taken))
        taken.clear()
    assert stretches == [[0, 1], [2, 3, -3], [4, 10]]


def test_beside_a_chip_of_2_ms_most_of_90_at_once_are_told_in_time(tmp_path: Path, chip: HailoDouble) -> None:
    """All are there before the first turn; however slow the machine is, no more than 20 fit into 40 ms."""
    chip.set(run_ms=2)
    engine = open_on(chip, hailo_release(tmp_path / "store"))
    release = hailo_release(tmp_path / "store")
    holder = ModelHolder(ActiveModel(release, engine))

    async def story(server: Serving) -> None:
        pairs = [await server.connect() for _ in range(90)]
        while len(server.connections) < 90:
            await asyncio.sleep(0.01)
        for _, writer in pairs:
            writer.write(WHOLE)
            writer.write_eof()
        found = [parted(await asyncio.wait_for(reader.read(), 20)) for reader, _ in pairs]
        for _, writer in pairs:
            writer.close()
        assert {status for status, _, _ in found} <= {200, 503}
        assert sum(status == 200 for status, _, _ in found) <= 20
        assert all(body["error"] == "overloaded" for status, _, body in found if status == 503)
        assert server.app.queue.waiting == 0

    try:
        run(holder, story)
    finally:
        engine.close()
