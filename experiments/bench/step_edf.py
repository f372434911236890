"""One model in three styles: step-level earliest deadline first on one device, a batch re-formed at every iteration.

`twin` is ServeTwin itself (serving loop, policy file, SimPy executor). `naive` is what a first SimPy model
looks like: a process per request, an event per step. `bare` is a loop without any simulation library, the floor for
pure Python. All three make the same decisions in the same order, so their results are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import simpy
from servetwin.core import BatchWorker, Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.random_streams import stream
from servetwin.core.serving.client import play
from servetwin.policies.diffusion.edf import EDF
from servetwin.sim import SimExecutor, TableTiming


@dataclass(frozen=True)
class Case:
    """*requests* of *steps* steps at *rate* per second (Poisson), each to end within *slo* seconds."""

    requests: int = 500
    steps: int = 50
    rate: float = 1.4
    slo: float = 10.0
    most: int = 16
    seed: int = 0

    @property
    def table(self) -> list[float]:
        """Seconds of an iteration by batch size."""
        return [float("nan"), *(0.030 + 0.0105 * n for n in range(1, self.most + 1))]

    def arrivals(self) -> list[float]:
        gaps = stream(self.seed, "arrivals").exponential(1.0 / self.rate, self.requests)
        times: list[float] = gaps.cumsum().tolist()
        return times


@dataclass
class Result:
    finished: dict[int, float]  # request -> when it ended; dropped ones are missing
    iterations: int

    @property
    def key(self) -> tuple[int, tuple[tuple[int, float], ...]]:
        """What two styles must agree on."""
        return self.iterations, tuple(sorted(self.finished.items()))


class _Ends(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.finished: dict[int, float] = {}

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        if request.finished is not None:
            self.finished[request.id] = request.finished


def twin(case: Case) -> Result:
    table = case.table
    (stage,) = Pipeline.chain(Module("unet", loop=True)).stages([["unet"]])
    view = WorkerView(stage, lambda _, n: table[n], limit=case.most)
    recorder = _Ends()
    executor = SimExecutor(lambda _: TableTiming(table))
    loop = ServingLoop([stage], [BatchWorker(stage, EDF(), view)], executor, recorder)

    def requests() -> Iterator[Request]:
        for i, arrival in enumerate(case.arrivals()):
            yield Request(i, arrival, case.slo, {"unet": case.steps})

    play(loop, requests())
    executor.run_until_idle()
    sizes = recorder.summary.sizes
    return Result(recorder.finished, sizes["unet"].total() if sizes else 0)


def naive(case: Case) -> Result:
    """A process per request that waits for each of its steps, and one for the device that serves the most urgent."""
    table = case.table
    step = table[1]
    env = simpy.Environment()
    waiting: dict[int, simpy.Event] = {}
    left: dict[int, int] = {}
    due: dict[int, float] = {}
    finished: dict[int, float] = {}
    work = [env.event()]
    count = [0]

    def request(i: int, arrival: float) -> Generator[simpy.Event, bool, None]:
        yield env.timeout(arrival)
        due[i] = arrival + case.slo
        left[i] = case.steps
        while left[i]:
            turn = waiting[i] = env.event()
            if not work[0].triggered:
                work[0].succeed()
            served = yield turn
            if not served:
                return
            left[i] -= 1
        finished[i] = env.now

    def device() -> Generator[simpy.Event, Any, None]:
        while True:
            if not waiting:
                work[0] = env.event()
                yield work[0]
            order = sorted(waiting, key=lambda i: (due[i] - left[i] * step, i))
            for i in [i for i in order if due[i] - left[i] * step < env.now]:
                order.remove(i)
                waiting.pop(i).succeed(False)
            batch = order[: case.most]
            if not batch:
                continue
            yield env.timeout(table[len(batch)])
            count[0] += 1
            for i in batch:
                waiting.pop(i).succeed(True)
            yield env.timeout(0)  # let them queue for their next step

    for i, arrival in enumerate(case.arrivals()):
        env.process(request(i, arrival))
    env.process(device())
    env.run()
    return Result(finished, count[0])


def bare(case: Case) -> Result:
    """No library, no interfaces: lists, numbers and one loop."""
    table, most, slo = case.table, case.most, case.slo
    step = table[1]
    arrivals = [*case.arrivals(), float("inf")]
    coming = 0
    now = 0.0
    iterations = 0
    left: dict[int, int] = {}
    finished: dict[int, float] = {}
    queue: list[tuple[float, int]] = []
    while True:
        while arrivals[coming] <= now:
            due = arrivals[coming] + slo
            left[coming] = case.steps
            queue.append((due - case.steps * step, coming))
            coming += 1
        queue.sort()
        late = 0
        while late < len(queue) and queue[late][0] < now:
            late += 1
        del queue[:late]
        if not queue:
            if arrivals[coming] == float("inf"):
                return Result(finished, iterations)
            now = arrivals[coming]
            continue
        batch = queue[:most]
        del queue[:most]
        now += table[len(batch)]
        iterations += 1
        for _, i in batch:
            left[i] -= 1
            if left[i]:
                queue.append((arrivals[i] + slo - left[i] * step, i))
            else:
                finished[i] = now


STYLES: dict[str, Callable[[Case], Result]] = {"twin": twin, "naive": naive, "bare": bare}
