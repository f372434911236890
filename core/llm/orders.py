"""Orders that are kept from one decision to the next: who waits by rank, and who of the running is due first.

A policy that reorders asks the same of its queue at each step, while hardly anybody comes or goes. These two look at
what has changed since they were asked last: new ones stand at the end of `TokenView.waiting` and
`TokenView.running`, and preempted ones at the head of the former, so both are found without going through the rest.
They rest on nothing else that an engine does, so they serve views made by hand and real engines just as well.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any, Protocol

from .request import Ticks, TokenTask

#: (key, place among those of equal key, task)
Ranked = tuple[Any, int, TokenTask]


class Tasks(Protocol):
    """`TokenView.waiting`, or `TokenView.running`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[TokenTask]: ...
    def __reversed__(self) -> Iterator[TokenTask]: ...
    def __contains__(self, task: object, /) -> bool: ...


class WaitingOrder:
    """Those that wait, by a *key* that does not change while a task waits: with equal keys in the order of the queue.

    *entries* holds (key, place, task), the least first. It is up to date after `follow`, and not to be changed.
    Places grow along the queue: those that come have larger ones (up to *end*), and those that were preempted smaller
    ones (down to *first*) than all that were there. With *fixed* off the key may change; it is then asked anew of all
    at each `follow`. With *anywhere* on those that were preempted may stand behind others, as they do where an engine
    passes some over (`EngineLimits.passes_over`); each `follow` then looks at all that wait.

    >>> from servetwin.core.testing.by_hand import engine_view
    >>> view = engine_view(waiting=[300, 100, 200])
    >>> order = WaitingOrder(lambda task: task.prompt)
    >>> order.follow(view.waiting), [task.prompt for _, _, task in order.entries]
    (True, [100, 200, 300])
    >>> order.follow(view.waiting)
    False
    """

    def __init__(self, key: Callable[[TokenTask], Any], *, fixed: bool = True, anywhere: bool = False) -> None:
        self.key, self.fixed, self.anywhere = key, fixed, anywhere
        self.entries: list[Ranked] = []
        self.first, self.end = 0, 0  # the places that have been given are those from *first* on, up to *end*
        self._settled = (0, 0)
        self._known: dict[TokenTask, tuple[Ranked, int]] = {}  # with its preemptions: who comes back is new

    def follow(self, waiting: Tasks) -> bool:
        """Take note of who has come to *waiting*, and who has left; gives whether anybody has."""
        known = self._known
        if not self.fixed:
            self.entries = sorted([(self.key(task), place, task) for _, place, task in self.entries])
            self._known = known = {entry[2]: (entry, known[entry[2]][1]) for entry in self.entries}
        before, came = len(known), self._who_came(waiting)
        if not came and len(known) == before == len(waiting):
            return not self.fixed
        if len(came) == len(waiting):
            known.clear()
            self.entries.clear()
        else:
            for task in came:
                if task in known:
                    self._leaves(task)
            if len(known) + len(came) > len(waiting):
                self._look_for_leavers(waiting, len(known) + len(came) - len(waiting))
        self._place(came)
        if len(known) != len(waiting):  # somebody came, or stands, where nobody does in an engine
            known.clear()
            self.entries.clear()
            self._place([*waiting])
        return True

    def _who_came(self, waiting: Tasks) -> list[TokenTask]:
        """Those of *waiting* that are new, or were preempted since, in the order of the queue."""
        known = self._known
        if self.anywhere:
            for task in [task for task in known if task not in waiting]:
                self._leaves(task)
            return [task for task in waiting if (old := known.get(task)) is None or old[1] != task.preemptions]
        came: list[TokenTask] = []
        for task in reversed(waiting):
            found = known.get(task)
            if found is not None and found[1] == task.preemptions:
                break
            came.append(task)
        came.reverse()
        if len(came) < len(waiting):
            ahead = []
            for task in waiting:
                found = known.get(task)
                if found is not None and found[1] == task.preemptions:
                    break
                ahead.append(task)
            if ahead:
                came = ahead + came
        return came

    def rank_again(self, task: TokenTask) -> None:
        """The key of *task*, which waits, has changed."""
        entry, preemptions = self._known[task]
        self._leaves(task)
        entry = (self.key(task), entry[1], task)
        self._known[task] = entry, preemptions
        insort(self.entries, entry)

    def settle(self) -> None:
        """From now on all that wait stand in the queue by rank."""
        self._settled = self.first, self.end

    def queue(self) -> list[TokenTask]:
        """Those that wait, as `settle` left them: who has come since then stands behind them, in the order of the
        queue, or before them after a preemption. (So NeuStream's artifact, which re-orders the engine's queue.)"""
        first, end = self._settled
        ranked = [entry for entry in self.entries if first <= entry[1] < end]
        new = sorted([(place, task) for _, place, task in self.entries if not first <= place < end])
        ahead = [task for place, task in new if place < first]
        return [*ahead, *[task for _, _, task in ranked], *[task for place, task in new if place >= end]]

    def _place(self, came: Sequence[TokenTask]) -> None:
        """Rank those that *came*, in the order of the queue."""
        known, entries, key = self._known, self.entries, self.key
        back: list[TokenTask] = []
        for task in came:
            if task.preemptions:
                back.append(task)
            else:
                entry = (key(task), self.end, task)
                self.end += 1
                known[task] = entry, 0
                insort(entries, entry)
        for task in reversed(back):
            self.first -= 1
            entry = (key(task), self.first, task)
            known[task] = entry, task.preemptions
            insort(entries, entry)

    def _leaves(self, task: TokenTask) -> None:
        entry, _ = self._known.pop(task)
        del self.entries[bisect_left(self.entries, entry)]

    def _look_for_leavers(self, waiting: Tasks, many: int) -> None:
        """So *many* of those that waited do not any more: for the most part the first ones."""
        gone = []
        for _, _, task in self.entries:
            if task not in waiting:
                gone.append(task)
                if len(gone) == many:
                    break
        for task in gone:
            self._leaves(task)


