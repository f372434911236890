"""Engines that fail, by hand: what of a language model's answer is lost with one, and what stays with the client."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engines import Linear, Log
from servetwin.core import Module, Pipeline, ServingLoop
from servetwin.core.faults.faults import Faults
from servetwin.core.faults.schedule import Event, Retry, Rules
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.policies.routing.round_robin import RoundRobin
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming

#: A prompt token takes 0.1 s, a step of decoding 1 s.
TIMES = Linear(c0=0.0, c1=0.1, d0=1.0, d1=0.0)


def serve(
    events: Sequence[Event],
    *,
    engines: int = 2,
    ahead: bool = False,
    rules: Rules | None = None,
    rows=((0.0, 10, 5),),
) -> tuple[list[TokenRequest], Log, Faults]:
    (stage,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])
    host = Host(lambda n: 0.0, 0.0, ahead=True) if ahead else None
    workers = []
    for i in range(engines):
        view = TokenView(
            stage,
            EngineLimits(blocks=100, block_size=4),
            estimate_prefill=TIMES.prefill,
            estimate_decode=TIMES.decode,
            estimate_step=TIMES.step,
            name=f"e{i}",
        )
        workers.append(TokenWorker(stage, VLLMV1(), view, device=f"gpu{i}", host=host))
    executor = SimExecutor(lambda worker: TokenTiming(TIMES))
    executor.breaks = True
    faults = Faults(workers, iter(events), rules or Rules(1.0, Retry(3)))
    log = Log()
    checker = InvariantChecker(log)
    loop = ServingLoop([stage], workers, executor, checker, router=Dispatcher(workers, RoundRobin()), fleet=faults)
    checker.watch(loop)
    sent = [TokenRequest(i, at, {"llm": (prompt, out)}, {"llm": out}) for i, (at, prompt, out) in enumerate(rows)]
    play(loop, iter(sent))
    executor.run_until_idle()
    checker.finish()
    return sent, log, faults


@pytest.mark.parametrize("ahead", [False, True])
def test_tokens_that_were_sent_stay_sent(ahead: bool) -> None:
    """Tokens at 1, 2 and 3 s; it dies at 3.5 s. A second later 10 + 3 tokens are computed, and two more come."""
    (request,), log, faults = serve([Event(3.5, "fail", ("e0",))], ahead=ahead)
    assert request.outcome == "met"
    assert log.tokens[0] == [pytest.approx([1.0, 2.0, 3.0, 5.8, 6.8])]
    (task,) = request.tasks
    assert (task.worker.name, task.queued, task.started, task.first_token) == ("e1", 0.0, 0.0, pytest.approx(1.0))
    assert task.finished == pytest.approx(6.8)
    (outage,) = faults.outages["e0"]
    assert (outage.lost_requests, outage.lost_seconds) == (1, pytest.approx(0.5))


@pytest.mark.parametrize("ahead", [False, True])
def test_who_came_during_the_step_that_is_lost_is_sent_again_too(ahead: bool) -> None:
    """The third request comes to the engine while that computes the first; it dies at 0.7 s. Both go to the other."""
    rows = ((0.0, 10, 5), (0.0, 10, 5), (0.5, 10, 5))
    sent, log, faults = serve([Event(0.7, "fail", ("e0",))], ahead=ahead, rows=rows)
    assert [request.outcome for request in sent] == ["met"] * 3
    assert [request.tasks[0].worker.name for request in sent] == ["e1"] * 3
    assert [len(log.tokens[number][0]) for number in range(3)] == [5] * 3
    (outage,) = faults.outages["e0"]
    assert outage.lost_requests == 2


@pytest.mark.parametrize("ahead", [False, True])
def test_one_that_dies_before_the_first_token_is_waited_for_from_the_start(ahead: bool) -> None:
    (request,), log, _ = serve([Event(0.5, "fail", ("e0",))], ahead=ahead)
    assert log.tokens[0] == [pytest.approx([2.5, 3.5, 4.5, 5.5, 6.5])]
    assert request.arrival == 0.0


@pytest.mark.parametrize("ahead", [False, True])
def test_it_may_die_more_than_once(ahead: bool) -> None:
    """The second engine dies with the fourth token out."""
    events = [Event(3.5, "fail", ("e0",), 5.0), Event(6.0, "fail", ("e1",), 7.0)]
    (request,), log, faults = serve(events, ahead=ahead)
    assert log.tokens[0] == [pytest.approx([1.0, 2.0, 3.0, 5.8, 8.4])]
    assert faults.counts.retried == 2
    assert request.tasks[0].generated == 5


@pytest.mark.parametrize("ahead", [False, True])
def test_without_a_retry_what_came_out_counts_for_nothing(ahead: bool) -> None:
    (request,), log, _ = serve([Event(3.5, "fail", ("e0",))], ahead=ahead, rules=Rules(1.0))
    assert (request.outcome, request.reason) == ("failed", "e0 failed")
    assert request.tasks[0].generated == 3
    assert log.ends == [(0, "failed", 4.5)]


@pytest.mark.parametrize("ahead", [False, True])
def test_slow_and_standing_engines(ahead: bool) -> None:
    """From 1.5 s on twice as slow, for two seconds; then as before."""
    (_,), log, _ = serve([Event(1.5, "slow", ("e0",), 3.5, factor=2.0)], engines=1, ahead=ahead)
    assert log.tokens[0] == [pytest.approx([1.0, 2.5, 4.0, 5.0, 6.0])]
    (_,), log, faults = serve([Event(1.5, "pause", ("e0",), 2.25)], engines=1, ahead=ahead)
    assert log.tokens[0] == [pytest.approx([1.0, 2.75, 3.75, 4.75, 5.75])]
    assert faults.outages["e0"] == []


@pytest.mark.parametrize("ahead", [False, True])
def test_who_is_on_the_way_while_the_engine_fails_is_not_lost_with_it(ahead: bool) -> None:
    """It dies at 3.5 s, which is noticed at 4.5 s; the message to the other engine takes two seconds, and that fails
    and is back meanwhile. The request is the one that came at 0 all the same."""
    events = [
        Event(3.5, "fail", ("e0",)),
        Event(4.0, "late", ("e1",), 4.9, seconds=2.0),
        Event(5.0, "fail", ("e1",), 5.2),
    ]
    (request,), log, faults = serve(events, ahead=ahead)
    (task,) = request.tasks
    assert request.outcome == "met"
    assert (task.queued, task.first_token) == (0.0, pytest.approx(1.0))
    assert log.tokens[0] == [pytest.approx([1.0, 2.0, 3.0, 7.8, 8.8])]
    assert [outage.lost_requests for outage in faults.outages["e1"]] == [0]
