"""From a channel to a model that is verified, warmed up and ready to answer. Knows no HTTP."""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.config import RuntimeConfig
from runtime.contract.calibration_statistics import LatentDistance, read_calibration_statistics
from runtime.contract.cpu import this_machine
from runtime.contract.errors import (
    ConfigError,
    DeviceError,
    MotifCountError,
    NoEngineError,
    PipelineError,
    ReleaseNotFoundError,
    TargetAmbiguousError,
    TargetMismatchError,
)
from runtime.contract.motifs import MotifScorer
from runtime.contract.store_reader import Release
from runtime.contract.trust import TrustRootError
from runtime.contract.window import FloatArray, Window
from runtime.engine_failures import EngineFailures, counted
from runtime.engines import Engine, open_engine
from runtime.golden import GoldenWindow, compare_golden
from runtime.plausibility import Plausibility
from runtime.release_choice import Choice, ReleaseChoice

_LOGGER: Final = logging.getLogger("runtime.model")
_SYSTEM: Final = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"


class InternalError(PipelineError):
    """A mistake of ours: the log has the traceback."""

    code = "internal"


_NOT_THE_STORES_FAULT: Final = (
    ConfigError,
    TrustRootError,
    NoEngineError,
    DeviceError,  # but see where it is caught
    ReleaseNotFoundError,
    TargetAmbiguousError,
)
"""With another release it would be the same, or the operator wanted it so: nothing older is served."""


class ActiveModel:
    """A release whose artifacts were verified and whose engine repeated its golden windows.

    Args:
        release: The verified release.
        engine: The engine that runs its artifact; closed with the model.
        chosen: How it was chosen, and who signed it; None where nobody asked.
    """

    def __init__(self, release: Release, engine: Engine, chosen: Choice | None = None) -> None:
        self.keys = chosen.keys if chosen else "not judged"
        self.alarm = chosen.alarm if chosen else ""
        self.alarm_kind = chosen.alarm_kind if chosen else ""
        self.sequence = chosen.sequence if chosen else 0
        self.memory = ""
        self.release_id = release.id
        self.manifest = release.manifest
        self.plausibility = Plausibility(release.manifest.input.normalization)
        self.calibration = read_calibration_statistics(release)
        """What its calibration looked like, or why that is not known."""
        self.distance = None if isinstance(self.calibration, str) else LatentDistance(self.calibration)
        self.in_use = 0
        self.failures = EngineFailures()
        self._engine = engine
        self._golden = GoldenWindow.all_of(release)
        self._repeated = 0
        self._scorer = MotifScorer(release.manifest.motif_head)
        self.runs_on: Final = {
            "machine": f"{this_machine()}, {_SYSTEM}",
            "program": engine.program,
            "kernel_family": engine.kernel_family,
        }

    @property
    def target(self) -> str:
        """``emulator``, ``hailo8`` or ``hailo8l``."""
        return self.manifest.target

    @property
    def artifact(self) -> str:
        """File name of the artifact that the engine runs."""
        return self.manifest.artifact

    @property
    def numbers(self) -> str:
        """How the latent comes about: ``measured``, ``emulated`` or ``estimated``."""
        return self.manifest.output.provenance

    @property
    def calibration_origin(self) -> str:
        """Where the calibration windows came from: ``captured``, ``synthetic`` or ``unknown``."""
        return self.manifest.calibration.origin

    @property
    def motif_head(self) -> str:
        """Where the motif head comes from: ``checkpoint``, ``file`` or ``fitted``."""
        return self.manifest.motif_head.provenance

    @property
    def motifs(self) -> int:
        """M, the number of motif scores."""
        return self.manifest.motif_head.size

    @counted
    def infer(self, window: Window) -> tuple[FloatArray, npt.NDArray[np.float64]]:
        """Run one window.

        Args:
            window: float32 (100, 9), finite, physical units.

        Returns:
            The latent, float32 (64,), and the motif scores, float64 (M,), which sum to 1.

        Raises:
            WindowValueError: A value is too large to be normalized.
            EngineError: The engine failed.
        """
        latent = self._engine.infer(window)
        return latent, self._scorer.scores(latent)

    def scores(self, latent: FloatArray) -> npt.NDArray[np.float64]:
        """Motif scores, float64 (M,), of a latent that it answered, float32 (64,). Any thread's."""
        return self._scorer.scores(latent)

    @counted
    def repeat_golden_window(self) -> None:
        """Run a golden window as any other one, each time the next.

        Raises:
            GoldenMismatchError: It does not give what was recorded.
            EngineError: The engine failed.
        """
        golden = self._golden[self._repeated % len(self._golden)]
        self._repeated += 1
        golden.check(self._engine.infer(golden.window), self._engine.kernel_family)

    @counted
    def infer_batch(self, windows: FloatArray, first: int = 0) -> tuple[FloatArray, npt.NDArray[np.float64]]:
        """Run several windows; each gives what it gives alone.

        Args:
            windows: float32 (N, 100, 9), finite, physical units.
            first: How a window is counted in messages.

        Returns:
            Latents, float32 (N, 64), and motif scores, float64 (N, M).

        Raises:
            WindowValueError: A value is too large to be normalized; names the window.
            EngineError: The engine failed.
        """
        latents = self._engine.infer_batch(windows, first)
        return latents, self._scorer.scores(latents)

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """While it is entered the engine stays open. The event loop's thread only."""
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class ModelHolder:
    """What is being served: an active model, or the reason why there is none.

    Readers take ``state`` once for each request, so that a later ``replace`` never changes the
    model under a request that has begun.
    """

    def __init__(self, state: ActiveModel | PipelineError) -> None:
        self.state = state
        self.switch: Callable[[], Mapping[str, object] | None] = lambda: None
        """Why what is served is not what the channel names, for ``/healthz``; None where it is."""
        self.drift: Callable[[], Mapping[str, object] | None] = lambda: None
        """How far traffic has drifted from calibration, for ``/healthz``; None where nobody looks."""
        self.telemetry: Callable[[], Mapping[str, object] | None] = lambda: None
        """What is kept of windows, for ``/healthz``; None where nothing is to be."""
        self.shadow: Callable[[], Mapping[str, object] | None] = lambda: None
        """What runs beside it, for ``/healthz``; None where nothing is to."""
        self.trouble: Final = threading.Event()
        """Set where a device failed; whoever opens it again waits for this."""
        self._failed: ActiveModel | None = None

    @property
    def model(self) -> ActiveModel | None:
        """The active model, or None."""
        return self.state if isinstance(self.state, ActiveModel) else None

    @property
    def alarm_kind(self) -> str:
        """The store's alarm in one word: of what is served, or of why nothing is; empty without one.

        One kind for one cause, whether or not there is an older release to serve meanwhile.
        """
        if isinstance(self.state, ActiveModel):
            return self.state.alarm_kind
        return "" if isinstance(self.state, _NOT_THE_STORES_FAULT) else self.state.code

    def replace(self, state: ActiveModel | PipelineError) -> ActiveModel | PipelineError:
        """Serve something else from now on; returns what was served, still open."""
        previous, self.state = self.state, state
        return previous

    def lost(self, model: ActiveModel, error: DeviceError) -> None:
        """The model's device failed: serve the reason instead, at once."""
        if self.state is model:
            self._failed, self.state = model, error
            self.trouble.set()

    def take_failed(self) -> ActiveModel | None:
        """The model whose device failed, to be closed by who asks; None where there is none."""
        failed, self._failed = self._failed, None
        return failed

    @classmethod
    def load(cls, config: RuntimeConfig) -> ModelHolder:
        """Load what the settings name; a failure is logged once and held as the reason."""
        return cls(load_state(config))


