"""What routers keep of workers between two requests is what they would be told if they asked each of them anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servetwin.core import BadInput, Request
from servetwin.core.routing import Kept, WorkerState
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.policies.routing.least_loaded import LeastLoaded

OUTPUTS = st.sampled_from([{"draw": "constant", "tokens": 30}, {"draw": "uniform", "low": 1, "high": 80}])
PROMPTS = st.sampled_from([
    {"draw": "lognormal", "median": 200, "p90": 800, "high": 1500},
    {"draw": "constant", "tokens": 300},
])  # fmt: skip
ARRIVALS = st.sampled_from([
    {"process": "poisson", "rate": 40.0},
    {"process": "poisson", "rate": 300.0},
    {"process": "constant", "rate": 50.0},  # requests that come when steps end
    {"process": "gamma", "rate": 100.0, "cv": 4.0},
    {"process": "closed", "clients": 24},  # requests that are sent while an engine ends others
])  # fmt: skip
ENGINES = st.sampled_from([
    {},
    {"blocks": 120},
    {"enable_prefix_caching": True},
    {"keep_freed": True, "blocks": 150},
])  # fmt: skip
ROUTERS = st.sampled_from(["least_loaded", "jsq"])


@pytest.fixture(scope="module")
def looks() -> Any:
    """Hold what is kept to what each worker tells, at each request; gives how often, and how many were not asked."""
    counted: Counter[str] = Counter()
    of, weights = Kept.of, LeastLoaded.weights

    def held_of(kept: Kept[Any], workers: Sequence[WorkerState]) -> Sequence[Any]:
        anew = [kept._ask(worker) for worker in workers]
        spared = len(workers) - len(kept._changed.intersection(workers)) if workers is kept._workers else 0
        values = of(kept, workers)
        assert [*values] == anew
        counted["asked"] += 1
        counted["spared"] += spared
        return values

    def held_weights(
        router: LeastLoaded, request: Request, workers: Sequence[WorkerState], now: float
    ) -> list[float]:
        found = weights(router, request, workers, now)
        assert found == [router.weight(request, worker, now) for worker in workers]
        counted["weighed"] += 1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "of", held_of)
        patch.setattr(LeastLoaded, "weights", held_weights)
        yield counted


def world(base: str = "opt-13b-h100", policy: str = "vllm-v1", router: object = "least_loaded", **more: Any) -> Any:
    tree = load(base).as_dict()
    tree["policy"] = {"name": policy}
    tree["workload"] |= {
        "requests": 80,
        "draws": "seeded",
        "arrivals": more.get("arrivals", {"process": "poisson", "rate": 150.0}),
    }
    tree["workload"]["lengths"]["llm"] = {
        "truncate": True,
        "prompt": more.get("prompt", {"draw": "constant", "tokens": 300}),
        "output": more.get("output", {"draw": "uniform", "low": 1, "high": 80}),
    }
    tree["deployment"] |= {"replicas": more.get("replicas", 4), "router": router}
    tree["deployment"]["workers"][0]["engine"] |= more.get("engine", {})
    tree["time"] |= {"hold": True, "noise": more.get("noise", True)}
    tree["seed"] = more.get("seed", 0)
    return load(tree)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    base=st.sampled_from(["opt-13b-h100", "opt-13b-h100-async"]),
    policy=st.sampled_from(["vllm-v1", "vllm", "sarathi", "edf-llm", "neustream-llm"]),
    router=ROUTERS,
    stale=st.sampled_from([0.0, 0.0, 0.1]),
    noise=st.booleans(),
    replicas=st.integers(2, 5),
    engine=ENGINES,
    prompt=PROMPTS,
    output=OUTPUTS,
    arrivals=ARRIVALS,
    seed=st.integers(0, 9),
    columns=st.booleans(),
)
def test_what_is_kept_is_what_workers_tell(looks, router, stale, columns, **drawn) -> None:
    before = looks["asked"]
    run = build(world(router={"name": router, "stale": stale} if stale else router, **drawn))
    summary = run.play(columns=columns)
    assert summary.as_dict()["requests"] == 80
    assert looks["asked"] > before


@pytest.mark.parametrize("router", ["least_loaded", "jsq"])
def test_few_workers_are_asked(looks, router: str) -> None:
    looks.clear()
    build(world(router=router, replicas=16, arrivals={"process": "poisson", "rate": 900.0})).play()
    assert looks["asked"] == 80
    assert looks["spared"] > 0.7 * 80 * 16  # the rest have changed since the request before


def test_engines_that_differ_are_weighed_by_their_own_times(looks) -> None:
    tree = world().as_dict()
    (worker,) = tree["deployment"]["workers"]
    del tree["deployment"]["replicas"]
    tree["deployment"]["devices"] = {"fast": "h100/opt-13b-tp1", "slow": "h100/opt-13b-tp1-eager"}
    tree["deployment"]["workers"] = [worker | {"device": name, "name": name} for name in ("fast", "slow")]
    looks.clear()
    run = build(load(tree))
    run.play()
    states = run.loop.dispatcher._states[run.loop.dispatcher.usual].values()
    assert len({state.alike() for state in states}) == 2
    assert looks["weighed"] == 80


@pytest.mark.parametrize("router", ["least_loaded", "jsq"])
def test_what_is_kept_holds_when_engines_fail(looks, router: str) -> None:
    tree = world(router=router, arrivals={"process": "poisson", "rate": 60.0}).as_dict()
    fails = [
        {"at": at, "kind": "fail", "device": device, "for": 0.2} for at, device in ((0.3, "gpu0"), (0.6, "gpu0.2"))
    ]
    tree["deployment"]["faults"] = {"script": fails, "detect_seconds": 0.05}
    looks.clear()
    summary = build(load(tree)).play().as_dict()
    assert summary["faults"]["failures"] == 2
    assert looks["asked"] >= 80


def test_changes_are_told_to_routers_only() -> None:
    run = build(world(replicas=2))
    peer = run.loop.workers[0].view.peers[0]
    with pytest.raises(BadInput, match="routers only"):
        peer.watch(set(), False)
