"""Bursts over equal replicas: whoever comes is counted from when it is sent, so no burst goes to one of them."""

from __future__ import annotations

from collections import Counter

import pytest
from engines import Linear, requests, view_of
from servetwin.core import BatchWorker, Module, Pipeline, Request, ServingLoop, Worker, WorkerView
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import EngineLimits, TokenView
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.core.serving.pool import Pool
from servetwin.experiments.assembly.build import build
from servetwin.experiments.registry import router_registry
from servetwin.experiments.spec import loading
from servetwin.policies.diffusion.edf import EDF
from servetwin.policies.diffusion.fcfs import FCFS
from servetwin.policies.llm.vllm import VLLM
from servetwin.sim import SimExecutor, TableTiming
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.pool_lane import CallTimes

ROUTERS = ["round_robin", "least_loaded", "least_violating"]
TIMES = Linear()


def workers(kind: str) -> list[Worker]:
    """Four equal ones."""
    if kind == "tool":
        (stage,) = Pipeline([Module("m")], []).stages([["m"]])
        return [Pool(stage, FCFS(), lambda m, n: 1.0, threads=2, device=f"cpu{i}", name=f"m{i}") for i in range(4)]
    if kind in ("engine", "engine with a host"):
        host = Host(lambda n: 0.001, 0.001, ahead=True) if kind != "engine" else None
        found: list[Worker] = []
        stage = view_of(TIMES, EngineLimits(500)).stage
        for i in range(4):
            view = TokenView(stage, EngineLimits(500), estimate_prefill=TIMES.prefill, estimate_decode=TIMES.decode,
                             name=f"m{i}")  # fmt: skip
            found.append(TokenWorker(stage, VLLM(), view, device=f"gpu{i}", host=host))
        return found
    (stage,) = Pipeline([Module("m", loop=True)], []).stages([["m"]])
    views = [WorkerView(stage, lambda m, n: 0.1 * n, limit=8, name=f"m{i}", slo_factor=3.0) for i in range(4)]
    return [BatchWorker(stage, EDF(), view, device=f"gpu{i}") for i, view in enumerate(views)]


def sent(kind: str, bursts: int, size: int) -> list[Request]:
    at = [30.0 * burst for burst in range(bursts) for _ in range(size)]
    if kind.startswith("engine"):
        return list(requests(*[(t, 20, 10) for t in at]))
    return [Request(i, t, 60.0, {"m": 3}) for i, t in enumerate(at)]


@pytest.mark.parametrize("kind", ["batches", "tool", "engine", "engine with a host"])
@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("delay", [0.0, 0.0006, 0.2])
def test_a_burst_is_shared_out_evenly(kind: str, name: str, delay: float) -> None:
    those = workers(kind)
    timings = {w.name: TokenTiming(TIMES) if isinstance(w, TokenWorker) else TableTiming([0.0, *[0.1] * 8])
               for w in those}  # fmt: skip
    executor = SimExecutor(
        lambda w: timings[w.name],
        delays={(None, w.name): lambda task: delay for w in those},
        calls={w.name: CallTimes(w.name, "constant", mean=1.0) for w in those},
    )
    checker = InvariantChecker()
    loop = ServingLoop(
        [those[0].stage], those, executor, checker, router=Dispatcher(those, router_registry.make(name, {}))
    )
    checker.watch(loop)
    played = sent(kind, 3, 8)
    play(loop, iter(played))
    executor.run_until_idle()
    checker.finish()
    for burst in range(3):
        went = Counter(r.tasks[0].worker.name for r in played[8 * burst : 8 * burst + 8])
        assert [*went.values()] == [2, 2, 2, 2]
    assert not any(w.coming for w in those)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("transport", [True, False])
def test_an_experiment_of_bursts_is_served_as_well_by_each_router(name: str, transport: bool, tmp_path) -> None:
    rows = [f"{at},40" for at in (1.0, 6.0, 11.0) for _ in range(8)]
    (tmp_path / "bs.csv").write_text("\n".join(["arrival,unet", *rows]) + "\n")
    tree = loading.load("sd15-512-rtx4090", [("policy", "edf"), ("deployment.replicas", 4)]).as_dict()
    trace = {"process": "trace", "file": str(tmp_path / "bs.csv")}
    tree["workload"] |= {"requests": None, "draws": "seeded", "arrivals": trace, "steps": {"unet": {"draw": "trace"}}}
    tree["time"] |= {"noise": False, "hold": True, "transport": transport}
    tree["deployment"]["router"] = name
    tree["system"]["stop_after"] = None
    run = build(loading.load(tree))
    assert run.play().met == 24
