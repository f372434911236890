"""Workers that fail, by hand: who is lost when, noticed when, and served where and until when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from servetwin.core import Batch, BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.faults.faults import Faults
from servetwin.core.faults.schedule import Event, OutOfMemory, Retry, Rules, drawn, in_order
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.policies.routing.central import Central
from servetwin.policies.routing.jsq import JSQ
from servetwin.policies.routing.round_robin import RoundRobin
from servetwin.sim import SimExecutor, TableTiming
from worlds import Steps


class Served:
    """Requests of *steps* iterations, a second each, at workers that serve one (or *limit*) at a time."""

    def __init__(
        self,
        events: Iterable[Event],
        arrivals: Sequence[float],
        *,
        rules: Rules | None = None,
        workers: int = 2,
        router: type = RoundRobin,
        steps: int = 4,
        limit: int = 1,
        policy: type = Steps,
    ) -> None:
        (stage,) = Pipeline.chain(Module("unet", loop=True)).stages([["unet"]])
        views = [WorkerView(stage, lambda _, n: 1.0, limit=limit, name=f"w{i}") for i in range(workers)]
        self.workers = [BatchWorker(stage, policy(), view, device=f"gpu{i}") for i, view in enumerate(views)]
        self.executor = SimExecutor(lambda _: TableTiming([math.nan, *[1.0] * limit]))
        self.executor.breaks = True
        self.faults = Faults(self.workers, iter(list(events)), rules or Rules(1.0, Retry(1)))
        self.told: dict[int, list[dict[str, Any]]] = {}
        self.cut_off: list[tuple[float, float]] = []  # when batches that were cut off began and ended
        told, cut_off = self.told, self.cut_off

        class Kept(Recorder):
            def batch(self, batch: Batch) -> None:
                super().batch(batch)
                if batch.lost:
                    cut_off.append((batch.start, batch.end))

            def ended(self, request: Request, now: float) -> None:
                super().ended(request, now)
                told[request.id] = [*self.attempts.get(request.id, ())]

        self.checker = InvariantChecker(Kept())
        chosen = Dispatcher(self.workers, router())
        loop = ServingLoop([stage], self.workers, self.executor, self.checker, router=chosen, fleet=self.faults)
        self.checker.watch(loop)
        self.requests = [Request(i, at, 100.0, {"unet": steps}) for i, at in enumerate(arrivals)]
        play(loop, iter(self.requests))
        self.executor.run_until_idle()
        self.checker.finish()

    def ends(self) -> list[tuple[str, float | None, str]]:
        """(outcome, when it finished, where it was last) of each request."""
        return [(r.outcome.value, r.finished, r.tasks[-1].worker.name) for r in self.requests]


def test_what_is_lost_is_noticed_and_sent_again() -> None:
    """w0 fails at 2.5 s, with two of four steps done. It is noticed a second later, and begun anew at w1."""
    served = Served([Event(2.5, "fail", ("w0",), 20.0)], [0.0, 1.0])
    assert served.ends() == [("met", 9.0, "w1"), ("met", 5.0, "w1")]
    (lost,) = served.told[0]
    assert lost == {
        "stage": "unet", "worker": "w0", "queued": 0.0, "admitted": 0.0, "started": 0.0, "lost": 2.5,
        "again": 3.5, "iterations": 2,
    }  # fmt: skip
    told = served.faults.summary(0.0, 9.0)
    assert (told["failures"], told["visits_lost"], told["visits_retried"], told["gave_up"]) == (1, 1, 1, 0)
    assert told["mean_seconds_to_notice"] == 1.0
    assert told["lost_device_seconds"] == 0.5
    assert told["workers"]["w0"] == {"failures": 1, "down_seconds": 6.5, "availability": 1 - 6.5 / 9}
    assert told["workers"]["w1"]["availability"] == 1.0


def test_without_a_retry_it_fails_and_counts_as_not_met() -> None:
    served = Served([Event(2.5, "fail", ("w0",), 20.0)], [0.0, 1.0], rules=Rules(1.0))
    assert [r.outcome.value for r in served.requests] == ["failed", "met"]
    assert served.requests[0].reason == "w0 failed"
    assert served.checker.summary.attainment == 0.5
    assert served.checker.summary.last_end == 5.0


def test_routers_go_on_sending_until_it_is_noticed() -> None:
    """Round-robin sends the third to w0, which is down and nobody knows; when it is back it gets some again."""
    served = Served([Event(0.5, "fail", ("w0",), 12.0)], [0.0, 0.0, 1.0, 2.6, 13.0, 13.0])
    assert [task["worker"] for task in served.told[2]] == ["w0"]
    assert served.told[2][0]["started"] is None
    assert served.told[3] == []
    assert served.requests[3].tasks[0].worker.name == "w1"  # w0 is known to be down
    assert "w0" in {served.requests[i].tasks[0].worker.name for i in (4, 5)}


def test_what_a_dead_worker_lost_still_counts_as_there() -> None:
    """The shortest queue is not that of a worker of which nobody knows that it is down."""
    event, rules = Event(0.5, "fail", ("w0",), 50.0), Rules(3.0, Retry(2))
    served = Served([event], [0.0, 0.0, 0.1, 0.2, 1.0], router=JSQ, rules=rules)
    sent = [served.told[i][0]["worker"] if served.told[i] else "w1" for i in range(5)]
    assert sent == ["w0", "w1", "w0", "w1", "w0"]  # two each, and then either


def test_one_that_is_back_before_that_is_noticed_is_empty() -> None:
    """w0 is back after half a second; what it lost is still noticed after three."""
    served = Served([Event(1.5, "crash", ("w0",), 2.0)], [0.0, 2.5], workers=1, rules=Rules(3.0, Retry(1)))
    assert served.ends() == [("met", 10.5, "w0"), ("met", 6.5, "w0")]


def test_all_wait_for_the_one_that_is_back() -> None:
    served = Served([Event(1.5, "fail", ("w0",), 20.0)], [0.0, 5.0], workers=1)
    assert served.ends() == [("met", 24.0, "w0"), ("met", 28.0, "w0")]


@pytest.mark.parametrize("router", [RoundRobin, Central])
def test_who_waits_for_one_that_never_comes_back_fails(router: type) -> None:
    served = Served([Event(1.5, "fail", ("w0",))], [0.0, 1.0, 5.0], workers=1, router=router)
    assert [r.outcome.value for r in served.requests] == ["failed"] * 3
    assert served.requests[2].reason == "no worker of unet is left"
    assert served.requests[2].tasks == []


def test_it_is_sent_again_only_so_often() -> None:
    events = [Event(at, "crash", ("w0",), at + 0.25) for at in (1.0, 4.0, 8.0)]
    served = Served(events, [0.0], workers=1, rules=Rules(0.5, Retry(2, backoff=0.5)))
    assert served.ends()[0][0] == "failed"
    assert served.requests[0].reason == "w0 failed, and it was sent 3 times"
    assert [(one["started"], one["lost"]) for one in served.told[0]] == [(0.0, 1.0), (2.0, 4.0), (5.0, 8.0)]


def test_a_slow_worker_gets_on_by_the_factor() -> None:
    """Four steps: one and a half, then 4 s at a third of the speed, then the rest."""
    served = Served([Event(1.5, "slow", ("w0",), 5.5, factor=4.0)], [0.0], workers=1)
    assert served.requests[0].finished == pytest.approx(7.0)
    slow = Served([Event(1.5, "slow", ("w0",), factor=2.0)], [0.0], workers=1)
    assert slow.requests[0].finished == pytest.approx(1.5 + 2 * 2.5)
    assert slow.faults.summary(0.0, 6.5)["mean_availability"] == 1.0


def test_one_that_stands_still_goes_on_where_it_was() -> None:
    served = Served([Event(1.5, "pause", ("w0",), 2.25)], [0.0, 1.75], workers=1)
    assert [r.finished for r in served.requests] == [4.75, 8.75]
    assert served.faults.summary(0.0, 8.0)["failures"] == 0


def test_one_that_stands_still_for_too_long_is_taken_to_be_down() -> None:
    served = Served([Event(1.5, "pause", ("w0",), 9.0)], [0.0, 2.0], workers=1)
    assert served.ends() == [("met", 13.0, "w0"), ("met", 17.0, "w0")]
    (outage,) = served.faults.outages["w0"]
    assert (outage.at, outage.until, outage.noticed, outage.lost_requests) == (1.5, 9.0, 2.5, 2)
    assert outage.lost_seconds == pytest.approx(0.5)  # of its second step; then it stood still
    told = served.faults.summary(0.0, 17.0)
    assert (told["mean_seconds_to_notice"], told["workers"]["w0"]["down_seconds"]) == (1.0, 7.5)
    (line,) = served.faults.lines()
    assert (line["kind"], line["at"], line["until"], line["noticed"]) == ("pause", 1.5, 9.0, 2.5)
    assert served.cut_off == [(1.0, 1.5)]


def test_what_befalls_a_worker_that_is_down_is_told_as_that() -> None:
    """A failure lets it be back later; what is down cannot be paused, and a pause ends where its worker fails."""
    events = [Event(1.0, "pause", ("w0",), 9.0), Event(1.5, "fail", ("w0",), 5.0)]
    events += [Event(2.0, "fail", ("w0",), 6.0), Event(3.0, "pause", ("w0",), 7.0)]
    served = Served(events, [0.0, 0.0], rules=Rules(1.0, Retry(2)))
    told = [(x["kind"], x["at"], x["until"], x.get("while_down", False)) for x in served.faults.lines()]
    assert told == [
        ("pause", 1.0, 1.5, False),
        ("fail", 1.5, 6.0, False),
        ("fail", 2.0, 6.0, True),
        ("pause", 3.0, 3.0, True),
    ]
    assert served.faults.summary(0.0, 8.0)["failures"] == 1


def test_nobody_is_sent_again_to_workers_that_are_gone() -> None:
    served = Served([Event(1.5, "fail", ("w0",))], [0.0, 0.0], workers=1, rules=Rules(3.0, Retry(2)))
    assert [r.outcome.value for r in served.requests] == ["failed", "failed"]
    counts = served.faults.counts
    assert (counts.lost, counts.retried, counts.requests, counts.gave_up) == (2, 0, 0, 2)


def test_a_pause_in_a_pause_ends_with_the_later_one() -> None:
    """Two of half a second that overlap are one of 0.75 s; a second one for ever is a failure, a second after the
    first began."""
    both = [Event(1.5, "pause", ("w0",), 2.0), Event(1.75, "pause", ("w0",), 2.25)]
    assert Served(both, [0.0], workers=1).requests[0].finished == 4.75
    served = Served([both[0], Event(1.75, "pause", ("w0",))], [0.0], workers=1)
    assert [r.outcome.value for r in served.requests] == ["failed"]
    (outage,) = served.faults.outages["w0"]
    assert (outage.at, outage.noticed) == (1.5, 2.5)


def test_messages_are_late_or_lost() -> None:
    late = Served([Event(0.0, "late", ("w0",), 3.0, seconds=0.5)], [1.0, 6.0], workers=1)
    assert [r.finished for r in late.requests] == [5.5, 10.0]
    lost = Served([Event(0.5, "lost", ("w0",), 1.5)], [1.0], workers=1)
    assert lost.ends() == [("met", 6.0, "w0")]  # sent again a second later
    assert lost.told[0][0]["started"] is None


def test_a_batch_that_does_not_fit_fails_and_the_worker_stays() -> None:
    rules = Rules(1.0, None, {"w0": OutOfMemory(3)})
    served = Served([], [0.0, 0.0, 0.0, 5.0], workers=1, limit=4, rules=rules)
    assert [r.outcome.value for r in served.requests] == ["failed"] * 3 + ["met"]
    assert "a batch of 3 did not fit into the memory of w0" in served.requests[0].reason
    assert served.requests[3].finished == 9.0
    restarting = Rules(1.0, None, {"w0": OutOfMemory(3, restart=7.0)})
    served = Served([], [0.0, 0.0, 0.0, 5.0], workers=1, limit=4, rules=restarting)
    assert [r.outcome.value for r in served.requests] == ["failed"] * 3 + ["met"]
    assert served.requests[3].finished == 11.0


def test_drawn_failures_do_not_depend_on_the_run() -> None:
    """The same for each policy; their means are those that were asked for."""
    one, two = drawn("gpu0", ["w0"], 100.0, 5.0, 3), drawn("gpu1", ["w1"], 100.0, 5.0, 3)
    first = [next(one) for _ in range(2000)]
    again = drawn("gpu0", ["w0"], 100.0, 5.0, 3)
    assert first[:5] == [next(again) for _ in range(5)]
    ups = [b.at - a.until for a, b in itertools.pairwise(first)]
    downs = [event.until - event.at for event in first]
    assert sum(ups) / len(ups) == pytest.approx(100.0, rel=0.08)
    assert sum(downs) / len(downs) == pytest.approx(5.0, rel=0.08)
    both = in_order([Event(50.0, "slow", ("w0",), 60.0)], drawn("gpu0", ["w0"], 100.0, 5.0, 3), two)
    times = [next(both).at for _ in range(100)]
    assert times == sorted(times)
    assert 50.0 in times


def test_nothing_that_never_happens_changes_a_run() -> None:
    arrivals = [0.3 * i for i in range(40)]
    plain = Served([], arrivals, limit=4, router=JSQ)
    other = Served([Event(1e6, "fail", ("w0",))], arrivals, limit=4, router=JSQ)
    assert plain.ends() == other.ends()
    assert other.executor.now() < 1e6 or other.faults.outages["w0"] == []
