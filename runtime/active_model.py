"""From a channel to a model that is verified, warmed up and ready to answer. Knows no HTTP."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.config import RuntimeConfig
from runtime.contract.errors import (
    NoManifestError,
    PipelineError,
    ReleaseNotFoundError,
    TargetAmbiguousError,
    TargetMismatchError,
    store_errors,
)
from runtime.contract.files import is_directory
from runtime.contract.motifs import MotifScorer
from runtime.contract.store import Release, ReleaseStore, open_release
from runtime.contract.window import FloatArray, Window
from runtime.engines import Engine, open_engine
from runtime.golden import compare_golden

_LOGGER: Final = logging.getLogger("runtime.model")
_WHERE_TO_LOOK: Final = "publish one with `make run`, or set RELEASE_STORE"


class MotifCountError(PipelineError):
    """A release with another number of motifs than ``NUM_MOTIFS`` says."""

    code = "num_motifs"


class InternalError(PipelineError):
    """A mistake of ours: the log has the traceback."""

    code = "internal"


class ActiveModel:
    """A release whose artifacts were verified and whose engine repeated its golden windows.

    Args:
        release: The verified release.
        engine: The engine that runs its artifact; closed with the model.
    """

    def __init__(self, release: Release, engine: Engine) -> None:
        self.release_id = release.id
        self.manifest = release.manifest
        self._engine = engine
        self._scorer = MotifScorer(release.manifest.motif_head)

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

    @property
    def model(self) -> ActiveModel | None:
        """The active model, or None."""
        return self.state if isinstance(self.state, ActiveModel) else None

    def replace(self, state: ActiveModel | PipelineError) -> ActiveModel | PipelineError:
        """Serve something else from now on; returns what was served, still open."""
        previous, self.state = self.state, state
        return previous

    @classmethod
    def load(cls, config: RuntimeConfig) -> ModelHolder:
        """Load what the settings name; a failure is logged once and held as the reason."""
        try:
            model = load_active_model(config)
        except PipelineError as error:
            _LOGGER.error(
                "no model: %s", error, extra={"fields": {"event": "model_unavailable", "reason": error.code}}
            )
            return cls(error)
        except Exception as error:
            # A Pi that answers 503 with a reason is better than one that restarts for ever.
            _LOGGER.exception("no model: %s", error, extra={"fields": {"event": "model_unavailable"}})
            return cls(
                InternalError(f"{type(error).__name__} while loading", hint="the log has the traceback")
            )
        fields = {
            "event": "model_loaded",
            "release": model.release_id,
            "target": model.target,
            "numbers": model.numbers,
            "calibration_origin": model.calibration_origin,
        }
        _LOGGER.info(
            "serving %s, calibrated on %s windows",
            model.artifact,
            model.calibration_origin,
            extra={"fields": fields},
        )
        return cls(model)


def load_active_model(config: RuntimeConfig) -> ActiveModel:
    """Find the release, verify every artifact, open the engine, repeat the golden windows.

    The gate is held here again: a release may have come to this store around ``publish``.

    Raises:
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
    release = find_release(config)
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
    engine = open_engine(release)
    try:
        # This warms the engine up, and keeps an artifact away from a machine that computes it
        # otherwise: u8 x s8 kernels saturate on x86 without VNNI.
        compare_golden(engine, release).check(release.manifest.artifact)
    except BaseException:
        engine.close()
        raise
    return ActiveModel(release, engine)


def find_release(config: RuntimeConfig) -> Release:
    """Open the release that the settings name, by path or by channel; not yet verified."""
    if config.hef_path is not None:
        return _release_at(config.hef_path)
    store = ReleaseStore(config.release_store)
    target = config.target or _only_target(store)
    return store.resolve(target, config.release_channel)


def _release_at(path: Path) -> Release:
    # Resolved once: a link that moves later cannot mix two releases.
    with store_errors(path):
        place = Path(os.path.realpath(path))
        directory = is_directory(place)
        if not directory and not place.exists():
            raise ReleaseNotFoundError("no such file", where=str(path), hint="HEF_PATH names it")
    if directory:
        return open_release(place)
    release = open_release(place.parent)
    if place.name != release.manifest.artifact:
        raise NoManifestError(
            f"the manifest beside it names {release.manifest.artifact!r} as the artifact",
            where=str(path),
            hint="HEF_PATH takes a release directory or the artifact inside one",
        )
    return release


def _only_target(store: ReleaseStore) -> str:
    with store_errors(store.root):
        there = is_directory(store.root)
    if not there:
        raise ReleaseNotFoundError("is no directory", where=str(store.root), hint=_WHERE_TO_LOOK)
    targets = store.targets()
    if not targets:
        raise ReleaseNotFoundError("no channel names a release", where=str(store.root), hint=_WHERE_TO_LOOK)
    if len(targets) > 1:
        raise TargetAmbiguousError(
            f"the store has releases for {', '.join(targets)}", where=str(store.root), hint="set TARGET"
        )
    return targets[0]
