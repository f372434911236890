"""LLM engines that decide ahead (asynchronous scheduling): small cases by hand, and the invariants."""

from __future__ import annotations

import math

import pytest
from engines import Anything, Linear, Told, requests, serve, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.core.llm import ALL, EngineLimits, Step, TokenView
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.profiles.llm.recent_load import Curves, RecentLoad
from servetwin.sim.time.noise import Stalls
from test_engine_invariants import SLO, rows, workloads

#: A prefill takes 1 s, a decode step 10 s.
EVEN = Linear(c0=1.0, c1=0.0, d0=10.0, d1=0.0)


def ahead(
    between: float = 0.0, intake: float = 0.0, begins: float = 0.0, launch: float = 0.0, told: float | None = None
) -> Host:
    return Host(lambda _: between, intake, ahead=True, begins=begins, launch=launch, told=told, graph_tokens=6)


POLICIES = {
    "anything": None,
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "sarathi": lambda: Sarathi(32),
    "edf-llm": EDFLLM,
    "neustream-llm": NeuStreamLLM,
}

engines = st.fixed_dictionaries(
    {
        "blocks": st.integers(8, 40),
        "max_sequences": st.sampled_from([1, 3, 8, 64]),
        "headroom": st.sampled_from([0, 1]),
        "watermark": st.sampled_from([0.0, 0.1]),
        "stamp": st.sampled_from(["sent", "seen"]),
        "whole_prompt": st.booleans(),
        "keep_freed": st.booleans(),
    }
)
hosts = st.builds(
    ahead,
    st.sampled_from([0.0, 0.001, 0.3]),
    st.sampled_from([0.0, 0.002]),
    st.sampled_from([0.0, 0.005, 0.2]),
    st.sampled_from([0.0, 0.25, 2.0]),
    st.sampled_from([None, 0.001, 0.1]),
)


@pytest.mark.parametrize("name", POLICIES)
@given(workloads, engines, hosts, st.integers(0, 10**6), st.none() | st.sampled_from([0.35, 2.0, 6.0]))
@settings(max_examples=60)
def test_the_invariants_whatever_a_policy_does(name, workload, engine, host, seed, stop_at):
    def run():
        policy = POLICIES[name]() if POLICIES[name] else Anything(seed, repeats=False)
        return serve(
            policy, requests(*rows(workload), limit=50), slo=SLO, stop_at=stop_at, max_batched_tokens=100, host=host,
            **engine,
        )  # fmt: skip

    served = run()
    assert len(served.log.ends) == len(workload)
    starts = [step[0] for step in served.log.steps]
    assert starts == sorted(starts)
    again = run()
    assert (served.log.steps, served.log.records) == (again.log.steps, again.log.records)


# -- small cases, by hand ---------------------------------------------------------------------------------------


def test_who_comes_during_a_step_is_served_in_the_one_after_the_next():
    # 0 is prefilled from 0 to 1. Its decode step to 11 is decided at 0, the next to 21 at 1, the one after at 11:
    # that is the first to know of who came at 2.
    served = serve(VLLM(), requests((0.0, 4, 5), (2.0, 4, 2)), times=EVEN, host=ahead())
    steps = [(1.0, [(0, 4)], 0), (11.0, [], 1), (21.0, [], 1), (22.0, [(1, 4)], 0), (32.0, [], 2), (42.0, [], 1)]
    assert served.log.steps == steps
    assert served.log.tokens == {0: [[1.0, 11.0, 21.0, 32.0, 42.0]], 1: [[22.0, 32.0]]}


def test_where_launches_are_long_the_host_hears_of_what_ends_between_steps_after_the_next_launch():
    # The prompt is launched at 4, when it is over; the host decides a decode step, has launched it at 5, and hears
    # of the prompt then. It hands on until 17; the decode step ended at 15, and is heard of when the next is
    # launched.
    host = Host(lambda _: 12.0, 0.0, ahead=True, begins=1.0, launch=9.0, pieces=4.0, graph_tokens=6)
    served = serve(VLLM(), requests((0.0, 4, 3)), times=EVEN, host=host)
    assert served.log.tokens == {0: [[5.0, 18.0, 30.0]]}


