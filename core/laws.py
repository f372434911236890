"""The laws of the design, checked while a run goes and on the records that it leaves.

`LawChecker` stands between a `ServingLoop` and its recorder, its policies and its executor, and raises
`LawBroken` at the first event that breaks a law. It decides nothing and changes no time, so a checked run is the
run itself. `check_records` reads the files of a run folder, simulated or measured, and holds them to the same laws.

    laws = LawChecker(recorder)
    loop = ServingLoop(stages, workers, executor, laws)
    laws.watch(loop)
    ...                       # play the requests
    laws.finish()

The laws themselves stand in `docs/laws.md`, each with how it is checked. Laws 8, 9, 11 and 12 are about more than
one run and are tests; law 6 (KV blocks) has nothing to be checked on yet.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BadInput, LawBroken
from .loop import ServingLoop, Worker
from .records import Recorder
from .request import Outcome, Request, Task
from .seam import Batch, Decision, Executor, Handle, Policy, WorkerView

LAWS = {
    1: "every request ends exactly once",
    2: "time orders a request's way",
    3: "one batch in flight per worker",
    4: "a batch is within its limits",
    5: "no worker idles with work at hand unless its policy said so",
    7: "iterations done are those asked for",
    10: "goodput counts met requests only",
}

FINISHED = (Outcome.MET, Outcome.LATE)


def broken(law: int, what: str) -> LawBroken:
    return LawBroken(f"law {law} ({LAWS[law]}): {what}")


def asked_of(task: Task) -> int:
    """The iterations that the request asks of the task's stage."""
    loop = task.stage.loop
    return task.request.work.get(loop, 1) if loop else 1


