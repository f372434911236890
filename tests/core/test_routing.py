"""Routers, asked about hand-built workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from servetwin.core import BadInput, BatchWorker, Module, Outcome, Pipeline, Request, Stage, Task, Worker, WorkerView
from servetwin.core.routing import Router
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.experiments.registry import router_registry
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.policies.routing.least_violating import LeastViolating
from servetwin.policies.routing.round_robin import RoundRobin


@pytest.fixture
def stage() -> Stage:
    (stage,) = Pipeline.chain(Module("unet", loop=True)).stages([["unet"]])
    return stage


def worker(stage: Stage, step: float, device: str = "gpu0", limit: int = 4) -> Worker:
    view = WorkerView(stage, lambda _, n: step * (1 + 0.5 * (n - 1)), limit=limit, name=device)
    made = BatchWorker(stage, FCFS(), view, device=device)
    made.loop = SimpleNamespace(now=lambda: 0.0)  # type: ignore[assignment]  # all that a state asks of it
    return made


def asking(kind: Callable[[], Router]) -> Callable[[Sequence[Worker]], Dispatcher]:
    """What asks a router of that kind, for a system of workers."""
    return lambda workers: Dispatcher(workers, kind())


def request(number: int = 0, slo: float = 10.0, steps: int = 10) -> Request:
    return Request(number, 0.0, slo, {"unet": steps})


def load(worker: Worker, requests: int, steps: int = 10, slo: float = 10.0) -> None:
    for i in range(requests):
        worker.view.waiting[Task(request(100 + i, slo, steps), worker.stage, 0.0, worker.place)] = None


def test_round_robin_takes_turns(stage: Stage) -> None:
    workers = [worker(stage, 0.1, f"gpu{i}") for i in range(3)]
    turns = asking(RoundRobin)(workers)
    assert [turns(request(i), workers, 0.0).device for i in range(4)] == ["gpu0", "gpu1", "gpu2", "gpu0"]


def test_least_loaded_weighs_work_by_speed(stage: Stage) -> None:
    slow, fast = worker(stage, 1.0, "slow"), worker(stage, 0.1, "fast")
    assert asking(LeastLoaded)([slow, fast])(request(), [slow, fast], 0.0) is fast
    load(fast, 3)
    assert (
        asking(LeastLoaded)([slow, fast])(request(), [slow, fast], 0.0) is fast
    )  # still sooner done than one request on the slow one
    load(fast, 40)
    assert asking(LeastLoaded)([slow, fast])(request(), [slow, fast], 0.0) is slow


def test_least_loaded_counts_the_inbox_and_what_runs(stage: Stage) -> None:
    first, second = worker(stage, 0.1, "a"), worker(stage, 0.1, "b")
    first.inbox.append(Task(request(7), stage, 0.0, first.place))
    assert asking(LeastLoaded)([first, second])(request(), [first, second], 0.0) is second
    second.view.running[Task(request(8, steps=50), stage, 0.0, second.place)] = None
    assert asking(LeastLoaded)([first, second])(request(), [first, second], 0.0) is first


def test_least_violating_spares_the_urgent(stage: Stage) -> None:
    urgent, patient = worker(stage, 0.1, "urgent"), worker(stage, 0.1, "patient")
    load(urgent, 1, slo=1.2)
    load(patient, 2, slo=100.0)
    assert asking(LeastLoaded)([urgent, patient])(request(), [urgent, patient], 0.0) is urgent
    assert asking(LeastViolating)([urgent, patient])(request(), [urgent, patient], 0.0) is patient


def test_least_violating_takes_the_faster_of_two_that_harm_nobody(stage: Stage) -> None:
    slow, fast = worker(stage, 0.2, "slow"), worker(stage, 0.1, "fast")
    assert asking(LeastViolating)([slow, fast])(request(), [slow, fast], 0.0) is fast


def test_a_request_stays_on_its_device() -> None:
    first, second = Pipeline.chain(Module("a"), Module("b")).stages([["a"], ["b"]])
    before = worker(first, 0.1, "gpu1")
    after = [worker(second, 0.1, f"gpu{i}") for i in range(2)]
    sent = request()
    sent.tasks.append(Task(sent, first, 0.0, before.place))
    choose = asking(RoundRobin)([before, *after])
    assert choose(sent, after, 0.0) is after[1]
    assert choose(request(), after, 0.0) is after[0]


@pytest.mark.parametrize("name", ["round_robin", "round-robin", "least_loaded", "least_violating", "jsq"])
def test_routers_are_found_by_name(name: str, stage: Stage) -> None:
    workers = [worker(stage, 0.1, "a"), worker(stage, 0.1, "b")]
    made = router_registry.make(name, {})
    assert Dispatcher(workers, made)(request(), workers, 0.0) is workers[0]


def test_an_unknown_router_is_one_line() -> None:
    with pytest.raises(BadInput, match="unknown router 'least_lodaed'"):
        router_registry.code_of("least_lodaed")


def test_what_waits_at_a_later_stage_counts() -> None:
    first, second = Pipeline.chain(Module("a"), Module("b")).stages([["a"], ["b"]])
    begin = [worker(first, 0.1, f"gpu{i}") for i in range(2)]
    end = [worker(second, 0.1, f"gpu{i}") for i in range(2)]
    load(end[0], 3)
    for kind in (LeastLoaded, LeastViolating):
        assert asking(kind)([*begin, *end])(request(), begin, 0.0) is begin[1]


@pytest.mark.parametrize("kind", [LeastLoaded, LeastViolating])
def test_what_is_on_its_way_counts(kind, stage: Stage) -> None:
    first, second = worker(stage, 0.1, "a"), worker(stage, 0.1, "b")
    first.coming[Task(request(7, slo=0.5), stage, 0.0, first.place)] = None
    assert asking(kind)([first, second])(request(), [first, second], 0.0) is second
    second.coming[Task(request(8, slo=0.5, steps=50), stage, 0.0, second.place)] = None
    assert asking(kind)([first, second])(request(), [first, second], 0.0) is first


def test_who_has_ended_on_the_way_does_not_count(stage: Stage) -> None:
    first, second = worker(stage, 0.1, "a"), worker(stage, 0.1, "b")
    gone = Task(request(7, steps=100), stage, 0.0, first.place)
    gone.request.outcome = Outcome.FAILED
    first.coming[gone] = None
    load(second, 1)
    assert asking(LeastLoaded)([first, second])(request(), [first, second], 0.0) is first


@pytest.mark.parametrize("kind", [LeastLoaded, LeastViolating])
def test_equals_take_turns(kind, stage: Stage) -> None:
    workers = [worker(stage, 0.1, device) for device in "abc"]
    router = asking(kind)(workers)
    assert [router(request(i), workers, 0.0).device for i in range(5)] == ["a", "b", "c", "a", "b"]
    load(workers[2], 1)
    assert [router(request(i), workers, 0.0).device for i in range(3)] == ["a", "b", "a"]
    # The same jobs in another order are the same load, whatever their sum's last bit.
    for loaded, steps in ((workers[0], (1, 2, 3)), (workers[1], (3, 2, 1))):
        for n in steps:
            load(loaded, 1, steps=n)
    load(workers[2], 9)
    assert {router(request(i), workers, 0.0).device for i in range(2)} == {"a", "b"}
