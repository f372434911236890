"""What a step of an engine costs with a prefix cache: with hits, without, and with the cache off."""

from __future__ import annotations

from functools import partial
from typing import Any

from servetwin.core import Batch, Recorder

from ..assembly.build import build
from ..spec.experiment import Experiment
from ..spec.loading import load
from .measure import Cost, in_process, ratios, spread, turns

REQUESTS = 2000
LENGTHS: dict[str, Any] = {
    "prompt": {"draw": "uniform", "low": 100, "high": 900},
    "output": {"draw": "uniform", "low": 50, "high": 250},
}
SHARED = {"draw": "shared", "groups": 8, "tokens": 256}


class _Steps(Recorder):
    """Counts steps."""

    steps = 0

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        self.steps += 1


def experiment(*, cache: bool, shared: bool) -> Experiment:
    """OPT-13B on an RTX A6000 at 1.2 requests/s; *shared*: prompts begin with one of eight prefixes."""
    return load(
        "opt-13b-a6000",
        [
            ("requests", REQUESTS),
            ("workload.draws", "seeded"),
            ("workload.arrivals", {"process": "poisson", "rate": 1.2}),
            ("workload.lengths", {"llm": {**LENGTHS, "prefix": SHARED} if shared else LENGTHS}),
            ("policy", "vllm-v1"),
            ("deployment.workers.0.engine.enable_prefix_caching", cache),
        ],
    )


def _play(one: Experiment) -> None:
    build(one).play()


def cached(rounds: int) -> None:
    """CPU time a step, in turns; the goal is at most 1.5 times with hits what it is without."""
    cases = {
        "hits": experiment(cache=True, shared=True),
        "no hits": experiment(cache=True, shared=False),
        "cache off": experiment(cache=False, shared=True),
    }
    steps, rates = {}, {}
    for name, one in cases.items():
        recorder = _Steps()
        found = build(one, recorder).play().as_dict()
        steps[name] = recorder.steps
        rates[name] = found["llm"]["llm"].get("prefix_cache_hit_rate", 0.0) if "llm" in found else 0.0
    costs = turns({name: partial(in_process, partial(_play, one)) for name, one in cases.items()}, rounds)
    each = {name: [Cost(c.cpu / steps[name], c.wall) for c in costs[name]] for name in cases}
    print(f"\na prefix cache, {REQUESTS} requests of OPT-13B under vllm-v1; CPU us a step, {rounds} rounds")
    for name in cases:
        time = spread([c.cpu for c in each[name]], 1e6)
        print(f"{name:>10} {steps[name]:>6} steps {time:>20}  {rates[name]:.2f} found")
    for name in ("no hits", "cache off"):
        print(f"hits / {name}: {ratios(each['hits'], each[name])}")
