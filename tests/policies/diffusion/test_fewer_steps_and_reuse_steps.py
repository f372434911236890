"""Fewer steps where the deadline is near, and steps again where the prediction would hardly differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from servetwin.core import BadInput, Batch, Decision, Module, Pipeline, Policy, Request, WorkerView
from servetwin.core.pipeline import StepActions
from servetwin.core.request import ActingTask
from servetwin.core.testing import Job, Played, play
from servetwin.core.testing.timeline import System
from servetwin.policies.diffusion.fewer_steps import FewerSteps
from servetwin.policies.diffusion.from_similar import FromSimilar
from servetwin.policies.diffusion.reuse_steps import ReuseSteps

ACTIONS = StepActions(quality=((0.5, 0.6), (1.0, 1.0)), reuse=True)


def served(policy: Callable[[], Policy], jobs: Sequence[Job], limit: int = 4) -> tuple[Played, list[int]]:
    """What ran, a step taking 1, 1.5, 2, 2.5 s by size; and the steps that each request was given."""
    steps: dict[int, int] = {}

    def kept() -> Policy:
        made = policy()
        ended = made.ended

        def hear(batch: Batch, view: Any, now: float) -> None:
            steps.update({task.id: task.iterations for task in batch.tasks})
            ended(batch, view, now)

        made.ended = hear  # type: ignore[method-assign]
        return made

    pipeline = Pipeline([Module("model", loop=True, actions=ACTIONS)], [])
    system = System(pipeline, {"model": [1.0, 1.5, 2.0, 2.5]}, {"model": limit})
    return play(kept, jobs, system=system), [steps.get(number, 0) for number in range(len(jobs))]


def test_with_time_in_hand_everybody_gets_all_steps() -> None:
    played, steps = served(FewerSteps, [Job(10, slo=100.0)] * 3)
    assert steps == [10, 10, 10]
    assert played.outcomes == ["met"] * 3


def test_who_joins_gets_the_steps_that_its_deadline_bears_in_that_batch() -> None:
    # Together a step takes 1.5 s: in 12 s the second is through 8 of them.
    played, steps = served(FewerSteps, [Job(10, slo=100.0), Job(10, slo=12.0)])
    assert steps == [10, 8]
    assert played.outcomes == ["met", "met"]


def test_nobody_joins_by_whom_another_would_be_late() -> None:
    # Each step with the second beside it takes the first half a second longer, which it does not have. When it has
    # ended, six steps are left.
    played, steps = served(FewerSteps, [Job(10, slo=10.4), Job(10, at=0.5, slo=15.6)])
    assert steps == [10, 6]
    played.expect(*[[0]] * 10, *[[1]] * 6)
    assert played.outcomes == ["met", "met"]


def test_who_cannot_make_it_with_the_fewest_is_given_up() -> None:
    played, steps = served(FewerSteps, [Job(10, slo=4.9), Job(10, slo=100.0)])
    assert steps == [0, 10]
    assert played.outcomes == ["dropped", "met"]


@pytest.mark.parametrize(
    ("more", "skipped"),
    [
        ({}, [2, 4, 6, 8]),  # a change of 1 is below 1.5, the second makes 2
        ({"threshold": 2.5}, [2, 3, 5, 6, 8]),
        ({"threshold": 0.9}, []),
        # Over their mean: 0.2, 0.6, 1.0, 1.4, 1.9, 1.9, 1.4, 1.0, 0.6, 0.2; in the middle two steps on end are run.
        ({"threshold": 1.5, "changes": (0.2, 1.0, 2.0, 1.0, 0.2)}, [2, 4, 7, 9]),
    ],
    ids=["usual", "higher", "none", "curve"],
)
def test_steps_are_skipped_until_the_change_adds_up(more: dict[str, Any], skipped: list[int]) -> None:
    again: list[int] = []

    class Heard(ReuseSteps):
        def decide(self, view: Any, now: float) -> Decision:
            decision = super().decide(view, now)
            again.extend(task.iterations - task.left + 1 for task in decision.reuse)
            return decision

    served(lambda: Heard(**more), [Job(10)])
    assert again == skipped


def test_no_more_is_skipped_than_may_be() -> None:
    policy = ReuseSteps(threshold=100.0)
    policy.actions = ACTIONS
    stage = Pipeline([Module("model", loop=True, actions=ACTIONS)], []).stages([["model"]])[0]
    plan = policy.plan(ActingTask(Request(0, 0.0, 9.0, {"model": 12}), stage, 0.0))
    assert plan == (False, *[True] * 6, *[False] * 5)


def test_where_nothing_is_said_of_actions_no_step_is_skipped() -> None:
    policy = ReuseSteps(threshold=100.0)
    stage = Pipeline([Module("model", loop=True)], []).stages([["model"]])[0]
    policy.start(WorkerView(stage, lambda module, batch: 1.0, limit=4))
    assert policy.plan(ActingTask(Request(0, 0.0, 9.0, {"model": 12}), stage, 0.0)) == (False,) * 12


@pytest.mark.parametrize(
    ("similarity", "steps"), [(None, 20), (0.6, 20), (0.65, 18), (0.8, 16), (0.97, 10), (1.0, 10)]
)
def test_the_more_alike_the_fewer_steps(similarity: float | None, steps: int) -> None:
    stage = Pipeline([Module("model", loop=True, actions=ACTIONS)], []).stages([["model"]])[0]
    task = ActingTask(Request(0, 0.0, 9.0, {"model": 20}), stage, 0.0)
    task.similarity = similarity
    assert FromSimilar().steps(task) == steps
    # Half of the steps must run, whatever the policy would skip.
    assert FromSimilar(skips=[[0.0, 0.9]]).steps(task) == (20 if similarity is None else 10)


@pytest.mark.parametrize("skips", [[[0.5]], [[1.5, 0.1]], [[0.5, 1.0]]])
def test_skips_that_make_no_sense(skips: list[list[float]]) -> None:
    with pytest.raises(BadInput, match="from-similar"):
        FromSimilar(skips=skips)


@pytest.mark.parametrize("more", [{"threshold": 0.0}, {"changes": ()}, {"changes": (-1.0, 2.0)}, {"changes": (0.0,)}])
def test_parameters_that_make_no_sense(more: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="reuse-steps"):
        ReuseSteps(**more)
