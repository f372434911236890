"""The contract of autoscalers: each that comes along keeps it, and planted faults are found."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.core.scaling.autoscaler import Autoscaler
from servetwin.core.testing.asked_contract import hold_autoscaler
from servetwin.core.testing.contract import ContractBroken
from servetwin.experiments.registry import autoscaler_registry

#: What those need that have no default.
NEEDED: dict[str, dict[str, Any]] = {"by_schedule": {"points": [[0, 1], [0.3, 3], [1.0, 2]]}}


@pytest.mark.parametrize("name", autoscaler_registry.autoscaler_names())
def test_those_that_come_along_keep_it(name: str) -> None:
    params = autoscaler_registry.complete(name, NEEDED.get(name, {}))
    kept = hold_autoscaler(partial(autoscaler_registry.make, name, params), name)
    assert min(kept.asked) >= 50


class Draws(Autoscaler):
    def want(self, fleet, now):
        return random.randrange(3)


class Clock(Autoscaler):
    def want(self, fleet, now):
        return 1 + int(time.monotonic()) % 2


class Shares(Autoscaler):
    asked = []  # noqa: RUF012

    def want(self, fleet, now):
        self.asked.append(now)
        return 1 + len(self.asked) % 2


class Fails(Autoscaler):
    def want(self, fleet, now):
        return 1 // fleet.draining


class Addresses(Autoscaler):
    def want(self, fleet, now):
        return 1 + id(object()) // 16 % 3


class Halves(Autoscaler):
    def want(self, fleet, now):
        return fleet.present / 2


class Nobody(Autoscaler):
    def want(self, fleet, now):
        return 0


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Draws, "random"),
        (Clock, "clock|time"),
        (Shares, "changed"),
        (Fails, "the autoscaler failed in want: ZeroDivisionError"),
        (Addresses, "decide the same|memory|id"),
        (Halves, "whole number"),
        (Nobody, "idles for ever|never ended|no replica"),
    ],
)
def test_faults_are_found(kind: type[Autoscaler], told: str) -> None:
    with pytest.raises(ContractBroken, match=told) as broken:
        hold_autoscaler(kind)
    assert kind.__name__ in str(broken.value)


class Always(Autoscaler):
    def want(self, fleet, now):
        return 1.5


def test_a_fault_before_anything_ran_is_told_alone() -> None:
    with pytest.raises(ContractBroken, match=r"it wants 1.5 replicas .*a whole number") as broken:
        hold_autoscaler(Always)
    assert not broken.value.drawing


def test_what_is_no_autoscaler_is_told() -> None:
    with pytest.raises(BadInput, match="right would be: an autoscaler"):
        hold_autoscaler(dict)
