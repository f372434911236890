"""Two LLM engines on one device: steps slow each other down at measured rates, and no work is lost or won by it."""

from __future__ import annotations

import math

import pytest
from engines import Linear, Log
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import Module, Pipeline, ServingLoop
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.serving.client import play
from servetwin.policies.llm.vllm import VLLM
from servetwin.real.vllm.profiling.fitting.pair_fit import contention, overlap, rate
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.shared_lane import RateTable, load_of

#: A step takes 1 s for each prefilled token; a decode step 1 s.
SLOW = Linear(c0=0.0, c1=1.0, d0=1.0, d1=0.0)
KINDS = ("prefill", "decode")


class Steps(Log):
    """Keeps the steps too: worker, start, end, undisturbed seconds, load."""

    wants_batches = True

    def __init__(self, times: Linear) -> None:
        super().__init__()
        self.timing = TokenTiming(times)
        self.kept: list[tuple[str, float, float, float, str]] = []

    def batch(self, batch) -> None:
        super().batch(batch)
        if batch.prefill:
            alone = self.timing.computing(batch)
        else:
            constant, slope, _ = self.timing.times.straight(batch.size, batch.context)
            alone = constant + slope * batch.context
        self.kept.append((batch.worker.name, batch.end - batch.took, batch.end, alone, load_of(batch).kind))


def pair(sent, rates, times: Linear = SLOW, *, shared: bool = True, host: Host | None = None) -> Steps:
    """Requests through two engines in a row, on one device."""
    pipeline = Pipeline.chain(*[Module(m, loop=True) for m in ("a", "b")])
    stages = pipeline.stages([["a"], ["b"]])
    workers = []
    for stage in stages:
        view = TokenView(
            stage,
            EngineLimits(blocks=100),
            estimate_prefill=times.prefill,
            estimate_decode=times.decode,
            name=stage.name,
        )
        workers.append(TokenWorker(stage, VLLM(), view, device="gpu" if shared else stage.name, host=host))
    table = {(one, other): RateTable((1,), (1,), ((rates[one, other],),)) for one in KINDS for other in KINDS}
    executor = SimExecutor(lambda _: TokenTiming(times), engines={"a": table, "b": table} if shared else None)
    log = Steps(times)
    checker = InvariantChecker(log)
    loop = ServingLoop(stages, workers, executor, checker)
    checker.watch(loop)
    play(loop, iter(sent))
    while executor.calendar.peek() < math.inf:
        executor.calendar.step()
    checker.finish()
    return log


def asked(rows) -> list[TokenRequest]:
    at, sent = 0.0, []
    for i, (gap, prompt, first, second) in enumerate(rows):
        at += gap
        sent.append(TokenRequest(i, at, {"a": (prompt, 20), "b": (prompt, 20)}, {"a": first, "b": second}))
    return sent


def all_at(rate: float) -> dict[tuple[str, str], float]:
    return {(one, other): rate for one in KINDS for other in KINDS}


def test_a_step_gets_on_more_slowly_while_the_other_engine_computes():
    # a: prefill 0-2; then b prefills it from 2 on. A second request comes to a at 3.
    sent = [
        TokenRequest(0, 0.0, {"a": (2, 9), "b": (4, 9)}, {"a": 1, "b": 1}),
        TokenRequest(1, 3.0, {"a": (2, 9), "b": (1, 9)}, {"a": 1, "b": 1}),
    ]
    log = pair(sent, all_at(0.5))
    # From 3 on both at half speed: a has 2 s to do, b 3 s. a is done at 7, b has 1 s left and is alone from then on,
    # but its next prompt waits for it.
    assert log.tokens == {0: [[2.0], [8.0]], 1: [[7.0], [9.0]]}


def test_rates_go_by_the_kind_of_both_steps():
    rates = all_at(1.0) | {("decode", "prefill"): 0.25}
    sent = [
        TokenRequest(0, 0.0, {"a": (1, 9), "b": (8, 9)}, {"a": 1, "b": 1}),
        TokenRequest(1, 1.0, {"a": (1, 9), "b": (1, 9)}, {"a": 2, "b": 1}),
    ]
    # 0 is prefilled by b from 1 to 9, which nothing slows; 1 by a from 1 to 2; its decode step takes 4 s beside b.
    assert pair(sent, rates).tokens == {0: [[1.0], [9.0]], 1: [[2.0, 6.0], [10.0]]}


rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 1.0, 7.0]), st.integers(1, 12), st.integers(1, 8), st.integers(1, 8)),
    min_size=1,
    max_size=10,
)


#: Of engines that decide each step when the last is over, and of such as decide it before.
hosts = st.sampled_from(
    [None, Host(lambda n: 0.0, 0.0, ahead=True), Host(lambda n: 0.4, 0.2, ahead=True, begins=0.5)]
)


@given(rows, hosts)
def test_engines_that_do_not_disturb_each_other_are_as_on_devices_of_their_own(asks, host):
    together, apart = (pair(asked(asks), all_at(1.0), shared=shared, host=host) for shared in (True, False))
    assert together.tokens.keys() == apart.tokens.keys()
    for number, stays in together.tokens.items():
        assert [t for stay in stays for t in stay] == pytest.approx([t for s in apart.tokens[number] for t in s])


@given(rows, st.sampled_from([0.5, 0.37]), st.sampled_from([None, Host(lambda n: 0.4, 0.2, ahead=True)]))
def test_work_is_conserved(asks, rate, host):
    """Of each step, its time alone plus *rate* times its time beside the other's is what it takes undisturbed;
    if two take turns (rate 1/2), the device is busy for as long as all steps take undisturbed."""
    log = pair(asked(asks), all_at(rate), host=host)
    for name, start, end, alone, _ in log.kept:
        beside = sum(max(0.0, min(end, e) - max(start, s)) for other, s, e, *_ in log.kept if other != name)
        assert (end - start - beside) + rate * beside == pytest.approx(alone)
    if rate == 0.5:
        busy, until = 0.0, 0.0
        for _, start, end, *_ in sorted(log.kept, key=lambda step: step[1]):
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        assert busy == pytest.approx(sum(alone for *_, alone, _ in log.kept))


def test_rates_lie_between_the_sizes_measured():
    table = RateTable((4, 32), (512, 1536), ((0.8, 0.4), (0.6, 0.2)))
    assert table.at(1, 1) == 0.8
    assert table.at(4, 1024) == pytest.approx(0.6)
    assert table.at(18, 1024) == pytest.approx(0.5)
    assert table.at(99, 9999) == 0.2


@given(rows, st.sampled_from([0.9, 0.5, 0.37]))
def test_the_rate_is_found_again_from_the_steps(asks, given_rate):
    log = pair(asked(asks), all_at(given_rate))
    a, b = ([(start, end) for name, start, end, *_ in log.kept if name == one] for one in "ab")
    alone = [needed for name, _, _, needed, _ in log.kept if name == "a"]
    if sum(overlap(a, b)) > 0:
        assert rate(a, b, alone) == pytest.approx(given_rate)


def test_what_was_measured_of_two_engines_becomes_costs():
    def steps(count: int, seconds: float, kind: str) -> list[list[object]]:
        chunk = [[0, 512, 0]] if kind == "prefill" else []
        return [[i * seconds, 0.0, 0.0, (i + 1) * seconds, chunk, 4, 0, [], [], 0, 0] for i in range(count)]

    decode, prefill = ("decode", 4), ("prefill", 512)
    costs = contention(
        [
            {"loads": [decode, None], "steps": [steps(90, 0.01, "decode")]},
            {"loads": [prefill, None], "steps": [steps(45, 0.02, "prefill")]},
            {"loads": [decode, prefill], "steps": [steps(36, 0.025, "decode"), steps(36, 0.025, "prefill")]},
        ],
        "a file",
    )
    beside = {name: cost["by_batch"] for name, cost in costs.items()}
    assert beside == {
        "decode.rate_beside.prefill.512": {"batch": [4], "values": [0.4]},
        "prefill.rate_beside.decode.4": {"batch": [512], "values": [0.8]},
    }
