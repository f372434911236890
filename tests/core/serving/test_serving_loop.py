"""The serving loop, event by event: an executor worked by hand and policies that do as they are told."""

from __future__ import annotations

import pytest
from harness import HandExecutor, Script, run_all
from servetwin.core import (
    BadInput,
    BatchWorker,
    Decision,
    InvariantBroken,
    Module,
    Outcome,
    Pipeline,
    Recorder,
    Request,
    ServingLoop,
    Task,
    WorkerView,
)
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.serving.client import play

DIT = Pipeline.chain(Module("dit", loop=True), Module("vae"))


class Served:
    """A loop over *pipeline* with a worker for each module, and its executor."""

    def __init__(
        self, pipeline: Pipeline, policies: dict, *, intake="before", limit=8, recorder=None, invariants=True
    ):
        stages = pipeline.stages([[m] for m in pipeline.modules])
        self.hand = HandExecutor()
        self.policies = {s.name: policies.get(s.name) or Script() for s in stages}
        self.workers = {
            s.name: BatchWorker(s, self.policies[s.name], WorkerView(s, lambda m, n: 1.0, limit=limit), intake=intake)
            for s in stages
        }
        self.recorder = InvariantChecker(recorder)
        self.loop = ServingLoop(stages, list(self.workers.values()), self.hand, self.recorder)
        if invariants:
            self.recorder.watch(self.loop)

    def arrive(self, id_: int, steps: int = 1, slo: float = 100.0, at: float | None = None) -> Request:
        if at is not None:
            self.hand.wait(at)
        request = Request(id_, self.hand.time, slo, {"dit": steps})
        self.loop.arrive(request)
        return request


def dit(policy: Script | None = None, **kwargs) -> Served:
    return Served(DIT, {"dit": policy}, **kwargs)


# -- a request's way ------------------------------------------------------------------------------------------


def test_a_request_passes_its_stages() -> None:
    s = dit()
    request = s.arrive(1, steps=2, at=0.5)
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [1]  # its second iteration
    s.hand.end("dit", 2.0)
    assert (s.hand.batch("dit"), s.hand.batch("vae")) == (None, [1])
    s.hand.end("vae", 3.0)
    assert (request.outcome, request.finished) == (Outcome.MET, 3.0)
    first, second = request.tasks
    assert (first.queued, first.admitted, first.started, first.finished) == (0.5, 0.5, 0.5, 2.0)
    assert (second.queued, second.admitted, second.started, second.finished) == (2.0, 2.0, 2.0, 3.0)
    s.recorder.finish()


def test_batches_are_numbered_in_the_order_in_which_they_are_decided() -> None:
    """From 1 on, those of all workers together."""
    s = dit()
    seen = []
    s.arrive(1, steps=2)
    for worker, end in (("dit", 1.0), ("dit", 2.0), ("vae", 3.0)):
        seen.append(s.hand.in_flight[worker][0].id)
        s.hand.end(worker, end)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("end", "outcome"), [(4.9, "met"), (5.0, "met"), (5.1, "late")])
def test_met_means_finished_by_the_deadline(end: float, outcome: str) -> None:
    s = dit()
    request = s.arrive(1, slo=5.0)
    s.hand.end("dit", 1.0)
    s.hand.end("vae", end)
    assert request.outcome == outcome


def test_a_request_that_is_refused_is_dropped() -> None:
    s = dit(Script(admit=lambda task, view, now: task.id != 1))
    refused, taken = s.arrive(1), s.arrive(2)
    assert (refused.outcome, refused.reason) == (Outcome.DROPPED, "dropped at dit")
    assert taken.outcome is None
    assert s.hand.batch("dit") == [2]


