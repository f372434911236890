"""``servetwin search``: the capacity of workloads under policies, in simulation.

An answer is checked by runs twice and four times as long: if what they give lies outside the interval, or the backlog
is not flat at the answer, the runs were too short to speak of a steady state, and they are lengthened until it does
not, or until the longest have `Asked.longest` requests, or until it is plain that no SLO helps against the load. What
is still outside then is said, and no interval is given.

Policies are compared in runs of one length: where two answers stand on different ones, the shorter are lengthened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from servetwin.core import BadInput

from ..assembly.build import stands_on, time_shared
from ..registry.catalog import suggest
from ..spec.experiment import Experiment, RelativeSLO
from ..spec.keys.schedule import ByClass
from ..spec.llm import TokenSLOSpec
from ..spec.loading import layers, load
from ..spec.overrides import ByOption, Override
from ..spec.schedule_validation import schedules
from ..spec.sessions import ClosedLoop
from ..sweeps import tables
from ..sweeps.cache import Cache
from ..sweeps.cluster import running_on
from ..sweeps.point import Together, deployment_of, run_all
from ..sweeps.repeat import seeded
from ..sweeps.statistics import Interval
from ..workload.requests import count_of, read_trace
from ..workload.seed_effect import are_copies, check_seeds, depends_on_seed
from .differences import Difference, difference
from .observed_run import Watched
from .root_search import QUANTITIES, Capacity, Curve, HeldEverywhere, Quantity, agrees, search
from .stability import WARM_UP, Verdict, verdict
from .targets import Sample, Target, attainment

#: Runs are at least this long unless asked otherwise: what a queue does at its start and end must not count.
LEAST_REQUESTS = 2000
#: How much longer than at first runs may become before an answer is given up, and the length that always is allowed.
LONGER, LONGEST = 16, 32_000
#: With how many seeds and requests places are looked at that are not near the answer.
GLANCE, GLANCE_REQUESTS = 2, 1000
LEVEL = 0.95

#: The columns of a table that hold a difference, and which part of it.
MORE = {"more": "mean", "more_low": "low", "more_high": "high", "more_in_runs_of": "requests"}

UNITS = {
    "rate": "the largest rate, in requests per second",
    "slo": "the smallest SLO, in multiples of a request's latency alone (of decoding alone, for an LLM)",
    "replicas": "the fewest replicas of the deployment",
}


@dataclass(frozen=True)
class Asked:
    """What to find (a key of `QUANTITIES`), the targets (a share is an attainment), and on how many runs to go by.

    Runs have *requests* at first, and *longest* at the most; those that check them are twice as long at least.
    """

    find: str
    targets: Sequence[Target | float]
    seeds: int
    first_seed: int = 0
    requests: int | None = None
    longest: int | None = None


class SearchProgress(Protocol):
    """Hears how many runs have ended, how many there will be at the most as far as that is known (None: it is not),
    their attainment, and where is looked. More come if the answer changes with the length of the runs."""

    def __call__(self, done: int, total: int | None, share: float | None, where: str, /) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A capacity and what it stands on: runs of *requests* of which the first *warm_up* are not counted, whether the
    system keeps up there, and whether what runs *twice* as long give is inside (None if there were none). *beside* is
    how much more it is than that of another policy, if that was asked. *at* is what was run there."""

    workload: str
    policy: str
    deployment: str
    found: Capacity
    requests: int
    warm_up: int
    stable: Verdict
    twice: bool | None
    seeds: int
    at: Experiment
    beside: Difference | None = None

    @property
    def settled(self) -> int | None:
        """After how many requests latencies had settled; None if not after half a run."""
        return None if self.stable.settled is None else round(self.stable.settled * self.requests)