class LawChecker(Recorder):
    """Passes all that it hears on to *inner*, and raises `LawBroken` if it breaks a law.

    *patience* is how many seconds late a wake-up may come: none in simulated time, a little on a real clock.
    Without `watch` it checks what a recorder hears (laws 1, 2, 4, 10 and the batches of law 3).
    """

    def __init__(self, inner: Recorder | None = None, *, patience: float = 0.0) -> None:
        self.inner = inner or Recorder()
        self.summary = self.inner.summary
        self.wants_batches = self.inner.wants_batches
        self.patience = patience
        self.clock = float("-inf")
        self.seen: set[int] = set()
        self.live: dict[int, Request] = {}
        self.outcomes: Counter[Outcome] = Counter()
        self.iterations: dict[Task, int] = {}  # done so far, by the checker's own count; of live requests
        self.ends: dict[Worker, float] = {}  # when the last batch of each worker ended
        self.watched: list[WatchedWorker] = []
        self.loop: ServingLoop | None = None

    def watch(self, loop: ServingLoop) -> None:
        """Stand between *loop* and its policies and executor. To be called once, before the first request."""
        self.loop = loop
        self.watched = [WatchedWorker(worker, self) for worker in loop.workers]
        loop.executor = WatchedExecutor(loop.executor, self)

    # -- what a recorder hears ----------------------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        if request.id in self.seen:
            raise broken(1, f"request {request.id} arrives again")
        self.seen.add(request.id)
        self.live[request.id] = request
        self.inner.arrived(request)

    def ended(self, request: Request, now: float) -> None:
        self.advance(now)
        if self.live.pop(request.id, None) is None:
            raise broken(1, f"request {request.id} ends but is not live")
        outcome = request.outcome
        if outcome is None:
            raise broken(1, f"request {request.id} ends without an outcome")
        self.outcomes[outcome] += 1
        self._check_times(request, now)
        self._check_outcome(request, now)
        for task in request.tasks:
            self._check_iterations(task, self.iterations.pop(task, 0))
        self.inner.ended(request, now)

    def batch(self, batch: Batch) -> None:
        self.advance(batch.end)
        worker = batch.worker
        last = self.ends.get(worker, float("-inf"))
        if batch.start < last:
            raise broken(
                3, f"{worker.name} started {batch} at {batch.start!r}, before its last one ended at {last!r}"
            )
        self.ends[worker] = batch.end
        _check_ends(batch.start, batch.end, batch.ends, batch.count, str(batch))
        self.check_batch(batch)
        self.inner.batch(batch)

    def finish(self) -> None:
        """Nothing more will happen: laws 1 and 10 for the run as a whole, and nothing is left in any queue."""
        if self.live:
            some = ", ".join(str(i) for i in itertools.islice(self.live, 5))
            raise broken(1, f"{len(self.live)} requests never ended: {some}")
        for watched in self.watched:
            watched.check_empty()
        summary = self.summary
        if summary.requests != len(self.seen) or any(summary.outcomes[o] != self.outcomes[o] for o in Outcome):
            raise broken(10, f"the summary counts {dict(summary.outcomes)}, but the run had {dict(self.outcomes)}")
        met = self.outcomes[Outcome.MET]
        if self.seen and (summary.met != met or summary.attainment != met / len(self.seen)):
            raise broken(10, f"attainment is {summary.attainment!r}, but {met} of {len(self.seen)} were met")

    # -- single laws --------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Time has come to *now*; nothing may have been left undone before."""
        if now < self.clock:
            raise broken(2, f"the clock went back from {self.clock!r} to {now!r}")
        if now > self.clock:
            for watched in self.watched:
                watched.check_idle(now)
            self.clock = now

    def _check_times(self, request: Request, now: float) -> None:
        tasks = {task.stage.name: task for task in request.tasks}
        if len(tasks) < len(request.tasks):
            raise broken(2, f"request {request.id} stays twice at a stage")
        for task in request.tasks:
            way = [("arrival", request.arrival), ("queued", task.queued)]
            marks = (("admitted", task.admitted), ("started", task.started), ("finished", task.finished))
            for (name, at), (after, later) in itertools.pairwise(marks):
                if at is None and later is not None:
                    raise broken(2, f"{task} is {after} but was never {name}")
            way += [(name, at) for name, at in marks if at is not None]
            if task.finished is not None:
                way.append(("end of the request", now))
            _check_order(way, str(task))
            for stage in task.stage.next:
                follower = tasks.get(stage.name)
                if follower is None:
                    continue
                if task.finished is None or follower.queued < task.finished:
                    raise broken(2, f"{follower} is queued at {follower.queued!r}, before {task} is finished")

    def _check_outcome(self, request: Request, now: float) -> None:
        if request.outcome not in FINISHED:
            if request.finished is not None:
                raise broken(10, f"{request} has a time at which it finished")
            if not request.reason:
                raise broken(10, f"{request} does not say why")
            return
        if request.finished is None:
            raise broken(10, f"{request} has no time at which it finished")
        if request.outcome is not (Outcome.MET if request.finished <= request.deadline else Outcome.LATE):
            raise broken(10, f"{request} finished at {request.finished!r}, deadline {request.deadline!r}")
        last = max(t.finished for t in request.tasks if t.finished is not None)
        if not request.finished == last == now:
            raise broken(
                2, f"{request} finished at {request.finished!r}, its last stage at {last!r}, told at {now!r}"
            )
        missing = set(self.loop.serving if self.loop else ()) - {task.stage.name for task in request.tasks}
        if missing:
            raise broken(7, f"{request} never passed {', '.join(sorted(missing))}")

    def _check_iterations(self, task: Task, done: int) -> None:
        asked = asked_of(task)
        counted = task.iterations - task.left
        if self.watched and counted != done:
            raise broken(7, f"{task} counts {counted} iterations, but ran {done}")
        if not 0 <= counted <= asked or (task.request.outcome in FINISHED and counted != asked):
            raise broken(7, f"{task} ended {task.request.outcome} after {counted} of {asked} iterations")

    def check_batch(self, batch: Batch) -> None:
        worker = batch.worker
        if not 1 <= batch.size <= worker.view.limit:
            raise broken(4, f"{batch}: the limit is {worker.view.limit}")
        if batch.size != len(batch.tasks) or len(set(batch.tasks)) != batch.size:
            raise broken(4, f"{batch} holds a task twice: {[t.id for t in batch.tasks]}")
        for task in batch.tasks:
            if task.worker is not worker or task.stage is not worker.stage:
                raise broken(4, f"{batch} holds {task}, which is not at this worker")


