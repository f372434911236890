"""Each invariant of LLM engines, broken on purpose: an engine amid a run, and books that do not fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from servetwin.core.errors import InvariantBroken
from servetwin.core.invariants.engine_checker import AheadCheck, EngineCheck, PipelineCheck
from servetwin.core.llm import ALL, Step, TokenView
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.request import TokenTask
from servetwin.core.request import Outcome
from servetwin.core.testing import FakeEngine
from servetwin.policies.llm.vllm import VLLM


class Running:
    """Two requests decode, of prompts of 20 and 30 tokens, with 3 tokens and 1 out; a third, of 50, waits. 1,000
    blocks of 16 tokens, of which they hold 2 + 2; each asks for 300 tokens."""

    def __init__(self, kind: type[EngineCheck] = EngineCheck) -> None:
        limits: dict[str, Any] = {"blocks": 1000, "max_sequences": 2, "max_batched_tokens": 2048}
        engine = FakeEngine(VLLM(), running=[(20, 3), (30, 1)], waiting=[50], **limits)
        assert engine.decide(now=0.0) is not None
        self.view: TokenView = engine._worker.view
        self.tasks: list[TokenTask] = [*self.view.running]
        (self.waits,) = self.view.waiting
        self.check = kind(engine._worker, {number: {"model": 300} for number in range(3)})
        self.check.tokens = {self.tasks[0]: 3, self.tasks[1]: 1}

    def batch(self, decode: int = 2, context: int = 52) -> TokenBatch:
        """A decode step of both: 22 and 30 of their tokens are computed."""
        return TokenBatch(9, self.check.worker.place, decode, context)


def test_an_engine_as_it_is_keeps_all_of_them() -> None:
    running = Running()
    running.check.decided(Step([(running.waits, 5)], ALL))
    running.check.started(running.batch())
    running.check.settled()
    running.check.stopped(running.batch())
    assert running.check.tokens == {running.tasks[0]: 4, running.tasks[1]: 2}


def strange(running: Running) -> TokenTask:
    """A task of another engine."""
    return Running().tasks[0]


DECISIONS: dict[str, Callable[[Running], Step]] = {
    "drops or preempts a task twice": lambda r: Step((), drop=[r.waits], preempt=[r.waits]),
    "speaks of a task twice": lambda r: Step([(r.waits, 5), (r.waits, 5)]),
    "which is not there": lambda r: Step([(strange(r), 5)]),
    "speaks of .*, which is not there": lambda r: Step((), drop=[strange(r)]),
}


@pytest.mark.parametrize("said", DECISIONS)
def test_invariant_4_a_policy_speaks_of_those_who_are_there_and_once_of_each(said: str) -> None:
    running = Running()
    with pytest.raises(InvariantBroken, match=f"invariant 4.*{said}"):
        running.check.decided(DECISIONS[said](running))


def prefills(running: Running, tokens: int, decode: int = 2) -> TokenBatch:
    batch = running.batch(decode, 52 if decode else 0)
    batch.prefill = [(running.waits, tokens, 0)]
    if not decode:
        batch.chosen = ()
    return batch


def crowd(running: Running) -> TokenBatch:
    """A third runs where two may."""
    running.view.running[running.waits] = None
    return running.batch()


STEPS: dict[str, Callable[[Running], TokenBatch]] = {
    "of 51 tokens; counted": lambda r: r.batch(context=51),
    "1 decode.* counted": lambda r: r.batch(decode=1),
    "does nothing": lambda r: chosen(r, []),
    "computes 3000 tokens; the limit is 2048": lambda r: prefills(r, 2998),
    "3 requests run on .*; the limit is 2": crowd,
}


def chosen(running: Running, tasks: list[TokenTask]) -> TokenBatch:
    batch = running.batch(len(tasks), sum(task.computed for task in tasks))
    batch.chosen = tasks
    return batch


@pytest.mark.parametrize("said", STEPS)
def test_invariant_4_a_step_is_that_of_its_tasks_and_within_the_limits(said: str) -> None:
    running = Running()
    with pytest.raises(InvariantBroken, match=f"invariant 4.*{said}"):
        running.check.started(STEPS[said](running))


@pytest.mark.parametrize("count", [0, 3])
def test_invariant_7_a_step_runs_as_often_as_it_may(count: int) -> None:
    running = Running()
    batch = running.batch()
    batch.times, batch.count = 2, count
    with pytest.raises(InvariantBroken, match=rf"invariant 7.* ran {count} times on end where 2 were allowed"):
        running.check.stopped(batch)


def test_invariant_7_a_step_that_was_decided_ahead_runs_once() -> None:
    running = Running(AheadCheck)
    batch = running.batch()
    batch.times = batch.count = 2
    with pytest.raises(InvariantBroken, match=r"invariant 7.* ran 2 times on end, but it was decided ahead"):
        running.check.stopped(batch)


def test_invariant_4_in_a_pipeline_nobody_has_two_tokens_in_flight() -> None:
    running = Running(PipelineCheck)
    running.check.started(running.batch())
    with pytest.raises(InvariantBroken, match=r"invariant 4.*of which a token is in flight"):
        running.check.started(chosen(running, running.tasks[:1]))


def lose(what: str) -> Callable[[Running], None]:
    def less(running: Running) -> None:
        setattr(running.view, what, getattr(running.view, what) - 1)

    return less


def forget(running: Running) -> None:
    running.check.tokens[running.tasks[1]] = 2


BOOKS: dict[str, Callable[[Running], None]] = {
    "invariant 6.* 995 of 1000 blocks are free, 4 are held": lose("free_blocks"),
    r"invariant 6.* counts \(1, 52\) decoding and context, not \(2, 52\)": lose("decoding"),
    r"invariant 6.* counts \(2, 51\) decoding": lose("context"),
    "invariant 7.* counts 1 tokens, but generated 2": forget,
}


@pytest.mark.parametrize("said", BOOKS)
def test_the_books_of_an_engine_are_those_of_its_tasks(said: str) -> None:
    running = Running()
    BOOKS[said](running)
    with pytest.raises(InvariantBroken, match=said):
        running.check.settled()


def test_invariant_15_of_an_engine_that_failed_nothing_is_left() -> None:
    with pytest.raises(InvariantBroken, match=r"invariant 15.*has failed, and holds 4 blocks of KV"):
        Running().check.failed()


def test_what_was_lost_is_what_came_out_and_is_taken_up_with_it() -> None:
    running = Running()
    first, second = running.tasks
    assert running.check.lost(first) == 3
    running.check.tokens[second] = 5
    with pytest.raises(InvariantBroken, match=r"invariant 7.*was lost with 1 tokens; it generated 5"):
        running.check.lost(second)
    with pytest.raises(InvariantBroken, match=r"invariant 15.*takes up a visit of which 4 tokens were sent"):
        running.check.takes_up(first, 4)
    with pytest.raises(InvariantBroken, match=r"invariant 15.*and all KV is lost"):  # it has computed some
        running.check.takes_up(first, 3)


def test_a_step_that_was_cut_off_counts_as_far_as_it_came() -> None:
    running = Running()
    batch = running.batch()
    running.check.started(batch)
    batch.count = 0
    running.check.cut_off(batch)
    assert running.check.tokens == {running.tasks[0]: 3, running.tasks[1]: 1}
    batch.count = 2
    running.check.cut_off(batch)
    assert running.check.tokens == {running.tasks[0]: 5, running.tasks[1]: 3}


def too_many(task: TokenTask, check: EngineCheck) -> None:
    check.asked[task.id]["model"] = 2  # type: ignore[index]


def too_few(task: TokenTask, check: EngineCheck) -> None:
    task.finished = 1.0


def met(task: TokenTask, check: EngineCheck) -> None:
    task.request.outcome = Outcome.MET


def before_it_began(task: TokenTask, check: EngineCheck) -> None:
    task.first_token = task.started - 1.0  # type: ignore[operator]


def never(task: TokenTask, check: EngineCheck) -> None:
    task.first_token = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (too_many, "invariant 7.*ended with 3 tokens; it generated 3 of 2"),
        (too_few, "invariant 7.*ended with 3 tokens; it generated 3 of 300"),
        (met, "invariant 7.*never finished, but its request did"),
        (before_it_began, r"invariant 2.*its first token came at -1\.0"),
        (never, "invariant 2.*its first token came at None"),
    ],
)
def test_a_visit_ends_with_the_tokens_that_were_asked_for(
    change: Callable[[TokenTask, EngineCheck], None], said: str
) -> None:
    running = Running()
    task = running.tasks[0]
    change(task, running.check)
    with pytest.raises(InvariantBroken, match=said):
        running.check.ended(task)
