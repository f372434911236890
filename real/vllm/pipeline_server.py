"""A pipeline with language models served for real: the loop, the client and the tools here, each engine in its
process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput, Outcome, Recorder, Request, ServeTwinError, ServingLoop, Stage, Worker
from servetwin.core.arithmetic import float_sum
from servetwin.core.errors import PolicyFault, Stopped
from servetwin.core.serving.pool import Pool

from .engine_process import EngineProcess, EngineWorker

if TYPE_CHECKING:
    from ..server import Report
    from ..tools.script_tool import ScriptTool


def serve(
    stages: Sequence[Stage],
    workers: Sequence[Worker],
    requests: Sequence[Request],
    engines: Mapping[str, EngineProcess],
    recorder: Recorder | None = None,
    *,
    tools: Mapping[str, ScriptTool] | None = None,
    stop_after: float | None = None,
    **wiring: Any,
) -> Report:
    """Serve *requests* for real with *workers*: each `EngineWorker` by the engine of its name, pools by *tools*.

    *wiring* goes to the `ServingLoop`. Raises `BadInput` for a worker that nothing serves, and `ServeTwinError` if
    the run breaks (Ctrl-C, and `Stopped` by a signal, as itself): what is live then fails, and the records are whole.
    """
    from ..executor import RealExecutor
    from ..server import Log, report, say

    log = Log(recorder or Recorder(), passes_batches=False)  # the engines tell of their steps themselves
    log.wants_token_times = log.inner.wants_token_times
    executor = RealExecutor({}, tools=tools)
    for worker in workers:
        if isinstance(worker, EngineWorker) and worker.name in engines:
            worker.use(engines[worker.name], executor)
        elif isinstance(worker, Pool):
            executor.add(worker)
        else:
            right = f"an engine ({', '.join(engines)}) or a pool of threads"
            raise BadInput(f"nothing real serves {worker.name}", right=right)
    log.executor = executor
    executor.spare = log.write
    loop = ServingLoop(stages, workers, executor, log, **wiring)
    ours = [worker for worker in workers if isinstance(worker, EngineWorker)]
    try:
        executor.play(loop, requests, stop_after)
        loop.look_over()
    except (Exception, KeyboardInterrupt, Stopped) as problem:
        reason = say(problem)
        loop.close_books()  # whatever they say now, it is no news
        loop.stop(reason)
        if isinstance(problem, KeyboardInterrupt | Stopped | PolicyFault):
            raise
        raise ServeTwinError(f"the run ended early: {reason}") from problem
    finally:
        log.write()
        for worker in ours:
            worker.end()
        executor.close()
        _tell_steps(ours, log.inner)
    found = report(log, executor.lateness)
    found.tools = {name: tool.told() for name, tool in executor.tools.items()}
    found.tools |= {worker.name: worker.costs() for worker in ours}
    ended = {task.request.id: task.request for worker in ours for task in worker.known.values()}
    shares = [
        float_sum(worker.communication.get(number, 0.0) for worker in ours) / (request.finished - request.arrival)
        for number, request in ended.items()
        if request.finished is not None and request.outcome in (Outcome.MET, Outcome.LATE)
    ]
    if shares:
        found.tools["pipeline"] = {"requests": len(shares), "communication_over_e2el": fmean(shares)}
    return found


def _tell_steps(workers: Sequence[EngineWorker], recorder: Recorder) -> None:
    """The steps of all engines, in the order in which they ended."""
    steps = sorted((batch for worker in workers for batch in worker.batches()), key=lambda batch: batch.end)
    for number, batch in enumerate(steps, 1):
        batch.id = number
        recorder.batch(batch)
