"""The serving loop against a plain model: which stages each request has passed, and how many iterations it has left.

Requests arrive, are carried, computed, given up and failed in any order; the policies and the router do as drawn. The
model knows the graph and what the policies have answered, and nothing of how the loop keeps its books.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from harness import HandExecutor, Script
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from servetwin.core import (
    BatchWorker,
    Decision,
    Module,
    Outcome,
    Pipeline,
    Recorder,
    Request,
    ServingLoop,
    WorkerView,
)

LIMIT = 3

#: Modules, edges between them, and of which there are two workers.
GRAPHS: dict[str, tuple[dict[str, bool], list[tuple[str, str]], str]] = {
    "one": ({"a": True}, [], ""),
    "one, twice": ({"a": True}, [], "a"),
    "chain": ({"a": False, "b": True, "c": False}, [("a", "b"), ("b", "c")], "b"),
    "diamond": (
        {"a": False, "b": True, "c": False, "d": True},
        [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")],
        "",
    ),
    "two ends": ({"a": True, "b": False, "c": True}, [("a", "b"), ("a", "c")], "c"),
    "two beginnings": ({"a": True, "b": False, "c": False}, [("a", "c"), ("b", "c")], ""),
}


@dataclass(eq=False)
class Asked:
    """A request as the model has it."""

    request: Request
    deadline: float
    left: dict[str, int]  # iterations, by module; 0: passed
    outcome: Outcome | None = None
    finished: float | None = None


class Ends(Recorder):
    """Counts how often each request is said to have arrived and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.came: Counter[int] = Counter()
        self.went: Counter[int] = Counter()

    def arrived(self, request: Request) -> None:
        super().arrived(request)
        self.came[request.id] += 1

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.went[request.id] += 1


