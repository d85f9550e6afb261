"""A Dagster logger for people at a terminal: one line for each asset, and why one failed."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Final

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
    from dagster._core.execution.plan.objects import StepFailureData


_INTERRUPTS: Final = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")


class _Progress(logging.Handler):
    """Prints assets as they are made; everything else stays in Dagster's event log."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, float] = {}
        self.blocked: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "dagster_event", None)
        step = getattr(event, "step_key", None)  # Dagster logs its events at level DEBUG
        if event is None or step is None:
            return
        if event.is_step_start:
            self.started[step] = time.monotonic()
        elif event.is_step_materialization:
            self._made(event, event.step_materialization_data.materialization)
        elif event.is_asset_observation:
            self._made(event, event.asset_observation_data.asset_observation)
        elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if check.blocking and not check.passed:
                self.blocked[step] = _missed(check)
        elif event.is_step_failure:
            # Dagster's own sentence only counts the checks that blocked.
            why = self.blocked.get(step) or _reason(event.step_failure_data)
            self._say(f"  {step.replace('__', '/'):26} FAILED  {why}")

    def _made(self, event: dg.DagsterEvent, seen: dg.AssetMaterialization | dg.AssetObservation) -> None:
        metadata = seen.metadata
        name = "/".join(seen.asset_key.path)
        seconds = time.monotonic() - self.started.get(str(event.step_key), time.monotonic())
        digest, size = str(metadata["digest"].value)[:12], float(str(metadata["size"].value)) / 1e6
        which = f"  {metadata['model'].value} {metadata['version'].value}" if "version" in metadata else ""
        self._say(f"  {name:26} {seconds:5.1f} s  {size:6.2f} MB  {digest}{which}")

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stdout, flush=True)


def _missed(check: AssetCheckEvaluation) -> str:
    """What a blocking check found, a line for each, and where the whole report is."""
    from orchestration.parity_view import REPORT_KEY

    lines = [f"check {check.check_name}", *(check.description or "it does not say why").split("; ")]
    if REPORT_KEY in check.metadata:
        lines.append(f"report: {check.metadata[REPORT_KEY].value}")
    return "\n      ".join(lines)


def _reason(failure: StepFailureData) -> str:
    """Why a step failed: our own words where there are some, else what was raised first."""
    own, error = failure.user_failure_data, failure.error
    if own and own.description:
        return own.description
    if error is None:
        return "Dagster does not say why"
    if error.cls_name in _INTERRUPTS:
        return "interrupted"
    while error.cause:
        error = error.cause
    return f"{error.message.strip()}  (Dagster's event log has the stack)"


@dg.logger
def progress_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Dagster's hook: a logger that holds nothing but the handler above."""
    logger = logging.Logger("progress")
    logger.addHandler(_Progress())
    return logger
