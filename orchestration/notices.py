"""Who has to hear that a run failed: a webhook where one is set, the code server's log in any case.

Dagster's own run-failure sensor moves on whether its function raised or not: a notice that could not be sent
was lost. This one keeps what is not sent in its cursor, and sends it at a later look.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dagster as dg

from runtime.contract.errors import PipelineError

LOOK_SECONDS: Final = 30
SECONDS: Final = 5.0
"""For one attempt."""
WAITS: Final = (1.0, 2.0)
"""Before the second and third attempt at a new notice, within one look."""
LOOK_BUDGET: Final = 15.0
"""Seconds after which a look begins no further attempt: other sensors wait for it."""
MOST_POSTS: Final = 10
"""Notices that one look tries."""
MOST_UNSENT: Final = 100
MOST_HOURS: Final = 24.0
MOST_WORDS: Final = 1500
_MOST_EVENTS: Final = 100
_LOGGER: Final = logging.getLogger(__name__)


class NoticeError(PipelineError):
    """A failure of which nobody could be told.

    Args:
        what, where, hint: As for every error.
        passes: Whether the same may work a moment later, and others are in the same case: nobody answers, or
            the other side says that it cannot now.
    """

    code = "notice"

    def __init__(self, what: str, *, where: str = "", hint: str = "", passes: bool = False) -> None:
        super().__init__(what, where=where, hint=hint)
        self.passes = passes


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """A failed run of which nobody was told yet, and since when that is tried (seconds since 1970)."""

    run_id: str
    since: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The sensor's memory: the newest failure that it looked at, by its storage id, and what is not sent."""

    record_id: int
    unsent: tuple[Unsent, ...] = ()

    @classmethod
    def read(cls, cursor: str | None) -> Seen | None:
        """None where nothing was seen; a cursor of Dagster's own failure sensor has ``record_id``, too."""
        if not cursor:
            return None
        document = json.loads(cursor)
        unsent = tuple(Unsent(run_id=run, since=since) for run, since in document.get("unsent", ()))
        return cls(record_id=document["record_id"], unsent=unsent)

    def text(self) -> str:
        """For the cursor."""
        return json.dumps(
            {"record_id": self.record_id, "unsent": [[each.run_id, each.since] for each in self.unsent]}
        )


