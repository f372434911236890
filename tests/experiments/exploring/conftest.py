"""Processes that simulate, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servetwin.experiments.exploring.lanes import Lanes


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    made = Lanes(2)
    yield made
    made.close()
