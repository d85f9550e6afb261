"""How the canary's process begins: priority, signals and its end are settled before anything is loaded.

``python -m runtime.shadow_start CANARY STABLE`` becomes ``runtime.shadow_child``. numpy and ONNX Runtime take
a third of a second of a core to load, and may start threads, which keep for ever the priority that they began
with: so nothing that imports them is imported here before ``settle``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path
from typing import Final

LOAD_ALARM_SECONDS: Final = 150
"""Who started this waits for less; where that one has ended unheard, loading still has an end."""

IGNORED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What a terminal or systemd sends to all processes of a service: the server, where it ends, ends this one.
Taken here, they would count as the canary's own death."""

_FIRST_TO_GO: Final = "1000"
_PR_SET_PDEATHSIG: Final = 1
_STANDARD_INPUT: Final = 0


def settle() -> None:
    """Serving comes first: the lowest priority, the first to go where memory ends, and no life of its own."""
    give_way()
    signal.alarm(LOAD_ALARM_SECONDS)
    with contextlib.suppress(OSError):
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    end_with_parent()


def give_way() -> None:
    """Be the first to go where memory ends, and be deaf to signals that are for the server."""
    for each in IGNORED:
        signal.signal(each, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)


def end_with_parent(status: int = 0) -> None:
    """Be killed when the thread that started this one ends, whatever is done then.

    Args:
        status: The exit status where it has ended already.
    """
    import ctypes  # takes a while: not before the priority is what it should be

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before: then nobody holds the other end of the pipe.
    pipe = select.poll()
    pipe.register(_STANDARD_INPUT, select.POLLHUP)
    if any(event & select.POLLHUP for _, event in pipe.poll(0)):
        sys.exit(status)


if __name__ == "__main__":
    settle()
    from runtime.shadow_child import main

    sys.exit(main(sys.argv[1:]))