def answers(
    sources: Sequence[str | Path | dict[str, Any]],
    policies: Sequence[str | dict[str, Any]] | None,
    asked: Asked,
    overrides: Sequence[Override] = (),
    *,
    jobs: int = -1,
    cache: Cache | None = None,
    cluster: str | None = None,
    out: Path | None = None,
    versus: str | None = None,
    progress: SearchProgress | None = None,
    say: Callable[[str], None] | None = None,
    check: Callable[[Experiment], None] | None = None,
    accept: Callable[[Sequence[Experiment]], None] | None = None,
) -> list[Answer]:
    """The capacity of each of *sources* under each of *policies*, for each target; with *versus*, also how much more
    each is than that of this policy. *say* hears of rows that could not be kept. Raises `BadInput`. So may
    *check*, which is shown each experiment before anything runs, and *accept*, which is shown those at the answers
    before the table is written.
    """
    if asked.find not in QUANTITIES:
        raise BadInput(f"{asked.find!r} cannot be sought", where="--find", right=suggest(asked.find, QUANTITIES))
    targets = [attainment(t) if isinstance(t, float | int) else t for t in asked.targets]
    if out is not None:
        tables.check_target(out)
    chosen: Sequence[str | dict[str, Any] | None] = policies if policies else [None]
    cases = [_experiment(s, p, asked, overrides) for s in sources for p in chosen]
    for experiment in cases:
        check_seeds(experiment, asked.seeds, "--seeds")
        _check_metrics(experiment, targets)
        _start(experiment, asked.find)
        if check is not None:
            check(experiment)
    by_source = [cases[i : i + len(chosen)] for i in range(0, len(cases), len(chosen))]
    if versus is not None:
        _check_versus(by_source, versus, asked.find)
    found = []
    tell = say or (lambda _: None)
    with running_on(cluster):
        for same in by_source:
            finders = [Finder(e, asked, targets, jobs=jobs, cache=cache, progress=progress) for e in same]
            own = [finder.answers() for finder in finders]
            found += _compared(finders, own, versus) if versus is not None else [a for each in own for a in each]
            for doubt in {d: None for f in finders for d in f.together.doubts} if cache is not None else ():
                tell(f"rows are not kept, so that they are run each time: {doubt}")
    if accept is not None:
        accept([answer.at for answer in found])
    if out is not None:
        tables.write(out, [row_of(a, asked) for a in found])
    return found


def _check_versus(by_source: Sequence[Sequence[Experiment]], versus: str, find: str) -> None:
    """Raise `BadInput` unless there is just one answer of the policy *versus* for each workload, and others."""
    if QUANTITIES[find].whole:
        what = f"{find} are whole numbers: nothing lies between two of them that could be taken seed by seed"
        raise BadInput(what, where="--versus", right="--find rate, or slo")
    for same in by_source:
        names = [e.policy.name for e in same]
        if names.count(versus) != 1 or len(names) == 1:
            what = f"{names.count(versus)} of {len(names)} policies of {same[0].name} are {versus!r}"
            right = f"--policy {versus}, once, and --policy for those to compare with it"
            raise BadInput(what, where="--versus", right=right)


def _compared(finders: Sequence[Finder], answers: Sequence[Sequence[Answer]], versus: str) -> list[Answer]:
    """*answers*, those of each of *finders*, with how much more each is than that of the policy *versus*."""
    number = next(i for i, finder in enumerate(finders) if finder.experiment.policy.name == versus)
    found = []
    for i, (finder, own) in enumerate(zip(finders, answers, strict=True)):
        for answer, other in zip(own, answers[number], strict=True):
            gap = _beside(finder, answer, finders[number], other) if i != number else None
            found.append(replace(answer, beside=gap))
    return found


def _beside(finder: Finder, answer: Answer, reference: Finder, other: Answer) -> Difference:
    """How much more *answer* is than *other*, in runs that are as long as the longer ones of the two."""
    length, target = max(answer.requests, other.requests), answer.found.target
    name = reference.experiment.policy.name
    places = [f.at_length(a, length) for f, a in ((finder, answer), (reference, other))]
    curves = [f.curves.get(length) for f in (finder, reference)]
    if curves[0] is None or curves[1] is None or None in places:
        return Difference(name, None, None, None, length, f"not compared: no runs of {length} requests of both")
    gap = difference(curves[0], curves[1], target)
    if gap is None:
        return Difference(name, None, None, None, length, "not compared: one of the two has no end")
    if answer.found.low is None or other.found.low is None:
        return Difference(name, gap.mean, None, None, length, "without an interval: one of the two has none")
    if not math.isfinite(gap.low):
        return Difference(name, gap.mean, None, None, length, "without an interval: more seeds are needed for one")
    return Difference(name, gap.mean, gap.low, gap.high, length)


