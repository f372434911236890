"""The most requests that any schedule of a small system meets, exactly, by a mixed-integer program.

The program says which requests each batch of each stage holds and when it begins; docs/explanation/bound.md has it in
full. It is solved by HiGHS (`scipy.optimize.milp`), which every installation has; that a bound is reached is shown
by a schedule that the simulator serves, not by the solver's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix
from servetwin.core.arithmetic import float_sum

from .stage_loads import StageLoad

#: Binary variables of the program at most: beyond, it is not tried.
MOST = 1500


@dataclass(frozen=True)
class Exact:
    """*value*: no schedule meets more. *plan* has, by stage, the batches in order, as places of requests."""

    value: float
    plan: dict[str, list[list[int]]]


def _members(loads: Sequence[StageLoad]) -> NDArray[np.int64]:
    """The requests that batches may hold: those that can be met. Where a larger batch may be quicker than a smaller
    one, others may be of use in it, and all stay."""
    if any(np.any(np.diff(load.times.worker[1:]) < 0.0) for load in loads):
        return np.arange(len(loads[0].iterations))
    return np.flatnonzero(np.logical_and.reduce([load.possible for load in loads]))


def size_of(loads: Sequence[StageLoad]) -> int | None:
    """How many binary variables the program has; None if it does not fit these stages."""
    if any(load.times.count > 1 or load.times.device is not None for load in loads):
        return None
    able = _members(loads)
    count = len(able)
    return sum(int(load.iterations[able].sum()) * (count + len(load.times.worker)) for load in loads) + count


def solve(loads: Sequence[StageLoad], seconds: float = 60.0) -> Exact:
    """The bound for a chain of stages with a worker each, and a schedule; the solver is given so many *seconds*."""
    able = _members(loads)
    empty: dict[str, list[list[int]]] = {load.name: [] for load in loads}
    if not len(able):
        return Exact(0.0, empty)
    program = _Program(loads, able)
    found = program.solve(seconds)
    value = float(len(able)) if found.mip_dual_bound is None else min(-found.mip_dual_bound, float(len(able)))
    return Exact(value, empty if found.x is None else program.plan(found.x))


class _Program:
    """The rows and columns, in the making."""

    def __init__(self, loads: Sequence[StageLoad], able: NDArray[np.int64]) -> None:
        self.loads, self.able = loads, able
        self.start = min(float(load.release[able].min()) for load in loads)
        self.end = max(float(load.due[able].max()) for load in loads) - self.start
        self.most = self.end + float_sum(float_sum(load.iterations[able]) * max(load.times.worker) for load in loads)
        self.upper: list[float] = []
        self.whole: list[int] = []
        self.rows: list[dict[int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []
        possible = np.logical_and.reduce([load.possible for load in loads])
        self.met = [self._new(float(possible[i]), 1) for i in able]
        self.members: list[list[list[int]]] = []  # stage, batch, request -> column
        self.kept: list[list[int]] = []
        before: list[int] | None = None
        for load in loads:
            before = self._stage(load, before)

    def _new(self, upper: float, whole: int = 0) -> int:
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.upper) - 1

    def _row(self, terms: dict[int, float], low: float, high: float) -> None:
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)

    def _stage(self, load: StageLoad, before: list[int] | None) -> list[int]:
        """Add a stage; gives the columns of when requests have ended it, given those of the stage *before*."""
        able, inf, far = self.able, np.inf, 2.0 * self.most
        steps = [int(k) for k in load.iterations[able]]
        batches, sizes = sum(steps), range(1, len(load.times.worker))
        begin = [self._new(self.most) for _ in range(batches)]
        size = [{n: self._new(1.0, 1) for n in sizes} for _ in range(batches)]
        member = [[self._new(1.0, 1) for _ in able] for _ in range(batches)]
        ends = [self._new(2.0 * self.most) for _ in able]
        lasting = [{size[j][n]: load.times.worker[n] for n in sizes} for j in range(batches)]
        for j in range(batches):
            self._row({size[j][n]: 1.0 for n in sizes}, -inf, 1.0)
            self._row({**dict.fromkeys(member[j], 1.0), **{size[j][n]: -float(n) for n in sizes}}, 0.0, 0.0)
            if j + 1 < batches:  # batches that are not used come last
                unused = {size[j + 1][n]: 1.0 for n in sizes} | {size[j][n]: -1.0 for n in sizes}
                self._row(unused, -inf, 0.0)
                later = {begin[j + 1]: 1.0, begin[j]: -1.0} | {c: -s for c, s in lasting[j].items()}
                self._row(later, 0.0, inf)
        for i, place in enumerate(able):
            mine = {member[j][i]: 1.0 for j in range(batches)}
            self._row(mine, -inf, float(steps[i]))
            self._row({**mine, self.met[i]: -float(steps[i])}, 0.0, inf)
            release, due = float(load.release[place]) - self.start, float(load.due[place]) - self.start
            for j in range(batches):
                own = member[j][i]
                self._row({begin[j]: 1.0, own: -release}, 0.0, inf)
                end = {begin[j]: 1.0, **lasting[j]}
                self._row({**end, own: far, self.met[i]: far}, -inf, due + 2.0 * far)
                self._row({**end, own: far, ends[i]: -1.0}, -inf, far)
                if before is not None:
                    self._row({begin[j]: 1.0, own: -far, before[i]: -1.0}, load.hop - far, inf)
                    earlier = {batch[i]: 1.0 for batch in self.members[-1]}
                    self._row({**earlier, own: -float(self.kept[-1][i])}, 0.0, inf)
        self.members.append(member)
        self.kept.append(steps)
        return ends

    def solve(self, seconds: float) -> Any:
        rows = [i for i, row in enumerate(self.rows) for _ in row]
        columns = [c for row in self.rows for c in row]
        values = [v for row in self.rows for v in row.values()]
        matrix = coo_matrix((values, (rows, columns)), shape=(len(self.rows), len(self.upper))).tocsr()
        gain = np.zeros(len(self.upper))
        gain[self.met] = -1.0
        return milp(
            gain,
            constraints=LinearConstraint(matrix, self.low, self.high),
            bounds=Bounds(0.0, self.upper),
            integrality=self.whole,
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )

    def plan(self, at: NDArray[np.float64]) -> dict[str, list[list[int]]]:
        """The batches that the solution *at* runs, less those of requests that it does not meet and does not need."""
        found = {}
        for load, member in zip(self.loads, self.members, strict=True):
            batches = [[int(self.able[i]) for i, c in enumerate(batch) if at[c] > 0.5] for batch in member]
            found[load.name] = [batch for batch in batches if batch]
        return found
