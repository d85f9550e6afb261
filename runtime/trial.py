"""A release tried in a process of its own, before the serving process touches it.

``python -m runtime.trial DIRECTORY [TARGET]``

What makes onnxruntime, or HailoRT's reader of HEF files, crash takes the process with it; here that is a
child whose death is an answer. The emulator runs the golden windows; with a chip, which only one process can
have, everything short of it is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from runtime.contract.errors import PipelineError
from runtime.contract.release_directory import Release, open_release

TRIAL_SECONDS: Final = 120.0
_REFUSED: Final = 3
_MOST_TEXT: Final = 4000
_LEAST_HEF_BYTES: Final = 56


class TrialFailedError(PipelineError):
    """A release that did not pass its trial; ``code`` is the trial's own reason."""

    code = "trial"

    def __init__(self, what: str, *, where: str = "", hint: str = "", code: str = "trial") -> None:
        super().__init__(what, where=where, hint=hint)
        self.code = code  # type: ignore[misc]


class CrashedOnLoadError(PipelineError):
    """A release at whose loading a process died, or did not come to an end."""

    code = "crashed_on_load"


def try_release(release: Release, seconds: float = TRIAL_SECONDS) -> None:
    """Verify, open and run a release in a child.

    Args:
        release: Its signature holds.
        seconds: The longest that it may take.

    Raises:
        TrialFailedError: It was refused; says why, under the reason's own code.
        CrashedOnLoadError: The child died, or took too long.
    """
    command = [sys.executable, "-m", "runtime.trial", str(release.directory)]
    name = release.manifest.artifact
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, check=False, cwd=root, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise CrashedOnLoadError(
            f"loading it took more than {seconds:g} s in a trial", where=name, hint=_CRASH_HINT
        ) from None
    if done.returncode == 0:
        return
    if done.returncode == _REFUSED:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(done.stdout[-_MOST_TEXT:])
            raise TrialFailedError(told["what"], where=told["where"], hint=told["hint"], code=told["code"])
    raise CrashedOnLoadError(_died(done), where=name, hint=_CRASH_HINT)


_CRASH_HINT: Final = "the artifact is broken, or does not go with what runs it here: choose another release"


def _died(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            return f"loading it ended a trial with {signal.Signals(-done.returncode).name}"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [""]
    return f"loading it ended a trial with exit code {done.returncode}: {lines[-1][:300]}"


def _run(directory: Path) -> None:
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
    with contextlib.suppress(OSError):
        os.nice(10)  # Serving comes first.
    # Nobody waits for it any more where the serving process ended: it ends itself.
    signal.alarm(int(TRIAL_SECONDS) + 1)
    try:
        _run(Path(arguments[0]))
    except PipelineError as error:
        print(json.dumps({"code": error.code, "what": error.what, "where": error.where, "hint": error.hint}))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
