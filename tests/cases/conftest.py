"""What the tests of the cases start with."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds the points of another; and each writes where it may."""
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to write to, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
