"""What ran when in a run of the test kit, and the schedule as text: a line per request, a column per stretch of time.

``.`` it waits, ``#`` it is computed, ``-`` it has begun and is not computed just now, ``P`` a prompt is computed,
``d`` a token comes out, ``!`` it loses its memory, ``x`` it is given up; blank before it comes and after its end.
``|`` on the line after its end is its deadline where that was missed. In a column in which several things happen
the one that is rarer is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from types import EllipsisType

from .jobs import MODULE

#: What is drawn over what.
RANK = " .-#dP!x"
#: Lines that are drawn at most; of more requests those are left out that ended in time.
MOST = 24


@dataclass(frozen=True)
class Bar:
    """What one worker ran at a stretch: from *start* to *end* (seconds), *run* the ids of its batch in order.

    Of an engine's step *prefill* holds (id, tokens), *decode* the ids of those that put out a token, *preempted*
    those that lost their memory for it; *run* are the ids of all that it computes. At a group of devices *devices*
    are those that it ran on.
    """

    worker: str
    start: float
    end: float
    run: tuple[int, ...]
    prefill: tuple[tuple[int, int], ...] = ()
    decode: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()
    devices: tuple[int, ...] = ()


@dataclass
class End:
    """How a request ended: its *outcome* ("met", "late", "dropped" or "failed"), and *at* which time (seconds)."""

    arrival: float
    deadline: float
    outcome: str
    at: float


@dataclass
class Played:
    """What ran when: *bars* in the order in which they began, *ends* by the id of the request."""

    bars: list[Bar] = field(default_factory=list)
    ends: dict[int, End] = field(default_factory=dict)
    sent: dict[int, tuple[float, float]] = field(default_factory=dict)  # arrival and deadline by id

    @property
    def batches(self) -> list[list[int]]:
        """The ids of each batch of the worker under test, in order."""
        return [list(bar.run) for bar in self.bars if bar.worker == MODULE]

    @property
    def outcomes(self) -> list[str]:
        """How each request ended, in the order of their ids."""
        return [self.ends[number].outcome for number in sorted(self.ends)]

    @property
    def met(self) -> int:
        """How many were done in time."""
        return self.outcomes.count("met")

    def expect(self, *batches: Sequence[int] | EllipsisType) -> None:
        """Raise `AssertionError`, with the schedule drawn as text, unless the worker's batches begin like this.

        Each is a list of ids, in the batch's order; ``...`` stands for any number of batches. What comes after the
        last one named may be anything.
        """
        found = self.batches
        if not _begins(found, batches):
            wanted = " ".join("..." if each is ... else str([*each]) for each in batches)
            told = " ".join(map(str, found[: len(batches) + 3]))
            raise AssertionError(f"expected batches {wanted}\n   but there were {told}\n\n{self.drawn()}")

    def drawn(self, width: int = 72) -> str:
        """The schedule as text, a line per request."""
        return drawn(self, width)

    def __str__(self) -> str:
        return self.drawn()


def _begins(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int] | EllipsisType]) -> bool:
    if not wanted:
        return True
    first = wanted[0]
    if isinstance(first, EllipsisType):
        return any(_begins(found[n:], wanted[1:]) for n in range(len(found) + 1))
    return bool(found) and [*found[0]] == [*first] and _begins(found[1:], wanted[1:])


def drawn(played: Played, width: int = 72) -> str:
    """What *played* ran, in lines that are about *width* wide."""
    if not played.sent:
        return "(no requests)"
    ends = [end.at for end in played.ends.values()] + [bar.end for bar in played.bars]
    first = min(arrival for arrival, _ in played.sent.values())
    last = max([*ends, *[arrival for arrival, _ in played.sent.values()], first])
    columns = max(10, width - 24)
    unit = (last - first) / columns or 1.0

    def column(when: float) -> int:
        return max(0, min(columns - 1, int((when - first) / unit)))

    numbers = sorted(played.sent)
    left_out, troubled = 0, list[int]()
    if len(numbers) > MOST:
        troubled = [n for n in numbers if n not in played.ends or played.ends[n].outcome != "met"]
        kept = sorted([*troubled, *[n for n in numbers if n not in set(troubled)]][:MOST])
        left_out, numbers = len(numbers) - len(kept), kept
    head = f"{first:.6g} s"
    lines = ["request ".rjust(9) + head + f"{last:.6g} s".rjust(columns - len(head))]
    lines += [_line(played, number, columns, column) for number in numbers]
    if left_out:
        lines.append(f"          ({left_out} more{'' if len(troubled) > MOST else ', met'})")
    lines.append("          . waits  # computed  - paused  P prompt  d token  ! preempted  x dropped  | deadline")
    return "\n".join(line.rstrip() for line in lines)


def _line(played: Played, number: int, columns: int, column: object) -> str:
    assert callable(column)
    cells = [" "] * columns
    arrival, deadline = played.sent[number]
    end = played.ends.get(number)
    over = end.at if end is not None else inf
    begun = min((bar.start for bar in played.bars if number in bar.run), default=inf)

    def put(start: float, stop: float, sign: str) -> None:
        if stop < start:
            return
        for at in range(column(start), column(stop) + 1):
            if RANK.index(sign) > RANK.index(cells[at]):
                cells[at] = sign

    until = over if over < inf else max([bar.end for bar in played.bars], default=arrival)
    put(arrival, min(begun, until), ".")
    put(begun, until, "-")
    for bar in played.bars:
        if number in bar.preempted:
            put(bar.start, bar.start, "!")
        if number in bar.run:
            sign = "P" if number in [n for n, _ in bar.prefill] else "d" if bar.decode or bar.prefill else "#"
            put(bar.start, bar.end - (bar.end - bar.start) * 1e-6, sign)
    if end is not None and end.outcome == "dropped":
        put(end.at, end.at, "x")
    if end is not None and end.outcome != "met" and deadline < inf and cells[column(deadline)] in " .-#d":
        cells[column(deadline)] = "|"
    told = "" if end is None else end.outcome
    return f"{number:7d}  {''.join(cells)} {told or 'never ended'}"