def _experiment(
    source: str | Path | dict[str, Any],
    policy: str | dict[str, Any] | None,
    asked: Asked,
    overrides: Sequence[Override],
) -> Experiment:
    chosen: list[Override] = [(ByOption("policy"), policy)] if policy is not None else []
    experiment = seeded(load(source, [*chosen, ("seed", asked.first_seed), *overrides], chain=layers(source)))
    if experiment.seed != asked.first_seed:
        what = f"the seeds of a search begin with {asked.first_seed}"
        raise BadInput(what, where="--set seed", right=f"--first-seed {experiment.seed}")
    if any(schedules(experiment.workload)):
        what = "a search looks for what is held in the long run, at one rate, and this load changes over time"
        right = "a sweep over workload.arrivals.rate or deployment.replicas"
        raise BadInput(what, where="workload.arrivals.process", right=right)
    wanted = experiment.workload.requests
    if asked.requests is not None:
        wanted = asked.requests
    elif experiment.workload.recorded is None:
        assert wanted is not None
        wanted = max(wanted, LEAST_REQUESTS)
    experiment = _of_length(experiment, wanted)
    try:
        read_trace(experiment)  # more requests than there are show before anything runs
    except BadInput as problem:
        recorded = experiment.workload.recorded
        if recorded is None or recorded.windows is None or wanted is None:
            raise
        most = _longest_checked(experiment, asked.seeds)
        right = f"--requests {most}, or fewer: then runs twice as long have windows of their own"
        raise BadInput(problem.what, where=problem.where, right=right if most else problem.right) from None
    return experiment


def _all_of(experiment: Experiment) -> int:
    """How many requests the trace of *experiment* has for it, whatever it takes of them."""
    recorded = experiment.workload.recorded
    assert recorded is not None
    key = "arrivals" if recorded is experiment.workload.arrivals else "trace"
    every = recorded.model_copy(update={"windows": None})
    whole = experiment.workload.model_copy(update={key: every, "requests": None})
    trace = read_trace(experiment.model_copy(update={"workload": whole}))
    assert trace is not None
    return trace.count


def _longest_checked(experiment: Experiment, seeds: int) -> int:
    """The longest runs of a trace that runs twice as long, with as many *seeds*, can check."""
    recorded = experiment.workload.recorded
    assert recorded is not None
    return _all_of(experiment) // (2 * (seeds if recorded.windows is not None else 1))


def _of_length(experiment: Experiment, requests: int | None) -> Experiment:
    changed = experiment.workload.model_copy(update={"requests": requests})
    return experiment.model_copy(update={"workload": changed})


def _check_metrics(experiment: Experiment, targets: Sequence[Target]) -> None:
    llms = sum(m.llm for m in experiment.pipeline.modules.values())
    for criterion in (c for t in targets for c in t.criteria):
        if criterion.metric in ("ttft", "tpot") and (llms != 1 or len(experiment.pipeline.modules) != 1):
            what = f"{criterion.metric} is known of pipelines that are one language model"
            raise BadInput(what, where="--target-metric", right="e2el")


def _start(experiment: Experiment, find: str) -> float:
    """Where the experiment stands now."""
    if find == "rate":
        rate = experiment.workload.arrivals.rate
        if isinstance(experiment.workload.arrivals, ClosedLoop):
            what = "a closed loop has no rate: its clients send when they have been answered"
            right = "a sweep that varies workload.arrivals.clients, or another arrival process"
            raise BadInput(what, where="--find rate", right=right)
        if isinstance(experiment.workload.arrivals, ByClass):
            what = "each class has a rate of its own"
            right = "--find replicas, or a sweep over workload.arrivals.scale"
            raise BadInput(what, where="--find rate", right=right)
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


