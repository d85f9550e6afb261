"""A release tried in a process of its own, before the serving process touches it.

``python -m runtime.trial DIRECTORY``

What makes onnxruntime, or HailoRT's reader of HEF files, crash takes the process with it; here that is a
child whose death is an answer. The emulator runs the golden windows; with a chip, which only one process can
have, everything short of it is done. As in ``runtime.shadow_start``, nothing that imports numpy is imported
before the child's priority is what it should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.contract.errors import PipelineError
from runtime.shadow_start import end_with_parent, give_way

if TYPE_CHECKING:
    from runtime.contract.release_directory import Release

TRIAL_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.1
"""Between two looks at whether something else comes first."""

_END_SECONDS: Final = 1.0
_REFUSED: Final = 3
_ABANDONED: Final = 4
_MOST_TEXT: Final = 4000
_LEAST_HEF_BYTES: Final = 56
_NICE: Final = 10
"""Serving comes first; not the canary's idle class, in which no trial would end in time on a busy machine."""


class TrialFailedError(PipelineError):
    """A release that did not pass its trial; ``code`` is the trial's own reason."""

    code = "trial"

    def __init__(self, what: str, *, where: str = "", hint: str = "", code: str = "trial") -> None:
        super().__init__(what, where=where, hint=hint)
        self.code = code  # type: ignore[misc]


class CrashedOnLoadError(PipelineError):
    """A release at whose loading a process died, or did not come to an end."""

    code = "crashed_on_load"


class TrialCutShortError(PipelineError):
    """A trial that was ended because something else came first: it says nothing of the release."""

    code = "trial_cut_short"


def try_release(
    release: Release, cut_short: Callable[[], str] = lambda: "", seconds: float = TRIAL_SECONDS
) -> None:
    """Verify, open and run a release in a child, which is killed where it is no longer waited for.

    Args:
        release: Its signature holds.
        cut_short: Asked ten times a second: why the trial is to end now; empty while it may go on.
        seconds: The longest that it may take.

    Raises:
        TrialFailedError: It was refused; says why, under the reason's own code.
        CrashedOnLoadError: The child died, or took too long.
        TrialCutShortError: ``cut_short`` said so.
    """
    name = release.manifest.artifact
    deadline = time.monotonic() + seconds
    with _started(release.directory) as child:
        while True:
            # Also where it takes no time: what has ended is heard before anything else is asked.
            left = max(0.0, deadline - time.monotonic())
            try:
                output, errors = child.communicate(timeout=min(LOOK_SECONDS, left))
                break
            except subprocess.TimeoutExpired as still:
                if why := cut_short():
                    raise TrialCutShortError(why, where=name) from still
                if time.monotonic() >= deadline:
                    what = f"loading it took more than {seconds:g} s in a trial"
                    raise CrashedOnLoadError(what, where=name, hint=_CRASH_HINT) from still
    if child.returncode == 0:
        return
    if child.returncode == _REFUSED:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(output[-_MOST_TEXT:])
            raise TrialFailedError(told["what"], where=told["where"], hint=told["hint"], code=told["code"])
    raise CrashedOnLoadError(_died(child.returncode, errors), where=name, hint=_CRASH_HINT)


_CRASH_HINT: Final = "the artifact is broken, or does not go with what runs it here: choose another release"


@contextlib.contextmanager
def _started(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The child, in a process group of its own, all of which has ended afterwards."""
    # A pipe that nobody writes to: where its other end is closed, who would have waited is no more.
    ours, theirs = None, None
    try:
        theirs, ours = os.pipe()
        child = subprocess.Popen(
            [sys.executable, "-m", "runtime.trial", str(directory)],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            process_group=0,
        )
        try:
            yield child
        finally:
            _end(child)
    finally:
        for end in (ours, theirs):
            if end is not None:
                os.close(end)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of its group; not waited for for ever, since a driver may hold it."""
    # One that was waited for gave its number back: whose group that is now, nobody knows.
    if child.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_SECONDS)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def _died(code: int, errors: bytes) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"loading it ended a trial with {signal.Signals(-code).name}"
    lines = errors.decode(errors="replace").strip().splitlines() or [""]
    return f"loading it ended a trial with exit code {code}: {lines[-1][:300]}"


def _run(directory: Path) -> None:
    from runtime.contract.release_directory import open_release

    release = open_release(directory)
    release.verify()
    release.check_publishable()
    release.check_artifact()
    if release.manifest.target == "emulator":
        from runtime.engines import open_engine
        from runtime.golden import compare_golden

        with open_engine(release) as engine:
            compare_golden(engine, release).check(release.manifest.artifact)
        return
    from runtime.engines.hailo_device import import_hailort

    package, _ = import_hailort()
    hef = release.read(release.manifest.artifact)
    # Fewer bytes than a header crash the interpreter; the gate above has refused those.
    assert len(hef) >= _LEAST_HEF_BYTES
    package.HEF(hef)


def main(arguments: Sequence[str]) -> int:
    """Try one release; the reason is one line of JSON."""
    give_way()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    # Nobody waits for it any more where the serving process ended: it ends, too.
    signal.alarm(int(TRIAL_SECONDS) + 1)
    end_with_parent(_ABANDONED)
    try:
        _run(Path(arguments[0]))
    except PipelineError as error:
        print(json.dumps({"code": error.code, "what": error.what, "where": error.where, "hint": error.hint}))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
