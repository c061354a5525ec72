"""What integration tests share: the test distribution, made once for all sessions."""

from __future__ import annotations

import pytest

from tests import testdistro
from tests.integration import harness


@pytest.fixture(scope="session")
def distro() -> testdistro.TestDistro:
    """An installer that reads kickstarts: as an ISO, as kernel and initrd, and as a tree to serve."""
    return testdistro.testdistro()


@pytest.fixture(scope="session")
def small(distro: testdistro.TestDistro, tmp_path_factory: pytest.TempPathFactory) -> harness.Small:
    """The test distribution, installed once."""
    return harness.installed(distro, tmp_path_factory.mktemp("small"))
