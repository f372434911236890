"""What a step takes that uses the network's last prediction again, over one in which the network runs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

from servetwin.core import BatchWorker, Decision, Module, Pipeline, Policy, Recorder, Request, Worker, WorkerView
from servetwin.core.pipeline import StepActions
from servetwin.core.serving.acting_worker import ActingWorker
from servetwin.profiles import costs

from ...server import Log, Server
from .microbenchmarks import AGES, Gather
from .profile_writer import ROUND

#: Steps of each batch size, half of which are reused.
STEPS = 60
#: All but the first may be.
ANY = StepActions(quality=((1e-9, 1.0), (1.0, 1.0)), reuse=True)


class Alternate(Policy):
    """Waits for *size* requests, then runs them together; every other step of theirs is reused."""

    def __init__(self, size: int) -> None:
        self.size = size

    def decide(self, view: WorkerView, now: float) -> Decision:
        if view.running:
            run = [*view.running]
            return Decision(run, reuse=run if run[0].left % 2 else ())
        return Decision([*view.waiting] if len(view.waiting) == self.size else ())


def measured_ratios(server: Server, limit: int, device: str = "gpu0") -> dict[int, tuple[float, int]]:
    """By batch size up to *limit*: the time of a step that is reused over that of one that is computed, start to
    start, in turns in one run; and how many of the former there were. The server must keep predictions
    (`servetwin.real.Options.reuse`)."""
    kind = server.kind
    modules = [Module(name, loop=loops, actions=ANY if loops else None) for name, loops in kind.chain]
    found = {}
    for size in range(1, limit + 1):
        workers: list[Worker] = []
        stages = Pipeline.chain(*modules, name=kind.name).stages(kind.placement)
        for stage in stages:
            acts = stage.actions is not None
            view = WorkerView(stage, _none, limit=size)
            worker = ActingWorker(stage, Alternate(size), view) if acts else BatchWorker(stage, Gather(1), view)
            worker.device = device
            workers.append(worker)
        log = Log(Recorder())
        executor, loop = server.prepare(stages, workers, log, exercise=0.0)
        try:
            executor.measured_run(loop, [Request(i, 0.0, AGES, {kind.loop: STEPS}) for i in range(size)])
        finally:
            executor.close()
        spells = [spell for spell in log.spells if spell.worker == workers[_loop(workers)].name and not spell.leaves]
        pairs = [(a, b.start - a.start) for a, b in itertools.pairwise(spells) if not a.joins]
        again, computed = ([seconds for a, seconds in pairs if bool(a.reused) is kept] for kept in (True, False))
        found[size] = statistics.median(again) / statistics.median(computed), len(again)
    return found


def _loop(workers: list[Worker]) -> int:
    return next(i for i, worker in enumerate(workers) if worker.stage.loop is not None)


def _none(module: str, size: int) -> float:
    return 0.0


def with_reuse(content: Mapping[str, Any], loop: str, ratios: Mapping[int, tuple[float, int]]) -> dict[str, Any]:
    """The *content* of a profile file with what was measured of steps of *loop* that are reused."""
    sizes = sorted(ratios)
    cost = {
        "meaning": "what a step takes that reuses the network's last prediction, over one that is computed",
        "unit": "ratio",
        "modules": [loop],
        "by_batch": {
            "batch": sizes,
            "values": [round(min(1.0, ratios[n][0]), ROUND) for n in sizes],
            "samples": [ratios[n][1] for n in sizes],
        },
        "statistic": "median over median",
        "how": "in turns with computed steps, start to start",
        "source": {"file": "real/diffusion/profiling/reused_steps.py"},
    }
    return {**content, "costs": {**content.get("costs", {}), costs.REUSE(loop): cost}}
