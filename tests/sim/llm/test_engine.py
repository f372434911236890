"""LLM engines in simulated time, by hand-worked cases."""

from __future__ import annotations

import copy
import sys

import pytest
from engines import Linear, SteppingTokens, requests, serve
from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenView
from servetwin.core.llm.serving.worker import Host
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1

#: A step takes 1 s for each prefilled token; a decode step 1 s.
SLOW = Linear(c0=0.0, c1=1.0, d0=1.0, d1=0.0)


def test_one_request_prefills_and_decodes():
    served = serve(VLLM(), requests((5.0, 10, 4)), times=SLOW)
    assert served.log.steps == [(15.0, [(0, 10)], 0), (16.0, [], 1), (17.0, [], 1), (18.0, [], 1)]
    assert served.log.tokens[0] == [[15.0, 16.0, 17.0, 18.0]]
    assert served.first_and_last() == [(15.0, 18.0)]


def test_prefill_goes_first():
    served = serve(VLLM(), requests((0.0, 4, 4), (4.5, 2, 2), (4.6, 3, 2)), times=SLOW)
    # The first decode step ends at 5; then both newcomers are prefilled at once, and all decode on.
    assert [step[1:] for step in served.log.steps] == [
        ([(0, 4)], 0), ([], 1), ([(1, 2), (2, 3)], 0), ([], 3), ([], 1)
    ]  # fmt: skip
    assert served.log.tokens == {0: [[4.0, 5.0, 11.0, 12.0]], 1: [[10.0, 11.0]], 2: [[10.0, 11.0]]}


def test_chunks_share_steps_with_decode():
    served = serve(VLLMV1(), requests((0.0, 4, 4), (4.5, 9, 2)), times=SLOW, max_batched_tokens=5)
    # 4 s prefill; decode to 5; then 4 tokens of the prompt beside a decode, 4 more, and the last one.
    assert served.log.steps == [
        (4.0, [(0, 4)], 0), (5.0, [], 1), (10.0, [(1, 4)], 1), (15.0, [(1, 4)], 1), (16.0, [(1, 1)], 0), (17.0, [], 1)
    ]  # fmt: skip
    assert served.log.tokens == {0: [[4.0, 5.0, 10.0, 15.0]], 1: [[16.0, 17.0]]}


#: Something to be busy with until 1.0, so that the two that come meanwhile are prefilled together.
TWO = requests((0.0, 1, 1), (0.5, 7, 4), (0.5, 7, 4))


@pytest.mark.parametrize("policy", [VLLM, VLLMV1])
def test_the_last_of_the_running_is_preempted_when_memory_runs_out(policy):
    # Four blocks of 4 tokens. Each request fills two with its 7 prompt tokens and the first that it generates.
    served = serve(policy(), copy.deepcopy(TWO), times=SLOW, blocks=4, block_size=4)
    assert [r.tasks[0].preemptions for r in served.requests] == [0, 0, 1]
    # Both are prefilled by 15, and decode to 16; then 1 decodes alone to 18 and leaves; 2 computes 9 tokens anew.
    assert served.log.tokens == {0: [[1.0]], 1: [[15.0, 16.0, 17.0, 18.0]], 2: [[15.0, 16.0, 27.0, 28.0]]}


def test_a_swapped_request_comes_back_with_its_memory():
    memory = {"blocks": 4, "block_size": 4, "preemption": "swap"}
    served = serve(VLLM(), copy.deepcopy(TWO), times=SLOW, swap=lambda blocks: 0.25 * blocks, **memory)
    # Two blocks go to the host before the step that ends at 17.5, and come back before the one that ends at 20.
    assert served.log.tokens == {0: [[1.0]], 1: [[15.0, 16.0, 17.5, 18.5]], 2: [[15.0, 16.0, 20.0, 21.0]]}


def test_as_many_blocks_come_back_as_went_also_beside_others_that_decode():
    moved: list[int] = []

    def swap(blocks: int) -> float:
        moved.append(blocks)
        return 0.0

    sent = requests((0.0, 1, 12), (0.5, 7, 4), (0.5, 7, 4))
    served = serve(VLLMV1(), sent, times=SLOW, swap=swap, blocks=7, block_size=4, preemption="swap")
    # The last one has 10 tokens when memory runs out at 18, and comes back beside the first.
    assert [r.tasks[0].preemptions for r in served.requests] == [0, 0, 1]
    assert served.log.steps[5] == (21.0, [(2, 1)], 1)
    assert moved == [3, 3]


def test_a_prompt_that_never_fits_fails_and_blocks_nobody():
    served = serve(VLLM(), requests((0.0, 50, 4), (0.0, 7, 4)), times=SLOW, blocks=4, block_size=4)
    assert [r.outcome.value for r in served.requests] == ["failed", "met"]
    assert served.requests[0].reason == "its prompt of 50 tokens does not fit into engine"


