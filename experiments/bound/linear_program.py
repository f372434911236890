"""Linear programs whose optimum is bounded by proof, not by trust in a solver.

For any multipliers of the rows (not negative for inequalities) the value of the Lagrangian, maximised over the ranges
of the variables, is at least the optimum (weak duality). HiGHS proposes the multipliers; what is given out is the
value computed from them, so a solver that stopped early, or a tolerance of its, can make a bound weaker, not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, csr_matrix, vstack
from servetwin.core import ServeTwinError

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
#: Rows' numbers, variables' places, coefficients.
Term = tuple[ArrayLike, ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Solved:
    """*value* is proven to be at least the optimum; *at* is the solver's own point, by variable."""

    value: float
    at: Numbers


class Program:
    """Maximise a linear gain over variables of finite ranges, subject to rows that are added in blocks."""

    def __init__(self) -> None:
        self._lower: list[Numbers] = []
        self._upper: list[Numbers] = []
        self._gain: list[Numbers] = []
        self._most: list[tuple[Places, Places, Numbers, Numbers]] = []
        self._equal: list[tuple[Places, Places, Numbers, Numbers]] = []
        self.count = 0

    def variables(self, upper: ArrayLike, *, gain: float = 0.0, lower: ArrayLike = 0.0) -> Places:
        """New variables between *lower* and *upper*, each with the same *gain*; gives their places."""
        top = np.atleast_1d(np.asarray(upper, dtype=float))
        self._upper.append(top)
        self._lower.append(np.broadcast_to(np.asarray(lower, dtype=float), top.shape))
        self._gain.append(np.full(top.shape, gain))
        places = np.arange(self.count, self.count + len(top))
        self.count += len(top)
        return places

    def at_most(self, limits: ArrayLike, *terms: Term) -> None:
        """Rows ``sum of coefficient * variable <= limit``, one for each of *limits*; each of *terms* holds the rows'
        numbers in this block, the variables' places, and the coefficients."""
        self._most.append(_block(limits, terms))

    def equal(self, limits: ArrayLike, *terms: Term) -> None:
        """Likewise, with equality."""
        self._equal.append(_block(limits, terms))

    def solve(self, seconds: float = 120.0) -> Solved:
        """An upper bound of the optimum, with the solver given so many *seconds*. Raises `ServeTwinError` if it finds
        no multipliers at all in that time."""
        gain, low, high = (np.concatenate(parts) for parts in (self._gain, self._lower, self._upper))
        most, limits = self._matrix(self._most)
        same, sides = self._matrix(self._equal)
        found = linprog(
            -gain,
            A_ub=most if len(limits) else None,
            b_ub=limits if len(limits) else None,
            A_eq=same if len(sides) else None,
            b_eq=sides if len(sides) else None,
            bounds=np.column_stack((low, high)),
            method="highs",
            options={"time_limit": seconds},
        )
        if found.x is None:
            raise ServeTwinError(f"HiGHS found no bound within {seconds:g} s: {found.message}")
        value, rest = 0.0, gain.copy()
        if len(limits):
            weights = np.maximum(-found.ineqlin.marginals, 0.0)
            value += float(weights @ limits)
            rest -= most.T @ weights
        if len(sides):
            weights = -found.eqlin.marginals
            value += float(weights @ sides)
            rest -= same.T @ weights
        value += float(np.where(rest > 0.0, rest * high, rest * low).sum())
        return Solved(value, found.x)

    def _matrix(self, blocks: Sequence[tuple[Places, Places, Numbers, Numbers]]) -> tuple[csr_matrix, Numbers]:
        parts = [
            coo_matrix((values, (rows, columns)), shape=(len(limits), self.count))
            for rows, columns, values, limits in blocks
        ]
        if not parts:
            return csr_matrix((0, self.count)), np.zeros(0)
        return vstack(parts).tocsr(), np.concatenate([limits for *_, limits in blocks])


def _block(limits: ArrayLike, terms: Sequence[Term]) -> tuple[Places, Places, Numbers, Numbers]:
    rows, columns, values = [], [], []
    for row, column, value in terms:
        r, c, v = np.broadcast_arrays(np.asarray(row), np.asarray(column), np.asarray(value, dtype=float))
        rows.append(r.ravel())
        columns.append(c.ravel())
        values.append(v.ravel())
    return (
        np.concatenate(rows).astype(np.int64),
        np.concatenate(columns).astype(np.int64),
        np.concatenate(values),
        np.atleast_1d(np.asarray(limits, dtype=float)),
    )
