"""A holder that follows a channel, as the composition root puts it together, on a clock of the test's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from runtime.active_model import ActiveModel, ModelHolder, load_chosen, load_state
from runtime.config import RuntimeConfig
from runtime.contract.errors import PipelineError
from runtime.contract.store import Release
from runtime.event_loop import EventLoop
from runtime.follower import Follower
from runtime.recovery import Recovery
from runtime.release_choice import Choice, ReleaseChoice
from runtime.switching import LoadMemory, Switch
from tests.keys import key_folder
from tests.runtime.service import Service


def no_trial(release: Release) -> None:
    """Passes whatever comes: for tests of what the loading itself refuses."""


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
        attempt: Callable[[Release], None] = no_trial,
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
        self.follower = Follower(self.switch, EventLoop(), self.service.metrics)
        self.recovery = Recovery(
            self.holder, self._load, lambda model: None, lambda: self.now, follower=self.follower
        )

    def _load_one(self, chosen: Choice) -> ActiveModel:
        self.loads.append(chosen.release.id)
        model = load_chosen(self.config, chosen)
        self.choice.serves(chosen)
        return model

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