def test_an_output_that_outgrows_the_memory_fails():
    served = serve(VLLM(), requests((0.0, 7, 30), (0.0, 3, 2)), times=SLOW, blocks=4, block_size=4)
    assert [r.outcome.value for r in served.requests] == ["failed", "met"]
    assert "do not fit into engine" in served.requests[0].reason


def test_the_time_between_two_steps_passes_before_the_next():
    served = serve(VLLM(), requests((1.0, 4, 3)), times=Linear(c0=0.0, c1=1.0, d0=1.0, d1=0.0, gap=0.5))
    assert served.log.tokens[0] == [[5.0, 6.5, 8.0]]  # none before the first, which finds the engine idle


def test_a_request_is_stamped_when_it_is_seen():
    sent = requests((0.0, 4, 2), (1.0, 4, 2))
    served = serve(VLLM(), sent, times=SLOW, stamp="seen")
    assert [r.tasks[0].arrival for r in served.requests] == [0.0, 4.0]
    assert [r.arrival for r in served.requests] == [0.0, 1.0]


def test_a_stop_in_the_middle_of_a_run_of_steps():
    served = serve(VLLM(), requests((0.0, 4, 50)), times=SLOW, stop_at=10.5)
    assert served.log.ends == [(0, "failed", 10.5)]
    assert served.log.records[0]["stages"][0]["generated"] == 7  # though it ran on to the end of its step


@pytest.mark.parametrize("host", [None, Host(lambda sequences: 0.1, 0.0, ahead=True)], ids=["", "ahead"])
@pytest.mark.parametrize("policy", [VLLM, VLLMV1])
def test_what_a_step_costs_does_not_depend_on_how_many_decode(policy, host):
    def lines_of_thirty_steps(requests_in_all: int) -> int:
        """Lines of Python that are run, counted by the interpreter."""
        lines = [0]

        def tracer(frame, event, arg):
            if not frame.f_globals.get("__name__", "").startswith("servetwin."):
                return None  # a garbage collection, say
            lines[0] += event == "line"
            return tracer

        class Counted(SteppingTokens):
            asked = 0

            def decide(self, view, now):
                self.asked += 1
                sys.settrace(tracer if 20 <= self.asked < 50 else before)
                return super().decide(view, now)

        before = sys.gettrace()
        try:
            sent = requests(*[(0.0, 10, 80)] * requests_in_all)
            serve(Counted(policy()), sent, times=SLOW, invariants=False, host=host, blocks=10_000, max_sequences=1000)
        finally:
            sys.settrace(before)
        return lines[0]

    few = lines_of_thirty_steps(3)
    assert few > 30 * 20
    assert lines_of_thirty_steps(300) == few


def test_the_host_takes_requests_in_between_two_steps():
    host = Host(lambda sequences: 0.25, 0.5)
    served = serve(VLLM(), requests((0.0, 4, 3), (5.6, 2, 1), (5.9, 2, 1)), times=SLOW, host=host)
    # Taken in by 0.5, prefilled to 4.5; from 4.75 decoding to 5.75. At 6 the host begins to take in the one of 5.6
    # and then the one of 5.9; both are prefilled from 7 to 11, and the last token is out at 12.25.
    assert served.log.steps == [(4.5, [(0, 4)], 0), (5.75, [], 1), (11.0, [(1, 2), (2, 2)], 0), (12.25, [], 1)]
    assert served.log.tokens == {0: [[4.5, 5.75, 12.25]], 1: [[11.0]], 2: [[11.0]]}


@pytest.mark.parametrize("slow", [1.0, 3.0])
def test_a_word_that_stands_while_steps_are_short_ends_with_a_long_one(slow):
    class Hasty(TokenPolicy):
        """All decode, until a step took more than 60 ms: then the last of them is dropped."""

        asked = 0

        def decide(self, view: TokenView, now: float) -> Step:
            self.asked += 1
            prefill = view.admissible([(task, task.pending) for task in view.waiting])
            if prefill:
                return Step(prefill)
            drop = [[*view.running][-1]] if view.last_decode > 0.06 and len(view.running) > 1 else []
            return Step(decode=ALL, drop=drop, repeat=None if drop else Repeat(100, longest=0.06))

    found, policies = [], [Hasty(), Hasty()]
    for policy in (policies[0], SteppingTokens(policies[1])):
        noise = iter([1.0] * 9 + [slow] + [1.0] * 99)
        served = serve(policy, requests((0.0, 100, 40), (0.0, 100, 40)), draw=lambda noise=noise: next(noise))
        found.append((served.log.steps, served.log.ends))
    assert found[0] == found[1]
    assert any(outcome == "dropped" for _, outcome, _ in found[0][1]) == (slow > 1)
    assert policies[0].asked < policies[1].asked / 8
