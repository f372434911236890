"""The contract of routers: every router that comes along keeps it, and planted faults are found."""

from __future__ import annotations

import os
import random
import sys
import time
from functools import partial

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.core.routing import Router
from servetwin.core.testing.asked_contract import hold_router
from servetwin.core.testing.contract import ContractBroken
from servetwin.experiments.cli import entry
from servetwin.experiments.registry import router_registry


@pytest.mark.parametrize("name", router_registry.router_names())
def test_routers_that_come_along_keep_it(name: str) -> None:
    kept = hold_router(partial(router_registry.make, name, router_registry.complete(name, {})), name)
    assert min(kept.asked) >= 60


class Draws(Router):
    def route(self, request, workers, now):
        return workers[random.randrange(len(workers))]


class Clock(Router):
    def route(self, request, workers, now):
        return workers[int(time.monotonic()) % len(workers)]


class Shares(Router):
    turns = []  # noqa: RUF012

    def route(self, request, workers, now):
        self.turns.append(request.id)
        return workers[len(self.turns) % len(workers)]


class Writes(Router):
    def route(self, request, workers, now):
        request.deadline = 1e9
        return workers[0]


class Fails(Router):
    def route(self, request, workers, now):
        return workers[len(workers)]


class Addresses(Router):
    def route(self, request, workers, now):
        return min(workers, key=id)


class Errors(Router):
    def route(self, request, workers, now):
        np.seterr(all="ignore")
        return workers[0]


class Exits(Router):
    def route(self, request, workers, now):
        sys.exit(0)


class Ends(Router):
    def route(self, request, workers, now):
        os._exit(0)


class Holds(Router):
    def bind(self, queue, workers, now):
        return None


class Elsewhere(Router):
    def route(self, request, workers, now):
        return "gpu0"


FAULTS = {
    Draws: "draws from the generator that all of the process share",
    Clock: "reads the clock",
    Shares: "it changed Shares.turns",
    Writes: "wrote deadline",
    Fails: "the router failed in route: IndexError",
    Addresses: "a new object does not decide the same",
    Holds: "never",
    Elsewhere: "it routes",
    Errors: "changed how numpy takes errors",
    Exits: "the router failed in route: SystemExit",
    Ends: r"asks the operating system \(os._exit\)",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_faults_of_routers_are_found(kind: type[Router]) -> None:
    with np.errstate(), pytest.raises(ContractBroken, match=FAULTS[kind]) as broken:
        hold_router(kind)
    assert "\n" not in str(broken.value)
    assert kind.__name__ in str(broken.value)


def test_the_command_takes_routers(tmp_path, monkeypatch, capsys) -> None:
    text = "from servetwin.core.routing import Router\n\n\nclass Last(Router):\n"
    text += "    def route(self, request, workers, now):\n"
    (tmp_path / "last.py").write_text(text + "        return workers[-1]\n")
    monkeypatch.setattr("sys.argv", ["servetwin", "check", str(tmp_path / "last.py")])
    assert entry._run() == 0
    assert "router Last (last.py:5): no fault found" in capsys.readouterr().out
    (tmp_path / "last.py").write_text(text + "        request.weight = 2.0\n        return workers[-1]\n")
    assert entry._run() == 2
    assert "wrote weight" in capsys.readouterr().err
    with pytest.raises(BadInput, match="a router"):
        hold_router(dict)


def test_the_command_takes_parameters_of_routers(monkeypatch, capsys) -> None:
    def check(*sets: str) -> tuple[int, str]:
        given = [part for each in sets for part in ("--set", each)]
        monkeypatch.setattr("sys.argv", ["servetwin", "check", "power_of_two", *given])
        code, said = entry._run(), capsys.readouterr()
        return code, said.out + said.err

    code, said = check("router.params.choices=3")
    assert code == 0
    assert "no fault found" in said
    for wrong, told in (
        ("router.params.choices=0", "choices is 0"),
        ("router.params.chioces=3", "choices"),
        ("deployment.router=jsq", "deployment.router: this router is checked on a system of its own"),
    ):
        code, said = check(wrong)
        assert code == 2
        assert told in said
        assert len(said.splitlines()) == 1


def test_a_router_that_reads_the_clock_when_it_is_loaded_is_found(tmp_path) -> None:
    text = (
        "import time\n\nfrom servetwin.core.routing import Router\n\nBEGAN = time.time()\n\n\nclass Late(Router):\n"
    )
    text += "    def route(self, request, workers, now):\n        return workers[-1]\n"
    (tmp_path / "late.py").write_text(text)
    with pytest.raises(ContractBroken, match=r"late.py:5\): it reads the clock \(time.time\)"):
        hold_router(router_registry.code_of(str(tmp_path / "late.py")).policy)