def failure_notice(
    url: str,
    ui_url: str,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> dg.SensorDefinition:
    """Tells of each run that failed.

    What cannot be sent is tried again at each look, ``MOST_HOURS`` long and ``MOST_UNSENT`` at a time; what
    is given up is said in the log. Where a look is cut off between sending and remembering, a notice comes
    twice.

    Args:
        url: Where a JSON document with ``text`` is posted, as Slack, Mattermost and their like take it; empty
            for the log alone.
        ui_url: Of Dagster's UI, for a link to the run; empty for none.
        now: The clock, seconds since 1970.
        sleep: Waits between attempts.
    """

    @dg.sensor(
        name="failure_notice",
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells of each run that failed: posted to FAILURE_WEBHOOK_URL, else written to the log. "
        "What could not be sent is sent later.",
    )
    def notice(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        instance = context.instance
        seen = Seen.read(context.cursor)
        if seen is None:
            begin = Seen(record_id=_newest(instance))
            return dg.SensorResult(skip_reason="tells of runs that fail from now on", cursor=begin.text())
        record_id, failed = _failed_since(context, seen.record_id)
        for run_id in failed:
            if told := notice_of(instance, run_id, ui_url):
                _LOGGER.error("%s", told["text"])
        if not url:
            said = f"{len(failed)} failed, written to the log" if failed else "no run failed"
            left = tuple(_kept(seen.unsent, now()))  # of a time when there was one, which may come back
            return dg.SensorResult(skip_reason=said, cursor=Seen(record_id=record_id, unsent=left).text())
        new = set(failed) - {each.run_id for each in seen.unsent}
        added = [Unsent(run_id=run_id, since=now()) for run_id in failed if run_id in new]
        kept = _kept([*seen.unsent, *added], now())
        left, said = _sent(instance, url, ui_url, kept, new=new, sleep=sleep)
        return dg.SensorResult(skip_reason=said, cursor=Seen(record_id=record_id, unsent=left).text())

    return notice


def _newest(instance: dg.DagsterInstance) -> int:
    found = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
    return found[0].storage_id if found else -1


def _failed_since(context: dg.SensorEvaluationContext, record_id: int) -> tuple[int, list[str]]:
    """The newest failure's storage id, and the runs of this code location that failed, oldest first."""
    instance = context.instance
    changes = dg.RunStatusChangeRecordsFilter(
        event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=record_id
    )
    failed = []
    for record in instance.fetch_run_status_changes(changes, limit=_MOST_EVENTS, ascending=True).records:
        record_id = record.storage_id
        run = instance.get_run_by_id(record.event_log_entry.run_id)
        if run is not None and _of_this_location(context, run) and run.run_id not in failed:
            failed.append(run.run_id)
    return record_id, failed


def _of_this_location(context: dg.SensorEvaluationContext, run: dg.DagsterRun) -> bool:
    """Also a build of ``orchestration.build``, which no location started."""
    here, there = context.code_location_origin, run.remote_job_origin
    return here is None or there is None or here.location_name == there.location_name


def _kept(unsent: Sequence[Unsent], now: float) -> list[Unsent]:
    """What is tried on; what is given up, too old or too many, is said."""
    young = [each for each in unsent if now - each.since < MOST_HOURS * 3600]
    kept = young[-MOST_UNSENT:]
    for each in unsent:
        if each not in kept:
            why = f"{MOST_UNSENT} others wait" if each in young else f"tried for {MOST_HOURS:g} hours"
            _LOGGER.error("given up: nobody was told that run %s failed (%s)", each.run_id, why)
    return kept


def _sent(
    instance: dg.DagsterInstance,
    url: str,
    ui_url: str,
    unsent: Sequence[Unsent],
    *,
    new: set[str],
    sleep: Callable[[float], None],
) -> tuple[tuple[Unsent, ...], str]:
    """Try what is unsent, oldest first; what is left, and a line on it.

    Where nobody answers, the others wait for the next look. What is refused goes to the end, so that it does
    not keep others from being sent.
    """
    waiting, sent = list(unsent), 0
    refused: list[Unsent] = []
    error: NoticeError | None = None
    begin = time.monotonic()
    while waiting and sent + len(refused) < MOST_POSTS and time.monotonic() - begin < LOOK_BUDGET:
        each = waiting[0]
        told = notice_of(instance, each.run_id, ui_url)
        try:
            if told:
                _tried(url, told, WAITS if each.run_id in new else (), begin + LOOK_BUDGET, sleep)
                sent += 1
        except NoticeError as failed:
            error = failed
            if failed.passes:
                break
            refused.append(each)
        waiting.pop(0)
    left = (*waiting, *refused)
    if error:
        _LOGGER.error("%s; kept, and tried again", error)
    words = f"told of {sent}" if sent else "nobody to tell of a failure" if not left else "told of none"
    return left, words + (f"; {len(left)} not sent yet ({error})" if left else "")


def _tried(
    url: str,
    told: dict[str, Any],
    waits: Sequence[float],
    deadline: float,
    sleep: Callable[[float], None],
) -> None:
    """Post it, again after each of ``waits`` where that may help; NoticeError of the last attempt."""
    for wait in waits:
        try:
            return post(url, told)
        except NoticeError as error:
            if not error.passes or time.monotonic() + wait > deadline:
                raise
        sleep(wait)
    return post(url, told)


def notice_of(instance: dg.DagsterInstance, run_id: str, ui_url: str = "") -> dict[str, Any] | None:
    """What there is to say of a failed run: a sentence for people, and the same in fields.

    None where the run was deleted.
    """
    run = instance.get_run_by_id(run_id)
    if run is None:
        return None
    steps = []
    events = dg.DagsterEventType
    for record in instance.get_records_for_run(run_id, of_type=events.STEP_FAILURE).records:
        event = record.event_log_entry.dagster_event
        assert event is not None
        data = event.step_failure_data
        failure = data.user_failure_data
        said = failure.description if failure and failure.description else str(data.error_display_string)
        steps.append({"step": str(event.step_key), "error": said.strip()[:MOST_WORDS]})
    ends = instance.get_records_for_run(run_id, of_type=events.RUN_FAILURE).records
    ended = ends[-1].event_log_entry.dagster_event if ends else None
    first = steps[0] if steps else {"step": "", "error": (ended and ended.message) or "no reason given"}
    where = f"{ui_url.rstrip('/')}/runs/{run_id}" if ui_url else ""
    text = f"{run.job_name} failed" + (f" at {first['step']}" if first["step"] else "")
    why = (first["error"].splitlines() or ["no reason given"])[0][:MOST_WORDS]
    text += f": {why} (run {run_id}" + (f", {where})" if where else ")")
    return {"text": text, "job": run.job_name, "run_id": run_id, "url": where, "steps": steps}


def post(url: str, told: dict[str, Any]) -> None:
    """Post it.

    Raises:
        NoticeError: The address is none, nobody answers, or not with 2xx. It names the host alone: such an
            address is a secret.
    """
    host = url.split("/")[2].rpartition("@")[2] if url.count("/") >= 2 else "FAILURE_WEBHOOK_URL"
    if not url.startswith(("http://", "https://")):
        raise NoticeError("is no http address", where="FAILURE_WEBHOOK_URL", hint="as https://host/hooks/...")
    request = urllib.request.Request(
        url, data=json.dumps(told).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        answered = error.code if isinstance(error, urllib.error.HTTPError) else 0
        status = f"answered {answered}" if answered else str(error)
        if not isinstance(error, OSError):
            status = type(error).__name__  # whose words hold the address
        raise NoticeError(
            f"nobody was told that run {told['run_id']} failed: {status}",
            where=host,
            hint="is FAILURE_WEBHOOK_URL right, and can it be reached from here?",
            passes=answered >= 500 or answered in (408, 429) or (not answered and isinstance(error, OSError)),
        ) from None
