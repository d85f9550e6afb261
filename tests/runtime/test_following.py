"""The channel is followed: another release is taken beside the old one, or is not, and that is told."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runtime.active_model import ActiveModel
from runtime.contract.errors import EngineError, PipelineError
from runtime.contract.store import Release
from runtime.load_memory import LoadMemory
from runtime.release_choice import Choice
from runtime.switching import LONGEST_WAIT, LOOK_SECONDS
from runtime.trial import CrashedOnLoadError
from tests.keys import MANAGER, a_store
from tests.moves import after, point, put_entry, tip
from tests.runtime.following import Following
from tests.runtime.service import logged
from tests.simulators import ARTIFACT, ReleaseSimulator, flip_bit, imu_windows, infer_body

BODY = infer_body(imu_windows(1)[0])


def stable(pi: Path, **changes: object) -> Release:
    """A release that stable names, by a new entry."""
    return ReleaseSimulator(**changes).publish(pi / "store", "stable")  # type: ignore[arg-type]


@pytest.fixture(name="pi")
def a_pi(tmp_path: Path) -> Iterator[Following]:
    stable(tmp_path)
    with closing(Following(tmp_path)) as following:
        yield following


def scores(pi: Following) -> tuple[str, int]:
    """Which release answers, and with how many motif scores."""
    answer = pi.service.post(BODY)
    return answer.headers["X-Release"], len(answer.json["motif_scores"])


def test_a_move_is_followed_within_two_looks(pi: Following, tmp_path: Path) -> None:
    first = pi.model.release_id
    assert scores(pi) == (first, 12)
    second = stable(tmp_path, motifs=13)
    assert scores(pi) == (first, 12)
    pi.run(2 * LOOK_SECONDS)
    assert scores(pi) == (second.id, 13)
    assert (pi.told(), pi.model.sequence) == (None, 2)
    assert pi.service.sample("hailo_release_switches_total") == 1
    assert pi.service.sample("hailo_switch_stall_seconds_count") == 1


def test_another_number_of_motifs_is_said_once(pi: Following, tmp_path: Path) -> None:
    with logged("INFO") as lines:
        second = stable(tmp_path, motifs=13)
        pi.run(3)
        stable(tmp_path, motifs=13, version="v9.0.0")
        pi.run(3)
    assert pi.model.release_id != second.id
    warned = [line for line in lines if line.get("event") == "motifs_changed"]
    assert [(line["level"], line["release"]) for line in warned] == [("WARNING", second.id)]
    assert "13 motif scores in place of 12" in warned[0]["message"]


def test_a_set_number_of_motifs_is_held(tmp_path: Path) -> None:
    first = stable(tmp_path)
    with closing(Following(tmp_path, num_motifs=12)) as pi:
        stable(tmp_path, motifs=13)
        pi.run(2)
        told = pi.told()
        assert told is not None
        assert (told["reason"], pi.model.release_id) == ("num_motifs", first.id)


def test_nothing_is_read_while_nothing_changes(pi: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    pi.run(2)
    finds: list[float] = []
    find = pi.choice.find

    def counted() -> Choice:
        finds.append(pi.now)
        return find()

    monkeypatch.setattr(pi.choice, "find", counted)
    pi.run(120)
    assert len(finds) == 2  # once a minute, whatever the signs say


def test_the_first_release_of_an_empty_store_is_noticed(tmp_path: Path) -> None:
    pi = Following(tmp_path)
    pi.run(300)
    release = stable(tmp_path)
    pi.run(2)
    assert pi.model.release_id == release.id


def _corrupt(root: Path) -> str:
    release = ReleaseSimulator(motifs=13).publish(root)
    flip_bit(release.directory / ARTIFACT, byte=100)
    return release.id


def _golden(root: Path) -> str:
    return ReleaseSimulator(golden_offset=1.0).publish(root).id


def _unsigned(root: Path) -> str:
    release = ReleaseSimulator(motifs=14).publish(root)
    signature = release.directory / "manifest.dsse.json"
    signature.unlink()
    return release.id


def _no_model(root: Path) -> str:
    return ReleaseSimulator(model=b"no onnx").place(root).id


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_corrupt, "digest_mismatch"),
        (_golden, "golden_mismatch"),
        (_no_model, "engine"),
        (_unsigned, None),
    ],
)
def test_a_bad_release_leaves_the_old_one_and_says_why(
    pi: Following, tmp_path: Path, make: Callable[[Path], str], reason: str | None
) -> None:
    first, bad = pi.model.release_id, make(tmp_path / "store")
    put_entry(tmp_path / "store", after(tip(tmp_path / "store"), release=bad), MANAGER)
    with logged("INFO") as lines:
        pi.run(2)
    told = pi.told()
    assert told is not None
    assert scores(pi) == (first, 12)
    if reason is not None:
        assert (told["wanted"], told["entry"], told["reason"]) == (bad, 2, reason)
        assert pi.service.sample("hailo_release_switch_failures_total", reason=reason) == told["attempts"]
    assert pi.model.alarm_kind == told["reason"]
    assert pi.service.sample("hailo_release_switch_failing") == 1
    assert [line["reason"] for line in lines if line.get("event") == "switch_failed"] == [told["reason"]]
    good = stable(tmp_path, motifs=13)
    pi.run(2 * LOOK_SECONDS)
    assert scores(pi) == (good.id, 13)
    assert (pi.told(), pi.model.alarm) == (None, "")
    assert pi.service.sample("hailo_release_switch_failing") == 0


def test_another_target_than_asked_for_is_refused(tmp_path: Path) -> None:
    first = stable(tmp_path)
    with closing(Following(tmp_path, target="emulator")) as pi:
        other = ReleaseSimulator(target="hailo8").publish(tmp_path / "store")
        put_entry(tmp_path / "store", after(tip(tmp_path / "store"), release=other.id), MANAGER)
        pi.run(2)
        told = pi.told()
        assert told is not None
        assert pi.model.release_id == first.id


def test_it_is_tried_again_with_growing_waits_and_mended(pi: Following, tmp_path: Path) -> None:
    bad = ReleaseSimulator(motifs=13).publish(tmp_path / "store")
    flip_bit(bad.directory / ARTIFACT, byte=100)
    point(tmp_path / "store", bad)
    pi.run(1.0)
    pi.loads.clear()
    pi.run(3600)
    attempts = len(pi.loads)
    assert 3600 / LONGEST_WAIT <= attempts <= 3600 / LONGEST_WAIT + 10
    flip_bit(bad.directory / ARTIFACT, byte=100)
    pi.run(LONGEST_WAIT + LOOK_SECONDS)
    assert pi.model.release_id == bad.id


def test_back_to_what_is_served_ends_the_trouble(pi: Following, tmp_path: Path) -> None:
    first = a_store(tmp_path / "store").open(pi.model.release_id)
    bad = ReleaseSimulator(golden_offset=1.0).publish(tmp_path / "store", "stable")
    pi.run(2)
    assert pi.told() is not None
    point(tmp_path / "store", first)
    pi.run(2 * LOOK_SECONDS)
    assert (pi.told(), pi.model.release_id, pi.model.alarm) == (None, first.id, "")
    assert bad.id in pi.loads


def test_what_fails_its_trial_is_not_loaded(tmp_path: Path) -> None:
    first = stable(tmp_path)

    def dies(release: Release, cut_short: Callable[[], str]) -> None:
        raise CrashedOnLoadError("loading it ended a trial with SIGSEGV", where=release.manifest.artifact)

    with closing(Following(tmp_path, attempt=dies)) as pi:
        stable(tmp_path, motifs=13)
        pi.run(2)
        told = pi.told()
        assert told is not None
        assert told["reason"] == "crashed_on_load"
        assert "SIGSEGV" in str(told["message"])
        assert pi.loads == [first.id]


def test_what_passed_is_not_tried_again(tmp_path: Path) -> None:
    first, tried = stable(tmp_path), list[str]()
    with closing(Following(tmp_path, attempt=lambda release, cut_short: tried.append(release.id))) as pi:
        second = stable(tmp_path, motifs=13)
        pi.run(1)
        for release in (first, second, first):
            point(tmp_path / "store", release)
            pi.run(1)
            assert pi.model.release_id == release.id
        assert tried == [second.id, first.id]


def test_an_engine_stays_open_until_nobody_uses_it(
    pi: Following, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, waits = pi.model, list[bool]()
    lease = old.lease()
    lease.__enter__()

    def look(seconds: float) -> None:
        old.infer(imu_windows(1)[0])  # still open
        waits.append(pi.holder.model is not old)
        lease.__exit__(None, None, None)

    monkeypatch.setattr("runtime.follower.time.sleep", look)
    stable(tmp_path, motifs=13)
    pi.run(1)
    assert waits == [True]
    with pytest.raises(Exception, match="closed"):
        old.infer(imu_windows(1)[0])


def test_a_request_that_runs_at_the_swap_ends_on_the_old_release(
    pi: Following, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no lease: it runs in one piece, in the loop, which has to pass before the engine is closed."""
    old, replace, passes, close = pi.model, pi.holder.replace, pi.loop.wait_until_passed, pi.model.close
    begun, retiring, told = threading.Event(), threading.Event(), list[str]()
    loop = asyncio.new_event_loop()

    def request() -> None:
        model = pi.model
        begun.set()
        assert retiring.wait(10)
        try:
            model.infer(imu_windows(1)[0])
            told.append("answered")
        except EngineError as error:
            told.append(str(error))

    def replaced(state: ActiveModel | PipelineError) -> ActiveModel | PipelineError:
        loop.call_soon_threadsafe(request)
        assert begun.wait(10)
        return replace(state)

    def waits() -> None:
        retiring.set()
        passes()

    def closes() -> None:
        close()
        told.append("closed")
        retiring.set()

    monkeypatch.setattr(pi.holder, "replace", replaced)
    monkeypatch.setattr(pi.loop, "wait_until_passed", waits)
    monkeypatch.setattr(old, "close", closes)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        pi.loop.attach(loop)
        second = stable(tmp_path, motifs=13)
        pi.run(1)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert told == ["answered", "closed"]
    assert pi.model.release_id == second.id


