"""When things run: Dagster, kept thin above ``assets``."""

import warnings

# Dagster's own announcements about functions that it may change: the versions are pinned, and nobody who runs
# this can act on them.
warnings.filterwarnings("ignore", message=r"(Function|Parameter|Class) .* is currently in (beta|preview)")
