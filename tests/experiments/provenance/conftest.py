"""A folder in which policies are edited between runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the way of imports, with the toy experiment in it."""
    monkeypatch.syspath_prepend(str(toy.parent))
    monkeypatch.chdir(toy.parent)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)  # a cluster of Dask that ran here before has set it
    before = set(sys.modules)
    yield toy.parent
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(toy.parent)):
            del sys.modules[name]
