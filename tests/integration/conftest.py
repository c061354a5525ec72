"""What integration tests share: the test distribution, made once for all sessions."""

from __future__ import annotations

import pytest

from tests import testdistro


@pytest.fixture(scope="session")
def distro() -> testdistro.TestDistro:
    """An installer that reads kickstarts: as an ISO, as kernel and initrd, and as a tree to serve."""
    return testdistro.testdistro()
