"""One build of the sample for all tests of the links."""

from __future__ import annotations

import pytest

from tests.chain import Chain, build_chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The sample, built once; read it, do not change it."""
    return build_chain(tmp_path_factory.mktemp("chain"))
