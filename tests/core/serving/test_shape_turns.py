"""One policy object a shape, asked in turn: whom it takes in, who is asked first, and what is passed on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from servetwin.core import Decision, Module, Pipeline, Policy, Request, Shape, Task, WorkerView
from servetwin.core.serving.shape_turns import ShapeTurns
from servetwin.core.serving.shaped_worker import ShapedView

SMALL, LARGE = Shape(512, 512), Shape(2048, 2048)
STAGE = Pipeline([Module("unet", loop=True)], []).stages([["unet"]])[0]


class Keeps(Policy):
    """Runs all that wait of its shape; takes in who asks for ten steps at most, and says so by *kind*."""

    kind: Any = bool
    turn = "slack"

    def admit(self, task: Task, view: WorkerView, now: float) -> Any:
        return self.kind(task.left <= 10)

    def decide(self, view: WorkerView, now: float) -> Decision:
        return Decision(list(view.waiting)[: view.limit])


class Turns:
    """`ShapeTurns` over *policy*; a step takes 0.1 s of a small image and 1 s of a large one."""

    def __init__(self, policy: type[Policy]) -> None:
        seconds = {SMALL: lambda module, batch: 0.1, LARGE: lambda module, batch: 1.0}
        self.view = ShapedView(STAGE, seconds, {SMALL: 4, LARGE: 2})
        self.turns = ShapeTurns(policy, [SMALL, LARGE])
        self.turns.start(self.view)
        self.sent = 0

    def admits(self, shape: Shape, steps: int, *, arrival: float = 0.0, slo: float = 1e9) -> bool:
        request = Request(self.sent, arrival, slo, {"unet": steps})
        request.shape = shape
        self.sent += 1
        return self.turns.admit(Task(request, STAGE, arrival), self.view, arrival)

    def runs(self, now: float = 0.0) -> list[int]:
        return [task.id for task in self.turns.decide(self.view, now).run]


@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_whom_a_policy_does_not_take_in_it_never_sees_again(kind: Any) -> None:
    class Own(Keeps):
        pass

    Own.kind = kind
    turns = Turns(Own)
    assert [turns.admits(SMALL, steps) for steps in (10, 11, 3)] == [True, False, True]
    assert turns.runs() == [0, 2]


@pytest.mark.parametrize(
    ("turn", "first"),
    [
        ("arrival", 0),  # which came first
        ("slack", 1),  # which must begin at 1.5, the other at 95
        ("shortest", 2),  # 0.3 s, in place of 0.5 and 5
    ],
)
def test_whose_turn_it_is(turn: str, first: int) -> None:
    class Own(Keeps):
        def decide(self, view: WorkerView, now: float) -> Decision:
            return Decision([max(view.waiting, key=lambda task: (task.id == first, -task.id))])

    Own.turn = turn  # type: ignore[assignment]
    turns = Turns(Own)
    assert turns.admits(LARGE, 5, arrival=0.0, slo=100.0)
    assert turns.admits(SMALL, 5, arrival=0.5, slo=1.5)
    assert turns.admits(SMALL, 3, arrival=0.6, slo=300.0)
    assert turns.runs(0.7) == [first]


def test_who_is_late_already_comes_after_all_others() -> None:
    turns = Turns(Keeps)
    assert turns.admits(LARGE, 5, slo=4.0)  # would have had to begin before 0
    assert turns.admits(SMALL, 5, slo=50.0)
    assert turns.runs(0.1) == [1]
