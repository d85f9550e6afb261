"""A release of the ``onnx_model`` itself, for measuring: nobody releases or serves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.full_precision import make_release
from runtime.active_model import load_active_model
from runtime.config import RuntimeConfig
from runtime.contract.errors import PublicationRefusedError
from runtime.contract.promotion import check_promotable
from runtime.contract.release import MANIFEST_NAME, SIGNATURE_NAME
from runtime.contract.release_directory import Release, sign_release
from tests.keys import BUILD, TRUST_ROOT, a_store
from tests.simulators import TINY_ENCODER, ReleaseSimulator


@pytest.fixture(name="release")
def a_release(tmp_path: Path) -> Release:
    like = ReleaseSimulator().publish(tmp_path / "store", "canary", "stable")
    return make_release(tmp_path / "private", like, TINY_ENCODER)


def test_it_is_what_it_says(release: Release) -> None:
    release.verify()
    assert release.manifest.primary.kind == "full_precision"


def test_it_is_not_published(tmp_path: Path, release: Release) -> None:
    files = {each.name: release.read(each.name) for each in release.manifest.artifacts}
    with pytest.raises(PublicationRefusedError, match="marked full_precision"):
        a_store(tmp_path / "store").publish(release.manifest, files, BUILD)


def test_who_signs_it_by_hand_gets_it_neither_promoted_nor_served(tmp_path: Path, release: Release) -> None:
    (release.directory / SIGNATURE_NAME).write_bytes(
        sign_release((release.directory / MANIFEST_NAME).read_bytes(), BUILD)
    )
    private = a_store(tmp_path / "private")
    with pytest.raises(PublicationRefusedError, match="marked full_precision"):
        check_promotable(private, "emulator", release.id)
    trust = tmp_path / "root.json"
    trust.write_bytes(TRUST_ROOT)
    with pytest.raises(PublicationRefusedError, match="marked full_precision"):
        load_active_model(RuntimeConfig(hef_path=release.directory, trust_root=trust))
