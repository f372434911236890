"""The fakes that policies are tested with (`servetwin.core.testing`) ask as the serving loop does."""

from __future__ import annotations

import doctest

import pytest
from servetwin.core import BadInput, Decision, InvariantBroken, Policy
from servetwin.core.llm import ALL, Step, TokenPolicy
from servetwin.core.testing import (
    EngineStep,
    FakeEngine,
    FakeWorker,
    Job,
    Prompt,
    by_hand,
    engine_view,
    timeline,
    worker_view,
)
from servetwin.policies.diffusion.clockwork import Clockwork
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.vllm import VLLM


class Scripted(Policy):
    """Answers with what *answer* makes of (view, now)."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.asked: list[float] = []

    def decide(self, view, now):
        self.asked.append(now)
        return self.answer(view, now)


class ScriptedEngine(TokenPolicy):
    def __init__(self, answer) -> None:
        self.answer = answer

    def decide(self, view, now):
        return self.answer(view, now)


@pytest.mark.parametrize("module", [by_hand, timeline])
def test_the_examples_in_its_docstrings(module) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 3
    assert done.failed == 0


# -- workers --------------------------------------------------------------------------------------------------


def test_iterations_are_counted_down_and_who_is_done_leaves() -> None:
    worker = FakeWorker(EDF(), limit=2)
    tasks = [worker.arrive(iterations, slo=slo) for iterations, slo in ((3, 5.0), (1, 4.0), (1, 3.0))]
    assert worker.decide(now=0.0) == [2, 1]
    assert worker.batch is not None
    assert (worker.batch.size, worker.batch.whole) == (2, False)
    assert [t.id for t in worker.view.waiting] == [0]
    worker.end(now=0.03)
    assert [t.left for t in tasks] == [3, 0, 0]
    assert worker.decide(now=0.03) == [0]
    assert tasks[2].finished == 0.03
    assert worker.dropped == []


def test_whole_batches_end_at_once() -> None:
    worker = FakeWorker(FCFS(), limit=2)
    tasks = [worker.arrive(iterations) for iterations in (50, 20, 10)]
    assert worker.decide(now=0.0) == [0, 1]
    worker.end(now=1.5)
    assert [t.left for t in tasks] == [0, 0, 10]
    assert worker.decide(now=1.5) == [2]


def test_the_clock_is_the_tests() -> None:
    worker = FakeWorker(FCFS())
    task = worker.arrive(at=2.0, slo=3.0)
    assert (task.arrival, task.deadline) == (2.0, 5.0)
    with pytest.raises(BadInput, match="in the past"):
        worker.decide(now=1.0)
    assert worker.decide(now=2.5) == [0]
    assert task.started == 2.5
    with pytest.raises(BadInput, match="in flight"):
        worker.decide(now=2.6)
    with pytest.raises(BadInput, match="in the past"):
        worker.end(now=2.0)
    worker.end(now=3.0)
    with pytest.raises(BadInput, match="nothing is in flight"):
        worker.end(now=3.0)


def test_a_policy_is_asked_once_at_a_time() -> None:
    policy = Scripted(lambda view, now: Decision(idle_until=now + 1.0))
    worker = FakeWorker(policy)
    worker.arrive()
    assert worker.decide(now=0.0) == []
    assert worker.idle_until == 1.0
    assert worker.decide(now=1.0) == []
    assert (policy.asked, worker.idle_until) == ([0.0, 1.0], 2.0)


def test_seconds_are_what_the_policy_is_told() -> None:
    for given, expected in (
        (0.03, [0.03] * 3),
        ([0.03, 0.04], [0.03, 0.04, 0.04]),
        (lambda n: 0.01 * n, [0.01, 0.02, 0.03]),
    ):
        view = FakeWorker(FCFS(), given).view
        assert [view.estimate(view.stage.loop, n) for n in (1, 2, 3)] == pytest.approx(expected)
    worker = FakeWorker(FCFS(), 0.1, then={"vae": 0.5}, slo_factor=2.0)
    assert worker.view.solo(worker.arrive(iterations=10)) == pytest.approx(1.5)
    assert worker.view.slo_factor == 2.0
    with pytest.raises(BadInput, match="no seconds"):
        FakeWorker(FCFS(), [])
    with pytest.raises(BadInput, match="own module"):
        FakeWorker(FCFS(), then={"model": 0.1})


def test_what_is_handed_on_is_gone() -> None:
    worker = FakeWorker(FCFS(), then={"vae": 0.5})
    task = worker.arrive(iterations=1)
    worker.decide(now=0.0)
    worker.end(now=0.1)
    assert task.finished == 0.1
    assert worker.decide(now=0.1) == []


def test_refused_and_given_up_requests_are_told_of() -> None:
    class Picky(Policy):
        def admit(self, task, view, now):
            return task.id > 0

        def decide(self, view, now):
            return Decision(drop=[t for t in view.waiting if t.deadline < 1.0])

    worker = FakeWorker(Picky())
    for slo in (9.0, 9.0, 0.5):
        worker.arrive(slo=slo)
    assert worker.decide(now=0.0) == []
    assert worker.dropped == [0, 2]


def test_who_decides_ahead_is_asked_while_a_batch_runs() -> None:
    worker = FakeWorker(Clockwork(), seconds=[1.0, 1.5], limit=1)
    for _ in range(2):
        worker.arrive(iterations=1, slo=9.0)
    assert worker.decide(now=0.0) == [0]
    worker.decide(now=0.5)
    queued = [task.id for batch in worker.view.backlog for task in batch.tasks]
    worker.end(now=1.0)
    started = [task.id for task in worker.batch.tasks] if worker.batch else worker.decide(now=1.0)
    assert queued in ([], [1])
    assert started == [1]


def test_what_a_policy_must_not_do_is_refused_as_in_a_run() -> None:
    worker = FakeWorker(Scripted(lambda view, now: Decision(list(view.waiting))), limit=2)
    for _ in range(3):
        worker.arrive()
    with pytest.raises(InvariantBroken, match="over the limit of 2"):
        worker.decide(now=0.0)
    worker = FakeWorker(Scripted(lambda view, now: Decision(idle_until=now)))
    worker.arrive()
    with pytest.raises(InvariantBroken, match="not in the future"):
        worker.decide(now=0.0)


# -- engines --------------------------------------------------------------------------------------------------


def test_prompts_are_computed_and_tokens_come_out() -> None:
    engine = FakeEngine(VLLM(), blocks=100)
    short, long = engine.arrive(100, output=2), engine.arrive(200, output=3)
    assert engine.decide(now=0.0) == EngineStep([(0, 100), (1, 200)], [], [])
    with pytest.raises(BadInput, match="in flight"):
        engine.decide(now=0.1)
    engine.end(now=0.3)
    assert (short.generated, long.generated, engine.view.decoding) == (1, 1, 2)
    assert engine.view.last_step == pytest.approx(0.3)
    assert engine.decide(now=0.3) == EngineStep([], [0, 1], [])
    engine.end(now=0.35)
    assert short.finished == 0.35
    assert engine.decide(now=0.35) == EngineStep([], [1], [])
    engine.end(now=0.4)
    assert engine.decide(now=0.4) is None
    assert engine.view.free_blocks == 100


def test_memory_is_the_engines() -> None:
    engine = FakeEngine(VLLM(), blocks=8, block_size=16)
    engine.arrive(64, output=40)
    engine.arrive(48, output=40)
    assert engine.decide(now=0.0) == EngineStep([(0, 64), (1, 48)], [], [])
    steps, now = [], 0.0
    while not any(step.preempted for step in steps):
        engine.end(now := now + 0.05)
        steps.append(engine.decide(now))
    assert steps[-1] == EngineStep([], [0], [1])
    assert [t.id for t in engine.view.waiting] == [1]


def test_deadlines_of_tokens_are_multiples_of_the_estimates() -> None:
    engine = FakeEngine(NeuStreamLLM(), prefill=0.001, decode=0.05, slo=(3.0, 1.5))
    task = engine.arrive(100, at=1.0)
    assert engine.view.slo.deadline(task, 1) == pytest.approx(1.3)
    assert engine.view.slo.deadline(task, 3) == pytest.approx(1.3 + 2 * 0.075)
    assert engine.decide(now=1.0) == EngineStep([(0, 100)], [], [])
    given_up = FakeEngine(ScriptedEngine(lambda view, now: Step(drop=list(view.waiting))))
    given_up.arrive(100)
    assert given_up.decide(now=0.0) is None
    assert given_up.dropped == [0]


def test_an_engine_refuses_what_a_run_refuses() -> None:
    engine = FakeEngine(ScriptedEngine(lambda view, now: Step(decode=list(view.waiting))))
    engine.arrive(100)
    with pytest.raises(InvariantBroken, match="not decoding"):
        engine.decide(now=0.0)
    idle = FakeEngine(ScriptedEngine(lambda view, now: Step(idle_until=now + 1.0)))
    idle.arrive(10)
    assert idle.decide(now=0.0) is None
    assert idle.idle_until == 1.0
    some = FakeEngine(ScriptedEngine(lambda view, now: Step([(t, t.pending) for t in view.waiting], ALL)))
    some.arrive(10)
    some.decide(now=0.0)
    some.end(now=0.1)
    some.arrive(20)
    assert some.decide(now=0.1) == EngineStep([(1, 20)], [0], [])
    with pytest.raises(BadInput, match="max_sequences"):
        FakeEngine(VLLM(), max_sequences=0)


# -- requests that are there to begin with --------------------------------------------------------------------


def test_a_worker_begins_with_requests_that_run_and_wait() -> None:
    worker = FakeWorker(EDF(), running=[(50, 30)], waiting=[Job(50, at=-2.0, slo=9.0), 20], limit=2)
    assert [(t.id, t.iterations, t.left) for t in worker.view.running] == [(0, 50, 30)]
    assert worker.decide(now=0.0) == [1, 0]
    assert [(t.id, t.arrival, t.deadline) for t in worker.view.running if t.id == 1] == [(1, -2.0, 7.0)]
    worker.end(now=0.03)
    assert [t.left for t in worker.view.running] == [29, 49]
    assert worker.arrive(iterations=1, slo=1.0).id == 3


def test_an_engine_begins_with_requests_that_run_and_wait() -> None:
    chunked = Prompt(300, computed=128)
    engine = FakeEngine(VLLM(), running=[(200, 3), chunked], waiting=[100], blocks=40, block_size=16)
    assert [(t.id, t.generated, t.computed) for t in engine.view.running] == [(0, 3, 202), (1, 0, 128)]
    assert engine.view.free_blocks == 40 - 13 - 8
    assert (engine.view.decoding, engine.view.context) == (1, 202)
    assert engine.decide(now=0.0) == EngineStep([(2, 100)], [], [])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"running": [50]}, "has not begun"),
        ({"running": [(50, 60)]}, "left is 60"),
        ({"waiting": [Job(5, at=1.0)]}, "0 or earlier"),
        ({"waiting": ["50"]}, "is no request"),
        ({"waiting": [(1, 2, 3)]}, "is no request"),
    ],
)
def test_what_makes_no_sense_is_refused(given, what) -> None:
    with pytest.raises(BadInput, match=what):
        FakeWorker(EDF(), **given)


def test_nor_does_an_engine_take_it() -> None:
    with pytest.raises(BadInput, match="do not fit into the memory"):
        FakeEngine(VLLM(), running=[(200, 3)], blocks=5)
    with pytest.raises(BadInput, match="has not begun"):
        FakeEngine(VLLM(), running=[200])
    with pytest.raises(BadInput, match="no limit 'max_tokens'"):
        FakeEngine(VLLM(), max_tokens=5)


def test_views_alone() -> None:
    view = worker_view(waiting=[50, 20], running=[(50, 30)], seconds=[0.1, 0.2], limit=3)
    assert FCFS().decide(view, 0.0).run == [*view.waiting]
    assert [view.estimate("model", n) for n in (1, 2, 3)] == [0.1, 0.2, 0.2]
    with pytest.raises(AttributeError):
        view.limit = 9
    tokens = engine_view(waiting=[100], running=[(200, 3)], prefill=lambda n, _: n / 1000, blocks=100)
    step = VLLM().decide(tokens, 0.0)
    assert [(task.id, n) for task, n in step.prefill] == [(1, 100)]
    assert tokens.estimate_prefill(500) == 0.5
