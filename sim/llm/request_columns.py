"""Requests to one LLM stage as columns of numbers, for runs that want no object of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from servetwin.core.llm import TokenRequest, Tokens
from servetwin.core.request import Outputs

#: Number, arrival, prompt tokens, declared limit of output tokens, true output tokens.
Row = tuple[int, float, int, int, int]


class TokenColumns(Iterator[TokenRequest]):
    """An iterator of `TokenRequest`, numbered from 0, to the stage whose loop module is *module*.

    *arrivals* gives seconds since the run began (never falling), *prompts*, *limits* and *outputs* tokens: arrays, or
    plain floats and ints. The shortest ends all, and ``itertools.repeat`` will do for one that does not change. They
    are read up to a thousand requests ahead and do nothing but give numbers. *slo* is as in `TokenRequest`, the same
    for all. Who needs no objects may `read` columns instead, puts back what was read too much, and then sets *row*,
    the last that was taken (None if there was none).
    """

    def __init__(
        self,
        module: str,
        arrivals: Iterable[float],
        prompts: Iterable[int],
        limits: Iterable[int],
        outputs: Iterable[int],
        *,
        slo: float = float("inf"),
    ) -> None:
        self.module, self.slo = module, slo
        columns = (arrivals, prompts, limits, outputs)
        self._columns = [iter(c.tolist() if isinstance(c, np.ndarray) else c) for c in columns]
        self._rows: Iterator[tuple[float, int, int, int]] = zip(*self._columns, strict=False)
        self._ahead: list[deque[Any]] = [deque() for _ in columns]  # read and put back
        self._number = 0  # of the next
        self.row: Row | None = None
        self._shape: tuple[int, int, int] | None = None
        self._shared: tuple[Tokens, Outputs] = {}, {}

    def __next__(self) -> TokenRequest:
        ahead = self._ahead
        found = [column.popleft() for column in ahead] if ahead[0] else next(self._rows, None)
        if found is None:
            self.row = None
            raise StopIteration
        self.row = row = (self._number, *found)
        self._number += 1
        return self.request(row)

    def read(self, many: int) -> tuple[list[float], list[int], list[int], list[int]]:
        """Arrivals, prompts, limits and outputs of the next requests: so many, or as many as there are."""
        found: list[list[Any]] = []
        for column, ahead in zip(self._columns, self._ahead, strict=True):
            values = [ahead.popleft() for _ in range(min(many, len(ahead)))]
            values += islice(column, many - len(values))
            found.append(values)
        arrivals, prompts, limits, outputs = found
        there = min(len(arrivals), len(prompts), len(limits), len(outputs))
        if there < many:
            for column in found:
                del column[there:]
        self._number += there
        return arrivals, prompts, limits, outputs

    def put_back(self, *columns: list[Any]) -> None:
        """These, as `read` gives them, are still to come."""
        for column, ahead in zip(columns, self._ahead, strict=True):
            ahead.extendleft(reversed(column))
        self._number -= len(columns[0])

    def request(self, row: Row) -> TokenRequest:
        """What *row* says, as a request. Those on end that ask for the same share what they say of it."""
        i, arrival, prompt, limit, output = row
        shape = (prompt, limit, output)
        if shape != self._shape:
            self._shape, self._shared = shape, ({self.module: (prompt, limit)}, {self.module: output})
        tokens, outputs = self._shared
        return TokenRequest(i, arrival, tokens, outputs, slo=self.slo)
