"""Requests shared out among replicas, in the order of their arrivals, and read back replica by replica.

They are kept as columns: in memory at first, beyond `MEMORY` bytes in a temporary file that is gone with the process,
so that a long workload takes disk and no memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import Any

from servetwin.core import Request
from servetwin.core.routing import Router, WorkerState
from servetwin.sim.llm.request_columns import TokenColumns

#: So many bytes of requests are kept in memory.
MEMORY = 1 << 24
#: So many requests of a replica are put away at a time, and so many of all are read at a time.
BLOCK, READ = 4096, 1024

#: By column: arrival (seconds), prompt, limit, output (tokens), number of the class.
KINDS = ("d", "q", "q", "q", "h")


class Dealt:
    """The requests of *source*, as its columns, by the replica that each goes to: those of *kept* alone can be read.

    ``choose(request, arrival)`` gives the place of the replica; each request is made for it and thrown away.
    """

    def __init__(
        self,
        source: TokenColumns,
        replicas: int,
        choose: Callable[[Request, float], int],
        kept: Container[int],
    ) -> None:
        self._source = source
        self._file = SpooledTemporaryFile(max_size=MEMORY)  # noqa: SIM115 - it goes with this object
        self._blocks: list[list[tuple[int, int]]] = [[] for _ in range(replicas)]  # where each begins, and its rows
        self._names = list(source.terms)
        try:
            self._deal(choose, kept)
        except BaseException:
            self.close()
            raise

    def _deal(self, choose: Callable[[Request, float], int], kept: Container[int]) -> None:
        source = self._source
        open_: list[list[array[Any]]] = [[array(kind) for kind in KINDS] for _ in self._blocks]
        numbers = {name: number for number, name in enumerate(self._names)}
        first = 0
        while True:
            columns = source.read(READ)
            if not columns[0]:
                break
            for number, row in enumerate(zip(*columns, strict=True), first):
                at, prompt, limit, output, name = row
                place = choose(source.request((number, *row)), at)
                if place not in kept:
                    continue
                arrivals, prompts, limits, outputs, classes = open_[place]
                arrivals.append(at)
                prompts.append(prompt)
                limits.append(limit)
                outputs.append(output)
                classes.append(numbers[name])
                if len(arrivals) >= BLOCK:
                    self._put_away(place, open_[place])
            first += len(columns[0])
        for place, rest in enumerate(open_):
            if rest[0]:
                self._put_away(place, rest)

    def _put_away(self, place: int, columns: Sequence[array[Any]]) -> None:
        self._blocks[place].append((self._file.tell(), len(columns[0])))
        for column in columns:
            self._file.write(column.tobytes())
            del column[:]

    def of(self, place: int) -> TokenColumns:
        """The requests of the replica at *place*, once."""
        source = self._source
        arrivals, prompts, limits, outputs = (self._column(place, number) for number in range(4))
        named = map(self._names.__getitem__, self._column(place, 4))
        terms = source.terms
        return TokenColumns(source.module, arrivals, prompts, limits, outputs, named, slo=terms[""].slo, terms=terms)

    def close(self) -> None:
        """Nothing is read any more."""
        self._file.close()

    def _column(self, place: int, number: int) -> Iterator[Any]:
        """A column of the replica at *place*, a block at a time."""
        before = sum(array(kind).itemsize for kind in KINDS[:number])
        for begins, rows in self._blocks[place]:
            column: array[Any] = array(KINDS[number])
            self._file.seek(begins + before * rows)
            column.frombytes(self._file.read(column.itemsize * rows))
            yield from column


def chooser(router: Router, states: Sequence[WorkerState]) -> Callable[[Request, float], int]:
    """What gives the place of the worker that *router* sends a request to."""
    places = {id(state): place for place, state in enumerate(states)}
    route = router.route

    def choose(request: Request, arrival: float) -> int:
        request.outputs = None  # as in a run of all: nobody sees how long outputs become
        return places[id(route(request, states, arrival))]

    return choose
