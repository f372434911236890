"""Shortest first by predicted output, with and without preemption."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput
from servetwin.core.llm import TokenPolicy
from servetwin.core.testing import FakeEngine, Prompt
from servetwin.policies.llm.sjf import SJF
from servetwin.policies.llm.srpt_llm import SRPTLLM

import servetwin


def arrive(engine: FakeEngine, prompt: int, predicted: int, output: int = 50) -> None:
    engine.arrive(prompt, output=output).predicted = predicted


def steps(engine: FakeEngine, count: int, now: float = 0.0) -> list[tuple[list[int], list[int], list[int]]]:
    """Who is prefilled, who decodes and who loses its memory in each step."""
    found = []
    for _ in range(count):
        step = engine.decide(now)
        assert step is not None
        found.append(([who for who, _ in step.prefill], step.decode, step.preempted))
        now = round(now + 0.1, 6)
        engine.end(now)
    return found


@pytest.mark.parametrize("policy", [SJF, SRPTLLM])
def test_the_shortest_by_what_is_predicted_not_by_what_comes(policy: type[SJF] | type[SRPTLLM]) -> None:
    engine = FakeEngine(policy(), max_sequences=1)
    arrive(engine, 10, predicted=90, output=1)
    arrive(engine, 10, predicted=20, output=3)
    arrive(engine, 99, predicted=30, output=1)
    assert [s[0] for s in steps(engine, 5)] == [[1], [], [], [2], [0]]


@pytest.mark.parametrize(("policy", "name"), [(SJF(), "sjf"), (SRPTLLM(), "srpt-llm")])
def test_a_request_without_a_prediction_is_refused_in_one_line(policy: TokenPolicy, name: str) -> None:
    engine = FakeEngine(policy)
    engine.arrive(10)
    with pytest.raises(BadInput, match=f"{name} needs predicted output lengths, and request 0 has none"):
        engine.decide(0.0)


def test_sjf_interrupts_nobody_and_srpt_does() -> None:
    found = {}
    for policy in (SJF(), SRPTLLM()):
        engine = FakeEngine(policy, max_sequences=1)
        arrive(engine, 10, predicted=50)
        steps(engine, 3)
        arrive(engine, 10, predicted=5)
        found[type(policy)] = steps(engine, 1, now=0.3)[0]
    assert found == {SJF: ([], [0], []), SRPTLLM: ([1], [], [0])}


@pytest.mark.parametrize(("firm", "interrupted"), [(0.8, True), (0.06, False), (0.0, False)])
def test_who_has_put_out_most_of_what_is_predicted_keeps_its_place(firm: float, interrupted: bool) -> None:
    engine = FakeEngine(SRPTLLM(firm=firm), max_sequences=1)
    arrive(engine, 10, predicted=50)
    steps(engine, 3)  # 3 of 50
    arrive(engine, 10, predicted=5)
    assert steps(engine, 1, now=0.3)[0] == (([1], [], [0]) if interrupted else ([], [0], []))


def test_a_shorter_one_does_not_interrupt_one_of_which_less_remains() -> None:
    engine = FakeEngine(SRPTLLM(firm=1.0), max_sequences=1)
    arrive(engine, 10, predicted=12)
    steps(engine, 8)  # 4 remain
    arrive(engine, 10, predicted=5)
    assert steps(engine, 1, now=0.8)[0] == ([], [0], [])


def test_memory_of_the_longest_is_taken_and_only_as_much_as_is_needed() -> None:
    engine = FakeEngine(SRPTLLM(), blocks=9)
    for predicted in (40, 60, 50):
        arrive(engine, 40, predicted=predicted)  # 3 blocks each
    steps(engine, 2)
    arrive(engine, 40, predicted=10)
    assert steps(engine, 1, now=0.2)[0] == ([3], [0, 2], [1])


def test_those_that_run_go_on_where_one_before_them_does_not_fit() -> None:
    # All that could be taken from 1, which is behind it, would not be enough for 2.
    engine = FakeEngine(SRPTLLM(), blocks=12)
    arrive(engine, 100, predicted=10)  # 7 blocks
    arrive(engine, 30, predicted=60)  # 2 blocks
    steps(engine, 1)
    arrive(engine, 120, predicted=20)  # 8 blocks
    assert steps(engine, 1, now=0.1)[0] == ([], [0, 1], [])


def test_what_no_step_can_hold_is_dropped() -> None:
    for policy in (SJF(), SRPTLLM()):
        engine = FakeEngine(policy, max_batched_tokens=100)
        arrive(engine, 101, predicted=1)
        arrive(engine, 100, predicted=2)
        assert steps(engine, 1)[0][0] == [1]
        assert engine.dropped == [0]


@pytest.mark.parametrize(
    ("tokens", "prefilled", "preempted"), [(120, [1, 2], [0]), (119, [1], []), (100, [1], [])], ids=str
)
def test_nobody_loses_its_memory_for_one_whose_prompt_the_step_has_no_tokens_for(
    tokens: int, prefilled: list[int], preempted: list[int]
) -> None:
    """Two short ones of 60 tokens before a long one that runs: the second needs its memory, and 120 tokens a step."""
    long, short = Prompt(100, generated=3, predicted=200), [Prompt(60, predicted=5), Prompt(60, predicted=6)]
    engine = FakeEngine(SRPTLLM(), running=[long], waiting=short, blocks=13, max_batched_tokens=tokens, watermark=0.0)
    assert steps(engine, 1) == [(prefilled, [] if preempted else [0], preempted)]


def mean_latency(policy: str, **predict: object) -> float:
    """Of 200 requests of 10 to 600 tokens each, more than an engine of 16 at once can serve."""
    lengths = {
        "prompt": {"draw": "listed", "name": "neustream-llm-prompts"},
        "output": {"draw": "uniform", "low": 10, "high": 600},
        "predict": predict,
    }
    settings = {"workload.draws": "seeded", "deployment.workers.0.limit": 16, "workload.lengths.llm": lengths}
    run = servetwin.run("opt-13b-a6000", policy=policy, rate=1.2, requests=200, settings=settings)
    latencies = [row["latency"] for row in run.requests.to_dicts()]
    return sum(latencies) / len(latencies)


def test_shortest_first_has_a_lower_mean_the_more_so_the_better_the_prediction() -> None:
    first_come = mean_latency("vllm", model="exact")
    shortest = mean_latency("sjf", model="exact")
    remaining = mean_latency("srpt-llm", model="exact")
    guessed = mean_latency("srpt-llm", model="noisy", sigma=1.0)
    assert remaining < shortest < first_come
    assert remaining < guessed < first_come
