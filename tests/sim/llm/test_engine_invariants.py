"""LLM engines under the invariants, whatever a policy does; many steps as one event equal steps one by one."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
import servetwin.policies
from engines import Anything, Linear, Log, SteppingTokens, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import InvariantBroken
from servetwin.core.llm import CumulativeSLO, Step, TokenPolicy, TokenRequest, TokenView
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.policies.llm.andes import Andes
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.fastserve import FastServe
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.orca import Orca
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.sjf import SJF
from servetwin.policies.llm.slack_admission import SlackAdmission
from servetwin.policies.llm.slos_serve import SLOsServe
from servetwin.policies.llm.srpt_llm import SRPTLLM
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.llm.vtc import VTC

SLO = CumulativeSLO(3.0, 1.5, 0.0438, 1.05e-6, Linear().prefill)

POLICIES = {
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "vllm-v1, whole prompts": lambda: VLLMV1(chunked=False),
    "sarathi": lambda: Sarathi(32),
    "andes": lambda: Andes(every=1, watermark=0.5),
    "edf-llm": EDFLLM,
    "fastserve": lambda: FastServe(starve=0.3, every=3),
    "fastserve, few at once": lambda: FastServe(quantum=0.1, max_batch=2, skip_join=False),
    "orca": Orca,
    "slack-admission": SlackAdmission,
    "slack-admission, all served": lambda: SlackAdmission(safety=1.2, memory=0.3, drop_late=False),
    "slos-serve": SLOsServe,
    "slos-serve, dropping": lambda: SLOsServe(safety=1.2, drop_late=True),
    "sjf": SJF,
    "srpt-llm": SRPTLLM,
    "vtc": VTC,
    "neustream-llm": NeuStreamLLM,
    "neustream-llm, as in the artifact": lambda: NeuStreamLLM(
        b0=0.072, batch_cost="queue", preempted="fresh", offset=True, lookahead=33
    ),
    "neustream-llm, every number": lambda: NeuStreamLLM(search="all", feedback=False, lenient="waiting"),
}

gaps = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3, 2.0])
workloads = st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=20)
engines = st.fixed_dictionaries(
    {
        "blocks": st.integers(8, 40),
        "max_sequences": st.sampled_from([1, 3, 8, 64]),
        "headroom": st.sampled_from([0, 1]),
        "watermark": st.sampled_from([0.0, 0.1]),
        "preemption": st.sampled_from(["recompute", "swap"]),
        "stamp": st.sampled_from(["sent", "seen"]),
    }
)


def rows(workload) -> list[tuple[float, int, int]]:
    now, out = 0.0, []
    for gap, prompt, output in workload:
        now += gap
        out.append((now, prompt, output))
    return out


def sent_with_predictions(sent: list[tuple[float, int, int]]) -> list[TokenRequest]:
    """Requests whose predicted outputs have nothing to do with the true ones."""
    out = requests(*sent, limit=50)
    for request in out:
        request.predicted = {"llm": 1 + 7 * request.id % 40}
    return out


def noise(seed: int | None):
    if seed is None:
        return None
    dice = random.Random(seed)
    return lambda: dice.uniform(0.8, 1.25)


@given(workloads, engines, st.integers(0, 10**6), st.none() | st.sampled_from([0.35, 2.0, 6.0]))
@settings(max_examples=300)
def test_whatever_a_policy_does(workload, engine, seed, stop_at):
    served = serve(
        Anything(seed), requests(*rows(workload), limit=50), stop_at=stop_at, swap=lambda n: 0.001 * n,
        max_batched_tokens=100, **engine,
    )  # fmt: skip
    assert len(served.log.ends) == len(workload)


@pytest.mark.parametrize("name", POLICIES)
@given(workloads, engines, st.none() | st.integers(0, 9), st.sampled_from([0.0, 0.002]), st.booleans())
@settings(max_examples=40)
def test_many_steps_as_one_event_equal_steps_one_by_one(name, workload, engine, seed, gap, stops):
    def run(policy: TokenPolicy) -> Log:
        return serve(
            policy, sent_with_predictions(rows(workload)), times=Linear(gap=gap), slo=SLO, draw=noise(seed),
            stop_at=1.7 if stops else None, max_batched_tokens=100, **engine,
        ).log  # fmt: skip

    together, single = run(POLICIES[name]()), run(SteppingTokens(POLICIES[name]()))
    assert together.steps == single.steps
    assert together.records == single.records
    assert together.ends == single.ends


@pytest.mark.parametrize("name", POLICIES)
@given(workloads, engines, st.data())
@settings(max_examples=25)
def test_true_output_lengths_change_no_decision_before_they_show(name, workload, engine, data):
    """Invariant 11: the same requests, but one generates more tokens: up to the step in which it would have left, all
    is the same."""
    sent = rows(workload)
    chosen = data.draw(st.integers(0, len(sent) - 1), label="request")
    more = [*sent]
    more[chosen] = (*sent[chosen][:2], sent[chosen][2] + data.draw(st.integers(1, 9), label="more tokens"))
    logs = [
        serve(
            SteppingTokens(POLICIES[name]()), sent_with_predictions(r), slo=SLO, max_batched_tokens=100, **engine
        ).log
        for r in (sent, more)
    ]
    ended = next(at for i, _, at in logs[0].ends if i == chosen)
    before = [[step for step in log.steps if step[0] <= ended] for log in logs]
    assert before[0] == before[1]


def test_nothing_that_a_policy_is_handed_leads_to_the_true_length():
    secret = 987_654

    def reachable(start: object) -> bool:
        seen, todo = set(), [start]
        while todo:
            thing = todo.pop()
            if thing == secret:
                return True
            if id(thing) in seen or isinstance(thing, str | bytes | type | int | float):
                continue
            seen.add(id(thing))
            if isinstance(thing, dict):
                todo += [*thing.keys(), *thing.values()]
            elif isinstance(thing, list | tuple | set | frozenset):
                todo += thing
            elif type(thing).__module__.startswith("servetwin."):
                todo += [getattr(thing, name, None) for name in dir(thing) if not name.startswith("_")]
        return False

    seen_by: list[bool] = []

    class Nosy(VLLM):
        def decide(self, view: TokenView, now: float) -> Step:
            seen_by.append(reachable(view) or any(reachable(t) for t in (*view.waiting, *view.running)))
            return super().decide(view, now)

    sent = [TokenRequest(0, 0.0, {"llm": (20, 10**6)}, {"llm": secret})]
    assert reachable([secret])
    assert reachable(TokenRequest(0, 0.0, {}, {"llm": secret}))
    serve(Nosy(), sent, stop_at=3.0, blocks=10**6, invariants=False)  # the checker keeps them too
    assert seen_by
    assert not any(seen_by)


def test_no_policy_of_ours_looks_behind_what_it_is_handed():
    for path in Path(servetwin.policies.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "__getitem__":
                assert isinstance(node.value, ast.Name), f"{path.name}: {ast.unparse(node)}"
                assert node.value.id == "self", f"{path.name}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and node.attr in ("loop", "outputs"):
                assert "stage" in ast.unparse(node.value), f"{path.name}: {ast.unparse(node)}"


def test_the_checker_catches_an_engine_that_miscounts(monkeypatch):
    settle = TokenEngine.settle

    def lose_a_block(self, batch):
        self.view.free_blocks -= 1
        return settle(self, batch)

    def count_a_token(self, batch):
        found = settle(self, batch)
        for task in self.view.running:
            task.base_generated += 1
            self.keep_books(task)
        return found

    for wrong, invariant in ((lose_a_block, "invariant 6"), (count_a_token, "invariant 4")):
        monkeypatch.setattr(TokenEngine, "settle", wrong)
        with pytest.raises(InvariantBroken, match=invariant):
            serve(VLLM(), requests((0.0, 20, 5)))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda v: Step([(next(iter(v.waiting)), 99)]), "prefills 99 tokens"),
        (lambda v: Step([(next(iter(v.waiting)), 5)], preempt=list(v.waiting)[:1]), "speaks of a task twice"),
        (lambda v: Step([(t, 5) for t in [*v.waiting, *v.waiting]]), "speaks of a task twice"),
        (lambda v: Step(decode=list(v.waiting)), "which is not decoding"),
        (lambda v: Step(preempt=list(v.waiting)), "which is not running"),
    ],
)
def test_a_policy_that_asks_for_what_cannot_be_is_told(wrong, what):
    class Wrong(TokenPolicy):
        def decide(self, view: TokenView, now: float) -> Step:
            return wrong(view)

    with pytest.raises(InvariantBroken, match=what):
        serve(Wrong(), requests((0.0, 20, 5)))
