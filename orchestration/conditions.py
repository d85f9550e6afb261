"""When an asset is made without anybody asking: when what it is made from, or its own code, changed.

By data version, not by event: weights that are observed again, or a link that is made again with the same
bytes, start nothing.
"""

from __future__ import annotations

from typing import Any, Final

import dagster as dg

_When: Any = dg.AutomationCondition

CHANGED: Final = "data version of an input or own code changed, and blocking checks passed"
"""The label under which Dagster's UI shows it."""


def inputs_or_code_changed(
    *, in_one_run: bool = True, from_outside: bool = False
) -> dg.AutomationCondition[dg.AssetKey]:
    """True once after the data version of an input changed, or the asset's own code version did.

    Not while an input is being made or is missing, nor where a blocking check on one has not passed. An input
    that a run changed which was to make this asset, too, does not count: who cancels a compile does not want
    it begun again, and one that failed fails again.

    Args:
        in_one_run: Whether it goes into the same run as inputs that are made at the same moment. Without it,
            it waits until they were made, and only goes on where they came out different.
        from_outside: Whether its inputs are observed, and so may change while it is being made of older ones:
            then having been made answers nothing.
    """
    changed = _When.data_version_changed() & ~_When.executed_with_root_target()
    made_now = changed | _When.will_be_requested() if in_one_run else changed
    input_changed = _When.any_deps_match(made_now).with_label("an input changed")
    trigger = (input_changed | _When.code_version_changed()).with_label("an input or own code changed")
    found: dg.AutomationCondition[dg.AssetKey] = (
        (_until_asked(trigger) if from_outside else trigger.since_last_handled())
        & ~_When.any_deps_missing()
        & ~_When.any_deps_in_progress()
        & ~_When.in_progress()
        & _When.all_deps_blocking_checks_passed()
    ).with_label(CHANGED)
    return found


def _until_asked(trigger: Any) -> Any:
    """Waits from a change until it is asked for; one in the tick right after came too late, and waits on."""
    asked = _When.newly_requested()
    waiting = trigger.since(asked | _When.initial_evaluation()).with_label("not asked for since")
    late = (trigger & asked).since(asked & ~trigger).with_label("changed right after it was asked for")
    return waiting | late
