"""For NeuStream: what holds of those that wait, and which of the running must put out a token first, with lenience.

Both are kept between decisions, so that a decision costs by what has changed.
"""

from __future__ import annotations

from itertools import accumulate
from math import inf

from servetwin.core.llm import EarliestDue, TokenSLO, TokenTask
from servetwin.core.llm.orders import Tasks

#: What does not change of a task while it waits: its length; the tokens that it has pending; for how many tokens it
#: has lenience; when its first token is due, and its second, but for that; and the seconds of its prefill, alone.
Fact = tuple[int, int, int, float, float, float]


class Sums:
    """What holds of *order*, those that wait, the shortest first, whatever the time. *priced* are the lengths that a
    prefill is priced by (None: their own). *longest* are the most tokens that one has pending; from *spare* on the
    first of them is hopeless, but for its lenience, where that is for *lenient* tokens."""

    totals: list[int]
    squares: list[int]
    contexts: list[int] | None = None

    def __init__(self, order: list[TokenTask], facts: list[Fact], priced: list[int] | None, lenient: int) -> None:
        self.order, self.facts, self.priced = order, facts, priced
        self.longest, self.spare = 0, inf
        for _, pending, left, due, _, alone in facts:
            if pending > self.longest:
                self.longest = pending
            spare = due - alone if left == lenient else -inf
            if spare < self.spare:
                self.spare = spare

    def hopeless_from(self, beta: float) -> float:
        """When the first of them becomes hopeless where a decode step leaves *beta* seconds."""
        return min([due + left * beta - alone for _, _, left, due, _, alone in self.facts])

    def added_up(self) -> tuple[list[int], list[int], list[int]]:
        """Of the first, the first two and so on: the lengths as priced, their squares, and the lengths in all."""
        if self.contexts is None:
            lengths = [fact[0] for fact in self.facts]
            self.contexts = self.totals = list(accumulate(lengths))
            if self.priced is not None:
                self.totals = list(accumulate(self.priced))
            self.squares = list(accumulate([n * n for n in self.priced or lengths]))
        return self.totals, self.squares, self.contexts


class NextTokens:
    """By the deadlines of *slo*; each of the first *steps* tokens that a request has not generated yet adds *beta*
    seconds, which may be another number at each decision. *room*: what is kept goes by so much less where that is
    negative."""

    def __init__(self, slo: TokenSLO, steps: int, room: float) -> None:
        self.slo, self.steps, self.room = slo, steps, room
        self.first = EarliestDue(self._due, self._growth)
        self.lines: dict[TokenTask, tuple[float, float, float]] = {}  # first deadline, slope, bend
        self.beta = self.low = 0.0  # now, and what is kept goes by

    def soonest(self, running: Tasks, beta: float, since: float) -> float:
        """When the first of the next tokens must be out; if one had to be before *since*, the time of any such."""
        if len(self.lines) > 2 * len(running) + 64:
            self.lines = {task: self.lines[task] for task in running if task in self.lines}
        if beta < self.low or self.low < min(0.0, beta) - 4 * self.room:
            self.low = min(0.0, beta - self.room)
            self.first.clear()
        self.beta = beta
        return self.first.earliest(running, since)

    def due(self, task: TokenTask) -> float:
        """When the next token of *task* must be out."""
        return self._due(task)[0]

    def _due(self, task: TokenTask) -> tuple[float, float]:
        """Likewise, and by the smaller number: by the closed form of the deadlines, written out."""
        line = self.lines.get(task)
        if line is None:
            own = self.slo.for_task(task)
            slope, bend = own.decode_scale * (own.d0 + own.d1 * task.prompt), 0.5 * own.decode_scale * own.d1
            line = self.lines[task] = (self.slo.deadline(task, 1), slope, bend)
        first, slope, bend = line
        g = task.generated
        due = first + g * (slope + bend * (g + 1))
        left = self.steps - g
        return (due + left * self.beta, due + left * self.low) if left > 0 else (due, due)

    def _growth(self, task: TokenTask) -> float:
        """By how much the smaller one grows at least with a token."""
        self._due(task)
        _, slope, bend = self.lines[task]
        return slope + 2 * bend * (task.limit + 1 if bend < 0 else 1)
