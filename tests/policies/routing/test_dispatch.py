"""What routers may see and say: a central queue binds once and idles nobody, states can be stale."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Script, WorkerSetup, simulate
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput, Decision, Module, Pipeline, Request
from servetwin.core.errors import PolicyFault
from servetwin.core.routing import Router, WorkerState
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.assembly.inputs import inputs_of
from servetwin.experiments.registry import router_registry
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.cache import Cache
from servetwin.experiments.sweeps.sweep import sweep
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.routing.central import Central

PIPELINE = Pipeline.chain(Module("m", loop=True))


@given(
    gaps=st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=1, max_size=25),
    steps=st.lists(st.integers(1, 4), min_size=25, max_size=25),
    slo=st.sampled_from([2.0, 9.0, 99.0]),
    depth=st.sampled_from([None, 1, 3]),
)
def test_a_central_queue_conserves_work_and_binds_once(gaps, steps, slo, depth) -> None:
    now, sent = 0.0, []
    for i, gap in enumerate(gaps):
        now += gap
        sent.append(Request(i, now, slo, {"m": steps[i]}))
    central = Central(depth)
    bound: list[int] = []
    idle: list[float] = []

    class Watched(Dispatcher):
        def freed(self, stage) -> None:
            super().freed(stage)
            if self.waiting(stage) and not self._binding:
                room = [w for w in self._workers if self._has_room(central, w)]
                idle.extend([self._loop.now()] * len(room))

        def hold(self, request, stage, before, workers) -> None:
            bound.append(request.id)
            super().hold(request, stage, before, workers)

    setups = [WorkerSetup(["m"], FCFS(), limit=2, device=f"gpu{i}", name=f"w{i}") for i in range(3)]
    result = simulate(PIPELINE, setups, sent, router=lambda workers: Watched(workers, central))
    assert not idle
    assert bound == [r.id for r in sent]
    assert all(len(r.tasks) == 1 for r in result.requests)
    starts = [(r.arrival, r.tasks[0].queued) for r in result.requests]
    assert [q for _, q in starts] == sorted(q for _, q in starts)  # first come, first served


def test_requests_that_are_cut_off_leave_the_central_queue() -> None:
    sent = [Request(i, 0.0, 99.0, {"m": 50}) for i in range(20)]
    setups = [WorkerSetup(["m"], FCFS(), limit=1, device=f"gpu{i}", name=f"w{i}") for i in range(2)]
    result = simulate(PIPELINE, setups, sent, router=lambda w: Dispatcher(w, Central()), stop_at=3.0)
    assert set(result.outcomes()) == {"failed"}
    assert sum(not r.tasks for r in result.requests) == 18  # never bound


def test_who_is_refused_makes_room_for_the_next_in_the_central_queue() -> None:
    """Two requests run, for two seconds and for nine; the third is refused where it comes to, and the fourth takes
    that place at once."""
    sent = [Request(i, 0.0, 99.0, {"m": steps}) for i, steps in enumerate([2, 9, 1, 1])]
    setups = [
        WorkerSetup(["m"], Script(admit=lambda task, view, now: task.id != 2), limit=1, device=name, name=name)
        for name in ("w0", "w1")
    ]
    result = simulate(PIPELINE, setups, sent, router=lambda w: Dispatcher(w, Central()))
    assert result.outcomes() == ["met", "met", "dropped", "met"]
    last = result.requests[3].tasks[0]
    assert (last.worker.name, last.queued, last.finished) == ("w0", 2.0, 3.0)


class Sees(Router):
    """Keeps what it saw."""

    def start(self, workers, seed) -> None:
        self.seen: list[tuple[float, list[int]]] = []

    def route(self, request, workers, now) -> WorkerState:
        self.seen.append((now, [w.present for w in workers]))
        return workers[0]


@pytest.mark.parametrize(("stale", "counts"), [(0.0, [0, 1, 2, 3]), (2.5, [0, 0, 0, 3])])
def test_what_a_router_sees_is_as_old_as_it_may_be(stale: float, counts: list[int]) -> None:
    sent = [Request(i, float(i), 99.0, {"m": 50}) for i in range(4)]
    router = Sees()
    setups = [WorkerSetup(["m"], FCFS(), limit=2, device=f"gpu{i}", name=f"w{i}") for i in range(2)]
    simulate(PIPELINE, setups, sent, router=lambda w: Dispatcher(w, router, stale={router: stale}))
    assert [present[0] for _, present in router.seen] == counts


class Wrong(Router):
    def __init__(self, answer) -> None:
        self.answer = answer

    def route(self, request, workers, now):
        return self.answer(request, workers)


def write(name: str):
    def answer(request, workers):
        setattr(request, name, 7.0)
        return workers[0]

    return answer


def write_state(request, workers):
    workers[0].name = "mine"
    return workers[0]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (lambda r, w: "w0", PolicyFault, "router Wrong .*it routes"),
        (lambda r, w: w[0].name, PolicyFault, "it routes"),
        (write("deadline"), PolicyFault, "wrote deadline"),
        (write("priority"), PolicyFault, "wrote priority"),
        (write_state, AttributeError, "not a router's to set"),
    ],
)
def test_a_router_reads_and_answers_with_one_of_its_workers(answer, error, says) -> None:
    sent = [Request(i, 0.1 * i, 9.0, {"m": 2}) for i in range(4)]
    setups = [WorkerSetup(["m"], FCFS(), device=f"gpu{i}", name=f"w{i}") for i in range(2)]
    with pytest.raises(error, match=says):
        simulate(PIPELINE, setups, sent, router=lambda w: Dispatcher(w, Wrong(answer)))


class Binds(Central):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def bind(self, queue, workers, now):
        return self.answer(queue, workers)


@pytest.mark.parametrize(
    "answer", [lambda q, w: q[0], lambda q, w: (Request(9, 0.0, 1.0, {}), w[0]), lambda q, w: (q[0], "w0")]
)
def test_a_binding_is_of_who_waits_and_who_has_room(answer) -> None:
    setups = [WorkerSetup(["m"], FCFS(), device=f"gpu{i}", name=f"w{i}") for i in range(2)]
    with pytest.raises(PolicyFault, match=r"router Binds .*it binds"):
        simulate(PIPELINE, setups, [Request(0, 0.0, 9.0, {"m": 2})], router=lambda w: Dispatcher(w, Binds(answer)))


def test_a_state_leads_to_no_engine() -> None:
    """Nothing that a router can read gives the worker behind it, or the loop."""
    found = []

    class Looks(Router):
        def route(self, request, workers, now) -> WorkerState:
            for name in WorkerState.__slots__:
                value = getattr(workers[0], name)
                found.extend(getattr(value, peek, None) for peek in ("__wrapped__", "__closure__", "__self__"))
            return workers[0]

    setups = [WorkerSetup(["m"], FCFS(), device=f"gpu{i}", name=f"w{i}") for i in range(2)]
    simulate(PIPELINE, setups, [Request(0, 0.0, 9.0, {"m": 2})], router=lambda w: Dispatcher(w, Looks()))
    assert found
    assert set(map(type, found)) <= {type(None)}


def test_policies_see_their_peers() -> None:
    seen = {}

    class Peers(FCFS):
        def decide(self, view, now) -> Decision:
            seen[view.name, now] = {peer.name: peer.present for peer in view.peers}
            return super().decide(view, now)

    sent = [Request(i, 0.5 * i, 99.0, {"m": 9}) for i in range(3)]
    setups = [WorkerSetup(["m"], Peers(), limit=4, device=f"gpu{i}", name=f"w{i}") for i in range(2)]
    simulate(PIPELINE, setups, sent, router=lambda w: Dispatcher(w, router_registry.make("round_robin", {})))
    assert seen["w1", 0.5] == {"w0": 1, "w1": 1}
    assert simulate(PIPELINE, [WorkerSetup(["m"], FCFS())], sent[:0]).loop.workers[0].view.peers == ()


# -- in experiments -------------------------------------------------------------------------------------------------

OWN = '''"""Sends all to the last worker."""
from servetwin.core.routing import Router


class Last(Router):
    """*back*: so many places from the end."""

    def __init__(self, back: int = 1) -> None:
        self.back = back

    def route(self, request, workers, now):
        return workers[-self.back]
'''


def small(router: object, **more):
    content = {"extends": "dit-s2-256-rtx4090", "workload": {"requests": 40}, "deployment": {"replicas": 3}}
    content["deployment"] |= {"router": router, **more}  # type: ignore[operator]
    return load(content)


def where(experiment) -> set[str]:
    made = build(experiment)
    ended = made.recorder.ended
    found = set()

    def hear(request, now) -> None:
        found.update(task.worker.name for task in request.tasks[:1])
        ended(request, now)

    made.loop._hear_end = hear
    made.play()
    return found


def test_a_router_of_a_file_by_name_with_parameters_and_in_the_key(tmp_path: Path) -> None:
    path = tmp_path / "last.py"
    path.write_text(OWN)
    for named in (str(path), f"{path}:Last", {"name": str(path), "params": {"back": 1}}):
        assert len(where(small(named))) == 1
    experiment = small({"name": str(path), "params": {"back": 2}, "stale": 0.5})
    assert experiment.deployment.router.params == {"back": 2}
    assert experiment.digest() != small(str(path)).digest()
    before = inputs_of(experiment)
    path.write_text(OWN.replace("-self.back", "0"))
    assert inputs_of(experiment) != before


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ("least_lodaed", "unknown router 'least_lodaed'.*least_loaded"),
        ("there.py", "there is no such policy file"),
        ({"name": "power_of_two", "params": {"choice": 3}}, "router PowerOfTwo takes no parameter 'choice'.*choices"),
        ({"name": "power_of_two", "params": {"choices": 0}}, "choices is 0"),
        ({"name": "central", "params": {"depth": "many"}}, "'many' does not fit parameter 'depth'"),
        ({"name": "jsq", "stale": -1}, "stale"),
        ({"name": "jsq", "fresh": 1}, "fresh"),
    ],
)
def test_a_router_that_is_not_well_said_is_one_line(router: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        small(router)


@pytest.mark.parametrize("name", sorted(router_registry.router_names()))
def test_each_router_serves_and_gives_the_same_twice(name: str) -> None:
    one, two = run(small(name)).as_dict(), run(small(name)).as_dict()
    assert one == two
    assert one["finished"] + one["dropped"] == 40
    first, _ = router_registry.describe(name)
    assert first


def test_a_router_is_an_axis_of_a_sweep_and_its_file_is_in_the_key(tmp_path: Path) -> None:
    path, spec = tmp_path / "last.py", tmp_path / "sweep.yaml"
    path.write_text(OWN)
    axes = f"grid: {{router: [central, {path}], replicas: [3]}}"
    spec.write_text(f"extends: dit-s2-256-rtx4090\n{axes}\nvary: {{requests: [40]}}\n")
    with Cache(tmp_path / "cache") as cache:
        first = sweep(spec, None, jobs=1, cache=cache)
        assert [row["deployment.router"] for row in first] == ["central", str(path)]
        path.write_text(OWN.replace("workers[-self.back]", "min(workers, key=lambda w: w.present)"))
        again = sweep(spec, None, jobs=1, cache=cache)
    assert again[0] == first[0]
    assert again[1]["mean_e2el_ms"] < first[1]["mean_e2el_ms"]  # it is not the row that was kept