def test_a_policy_gives_up_what_it_holds() -> None:
    def decide(view, now):
        held = [*view.running, *view.waiting]
        return Decision(held[:1], drop=held[1:])

    s = dit(Script(decide))
    s.arrive(1)
    dropped = s.arrive(2)
    assert dropped.outcome is None  # the worker computes; nobody was asked
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [2]
    s.arrive(3)
    s.arrive(4, at=1.5)
    s.hand.end("dit", 2.0)
    assert s.hand.batch("dit") == [3]
    assert {r.outcome for r in s.loop.live.values()} == {None}
    assert s.recorder.summary.outcomes[Outcome.DROPPED] == 1


def test_transport_takes_its_time() -> None:
    s = dit()
    s.hand.deliver_at_once = False
    request = s.arrive(1)
    assert s.hand.batch("dit") is None
    s.hand.deliver(0.25)
    assert request.tasks[0].queued == 0.25
    s.hand.end("dit", 1.0)
    assert [(a, b) for a, b, *_ in s.hand.under_way] == [("dit", "vae")]
    s.hand.deliver(1.5)
    assert request.tasks[1].queued == 1.5


# -- when arrivals are taken in -------------------------------------------------------------------------------


def test_before_what_arrives_during_an_iteration_joins_the_next() -> None:
    s = dit(intake="before")
    s.arrive(1, steps=9)
    s.arrive(2, steps=9, at=0.5)
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [1, 2]


def test_after_what_arrives_during_iteration_k_joins_iteration_k_plus_2() -> None:
    policy = Script()
    s = dit(policy, intake="after")
    s.arrive(1, steps=9)
    s.arrive(2, steps=9, at=0.5)
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [1]
    assert ("admit", 2, 1.0) in policy.log  # at the start of iteration 2
    s.hand.end("dit", 2.0)
    assert s.hand.batch("dit") == [1, 2]


@pytest.mark.parametrize("intake", ["before", "after"])
def test_an_idle_worker_takes_in_at_once(intake: str) -> None:
    s = dit(intake=intake)
    s.arrive(1, at=0.7)
    assert s.hand.batch("dit") == [1]


def test_after_a_worker_that_runs_empty_takes_in_at_once() -> None:
    s = dit(intake="after")
    s.arrive(1)
    s.arrive(2, at=0.5)
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [2]


def test_admission_is_tested_when_the_task_is_taken_in() -> None:
    policy = Script()
    s = dit(policy, intake="before")
    s.arrive(1, steps=2)
    s.arrive(2, at=0.5)
    assert policy.told("admit") == [(1, 0.0)]
    s.hand.end("dit", 1.0)
    assert policy.told("admit") == [(1, 0.0), (2, 1.0)]


# -- what a policy is told, and when --------------------------------------------------------------------------


def test_calls_come_in_the_order_of_events() -> None:
    policy = Script()
    s = dit(policy)
    s.arrive(1)
    s.arrive(2, at=0.5)
    s.hand.end("dit", 1.0)
    assert policy.log == [
        ("start",),
        ("admit", 1, 0.0),
        ("decide", 0.0, [1]),
        ("ended", [1], 1.0),
        ("admit", 2, 1.0),
        ("decide", 1.0, [2]),
    ]


def test_a_client_that_answers_a_result_with_a_request_waits_until_the_batch_is_told() -> None:
    class Chat(Recorder):
        def ended(self, request, now):
            super().ended(request, now)
            if request.id < 2:
                s.loop.arrive(Request(request.id + 1, now, 9.0, {}))

    policy = Script()
    s = Served(Pipeline([Module("m")], []), {"m": policy}, recorder=Chat())
    s.loop.arrive(Request(1, 0.0, 9.0, {}))
    s.hand.end("m", 1.0)
    assert [e for e in policy.log if e[0] in ("ended", "decide")] == [
        ("decide", 0.0, [1]),
        ("ended", [1], 1.0),
        ("decide", 1.0, [2]),
    ]


# -- whole batches, batches decided ahead, idling -------------------------------------------------------------