def load_state(
    config: RuntimeConfig,
    known: str = "",
    choice: ReleaseChoice | None = None,
    refused: Callable[[Choice], PipelineError | None] = lambda chosen: None,
    load: Callable[[Choice], ActiveModel] | None = None,
) -> ActiveModel | PipelineError:
    """Load what the settings name, or say why it cannot be.

    Args:
        config: The settings.
        known: Code of the reason that was logged before: the same one is not logged again.
        choice, refused, load: As for ``load_active_model``.
    """
    try:
        model = load_active_model(config, choice, refused, load)
    except PipelineError as error:
        if error.code != known:
            fields = {"event": "model_unavailable", "reason": error.code}
            _LOGGER.error("no model: %s", error, extra={"fields": fields})
        return error
    except Exception as error:
        # A Pi that answers 503 with a reason is better than one that restarts for ever.
        if InternalError.code != known:
            _LOGGER.exception("no model: %s", error, extra={"fields": {"event": "model_unavailable"}})
        return InternalError(f"{type(error).__name__} while loading", hint="the log has the traceback")
    fields = {
        "event": "model_loaded",
        "release": model.release_id,
        "target": model.target,
        "numbers": model.numbers,
        "calibration_origin": model.calibration_origin,
        "keys": model.keys,
    }
    if model.alarm:
        alarm = {"event": "store_alarm", "release": model.release_id}
        _LOGGER.error("not what the store names: %s", model.alarm, extra={"fields": alarm})
    _LOGGER.info(
        "serving %s, calibrated on %s windows",
        model.artifact,
        model.calibration_origin,
        extra={"fields": fields},
    )
    return model