def test_processes_that_launch_leave_the_host_to_hear_of_ends():
    """The host has told them of a step 0.5 s after it was asked for; they can let it begin 0.5 s later, and have
    launched a prompt 3.5 s later. A prefill and a decode step take 1 s."""
    fast = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)
    costs = {"ahead": True, "begins": 1.0, "pieces": 4.0, "graph_tokens": 6}
    served = serve(VLLM(), requests((0.0, 4, 4)), times=fast, host=Host(lambda _: 0.0, 0.0, told=0.5, **costs))
    # The prompt is launched at 4, when it is over. The host has told of the decode step at 1, which they begin with
    # at 4, so that it runs from 4.5 to 5.5. Of the prompt the host hears at once, and tells of the next step, which
    # they have launched at 5, before the device is ready for it.
    assert served.log.tokens == {0: [[4.0, 5.5, 6.5, 7.5]]}
    own = serve(VLLM(), requests((0.0, 4, 4)), times=fast, host=Host(lambda _: 0.0, 0.0, **costs))
    # A host that launches itself decides the second step at 4 and hears of the prompt at 5, when that is launched.
    assert own.log.tokens == {0: [[5.0, 6.0, 7.0, 8.0]]}


def test_what_the_host_does_is_hidden_behind_the_device():
    """Deciding and launching takes 0.5 s, handing outputs on 0.25, taking a request in 0.125."""
    host = ahead(between=0.25, intake=0.125, begins=0.5)
    served = serve(VLLM(), requests((0.0, 4, 4), (1.25, 4, 1)), times=EVEN, host=host)
    # Taken in at 0.125; the prefill begins at 0.625, when the host decides the step behind it. That begins when the
    # prefill is over at 1.625. The host is at leisure by then; at 1.875 it has handed on, at 2 it has taken 1 in, and
    # decides its prefill, which waits for the device until 11.625. At 11.875 it decides the next step, and so on.
    assert served.log.steps == [
        (1.625, [(0, 4)], 0),
        (11.625, [], 1),
        (12.625, [(1, 4)], 0),
        (22.625, [], 1),
        (32.625, [], 1),
    ]
    assert served.log.tokens == {0: [[1.625, 11.625, 22.625, 32.625]], 1: [[12.625]]}


def test_a_host_that_is_slower_than_the_device_sets_the_pace():
    # Asked at 0, 2 and then 2.5 s after each other: between is 0.5, deciding and launching 2, a step 1.
    fast = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)
    served = serve(VLLM(), requests((0.0, 4, 5)), times=fast, host=ahead(between=0.5, begins=2.0))
    ends = [end for end, _, _ in served.log.steps]
    # The first is asked for at 0 and runs from 2 to 3, the second is asked for at 2 and runs from 4 to 5. The host
    # has the tokens of the first at 4, when it is done with the second; the third is asked for at 4.5, and launched
    # at 6.5, when the tokens of the second are seen. Behind the last nothing is launched.
    assert ends == [4.0, 6.5, 9.0, 11.5, 12.5]


def test_a_step_that_is_launched_kernel_by_kernel_keeps_the_tokens_before_it_back():
    """Steps of more than 4 tokens keep the host busy for 15 s, others for none; decoding takes 10 s, a prefill 1."""
    host = Host(lambda sequences: 0.0, 0.0, ahead=True, launch=15.0, graph_tokens=4)
    served = serve(VLLM(), requests((0.0, 4, 4), (0.5, 6, 1)), times=EVEN, host=host)
    # The prefill of 1 is decided at 1, while the first decode step runs until 11; but it is launched at 16 only, and
    # until then the host does not hear of that step. The device is done with the prefill when the last kernel is.
    assert served.log.steps == [(1.0, [(0, 4)], 0), (16.0, [], 1), (16.0, [(1, 6)], 0), (26.0, [], 1), (36.0, [], 1)]
    assert served.log.tokens == {0: [[1.0, 16.0, 26.0, 36.0]], 1: [[16.0]]}


def test_a_host_that_stands_still_is_seen_beyond_the_step_that_runs():
    """It does so every 30 s from 12 on, for 25 s the first time, then for 4."""
    lengths = iter([25.0, 4.0, 4.0])
    stalls = Stalls(lambda: 30.0, lambda: next(lengths))
    stalls.due = 12.0
    served = serve(VLLM(), requests((0.0, 4, 8)), times=EVEN, host=ahead(), stalls=stalls)
    # The step that is decided at 21 is launched at 46, while the one before it was over at 31: its tokens are late by
    # 15. At 46 the next stall is due, but of what came while the host stood still nothing is seen. That of 72, when
    # the step behind is decided at 76, is over before the one that runs.
    ends = [end for end, _, _ in served.log.steps]
    assert ends == [1.0, 11.0, 21.0, 46.0, 56.0, 66.0, 76.0, 86.0]


