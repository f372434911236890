"""Something breaks under a request, wherever it is: a policy forgets it, and the others are served as ever."""

from __future__ import annotations

import pytest
from engines import Linear, requests, serve
from harness import HandExecutor
from servetwin.core import BatchWorker, Module, Outcome, Pipeline, Request, ServingLoop, WorkerView
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import CumulativeSLO, TokenPolicy
from servetwin.core.llm.serving.worker import Host
from servetwin.policies.llm.andes import Andes
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.fastserve import FastServe
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.orca import Orca
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.sjf import SJF
from servetwin.policies.llm.slack_admission import SlackAdmission
from servetwin.policies.llm.slos_serve import SLOsServe
from servetwin.policies.llm.splitwise import Splitwise
from servetwin.policies.llm.srpt_llm import SRPTLLM
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.llm.vtc import VTC
from worlds import POLICIES

SLO = CumulativeSLO(3.0, 1.5, 0.0438, 1.05e-6, Linear().prefill)
TOKEN_POLICIES: list[type[TokenPolicy]] = [
    Andes, EDFLLM, FastServe, NeuStreamLLM, Orca, Sarathi, SJF, SlackAdmission, SLOsServe, Splitwise, SRPTLLM, VLLM,
    VLLMV1, VTC,
]  # fmt: skip


@pytest.mark.parametrize("when", ["it waits", "it runs", "it runs for the last time"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_others_are_served(name: str, when: str) -> None:
    (stage,) = Pipeline([Module("m", loop=True)], []).stages([["m"]])
    hand, checker = HandExecutor(), InvariantChecker()
    view = WorkerView(stage, lambda module, size: 1.0, limit=2, slo_factor=4.0)
    loop = ServingLoop([stage], [BatchWorker(stage, POLICIES[name](), view)], hand, checker)
    checker.watch(loop)
    sent = [Request(i, 0.0, 40.0, {"m": steps}) for i, steps in enumerate([1, 3, 2, 2])]
    for request in sent:
        loop.arrive(request)
    broken = None
    for _ in range(60):
        if broken is None:
            batch = hand.in_flight["m"][0].tasks if "m" in hand.in_flight else []
            where = {
                "it waits": [r for r in sent if r.outcome is None and r.tasks[0] not in view.running],
                "it runs": [task.request for task in batch if task.left > 1],
                "it runs for the last time": [task.request for task in batch if task.left == 1],
            }[when]
            broken = next(iter(where), None)
            if broken is not None:
                loop.fail(broken, "it broke")
        if "m" in hand.in_flight:
            hand.end("m", hand.time + 1.0)
        else:
            hand.wait(hand.time + 1.0)
    assert broken is not None
    assert broken.outcome is Outcome.FAILED
    assert {request.outcome for request in sent if request is not broken} == {Outcome.MET}
    checker.finish()
    assert not view.waiting
    assert not view.running


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("kind", TOKEN_POLICIES)
def test_the_others_are_answered(kind: type[TokenPolicy], ahead: bool) -> None:
    """By an engine with memory for some of them: two break while they wait, are computed or decode."""
    host = Host(lambda size: 0.001, 0.0, ahead=True) if ahead else None
    for when in (0.0, 0.05, 0.2, 0.5, 1.0):
        sent = requests(*[(0.01 * i, 60 + 10 * i, 12) for i in range(6)], limit=40)
        for request in sent:
            request.predicted = {"llm": 12}
        fails = [(0.02 + when, 1), (0.05 + when, 4)]
        run = serve(kind(), sent, slo=SLO, host=host, fails=fails, blocks=24, block_size=16)
        for number, request in enumerate(sent):
            if request.outcome is Outcome.FAILED:
                assert number in (1, 4)
            elif request.outcome is not Outcome.DROPPED:
                assert len(run.log.tokens[number][0]) == 12
        assert sent[0].outcome is not Outcome.FAILED
        assert any(request.outcome is Outcome.FAILED for request in sent) or when > 0.2
