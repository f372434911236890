"""Pipelines of language models and tools: prompts that follow from outputs, and slack carried from agent to agent."""

from __future__ import annotations

import pytest
from engines import Linear
from servetwin.core import Module, Pipeline, ServingLoop
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import CumulativeSLO, EngineLimits, Follows, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.llm.slo import StageDeadlines
from servetwin.core.serving.budget import Budget, fixed
from servetwin.core.serving.client import play
from servetwin.core.serving.pool import Pool
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.vllm import VLLM
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.pool_lane import CallTimes

#: A prefill takes 1 s, a decode step 0.1 s, whatever their tokens.
TIMES = Linear(c0=1.0, c1=0.0, d0=0.1, d1=0.0)
SLO = CumulativeSLO(2.0, 2.0, 0.1, 0.0, lambda n: 1.0)


def served(requests, *, call: float = 1.0, forward="always", carry=True, tool_seconds: float = 3.0):
    """coder -> tool -> judge, each LLM on an engine of its own, the tool with one thread."""
    pipeline = Pipeline.chain(Module("coder", loop=True), Module("tool"), Module("judge", loop=True))
    coder, tool, judge = stages = pipeline.stages([["coder"], ["tool"], ["judge"]])

    def engine(stage):
        view = TokenView(
            stage,
            EngineLimits(blocks=1000),
            estimate_prefill=TIMES.prefill,
            estimate_decode=TIMES.decode,
            slo=SLO,
        )
        return TokenWorker(stage, VLLM(), view, device=stage.name)

    workers = [engine(coder), Pool(tool, FCFS(), lambda m, n: call, threads=1), engine(judge)]
    sim = SimExecutor(lambda _: TokenTiming(TIMES), calls={"tool": CallTimes("tool", "constant", mean=call)})
    checker = InvariantChecker()
    by_tokens = StageDeadlines(SLO)
    tokens = {"coder": by_tokens, "judge": by_tokens}
    budget = Budget(fixed({"tool": tool_seconds}), carry=carry, forward=forward, tokens=tokens)
    loop = ServingLoop(stages, workers, sim, checker, budget=budget)
    checker.watch(loop)
    play(loop, iter(requests))
    sim.run_until_idle()
    checker.finish()
    return requests


def request(i: int = 0, at: float = 0.0, outputs=(11, 6)) -> TokenRequest:
    tokens = {"coder": (100, 50), "judge": (Follows(200, "coder"), 50)}
    return TokenRequest(i, at, tokens, dict(zip(("coder", "judge"), outputs, strict=True)))


def test_a_prompt_follows_from_what_was_put_out_before() -> None:
    (one,) = served([request(outputs=(11, 6))])
    assert [t.prompt for t in (one.tasks[0], one.tasks[2])] == [100, 211]
    assert one.tokens["judge"][0] == Follows(200, "coder")  # which tells nobody how long it will be


def test_slack_is_carried_from_the_last_token_through_the_tool() -> None:
    (one,) = served([request(at=5.0)])
    coder, tool, judge = one.tasks
    assert (coder.arrival, coder.budget, coder.finished) == (5.0, 0.0, pytest.approx(7.0))
    # The last of 11 tokens was due after twice a prefill and ten steps: 4 s; it came after 2 s.
    assert tool.deadline == pytest.approx(5.0 + 4.0 + 3.0)
    assert (judge.arrival, judge.budget) == (pytest.approx(8.0), pytest.approx(4.0))
    assert one.deadline == pytest.approx(5.0 + 4.0 + 3.0 + 2.0 * 1.0 + 2.0 * 0.5)
    assert one.outcome == "met"


def test_time_lost_at_one_agent_can_be_made_up_at_the_next() -> None:
    # Two slow calls one after the other: the second request leaves the tool after its deadline there.
    lost = served([request(0), request(1, at=0.01)], call=4.0, tool_seconds=3.0)
    late = lost[1].tasks[1]
    assert late.finished > late.deadline
    assert lost[1].tasks[2].budget < 0.0
    assert [r.outcome for r in lost] == ["met", "late"]
    dropped = served([request(0), request(1, at=0.01)], call=4.0, tool_seconds=3.0, forward="budget")
    assert (dropped[1].outcome, dropped[1].reason) == ("dropped", "not forwarded from tool")
    made_up = served([request(0), request(1, at=0.01)], call=4.0, tool_seconds=6.0)
    assert made_up[1].tasks[2].budget < 0.0
    assert [r.outcome for r in made_up] == ["met", "met"]


def test_without_carrying_each_agent_begins_anew() -> None:
    (one,) = served([request()], carry=False)
    assert one.tasks[2].budget == 0.0
    assert one.deadline == pytest.approx(one.tasks[2].queued + 2.0 + 1.0)