class WatchedWorker:
    """What the checker knows of a worker, and its ear between the loop and the worker's policy."""

    def __init__(self, worker: Worker, laws: LawChecker) -> None:
        self.worker = worker
        self.laws = laws
        self.flying: Batch | None = None
        self.news = False  # something came or ended since the policy was last asked
        self.idle_until: float | None = None  # as the policy last said
        worker.policy = WatchedPolicy(worker.policy, self)

    def started(self, batch: Batch) -> None:
        if self.flying is not None:
            raise broken(3, f"{self.worker.name} starts {batch} while {self.flying} is in flight")
        self.flying = batch
        if not self.worker.policy.ahead:
            self.idle_until = None
        self.laws.check_batch(batch)

    def stopped(self, batch: Batch) -> dict[Task, int]:
        """The executor says that *batch* is done. Gives the iterations that each of its live tasks has now done."""
        if self.flying is not batch:
            raise broken(3, f"{self.worker.name} ends {batch}, but {self.flying} is in flight")
        self.flying = None
        self.news = True
        if not 1 <= batch.count <= batch.times:
            raise broken(7, f"{batch} ran {batch.count} times on end where {batch.times} were allowed")
        steps = batch.iterations * batch.count
        done = {}
        for task in batch.tasks:
            if task.request.outcome is not None:
                continue
            ran, asked = self.laws.iterations.get(task, 0), asked_of(task)
            if ran + steps > asked and not batch.whole:
                raise broken(7, f"{task} runs {steps} iterations after {ran} of {asked}")
            done[task] = min(ran + steps, asked)
        self.laws.iterations.update(done)
        return done

    def decided(self, decision: Decision, now: float) -> None:
        """A policy may run and drop what the worker holds and does not compute; nothing twice."""
        view = self.worker.view
        name = self.worker.name
        self.news = False
        self.idle_until = None if decision.run else decision.idle_until
        batches = [view.in_flight, *view.backlog] if view.in_flight is not None else []
        taken = {task for batch in batches if batch is not None for task in batch.tasks}
        for word, tasks in (("drops", decision.drop), ("runs", decision.run)):
            for task in tasks:
                if task in taken:
                    raise broken(4, f"the policy of {name} {word} {task} twice, or while it is in a batch")
                taken.add(task)
                if task not in view.waiting and task not in view.running:
                    raise broken(4, f"the policy of {name} {word} {task}, which is not there")

    def check_idle(self, now: float) -> None:
        """Called when time moves on to *now*, before anything happens there: was nothing left undone?"""
        view, worker = self.worker.view, self.worker
        until = self.idle_until
        stopped = self.laws.loop is not None and self.laws.loop.stopped
        if until is not None and not stopped and until + self.laws.patience < now:
            raise broken(5, f"{worker.name} was to be woken at {until!r}, but it is {now!r}")
        if view.in_flight is not None:
            return
        if view.backlog:
            raise broken(5, f"{worker.name} idles before {now!r} with {len(view.backlog)} batches decided")
        if any(task.request.outcome is None for task in worker.inbox):
            raise broken(5, f"{worker.name} idles before {now!r} and has not taken in what arrived")
        if self.news and (view.waiting or view.running):
            held = len(view.waiting) + len(view.running)
            raise broken(5, f"{worker.name} idles before {now!r} with {held} tasks, and its policy was not asked")

    def check_empty(self) -> None:
        view, worker = self.worker.view, self.worker
        if view.in_flight is not None or view.backlog or self.flying is not None:
            raise broken(1, f"{worker.name} still has a batch when the run is over")
        if view.waiting or view.running or any(t.request.outcome is None for t in worker.inbox):
            raise broken(1, f"{worker.name} still holds tasks when the run is over")