def test_a_batch_that_waits_for_its_turn_has_a_lease(pi: Following) -> None:
    """A switch before its turn must not close the engine that it was admitted to."""
    two = ("[" + ",".join([str(imu_windows(1)[0].tolist())] * 2) + "]").encode()
    body, model, seen = b'{"x": ' + two + b"}", pi.model, list[int]()

    async def ask() -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: dict[str, object]) -> None:
            seen.append(int(str(event.get("status", 0))))

        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/infer",
            "query_string": b"",
            "http_version": "1.1",
        }
        scope |= {"headers": headers, "scheme": "http", "server": ("x", 1), "client": ("y", 2)}
        scope |= {"asgi": {"version": "3.0"}}
        tasks = [asyncio.create_task(pi.service.app(dict(scope), receive, send)) for _ in range(3)]
        held = 0
        while not all(task.done() for task in tasks):
            held = max(held, model.in_use)
            await asyncio.sleep(0)
        assert held >= 2  # One has its turn, others wait.

    asyncio.run(ask())
    assert seen.count(200) == 3
    assert model.in_use == 0


def memories(tmp_path: Path) -> list[Callable[[], LoadMemory]]:
    """Each makes what the next process has: from STATE_DIR, and from what a worker inherits."""
    descriptor = os.memfd_create("test")
    return [lambda: LoadMemory(tmp_path), lambda: LoadMemory(None, descriptor)]


