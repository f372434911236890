"""Two collections of runs over the same grid, a measured and a simulated one, say: how far apart they are cell by
cell, and whether they lead to the same decisions.

A cell is a setting (workload, rate, cv, SLO factor) under a policy; runs that differ in nothing but their seed are
repeats of it and are averaged. Decisions are three: which policy wins a setting, how the policies rank there, and up
to which rate a policy holds a target. The first collection counts as the truth. A difference that is no larger than
what repeats of one cell differ by (the noise floor) decides nothing, and a tie, on either side, agrees with nothing.
A policy that a workload was served by in several deployments counts as several. What else the runs of a collection
differ in (replicas, requests, any axis of a sweep) makes settings of its own; a parameter of a policy, policies.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ...spec import yaml_io
from ...spec.experiment import Experiment
from ...sweeps import tables
from ...sweeps.point import main_worker, settings_of
from .compare_runs import find_runs, read
from .run_settings import otherwise, otherwise_in

Row = dict[str, Any]

#: Attainments (points) that differ by no more are equal: what adding up in another order may do.
EQUAL = 1e-9
#: Keys that begin so are of the policy.
PARAMS = "policy.params."


class Setting(NamedTuple):
    """What policies compete in; rates in requests per second, None where an experiment has no such number. *others*
    are further keys in which runs differ, with their values as text."""

    workload: str
    rate: float | None
    cv: float | None
    slo_factor: float | None
    others: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        numbers = zip(("rate", "cv", "SLO"), self[1:4], strict=True)
        said = [f"{name} {x:g}" for name, x in numbers if x is not None]
        return ", ".join([self.workload, *said, *(f"{name} {value}" for name, value in self.others)])


@dataclass(frozen=True)
class Entry:
    """One run of a collection; shares in percent, goodput in requests per second."""

    setting: Setting
    policy: str
    seed: int | None
    attainment: float
    finished: float
    goodput: float | None = None
    batch: float | None = None  # mean size, of the worker that runs the loop
    quality: float | None = None  # on average, where steps may be left out; and of those in time, per second
    quality_goodput: float | None = None
    deployment: str | None = None  # its name, where it is known
    others: Mapping[str, str] = field(default_factory=dict)  # what else is known of the experiment, by key
    alone: str | None = None  # the policy's name, where *policy* says its parameters or its deployment too

    @property
    def policy_alone(self) -> str:
        return self.alone or self.policy


@dataclass
class Cell:
    """Runs of one setting under one policy."""

    runs: list[Entry] = field(default_factory=list)

    def mean(self, what: str) -> float | None:
        known = [x for x in (getattr(run, what) for run in self.runs) if x is not None]
        return float_sum(known) / len(known) if known else None

    @property
    def attainment(self) -> float:
        return math.fsum(run.attainment for run in self.runs) / len(self.runs)


Grid = dict[tuple[Setting, str], Cell]


# -- reading --------------------------------------------------------------------------------------------


def read_collection(path: Path) -> list[Entry]:
    """The runs of a folder of run folders, or of a sweep's table (.csv or .parquet). Raises `BadInput`."""
    if path.is_dir():
        found = [_of_folder(folder) for folder in find_runs(path)]
        if not found:
            right = "run folders that `servetwin run --out` wrote, or a sweep's table"
            raise BadInput("there is no run in it that came to its end", where=str(path), right=right)
        return found
    if path.suffix not in (".csv", ".parquet"):
        raise BadInput(
            "this is no collection of runs", where=str(path), right="a folder of run folders, or a sweep's table"
        )
    return entries_of(read_rows(path), str(path))


def entries_of(rows: Iterable[Mapping[str, Any]], where: str) -> list[Entry]:
    """The runs that are the *rows* of a sweep's table, which is called *where*. Raises `BadInput`."""
    return [_of_row(row, f"{where}: row {i}") for i, row in enumerate(rows, 1)]