class Finder:
    """Finds the capacities of one experiment, in runs that are as long as it takes."""

    def __init__(
        self,
        experiment: Experiment,
        asked: Asked,
        targets: Sequence[Target],
        *,
        jobs: int,
        cache: Cache | None,
        progress: SearchProgress | None,
    ) -> None:
        self.experiment, self.targets = experiment, targets
        self.quantity = QUANTITIES[asked.find]
        self.start = _start(experiment, asked.find)
        self.drawn = depends_on_seed(experiment)
        self.seeds = asked.seeds if self.drawn else 1
        self.jobs, self.cache, self.progress = jobs, cache, progress
        self.length = count_of(experiment, read_trace(experiment))
        self.longest = asked.longest or max(LONGER * self.length, LONGEST)
        criteria = {c.name: c for t in targets for c in t.criteria}
        # A trace that is replayed whole is what it is: its beginning counts.
        whole = experiment.workload.recorded is not None and not self.drawn
        self.watched = Watched(tuple(criteria.values()), 0.0 if whole else WARM_UP)
        self.curves: dict[int, Curve] = {}
        self.together = Together()
        self.done = 0
        #: The most runs there will be, if that is known, and where is looked.
        self.total: int | None = None
        self.checks: dict[int, int] = {}  #: by length of runs, how many places longer ones look at
        self.where = ""

    def answers(self) -> list[Answer]:
        """An answer for each target."""
        return [self._answer_to(target) for target in self.targets]

    def _answer_to(self, target: Target) -> Answer:
        self.total, self.where = None, ""
        found, length = self._first(target)
        notes = found.notes
        last = ""
        while True:
            checked = self._check(found, length)
            backlog = self._verdict(length, found.value).backlog
            longer = self._curve(2 * length) if self._may(4 * length) and 0.0 < found.value < math.inf else None
            # The load is the same whatever the SLO is: of a system that it is too much for, longer runs say no more.
            hopeless = self.quantity.key == "slo.factor" and backlog == last == "overloaded"
            if longer is None or hopeless or (checked and backlog == "flat"):
                return self._answer(found, length, checked, notes)
            length, last = 2 * length, backlog
            (found,) = search(_never, self.quantity, [target], start=found.value, near=True, curve=longer)

    def at_length(self, answer: Answer, length: int) -> float | None:
        """The capacity that was *answer*, in runs of this *length*; None if there is none, or not that many
        requests."""
        if not 0.0 < answer.found.value < math.inf:
            return None
        if length == answer.requests:
            return answer.found.value
        curve = self._curve(length)
        self.total, self.where = None, f"runs of {length} requests, for a difference"
        if curve is None:
            return None
        start, asked = answer.found.value, [answer.found.target]
        try:
            return search(_never, self.quantity, asked, start=start, near=True, curve=curve)[0].value
        except BadInput:
            return None

    def _first(self, target: Target) -> tuple[Capacity, int]:
        """The capacity in the shortest runs that are not over before anything can be too much; and their length."""
        length = self.length
        while True:
            curve = self._curve(length)
            assert curve is not None
            try:
                (found,) = search(_never, self.quantity, [target], start=self.start, curve=curve)
            except HeldEverywhere:
                if not self._may(2 * length):
                    raise
                length *= 2
            else:
                return found, length

    def _may(self, length: int) -> bool:
        return length <= self.longest and self._fits(length) is not None

    def _check(self, found: Capacity, length: int) -> bool | None:
        """Whether runs twice and four times as long give what lies in the interval; None if there are none."""
        if not 0.0 < found.value < math.inf or self._fits(2 * length) is None:
            return None
        lengths = self._longer(length)
        self.where = f"longer runs at {found.value:.4g}"
        self.total = self.done + 2 * len(lengths) * self.seeds
        return all(agrees(found, curve) for n in lengths if (curve := self._curve(n)) is not None)

    def _longer(self, length: int) -> list[int]:
        """How long the runs are that check those of this *length*."""
        return [2 * length, *([4 * length] if self._may(4 * length) else [])]

    def _told(self, length: int, holds: float, fails: float, tries: int) -> None:
        """An end of the interval is between *holds* and *fails*; for all of them so many *tries* are left, at most,
        and then what checks the answer."""
        low, high = sorted((holds, fails))
        self.where = f"{low:.4g} to {high:.4g}"
        if length not in self.checks:
            fits = self._fits(2 * length) is not None
            self.checks[length] = 2 * len(self._longer(length)) if fits else 0
        self.total = self.done + self.seeds * (tries + self.checks[length])

    def _answer(self, found: Capacity, length: int, twice: bool | None, notes: list[str]) -> Answer:
        notes = [*notes]
        if not self.drawn:
            notes.append("nothing is drawn: there is one run at each place")
            if self.experiment.workload.recorded is None:  # nor is it a sample of anything
                found.low, found.high = sorted((found.value, found.value if self.quantity.whole else found.fails))
        if twice is None:
            notes.append(self._why_unchecked())
        elif found.open:
            notes.append("there is no interval: more seeds or requests are needed to close it")
            twice = False
        elif not twice:
            notes.append("the answer changes with the length of the runs: longer ones give another, so no interval")
        if not twice:
            found.low = found.high = None
        stable = self._verdict(length, found.value)
        if stable.backlog != "flat":
            known = "not" if stable.backlog != "unclear" else "not shown to be"
            notes.append(f"{known} stable there: the backlog is {stable.backlog}")
        found.notes = [*notes, *self._stands_on(length, found.value)]
        e = self.experiment
        warm_up = int(self.watched.warm_up * length)
        there = at_place(e, self.quantity, found.value) if 0.0 < found.value < math.inf else e
        told = (found, length, warm_up, stable, twice, self.seeds, there)
        return Answer(e.name, e.policy.name, deployment_of(e), *told)

    def _why_unchecked(self) -> str:
        """Why there were no runs twice as long, and what would give them."""
        what = "not checked by runs twice as long, so there is no interval"
        recorded = self.experiment.workload.recorded
        if recorded is None:
            return what
        most = _longest_checked(self.experiment, self.seeds)
        if recorded.windows is None:
            return f"{what}: the trace holds too few requests (right would be: --requests {most}, or fewer)"
        why = f"a window must hold two runs, and the trace has no {self.seeds} such windows"
        return f"{what}: {why} (right would be: --requests {most}, or fewer)"

    def _stands_on(self, length: int, place: float) -> list[str]:
        """What else is to be said of the runs at *place*: what of them was not measured, cut or cut off."""
        rows: list[Any] = list(self.curves[length].samples.get(place, ()))
        said = []
        if beyond := sum(int(row["beyond"]) for row in rows):
            said.append(f"beyond what was measured: {beyond} steps at the answer, for which last values were held")
        prompts, outputs = (sum(int(row["cut"][i]) for row in rows) for i in (0, 1))
        if prompts or outputs:
            said.append(f"cut at the answer: {prompts} prompts, {outputs} outputs")
        after = self.experiment.system.stop_after
        if after is not None:
            off = sum(int(row["cut_off"]) for row in rows)
            what = f"runs are cut off {after:g} s after the last request was sent"
            said.append(f"{what}: {off} requests at the answer failed so")
        return [*said, *time_shared(self.experiment), *stands_on(self.experiment)]

    def _verdict(self, length: int, place: float) -> Verdict:
        rows: list[Any] = list(self.curves[length].samples.get(place, ()))
        if not rows:
            return Verdict("unclear", Interval(0.0, -1.0, 1.0, 0), None)
        return verdict([r["backlog"] for r in rows], [r["latency"] for r in rows], length)

    def _curve(self, length: int) -> Curve | None:
        """The curve in runs of this *length*; None if there are not that many requests."""
        if length not in self.curves:
            experiment = self._fits(length)
            if experiment is None:
                return None
            short = experiment
            if experiment.workload.recorded is None:
                short = _of_length(experiment, min(length, GLANCE_REQUESTS))
            full, glance = Sampler(self, experiment, self.seeds), Sampler(self, short, min(GLANCE, self.seeds))
            self.curves[length] = Curve(full, self.quantity, LEVEL, glance)
            self.curves[length].hear = partial(self._told, length)
        return self.curves[length]

    def _fits(self, length: int) -> Experiment | None:
        """The experiment with so many requests (in fewer windows, if need be); None if there are not enough."""
        if length == self.length:
            return self.experiment
        recorded = self.experiment.workload.recorded
        if recorded is None:
            return _of_length(self.experiment, length)
        count = _all_of(self.experiment)
        if recorded.windows is None:
            return _of_length(self.experiment, length) if count >= length else None
        windows = min(recorded.windows, count // length)
        if windows < self.seeds:
            return None
        key = "arrivals" if recorded is self.experiment.workload.arrivals else "trace"
        fewer = self.experiment.workload.model_copy(
            update={key: recorded.model_copy(update={"windows": windows}), "requests": length}
        )
        return self.experiment.model_copy(update={"workload": fewer})


def _never(_: Sequence[float]) -> list[list[Sample]]:
    raise AssertionError("the curve samples")


class Sampler:
    """Runs an experiment at places of a quantity, with so many seeds at each."""

    def __init__(self, finder: Finder, experiment: Experiment, seeds: int) -> None:
        self.finder, self.experiment, self.seeds = finder, experiment, seeds

    def __call__(self, places: Sequence[float]) -> list[list[Sample]]:
        finder = self.finder
        runs = [seeded(at_place(self.experiment, finder.quantity, x), k) for x in places for k in range(self.seeds)]
        known, finished = (finder.cache.find, finder.cache.add) if finder.cache is not None else (None, None)
        rows = run_all(
            runs, jobs=finder.jobs, known=known, finished=finished, together=finder.together, point=finder.watched
        )
        finder.done += len(runs)
        if finder.progress is not None:
            total = max(finder.total, finder.done) if finder.total is not None else None
            where = finder.where or f"around {places[-1]:.4g}"
            finder.progress(finder.done, total, self._attainment(rows), where)
        by_place = [rows[i : i + self.seeds] for i in range(0, len(rows), self.seeds)]
        return [[*(same[:1] if are_copies(same) else same)] for same in by_place]

    def _attainment(self, rows: Sequence[tables.Row]) -> float | None:
        """The share of requests met in *rows*, where that is what is sought."""
        shares = [c.name for target in self.finder.targets for c in target.criteria if c.metric is None]
        sent = sum(row[shares[0]][1] for row in rows) if shares else 0
        return sum(row[shares[0]][0] for row in rows) / sent if sent else None


def at_place(experiment: Experiment, quantity: Quantity, x: float) -> Experiment:
    """*experiment* where the *quantity* is *x*."""
    key = quantity.key
    if key == "slo.factor" and isinstance(experiment.slo, TokenSLOSpec):
        key = "slo.decode"  # that of the first token stays
    first, second, *rest = key.split(".")
    outer = getattr(experiment, first)
    value: float = int(x) if quantity.whole else x
    if rest:
        inner = getattr(outer, second).model_copy(update={rest[0]: value})
        return experiment.model_copy(update={first: outer.model_copy(update={second: inner})})
    return experiment.model_copy(update={first: outer.model_copy(update={second: value})})


def row_of(answer: Answer, asked: Asked) -> tables.Row:
    """The line of *answer* in a table."""
    found = answer.found
    shares = [c.share for c in found.target.criteria if c.metric is None]
    return {
        "workload": answer.workload,
        "policy": answer.policy,
        "deployment": answer.deployment,
        "find": asked.find,
        "target": shares[0] if shares else found.target.name,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "seeds": answer.seeds,
        "first_seed": asked.first_seed,
        "places": len(found.tried),
        "requests": answer.requests,
        "warm_up": answer.warm_up,
        "settled_after": answer.settled,
        "twice_as_long_agrees": answer.twice,
        "backlog": answer.stable.backlog,
        "backlog_growth": answer.stable.growth.mean,
        "notes": "; ".join(found.notes),
        **({"versus": gap.versus} if (gap := answer.beside) is not None else {}),
        **({name: getattr(gap, end) for name, end in MORE.items()} if gap is not None else {}),
    }
