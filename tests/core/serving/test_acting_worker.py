"""Fewer steps and steps again: what a policy may say of them, and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from servetwin.core import Decision, Module, Pipeline, Policy, Request, WorkerView
from servetwin.core.errors import PolicyFault
from servetwin.core.group_metrics import StepQuality
from servetwin.core.pipeline import StepActions
from servetwin.core.request import ActingTask, Outcome
from servetwin.core.testing import Job, play
from servetwin.core.testing.timeline import System

ACTIONS = StepActions(quality=((0.5, 0.6), (1.0, 1.0)), min_steps=3, reuse=True)


class Says(Policy):
    """Runs all that are there, and lets *of* say what is done with their steps."""

    def __init__(self, of: Callable[[WorkerView, list[Any]], dict[str, Any]]) -> None:
        self.of = of

    def decide(self, view: WorkerView, now: float) -> Decision:
        run: list[Any] = [*view.running, *view.waiting][: view.limit]
        return Decision(run, **self.of(view, run)) if run else Decision()


def served(of: Callable[[WorkerView, list[Any]], dict[str, Any]], *, actions: StepActions | None = ACTIONS) -> Any:
    """Two requests of ten steps, a second each, under `Says`."""
    pipeline = Pipeline([Module("model", loop=True, actions=actions)], [])
    return play(lambda: Says(of), [Job(10), Job(10)], system=System(pipeline, {"model": 1.0}))


def begins(view: WorkerView, run: list[Any], steps: Any) -> dict[str, Any]:
    return {"steps": {task: steps for task in run if task in view.waiting}}


def test_who_gets_fewer_steps_is_done_sooner() -> None:
    shorter = served(lambda view, run: {"steps": {t: 6 for t in run if t in view.waiting and t.id == 0}})
    shorter.expect(*[[0, 1]] * 6, *[[1]] * 4)


def test_a_step_again_is_a_step() -> None:
    seen: list[tuple[int, int, int]] = []

    def every_other(view: WorkerView, run: list[Any]) -> dict[str, Any]:
        task = run[0]
        seen.append((task.left, task.reused, task.may_skip))
        return {"reuse": [task] if task.left % 2 and task.may_skip else ()}

    served(every_other).expect(*[[0, 1]] * 10)
    assert seen == [(10 - i, min(i // 2, 5), 5 - min(i // 2, 5)) for i in range(10)]


def test_what_may_be_done_is_shown_and_the_fewest_steps_kept() -> None:
    assert [ACTIONS.fewest(asked) for asked in (1, 3, 5, 6, 7, 10)] == [1, 3, 3, 3, 4, 5]
    assert served(lambda view, run: begins(view, run, view.stage.actions.fewest(10))).outcomes == ["met", "met"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda view, run: begins(view, run, 4), "it sets 4 steps .*right would be: an int from 5"),
        (lambda view, run: begins(view, run, 11), "to 10 .asked."),
        (lambda view, run: begins(view, run, 7.0), "it sets 7.0 steps"),
        (lambda view, run: {"steps": dict.fromkeys(run, 9)}, "which does not begin with this batch"),
        (lambda view, run: {"steps": [9, 9]}, "steps of its decision is .9, 9."),
        (lambda view, run: {"reuse": run[:1]}, "which has none here"),
        (lambda view, run: {"reuse": run[:1] if view.running else (), "whole": bool(view.running)}, "whole requests"),
        (lambda view, run: {"reuse": run[:1] * 2 if view.running else ()}, "reuse of its decision holds .* twice"),
        (lambda view, run: {"reuse": run if view.running else ()}, "is left with fewer than 5 that are computed"),
        (lambda view, run: {"reuse": "all"}, "reuse of its decision is 'all'"),
    ],
    ids=["few", "many", "float", "begun", "list", "first", "whole", "twice", "floor", "text"],
)
def test_what_it_may_not_say(of: Callable[[WorkerView, list[Any]], dict[str, Any]], said: str) -> None:
    with pytest.raises(PolicyFault, match=said):
        served(of)


@pytest.mark.parametrize(
    ("actions", "said"),
    [(None, "nothing says that it may"), (StepActions(((1.0, 1.0),)), "reuse: true in the experiment")],
    ids=["nothing", "no-reuse"],
)
def test_where_nothing_may_be_done(actions: StepActions | None, said: str) -> None:
    with pytest.raises(PolicyFault, match=said):
        served(lambda view, run: {"reuse": run if view.running else ()}, actions=actions)
    with pytest.raises(PolicyFault, match="nothing says that it may" if actions is None else "an int from 10"):
        served(lambda view, run: begins(view, run, 9), actions=actions)


class Writes(Policy):
    """Says that a task reused less than it did."""

    def decide(self, view: WorkerView, now: float) -> Decision:
        run: list[Any] = [*view.running, *view.waiting]
        for task in run:
            task.reused = 0
        return Decision(run, reuse=run if view.running else ())


def test_reused_is_not_the_policys_to_write() -> None:
    pipeline = Pipeline([Module("model", loop=True, actions=ACTIONS)], [])
    with pytest.raises(PolicyFault, match="it wrote reused of task 0"):
        play(Writes, [Job(10)], system=System(pipeline, {"model": 1.0}))


def test_what_a_result_is_worth() -> None:
    stage = Pipeline([Module("model", loop=True, actions=ACTIONS)], []).stages([["model"]])[0]
    quality = StepQuality()
    for number, (steps, reused, outcome) in enumerate(
        [(10, 0, "met"), (8, 0, "met"), (10, 5, "late"), (10, 0, None)]
    ):
        request = Request(number, 0.0, 9.0, {"model": 10})
        task = ActingTask(request, stage, 0.0)
        task.iterations, task.left, task.reused = steps, 0, reused
        request.tasks.append(task)
        request.outcome = Outcome(outcome) if outcome else Outcome.DROPPED
        request.finished = 9.0 if outcome else None
        quality.ended(request)
    told = quality.as_dict(4, 10.0)
    assert told["mean_quality"] == pytest.approx((1.0 + 0.84 + 0.6) / 3)
    assert told["quality_goodput"] == pytest.approx(0.184)
    assert told["attainment_at_full_steps"] == 0.25
    assert (told["steps_asked"], told["steps_run"], told["steps_skipped"]) == (30, 23, 7)
