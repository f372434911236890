"""Requests to one LLM stage as columns of numbers, for runs that want no object of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from servetwin.core.llm import TokenRequest, Tokens
from servetwin.core.request import Outputs

#: Number, arrival, prompt tokens, declared limit of output tokens, true output tokens, class ("": none).
Row = tuple[int, float, int, int, int, str]


class ClassTerms(NamedTuple):
    """What requests of a class have in common, as in `servetwin.core.request.Request`."""

    slo: float
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0


class TokenColumns(Iterator[TokenRequest]):
    """An iterator of `TokenRequest`, numbered from 0, to the stage whose loop module is *module*.

    *arrivals* gives seconds since the run began (never falling), *prompts*, *limits* and *outputs* tokens: arrays, or
    plain floats and ints. The shortest ends all, and ``itertools.repeat`` will do for one that does not change. They
    are read up to a thousand requests ahead and do nothing but give numbers. *slo* is as in `TokenRequest`, the same
    for all but those of *classes*, which gives the name of each request's class, whose *terms* are given. Who needs
    no objects may `read` columns instead, puts back what was read too much, and then sets *row*, the last that was
    taken (None if there was none).
    """

    def __init__(
        self,
        module: str,
        arrivals: Iterable[float],
        prompts: Iterable[int],
        limits: Iterable[int],
        outputs: Iterable[int],
        classes: Iterable[str] = repeat(""),
        *,
        slo: float = float("inf"),
        terms: Mapping[str, ClassTerms] = MappingProxyType({}),
    ) -> None:
        self.module = module
        self.terms: Mapping[str, ClassTerms] = {"": ClassTerms(slo), **terms}
        columns = (arrivals, prompts, limits, outputs, classes)
        self._columns = [iter(c.tolist() if isinstance(c, np.ndarray) else c) for c in columns]
        self._rows: Iterator[tuple[float, int, int, int, str]] = zip(*self._columns, strict=False)
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

    def read(self, many: int) -> tuple[list[float], list[int], list[int], list[int], list[str]]:
        """Arrivals, prompts, limits, outputs and classes of the next requests: so many, or as many as there are."""
        found: list[list[Any]] = []
        for column, ahead in zip(self._columns, self._ahead, strict=True):
            values = [ahead.popleft() for _ in range(min(many, len(ahead)))]
            values += islice(column, many - len(values))
            found.append(values)
        arrivals, prompts, limits, outputs, classes = found
        there = min(map(len, found))
        if there < many:
            for column in found:
                del column[there:]
        self._number += there
        return arrivals, prompts, limits, outputs, classes

    def put_back(self, *columns: list[Any]) -> None:
        """These, as `read` gives them, are still to come."""
        for column, ahead in zip(columns, self._ahead, strict=True):
            ahead.extendleft(reversed(column))
        self._number -= len(columns[0])

    def request(self, row: Row) -> TokenRequest:
        """What *row* says, as a request. Those on end that ask for the same share what they say of it."""
        i, arrival, prompt, limit, output, name = row
        shape = (prompt, limit, output)
        if shape != self._shape:
            self._shape, self._shared = shape, ({self.module: (prompt, limit)}, {self.module: output})
        tokens, outputs = self._shared
        slo, priority, tenant, weight = self.terms[name]
        said: Any = {"priority": priority, "tenant": tenant, "weight": weight, "class_name": name} if name else {}
        return TokenRequest(i, arrival, tokens, outputs, slo=slo, **said)
