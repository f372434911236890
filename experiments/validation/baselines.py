"""What a simulation must be better than: the same runs predicted without its terms, and without a simulation at all.

Each run is predicted from the others of its workload and policy: by a line through its neighbours on its axis, by the
nearest other setting, by their mean. The fourth is no number but a bet: that the policy that wins most wins always.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..spec.overrides import Override
from ..sweeps.point import Progress
from .comparison.compare_grids import EQUAL, Cell, Setting, grids_of, noise_of
from .comparison.run_table import MeasuredRun
from .score import Scored, entries, score

AXES = ("rate", "cv", "slo_factor")
COUNTS = ("met", "finished")

#: Nothing but the tables that schedulers planned with.
TABLES_ALONE: list[Override] = [
    ("time.table", "scheduler"),
    *((f"time.{term}", False) for term in ("costs", "whole", "contention", "transport", "noise")),
]

#: For each count, its share of the requests in percent.
Shares = Mapping[str, float]


@dataclass(frozen=True)
class Baseline:
    """A way to predict the runs, and what comes of it; those that it says nothing of are left out."""

    name: str
    scored: list[Scored]


@dataclass(frozen=True)
class Favourite:
    """The *policy* that wins most: of *settings* with two policies or more it *won* so many, *tied* have no winner;
    of those with a winner beyond the noise, *settings_decided*, it won *decided*."""

    policy: str
    won: int
    tied: int
    settings: int
    decided: int
    settings_decided: int


def baselines(
    path: Path,
    scored: Sequence[Scored],
    overrides: Iterable[Override] = (),
    *,
    seeds: int,
    jobs: int = -1,
    progress: Progress | None = None,
) -> list[Baseline]:
    """The simulation's own scores first, then, for a table of runs, those without run dates and with the schedulers'
    tables alone, then those of predictors that simulate nothing."""
    found = [Baseline("this simulation", list(scored))]
    if path.is_file() and path.suffix == ".csv":
        given = list(overrides)
        if any(s.run.start is not None for s in scored):
            without = score(path, None, given, seeds=seeds, jobs=jobs, progress=progress, dates=False)
            found.append(Baseline("without run dates", without))
        # Without noise one seed is as good as ten.
        alone = score(path, None, [*given, *TABLES_ALONE], seeds=1, jobs=jobs, progress=progress)
        found.append(Baseline("schedulers' tables alone", alone))
    for name, predict in PREDICTORS.items():
        predicted = list(_predicted(scored, predict))
        if predicted:
            found.append(Baseline(name, predicted))
    return found


def favourite(scored: Sequence[Scored], floor: float | None = None) -> Favourite | None:
    """The policy that wins most of the measured settings; None where no two policies were measured in one setting.
    Of a policy that was measured with several parameters in a setting the best counts."""
    measured, simulated = entries(scored)
    grid, _ = grids_of(measured, simulated)
    noise = noise_of(grid, floor)
    settings: dict[Setting, dict[str, Cell]] = {}
    for (setting, _), cell in grid.items():
        found = settings.setdefault(setting, {})
        policy = cell.runs[0].policy_alone
        if policy not in found or found[policy].attainment < cell.attainment:
            found[policy] = cell
    winners: Counter[str] = Counter()
    decided: Counter[str] = Counter()
    tied = 0
    for setting, cells in settings.items():
        if len(cells) < 2:
            continue
        first, second = sorted(cells, key=lambda p: cells[p].attainment, reverse=True)[:2]
        lead = cells[first].attainment - cells[second].attainment
        if lead <= EQUAL:
            tied += 1
            continue
        winners[first] += 1
        decided[first] += lead > noise.floor(setting.workload, cells[first], cells[second])
    if not winners:
        return None
    policy = winners.most_common(1)[0][0]
    every = winners.total() + tied
    return Favourite(policy, winners[policy], tied, every, decided[policy], decided.total())


# -- predictors -----------------------------------------------------------------------------------------


def place_of(run: MeasuredRun) -> tuple[float, ...]:
    """Where a run stands: rate, cv and SLO factor; 0 for what it has none of."""
    return tuple(0.0 if math.isnan(x) else x for x in (run.rate, run.cv, run.slo_factor))


def shares_of(run: MeasuredRun) -> Shares:
    known = {count: getattr(run, count) for count in COUNTS}
    return {count: 100.0 * value / run.requests for count, value in known.items() if value is not None}


def mean_of(runs: Iterable[MeasuredRun]) -> Shares:
    """The mean of each count over those runs that have it."""
    shares = [shares_of(run) for run in runs]
    by_count = {count: [s[count] for s in shares if count in s] for count in COUNTS}
    return {count: math.fsum(values) / len(values) for count, values in by_count.items() if values}


def mean_of_others(run: MeasuredRun, others: Sequence[MeasuredRun]) -> Shares:
    """The mean of the other runs of the workload under the policy."""
    return mean_of(others)


def nearest(run: MeasuredRun, others: Sequence[MeasuredRun]) -> Shares:
    """What was measured in the nearest other setting, by the ratios of rates, cvs and SLO factors; their mean, where
    several are as near."""
    here = place_of(run)

    def far(other: MeasuredRun) -> float:
        pairs = zip(here, place_of(other), strict=True)
        return math.fsum(abs(math.log(b / a)) for a, b in pairs if a > 0.0 and b > 0.0)

    elsewhere = [(far(other), other) for other in others if place_of(other) != here]
    least = min((distance for distance, _ in elsewhere), default=0.0)
    return mean_of(other for distance, other in elsewhere if distance <= least + EQUAL)


def between_neighbours(run: MeasuredRun, others: Sequence[MeasuredRun]) -> Shares:
    """On a straight line through the neighbours on the run's axis, or beyond its end through the two next ones, at
    least 0 and at most 100 %. The axis is the one that the table names, else the one with most settings on it."""
    here = place_of(run)
    lines: list[dict[float, list[MeasuredRun]]] = []
    for i in range(len(here)):
        on_line: dict[float, list[MeasuredRun]] = {}
        for other in others:
            there = place_of(other)
            if there[i] != here[i] and [*there[:i], *there[i + 1 :]] == [*here[:i], *here[i + 1 :]]:
                on_line.setdefault(there[i], []).append(other)
        lines.append(on_line)
    named = {"slo": "slo_factor"}.get(run.cells.get("axis", ""), run.cells.get("axis", ""))
    i = AXES.index(named) if named in AXES else max(range(len(lines)), key=lambda j: len(lines[j]))
    points = sorted(lines[i])
    if not points:
        return {}
    below, above = [x for x in points if x < here[i]], [x for x in points if x > here[i]]
    ends = [below[-1], above[0]] if below and above else (below[-2:] or above[:2])
    first, last = ({"at": x, **mean_of(lines[i][x])} for x in (ends[0], ends[-1]))
    found: dict[str, float] = {}
    for count in first.keys() & last.keys() - {"at"}:
        step = last["at"] - first["at"]
        slope = (last[count] - first[count]) / step if step else 0.0
        found[count] = min(100.0, max(0.0, first[count] + slope * (here[i] - first["at"])))
    return found


Predictor = Callable[[MeasuredRun, Sequence[MeasuredRun]], Shares]

PREDICTORS: dict[str, Predictor] = {
    "a line through the neighbours": between_neighbours,
    "the nearest other setting": nearest,
    "the mean of the others": mean_of_others,
}


def _predicted(scored: Sequence[Scored], predict: Predictor) -> Iterator[Scored]:
    groups: dict[tuple[str, str], list[Scored]] = {}
    for s in scored:
        groups.setdefault((s.run.workload, s.run.policy), []).append(s)
    for s in scored:
        others = [other.run for other in groups[s.run.workload, s.run.policy] if other is not s]
        shares = predict(s.run, others)
        if "finished" in shares:
            counts = {count: share * s.run.requests / 100.0 for count, share in shares.items()}
            run = s.run if "met" in counts else replace(s.run, met=None)
            yield Scored(run, {"met": 0.0, **counts, "mean_batch_size": None}, others=s.others)
