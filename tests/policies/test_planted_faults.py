"""The contract of policies: every policy that comes along keeps it, and each planted fault is found."""

from __future__ import annotations

import atexit
import decimal
import json
import locale
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import pytest
from servetwin.core.testing.contract import ContractBroken, check_contract
from servetwin.experiments.registry.policy_registry import find_policy, policy_names

FAULTS = sorted((Path(__file__).parent / "faults").glob("*.py"))


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What some of the faults change of the process is as it was after each of them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(logging.getLogger(), "level", logging.getLogger().level)
    modules, names, place = {*sys.modules}, {*vars(json)}, locale.setlocale(locale.LC_ALL)
    with decimal.localcontext(), warnings.catch_warnings(), numpy.errstate():
        yield
    locale.setlocale(locale.LC_ALL, place)
    atexit.unregister(print)
    for name in {*sys.modules} - modules:
        if not isinstance(sys.modules[name], ModuleType):
            del sys.modules[name]
    for name in {*vars(json)} - names:
        delattr(json, name)


@pytest.mark.parametrize("name", policy_names())
def test_policies_that_come_along_keep_it(name: str) -> None:
    kept = check_contract(find_policy(name))
    assert kept.decisions > 100
    assert len(kept.scenarios) >= 7


@pytest.mark.parametrize("fault", FAULTS, ids=lambda path: path.stem)
def test_planted_faults_are_found(fault: Path) -> None:
    told = re.match(r"# told: (.*)\n", fault.read_text())
    assert told is not None
    if "another process" in told[1]:
        pytest.skip("by the command line, below")
    with pytest.raises(ContractBroken, match=told[1]) as broken:
        check_contract(find_policy(str(fault)))
    assert "\n" not in str(broken.value)
    assert "Mine" in str(broken.value)
