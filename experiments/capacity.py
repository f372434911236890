"""``servetwin search``: the capacity of workloads under policies, in simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from servetwin.core import BadInput

from . import tables
from .cache import Cache
from .cluster import running_on
from .config import Experiment, RelativeSLO, Trace
from .llmspec import TokenSLOSpec
from .names import suggest
from .points import Together, deployment_of, run_all
from .repeat import seeded
from .resolve import Override, layers, load
from .search import QUANTITIES, Capacity, Quantity, search

#: Runs are at least this long unless asked otherwise: what a queue does at its start and end must not count.
LEAST_REQUESTS = 2000

UNITS = {
    "rate": "the largest rate, in requests per second",
    "slo": "the smallest SLO, in multiples of a request's latency alone (of decoding alone, for an LLM)",
    "replicas": "the fewest replicas of the deployment",
}


@dataclass(frozen=True)
class Asked:
    """What to find (a key of `QUANTITIES`), the targets as shares, and on how many runs to go by."""

    find: str
    targets: Sequence[float]
    seeds: int
    first_seed: int = 0
    requests: int | None = None


@dataclass(frozen=True)
class Answer:
    workload: str
    policy: str
    deployment: str
    found: Capacity


def answers(
    sources: Sequence[str | Path],
    policies: Sequence[str] | None,
    asked: Asked,
    overrides: Sequence[Override] = (),
    *,
    jobs: int = -1,
    cache: Cache | None = None,
    cluster: str | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Answer]:
    """The capacity of each of *sources* under each of *policies*, for each target; *say* hears of rows that could not
    be kept. Raises `BadInput`.
    """
    if asked.find not in QUANTITIES:
        raise BadInput(f"{asked.find!r} cannot be sought", where="--find", right=suggest(asked.find, QUANTITIES))
    if out is not None:
        tables.check_target(out)
    quantity = QUANTITIES[asked.find]
    chosen: Sequence[str | None] = policies or [None]
    cases = [_experiment(s, p, asked, overrides) for s in sources for p in chosen]
    found = []
    tell = say or (lambda _: None)
    with running_on(cluster):
        for experiment in cases:
            sampler = Sampler(experiment, quantity, asked, jobs, cache, progress)
            start = _start(experiment, asked.find)
            capacities = search(sampler, quantity, asked.targets, start=start)
            known = (experiment.name, experiment.policy.name, deployment_of(experiment))
            found += [Answer(*known, capacity) for capacity in capacities]
            for doubt in sampler.together.doubts if cache is not None else ():
                tell(f"rows are not kept, so that they are run each time: {doubt}")
    if out is not None:
        tables.write(out, [_row(a, asked) for a in found])
    return found


def _experiment(source: str | Path, policy: str | None, asked: Asked, overrides: Sequence[Override]) -> Experiment:
    chosen: list[Override] = [("policy", policy)] if policy is not None else []
    experiment = load(source, [*chosen, ("seed", asked.first_seed), *overrides], chain=layers(source))
    wanted = experiment.workload.requests
    if wanted is not None and not isinstance(experiment.workload.arrivals, Trace):
        wanted = asked.requests or max(wanted, LEAST_REQUESTS)
        load_ = experiment.workload.model_copy(update={"requests": wanted})
        experiment = experiment.model_copy(update={"workload": load_})
    return seeded(experiment)


def _start(experiment: Experiment, find: str) -> float:
    """Where the experiment stands now."""
    if find == "rate":
        rate = experiment.workload.arrivals.rate
        if rate is None:
            raise BadInput(
                "the trace goes at its own rate", where="--find rate", right="--set rate=1.0 to begin with"
            )
        return float(rate)
    if find == "slo" and isinstance(experiment.slo, TokenSLOSpec):
        if experiment.slo.decode is None:
            raise BadInput("the SLO has no deadlines of tokens", where="--find slo", right="slo: {prefill, decode}")
        return experiment.slo.decode
    if find == "slo":
        if not isinstance(experiment.slo, RelativeSLO):
            raise BadInput("the SLO has no factor", where="--find slo", right="an SLO with a factor")
        return experiment.slo.factor
    return float(experiment.deployment.replicas)


class Sampler:
    """Runs an experiment at places of a quantity, with all seeds at each."""

    def __init__(
        self,
        experiment: Experiment,
        quantity: Quantity,
        asked: Asked,
        jobs: int,
        cache: Cache | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.experiment = experiment
        self.quantity = quantity
        self.seeds = asked.seeds
        self.jobs = jobs
        self.cache = cache
        self.progress = progress
        self.together = Together()
        self.done = 0

    def __call__(self, places: Sequence[float]) -> list[list[tuple[int, int]]]:
        runs = [seeded(self._at(x), k) for x in places for k in range(self.seeds)]
        known, finished = (self.cache.find, self.cache.add) if self.cache is not None else (None, None)
        rows = run_all(runs, jobs=self.jobs, known=known, finished=finished, together=self.together)
        self.done += len(runs)
        if self.progress is not None:
            self.progress(self.done, 2 * self.done)  # how many places it takes is not known
        counts = [(row["met"], row["requests"]) for row in rows]
        return [counts[i : i + self.seeds] for i in range(0, len(counts), self.seeds)]

    def _at(self, x: float) -> Experiment:
        key = self.quantity.key
        if key == "slo.factor" and isinstance(self.experiment.slo, TokenSLOSpec):
            key = "slo.decode"  # that of the first token stays
        first, second, *rest = key.split(".")
        outer = getattr(self.experiment, first)
        value: float = int(x) if self.quantity.whole else x
        if rest:
            inner = getattr(outer, second).model_copy(update={rest[0]: value})
            return self.experiment.model_copy(update={first: outer.model_copy(update={second: inner})})
        return self.experiment.model_copy(update={first: outer.model_copy(update={second: value})})


def _row(answer: Answer, asked: Asked) -> tables.Row:
    found = answer.found
    return {
        "workload": answer.workload,
        "policy": answer.policy,
        "deployment": answer.deployment,
        "find": asked.find,
        "target": found.target,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "seeds": asked.seeds,
        "first_seed": asked.first_seed,
        "places": len(found.tried),
        "notes": "; ".join(found.notes),
    }
