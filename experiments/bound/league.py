"""``servetwin league``: all policies over several workloads, ranked, beside the most that any schedule could meet.

Every policy serves the same requests under the same seed, in the deployment of the workload. A policy's standing is
the mean of its attainment over the workloads, taken seed by seed; two policies are told apart if the interval on the
mean of their differences, seed by seed, does not hold 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from servetwin.core import BadInput, Policy
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import TokenPolicy

from ..assembly import shapes
from ..registry import policy_registry
from ..spec.experiment import Experiment
from ..spec.loading import load
from ..spec.overrides import Override
from ..sweeps.cache import Cache
from ..sweeps.point import Progress, Row, Together, run_all
from ..sweeps.repeat import seeded
from ..sweeps.statistics import Interval, attainment_interval, mean_interval, paired_attainment
from ..workload.seed_effect import check_seeds
from .most_met import check_arrivals
from .sweep_bounds import Bounded

#: The workloads of the leagues, each at the highest rate (requests/s) of its axis in Figures 11 and 12 of the
#: NeuStream paper, or at the rate around which Figure 14 varies cv and SLO.
DIFFUSION = {
    "dit-s2-256-rtx4090": 4.0,
    "palette-256-rtx4090": 1.0,
    "sd15-256-rtx4090": 2.5,
    "dit-xl2-256-rtx4090": 0.9,
    "sd15-512-rtx4090": 0.55,
    "sd15-512-h100": 1.2,
}
LANGUAGE = {"opt-13b-a6000": 2.0, "opt-30b-a6000": 1.7, "opt-66b-a6000": 1.7}
LEAGUES = {"diffusion": DIFFUSION, "language": LANGUAGE}
LEVEL = 0.95


@dataclass(frozen=True)
class Worth:
    """What the results of a policy are worth on a workload: on average (None: nothing finished under some seed), and
    of those in time, per second."""

    mean: float | None
    in_time: Interval

    def as_dict(self) -> dict[str, float | None]:
        """For ``--json``, and for a table."""
        return {"mean_quality": self.mean, **_told("quality_goodput", self.in_time)}


@dataclass(frozen=True)
class Standing:
    """A policy's place: its *attainment* over all workloads, its mean *share* of the bounds (None: there are none),
    its attainment by workload, and the policies below it from which it cannot be told. *quality* is by workload, of
    those where policies may leave steps out."""

    policy: str
    attainment: Interval
    share: float | None
    by_workload: Mapping[str, Interval]
    alike: Sequence[str]
    quality: Mapping[str, Worth] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "policy": self.policy,
            **_told("attainment", self.attainment),
            "share_of_bound": self.share,
            "workloads": {
                name: _told("attainment", own) | (self.quality[name].as_dict() if name in self.quality else {})
                for name, own in self.by_workload.items()
            },
            "not_told_apart_from": list(self.alike),
        }


@dataclass(frozen=True)
class League:
    """The standings, the best first; *bounds* by workload as shares of the requests; policies *left_out*, which do
    not fit a workload, each with why."""

    standings: Sequence[Standing]
    bounds: Mapping[str, Interval]
    left_out: Mapping[str, str]
    seeds: Sequence[int]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "seeds": list(self.seeds),
            "standings": [s.as_dict() for s in self.standings],
            "bounds": {name: _told("bound", own) for name, own in self.bounds.items()},
            "left_out": dict(self.left_out),
        }


def _told(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def league(
    sources: Mapping[str, Sequence[Override]],
    policies: Sequence[str] | None = None,
    *,
    seeds: int = 5,
    first_seed: int = 0,
    bounds: bool = True,
    jobs: int = -1,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> League:
    """Rank *policies* (None: all that come with ServeTwin and fit) over the workloads of *sources*, each with what is
    set in it. Raises `BadInput` if a workload is not there or does not fit the others, or no policy fits."""
    places = {name: seeded(load(name, [*sets, ("seed", first_seed)])) for name, sets in sources.items()}
    kinds = {bool(place.pipeline.llms) for place in places.values()}
    if len(kinds) > 1:
        what = "policies for language models and for diffusion do not serve the same workloads"
        raise BadInput(what, where="league", right="workloads of one kind")
    for place in places.values():
        check_seeds(place, seeds, "--seeds")
        if bounds:
            _check_bound(place)
    shifts = range(seeds)
    asked, left_out = _entries(sources, policies, places, TokenPolicy if kinds == {True} else Policy, first_seed)
    every = [seeded(e, k) for own in asked.values() for e in own.values() for k in shifts]
    sure = [seeded(place, k) for place in places.values() for k in shifts] if bounds else []
    total = len(every) + len(sure)
    more: dict[str, Any] = {"jobs": jobs, "together": Together()}
    if cache is not None:
        more |= {"known": cache.find, "finished": cache.add}
    tell: Progress = progress or (lambda _done, _total, _share=None: None)
    rows = iter(run_all(every, progress=lambda done, share: tell(done, total, share), **more))
    met: dict[str, dict[str, list[float]]] = {p: {} for p in asked}
    worth: dict[str, dict[str, Worth]] = {p: {} for p in asked}
    sent: dict[str, int] = {}
    for policy, own in asked.items():
        for w in own:
            here = [next(rows) for _ in shifts]
            met[policy][w], sent[w] = [_share(row) for row in here], min(int(row["requests"]) for row in here)
            if all(row.get("quality_goodput") is not None for row in here):
                worth[policy][w] = _worth(here)
    more["together"] = Together()
    found = iter(run_all(sure, progress=lambda done, _: tell(len(every) + done, total), point=Bounded(), **more))
    most = {w: [_bound(next(found)) for _ in shifts] for w in places} if bounds else {}
    ranked = _ranked(met, most, sent, left_out, range(first_seed, first_seed + seeds))
    return replace(ranked, standings=[replace(s, quality=worth[s.policy]) for s in ranked.standings])


def _check_bound(place: Experiment) -> None:
    """Raise `BadInput` if no bound is known of this workload."""
    check_arrivals(place)
    try:
        shapes.refuse(place, "the bound")
    except BadInput as problem:
        right = f"{problem.right}; or --no-bound"
        raise BadInput(problem.what, where=f"{place.name}: {problem.where}", right=right) from None


def _worth(rows: Sequence[Row]) -> Worth:
    means = [row["mean_quality"] for row in rows]
    in_time = mean_interval([row["quality_goodput"] for row in rows], LEVEL).above(0.0)
    return Worth(None if None in means else float_sum(means) / len(means), in_time)


def _entries(
    sources: Mapping[str, Sequence[Override]],
    policies: Sequence[str] | None,
    places: Mapping[str, Experiment],
    kind: type,
    first_seed: int,
) -> tuple[dict[str, dict[str, Experiment]], dict[str, str]]:
    """The experiments of each policy by workload, and the policies that do not fit one. Those that were asked for by
    name have to fit."""
    from ..assembly.build import build

    names = policies or [
        n for n in policy_registry.policy_names() if issubclass(policy_registry.find_policy(n), kind)
    ]
    asked: dict[str, dict[str, Experiment]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            own = {}
            for place, sets in sources.items():
                entry = [*sets, ("policy", name), ("seed", first_seed)]
                own[place] = seeded(load(place, entry))
                build(own[place])
                if (
                    own[place].workload.trace is None
                ):  # what a policy lacks may show with the first request, not before
                    build(seeded(load(place, [*entry, ("requests", 1)]))).play()
            asked[name] = own
        except BadInput as problem:
            if policies:
                raise
            left_out[name] = problem.what
    if not asked:
        raise BadInput(
            "no policy fits these workloads", where="league", right=f"workloads such as {', '.join(places)}"
        )
    return asked, left_out


def _share(row: Row) -> float:
    return float(row["met"] / row["requests"])


def _bound(row: Row) -> float:
    return float(row["at_mean"] / row["requests"])


def _ranked(
    met: Mapping[str, Mapping[str, Sequence[float]]],
    most: Mapping[str, Sequence[float]],
    sent: Mapping[str, int],
    left_out: Mapping[str, str],
    seeds: Sequence[int],
) -> League:
    # So many requests of one workload would tell a share as closely as those of all workloads tell the mean.
    together = max(1, round(len(sent) ** 2 / float_sum([1.0 / n for n in sent.values()])))
    means = {p: [float_sum(own) / len(own) for own in zip(*by.values(), strict=True)] for p, by in met.items()}
    order = sorted(means, key=lambda p: -float_sum(means[p]))
    standings = []
    for i, policy in enumerate(order):
        alike = [other for other in order[i + 1 :] if 0.0 in _paired(means[other], means[policy], together)]
        by = met[policy]
        parts = [a / b for w in most for a, b in zip(by[w], most[w], strict=True) if b]
        standings.append(
            Standing(
                policy,
                _within(means[policy], together),
                float_sum(parts) / len(parts) if parts else None,
                {w: _within(values, sent[w]) for w, values in by.items()},
                alike,
            )
        )
    return League(standings, {w: _within(v, sent[w]) for w, v in most.items()}, left_out, seeds)


def _met(shares: Sequence[float], sent: int) -> list[int]:
    return [round(share * sent) for share in shares]


def _within(shares: Sequence[float], sent: int) -> Interval:
    """The interval on the mean of *shares*, of *sent* requests each: seeds that agree by chance say no more than so
    many requests can."""
    found = attainment_interval(_met(shares, sent), [sent] * len(shares), LEVEL)
    return Interval(float_sum(shares) / len(shares), found.low, found.high, found.count)


def _paired(first: Sequence[float], second: Sequence[float], sent: int) -> Interval:
    """Likewise of the mean of *second* minus *first*, seed by seed."""
    return paired_attainment(_met(first, sent), _met(second, sent), [sent] * len(first), LEVEL)
