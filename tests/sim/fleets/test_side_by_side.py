"""Replicas as numbers behind a router that looks give what they give on the calendar, whatever comes together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from engines import Linear, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Recorder, ServingLoop
from servetwin.core.llm import EngineLimits, LimitsSLO, TokenDeadlines, TokenLimits
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.routing import Router
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.routing.jsq import JSQ
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.policies.routing.least_violating import LeastViolating
from servetwin.policies.routing.power_of_two import PowerOfTwo
from servetwin.sim import SimExecutor
from servetwin.sim.fleets import side_by_side
from servetwin.sim.fleets.epochs import Epochs
from servetwin.sim.fleets.fed_engine import Whole
from servetwin.sim.fleets.side_by_side import SideBySide
from servetwin.sim.llm import columns
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.request_columns import TokenColumns

POLICIES = {"vllm": VLLM, "vllm-v1": lambda: VLLMV1(24), "sarathi": lambda: Sarathi(16)}
ROUTERS = {"jsq": JSQ, "least_loaded": LeastLoaded, "power_of_two": PowerOfTwo}
PROMISES = {
    "deadlines": TokenDeadlines(3.0, 1.5, 0.011, 1e-5, lambda prompt: 0.01 + 0.001 * prompt),
    "limits": LimitsSLO.of(TokenLimits(ttft=2.0, tpot=0.5)),
}
#: Steps of a quarter of a second, and requests at eighths: nearly all of it happens at one instant.
EVEN = Linear(c0=0.25, c1=0.0, d0=0.25, d1=0.0)


def noise(seed: int | None):
    if seed is None:
        return None
    dice = random.Random(seed)
    return lambda: dice.uniform(0.8, 1.25)


Sent = Sequence[tuple[float, int, int]]


class Fleet:
    """So many replicas, and how they came to choose."""

    def __init__(
        self,
        many: int,
        policy: str,
        router: str,
        steps: Linear,
        seed: int | None,
        gap: float,
        stale: float = 0.0,
        **limits,
    ):
        self.stale = stale
        limits = {"max_batched_tokens": 100, "blocks": 200, "block_size": 4} | limits
        views = [view_of(steps, EngineLimits(**limits), PROMISES["deadlines"]) for _ in range(many)]
        for number, view in enumerate(views):
            view.stage = views[0].stage
            view.name = f"llm{number}"
        self.workers = [
            TokenWorker(view.stage, POLICIES[policy](), view, device=f"gpu{number}")
            for number, view in enumerate(views)
        ]
        drawn = {view.name: noise(None if seed is None else seed + n) for n, view in enumerate(views)}
        self.executor = SimExecutor(lambda worker: TokenTiming(steps, drawn[worker.name]))
        self.router: Router = ROUTERS[router]()
        self.chosen: list[str] = []
        route = self.router.route

        def noted(request, workers, now):
            worker = route(request, workers, now)
            self.chosen.append(worker.name)
            return worker

        self.router.route = noted

    @staticmethod
    def summary(worker: TokenWorker) -> TokenSummary:
        return TokenSummary({worker.stage.name: worker.view.slo})

    def source(self, sent: Sent) -> TokenColumns:
        at, prompts, outputs = zip(*sent, strict=True)
        return TokenColumns("llm", at, prompts, [30] * len(at), outputs)

    def numbers(self, sent: Sent) -> TokenSummary:
        told = self.workers, self.executor, self.router, 3, self.source(sent), self.summary
        each = Epochs(*told, stale=self.stale) if self.stale else SideBySide(*told)
        each.play(Counter())
        found = self.summary(self.workers[0])
        each.count(found)
        return found

    def calendar(self, sent: Sent) -> TokenSummary:
        log = Recorder()
        log.summary, log.wants_token_times = self.summary(self.workers[0]), True
        dispatcher = Dispatcher(self.workers, self.router, stale={self.router: self.stale}, seed=3)
        loop = ServingLoop([self.workers[0].stage], self.workers, self.executor, log, router=dispatcher)
        columns.play(loop, self.executor, self.source(sent), columns=False)
        loop.check_ended()
        return log.summary


def both(sent: Sent, **fleet) -> Counter[str]:
    """Which way was gone; both are compared."""
    plain, quick = Fleet(**fleet), Fleet(**fleet)
    expected = plain.calendar(sent)
    try:
        found = quick.numbers(sent)
    except Whole:
        return Counter(whole=1)
    assert quick.chosen == plain.chosen
    assert found.as_dict() == expected.as_dict()
    return Counter(numbers=1)


world = {
    "many": st.integers(2, 4),
    "policy": st.sampled_from([*POLICIES]),
    "router": st.sampled_from([*ROUTERS]),
    "stale": st.sampled_from([0.0, 0.0, 0.01, 0.125, 0.25, 0.5, 1.0, 2.5]),
}
tokens = st.tuples(st.integers(1, 40), st.integers(1, 12))


@pytest.fixture(scope="module")
def went():
    """How often each way was gone, over a whole test; numbers mostly."""
    counted: Counter[str] = Counter()
    yield counted
    assert counted["numbers"] > 3 * counted["whole"] > 0


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 1, 2, 3, 8]), tokens), min_size=1, max_size=40),
    st.sampled_from([{}, {"gap": 0.125}]), st.sampled_from([{}, {}, {}, {"blocks": 24}]),
    st.sampled_from([0.25, 0.125]), st.fixed_dictionaries(world),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_what_happens_at_one_instant_comes_in_the_same_order(went, rows, gap, limits, decode, drawn) -> None:
    at, sent = 0, []
    for later, (prompt, output) in rows:
        at += later
        sent.append((at / 8, prompt, output))
    steps = Linear(c0=0.25, c1=0.0, d0=decode, d1=0.0, **gap)
    went.update(both(sent, steps=steps, seed=None, gap=0.0, **limits, **drawn))


@given(
    st.lists(st.tuples(st.floats(0.0, 0.3), tokens), min_size=1, max_size=60),
    st.none() | st.integers(0, 99), st.sampled_from([{}, {}, {}, {"blocks": 40}, {"max_sequences": 3}]),
    st.fixed_dictionaries(world),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_drawn_worlds_come_to_the_same(went, rows, seed, limits, drawn) -> None:
    at, sent = 0.0, []
    for later, (prompt, output) in rows:
        at += later
        sent.append((at, prompt, output))
    went.update(both(sent, steps=Linear(), seed=seed, gap=0.0, **limits, **drawn))


@pytest.mark.parametrize("router", [*ROUTERS])
def test_long_runs_forget_who_has_ended(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are cut at the front, and ends of steps are trimmed, while requests are here."""
    monkeypatch.setattr("servetwin.sim.fleets.fed_engine.FAR_AHEAD", 20)
    monkeypatch.setattr("servetwin.sim.llm.column_steps.BLOCK", 16)
    monkeypatch.setattr(side_by_side, "READ", 7)
    monkeypatch.setattr(side_by_side, "TELL", 14)
    sent = [(n * 0.06, 5 + n * 7 % 30, 1 + n * 5 % 28) for n in range(1500)]
    fleet = {"many": 2, "policy": "vllm-v1", "router": router, "steps": Linear(), "seed": 4, "gap": 0.0}
    plain, quick = Fleet(**fleet), Fleet(**fleet)
    expected = plain.calendar(sent)
    kept: list[int] = []
    forget = columns.ColumnRequests._forget

    def forgetting(engine, head):
        engine.engine.trim_at = 64
        moved = forget(engine, head)
        kept.append(len(engine.prompts))
        return moved

    monkeypatch.setattr(columns.ColumnRequests, "_forget", forgetting)
    assert quick.numbers(sent).as_dict() == expected.as_dict()
    assert quick.chosen == plain.chosen
    assert kept
    assert max(kept) < 150


def test_who_asks_for_more_is_served_on_the_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTERS, "least_violating", LeastViolating)
    fleet = {"many": 2, "policy": "vllm", "steps": EVEN, "seed": None, "gap": 0.0}
    sent = [(0.0, 5, 5), (0.1, 5, 5)]
    assert both(sent, router="least_violating", **fleet) == {"whole": 1}
    assert both([*sent, (0.2, 101, 5)], router="jsq", **fleet) == {"whole": 1}  # it is longer than a step
    assert both(sent, router="jsq", **fleet) == {"numbers": 1}
