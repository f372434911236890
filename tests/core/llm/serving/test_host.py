"""What launching a step takes the host, by how it is launched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from servetwin.core.llm.batch import Regrouped
from servetwin.core.llm.serving.host import Host


def batch(decode: int, prompts: int = 0, tokens: int = 0) -> Any:
    size = decode + prompts
    return SimpleNamespace(decode=decode, size=size, prefill=["some"] * prompts, prefilled=tokens, regrouped=None)


@pytest.mark.parametrize(
    ("step", "launched"),
    [
        (batch(10), 0.002 + 8e-5),  # one graph
        (batch(10, 1, 100), 0.009 + 11e-5),  # graphs piece by piece
        (batch(10, 2, 503), 0.025 + 12e-5),  # 513 tokens: kernel by kernel
        (batch(513), 0.025 + 513e-5),
    ],
)
def test_a_launch_is_by_how_and_by_sequences(step: Any, launched: float) -> None:
    host = Host(lambda _: 0.0, 0.0, True, 0.002, 8e-6, launch=0.025, pieces=0.009, each=1e-5, graph_tokens=512)
    assert host.launching(step) == pytest.approx(launched)
    assert host.beginning(step) == pytest.approx(0.002 + step.size * 8e-6)


def test_sequences_that_leave_the_batch_or_come_back_cost_the_host() -> None:
    costs: dict[str, Any] = {"left": 1e-5, "back": 2e-5, "back_token": 5e-8}
    host = Host(lambda _: 0.0, 0.0, True, begins=0.002, launch=0.025, pieces=0.009, graph_tokens=512, **costs)
    step = batch(70)
    step.regrouped = Regrouped(left=3, back=70, tokens=20_000)
    assert host.beginning(step) == pytest.approx(0.002 + 3e-5 + 1.4e-3 + 1e-3)
    assert host.launching(step) == pytest.approx(host.beginning(step))
    prompts = batch(0, 1, 100)
    prompts.regrouped = Regrouped(left=70, back=0, tokens=0)
    assert host.launching(prompts) == pytest.approx(0.009 + 7e-4)


def test_without_graphs_that_are_known_a_step_is_launched_when_it_begins() -> None:
    host = Host(lambda _: 0.0, 0.0, True, begins=0.002, launch=0.025, pieces=0.009)
    assert host.launching(batch(10, 1, 100)) == 0.002