class EarliestDue:
    """Which of the running is due first.

    *due* gives, of a task, the time at which it is due, and one before that which changes with the tokens of the task
    only; *growth* by how much the latter grows at least with each token (seconds). Where requests decode together, an
    engine counts the tokens of all in one: so it is known without a look at each who may be due first, and few are
    looked at in a call. Where an engine counts apart, all are.

    Where it is asked since a time, those due before that are passed over. *most*, by how much a time grows at most
    with each token, saves looking at each of them again; it is for policies that let all decode together, and whose
    *due* gives the same time twice.

    >>> from servetwin.core.testing.by_hand import engine_view
    >>> view = engine_view(running=[(300, 5), (100, 2)])
    >>> first = EarliestDue(lambda task: (0.1 * task.generated,) * 2, lambda task: 0.1)
    >>> first.earliest(view.running), first.earliest(view.running, since=0.3)
    (0.2, 0.5)
    """

    def __init__(
        self,
        due: Callable[[TokenTask], tuple[float, float]],
        growth: Callable[[TokenTask], float],
        most: Callable[[TokenTask], float] | None = None,
    ) -> None:
        self.due, self.growth, self.most = due, growth, most
        #: (what it is due after, were no token ever counted; a number to tell them apart; task)
        self._heap: list[tuple[float, int, TokenTask]] = []
        #: Of those that were due before the time since when was asked, the latest due first: likewise, less.
        self._passed: list[tuple[float, int, TokenTask]] = []
        self._apart: list[TokenTask] = []  # who does not decode with the others
        self._known: dict[TokenTask, int] = {}  # with its preemptions
        self._number = 0
        self._least, self._most = inf, -inf  # of all growths
        self._ticks = Ticks()  # the engine's count of the tokens of all

    def clear(self) -> None:
        """Forget what was seen: times have changed by more than tokens."""
        self._heap.clear()
        self._passed.clear()
        self._apart.clear()
        self._known.clear()

    def earliest(self, running: Tasks, enough: float = -inf, *, since: float = -inf) -> float:
        """The earliest time that is not before *since*, infinite if there is none; any time before *enough*, if there
        is one."""
        self._follow(running)
        if self._passed:
            self._look_at_passed(since)
        heap, due, best = self._heap, self.due, inf
        seen: list[tuple[float, TokenTask]] = []
        if self._apart:
            for task in self._apart:
                if task in running:
                    time, before = due(task)
                    seen.append((before, task))
                    if since <= time < best:
                        best = time
            self._apart = []
        on = self._ticks.count * self._least
        # (What a time loses by rounding is far less than what is added here.)
        while heap and best >= enough and heap[0][0] + on < best + 1e-9 + 1e-13 * abs(best):
            task = heappop(heap)[2]
            if task in running:
                time, before = due(task)
                if time < since and self.most is not None:
                    self._keep(self._passed, self._ticks.count * self._most - time, task)
                    continue
                seen.append((before, task))
                if since <= time < best:
                    best = time
        for before, task in seen:
            self._keep(heap, before - on, task)
        return best

    def _look_at_passed(self, since: float) -> None:
        """Those that were passed over and may be due at *since* or later by now are as all others again."""
        on = self._ticks.count * self._most
        least = since - 1e-9 - 1e-13 * (abs(since) + abs(on))
        while self._passed and on - self._passed[0][0] >= least:
            task = heappop(self._passed)[2]
            self._keep(self._heap, self.due(task)[1] - self._ticks.count * self._least, task)

    def _keep(self, heap: list[tuple[float, int, TokenTask]], key: float, task: TokenTask) -> None:
        """*task*, which was looked at, stands in *heap* by *key*; with those that are looked at anyway, if it does
        not decode with the others."""
        if task.ticks is None:
            self._apart.append(task)
        else:
            self._number += 1
            heappush(heap, (key, self._number, task))

    def _follow(self, running: Tasks) -> None:
        known = self._known
        if len(known) > 2 * len(running) + 64:
            self.clear()
        # (Fewer known than there are: somebody has come where nobody does in an engine.)
        apart = len(known) < len(running)
        for task in reversed(running):
            if known.get(task) == task.preemptions:
                if apart:
                    continue
                break
            known[task] = task.preemptions
            self._apart.append(task)
            if task.ticks is not None:
                self._ticks = task.ticks
            least, most = self.growth(task), self.most(task) if self.most is not None else -inf
            if least < self._least or most > self._most:
                self.clear()
                self._least, self._most = min(least, self._least), max(most, self._most)
                self._follow(running)
                return