class Serving(RuleBasedStateMachine):
    @initialize(graph=st.sampled_from(sorted(GRAPHS)), carried=st.booleans(), seed=st.integers(0, 2**20))
    def build(self, graph: str, carried: bool, seed: int) -> None:
        modules, self.edges, twice = GRAPHS[graph]
        self.modules = list(modules)
        pipeline = Pipeline([Module(name, loop=loop) for name, loop in modules.items()], self.edges)
        self.loops = [name for name, loop in modules.items() if loop]
        self.hand, self.ends, self.luck = HandExecutor(), Ends(), random.Random(seed)
        self.hand.deliver_at_once = not carried
        self.settling = self.stopped = False
        self.asked: list[Asked] = []
        self.given_up: list[int] = []  # by a policy, since the model last looked
        self.workers: dict[str, BatchWorker] = {}
        stages = pipeline.stages([[name] for name in modules])
        for stage in stages:
            for name in [stage.name, f"{stage.name}'"][: 1 + (stage.name == twice)]:
                view = WorkerView(stage, lambda module, size: 1.0, limit=LIMIT, name=name)
                policy = Script(self._decide, admit=self._admit)
                self.workers[name] = BatchWorker(stage, policy, view)
        self.loop = ServingLoop(stages, list(self.workers.values()), self.hand, self.ends, router=self._route)

    # -- what the policies and the router answer ------------------------------------------------------------

    def _admit(self, task, view, now) -> bool:
        if self.settling or self.luck.random() < 0.95:
            return True
        self.given_up.append(task.id)
        return False

    def _decide(self, view: WorkerView, now: float) -> Decision:
        held = [*view.running, *view.waiting]
        assert all(task.worker.name == view.name and task.left > 0 for task in held)
        if self.settling:
            return Decision(held[:LIMIT])
        self.luck.shuffle(held)
        dropped = [held.pop() for _ in range(len(held)) if self.luck.random() < 0.05]
        self.given_up += [task.id for task in dropped]
        run = held[: self.luck.randint(0, LIMIT)]
        if not run:
            return Decision(drop=dropped, idle_until=now + 1.0)
        return Decision(run, dropped, whole=self.luck.random() < 0.2)

    def _route(self, request, serving, now):
        return self.luck.choice(serving)

    # -- what happens ---------------------------------------------------------------------------------------

    def _idle(self) -> list[int]:
        return [one.request.id for one in self.asked if one.outcome is None]

    @rule(steps=st.integers(1, 3), slo=st.sampled_from([1.0, 4.0, 1e6]))
    def arrive(self, steps: int, slo: float) -> None:
        now = self.hand.time
        request = Request(len(self.asked), now, slo, dict.fromkeys(self.loops, steps))
        left = {name: steps if name in self.loops else 1 for name in self.modules}
        self.asked.append(Asked(request, now + slo, left))
        if self.stopped:
            self.asked[-1].outcome = Outcome.FAILED
        self.loop.arrive(request)
        self._look()

    @precondition(lambda self: self.hand.under_way)
    @rule(data=st.data())
    def carry(self, data: st.DataObject) -> None:
        """One of those under way is there."""
        *_, deliver = self.hand.under_way.pop(data.draw(st.integers(0, len(self.hand.under_way) - 1)))
        deliver()
        self._look()

    @precondition(lambda self: self.hand.in_flight)
    @rule(data=st.data(), after=st.sampled_from([0.0, 0.5, 2.0]))
    def end(self, data: st.DataObject, after: float) -> None:
        """A batch is over."""
        self._pass(after)
        if self.hand.in_flight:
            self._end(data.draw(st.sampled_from(sorted(self.hand.in_flight))))

    def _end(self, name: str) -> None:
        batch, done = self.hand.in_flight.pop(name)
        for task in batch.tasks:
            one, module = self.asked[task.id], task.stage.name
            one.left[module] = max(0, one.left[module] - batch.iterations)
            over = not any(one.left.values())
            if one.outcome is None and over and not self.stopped:
                one.finished = self.hand.time
                one.outcome = Outcome.MET if one.finished <= one.deadline else Outcome.LATE
        done(batch)
        self._look()

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.hand.wait(self.hand.time + seconds)
        self._look()

    @precondition(lambda self: self._idle())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """Something breaks under a request; whatever is told of it later changes nothing."""
        one = self.asked[data.draw(st.sampled_from(self._idle()))]
        one.outcome = Outcome.FAILED
        self.loop.fail(one.request, "it broke")
        self.loop.fail(one.request, "it broke again")
        assert one.request.reason == "it broke"
        self._look()

    @precondition(lambda self: not self.stopped and len(self.asked) > 5)
    @rule()
    def stop(self) -> None:
        self.stopped = True
        for one in self.asked:
            one.outcome = one.outcome or Outcome.FAILED
        self.loop.stop()
        self._look()

    def _look(self) -> None:
        """Take over what the policies gave up meanwhile."""
        for number in self.given_up:
            assert self.asked[number].outcome in (None, Outcome.DROPPED)
            self.asked[number].outcome = Outcome.DROPPED
        self.given_up.clear()

    # -- what always holds ----------------------------------------------------------------------------------

    @invariant()
    def each_request_has_ended_as_it_should(self) -> None:
        for one in self.asked:
            assert one.request.outcome == one.outcome
            assert one.request.finished == one.finished or one.finished is None
        assert set(self.loop.live) == set(self._idle())
        assert self.ends.came == Counter(range(len(self.asked)))
        assert self.ends.went == Counter(one.request.id for one in self.asked if one.outcome is not None)

    @invariant()
    def each_request_is_where_the_graph_has_it(self) -> None:
        """At each module whose predecessors it has passed and that it has not: once, on its way or there."""
        on_their_way = Counter(number for *_, number, _ in self.hand.under_way)
        for one in self.asked:
            visits = Counter(task.stage.name for task in one.request.tasks)
            before = {name: [a for a, b in self.edges if b == name] for name in self.modules}
            begun = [name for name in self.modules if not any(one.left[other] for other in before[name])]
            if one.outcome is None:
                assert visits == Counter(begun)
                open_ = [name for name in begun if one.left[name]]
                held = [task for task in one.request.tasks if task in self._held(task)]
                assert len(held) + on_their_way[one.request.id] == len(open_)
            else:
                assert max(visits.values(), default=1) == 1
                assert set(visits) <= set(begun)

    def _held(self, task) -> list:
        worker = self.workers[task.worker.name]
        return [*worker.inbox, *worker.view.waiting, *worker.view.running]

    @invariant()
    def who_has_ended_waits_nowhere(self) -> None:
        for worker in self.workers.values():
            assert all(task.request.outcome is None for task in worker.view.waiting)
            batch = worker.view.in_flight
            assert (batch is None) == (worker.name not in self.hand.in_flight)
            in_flight = () if batch is None else batch.tasks
            assert len(in_flight) <= LIMIT
            assert all(task.request.outcome is None or task in in_flight for task in worker.view.running)

    @invariant()
    def who_holds_something_computes_or_knows_when_to_decide_again(self) -> None:
        for worker in self.workers.values():
            if worker.view.in_flight is None and not self.stopped:
                assert not worker.inbox
                assert worker.alarm is not None or not (worker.view.waiting or worker.view.running)

    def teardown(self) -> None:
        """Policies that run all that they hold bring every request to its end."""
        if not hasattr(self, "loop"):
            return
        self.settling = True
        for _ in range(20 * (1 + len(self.asked))):
            self._pass(1.0)
            while self.hand.under_way:
                *_, deliver = self.hand.under_way.pop()
                deliver()
            for name in [*self.hand.in_flight]:
                self._end(name)
        self._look()
        assert not self.hand.in_flight
        assert not self._idle()
        self.each_request_has_ended_as_it_should()
        self.loop.check_ended()
        self.loop.look_over()
        counts = {outcome: count for outcome, count in self.ends.summary.outcomes.items() if count}
        assert counts == Counter(one.outcome for one in self.asked)


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
