"""Fixtures for tests of policies; pytest finds them where ServeTwin is installed, and imports nothing else for them.

==================  ===========================================================================================
`fake_worker`       `FakeWorker`: a worker whose queue and clock a test works by hand
`fake_engine`       `FakeEngine`: likewise, an engine of a language model
`play_scenario`     `play`: a scenario from the first arrival to the last end, under all invariants
`policy_contract`   `assert_policy_contract`: what every policy must keep to
`run_under_invariants`    `servetwin.testing.run_under_invariants`: an experiment, simulated under all invariants
==================  ===========================================================================================
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def fake_worker() -> Any:
    """`servetwin.core.testing.FakeWorker`: a worker whose queue and clock the test works by hand."""
    from servetwin.core.testing import FakeWorker

    return FakeWorker


@pytest.fixture(scope="session")
def fake_engine() -> Any:
    """`servetwin.core.testing.FakeEngine`: an engine whose queue and clock the test works by hand."""
    from servetwin.core.testing import FakeEngine

    return FakeEngine


@pytest.fixture(scope="session")
def play_scenario() -> Any:
    """`servetwin.core.testing.play`: a scenario from the first arrival to the last end, under all invariants."""
    from servetwin.core.testing import play

    return play


@pytest.fixture(scope="session")
def policy_contract() -> Any:
    """`servetwin.core.testing.assert_policy_contract`: what every policy must keep to."""
    from servetwin.core.testing import assert_policy_contract

    return assert_policy_contract


@pytest.fixture(scope="session")
def run_under_invariants() -> Any:
    """`servetwin.testing.run_under_invariants`: an experiment, simulated under all invariants."""
    from servetwin.testing import run_under_invariants as run

    return run
