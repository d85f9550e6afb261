"""A holder that follows a channel, as the composition root puts it together, on a clock of the test's own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.active_model import ActiveModel, ModelHolder, load_chosen, load_state
from runtime.config import RuntimeConfig
from runtime.contract.errors import PipelineError
from runtime.contract.store import Release
from runtime.event_loop import EventLoop
from runtime.follower import Follower
from runtime.load_memory import LoadMemory
from runtime.recovery import Recovery
from runtime.release_choice import Choice, ReleaseChoice
from runtime.switching import Switch
from tests.keys import key_folder
from tests.runtime.service import Service


def no_trial(release: Release, cut_short: Callable[[], str]) -> None:
    """Passes whatever comes: for tests of what the loading itself refuses."""


class HangingTrial:
    """Makes every trial of this process hang, and each child's first child, too.

    Args:
        folder: Where it writes.
        monkeypatch: Takes it back.
        where: ``start``: before a line of ours has run. ``run``: while the release is read.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str = "start") -> None:
        self._told = folder / "pids"
        hang = (
            "def hang(*_):\n"
            "    pids = [os.getpid()]\n"
            "    if WHERE == 'start':\n"
            "        pids.append(subprocess.Popen(['sleep', '600']).pid)\n"
            f"    new = open({str(self._told)!r} + '.new', 'w')\n"
            "    new.write(' '.join(map(str, pids)))\n"
            "    new.close()\n"
            "    os.replace(new.name, new.name[:-4])\n"
            "    time.sleep(600)\n"
        )
        script = (
            f"import os, subprocess, sys, time\nWHERE = {where!r}\n{hang}"
            "if 'runtime.trial' in sys.orig_argv:\n"
            "    if WHERE == 'start':\n"
            "        hang()\n"
            "    import runtime.contract.release_directory as place\n"
            "    place.open_release = hang\n"
        )
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(script)
        monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).parents[2]}")

    @property
    def pids(self) -> list[int]:
        """The child, and what it started; empty before it hangs."""
        with contextlib.suppress(OSError):
            return [int(each) for each in self._told.read_text().split()]
        return []

    @property
    def alive(self) -> list[int]:
        """Those of them that have not ended."""
        return [pid for pid in self.pids if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


class Following:
    """A Pi's process without a server.

    Args:
        root: A folder; its store is in ``store``.
        attempt: The trial.
        memory: What the process before left.
        changes: Settings, laid over.
    """

    def __init__(
        self,
        root: Path,
        attempt: Callable[[Release, Callable[[], str]], None] = no_trial,
        memory: LoadMemory | None = None,
        **changes: object,
    ) -> None:
        config = RuntimeConfig(release_store=root / "store", trust_root=key_folder() / "root.json")
        self.config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
        self.now = 1000.0
        self.loads: list[str] = []
        self.choice = ReleaseChoice(self.config)
        memory = memory or LoadMemory(None)
        self.choice.served_before = memory.serving
        self.switch = Switch(self.choice, self._watched, memory, attempt, lambda: self.now)
        self.holder = ModelHolder(self._load(""))
        self.holder.switch = self.switch.told_problem
        self.service = Service(self.holder)
        self.loop = EventLoop()
        self.follower = Follower(self.switch, self.loop, self.service.metrics)
        self.recovery = Recovery(
            self.holder, self._load, lambda model: None, lambda: self.now, follower=self.follower
        )

    def _load_one(self, chosen: Choice) -> ActiveModel:
        self.loads.append(chosen.release.id)
        return load_chosen(self.config, chosen)

    def _watched(self, chosen: Choice) -> ActiveModel:
        return self.follower.loading(self._load_one, chosen)

    def _load(self, known: str) -> ActiveModel | PipelineError:
        first = self.switch.guarded(self._load_one)
        return load_state(self.config, known, self.choice, self.switch.refused, first)

    @property
    def model(self) -> ActiveModel:
        """What is served; fails where nothing is."""
        model = self.holder.model
        assert model is not None, self.holder.state
        return model

    def run(self, seconds: float) -> None:
        """Let time pass as the thread would."""
        end = self.now + seconds
        while (wait := self.recovery.step()) is not None and self.now + wait <= end:
            self.now += wait
        self.now = end

    def told(self) -> dict[str, object] | None:
        """``switch`` of ``/healthz``, which must say that all is well."""
        answer = self.service.client.simulate_get("/healthz")
        assert (answer.status_code, answer.json["ok"]) == (200, True)
        switch: dict[str, object] | None = answer.json["switch"]
        return switch

    def close(self) -> None:
        """Let go of what is served."""
        if self.holder.model is not None:
            self.holder.model.close()
