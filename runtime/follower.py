"""A switch from one release to another, as the serving process lives through it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import DeviceError
from runtime.event_loop import EventLoop
from runtime.release_choice import Choice
from runtime.switching import Switch

_LOGGER: Final = logging.getLogger("runtime.model")
_LEASE_SECONDS: Final = 60.0
_LEASE_LOOK: Final = 0.02


class SwitchWatcher(Protocol):
    """Who counts switches."""

    def loaded(self, seconds: float, stall: float) -> None:
        """One was loaded, or failed to: how long it took, and the longest in which nobody was answered."""

    def switched(self) -> None:
        """One is served in place of another."""

    def switch_failed(self, release: str, reason: str) -> None:
        """One failed; ``release`` is empty where none was found."""

    def show_switch(self, failing: bool) -> None:
        """Whether what is served is not what the channel names."""


class Follower:
    """Swaps a newly loaded model in, and closes the old one when nobody uses it any more.

    Args:
        switch: Decides and loads.
        loop: Where requests are answered.
        watcher: Who counts.
    """

    def __init__(self, switch: Switch, loop: EventLoop, watcher: SwitchWatcher) -> None:
        self.switch = switch
        self._loop = loop
        self._watcher = watcher
        self._broken: DeviceError | None = None
        switch.tell(watcher.switch_failed)

    def loading(self, load: Callable[[Choice], ActiveModel], chosen: Choice) -> ActiveModel:
        """Load, with the loop watched; a device that fails meanwhile is remembered for ``follow``."""
        begin = time.perf_counter()
        stall = None
        try:
            with self._loop.watched() as stall:
                return load(chosen)
        except DeviceError as error:
            self._broken = error
            raise
        finally:
            self._watcher.loaded(time.perf_counter() - begin, stall.seconds if stall else 0.0)

    def follow(self, holder: ModelHolder, model: ActiveModel) -> DeviceError | None:
        """Look once, and switch where there is something to switch to.

        Returns:
            The failure of the device that both releases are on, where the new one broke it.
        """
        self._broken = None
        found = self.switch.look(model)
        self._watcher.show_switch(self.switch.problem is not None)
        if found is None:
            return self._broken
        if holder.state is not model:
            found.close()  # Its device failed meanwhile: what follows opens anew.
            return None
        holder.replace(found)
        self._watcher.switched()
        fields = {"event": "switched", "release": found.release_id, "from": model.release_id}
        _LOGGER.info("serving %s", found.artifact, extra={"fields": fields})
        if found.motifs != model.motifs:
            # Only where NUM_MOTIFS is not set: it would have been refused. Clients may count on a number.
            text = "%d motif scores in place of %d: set NUM_MOTIFS where clients expect a number"
            motifs = {"event": "motifs_changed", "release": found.release_id, "from": model.release_id}
            _LOGGER.warning(text, found.motifs, model.motifs, extra={"fields": motifs})
        self._retire(model)
        return None

    def _retire(self, model: ActiveModel) -> None:
        """A window that runs, or a batch that began with it, is finished first."""
        self._loop.wait_until_passed()
        deadline = time.monotonic() + _LEASE_SECONDS
        while model.in_use and time.monotonic() < deadline:
            time.sleep(_LEASE_LOOK)
        model.close()
