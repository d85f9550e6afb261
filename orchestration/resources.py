"""Dagster skins over the workbench and the release store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from assets.product import Product, Workbench
from runtime.contract.errors import PipelineError
from runtime.contract.keys import KeyFileError, KeyFolder, PrivateKey, load_key
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import Trust, TrustRootError

if TYPE_CHECKING:
    from assets.build_cache import BuildCache
    from assets.toolchain import Toolchain


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn our errors into Dagster failures that show place and advice, and are never retried."""
    try:
        yield
    except PipelineError as error:
        metadata = {"code": error.code, "where": error.where or "-", "what to do": error.hint or "-"}
        raise dg.Failure(description=str(error), metadata=metadata, allow_retries=False) from error


class Places(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where a build reads and writes; read from the environment in ``definitions`` only.

    Args:
        weights_dir: ``<model>/<version>/`` folders, or one version folder.
        calib_dir: Window sets with their index.
        build_dir: The workbench: content-addressed products.
        build_cache_dir: What the long steps made before; beside the workbench where it is empty.
        release_store: Releases and channels.
        reports_dir: Parity reports.
        reports_url: Where they are served; empty where they are not.
        dfc_python: The Python that has Hailo's Dataflow Compiler; empty where there is none.
        trust_root: The file with the root of trust.
        canary_key_file: Signs releases and canary; empty where there is none.
        release_key_file: Signs stable; empty where the release manager is elsewhere.
        development_keys: The folder of this machine's development keys; empty where others count.
        prometheus_url: Where canaries are seen; empty where there is no Prometheus.
        prometheus_job: Its name for the runtimes; empty for any.
        runtime_urls: Of runtimes that are asked where there is none, comma-separated.
        telemetry_dir: Windows that runtimes kept; empty where none are.
    """

    weights_dir: str
    calib_dir: str
    build_dir: str
    release_store: str
    build_cache_dir: str = ""
    reports_dir: str = ""
    reports_url: str = ""
    dfc_python: str = ""
    trust_root: str = ""
    canary_key_file: str = ""
    release_key_file: str = ""
    development_keys: str = ""
    prometheus_url: str = ""
    prometheus_job: str = ""
    runtime_urls: str = ""
    telemetry_dir: str = ""

    def toolchain(self, target: str, log: dg.DagsterLogManager) -> Toolchain:
        """The toolchain of a target; what its compiler prints goes to the run's log while it works."""
        from assets.toolchain import open_toolchain
        from orchestration.toolchain_view import RunLog

        return open_toolchain(target, dfc_python=self.dfc_python, listener=RunLog(log))

    def bench(self) -> Workbench:
        """The workbench."""
        return Workbench(Path(self.build_dir))

    def cache(self, use: bool, log: dg.DagsterLogManager) -> BuildCache:
        """The cache of the long steps; what it has to say goes to the run's log."""
        from assets.build_cache import BuildCache

        root = Path(self.build_cache_dir or Path(self.build_dir) / "cache")
        return BuildCache(root, use=use, say=log.warning)

    def reports(self) -> Path:
        """Where parity reports are kept: beside the workbench, where nothing else is said."""
        return Path(self.reports_dir or Path(self.build_dir) / "reports")

    def store(self) -> ReleaseStore:
        """The release store; development keys are made where they count and are not there yet.

        Raises:
            TrustRootError: ``TRUST_ROOT`` names no root of trust.
        """
        if not self.trust_root:
            raise TrustRootError("TRUST_ROOT is not set", hint="docs/keys.md says what it names")
        if self.development_keys:
            KeyFolder(Path(self.development_keys)).make(development=True)
        return ReleaseStore(Path(self.release_store), Trust.load(Path(self.trust_root)))

    def build_key(self) -> PrivateKey:
        """The key that signs releases and moves canary.

        Raises:
            KeyFileError: ``CANARY_KEY_FILE`` is not set, or names no such key.
        """
        if not self.canary_key_file:
            raise KeyFileError(
                "CANARY_KEY_FILE is not set, TRUST_ROOT is",
                hint="a build host needs its own key to release: docs/keys.md",
            )
        return load_key(Path(self.canary_key_file))

    def manager_key(self) -> PrivateKey | None:
        """The key that moves stable; None where the release manager is elsewhere.

        Raises:
            KeyFileError: ``RELEASE_KEY_FILE`` names no such key, or one that needs a passphrase.
        """
        return load_key(Path(self.release_key_file)) if self.release_key_file else None


class ProductIOManager(dg.ConfigurableIOManager):
    """Hands products from one asset to the next by their asset key.

    What moves is the small description of a product; its files stay where they are, named by
    their digest, and are verified when they are read.
    """

    build_dir: str

    def handle_output(self, context: dg.OutputContext, obj: Product) -> None:
        """Remember what an asset made last; a failure with advice where it cannot be written."""
        with failures():
            Workbench(Path(self.build_dir)).remember(obj)

    def load_input(self, context: dg.InputContext) -> Product:
        """What an upstream asset made last; a failure with advice where it made nothing."""
        with failures():
            return Workbench(Path(self.build_dir)).latest("/".join(context.asset_key.path))
