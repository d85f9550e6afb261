"""Stores that earlier versions made, before anything was signed, and how they are taken over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

from runtime.config import RuntimeConfig
from runtime.contract.release import MANIFEST_NAME, SIGNATURE_NAME
from runtime.contract.release_directory import sign_release
from tests.keys import BUILD, MANAGER, a_store

_DATA: Final = Path(__file__).parent.parent / "data"
SCHEMA_1: Final = _DATA / "schema1"
SCHEMA_2: Final = _DATA / "schema2"


def sign_directory(directory: Path) -> None:
    """Vouch for a release where it lies."""
    manifest = (directory / MANIFEST_NAME).read_bytes()
    (directory / SIGNATURE_NAME).write_bytes(sign_release(manifest, BUILD))


def signed_copy(source: Path, root: Path) -> Path:
    """Copy a store and let stable name its release, both signed with the tests' keys; returns ``root``."""
    shutil.copytree(source, root)
    store = a_store(root)
    (identifier,) = store.identifiers()
    sign_directory(root / "releases" / identifier)
    store.point("stable", store.open(identifier), actor="test", reason="signed", key=MANAGER)
    return root


def config(store: Path, **settings: Any) -> RuntimeConfig:
    """Settings that trust the tests' keys."""
    return RuntimeConfig(release_store=store, trust_root=Path(os.environ["TRUST_ROOT"]), **settings)
