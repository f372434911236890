"""Fleets by hand: who is started, ready, drained and held when, and what an autoscaler is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from servetwin.core import BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.errors import PolicyFault
from servetwin.core.fleets import fleet as fleets
from servetwin.core.fleets.fleet import Fleet, Rules
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.scaling.autoscaler import Autoscaler, FleetState
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.routing.central import Central
from servetwin.policies.routing.jsq import JSQ
from servetwin.policies.scaling.by_attainment import ByAttainment
from servetwin.policies.scaling.by_queue import ByQueue
from servetwin.policies.scaling.by_schedule import BySchedule
from servetwin.policies.scaling.by_utilisation import ByUtilisation
from servetwin.sim import SimExecutor, TableTiming


class Ends(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[int, float, str]] = []

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.ends.append((request.id, now, request.tasks[-1].worker.name))


class Told(Autoscaler):
    """Wants what a function of the time says, and keeps what it saw."""

    by_clock = True

    def __init__(self, says) -> None:
        self.says = says
        self.seen: list[tuple[float, FleetState]] = []

    def want(self, fleet, now):
        self.seen.append((now, fleet))
        return self.says(now)


def serve(
    scaler: Autoscaler,
    rules: Rules,
    arrivals: Sequence[float],
    *,
    service: float = 4.0,
    start: float = 2.2,
    router=Central,
) -> tuple[Fleet, Ends]:
    """A replica is one worker that serves one request at a time."""
    (stage,) = Pipeline.chain(Module("server")).stages([["server"]])
    views = [WorkerView(stage, lambda _, n: service, limit=1, name=f"server{i}") for i in range(rules.most)]
    workers = [BatchWorker(stage, FCFS(), view, device=f"gpu{i}") for i, view in enumerate(views)]
    executor = SimExecutor(lambda _: TableTiming([math.nan, service]))
    fleet, log = Fleet([[w] for w in workers], scaler, rules, lambda _: start), Ends()
    checker = InvariantChecker(log)
    loop = ServingLoop([stage], workers, executor, checker, router=Dispatcher(workers, router()), fleet=fleet)
    checker.watch(loop)
    play(loop, (Request(i, at, at + 6.0, {}) for i, at in enumerate(arrivals)))
    executor.run_until_idle()
    checker.finish()
    return fleet, log


def held(fleet: Fleet, until: float) -> list[list[tuple[float, float]]]:
    return [replica.held_between(0.0, until) for replica in fleet.replicas]


def test_a_spike_by_hand() -> None:
    """Six requests come at 9.5 s. At 10 s three replicas are started; at 17 s two requests are left, at 18 s one."""
    fleet, log = serve(ByQueue(target=1.0), Rules(1, 4, 1, every=1.0), [9.5] * 6)
    assert sorted(round(when, 6) for _, when, _ in log.ends) == [13.5, 16.2, 16.2, 16.2, 17.5, 20.2]
    first, *others = held(fleet, 20.2)
    assert first == [(0.0, 18.0)]
    assert sorted(others) == [[(10.0, 17.0)], [(10.0, 17.0)], [(10.0, 20.2)]]
    told = fleet.summary(9.5, 20.2)
    assert told["most_replicas"] == 4
    assert told["mean_replicas"] == pytest.approx((8.5 + 10.2 + 7.0 + 7.0) / 10.7)
    assert told["starts"] == 3


def test_who_is_not_wanted_any_more_is_let_go_while_it_starts() -> None:
    fleet, _ = serve(Told(lambda now: 3 if now == 1.0 else 1), Rules(1, 3, 1, every=1.0), [0.5, 0.6, 0.7], start=5.0)
    assert held(fleet, 12.5)[1:] == [[(1.0, 2.0)], [(1.0, 2.0)]]
    assert fleet.starts == 2


def test_what_drains_ends_what_it_has_and_takes_nothing_new() -> None:
    """Both have one request, and two wait behind each; from 1 s on one replica is wanted."""
    fleet, log = serve(
        Told(lambda now: 2 if now < 1.0 else 1), Rules(1, 2, 2, every=1.0), [0.1, 0.2, 0.3, 0.4, 5.0, 5.1], router=JSQ
    )
    where = {number: name for number, _, name in log.ends}
    assert [where[n] for n in range(4)] == ["server0", "server1", "server0", "server1"]
    assert where[4] == where[5] == "server0"
    assert held(fleet, 20.0)[1] == [(0.0, pytest.approx(8.2))]


def test_what_drains_is_taken_back_before_another_is_started() -> None:
    fleet, _ = serve(Told(lambda now: 1 if now == 1.0 else 2), Rules(1, 3, 2, every=1.0), [0.1, 0.2, 6.0], router=JSQ)
    assert fleet.starts == 0
    assert [state for _, number, state in fleet.changes if number == 1] == ["ready", "draining", "ready"]


def test_requests_wait_until_one_is_there() -> None:
    fleet, log = serve(ByQueue(target=1.0), Rules(0, 1, 0, every=None), [1.0, 20.0], start=3.0, router=JSQ)
    assert [round(when, 6) for _, when, _ in log.ends] == [8.0, 27.0]
    assert held(fleet, 27.0) == [[(1.0, 8.0), (20.0, 27.0)]]
    assert fleet.summary(1.0, 27.0)["waited_for_a_replica"] == 2


@pytest.mark.parametrize(
    ("rules", "changes"),
    [
        (Rules(1, 4, 1, every=1.0), [(5.0, 4), (10.0, 1)]),
        (Rules(1, 4, 1, every=1.0, up_after=3.0), [(8.0, 4), (10.0, 1)]),
        (Rules(1, 4, 1, every=1.0, down_after=4.0), [(5.0, 4), (14.0, 1)]),
        (Rules(1, 4, 1, every=1.0, up_after=7.0), []),
        (Rules(1, 4, 1, every=1.0, cooldown=8.0), [(5.0, 4), (13.0, 1)]),
        (Rules(2, 3, 2, every=1.0), [(5.0, 3), (10.0, 2)]),
    ],
)
def test_delays_cooldown_and_bounds(rules: Rules, changes: list[tuple[float, int]]) -> None:
    """Four are wanted from 5 s to 10 s, one else."""
    fleet, _ = serve(Told(lambda now: 4 if 5.0 <= now < 10.0 else 1), rules, [0.0, 20.0], start=0.5)
    on, found = rules.initial, []
    for when, _, state in fleet.changes[rules.initial :]:
        on += (state == "starting") - (state == "draining")
        if found and found[-1][0] == when:
            found[-1] = (when, on)
        elif state in ("starting", "draining"):
            found.append((when, on))
    assert [change for change in found if change[1] != rules.initial or change in changes] == changes


def test_a_delay_holds_where_it_is_asked_by_events() -> None:
    """Nothing is there from 5 s on; three seconds later the replica goes, though nothing happens then."""
    fleet, _ = serve(ByQueue(target=1.0), Rules(0, 1, 0, every=None, down_after=3.0), [0.0, 30.0], start=1.0)
    assert held(fleet, 29.0) == [[(0.0, 8.0)]]


def test_what_an_autoscaler_sees() -> None:
    scaler = Told(lambda now: 1)
    serve(scaler, Rules(1, 2, 1, every=2.0, window=4.0), [0.5, 1.0, 1.5])
    seen = dict(scaler.seen)
    assert seen[0.0] == FleetState(0.0, 1, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 1)
    two = seen[2.0]
    assert (two.waiting, two.running, two.arrived, two.window) == (2, 1, 3, 2.0)
    assert two.utilisation == pytest.approx(0.75)
    six = seen[6.0]  # one has ended at 4.5, after its four seconds; they are due after six
    assert (six.arrived, six.ended, six.met, six.attainment) == (0, 1, 1, 1.0)
    assert six.utilisation == pytest.approx(1.0)
    assert seen[10.0].attainment == 0.0  # the second ended at 8.5


def test_a_stale_view_is_so_old() -> None:
    scaler = Told(lambda now: 1)
    serve(scaler, Rules(1, 1, 1, every=1.0, stale=3.0), [1.5, 2.5])
    assert [(when, state.time) for when, state in scaler.seen][:6] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 2)]


@pytest.mark.parametrize("answer", [1.5, -1, True, None, "two"])
def test_an_answer_that_is_none_is_its_fault(answer: Any) -> None:
    with pytest.raises(PolicyFault, match=r"Told .*wants .* replicas .*whole number"):
        serve(Told(lambda now: answer), Rules(0, 1, 0, every=1.0), [0.5])


def test_who_leaves_requests_without_a_replica_for_ever_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "PATIENCE", 50)
    with pytest.raises(PolicyFault, match="wanted no replica 50 times on end, and 1 requests wait"):
        serve(Told(lambda now: 0), Rules(0, 1, 0, every=1.0), [0.5])


def test_it_is_asked_again_when_something_comes_that_nobody_knew_of() -> None:
    """Without a client that says what is to come, questions end with the last request."""
    (stage,) = Pipeline.chain(Module("server")).stages([["server"]])
    worker = BatchWorker(stage, FCFS(), WorkerView(stage, lambda _, n: 4.0, limit=1, name="server"))
    executor = SimExecutor(lambda _: TableTiming([math.nan, 4.0]))
    scaler, log = Told(lambda now: 1), Ends()
    fleet = Fleet([[worker]], scaler, Rules(0, 1, 0, every=1.0), lambda _: 2.0)
    loop = ServingLoop([stage], [worker], executor, log, fleet=fleet)
    for number, at in enumerate((0.5, 20.25)):
        executor.call_at(at, partial(loop.arrive, Request(number, at, 99.0, {})))
    executor.run_until_idle()
    assert [when for _, when, _ in log.ends] == [6.0, 24.25]
    assert [when for when, _ in scaler.seen] == [0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 20.25, 21.25, 22.25, 23.25]


def state(**said: Any) -> FleetState:
    usual = FleetState(100.0, 2, 0, 0, 0, 0, 0, 0, 0, 0.0, 60.0, 8)
    return usual._replace(**said)


@pytest.mark.parametrize(
    ("scaler", "seen", "wanted"),
    [
        (ByQueue(target=4), state(waiting=3, running=6), 3),
        (ByQueue(target=4), state(), 0),
        (ByQueue(target=4, waiting=True), state(waiting=5, running=9), 4),
        (ByUtilisation(target=0.5), state(utilisation=0.9), 4),
        (ByUtilisation(target=0.5), state(utilisation=0.54), 2),
        (ByUtilisation(target=0.5), state(utilisation=0.1, running=1), 1),
        (ByUtilisation(target=0.5), state(utilisation=0.1, starting=2), 4),
        (ByUtilisation(target=0.5), state(ready=0, waiting=1), 1),
        (ByUtilisation(target=0.5), state(ready=0), 0),
        (ByAttainment(target=0.9), state(ended=10, met=8), 3),
        (ByAttainment(target=0.9), state(ended=10, met=8, starting=1), 3),
        (ByAttainment(target=0.9), state(ended=10, met=9, utilisation=0.3, running=1), 1),
        (ByAttainment(target=0.9), state(ended=10, met=10, utilisation=0.8, running=1), 2),
        (ByAttainment(target=0.9), state(ready=0, waiting=2), 1),
        (BySchedule([(0, 1), (60, 4), (120, 2)]), state(), 4),
        (BySchedule([(0, 1), (60, 4), (120, 2)], ahead=20), state(), 2),
        (BySchedule([(0, 1), (60, 4)], every=90), state(), 1),
    ],
)
def test_what_those_that_come_along_want(scaler: Autoscaler, seen: FleetState, wanted: int) -> None:
    assert scaler.want(seen, seen.time) == wanted
