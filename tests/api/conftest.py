"""No test of the Python interface finds the points of another."""

from __future__ import annotations

import pytest

#: A workload that comes with ServeTwin and runs quickly.
WORKLOAD = "dit-s2-256-rtx4090"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def workload() -> str:
    return WORKLOAD
