"""Scenarios are served as runs are, and a schedule is drawn where an expectation fails."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput, Decision, InvariantBroken, Module, Pipeline, Policy
from servetwin.core.errors import PolicyFault
from servetwin.core.llm import TokenPolicy
from servetwin.core.testing import Job, Prompt, System, play
from servetwin.policies.diffusion.clockwork import Clockwork
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.vllm import VLLM


def test_times_are_those_of_the_table() -> None:
    played = play(FCFS, [Job(3), Job(2), Job(1, at=0.1)], seconds=[0.1, 0.15], limit=2)
    assert [(bar.start, bar.end, bar.run) for bar in played.bars] == [
        (0.0, pytest.approx(0.45), (0, 1)),
        (pytest.approx(0.45), pytest.approx(0.55), (2,)),
    ]
    assert [end.at for _, end in sorted(played.ends.items())] == pytest.approx([0.45, 0.45, 0.55])


def test_what_comes_at_one_instant_is_there_together() -> None:
    played = play(EDF, [Job(1, slo=9.0), Job(1, slo=5.0)], seconds=0.1, limit=1)
    assert played.batches == [[1], [0]]


def test_modules_that_follow_count_for_the_deadline() -> None:
    late = play(EDF(drop_late=False), [Job(2, slo=0.24)], seconds=0.1, then={"vae": 0.05})
    assert (late.outcomes, late.met) == (["late"], 0)
    assert late.ends[0].at == pytest.approx(0.25)


def test_an_engine_computes_prompts_and_puts_out_tokens() -> None:
    played = play(VLLM, [Prompt(100, output=3), Prompt(50, output=2)], prefill=0.001, decode=0.05)
    assert [(bar.prefill, bar.decode) for bar in played.bars] == [
        (((0, 100), (1, 50)), ()),
        ((), (0, 1)),
        ((), (0,)),
    ]
    assert played.ends[0].at == pytest.approx(0.15 + 0.05 + 0.05)


def test_who_decides_ahead_is_asked_ahead() -> None:
    played = play(Clockwork(), [Job(2, slo=9.0), Job(2, slo=9.0), Job(3, slo=9.0)], seconds=0.1, limit=2)
    assert sorted(number for batch in played.batches for number in batch) == [0, 1, 2]
    assert played.bars[-1].start == pytest.approx(played.bars[-2].end)


def test_a_pipeline_in_which_each_module_has_a_worker() -> None:
    fork = Pipeline(
        [Module("model", loop=True), Module("a"), Module("b", loop=True)], [("model", "a"), ("model", "b")]
    )
    system = System(fork, {"model": 0.1, "a": 1.0, "b": 0.5}, {"model": 2})
    played = play(FCFS, [Job(2), Job(1)], system=system)
    assert {bar.worker for bar in played.bars} == {"model", "a", "b"}
    assert played.outcomes == ["met", "met"]
    with pytest.raises(BadInput, match="one object serves one worker"):
        play(FCFS(), [Job(2)], system=system)
    with pytest.raises(BadInput, match="module 'b' has no seconds"):
        play(FCFS, [Job(2)], system=System(fork, {"model": 0.1, "a": 1.0}))


def test_an_expectation_that_fails_draws_the_schedule() -> None:
    played = play(EDF, [Job(4, slo=0.9), Job(4, slo=0.9), Job(1, at=0.1, slo=0.15)], seconds=0.1, limit=2)
    with pytest.raises(AssertionError) as failed:
        played.expect([0, 1], ..., [0, 1], [0, 1])
    told = str(failed.value)
    assert told.startswith("expected batches [0, 1] ... [0, 1] [0, 1]\n   but there were [0, 1]")
    lines = {line.split()[0]: line for line in told.splitlines() if line.strip()[:1].isdigit()}
    assert lines["0"].endswith("met")
    assert "-" in lines["0"] or "-" in lines["1"]
    assert "#" in lines["2"]
    played.expect([0, 1], ..., [2, 0] if [2, 0] in played.batches else [2, 1], ...)


def test_dropped_late_and_preempted_are_drawn() -> None:
    class Picky(Policy):
        def decide(self, view, now):
            return Decision(list(view.running) or list(view.waiting)[:1], drop=[t for t in view.waiting if t.id == 1])

    told = str(play(Picky, [Job(3, slo=0.15), Job(1)], seconds=0.1))
    first, second = told.splitlines()[1:3]
    assert "|" in first
    assert first.endswith("late")
    assert "x" in second
    assert second.endswith("dropped")
    little = play(VLLM, [Prompt(64, output=20), Prompt(64, output=20)], blocks=9)
    assert "!" in str(little)
    assert any(bar.preempted for bar in little.bars)


def test_a_long_list_is_cut_to_what_went_wrong() -> None:
    given = [Job(1, at=0.1 * i, slo=0.05 if i == 50 else 9.0) for i in range(60)]
    lines = str(play(EDF(drop_late=False), given, seconds=0.1)).splitlines()
    assert len(lines) < 30
    assert any(line.split()[:1] == ["50"] and line.endswith("late") for line in lines)
    assert "36 more, met" in lines[-2]


def test_a_scenario_is_held_to_the_laws() -> None:
    class Greedy(Policy):
        def decide(self, view, now):
            return Decision([*view.running, *view.waiting])

    class Idle(TokenPolicy):
        def decide(self, view, now):
            from servetwin.core.llm import Step

            return Step()

    class Writer(Policy):
        def decide(self, view, now):
            for task in view.running:
                task.left = 1
            return Decision([*view.running, *view.waiting][:1])

    with pytest.raises(InvariantBroken, match="limit"):
        play(Greedy, [1, 1, 1], limit=2)
    with pytest.raises(PolicyFault, match="1 requests never ended"):
        play(Idle, [100])
    with pytest.raises(PolicyFault, match="left of task"):
        play(Writer, [5])
    with pytest.raises(BadInput, match="is no policy"):
        play(dict, [1])
