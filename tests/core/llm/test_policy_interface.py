"""The interface of LLM policies: what a policy reads, and deadlines of tokens by their closed form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput, Module, Pipeline
from servetwin.core.llm import (
    ALL,
    CumulativeSLO,
    EngineLimits,
    Step,
    Ticks,
    TokenRequest,
    TokenTask,
    TokenView,
    queue_order,
)

(STAGE,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])


def task(id: int = 0, prompt: int = 100, limit: int = 50, *, arrival: float = 0.0) -> TokenTask:  # noqa: A002
    return TokenTask(TokenRequest(id, arrival, {"llm": (prompt, limit)}), STAGE, arrival, None, prompt, limit)


def view(blocks: int = 100, **limits) -> TokenView:
    return TokenView(
        STAGE,
        EngineLimits(blocks, **limits),
        estimate_prefill=lambda tokens, squares: tokens / 1000,
        estimate_decode=lambda batch, context: 0.01 + context / 1e6,
    )


def test_a_task_from_prompt_to_decoding():
    t = task(prompt=100)
    assert (t.pending, t.decoding) == (100, False)
    t.computed = 60  # a chunk
    assert (t.pending, t.decoding) == (40, False)
    t.computed, t.generated = 100, 1
    assert (t.pending, t.decoding) == (1, True)
    t.computed = 0  # preempted: all is computed anew, the token that came out included
    assert (t.pending, t.decoding, t.left) == (101, False, 49)


def test_the_last_token_of_a_prompt_is_no_decode():
    t = task(prompt=100)
    t.computed = 99
    assert (t.pending, t.decoding) == (1, False)


def test_tasks_that_decode_together_are_counted_together():
    ticks, t = Ticks(), task(prompt=100)
    t.computed, t.generated = 100, 1
    t.base_generated -= ticks.count
    t.ticks = ticks
    ticks.count += 7
    assert (t.generated, t.computed, t.pending, t.decoding) == (8, 107, 1, True)
    t.computed = 0
    assert (t.generated, t.computed, t.pending, t.decoding) == (8, 0, 108, False)


def test_the_engine_admits_until_something_runs_out():
    def admitted(lengths: list[int], decode: int = 0, **limits) -> int:
        chunks = [(task(prompt=n), n) for n in lengths]
        return len(view(**limits).admissible(chunks, decode=decode))

    assert admitted([100, 100, 100], max_batched_tokens=250) == 2
    assert admitted([100, 100, 50], max_batched_tokens=250) == 3
    assert admitted([100, 100, 50], max_batched_tokens=250, decode=1) == 2
    assert admitted([100, 300, 50], max_batched_tokens=250) == 1  # those after it wait too
    assert admitted([16, 16, 16], max_sequences=2) == 2
    assert admitted([32, 17, 16], blocks=5) == 3
    assert admitted([32, 17, 17], blocks=5) == 2
    assert admitted([32, 17, 16], blocks=5, watermark=0.2) == 2


def test_a_view_estimates_what_a_task_wants():
    t = task(prompt=100, limit=10)
    assert view().estimate_prefill(300) == 0.3
    assert view().solo(t) == pytest.approx(0.1 + 10 * (0.01 + 105e-6))


def test_the_policys_own_order_of_the_queue():
    a, b, c, d = (task(i) for i in range(4))
    v = view()
    v.waiting.update(dict.fromkeys([d, a, b, c]))
    d.preemptions = 1
    assert queue_order(v, [b, a]) == [d, b, a, c]
    del v.waiting[b]
    assert queue_order(v, [d, b, a, c]) == [d, a, c]


def test_limits_say_what_is_wrong():
    with pytest.raises(BadInput, match="blocks is 0"):
        EngineLimits(0)
    with pytest.raises(BadInput, match=r"watermark is 1\.5"):
        EngineLimits(10, watermark=1.5)
    with pytest.raises(BadInput, match="preemption is 'forget'"):
        EngineLimits(10, preemption="forget")  # type: ignore[arg-type]


def test_a_step_reads_well():
    assert repr(Step([(task(3), 20)], ALL)) == "<Step prefill=[(3, 20)] decode=ALL preempt=[] drop=[]>"


times = st.floats(1e-3, 3.0)


@given(st.integers(1, 4000), st.integers(1, 400), times, times, times, st.floats(0, 1e-5))
def test_a_token_is_due_when_all_before_it_have_had_their_time(prompt, token, p, d, d0, d1):
    slo = CumulativeSLO(p, d, d0, d1, lambda n: n / 4096)
    t = task(prompt=prompt, limit=500, arrival=2.0)
    t.budget = 0.5
    due = 2.0 + 0.5 + p * prompt / 4096
    for step in range(1, token):
        due += d * (d0 + d1 * (prompt + step))
    assert slo.deadline(t, token) == pytest.approx(due)