def load_active_model(
    config: RuntimeConfig,
    choice: ReleaseChoice | None = None,
    refused: Callable[[Choice], PipelineError | None] = lambda chosen: None,
    load: Callable[[Choice], ActiveModel] | None = None,
) -> ActiveModel:
    """Find the release, verify every artifact, open the engine, repeat the golden windows.

    The gate is held here again: a release may have come to this store around ``publish``. Where the release
    that a channel names cannot be served, the one that was served last is, and ``alarm`` says why.

    Args:
        config: The settings.
        choice: What remembers; one of this call's own where none is given.
        refused: Why a release is not to be loaded just now.
        load: Loads one; ``load_chosen`` where none is given.

    Raises:
        SignatureError: Nobody who may has signed it.
        NoManifestError: ``HEF_PATH`` names something that is no release.
        ReleaseNotFoundError: The path, store, target or channel names nothing.
        TargetAmbiguousError: Several targets in the store and no ``TARGET``.
        TargetMismatchError: The release is for another target than ``TARGET``.
        StoreError: The store, or something in it, cannot be read.
        DigestMismatchError: Bytes that are not what their digest says.
        ManifestError: The manifest is not what its schema says.
        PublicationRefusedError: Parity is missing, failed or about another artifact.
        HefError: The target is a chip, and the artifact is not the encoder for it.
        MotifCountError: ``NUM_MOTIFS`` is not the head's M.
        EngineError: The artifact does not load, or (GoldenMismatchError) does not repeat its
            recorded outputs on this machine.
    """
    choice = choice or ReleaseChoice(config)
    load = load or (lambda chosen: load_chosen(config, chosen))
    chosen: Choice | None = None
    try:
        chosen = choice.find()
        if (reason := refused(chosen)) is not None:
            raise reason
        model = load(chosen)
    except _NOT_THE_STORES_FAULT as error:
        # A device may not bear this one release: the one before tells.
        last = _last_known(choice, error) if isinstance(error, DeviceError) and error.of_release else None
        if last is None or chosen is None or chosen.release.id == last.release.id:
            raise
        chosen, model = last, _load_last(load, last, error)
    except Exception as error:
        if not isinstance(error, PipelineError):
            _LOGGER.exception("while loading: %s", error, extra={"fields": {"event": "internal"}})
        last = _last_known(choice, error)
        if last is None or (chosen and chosen.release.id == last.release.id):
            raise
        chosen, model = last, _load_last(load, last, error)
    choice.serves(chosen)
    model.memory = choice.memory
    return model


def _last_known(choice: ReleaseChoice, reason: Exception) -> Choice | None:
    """What was served last; None where that cannot be told either: the first reason counts."""
    try:
        return choice.last(reason)
    except PipelineError:
        return None


def _load_last(load: Callable[[Choice], ActiveModel], last: Choice, reason: Exception) -> ActiveModel:
    try:
        return load(last)
    except _NOT_THE_STORES_FAULT:
        raise
    except PipelineError as error:
        raise reason from error  # what has to be mended first


def load_chosen(config: RuntimeConfig, chosen: Choice) -> ActiveModel:
    """Verify every artifact of a release, open the engine, repeat the golden windows.

    Raises:
        PipelineError: As ``load_active_model``.
    """
    release = chosen.release
    if config.target is not None and release.manifest.target != config.target:
        raise TargetMismatchError(
            f"the release is for {release.manifest.target}, TARGET is {config.target}",
            where=release.manifest.artifact,
            hint="set TARGET to the release's, or choose a release for this target",
        )
    release.verify()
    release.check_publishable()
    for note in release.check_artifact():
        _LOGGER.warning(
            "%s %s", release.manifest.artifact, note, extra={"fields": {"event": "artifact_note"}}
        )
    motifs = release.manifest.motif_head.size
    if config.num_motifs is not None and motifs != config.num_motifs:
        raise MotifCountError(
            f"the release has {motifs} motifs, NUM_MOTIFS is {config.num_motifs}",
            where=release.manifest.artifact,
            hint="unset NUM_MOTIFS, or choose a release with that many motifs",
        )
    engine = open_engine(release, config.hailo_lock_dir)
    try:
        # This warms the engine up, and keeps an artifact away from a machine that computes it
        # otherwise: u8 x s8 kernels saturate on x86 without VNNI.
        compare_golden(engine, release).check(release.manifest.artifact)
        return ActiveModel(release, engine, chosen)
    except BaseException:
        engine.close()
        raise
