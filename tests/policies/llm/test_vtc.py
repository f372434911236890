"""The virtual token counter: the paper's rules one by one, and its bound in whole runs."""

from __future__ import annotations

import pytest
from engines import Linear, requests, serve
from servetwin.core.llm import Step, TokenRequest, TokenView
from servetwin.core.testing import FakeEngine
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vtc import VTC

import servetwin


def arrive(engine: FakeEngine, tenant: str, prompt: int, output: int, weight: float = 1.0) -> int:
    task = engine.arrive(prompt, output=output)
    task.request.tenant, task.request.weight = tenant, weight
    return task.id


def steps(engine: FakeEngine, count: int, now: float = 0.0) -> list[list[int]]:
    """Who is prefilled in each step; an empty list is a step in which all decode."""
    found = []
    for _ in range(count):
        step = engine.decide(now)
        assert step is not None
        found.append([who for who, _ in step.prefill])
        now += 0.1
        engine.end(now)
    return found


def test_the_tenant_with_the_least_service_is_admitted_next() -> None:
    engine = FakeEngine(VTC(), max_sequences=1)
    for prompt in (100, 10, 10):
        arrive(engine, "a", prompt, output=1)
    for prompt in (30, 80, 10):
        arrive(engine, "b", prompt, output=1)
    # a: 100 + 2 after its first, b: 30 + 2, then 114; so a again: 114, and a is first of equals.
    assert steps(engine, 6) == [[0], [3], [4], [1], [2], [5]]


def test_tokens_that_come_out_count_too_and_more() -> None:
    engine = FakeEngine(VTC(), max_sequences=1)
    arrive(engine, "a", 10, output=11)  # 10 + 2 * 11 = 32
    arrive(engine, "a", 10, output=1)
    arrive(engine, "b", 29, output=1)  # 29 + 2 = 31
    arrive(engine, "b", 10, output=1)
    assert [who for who in steps(engine, 14) if who] == [[0], [2], [3], [1]]


def test_service_counts_over_the_weight() -> None:
    engine = FakeEngine(VTC(), max_sequences=1)
    for _ in range(4):
        arrive(engine, "a", 98, output=1, weight=3.0)  # 100 / 3 each
    for _ in range(2):
        arrive(engine, "b", 98, output=1)
    assert steps(engine, 6) == [[0], [4], [1], [2], [3], [5]]


@pytest.mark.parametrize("others_wait", [True, False])
def test_nobody_saves_up_service(others_wait: bool) -> None:
    """b was idle while a was served 200; when it comes it is lifted to a, whether a has requests waiting or not."""
    policy = VTC()
    engine = FakeEngine(policy, max_sequences=1)
    for _ in range(2 + others_wait):
        arrive(engine, "a", 98, output=1)
    steps(engine, 2)
    arrive(engine, "b", 5, output=1)
    engine.decide(0.2)
    # Where a waits too it goes first, being equal; else b is admitted, and charged for its prompt.
    assert policy.counter("b") == (200.0 if others_wait else 205.0)


def test_what_is_computed_anew_is_not_charged_again() -> None:
    policy = VTC()
    engine = FakeEngine(policy, blocks=6, block_size=16)
    arrive(engine, "a", 30, output=40)
    arrive(engine, "b", 30, output=40)
    now, preempted = 0.0, 0
    while step := engine.decide(now):
        preempted += len(step.preempted)
        now += 0.1
        engine.end(now)
    assert preempted
    engine.arrive(1, output=1)
    engine.decide(now)
    assert policy.counter("a") == policy.counter("b") == 30 + 2 * 40


def test_of_one_tenant_it_is_first_come_first_served() -> None:
    sent = [(0.02 * i, 20 + 7 * i % 50, 5 + 3 * i % 30) for i in range(60)]
    runs = [serve(policy(), requests(*sent), blocks=40, max_batched_tokens=200) for policy in (VTC, VLLM)]
    assert runs[0].log.steps == runs[1].log.steps
    assert runs[0].log.ends == runs[1].log.ends


class Watched(VTC):
    """Adds up the service of two tenants by what their tasks say, as long as both have requests waiting."""

    def __init__(self, inner: VTC | VLLM) -> None:
        super().__init__()
        self.inner, self.seen, self.differences = inner, {}, []

    def start(self, view: TokenView) -> None:
        self.inner.start(view)

    def admit(self, task, view: TokenView, now: float) -> bool:
        return self.inner.admit(task, view, now)

    def decide(self, view: TokenView, now: float) -> Step:
        self.seen.update(dict.fromkeys(view.running))
        served = {"a": 0.0, "b": 0.0}
        for task in self.seen:
            served[task.request.tenant] += task.prompt + 2 * task.generated
        if {task.request.tenant for task in view.waiting} == {"a", "b"}:
            self.differences.append(served["a"] - served["b"])
        return self.inner.decide(view, now)


def sent_by_two() -> list[TokenRequest]:
    """One sends long requests, and all of them first; the other short ones."""
    sent = requests(*[(0.0, 60, 40)] * 50, *[(0.0, 15, 10)] * 250)
    for request in sent:
        request.tenant = "a" if request.id < 50 else "b"
    return sent


def test_the_service_of_two_that_always_wait_differs_by_no_more_than_the_paper_proves() -> None:
    blocks, size = 40, 16
    bound = 2 * max(1 * 60, 2 * blocks * size)
    found = {}
    for policy in (VTC(), VLLM()):
        watched = Watched(policy)
        serve(watched, sent_by_two(), times=Linear(), blocks=blocks, block_size=size, max_batched_tokens=400)
        assert len(watched.differences) > 40
        found[type(policy)] = max(watched.differences) - min(watched.differences)
    assert found[VTC] <= bound
    assert found[VLLM] > bound


def mean_latencies(policy: str) -> dict[str, float]:
    """Mean seconds of the requests of each tenant: of four requests three are a's, more than its share of an engine
    that cannot keep up, and one is b's, less than that."""
    classes = {"flood": {"share": 3.0, "tenant": "a"}, "trickle": {"share": 1.0, "tenant": "b"}}
    settings = {"workload.draws": "seeded", "workload.classes": classes, "deployment.workers.0.limit": 16}
    run = servetwin.run("opt-13b-a6000", policy=policy, rate=1.5, requests=240, settings=settings)
    return {name: found["mean_e2el_ms"] / 1000 for name, found in run.summary["tenants"].items()}


def test_who_asks_for_less_than_its_share_does_not_wait_behind_who_asks_for_more() -> None:
    fair, first_come = mean_latencies("vtc"), mean_latencies("vllm")
    assert first_come["b"] > 0.7 * first_come["a"]  # both wait in one queue
    assert fair["b"] < 0.5 * first_come["b"]
    assert fair["a"] < 1.5 * first_come["a"]
