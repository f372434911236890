"""The checker catches loops, policies, executors and records that break an invariant on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import HandExecutor, Script, WorkerSetup, one_stage, run_all, simulate
from servetwin.core import (
    BadInput,
    Batch,
    BatchWorker,
    Decision,
    InvariantBroken,
    Module,
    Outcome,
    Pipeline,
    Recorder,
    Repeat,
    Request,
    RunFolder,
    ServingLoop,
    Task,
    WorkerView,
)
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.core.request import Place, Shape
from servetwin.policies.diffusion.fcfs import FCFS

PIPELINE = Pipeline.chain(Module("dit", loop=True), Module("vae"))


def requests(n: int = 3, steps: int = 3, slo: float = 9.0) -> list[Request]:
    return [Request(i, 0.5 * i, slo, {"dit": steps}) for i in range(n)]


def served(dit=None, vae=None, loop_class=ServingLoop, worker_class=BatchWorker):
    """A watched loop worked by hand, with the requests 1 and 2 arrived at time 0."""
    stages = PIPELINE.stages([["dit"], ["vae"]])
    workers = [
        worker_class(stage, policy or Script(), WorkerView(stage, lambda m, n: 1.0, limit=4))
        for stage, policy in zip(stages, (dit, vae), strict=True)
    ]
    hand, checker = HandExecutor(), InvariantChecker()
    loop = loop_class(stages, workers, hand, checker)
    checker.watch(loop)
    for i in (1, 2):
        loop.arrive(Request(i, 0.0, 9.0, {"dit": 3}))
    return loop, hand, checker


def touch(loop) -> None:
    """Something happens, wherever."""
    worker = loop.workers[-1]
    loop.executor.send(None, Task(Request(99, 0.0, 1.0, {}), worker.stage, 0.0, worker.place), lambda task: None)


# -- what policies may not do ---------------------------------------------------------------------------------


def test_invariant_4_a_task_stands_once_in_a_batch() -> None:
    twice = Script(lambda view, now: Decision(2 * [*view.waiting, *view.running]))
    with pytest.raises(
        InvariantBroken, match=r"invariant 4 .*: the policy of m runs <Task of 0 at m: 1/1 left> twice"
    ):
        one_stage(twice, requests(1), loop=False)


def test_invariant_4_what_is_dropped_is_not_run() -> None:
    both = Script(lambda view, now: Decision(list(view.waiting), drop=list(view.waiting)))
    with pytest.raises(InvariantBroken, match=r"invariant 4 .*: the policy of m runs <Task of 0"):
        one_stage(both, requests(1))


def test_invariant_4_what_is_in_flight_is_not_run_again() -> None:
    again = Script(run_all, ahead=True)
    with pytest.raises(InvariantBroken, match=r"invariant 4 .*twice, or while it is in a batch"):
        one_stage(again, requests(1))


def test_invariant_4_a_worker_runs_only_what_it_holds() -> None:
    elsewhere: list = []

    def first(view, now):
        elsewhere[:] = [t for t in view.waiting if t.id == 2]
        return Decision([t for t in [*view.running, *view.waiting] if t.id == 1])

    _, hand, _ = served(Script(first), Script(lambda view, now: Decision([*view.waiting, *elsewhere])))
    hand.end("dit", 1.0)
    hand.end("dit", 2.0)
    with pytest.raises(
        InvariantBroken, match=r"invariant 4 .*: the policy of vae runs <Task of 2 at dit: 3/3 left>, .*not there"
    ):
        hand.end("dit", 3.0)


# -- what executors may not do --------------------------------------------------------------------------------


def test_invariant_2_the_clock_goes_on() -> None:
    _, hand, _ = served()
    hand.end("dit", 1.0)
    hand.time = 0.5
    batch, done = hand.in_flight.pop("dit")
    with pytest.raises(InvariantBroken, match=r"invariant 2 .*: the clock went back from 1.0 to 0.5"):
        done(batch)


def test_invariant_3_a_batch_ends_once() -> None:
    _, hand, _ = served()
    batch, done = hand.in_flight["dit"]
    hand.end("dit", 1.0)
    with pytest.raises(
        InvariantBroken, match=r"invariant 3 .*: dit ends <Batch 1 of 1 on dit>, but <Batch 2 of 2 on dit> is in"
    ):
        done(batch)


def test_invariant_7_an_executor_runs_no_more_than_it_may() -> None:
    _, hand, _ = served(Script(lambda view, now: Decision(run_all(view, now).run, repeat=Repeat(2))))
    hand.end("dit", 1.0)
    hand.in_flight["dit"][0].count = 3  # while request 1 has two iterations left and request 2 joins
    with pytest.raises(
        InvariantBroken, match=r"invariant 7 .*: <Batch 2 of 2 on dit> ran 3 times on end where 2 were allowed"
    ):
        hand.end("dit", 2.0)


def test_invariant_5_an_alarm_rings_in_time() -> None:
    loop, hand, _ = served(Script(lambda view, now: Decision(idle_until=3.0)))
    hand.alarms.clear()
    hand.wait(4.0)
    with pytest.raises(InvariantBroken, match=r"invariant 5 .*: dit was to be woken at 3.0, but it is 4.0"):
        touch(loop)


# -- what a loop may not do -----------------------------------------------------------------------------------


def test_invariant_5_nothing_lies_in_the_inbox_of_an_idle_worker() -> None:
    class Deaf(BatchWorker):
        def receive(self, task):
            self.inbox.append(task)

    loop, hand, _ = served(worker_class=Deaf)
    hand.wait(1.0)
    with pytest.raises(
        InvariantBroken, match=r"invariant 5 .*: dit idles before 1.0 and has not taken in what arrived"
    ):
        touch(loop)


def test_invariant_5_a_policy_is_asked_when_a_batch_is_done() -> None:
    class Lazy(BatchWorker):
        def _decide(self, settled=False):
            if self.view.running:
                self._take_in()
            else:
                super()._decide(settled)

    loop, hand, _ = served(worker_class=Lazy)
    hand.end("dit", 1.0)
    hand.wait(2.0)
    with pytest.raises(
        InvariantBroken, match=r"invariant 5 .*: dit idles before 2.0 with 2 tasks, and its policy was not asked"
    ):
        touch(loop)


def test_invariant_1_a_request_ends_once() -> None:
    loop, _, checker = served()
    request = loop.live[1]
    loop.fail(request, "lost")
    with pytest.raises(InvariantBroken, match=r"invariant 1 .*: request 1 ends but is not live"):
        checker.ended(request, 0.0)


def test_invariant_1_an_id_comes_once() -> None:
    loop, _, _ = served()
    with pytest.raises(InvariantBroken, match=r"invariant 1 .*: request 1 arrives again"):
        loop.arrive(Request(1, 0.0, 1.0, {}))


def test_invariant_1_every_request_ends() -> None:
    _, _, checker = served()
    with pytest.raises(InvariantBroken, match=r"invariant 1 .*: 2 requests never ended: 1, 2"):
        checker.finish()


def test_invariant_7_a_request_that_is_met_has_run_all_that_it_asked_for() -> None:
    class Hasty(BatchWorker):
        def _done(self, batch):
            for task in batch.tasks:
                task.left = 1
                self.books.ends[task] = self.books.clock + 1
            batch.leaves = batch.size
            super()._done(batch)

    _, hand, _ = served(worker_class=Hasty)
    with pytest.raises(
        InvariantBroken, match=r"invariant 7 .*: <Task of 1 at dit: 0/3 left> has 0 iterations left after 1 of 3"
    ):
        hand.end("dit", 1.0)


def test_invariant_10_met_means_in_time() -> None:
    class Kind(ServingLoop):
        def end(self, request, outcome, reason=None):
            super().end(request, Outcome.MET if outcome is Outcome.LATE else outcome, reason)

    _, hand, _ = served(loop_class=Kind)
    for worker, at in (("dit", 1.0), ("dit", 2.0), ("dit", 3.0)):
        hand.end(worker, at)
    with pytest.raises(InvariantBroken, match=r"invariant 10 .*: <Request 1 .* met> finished at 50.0, deadline 9.0"):
        hand.end("vae", 50.0)


def test_invariant_10_the_summary_counts_what_happened() -> None:
    class Forgetful(Recorder):
        def ended(self, request, now):
            if request.id != 1:
                super().ended(request, now)

    with pytest.raises(InvariantBroken, match=r"invariant 10 .*: the summary counts"):
        simulate(Pipeline([Module("m")], []), [WorkerSetup(["m"], FCFS())], requests(), recorder=Forgetful())


def test_invariant_2_a_stage_begins_when_the_one_before_is_done() -> None:
    loop, hand, checker = served()
    request = loop.live[1]
    for at in (1.0, 2.0, 3.0):
        hand.end("dit", at)
    task = request.tasks[1]
    task.queued = 2.5
    loop.workers[1].books.note(task)
    with pytest.raises(
        InvariantBroken, match=r"invariant 2 .*: <Task of 1 at vae.* is queued at 2.5, before dit is finished"
    ):
        hand.end("vae", 4.0)
    assert checker.clock == 4.0


class Told:
    """What a checker that watches no loop hears of one request that was served as it should be."""

    def __init__(self) -> None:
        self.checker = InvariantChecker()
        (self.dit, self.vae) = PIPELINE.stages([["dit"], ["vae"]])
        self.request = Request(1, 0.0, 9.0, {"dit": 3})
        self.checker.arrived(self.request)
        self.request.tasks = [self.visit(self.dit, 0.0, 3.0), self.visit(self.vae, 3.0, 4.0)]
        self.request.outcome, self.request.finished = Outcome.MET, 4.0

    def visit(self, stage, queued: float, finished: float) -> Task:
        task = Task(self.request, stage, queued, Place(0, stage.name, stage, "gpu0"))
        task.admitted = task.started = queued
        task.finished, task.left = finished, 0
        return task

    def end(self) -> None:
        self.checker.ended(self.request, 4.0)

    def batch(self, tasks, start: float = 0.0, end: float = 1.0, **said) -> None:
        batch = Batch(7, Place(0, "dit", self.dit, "gpu0"), tasks)
        batch.start, batch.end = start, end
        for name, value in said.items():
            setattr(batch, name, value)
        self.checker.batch(batch)


def test_a_request_that_is_told_as_it_was_passes() -> None:
    told = Told()
    told.batch(told.request.tasks[:1])
    told.batch(told.request.tasks[:1], 1.0, 3.0)
    told.end()
    told.checker.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: setattr(t.request, "outcome", None), "invariant 1 .*: request 1 ends without an outcome"),
        (
            lambda t: t.request.tasks.insert(1, t.visit(t.dit, 1.0, 3.0)),
            "invariant 2 .*: request 1 stays twice at dit",
        ),
        (
            lambda t: setattr(t.request.tasks[0], "admitted", None),
            "invariant 2 .*: <Task of 1 at dit: 0/3 left> is started but was never admitted",
        ),
        (
            lambda t: setattr(t.request.tasks[0], "started", 3.5),
            "invariant 2 .*: <Task of 1 at dit: 0/3 left>: finished at 3.0, before started at 3.5",
        ),
        (
            lambda t: setattr(t.request.tasks[1], "finished", 5.0),
            "invariant 2 .*: <Task of 1 at vae: 0/1 left>: end of the request at 4.0, before finished at 5.0",
        ),
        (
            lambda t: setattr(t.request, "finished", 3.5),
            "invariant 2 .* finished at 3.5, its last stage at 4.0, told at 4.0",
        ),
        (lambda t: setattr(t.request, "finished", None), "invariant 10 .* has no time at which it finished"),
        (lambda t: setattr(t.request, "missed", True), "invariant 10 .* finished at 4.0, deadline 9.0"),
        (lambda t: setattr(t.request, "outcome", Outcome.LATE), "invariant 10 .* finished at 4.0, deadline 9.0"),
        (
            lambda t: setattr(t.request, "outcome", Outcome.DROPPED),
            "invariant 10 .* dropped> has a time at which it finished",
        ),
        (
            lambda t: [setattr(t.request, "outcome", Outcome.FAILED), setattr(t.request, "finished", None)],
            "invariant 10 .* failed> does not say why",
        ),
        (
            lambda t: setattr(t.request.tasks[0], "left", -1),
            "invariant 7 .*: <Task of 1 at dit: -1/3 left> ended met after 4 of 3 iterations",
        ),
        (
            lambda t: setattr(t.request.tasks[0], "left", 1),
            "invariant 7 .*: <Task of 1 at dit: 1/3 left> ended met after 2 of 3 iterations",
        ),
    ],
)
def test_a_request_that_is_told_otherwise_does_not_pass(change, message: str) -> None:
    told = Told()
    change(told)
    with pytest.raises(InvariantBroken, match=message):
        told.end()


@pytest.mark.parametrize(
    ("tell", "message"),
    [
        (lambda t, one, other: t.batch([one], 0.5, 2.0), "invariant 3 .*: dit started <Batch 7 of 1 on dit> at 0.5"),
        (
            lambda t, one, other: t.batch([], 1.0, 2.0),
            "invariant 4 .*: <Batch 7 of 0 on dit>: the limit is not known",
        ),
        (lambda t, one, other: t.batch([one, one], 1.0, 2.0), r"invariant 4 .* holds a task twice: \[1, 1\]"),
        (lambda t, one, other: t.batch([one], 1.0, 2.0, size=2), r"invariant 4 .* holds a task twice: \[1\]"),
        (lambda t, one, other: t.batch([one, other], 1.0, 2.0), "invariant 4 .* holds requests of several shapes"),
        (
            lambda t, one, other: t.batch([t.request.tasks[1]], 1.0, 2.0),
            "invariant 4 .* holds <Task of 1 at vae: 0/1 left>, which is not at this worker",
        ),
        (
            lambda t, one, other: t.batch([one], 1.0, 2.0, reused=(other,)),
            r"invariant 7 .* reuses predictions of \[2\], or more than once",
        ),
        (
            lambda t, one, other: t.batch([one], 1.0, 2.0, reused=(one,), times=2),
            r"invariant 7 .* reuses predictions of \[1\], or more than once",
        ),
    ],
)
def test_a_batch_that_cannot_have_been_does_not_pass(tell, message: str) -> None:
    told = Told()
    one = told.request.tasks[0]
    told.batch([one])
    other = Task(Request(2, 0.0, 9.0, {"dit": 3}, shape=Shape(64, 64)), told.dit, 0.0, one.worker)
    with pytest.raises(InvariantBroken, match=message):
        tell(told, one, other)


def test_invariant_10_attainment_is_the_share_that_was_met(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    told.end()
    monkeypatch.setattr(type(told.checker.summary), "attainment", property(lambda summary: 0.5))
    with pytest.raises(InvariantBroken, match=r"invariant 10 .*: attainment is .*, but 1 of 1 were met"):
        told.checker.finish()


# -- the checker leaves runs as they are ----------------------------------------------------------------------


def test_a_checked_run_is_the_run_itself(tmp_path: Path) -> None:
    """With the checker and without it: the same bytes."""
    from servetwin.core.serving.client import play
    from servetwin.policies.diffusion.neustream import NeuStream
    from servetwin.sim import SimExecutor, TableTiming

    files = []
    for checked in (True, False):
        stages = PIPELINE.stages([["dit"], ["vae"]])
        workers = [
            BatchWorker(view.stage, NeuStream(), view, intake="after")
            for view in [WorkerView(s, lambda m, n: 0.3 + 0.1 * n, limit=4, slo_factor=2.0) for s in stages]
        ]
        recorder = RunFolder(tmp_path / str(checked), {})
        checker = InvariantChecker(recorder)
        sim = SimExecutor(lambda worker: TableTiming([0.0, 0.4, 0.5, 0.6, 0.7]))
        loop = ServingLoop(stages, workers, sim, checker if checked else recorder)
        if checked:
            checker.watch(loop)
        play(loop, iter(requests(30, 5)))
        sim.run_until_idle()
        recorder.close()
        files.append([p.read_bytes() for p in sorted((tmp_path / str(checked)).iterdir())])
    assert files[0] == files[1]


# -- records --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of five requests, of which one is late and one is dropped."""

    def decide(view, now):
        drop = [t for t in view.waiting if t.id == 3]
        run = [t for t in [*view.running, *view.waiting] if t.id != 3]
        repeat = Repeat(min(t.left for t in run)) if run and not view.waiting else None
        return Decision(run, drop=drop, repeat=repeat)

    recorder = RunFolder(tmp_path / "run", {"name": "tampered"})
    setups = [WorkerSetup(["dit"], Script(decide)), WorkerSetup(["vae"], FCFS())]
    simulate(PIPELINE, setups, [*requests(4, 12, 15.0), Request(4, 2.0, 0.1, {"dit": 2})], recorder=recorder)
    recorder.close()
    return tmp_path / "run"