class WatchedPolicy(Policy):
    """Passes everything on to *inner*, and what it decides to the checker."""

    def __init__(self, inner: Policy, watched: WatchedWorker) -> None:
        self.inner = inner
        self.watched = watched
        self.ahead = inner.ahead

    def start(self, view: WorkerView) -> None:
        self.inner.start(view)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        self.watched.news = True
        return self.inner.admit(task, view, now)

    def decide(self, view: WorkerView, now: float) -> Decision:
        decision = self.inner.decide(view, now)
        self.watched.decided(decision, now)
        return decision

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self.inner.ended(batch, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.inner.removed(task, view, now)


class WatchedExecutor:
    """Passes everything on to *inner*; hears of each event before the loop does."""

    def __init__(self, inner: Executor, laws: LawChecker) -> None:
        self.inner = inner
        self.laws = laws
        self.now = inner.now

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        watched = self.laws.watched[worker.index]
        watched.started(batch)

        def ended(batch: Batch) -> None:
            self.laws.advance(self.now())
            counts = watched.stopped(batch)
            done(batch)
            for task, n in counts.items():
                if task.left != asked_of(task) - n:
                    raise broken(7, f"{task} has {task.left} iterations left after {n} of {asked_of(task)}")

        self.inner.run(worker, batch, ended)

    def send(self, source: Worker | None, target: Worker, request: Request, deliver: Callable[[], None]) -> None:
        if source is None and self.now() < request.arrival:
            raise broken(2, f"request {request.id} is sent at {self.now()!r}, before its arrival")
        self.inner.send(source, target, request, self._event(deliver))

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        return self.inner.call_at(when, self._event(callback))

    def _event(self, callback: Callable[[], None]) -> Callable[[], None]:
        def event() -> None:
            self.laws.advance(self.now())
            callback()

        return event


# -- on records -----------------------------------------------------------------------------------------------


def check_records(folder: Path, inputs: Mapping[str, Sequence[str]] | None = None) -> None:
    """Hold the records of a finished run in *folder* to laws 1, 2, 3, 4, 7 and 10; raises `LawBroken`.

    The records do not say which stage feeds which. With *inputs* (stage -> the stages that feed it) that order is
    checked too. Raises `BadInput` if it is no folder of a finished run.
    """
    if not (folder / "summary.json").exists():
        raise BadInput("no summary.json", where=str(folder), right="the folder of a finished run")
    summary = json.loads((folder / "summary.json").read_text())
    runs = _check_batch_records(folder, summary)
    outcomes: Counter[str] = Counter()
    ended: set[int] = set()
    for record in _lines(folder / "requests.jsonl"):
        if record["id"] in ended:
            raise broken(1, f"request {record['id']} ends twice")
        ended.add(record["id"])
        if record["outcome"] not in [o.value for o in Outcome]:
            raise broken(1, f"request {record['id']} ends as {record['outcome']}")
        outcomes[record["outcome"]] += 1
        _check_request_record(record, runs, inputs or {})
    counted = {o.value: outcomes[o] for o in Outcome}
    if summary["requests"] != len(ended):
        raise broken(1, f"{summary['requests']} requests arrived, {len(ended)} ended")
    if counted != {o.value: summary[o.value] for o in Outcome}:
        raise broken(10, f"the summary does not count {counted}")
    if ended and summary["attainment"] != counted["met"] / len(ended):
        raise broken(10, f"attainment is {summary['attainment']!r}, but {counted['met']} of {len(ended)} were met")


#: (worker, request) -> its batches there, in order: (start, end, iterations each, how often on end)
Runs = dict[tuple[str, int], list[tuple[float, float, int, int]]]


def _check_batch_records(folder: Path, summary: dict[str, Any]) -> Runs:
    runs: Runs = {}
    last: dict[str, float] = {}
    sizes: dict[str, Counter[int]] = {}
    for record in _lines(folder / "batches.jsonl"):
        name = f"batch {record['id']} of {record['worker']}"
        worker, start, end, ids = record["worker"], record["start"], record["end"], record["requests"]
        count = len(record["ends"]) if "ends" in record else 1
        if start < last.get(worker, start):
            raise broken(3, f"{name} started at {start!r}, before the last one ended at {last[worker]!r}")
        last[worker] = end
        _check_ends(start, end, record.get("ends"), count, name)
        if not ids or len(set(ids)) < len(ids):
            raise broken(4, f"{name} holds a request twice, or none: {ids}")
        sizes.setdefault(worker, Counter())[len(ids)] += count
        for request in ids:
            runs.setdefault((worker, request), []).append((start, end, record["iterations"], count))
    told = {w: {int(n): k for n, k in s["batch_sizes"].items()} for w, s in summary["workers"].items()}
    if told != {w: dict(c) for w, c in sizes.items()}:
        raise broken(4, "the summary's batch sizes are not those of the batches")
    return runs


def _check_request_record(record: dict[str, Any], runs: Runs, inputs: Mapping[str, Sequence[str]]) -> None:
    finished, deadline, outcome = record["finished"], record["deadline"], record["outcome"]
    name = f"request {record['id']}"
    done = outcome in [o.value for o in FINISHED]
    if done != (finished is not None) or (done and (outcome == Outcome.MET) != (finished <= deadline)):
        raise broken(10, f"{name} ended {outcome}, finished {finished!r}, deadline {deadline!r}")
    finishes = {stay["stage"]: stay["finished"] for stay in record["stages"]}
    for stay in record["stages"]:
        where = f"{name} at {stay['stage']}"
        marks = [(m, stay[m]) for m in ("queued", "admitted", "started", "finished") if stay[m] is not None]
        _check_order([("arrival", record["arrival"]), *marks], where)
        for stage in inputs.get(stay["stage"], ()):
            before = finishes.get(stage)
            if before is None or before > stay["queued"]:
                raise broken(2, f"{where} is queued at {stay['queued']!r}, before {stage} is finished")
        _check_stay(stay, record, runs.get((stay["worker"], record["id"]), []), where)
    ends = [end for end in finishes.values() if end is not None]
    if done and finished != max(ends, default=None):
        raise broken(2, f"{name} finished at {finished!r}, its stages at {ends}")


def _check_stay(
    stay: dict[str, Any], record: dict[str, Any], runs: list[tuple[float, float, int, int]], where: str
) -> None:
    counted = stay["iterations"]
    if record["outcome"] in [o.value for o in FINISHED]:
        work, modules = record["work"], stay["stage"].split("+")
        asked = next((work[m] for m in modules if m in work), 1)
        if counted != asked:
            raise broken(7, f"{where} ran {counted} of {asked} iterations")
    ran = sum(iterations * count for _, _, iterations, count in runs)
    single = all(iterations == 1 for _, _, iterations, _ in runs)
    if counted > ran or (single and stay["finished"] is not None and counted != ran):
        raise broken(7, f"{where} counts {counted} iterations, its batches {ran}")
    if runs and stay["started"] != runs[0][0]:
        raise broken(2, f"{where} is started at {stay['started']!r}, its first batch at {runs[0][0]!r}")
    if stay["finished"] is not None and stay["finished"] != runs[-1][1]:
        raise broken(2, f"{where} is finished at {stay['finished']!r}, its last batch at {runs[-1][1]!r}")


def _check_order(way: list[tuple[str, float]], where: str) -> None:
    for (name, at), (after, later) in itertools.pairwise(way):
        if later < at:
            raise broken(2, f"{where}: {after} at {later!r}, before {name} at {at!r}")


def _check_ends(start: float, end: float, ends: list[float] | None, count: int, where: str) -> None:
    if end < start:
        raise broken(2, f"{where} ends at {end!r}, before its start at {start!r}")
    if not ends:
        return
    if len(ends) != count or any(b < a for a, b in itertools.pairwise([start, *ends, end])):
        raise broken(2, f"{where} from {start!r} to {end!r} does not take {count} iterations that end at {ends}")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
