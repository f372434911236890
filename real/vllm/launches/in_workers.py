"""Watches launches inside vLLM's workers, where these are processes of their own (tensor parallelism).

The engine's process then only tells its workers of a step, through a queue, and goes on; they launch it, one step
after the other. So each worker watches itself (`WorkerClock`), and `Workers` asks all of them what they have seen.
The monotonic clock is the machine's, the same in all of its processes.

vLLM 0.25.1 and 0.27.1: ``WorkerProc.worker_busy_loop`` calls ``execute_model`` and ``sample_tokens`` of the wrapper
of its worker, which calls those of the worker (vllm/v1/executor/multiproc_executor.py, v1/worker/worker_base.py).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from .stream_events import StreamEvents

#: Seconds in which workers must answer.
PATIENCE = 60.0
#: Under which name a worker keeps its clocks.
NAME = "servetwin_clock"


class InWorkers(NamedTuple):
    """A step as its workers launched it: when it and its sampling were launched by the last of them, on the monotonic
    clock; and the first GPU's milliseconds from when the step before it was over, or it was begun if that was later,
    and without anything to do before (nan without events)."""

    launched: float
    sampled: float
    device: float
    idle: float


def apart(core: Any) -> bool:
    """Whether the workers of the engine *core* are processes of their own."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return not isinstance(core.model_executor, UniProcExecutor)


class Workers:
    """The clocks in the workers of *executor*, which are put there: with *events*, those of a profile, which always
    watch, and of which the first one also tells what steps take on its GPU; without, those of runs, which watch while
    they are told to."""

    def __init__(self, executor: Any, *, events: bool) -> None:
        self.executor, self.events = executor, events
        executor.collective_rpc(put_in, PATIENCE, (events,))

    def watch(self, on: bool) -> None:
        """Begin or end to watch."""
        self.executor.collective_rpc(turn, PATIENCE, (self.events, on))

    def take(self) -> list[InWorkers]:
        """The steps since the last call, in their order; nothing may be in flight."""
        workers = self.executor.collective_rpc(seen, PATIENCE, (self.events,))
        found = []
        for steps in zip(*workers, strict=True):
            launched, sampled = (max(step[at] for step in steps) for at in (0, 1))
            found.append(InWorkers(launched, sampled, *steps[0][2:]))
        return found


class WorkerClock:
    """Watches the launches of *worker*, vLLM's, in its process while it is `on`; with *events* by events before and
    after each on its GPU's stream, too."""

    def __init__(self, worker: Any, *, events: bool) -> None:
        self.on = False
        self._events = StreamEvents(wanted=events)
        self._open: tuple[float, Any] | None = None
        self._seen: list[tuple[float, float, Any, Any]] = []
        self._execute, self._sample = worker.execute_model, worker.sample_tokens
        worker.execute_model, worker.sample_tokens = self.execute_model, self.sample_tokens

    def execute_model(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        """What vLLM calls to launch a step."""
        if not self.on or not output.total_num_scheduled_tokens:
            return self._execute(output, *args, **kwargs)
        before = self._events.mark()
        found = self._execute(output, *args, **kwargs)
        self._open = time.monotonic(), before
        return found

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """What vLLM calls to launch its sampling."""
        found = self._sample(*args, **kwargs)
        if self._open is not None:
            launched, before = self._open
            self._seen.append((launched, time.monotonic(), before, self._events.mark()))
            self._open = None
        return found

    def take(self) -> list[tuple[float, float, float, float]]:
        """Of the steps since the last call, in their order, what `InWorkers` holds of this worker."""
        seen, self._seen = self._seen, []
        times = self._events.times([(before, after) for *_, before, after in seen])
        return [(*launch[:2], *on_gpu) for launch, on_gpu in zip(seen, times, strict=True)]


# -- called in the workers: what they are given is vLLM's wrapper of the worker ------------------------------------


def put_in(wrapper: Any, events: bool) -> None:
    """Put a clock into a worker, unless it has it already."""
    worker = wrapper.worker
    clocks = vars(worker).setdefault(NAME, {})
    if events not in clocks:
        clocks[events] = WorkerClock(worker, events=events and worker.rank == 0)
    clocks[events].on = events


def turn(wrapper: Any, events: bool, on: bool) -> None:
    """Begin or end to watch."""
    vars(wrapper.worker)[NAME][events].on = on


def seen(wrapper: Any, events: bool) -> list[tuple[float, float, float, float]]:
    """What the clock saw since it was asked last."""
    found: list[tuple[float, float, float, float]] = vars(wrapper.worker)[NAME][events].take()
    return found