def test_a_whole_batch_runs_until_its_longest_is_done() -> None:
    s = dit(Script(lambda view, now: Decision(list(view.waiting), whole=True)))
    s.hand.deliver_at_once = False
    short, long = s.arrive(1, steps=2), s.arrive(2, steps=7)
    s.hand.deliver(0.0)
    s.hand.end("dit", 1.0)  # 1 came first, alone
    batch, _ = s.hand.in_flight["dit"]
    assert (batch.iterations, batch.leaves) == (7, 1)
    s.hand.end("dit", 5.0)
    assert short.tasks[0].finished == 1.0
    assert long.tasks[0].finished == 5.0
    assert long.tasks[0].left == 0


def ahead(most: int):
    """Decides ahead until *most* batches are outstanding, one request each."""

    def decide(view, now):
        outstanding = len(view.backlog) + (view.in_flight is not None)
        free = list(view.waiting)
        return Decision(free[:1], whole=True) if outstanding < most and free else Decision()

    return Script(decide, ahead=True)


def test_a_policy_that_decides_ahead_fills_the_backlog() -> None:
    s = dit(ahead(2))
    for i in (1, 2, 3):
        s.arrive(i)
    view = s.workers["dit"].view
    assert s.hand.batch("dit") == [1]
    assert [[t.id for t in b.tasks] for b in view.backlog] == [[2]]
    assert [t.id for t in view.waiting] == [3]
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [2]  # at once
    assert [[t.id for t in b.tasks] for b in view.backlog] == [[3]]


def test_idling_until_a_time() -> None:
    policy = Script(lambda view, now: run_all(view, now) if now >= 5.0 else Decision(idle_until=5.0))
    s = dit(policy)
    s.arrive(1)
    assert s.hand.batch("dit") is None
    s.hand.wait(4.9)
    assert s.hand.batch("dit") is None
    s.hand.wait(5.0)
    assert s.hand.batch("dit") == [1]


def test_what_arrives_wakes_a_worker_before_its_time() -> None:
    policy = Script(lambda view, now: run_all(view, now) if len(view.waiting) > 1 else Decision(idle_until=5.0))
    s = dit(policy)
    s.arrive(1)
    s.arrive(2, at=3.0)
    assert s.hand.batch("dit") == [1, 2]


def test_an_old_wake_up_does_not_disturb_a_batch() -> None:
    policy = Script(lambda view, now: run_all(view, now) if now >= 1.0 else Decision(idle_until=5.0))
    s = dit(policy)
    s.arrive(1, steps=3)
    s.arrive(2, at=1.0)
    s.arrive(3, at=4.0)
    s.hand.wait(5.5)  # the wake-up for 5.0 comes in the midst of an iteration
    assert policy.told("admit") == [(1, 0.0), (2, 1.0)]
    s.hand.end("dit", 6.0)
    assert policy.told("admit")[-1] == (3, 6.0)


def test_the_last_word_on_idling_counts() -> None:
    until = [5.0, 3.0, None]
    policy = Script(lambda view, now: Decision(idle_until=until.pop(0)))
    s = dit(policy)
    s.arrive(1)
    s.arrive(2, at=1.0)
    s.hand.wait(3.0)  # asked again, it idles without end
    s.hand.wait(9.0)
    assert [now for now, _ in policy.told("decide")] == [0.0, 1.0, 3.0]


# -- branches -------------------------------------------------------------------------------------------------

