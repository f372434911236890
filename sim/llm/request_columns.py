"""Requests to one LLM stage as columns of numbers, for runs that want no object of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
from servetwin.core.llm import TokenRequest, Tokens
from servetwin.core.request import Outputs

#: Number, arrival, prompt tokens, declared limit of output tokens, true output tokens.
Row = tuple[int, float, int, int, int]


class TokenColumns(Iterator[TokenRequest]):
    """An iterator of `TokenRequest`, numbered from 0, to the stage whose loop module is *module*.

    *arrivals* gives seconds since the run began (never falling), *prompts*, *limits* and *outputs* tokens: arrays, or
    plain floats and ints. The shortest ends all, and ``itertools.repeat`` will do for one that does not change. They
    are read one request ahead and do nothing but give numbers. *slo* is as in `TokenRequest`, the same for all. Who
    needs no objects may read *rows* instead, and then sets *row*, the last that was read (None if there was none).
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
        columns = [c.tolist() if isinstance(c, np.ndarray) else c for c in (arrivals, prompts, limits, outputs)]
        self.rows: Iterator[Row] = zip(count(), *columns, strict=False)
        self.row: Row | None = None
        self._shape: tuple[int, int, int] | None = None
        self._shared: tuple[Tokens, Outputs] = {}, {}

    def __next__(self) -> TokenRequest:
        self.row = row = next(self.rows, None)
        if row is None:
            raise StopIteration
        return self.request(row)

    def request(self, row: Row) -> TokenRequest:
        """What *row* says, as a request. Those on end that ask for the same share what they say of it."""
        i, arrival, prompt, limit, output = row
        shape = (prompt, limit, output)
        if shape != self._shape:
            self._shape, self._shared = shape, ({self.module: (prompt, limit)}, {self.module: output})
        tokens, outputs = self._shared
        return TokenRequest(i, arrival, tokens, outputs, slo=self.slo)
