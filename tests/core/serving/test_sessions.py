"""Sessions and closed loops: each request is sent when those before it have ended, by hand and by closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from engines import Linear, Log, view_of
from servetwin.core import BadInput, Decision, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenRequest
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.policy import Policy
from servetwin.core.random_streams import stream
from servetwin.core.serving.batch_worker import BatchWorker
from servetwin.core.serving.sessions import Session, SessionClient
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.time.timing import TableTiming


class Kept(Recorder):
    def __init__(self):
        super().__init__()
        self.rows = {}  # number -> session, arrival, end, outcome

    def ended(self, request, now):
        super().ended(request, now)
        self.rows[request.id] = request.session, request.arrival, now, request.outcome.value


class DropsOdd(Policy):
    """Serves one at a time, and gives up those with an odd number."""

    def decide(self, view, now):
        drop = [task for task in view.waiting if task.id % 2]
        rest = [task for task in view.waiting if not task.id % 2]
        if view.running or not rest:
            return Decision(drop=drop)
        return Decision(rest[:1], drop=drop)


def serve(sessions, *, policy=None, draw=None, stop=None, **how):
    """One server, a second for each request."""
    (stage,) = Pipeline.chain(Module("server")).stages([["server"]])
    view = WorkerView(stage, lambda _, n: 1.0, limit=1, name="server")
    worker = BatchWorker(stage, policy or FCFS(), view, device="gpu0")
    kept = Kept()
    executor = SimExecutor(lambda worker: TableTiming([math.nan, 1.0], draw=draw))
    checker = InvariantChecker(kept)
    loop = ServingLoop([stage], [worker], executor, checker)
    checker.watch(loop)
    if stop is not None:
        how["when_over"] = lambda: loop.call_at(loop.now() + stop, loop.stop)
    SessionClient(loop, iter(sessions), **how)
    executor.run_until_idle()
    checker.finish()
    return kept.rows


def turns(*waits, first=0):
    return [(wait, Request(first + i, 0.0, 1e9, {})) for i, wait in enumerate(waits)]


def alone(waits):
    """Sessions of one request each, sent by clients of a closed loop after such times."""
    return [Session(None, [(wait, Request(i, 0.0, 1e9, {}))]) for i, wait in enumerate(waits)]


def test_turns_follow_each_other_after_the_time_to_think():
    rows = serve([Session(0, turns(9.0, 2.0, 0.0), due=1.0), Session(1, turns(0.0, 0.25, first=3), due=1.5)])
    assert rows == {
        0: ((0, 0), 1.0, 2.0, "met"),  # what a client takes before a session is nothing where sessions are due
        3: ((1, 0), 1.5, 3.0, "met"),
        4: ((1, 1), 3.25, 4.25, "met"),
        1: ((0, 1), 4.0, 5.25, "met"),
        2: ((0, 2), 5.25, 6.25, "met"),
    }


@pytest.mark.parametrize(
    ("after_drop", "sent"), [("end", [0, 4, 6]), ("continue", [0, 1, 2, 3, 4, 6, 7])], ids=["end", "continue"]
)
def test_a_drop_ends_a_session_or_does_not(after_drop, sent):
    sessions = [Session(0, turns(0.0, 1.0, 1.0, 1.0), due=0.0), Session(1, turns(0.0, first=4), due=20.0)]
    sessions.append(Session(2, turns(0.0, 1.0, first=6), due=30.0))
    rows = serve(sessions, policy=DropsOdd(), after_drop=after_drop)
    dropped = [n for n in (1, 3, 7) if after_drop == "continue" or n in (1, 7)]
    assert sorted(rows) == sorted({*sent, *dropped})
    assert [n for n, row in sorted(rows.items()) if row[3] == "dropped"] == dropped
    if after_drop == "continue":
        assert rows[1][2] == 2.0  # dropped as it came
        assert rows[2][1] == 3.0


def test_a_closed_loop_keeps_so_many_in_flight():
    rows = serve(alone([0.0] * 12), clients=4)
    assert [(round(at, 9), end) for _, at, end, _ in (rows[i] for i in range(12))] == [
        *[(0.0, float(i)) for i in range(1, 5)],
        *[(float(i), float(i + 4)) for i in range(1, 9)],
    ]


def test_the_first_requests_of_clients_are_spread_over_the_ramp():
    rows = serve(alone([0.0] * 8), clients=4, ramp=8.0)
    assert [rows[i][1] for i in range(5)] == [0.0, 2.0, 4.0, 6.0, 1.0]


@pytest.mark.parametrize(
    ("clients", "think", "response"), [(3, 5.0, 1.0), (10, 5.0, 5.0), (6, 5.0, 1.0), (1, 0.5, 1.0)]
)
def test_the_response_time_of_a_closed_loop(clients, think, response):
    """X = N / (R + Z): a server of one request a second is full from N = 1 + Z on, and then R = N - Z."""
    rounds = 30
    rows = serve(alone([think] * clients * rounds), clients=clients)
    late = [rows[i] for i in range(clients * rounds // 2, clients * rounds)]
    assert np.allclose([end - at for _, at, end, _ in late], response, atol=1e-9)
    ends = sorted(row[2] for row in late)
    per_cycle = [b - a for a, b in zip(ends, ends[clients:], strict=False)]
    assert np.allclose(per_cycle, response + think)


def test_the_interactive_response_time_law_holds_to_rounding():
    """Of each client: its requests and its thoughts fill the time from its first request on, without a gap. So over
    any number of whole cycles the throughput is the number of clients over the means of both."""
    draws, thoughts = stream(1, "service").exponential(1.0, 4000), stream(1, "think").exponential(6.0, 4000)
    rows = serve(alone(thoughts.tolist()), clients=8, draw=iter(draws.tolist()).__next__)
    waits = {i: thoughts[i] for i in rows}
    free, filled = [0.0] * 8, [0.0] * 8
    for i in sorted(rows, key=lambda i: rows[i][1]):
        _, at, end, _ = rows[i]
        wait = waits[i] if at else 0.0
        client = min(range(8), key=lambda c: abs(free[c] + wait - at))
        assert free[client] + wait == at
        filled[client] += wait + (end - at)
        free[client] = end
    assert np.allclose(filled, free)


def test_a_closed_loop_of_exponential_times_is_the_machine_repairman():
    """N clients that think for Z and one server, all exponential: P(idle) = 1 / sum N! / (N - k)! (S / Z)^k."""
    clients, think, requests = 6, 4.0, 12_000
    draws = stream(2, "service").exponential(1.0, requests).tolist()
    thoughts = stream(2, "think").exponential(think, requests).tolist()
    rows = serve(alone(thoughts), clients=clients, draw=iter(draws).__next__)
    terms = [math.perm(clients, k) * think**-k for k in range(clients + 1)]
    throughput = 1.0 - 1.0 / sum(terms)
    ends = sorted(row[2] for row in rows.values())
    found = (len(ends) - 1000) / (ends[-1] - ends[999])
    assert found == pytest.approx(throughput, rel=0.02)
    response = np.mean([end - at for _, at, end, _ in rows.values()])
    assert response == pytest.approx(clients / throughput - think, rel=0.03)


def test_the_end_of_the_run_is_planned_when_the_last_has_been_sent():
    rows = serve(alone([0.0] * 6), clients=3, stop=1.5)
    assert [rows[i][3] for i in range(6)] == ["met"] * 4 + ["failed"] * 2
    assert max(row[2] for row in rows.values()) == 4.5
    # What a drop leaves unsent is none: the last that is sent is that which was dropped.
    odd = Session(0, turns(0.0, 1.0, 1.0), due=0.0)
    assert sorted(serve([odd], policy=DropsOdd(), stop=0.5)) == [0, 1]


def test_nothing_to_send_is_an_error():
    with pytest.raises(BadInput, match="no request to send"):
        serve([])


# -- language models -----------------------------------------------------------------------------------------------


def talk(number, *rows, waits=(), first=0, due=None):
    """A session of (new tokens, output) each."""
    plans = [TokenRequest(first + i, 0.0, {"llm": (new, out)}, {"llm": out}) for i, (new, out) in enumerate(rows)]
    return Session(number, list(zip(itertools.chain(waits, itertools.repeat(1.0)), plans, strict=False)), due)


def engine(sessions, *, host=None, blocks=1000, **how):
    log, view = Log(), view_of(Linear(), EngineLimits(blocks=blocks, enable_prefix_caching=True))
    worker = TokenWorker(view.stage, VLLMV1(), view, host=host)
    executor = SimExecutor(lambda worker: TokenTiming(Linear()))
    checker = InvariantChecker(log)
    loop = ServingLoop([view.stage], [worker], executor, checker)
    checker.watch(loop)
    SessionClient(loop, iter(sessions), **how)
    executor.run_until_idle()
    checker.finish()
    return log, worker.view


def test_a_prompt_is_what_was_said_before_and_is_found_in_the_cache():
    log, view = engine([talk(0, (50, 20), (10, 5), (7, 3), due=0.0)])
    said = {r["id"]: r["stages"][0] for r in log.records}
    assert [said[i]["prompt"] for i in range(3)] == [50, 50 + 20 + 10, 50 + 20 + 10 + 5 + 7]
    # The KV of a last token is never computed: 69 tokens are there, in four full blocks of 16, then 84 in five.
    assert [said[i]["cached"] for i in range(3)] == [0, 64, 80]
    assert [(r["session"], r["turn"]) for r in log.records] == [(0, 0), (0, 1), (0, 2)]
    assert view.cache.free == view.blocks


def test_sessions_share_what_they_begin_with_and_nothing_else():
    from servetwin.core.llm import PromptContent

    begins = PromptContent(("system",), 40)
    made = []
    for number in range(2):
        session = talk(number, (50, 20), (10, 5), first=10 * number, due=10.0 * number)
        plans = [
            (wait, TokenRequest(p.id, 0.0, p.tokens, p.outputs, prefix={"llm": begins})) for wait, p in session.turns
        ]
        made.append(Session(number, plans, session.due))
    log, _ = engine(made)
    said = {r["id"]: r["stages"][0]["cached"] for r in log.records}
    assert said == {0: 0, 1: 64, 10: 32, 11: 64}


def test_what_a_preempted_turn_generated_is_found_by_the_next():
    """Few blocks: turns are preempted while they generate, and their next ones still find all that nobody took."""
    sessions = [talk(n, (40, 40), (5, 30), first=10 * n, due=0.0) for n in range(3)]
    log, view = engine(sessions, blocks=14)
    stays = {r["id"]: r["stages"][0] for r in log.records}
    assert sum(stay["preemptions"] for stay in stays.values()) > 0
    assert [stays[10 * n + 1]["prompt"] for n in range(3)] == [85] * 3
    assert max(stays[10 * n + 1]["cached"] for n in range(3)) == 64
    assert view.cache.free == view.blocks
