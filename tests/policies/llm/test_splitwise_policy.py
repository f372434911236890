"""Splitwise's scheduler of a machine (ISCA'24, section 4.2), step by step."""

from __future__ import annotations

from servetwin.core.testing import FakeEngine
from servetwin.policies.llm.splitwise import Splitwise


def test_prompts_join_whole_and_in_order_up_to_so_many_tokens_beside_those_that_decode() -> None:
    engine = FakeEngine(Splitwise(), blocks=2000, max_batched_tokens=8192)
    engine.arrive(100, output=9)
    engine.decide(0.0)
    engine.end(0.1)
    for prompt in (1000, 1048, 1, 500):
        engine.arrive(prompt, output=2)
    step = engine.decide(0.1)
    assert step is not None
    assert (step.prefill, step.decode) == ([(1, 1000), (2, 1048)], [0])  # 2,048: the next would be one too many
    engine.end(0.2)
    step = engine.decide(0.2)
    assert step is not None
    assert (step.prefill, step.decode) == ([(3, 1), (4, 500)], [0, 1, 2])


def test_a_longer_prompt_is_not_cut_and_has_no_other_beside_it() -> None:
    engine = FakeEngine(Splitwise(), blocks=2000, max_batched_tokens=8192)
    for prompt in (10, 5000, 20):
        engine.arrive(prompt, output=1)
    steps = []
    for now in (0.0, 0.1, 0.2):
        step = engine.decide(now)
        assert step is not None
        steps.append(step.prefill)
        engine.end(now + 0.1)
    assert steps == [[(0, 10)], [(1, 5000)], [(2, 20)]]


def test_a_prompt_longer_than_a_step_of_the_engine_is_dropped() -> None:
    engine = FakeEngine(Splitwise(), blocks=2000, max_batched_tokens=4096)
    engine.arrive(5000, output=1)
    engine.arrive(20, output=1)
    step = engine.decide(0.0)
    assert step is not None
    assert (step.prefill, engine.dropped) == ([(1, 20)], [0])
