"""What every test may use: golden files, a store of layers, and a private cache: nothing of the user's is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder.layers.store import Store
from imagebuilder.ui import Event

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="rewrite the golden files from what the code gives now")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with tests/golden/NAME, or rewrite the file with `pytest --regenerate`."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing: run pytest --regenerate and review it"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and kept answers of tests go to a directory of the test's own, unless a test names a shared one."""
    monkeypatch.setenv("IMGBUILD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("PACKER_CACHE_DIR", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of layers."""
    return Store(tmp_path / "layers")


@pytest.fixture
def told() -> list[Event]:
    """For what a build says: a test hands `told.append` to its Ui."""
    return []
