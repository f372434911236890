"""What every schedule has to spend on a request at each stage of a chain, at least, and within which window.

Times are read from what the simulator itself runs by. Where a term could be avoided by some schedule it counts as
nothing, where it depends on the batch the least share of any batch counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from servetwin.core import BadInput, Request, Worker
from servetwin.core.arithmetic import float_sum
from servetwin.core.serving.batch_worker import BatchWorker
from servetwin.core.slo import latest
from servetwin.sim.measured import WholeTiming
from servetwin.sim.time.timing import MeasuredTiming, TableTiming, Timing

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class StageTimes:
    """Least times of a stage, in seconds; lists go by batch size (index 0 unused).

    *worker* is how long an iteration keeps the worker, *device* its device work where the host may run ahead of the
    device by *ahead* at most (else None). *join* and *leave* pass before a request's first iteration, and after its
    last until it is handed on. *request* is worker time, *request_device* device time that a request adds beside its
    iterations. *count* workers serve the stage; *bare*: times are those of the iterations alone.
    """

    worker: Sequence[float]
    device: Sequence[float] | None = None
    ahead: float = 0.0
    join: float = 0.0
    leave: float = 0.0
    request: float = 0.0
    request_device: float = 0.0
    count: int = 1
    bare: bool = True

    @property
    def fastest(self) -> float:
        """Seconds of an iteration, whatever its size, at least."""
        return min(self.worker[1:])


@dataclass(frozen=True)
class StageLoad:
    """The requests at one stage, which is *hop* seconds from the one before it: their *iterations*, and between which
    times (seconds since the run began) these must be run so that the request can be met. Requests stand in one order
    for all stages."""

    name: str
    times: StageTimes
    hop: float
    iterations: NDArray[np.int64]
    release: Numbers
    due: Numbers

    @property
    def possible(self) -> NDArray[np.bool_]:
        """Which requests can be served in their windows at all."""
        need = self.times.join + self.iterations * self.times.fastest
        found: NDArray[np.bool_] = self.release + need <= self.due + 1e-9
        return found


@dataclass(frozen=True)
class Place:
    """A worker and what its batches take. *timing* draws nothing: *drawn* and *slow* are the least factors that noise
    may put on an iteration and on host time, *whole* likewise on a batch of whole requests. *rate* is the highest
    rate at which the worker gets on beside others. *alone*: nobody shares its device."""

    worker: Worker
    timing: Timing
    drawn: float = 1.0
    slow: float = 1.0
    whole: float = 1.0
    rate: float = 1.0
    alone: bool = True


#: The least seconds between two workers by name (None: the client); what is not named takes no time.
Transports = Mapping[tuple[str | None, str], float]


def stage_loads(
    places: Sequence[Place], transports: Transports, requests: Sequence[Request], stop: float
) -> list[StageLoad]:
    """The loads of a chain of stages, in its order. *stop* is when the run ends.

    Raises `BadInput` for graphs that are no chains, and for workers that are no `BatchWorker`.
    """
    stages = _chain([p.worker for p in places])
    by_stage = [[p for p in places if p.worker.stage.name == name] for name in stages]
    every = [_together([_times(p) for p in here]) for here in by_stage]
    names: list[list[str | None]] = [[None]]
    names += [[p.worker.name for p in here] for here in by_stage]
    hops = [
        min(transports.get((a, p.worker.name), 0.0) for a in sources for p in here)
        for sources, here in zip(names, by_stage, strict=False)
    ]
    steps = [_iterations(here[0].worker, requests) for here in by_stage]
    alone = [t.join + k * t.fastest + t.leave for t, k in zip(every, steps, strict=True)]
    release = np.array([r.arrival for r in requests])
    due = np.minimum(np.array([latest(r.deadline) for r in requests]), stop)
    loads = []
    for i, times in enumerate(every):
        release = release + hops[i]
        rest = sum((alone[j] + hops[j] for j in range(i + 1, len(every))), np.zeros(len(requests)))
        loads.append(StageLoad(stages[i], times, hops[i], steps[i], release, due - rest - times.leave))
        release = release + alone[i]
    return loads


def _chain(workers: Sequence[Worker]) -> list[str]:
    """The names of the stages, in the order in which each request passes them."""
    for worker in workers:
        if not isinstance(worker, BatchWorker):
            what = f"a bound is known for stages that compute batches on a device, and {worker.name} does not"
            raise BadInput(what, where="deployment.workers", right="a pipeline without tools, or one language model")
    stages = {w.stage.name: w.stage for w in workers}
    followers = {name: [s.name for s in stage.next] for name, stage in stages.items()}
    after = {n for names in followers.values() for n in names}
    found = [name for name in stages if name not in after][:1]
    while found and len(followers[found[-1]]) == 1 and len(found) < len(stages):
        found.append(followers[found[-1]][0])
    branching = any(stage.branches or stage.again for stage in stages.values())
    if branching or len(found) != len(stages) or followers[found[-1]]:
        what = "a bound is known for a chain of stages, and this pipeline forks, joins or branches"
        raise BadInput(what, where="pipeline", right="modules in a row, or one language model")
    return found


def _iterations(worker: Worker, requests: Sequence[Request]) -> NDArray[np.int64]:
    loop = worker.stage.loop
    return np.array([r.work.get(loop, 1) if loop else 1 for r in requests], dtype=np.int64)


def _together(found: Sequence[StageTimes]) -> StageTimes:
    """The least times of several workers that serve one stage, whichever of them serves."""
    if len(found) == 1:
        return found[0]
    most = max(len(t.worker) for t in found)
    return StageTimes(
        [0.0, *(min(t.worker[n] for t in found if n < len(t.worker)) for n in range(1, most))],
        join=min(t.join for t in found),
        leave=min(t.leave for t in found),
        request=min(t.request for t in found),
        count=len(found),
        bare=all(t.bare for t in found),
    )


def _times(place: Place) -> StageTimes:
    timing, sizes = place.timing, range(1, place.worker.view.limit + 1)
    if isinstance(timing, TableTiming):
        factor = place.drawn / place.rate
        once = _least_share(timing.once, sizes) * factor if timing.once else 0.0
        bare = place.alone and not once and factor == 1.0
        return StageTimes([0.0, *(timing.iteration[n] * factor for n in sizes)], request=once, bare=bare)
    if isinstance(timing, WholeTiming):
        steps = timing.steps
        assert isinstance(steps, MeasuredTiming)
        return _or_whole(_loop_times(steps, place, sizes), timing, place, sizes)
    assert isinstance(timing, MeasuredTiming)
    return _loop_times(timing, place, sizes)


def _loop_times(steps: MeasuredTiming, place: Place, sizes: range) -> StageTimes:
    factor = place.drawn / place.rate
    host = [0.0, *(steps.host[n] * place.slow * factor for n in sizes)]
    device = [0.0, *(steps.device[n] * factor for n in sizes)]
    # (Factors on the first iteration are factors on its joins.)
    join = max(_least_share(steps.joins, sizes) if steps.joins else steps.join, 0.0) * factor
    leaves = steps.leaves or [0.0, *(steps.leave[0] + steps.leave[1] * n for n in sizes)]
    hand_over = max(_least_share(leaves, sizes), 0.0)
    leave = max(min(leaves[min(n, len(leaves) - 1)] for n in sizes), 0.0)
    columns = [column for column in (steps.before, steps.after) if column is not None]
    around = max(float_sum(_least_share(column, sizes) for column in columns), 0.0) * factor
    if steps.ahead is None:
        both = [max(h, d) for h, d in zip(host, device, strict=True)]
        extra = join or leave or around or steps.cold or steps.cold_long or steps.deciding or steps.pausing
        bare = place.alone and factor == 1.0 and not extra and not steps.pauses and steps.slow_spells is None
        return StageTimes(both, join=join, leave=leave, request=join + hand_over + around, bare=bare)
    outstanding = max(max(steps.ahead[n] for n in sizes), 0.0) + max(device)
    return StageTimes(host, device, outstanding, join, leave, join + hand_over, around, bare=False)


def _or_whole(found: StageTimes, timing: WholeTiming, place: Place, sizes: range) -> StageTimes:
    """The less of *found* and of what batches of whole requests take."""
    once = [0.0, *(timing.expected(0, n) for n in sizes)]
    share = [0.0, *(timing.ratio[n] * place.whole / place.rate for n in sizes)]
    times = [0.0, *((timing.expected(1, n) - once[n]) * share[n] for n in sizes)]
    request = min(once[n] * share[n] / n for n in sizes)
    device = found.device and [min(pair) for pair in zip(found.device, times, strict=True)]
    return StageTimes(
        [min(pair) for pair in zip(found.worker, times, strict=True)],
        device,
        found.ahead,
        request=min(found.request, request),
        request_device=min(found.request_device, request),
        bare=False,
    )


def _least_share(column: Sequence[float], sizes: range) -> float:
    """What one of several at once costs at least, by a *column* whose last entry holds for all larger numbers."""
    return min(column[min(n, len(column) - 1)] / n for n in sizes)