def _of_folder(folder: Path) -> Entry:
    run = read(folder)
    try:
        experiment = Experiment.model_validate(run.meta.get("experiment"))
    except ValidationError:
        what = "its meta.json holds no experiment of this version"
        raise BadInput(what, where=str(folder), right="a folder that `servetwin run --out` wrote") from None
    row = settings_of(experiment)
    summary = run.summary
    main = summary["workers"].get(main_worker(experiment), {})
    total, worth = summary["requests"], summary.get("quality", {})
    return Entry(
        Setting(row["workload"], row["rate"], row["cv"], row["slo_factor"]),
        row["policy"],
        row["seed"],
        100.0 * summary["met"] / total if total else 0.0,
        100.0 * summary["finished"] / total if total else 0.0,
        summary["request_goodput"],
        main.get("mean_batch_size"),
        worth.get("mean_quality"),
        worth.get("quality_goodput"),
        row["deployment"],
        otherwise(experiment),
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a table (.csv or .parquet). Raises `BadInput`."""
    if path.suffix == ".csv":
        try:
            return list(csv.DictReader(yaml_io.read_text(path).splitlines()))
        except csv.Error as error:
            raise BadInput(f"no CSV: {error}", where=str(path)) from None
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise BadInput(f"cannot be read: {str(error).splitlines()[0]}", where=str(path)) from None
    return rows


def _of_row(row: Mapping[str, Any], where: str) -> Entry:
    def number(name: str, *, needed: bool = False) -> float | None:
        text = row.get(name)
        if text in (None, ""):
            if needed:
                right = "a sweep's table, with workload, policy, requests, met and finished"
                raise BadInput(f"there is no {name!r}", where=where, right=right)
            return None
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise BadInput(f"{text!r} is no number", where=f"{where}: {name}") from None
        return value

    for name in ("workload", "policy"):
        if not row.get(name):
            raise BadInput(f"there is no {name!r}", where=where, right="a sweep's table")
    total, met, finished = (number(k, needed=True) or 0.0 for k in ("requests", "met", "finished"))
    if total <= 0.0:
        raise BadInput(f"{total:g} is no number of requests", where=f"{where}: requests", right="1 or more")
    for name, count in (("met", met), ("finished", finished)):
        if not 0.0 <= count <= total:
            what = f"{count:g} of {total:g} requests cannot be"
            raise BadInput(what, where=f"{where}: {name}", right=f"0 to {total:g}")
    seed = number("seed")
    if seed is not None and not seed.is_integer():
        raise BadInput(f"{seed:g} is no seed", where=f"{where}: seed", right="a whole number")
    setting = Setting(row["workload"], number("rate"), number("cv"), number("slo_factor"))
    return Entry(
        setting,
        row["policy"],
        int(seed) if seed is not None else None,
        100.0 * met / total,
        100.0 * finished / total,
        number("request_goodput"),
        number("mean_batch_size"),
        number("mean_quality"),
        number("quality_goodput"),
        row.get("deployment") or None,
        otherwise_in(row),
    )


def grid_of(entries: Iterable[Entry]) -> Grid:
    """The cells of *entries*, in order of appearance."""
    grid: Grid = {}
    for entry in entries:
        grid.setdefault((entry.setting, entry.policy), Cell()).runs.append(entry)
    return grid


def grids_of(first: Sequence[Entry], second: Sequence[Entry]) -> tuple[Grid, Grid]:
    """The cells of both collections. Where a policy served a workload in several deployments, in either of them, it
    is called "policy (deployment)", and cells are of one deployment each. What else runs of one side differ in keeps
    them apart too: they are no repeats.
    """
    first, second = _kept_apart([first, second])
    had: dict[tuple[int, str, str], set[str | None]] = {}
    for side, entries in enumerate((first, second)):
        for e in entries:
            had.setdefault((side, e.setting.workload, e.policy), set()).add(e.deployment)
    several = {(workload, policy) for (_, workload, policy), found in had.items() if len(found) > 1}

    def called(e: Entry) -> Entry:
        apart = (e.setting.workload, e.policy) in several
        if not apart:
            return e
        return replace(e, policy=f"{e.policy} ({e.deployment or 'unknown'})", alone=e.policy_alone)

    return grid_of(map(called, first)), grid_of(map(called, second))


def _kept_apart(sides: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """The entries of both *sides*, with further keys in their settings and the names of their policies where it takes
    these to tell runs apart that differ in more than their seed."""
    alike: dict[tuple[Any, ...], list[Mapping[str, str]]] = {}
    for number, entries in enumerate(sides):
        for e in entries:
            alike.setdefault((number, e.setting, e.policy, e.deployment), []).append(e.others)
    names = dict.fromkeys(
        name
        for found in alike.values()
        for name in dict.fromkeys(n for others in found for n in others)
        if len({others.get(name) for others in found}) > 1
    )

    def apart(e: Entry) -> Entry:
        known = {name: e.others[name] for name in names if name in e.others}
        params = [f"{n.removeprefix(PARAMS)} {known.pop(n)}" for n in names if n.startswith(PARAMS) and n in known]
        policy = f"{e.policy} ({', '.join(params)})" if params else e.policy
        setting = e.setting._replace(others=tuple(known.items()))
        return replace(e, policy=policy, setting=setting, alone=e.policy_alone)

    return [[apart(e) for e in entries] for entries in sides] if names else [[*entries] for entries in sides]


def unlike(first: Grid, second: Grid) -> list[str]:
    """A line for each workload and policy that the two collections served in other deployments, by their names."""
    found: dict[str, None] = {}
    for (setting, policy), a in first.items():
        b = second.get((setting, policy))
        names = [{run.deployment for run in cell.runs if run.deployment} for cell in (a, b) if cell is not None]
        if len(names) == 2 and all(names) and names[0] != names[1]:
            one, other = (", ".join(sorted(map(str, n))) for n in names)
            found[f"{setting.workload}, {policy}: {one} against {other}"] = None
    return list(found)


# -- cell by cell ---------------------------------------------------------------------------------------


def cells(first: Grid, second: Grid) -> list[Row]:
    """A row per cell that both have: the means of each, and the gaps, second minus first; of quality where some run
    has it."""
    rows = []
    compared = ["attainment", "finished", "goodput", "batch"]
    if any(
        run.quality_goodput is not None for grid in (first, second) for cell in grid.values() for run in cell.runs
    ):
        compared += ["quality", "quality_goodput"]
    for (setting, policy), a in first.items():
        b = second.get((setting, policy))
        if b is None:
            continue
        where = {**setting._asdict(), **dict(setting.others)}
        del where["others"]
        row: Row = {**where, "policy": policy, "runs_first": len(a.runs), "runs_second": len(b.runs)}
        for what in compared:
            x, y = a.mean(what), b.mean(what)
            row |= {f"{what}_first": x, f"{what}_second": y}
            row[f"{what}_gap"] = None if x is None or y is None else y - x
        rows.append(row)
    return rows


# -- noise ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """What repeats of one cell differ by: the standard deviation of a run's attainment in points, by workload, and
    where that is from. A difference between two cells counts if it exceeds twice its own standard deviation, or
    *fixed* points.
    """

    deviations: Mapping[str, float]
    source: str
    fixed: float | None = None

    def floor(self, workload: str, a: Cell, b: Cell) -> float:
        """The largest difference between *a* and *b*, both of *workload*, that says nothing; in points. Where nothing
        of the workload was repeated the noisiest other speaks for it.
        """
        if self.fixed is not None:
            return self.fixed
        deviation = self.deviations.get(workload, max(self.deviations.values(), default=0.0))
        return 2.0 * deviation * math.sqrt(1.0 / len(a.runs) + 1.0 / len(b.runs))


def noise_of(grid: Grid, fixed: float | None = None) -> Noise:
    """The noise of *grid*, pooled over the cells of each workload: from runs with the same seed, that is with the
    same requests, where there are such, and otherwise from runs with other seeds, which differ by their requests too.
    """
    if fixed is not None:
        return Noise({}, "as given", fixed)
    same: dict[tuple[Setting, str, int | None], list[float]] = {}
    other: dict[tuple[Setting, str, int | None], list[float]] = {}
    for (setting, policy), cell in grid.items():
        for run in cell.runs:
            same.setdefault((setting, policy, run.seed), []).append(run.attainment)
            other.setdefault((setting, policy, None), []).append(run.attainment)
    for groups, what in ((same, "the same requests"), (other, "other seeds")):
        repeated = {key: values for key, values in groups.items() if len(values) > 1}
        if repeated:
            workloads = dict.fromkeys(setting.workload for setting, _, _ in repeated)
            pooled = {w: _pooled([v for (s, _, _), v in repeated.items() if s.workload == w]) for w in workloads}
            return Noise(pooled, f"{len(repeated)} cells repeated with {what}")
    return Noise({}, "no cell is repeated: every difference counts")


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """The standard deviation within *groups* of values, each around its own mean."""
    squares = math.fsum((x - math.fsum(g) / len(g)) ** 2 for g in groups for x in g)
    return math.sqrt(squares / sum(len(g) - 1 for g in groups))


# -- decisions ------------------------------------------------------------------------------------------


@dataclass
class Decisions:
    """What follows from each collection, and where that differs.

    *settings* are those with two policies or more, *decided* those in which the best policy of the first collection
    leads beyond the noise floor; in *same* of them the second names the same winner, and it alone; *others* says
    where not. *pairs* are pairs of policies that differ beyond the floor, *swaps* those that the second ranks the
    other way, *ties* those that are equal there. *tied* counts the pairs that are equal in the first, in the second
    and in both, of all. *tau* is Kendall's, averaged over settings. *curves* are workloads and policies with two
    rates or more, of which *within* have their largest rate that holds the target within one step of the grid; *off*
    says which not. *unlike* says what the two collections served in other deployments.
    """

    noise: Noise
    target: float
    settings: int = 0
    decided: int = 0
    same: int = 0
    others: list[str] = field(default_factory=list)
    pairs: int = 0
    swaps: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    tied: list[int] = field(default_factory=lambda: [0, 0, 0])
    unlike: list[str] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)
    curves: int = 0
    within: int = 0
    off: list[str] = field(default_factory=list)

    @property
    def same_order(self) -> int:
        """Of *pairs*, how many the second ranks as the first does."""
        return self.pairs - len(self.swaps) - len(self.ties)

    @property
    def tau(self) -> float | None:
        return math.fsum(self.taus) / len(self.taus) if self.taus else None

    def as_dict(self) -> Row:
        return {
            "noise": {
                "deviation_points": dict(self.noise.deviations),
                "fixed_points": self.noise.fixed,
                "source": self.noise.source,
            },
            "winners": {
                "settings": self.settings,
                "decided": self.decided,
                "same": self.same,
                "others": self.others,
            },
            "ranking": {
                "pairs": self.pairs,
                "same": self.same_order,
                "swaps": self.swaps,
                "ties": self.ties,
                "tied": dict(zip(("first", "second", "both"), self.tied, strict=True)),
                "kendall_tau": self.tau,
                "settings_with_tau": len(self.taus),
            },
            "unlike_deployments": self.unlike,
            "capacity": {
                "target_percent": self.target,
                "curves": self.curves,
                "within_one_step": self.within,
                "off": self.off,
            },
        }


def check_decisions(target: float, floor: float | None) -> None:
    """Raise `BadInput` unless *target* is a share in percent, and *floor*, if given, a number of points."""
    if not 0.0 < target <= 100.0:
        raise BadInput(f"{target:g} is no attainment to hold", where="--target", right="percent, above 0 to 100")
    if floor is not None and not 0.0 <= floor < math.inf:
        raise BadInput(f"{floor:g} is no difference of points", where="--floor", right="0 or more")


def decide(first: Grid, second: Grid, *, target: float = 90.0, floor: float | None = None) -> Decisions:
    """Hold the decisions that follow from *second* against those from *first*; *target* in percent, *floor* in points
    (None: from repeats in *first*). Raises `BadInput` if they are none.
    """
    check_decisions(target, floor)
    found = Decisions(noise_of(first, floor), target, unlike=unlike(first, second))
    by_setting: dict[Setting, dict[str, tuple[Cell, Cell]]] = {}
    for (setting, policy), cell in first.items():
        if (setting, policy) in second:
            by_setting.setdefault(setting, {})[policy] = (cell, second[setting, policy])
    for setting, policies in by_setting.items():
        if len(policies) > 1:
            _winner(found, setting, policies)
            _ranking(found, setting, policies)
    _capacities(found, by_setting)
    return found


def _winner(found: Decisions, setting: Setting, policies: Mapping[str, tuple[Cell, Cell]]) -> None:
    ranked = sorted(policies, key=lambda p: policies[p][0].attainment, reverse=True)
    best, runner_up = ranked[0], ranked[1]
    a, b = policies[best][0], policies[runner_up][0]
    found.settings += 1
    if a.attainment - b.attainment <= max(EQUAL, found.noise.floor(setting.workload, a, b)):
        return
    found.decided += 1
    most = max(cell.attainment for _, cell in policies.values())
    chosen = [p for p, (_, cell) in policies.items() if most - cell.attainment <= EQUAL]
    if chosen == [best]:
        found.same += 1
    elif best in chosen:
        found.others.append(f"{setting}: {best}, not a tie of {', '.join(chosen)}")
    else:
        lead = a.attainment - policies[chosen[0]][0].attainment
        found.others.append(f"{setting}: {best}, not {', '.join(chosen)} ({lead:+.1f} points)")


def _ranking(found: Decisions, setting: Setting, policies: Mapping[str, tuple[Cell, Cell]]) -> None:
    for p, q in combinations(policies, 2):
        (a, c), (b, d) = policies[p], policies[q]
        truth, said = a.attainment - b.attainment, c.attainment - d.attainment
        equal = [abs(truth) <= EQUAL, abs(said) <= EQUAL]
        for i, tied in enumerate((*equal, all(equal))):
            found.tied[i] += tied
        if not equal[0] and abs(truth) > found.noise.floor(setting.workload, a, b):
            found.pairs += 1
            higher, lower = (p, q) if truth > 0 else (q, p)
            if equal[1]:
                found.ties.append(
                    f"{setting}: {higher} above {lower} by {abs(truth):.1f} points, equal in the second"
                )
            elif truth * said < 0:
                found.swaps.append(
                    f"{setting}: {higher} above {lower} by {abs(truth):.1f} points, below it by {abs(said):.1f}"
                    " in the second"
                )
    from scipy.stats import kendalltau

    tau = float(kendalltau(*([cell[i].attainment for cell in policies.values()] for i in (0, 1))).statistic)
    if not math.isnan(tau):  # all are equal in one of the two
        found.taus.append(tau)


def _capacities(found: Decisions, by_setting: Mapping[Setting, Mapping[str, tuple[Cell, Cell]]]) -> None:
    curves: dict[tuple[Setting, str], list[tuple[float, Cell, Cell]]] = {}
    for setting, policies in by_setting.items():
        if setting.rate is None:
            continue
        for policy, (a, b) in policies.items():
            curves.setdefault((setting._replace(rate=None), policy), []).append((setting.rate, a, b))
    for (setting, policy), points in curves.items():
        if len(points) < 2:
            continue
        points.sort(key=lambda point: point[0])
        found.curves += 1
        places = [
            _holds([a.attainment for _, a, _ in points], found.target),
            _holds([b.attainment for _, _, b in points], found.target),
        ]
        if abs(places[0] - places[1]) <= 1:
            found.within += 1
            continue
        said = [f"{points[i - 1][0]:g}" if i else f"less than {points[0][0]:g}" for i in places]
        found.off.append(f"{setting}, {policy}: {said[0]}, not {said[1]}")


def _holds(attainment: Sequence[float], target: float) -> int:
    """How many rates, from the lowest on, hold the target."""
    return next((i for i, x in enumerate(attainment) if x < target), len(attainment))


def compare_grids(
    first: Sequence[Entry],
    second: Sequence[Entry],
    *,
    target: float = 90.0,
    floor: float | None = None,
    out: Path | None = None,
) -> tuple[list[Row], Decisions]:
    """The rows of `cells` and the `Decisions`; with *out*, a table of the rows is written there."""
    check_decisions(target, floor)
    a, b = grids_of(first, second)
    rows = cells(a, b)
    if not rows:
        others = dict.fromkeys(name for grid in (a, b) for setting, _ in grid for name, _ in setting.others)
        names = ", ".join(["workload", "policy", "rate", "cv", *others])
        right = f"the same {names} and SLO factor on both sides"
        raise BadInput("the two have no cell in common", right=right)
    if out is not None:
        tables.check_target(out)
        tables.write(out, rows)
    return rows, decide(a, b, target=target, floor=floor)


def grids_dict(rows: Sequence[Row], found: Decisions) -> Row:
    """What `compare_grids` gives as one mapping, gaps in points."""
    gaps = [abs(row["attainment_gap"]) for row in rows]
    overall = {"mean_gap_points": float_sum(gaps) / len(gaps), "max_gap_points": max(gaps)}
    return {"cells": list(rows), **overall, "decisions": found.as_dict()}
