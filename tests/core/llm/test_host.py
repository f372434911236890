"""What launching a step takes the host, by how it is launched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from servetwin.core.llm.host import Host


def batch(decode: int, prompts: int = 0, tokens: int = 0) -> Any:
    return SimpleNamespace(decode=decode, size=decode + prompts, prefill=["some"] * prompts, prefilled=tokens)


@pytest.mark.parametrize(
    ("step", "launched"),
    [
        (batch(10), 0.002 + 10e-5),  # one graph
        (batch(10, 1, 100), 0.009 + 11e-5),  # graphs piece by piece
        (batch(10, 2, 503), 0.025 + 12e-5),  # 513 tokens: kernel by kernel
        (batch(513), 0.025 + 513e-5),
    ],
)
def test_a_launch_is_by_how_and_by_sequences(step: Any, launched: float) -> None:
    host = Host(lambda _: 0.0, 0.0, True, begins=0.002, launch=0.025, pieces=0.009, each=1e-5, graph_tokens=512)
    assert host.launching(step) == pytest.approx(launched)
    assert host.beginning(step) == pytest.approx(0.002 + step.size * 1e-5)


def test_without_graphs_that_are_known_a_step_is_launched_when_it_begins() -> None:
    host = Host(lambda _: 0.0, 0.0, True, begins=0.002, launch=0.025, pieces=0.009)
    assert host.launching(batch(10, 1, 100)) == 0.002