DIAMOND = Pipeline(
    [Module("a"), Module("b"), Module("c"), Module("d")], [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
)


def test_a_join_waits_for_all_inputs() -> None:
    s = Served(DIAMOND, {})
    request = s.arrive(1)
    s.hand.end("a", 1.0)
    assert (s.hand.batch("b"), s.hand.batch("c")) == ([1], [1])
    s.hand.end("b", 2.0)
    assert s.hand.batch("d") is None
    s.hand.end("c", 3.0)
    assert s.hand.batch("d") == [1]
    s.hand.end("d", 4.0)
    assert request.outcome == Outcome.MET
    s.recorder.finish()


def test_a_request_with_two_exits_ends_with_the_later() -> None:
    s = Served(Pipeline([Module("a"), Module("b"), Module("c")], [("a", "b"), ("a", "c")]), {})
    request = s.arrive(1)
    s.hand.end("a", 1.0)
    s.hand.end("c", 2.0)
    assert request.outcome is None
    s.hand.end("b", 3.0)
    assert request.finished == 3.0
    s.recorder.finish()


def test_a_request_with_two_entries_starts_at_both() -> None:
    s = Served(Pipeline([Module("a"), Module("b"), Module("c")], [("a", "c"), ("b", "c")]), {})
    s.arrive(1)
    assert (s.hand.batch("a"), s.hand.batch("b")) == ([1], [1])


def idle_then(run_at: float):
    return Script(lambda view, now: run_all(view, now) if now >= run_at else Decision(idle_until=run_at))


def test_a_drop_in_one_branch_withdraws_what_waits_in_the_other() -> None:
    waits = idle_then(50.0)
    refuses = Script(lambda view, now: Decision(drop=list(view.waiting)) if now >= 2.0 else Decision(idle_until=2.0))
    s = Served(DIAMOND, {"b": waits, "c": refuses})
    request = s.arrive(1)
    s.hand.end("a", 1.0)
    s.hand.wait(2.0)
    assert (request.outcome, request.reason) == (Outcome.DROPPED, "dropped at c")
    assert waits.told("removed") == [(1, 2.0)]
    assert not s.workers["b"].view.waiting
    assert not refuses.told("removed")  # it knows
    s.hand.wait(60.0)
    s.recorder.finish()


def test_a_drop_in_one_branch_lets_the_other_run_out_what_it_computes() -> None:
    refuses = Script(lambda view, now: Decision(drop=list(view.waiting)) if now >= 2.0 else Decision(idle_until=2.0))
    computes = Script()
    s = Served(DIAMOND, {"b": computes, "c": refuses})
    request = s.arrive(1)
    s.hand.end("a", 1.0)
    s.hand.wait(2.0)
    assert request.outcome == Outcome.DROPPED
    assert computes.told("removed") == [(1, 2.0)]
    assert s.hand.batch("b") == [1]
    s.hand.end("b", 3.0)
    assert s.hand.batch("d") is None
    s.recorder.finish()


def test_a_drop_in_one_branch_empties_what_the_other_has_decided_ahead() -> None:
    refuses = Script(
        lambda view, now: (
            Decision(drop=[t for t in view.waiting if t.id == 2]) if now >= 2.0 else Decision(idle_until=2)
        )
    )
    s = Served(DIAMOND, {"b": ahead(2), "c": refuses})
    s.arrive(1)
    s.arrive(2)
    s.hand.end("a", 0.5)
    s.hand.end("a", 1.0)
    assert [[t.id for t in b.tasks] for b in s.workers["b"].view.backlog] == [[2]]
    s.hand.wait(2.0)  # 2 is dropped at c while it stands in the backlog of b
    s.hand.end("b", 3.0)
    s.hand.end("b", 4.0)
    assert not s.workers["b"].view.running


def test_what_is_on_its_way_when_its_request_is_dropped_arrives_nowhere() -> None:
    refuses = Script(admit=lambda task, view, now: False)
    s = Served(DIAMOND, {"c": refuses})
    s.arrive(1)
    s.hand.deliver_at_once = False
    s.hand.end("a", 1.0)
    s.hand.under_way.reverse()  # c hears first
    s.hand.deliver(1.5)
    assert s.hand.batch("b") is None
    s.recorder.finish()


# -- stopping and failing -------------------------------------------------------------------------------------


def test_a_stop_cuts_off_what_is_in_flight() -> None:
    policy = Script()
    s = dit(policy)
    running, waiting = s.arrive(1, steps=5), s.arrive(2)
    s.hand.wait(0.5)
    s.loop.stop()
    assert [(r.outcome, r.reason) for r in (running, waiting)] == [(Outcome.FAILED, "cut off by the stop")] * 2
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") is None
    late = s.arrive(3, at=2.0)
    assert (late.outcome, late.reason) == (Outcome.FAILED, "sent after the stop")
    s.recorder.finish()


def test_a_stop_empties_backlogs_and_silences_alarms() -> None:
    s = Served(DIT, {"dit": ahead(2), "vae": idle_then(50.0)})
    for i in (1, 2, 3):
        s.arrive(i)
    s.hand.end("dit", 1.0)
    s.loop.stop()
    assert not s.workers["dit"].view.backlog
    s.hand.end("dit", 2.0)
    s.hand.wait(99.0)
    assert s.hand.in_flight == {}
    s.recorder.finish()


def test_a_request_that_breaks_fails_and_the_others_go_on() -> None:
    s = dit()
    broken, other = s.arrive(1, steps=2), s.arrive(2)
    s.loop.fail(broken, "out of memory")
    s.loop.fail(broken, "again")  # no matter
    assert (broken.outcome, broken.reason) == (Outcome.FAILED, "out of memory")
    s.hand.end("dit", 1.0)
    assert s.hand.batch("dit") == [2]
    s.hand.end("dit", 2.0)
    s.hand.end("vae", 3.0)
    assert other.outcome == Outcome.MET
    s.recorder.finish()


# -- nonsense -------------------------------------------------------------------------------------------------


def test_a_batch_over_the_limit() -> None:
    policy = Script(
        lambda view, now: Decision(list(view.waiting) if len(view.waiting) > 2 else [], idle_until=now + 1)
    )
    s = dit(policy, limit=2, invariants=False)
    s.arrive(1)
    s.arrive(2)
    with pytest.raises(
        InvariantBroken, match=r"policy Script \(harness.py:\d+\): a batch of 3 is over the limit of 2 of dit"
    ):
        s.arrive(3)


def test_idling_until_a_time_that_has_passed() -> None:
    s = dit(Script(lambda view, now: Decision(idle_until=now)), invariants=False)
    with pytest.raises(
        InvariantBroken, match=r"policy Script .*: it idles until 0.5 at dit, which is not in the future"
    ):
        s.arrive(1, at=0.5)


def test_running_what_is_done() -> None:
    kept: list[Task] = []

    def decide(view, now):
        kept.extend(view.waiting)
        return Decision(kept[:1])

    s = dit(Script(decide), invariants=False)
    s.arrive(1)
    with pytest.raises(
        InvariantBroken, match=r"policy Script .*: it runs <Task of 1 at dit: 0/1 left>, which is not at dit"
    ):
        s.hand.end("dit", 1.0)


def test_a_stage_without_a_worker() -> None:
    stages = DIT.stages([["dit"], ["vae"]])
    worker = BatchWorker(stages[0], Script(), WorkerView(stages[0], lambda m, n: 1.0, limit=1))
    with pytest.raises(BadInput, match="no worker serves stage vae"):
        ServingLoop(stages, [worker], HandExecutor())


# -- the open-loop client -------------------------------------------------------------------------------------


def test_requests_are_sent_at_their_times_whatever_the_system_does() -> None:
    s = dit(Script(lambda view, now: Decision()))
    play(s.loop, iter([Request(i, t, 9.0, {}) for i, t in enumerate([0.5, 0.5, 2.25])]))
    s.hand.wait(10.0)
    assert [t.queued for t in s.workers["dit"].view.waiting] == [0.5, 0.5, 2.25]


def test_the_source_is_read_one_request_ahead() -> None:
    read = []

    def source():
        for i in range(9):
            read.append(i)
            yield Request(i, float(i), 9.0, {})

    s = dit()
    play(s.loop, source())
    s.hand.wait(2.5)
    assert read == [0, 1, 2, 3]