def test_a_host_may_stand_still_more_often_where_the_batch_changes():
    """It would every 4 s or so, but only for a step that computes prompts, or that lacks somebody."""
    stalls = Stalls(lambda: 1e9, lambda: 25.0, lambda: 4.0)
    # 1 comes while 0 decodes, and ends with its first token. Its prefill is launched 25 s late, and only then the
    # host hears of the decode step before. The decode step behind it is of 0 alone, as those before were.
    served = serve(VLLM(), requests((0.0, 4, 6), (15.0, 4, 1)), times=EVEN, host=ahead(), stalls=stalls)
    plain = serve(VLLM(), requests((0.0, 4, 6), (15.0, 4, 1)), times=EVEN, host=ahead())
    late = [a - b for (a, _, _), (b, _, _) in zip(served.log.steps, plain.log.steps, strict=True)]
    assert [i for i, (_, prompts, _) in enumerate(plain.log.steps) if prompts] == [0, 4]
    assert late == [0.0, 0.0, 0.0, 15.0, 15.0, 15.0, 15.0]


def test_an_idle_host_may_stand_still():
    stalls = Stalls(lambda: 10.0, lambda: 5.0)
    plain, with_stalls = (
        serve(VLLM(), requests((0.0, 4, 1), (35.0, 4, 1)), times=EVEN, host=ahead(), stalls=s) for s in (None, stalls)
    )
    assert plain.log.steps == with_stalls.log.steps


def test_a_step_with_prompts_takes_what_it_takes_after_what_was_computed_lately():
    """A prefill of 4 tokens takes 1 s, one that comes within a second or so of it twice as long; decoding 10."""
    recent_load = RecentLoad({"prefill": Curves([8], [[1, 3]], [[1.0, 2.0]])}, memory=1.0)
    served = serve(
        VLLM(), requests((0.0, 4, 1), (0.5, 4, 2), (30.0, 4, 1)), times=EVEN, host=ahead(), recent_load=recent_load
    )
    # At 1 the first has been computed at 4 tokens a second, for as long as the memory lasts: 2.5 stand against it.
    ends = [end for end, _, _ in served.log.steps]
    second = 1.0 + 1.0 + (4 * (1 - math.exp(-1)) - 1) / 2
    assert ends == pytest.approx([1.0, second, second + 10.0, 31.0])


def test_so_does_a_step_that_decodes():
    """A decode step takes 10 s at no density and 20 at 3 tokens a second; after a prefill of 4 tokens in 1 s there
    are 2.5 with a memory of a second, and after a decode step what that computed."""
    recent_load = RecentLoad({"decode": Curves([8], [[0, 3]], [[1.0, 2.0]])}, memory=1.0)
    served = serve(VLLM(), requests((0.0, 4, 3)), times=EVEN, host=ahead(), recent_load=recent_load)
    first = 10.0 * (1.0 + 4 * (1 - math.exp(-1)) / 3)
    ends = [end for end, _, _ in served.log.steps]
    second = 10.0 * (1.0 + 1 / first / 3)
    assert ends == pytest.approx([1.0, 1.0 + first, 1.0 + first + second])


def test_a_device_that_is_idle_waits_for_the_launch():
    served = serve(VLLM(), requests((0.0, 4, 1), (5.0, 4, 1)), times=EVEN, host=ahead(begins=0.5))
    assert served.log.steps == [(1.5, [(0, 4)], 0), (6.5, [(1, 4)], 0)]


def test_when_nothing_can_be_decided_the_host_waits_for_the_step_in_flight():
    # While the only token of 0 is in flight there is nothing to decide; 1 comes meanwhile, and has to wait for it
    # even though the device could begin behind it at once.
    served = serve(VLLM(), requests((0.0, 4, 1), (0.5, 4, 1)), times=EVEN, host=ahead(intake=0.125))
    assert served.log.steps == [(1.125, [(0, 4)], 0), (2.25, [(1, 4)], 0)]


