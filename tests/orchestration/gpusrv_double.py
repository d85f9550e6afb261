"""The committed code location, for tests: the compiler's double is accepted, and nothing runs unasked."""

import dagster as dg

from assets.toolchain import hailo_dfc
from orchestration import definitions as committed
from orchestration.lost_runs import lost_runs
from runtime.contract.hef_file import DOUBLE_SDK_VERSION

setattr(hailo_dfc, "SUPPORTED", (DOUBLE_SDK_VERSION,))  # noqa: B010 - a constant, for everybody else

defs = dg.Definitions(
    assets=committed.defs.assets,
    jobs=committed.defs.jobs,
    resources=committed.defs.resources,
    loggers=committed.defs.loggers,
    executor=committed.defs.executor,
    sensors=[lost_runs],
)
