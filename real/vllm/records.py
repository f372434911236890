"""The records of a run on vLLM: the same as those of its simulation, written when the run is over."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from servetwin.core import Outcome, Recorder
from servetwin.core.llm import CachingTask, TokenRequest, TokenTask
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.slo import latest

from .plan import Run, Served

#: Something that happened, when, and what comes first of what happened at the same time.
Event = tuple[float, int, Callable[[], None]]


def record(
    run: Run,
    worker: TokenWorker,
    planned: dict[int, TokenRequest],
    recorder: Recorder,
    at: Mapping[int, TokenWorker] | None = None,
) -> None:
    """Tell *recorder* what happened in *run*, in order of time.

    *planned* are the requests that were sent, by their ids; who met the SLO is decided as in a simulation, by the
    deadlines in the view of *worker*; or of that which *at* names for a request, where there are several.
    """
    started: dict[int, float] = {}
    running: set[int] = set()
    cached: dict[int, list[int]] = {}  # the tokens that each found whenever it was admitted
    for step in run.steps:
        for number in step.preempted:
            running.discard(number)
        for number, _, context in step.prefill:
            started.setdefault(number, step.began)
            if number not in running:
                running.add(number)
                cached.setdefault(number, []).append(context)
    by = dict.fromkeys((served.id for served in run.requests), worker) | dict(at or {})
    tasks = {s.id: _task(s, by[s.id], planned[s.id], started.get(s.id)) for s in run.requests}
    for served in run.requests:
        task = tasks[served.id]
        if isinstance(task, CachingTask):
            first, *later = cached.get(served.id, [served.cached])
            task.cached_tokens, task.cached_again = first, sum(tokens or 0 for tokens in later)
    events: list[Event] = []
    for served in run.requests:
        request = tasks[served.id].request
        events.append((request.arrival, 0, lambda r=request: recorder.arrived(r)))  # type: ignore[misc]
        end = served.times[-1] if served.outcome == "finished" else served.ended
        _settle(tasks[served.id], by[served.id], served, end, run.reason)
        events.append((end, 2, lambda r=request, t=end: recorder.ended(r, t)))  # type: ignore[misc]
    batches = _batches(run, worker, tasks)
    events += [(batch.end, 1, lambda b=batch: recorder.batch(b)) for batch in batches]  # type: ignore[misc]
    for _, _, tell in sorted(events, key=lambda event: event[:2]):
        tell()


def _task(served: Served, worker: TokenWorker, planned: TokenRequest, started: float | None) -> TokenTask:
    stage = worker.stage
    name = stage.loop or stage.name
    tokens: Any = planned.tokens[name]
    prompt, limit = tokens
    slo, work = planned.slo, planned.work
    request = TokenRequest(planned.id, served.arrival, planned.tokens, slo=slo, work=work, **planned.terms)
    kind = CachingTask if worker.view.limits.enable_prefix_caching else TokenTask
    task = kind(request, stage, served.queued, worker.place, prompt, limit)
    task.admitted = served.queued
    task.started = started
    task.generated = len(served.times)
    task.preemptions = served.preemptions
    task.token_times = array("d", served.times)
    if served.times:
        task.first_token = served.times[0]
    request.tasks.append(task)
    return task


def _settle(task: TokenTask, worker: TokenWorker, served: Served, end: float, reason: str) -> None:
    """How the request of *task* ended."""
    request, view = task.request, worker.view
    if served.outcome == "finished":
        task.finished = request.finished = end
        slo = getattr(view, "slo", None)
        late = end > latest(request.deadline) or (slo is not None and not slo.met(task))
        request.outcome = Outcome.LATE if late else Outcome.MET
    elif served.outcome == "dropped":
        request.outcome, request.reason = Outcome.DROPPED, f"dropped at {view.name}"
    else:
        request.outcome, request.reason = Outcome.FAILED, served.reason or reason


def _batches(run: Run, worker: TokenWorker, tasks: dict[int, TokenTask]) -> Iterator[TokenBatch]:
    for i, step in enumerate(run.steps):
        batch = TokenBatch(i + 1, worker.place, step.decode, step.context)
        batch.prefill = [(tasks[number], tokens, context) for number, tokens, context in step.prefill]
        batch.preempted = [tasks[number] for number in step.preempted if number in tasks]
        batch.chosen = [tasks[number] for number in step.chosen if number in tasks] or None
        batch.free = step.free
        batch.size = step.decode + len(step.prefill)
        batch.start, batch.end, batch.took = step.began, step.end, step.seconds
        yield batch