class _KilledError(BaseException):
    """Stands for the end of the process: nothing is noted any more."""


@pytest.mark.parametrize("which", [0, 1])
def test_after_a_crash_the_next_process_serves_the_last_good_one(
    tmp_path: Path, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = memories(tmp_path / "state")[which]
    settings: dict[str, Any] = {"state_dir": tmp_path / "state"} if which == 0 else {}
    first = stable(tmp_path)
    with closing(Following(tmp_path, memory=memory(), **settings)) as pi:
        second = stable(tmp_path, motifs=13)
        with monkeypatch.context() as killed:
            killed.setattr(LoadMemory, "forget", lambda self: None)
            killed.setattr("tests.runtime.following.load_chosen", _die)
            with pytest.raises(_KilledError):
                pi.run(1)
    with closing(Following(tmp_path, memory=memory(), **settings)) as reborn:
        reborn.run(10)
        told = reborn.told()
        assert told is not None
        assert (told["wanted"], told["reason"]) == (second.id, "crashed_on_load")
        assert (reborn.model.release_id, reborn.model.alarm_kind) == (first.id, "crashed_on_load")
        reborn.run(10)  # One crash may have been the power: it is tried again.
        assert (reborn.model.release_id, reborn.told()) == (second.id, None)
    assert memory().left == ""


def _die(*_: object) -> None:
    raise _KilledError


def test_a_process_that_ends_in_order_leaves_no_crash(tmp_path: Path) -> None:
    memory = LoadMemory(tmp_path)
    with memory.loading("a" * 64):
        assert LoadMemory(tmp_path).left == "a" * 64
        memory.forget()
        assert LoadMemory(tmp_path).left == ""


def test_a_disk_that_is_full_in_the_meantime_leaves_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with LoadMemory(tmp_path).loading("a" * 64):
        assert LoadMemory(tmp_path).left == "a" * 64
        monkeypatch.setattr("runtime.load_memory.write_document", full)
    assert (LoadMemory(tmp_path).left, LoadMemory(tmp_path).crashes) == ("", 0)


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"{", b'{"loading": "x", "crashes": 1, "serving": ""}', b"\xff"]
)
def test_a_damaged_memory_is_none(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "loading.json").write_bytes(junk)
    assert LoadMemory(tmp_path).left == ""


def test_crashes_in_a_row_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadMemory, "forget", lambda self: None)  # the process is killed
    for crashes in (1, 2, 3):
        with LoadMemory(tmp_path).loading("a" * 64):
            assert LoadMemory(tmp_path).crashes == crashes
    with LoadMemory(tmp_path).loading("b" * 64):
        assert LoadMemory(tmp_path).crashes == 1