def rewrite(folder: Path, file: str, change) -> None:
    """Apply *change* to the list of the records of *file* (or to the summary)."""
    path = folder / file
    if file == "summary.json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_honest_records_pass(folder: Path) -> None:
    outcomes = json.loads((folder / "summary.json").read_text())
    assert (outcomes["met"], outcomes["late"], outcomes["dropped"]) == (3, 1, 1)
    check_records(folder)
    check_records(folder, {"vae": ["dit"]})


def request_of(lines, id_):
    return next(line for line in lines if line["id"] == id_)


def test_the_order_of_stages_is_checked_where_it_is_known(folder: Path) -> None:
    rewrite(folder, "requests.jsonl", lambda r: request_of(r, 0)["stages"][1].update(queued=0.5))
    check_records(folder)
    with pytest.raises(
        InvariantBroken, match=r"invariant 2 .*: request 0 at vae is queued at 0.5, before dit is finished"
    ):
        check_records(folder, {"vae": ["dit"]})


TAMPERED = [
    ("requests.jsonl", lambda r: r.append(r[0]), "invariant 1 .*: request . ends twice"),
    ("requests.jsonl", lambda r: r.pop(), "invariant 1 .*: 5 requests arrived, 4 ended"),
    ("requests.jsonl", lambda r: r[0].update(outcome=None), "invariant 1 .*: request . ends as None"),
    ("requests.jsonl", lambda r: request_of(r, 4).update(outcome="met"), "invariant 10 .*: request 4 ended met"),
    ("requests.jsonl", lambda r: request_of(r, 3).update(finished=3.0), "invariant 10 .*: request 3 ended dropped"),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0)["stages"][0].update(queued=-1.0),
        "invariant 2 .*: queued at -1.0, before",
    ),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0)["stages"][0].update(started=0.25),
        "invariant 2 .*: request 0 at dit",
    ),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0)["stages"][0].update(iterations=11),
        "invariant 7 .*: .* ran 11 of 12",
    ),
    ("requests.jsonl", lambda r: request_of(r, 4).update(work={"dit": 3}), "invariant 7 .*: .* ran 2 of 3"),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0).update(ended=2.0),
        "invariant 10 .*: request 0 finished at .*, and was given up at 2.0",
    ),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0).update(finished=request_of(r, 0)["finished"] - 0.5),
        "invariant 2 .*: request 0 finished at .*, its stages at",
    ),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0)["stages"][0].update(steps_asked=12, steps_run=6, steps_skipped=5),
        "invariant 7 .*: request 0 at dit ran 6 and skipped 5 of 12 steps",
    ),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0)["stages"][0].update(steps_asked=12, steps_run=11, steps_skipped=1),
        "invariant 7 .*: request 0 at dit counts 1 steps reused, its batches 0",
    ),
    (
        "requests.jsonl",
        lambda r: request_of(r, 0).update(attempts=[{"worker": "dit", "queued": 2.0, "started": 1.0, "lost": 3.0}]),
        "invariant 2 .*: request 0, lost at dit: started at 1.0, before queued at 2.0",
    ),
    ("batches.jsonl", lambda b: b[0].update(reused=[99]), "invariant 7 .*: batch 1 of dit reuses predictions of"),
    ("batches.jsonl", lambda b: b[0].update(ends=[]), "invariant [27] "),
    ("batches.jsonl", lambda b: b.pop(1), "invariant [2478] "),
    ("batches.jsonl", lambda b: b[1].update(start=b[1]["start"] - 0.25), "invariant 3 .*: batch 2 of dit started"),
    ("batches.jsonl", lambda b: b[0].update(end=b[0]["start"] - 1), "invariant 2 .*: batch 1 of dit ends at"),
    ("batches.jsonl", lambda b: b[0].update(requests=[0, 0]), "invariant 4 .*: batch 1 of dit holds a request twice"),
    (
        "batches.jsonl",
        lambda b: b[0].update(requests=[]),
        "invariant 4 .*: batch 1 of dit holds a request twice, or none",
    ),
    ("batches.jsonl", lambda b: next(x for x in b if "ends" in x)["ends"].pop(0), "invariant [47] "),
    (
        "batches.jsonl",
        lambda b: next(x for x in b if "ends" in x)["ends"].reverse(),
        "invariant 2 .*iterations that end at",
    ),
    ("summary.json", lambda s: s.update(met=s["met"] + 1), "invariant 10 .*: the summary does not count"),
    ("summary.json", lambda s: s.update(attainment=1.0), "invariant 10 .*: attainment is 1.0, but 3 of 5 were met"),
    (
        "summary.json",
        lambda s: s["workers"]["dit"]["batch_sizes"].update({"1": 99}),
        "invariant 4 .*: the summary's batch",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), TAMPERED)
def test_tampered_records_do_not_pass(folder: Path, file: str, change, message: str) -> None:
    rewrite(folder, file, change)
    with pytest.raises(InvariantBroken, match=message) as told:
        check_records(folder)
    assert "\n" not in str(told.value)


def test_invariant_15_a_worker_that_is_down_runs_nothing(folder: Path) -> None:
    fault = {"worker": "dit", "at": 0.2, "until": 0.4, "lost_requests": 0}
    (folder / "faults.jsonl").write_text(json.dumps({**fault, "worker": "other"}) + "\n")
    check_records(folder)
    for until in (0.4, None):
        (folder / "faults.jsonl").write_text(json.dumps({**fault, "until": until}) + "\n")
        with pytest.raises(InvariantBroken, match=r"invariant 15 .*: batch 1 of dit ran from 0.0 to .*, and was"):
            check_records(folder)


def test_a_run_that_did_not_finish_is_no_run(folder: Path) -> None:
    (folder / "summary.json").unlink()
    with pytest.raises(BadInput, match=r"no summary.json \(right would be: the folder of a finished run\)"):
        check_records(folder)