def test_batches_are_kept_with_when_they_began_on_the_device():
    kept = []

    class Watch(VLLM):
        def decide(self, view, now):
            kept.append((now, view.last_step, view.last_decode))
            return super().decide(view, now)

    served = serve(Watch(), requests((0.0, 4, 4)), times=EVEN, host=ahead(begins=0.5))
    assert [r["outcome"] for r in served.log.records] == ["met"]
    # Asked at 0 and 0.5; at 1.5, 11.5 and 21.5 a step is over; the last token is in flight from 11.5 on. What a step
    # took counts from the end of the one before, or from when it was asked for.
    assert kept == [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (1.5, 1.5, 0.0), (11.5, 10.0, 10.0), (21.5, 10.0, 10.0)]


def test_a_request_that_is_preempted_keeps_the_token_in_flight():
    """Blocks of 4 tokens, 4 of them: 0 and 1 take 2 each, and at 8 tokens each wants a third."""
    seen = []

    class Watch(VLLMV1):
        def decide(self, view, now):
            seen.append((now, [(t.id, t.computed, t.generated) for t in view.waiting], view.free_blocks))
            return super().decide(view, now)

    sent = requests((0.0, 6, 6), (0.0, 6, 6))
    served = serve(Watch(), sent, times=EVEN, host=ahead(), blocks=4, block_size=4)
    # Prefilled to 1, decoding to 11 and 21 (8 tokens computed each). At 11 the step to 31 is decided, while the one
    # to 21 runs, which brings the third token of both: 1 loses its memory, but not that token.
    assert served.log.steps[:4] == [(1.0, [(0, 6), (1, 6)], 0), (11.0, [], 2), (21.0, [], 2), (31.0, [], 1)]
    assert served.log.tokens[1][0][:3] == [1.0, 11.0, 21.0]
    assert (21.0, [(1, 0, 3)], 1) in seen
    # It is computed anew with all three when 0 has gone, which is at 51: 9 tokens, for the fourth one.
    assert served.log.tokens[0] == [[1.0, 11.0, 21.0, 31.0, 41.0, 51.0]]
    assert served.log.steps[6] == (52.0, [(1, 9)], 0)
    assert served.log.tokens[1] == [[1.0, 11.0, 21.0, 52.0, 62.0, 72.0]]


def test_a_request_that_is_preempted_with_its_last_token_in_flight_still_ends():
    def decide(view: TokenView, now: float) -> Step:
        if now == 11.0:
            return Step(preempt=list(view.running))
        return Step([(t, t.pending) for t in view.waiting], ALL)

    served = serve(Told(decide), requests((0.0, 6, 3)), times=EVEN, host=ahead())
    assert served.log.tokens == {0: [[1.0, 11.0, 21.0]]}
    assert served.log.records[0]["outcome"] == "met"
    assert served.log.records[0]["stages"][0]["preemptions"] == 1


def test_what_is_in_flight_of_a_dropped_request_never_comes_out():
    def decide(view: TokenView, now: float) -> Step:
        if now == 11.0:
            return Step(drop=[t for t in view.running if t.id == 0], decode=[t for t in view.running if t.id == 1])
        return Step([(t, t.pending) for t in view.waiting], ALL)

    served = serve(Told(decide), requests((0.0, 6, 9), (0.0, 6, 4)), times=EVEN, host=ahead())
    assert served.log.tokens == {0: [[1.0, 11.0]], 1: [[1.0, 11.0, 21.0, 31.0]]}
    (dropped,) = [r for r in served.log.records if r["outcome"] == "dropped"]
    assert dropped["stages"][0]["generated"] == 2
    assert dropped["finished"] is None


def test_a_stop_ends_what_is_in_flight():
    served = serve(VLLM(), requests((0.0, 6, 9)), times=EVEN, host=ahead(), stop_at=12.0)
    assert served.log.ends == [(0, "failed", 12.0)]
    assert served.log.records[0]["stages"][0]["generated"] == 2
    assert served.log.steps == [(1.0, [(0, 6)], 0), (11.0, [], 1), (21.0, [], 1), (31.0, [], 1)]


def test_nothing_is_swapped():
    view = view_of(EVEN, EngineLimits(blocks=9, preemption="swap"))
    with pytest.raises(BadInput, match="nothing is swapped"):
        serve(VLLM(), [], host=ahead(), preemption="swap")
    assert TokenWorker(view.stage, VLLM(), view).host is None
