"""Who has to hear that a run failed: a webhook where one is set, the daemon's log otherwise."""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from typing import Any, Final

import dagster as dg

from runtime.contract.errors import PipelineError

SECONDS: Final = 10.0
MOST_WORDS: Final = 1500
_LOGGER: Final = logging.getLogger(__name__)


class NoticeError(PipelineError):
    """A failure of which nobody could be told."""

    code = "notice"


def failure_notice(url: str, ui_url: str) -> dg.SensorDefinition:
    """Tells of each run that failed.

    Args:
        url: Where a JSON document with ``text`` is posted, as Slack, Mattermost and their like take it; empty
            for the log alone.
        ui_url: Of Dagster's UI, for a link to the run; empty for none.
    """

    @dg.run_failure_sensor(
        name="failure_notice",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells of each run that failed: posted to FAILURE_WEBHOOK_URL, else written to the log.",
    )
    def notice(context: dg.RunFailureSensorContext) -> None:
        told = notice_of(context, ui_url)
        _LOGGER.error("%s", told["text"])
        if url:
            post(url, told)

    return notice


def notice_of(context: dg.RunFailureSensorContext, ui_url: str = "") -> dict[str, Any]:
    """What there is to say: a sentence for people, and the same in fields."""
    run = context.dagster_run
    steps = []
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        failure = data.user_failure_data
        said = failure.description if failure and failure.description else str(data.error_display_string)
        steps.append({"step": str(event.step_key), "error": said.strip()[:MOST_WORDS]})
    first = steps[0] if steps else {"step": "", "error": context.failure_event.message or "no reason given"}
    where = f"{ui_url.rstrip('/')}/runs/{run.run_id}" if ui_url else ""
    text = f"{run.job_name} failed" + (f" at {first['step']}" if first["step"] else "")
    text += f": {first['error'].splitlines()[0][:MOST_WORDS]} (run {run.run_id}" + (
        f", {where})" if where else ")"
    )
    return {"text": text, "job": run.job_name, "run_id": run.run_id, "url": where, "steps": steps}


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
        status = f"answered {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        if not isinstance(error, OSError):
            status = type(error).__name__  # whose words hold the address
        raise NoticeError(
            f"nobody was told that run {told['run_id']} failed: {status}",
            where=host,
            hint="is FAILURE_WEBHOOK_URL right, and can it be reached from here?",
        ) from None
