"""Several models in the memory of one card: which of them are there, and what it takes to bring one in.

Such a card computes one batch at a time, of whichever of its models. A batch of a model whose weights are not there
waits until they are: others that may go make room, least recently used first, and the weights come over from the
host at a stated bandwidth, while the card computes nothing. Whose oldest request came first is next, whatever is
there, but a model that came stays for a stated time as long as it has work. Weights that go are dropped: the host has
them too. (Least recently used: Sleator and Tarjan, "Amortized Efficiency of List Update and Paging Rules",
Communications of the ACM 28, 1985.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from servetwin.core import Worker
from servetwin.core.arithmetic import float_sum

from .time.calendar import NEVER, Calendar, Timer

#: Runs a batch, and calls what is given with it when it is over.
Run = Callable[[Any, Callable[[Any], None]], None]


@dataclass(frozen=True)
class CardMemory:
    """*room* bytes hold the weights of some models, by name: *bytes* of each, which take *seconds* to come. Those in
    *loaded* are there when the run begins, those in *pinned* never go, and what came stays for *stay* seconds."""

    room: float
    bytes: Mapping[str, float]
    seconds: Mapping[str, float]
    loaded: tuple[str, ...] = ()
    pinned: frozenset[str] = frozenset()
    stay: float = 0.0


class Swap(NamedTuple):
    """The weights of *model* come to *card* from *start* to *end* (seconds); *gone* are those that made room."""

    card: str
    model: str
    start: float
    end: float
    gone: tuple[str, ...]


class _Asked(NamedTuple):
    """*worker* asks for the device, to run *batch*."""

    worker: Worker
    batch: Any
    run: Run
    done: Callable[[Any], None]


@dataclass
class Card:
    """The card called *name*, with that *memory*; the devices of workers are models in it. *hear* is told of each
    swap when it begins."""

    calendar: Calendar
    name: str
    memory: CardMemory
    hear: Callable[[Swap], None]
    there: dict[str, None] = field(init=False)  #: the models that are there, least recently used first
    _asked: list[_Asked] = field(default_factory=list)
    _busy: bool = False  # a batch or a swap is under way
    _workers: dict[str, list[Worker]] = field(default_factory=dict)  # by model
    _until: float = 0.0  # the model that came last stays until then
    _last: str = ""
    _timer: Timer | None = None

    def __post_init__(self) -> None:
        self.there = dict.fromkeys(self.memory.loaded)

    def gate(self, worker: Worker, run: Run) -> Run:
        """*run*, which computes batches of *worker*, when the device is free and the worker's weights are there."""
        self._workers.setdefault(worker.device, []).append(worker)

        def ask(batch: Any, done: Callable[[Any], None]) -> None:
            batch.times = 1  # others may want the device after each iteration
            self._asked.append(_Asked(worker, batch, run, done))
            self._next()

        return ask

    def _next(self) -> None:
        """Let the next batch begin, or its weights come, if the device is free."""
        if self._busy or not self._asked:
            return
        asked = self._chosen()
        if asked is None:
            self._ring(self._until)
            return
        self._busy = True
        if asked.worker.device in self.there:
            self._begin(asked)
        else:
            self._load(asked)

    def _chosen(self) -> _Asked | None:
        """Which of those that ask is next; None: the model that came last stays, and asks again any time."""
        asked = min(self._asked, key=_oldest) if len(self._asked) > 1 else self._asked[0]
        last = self._last
        if self.calendar.now >= self._until or asked.worker.device in self.there:
            return asked
        stays = [other for other in self._asked if other.worker.device == last]
        if stays:
            return min(stays, key=_oldest)
        work = any(w.view.running or w.view.waiting or w.inbox for w in self._workers[last])
        return None if work else asked

    def _begin(self, asked: _Asked) -> None:
        self._asked.remove(asked)
        model = asked.worker.device
        self.there[model] = self.there.pop(model)
        asked.batch.start = self.calendar.now
        asked.run(asked.batch, lambda batch: self._over(asked, batch))

    def _over(self, asked: _Asked, batch: Any) -> None:
        self._busy = False
        asked.done(batch)
        self._soon()

    def _load(self, asked: _Asked) -> None:
        """The weights that *asked* wants come, and then its batch runs."""
        memory, now, name = self.memory, self.calendar.now, asked.worker.device
        gone = victims(memory, self.there, name)
        for model in gone:
            del self.there[model]
        end = now + memory.seconds[name]
        self.hear(Swap(self.name, name, now, end, gone))

        def come() -> None:
            self.there[name] = None
            self._last, self._until = name, end + memory.stay
            self._begin(asked)

        Timer(self.calendar, end, come)

    def _soon(self) -> None:
        """See who is next once all that happens now has: the worker whose batch is over may ask again."""
        if not self._busy and self._asked and not self.calendar.when_settled(self._next):
            self._next()

    def _ring(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(self.calendar, when, self._next)


def _oldest(asked: _Asked) -> float:
    """When the first came of the requests that its worker has."""
    view = asked.worker.view
    return min([task.request.arrival for tasks in (view.running, view.waiting) for task in tasks], default=NEVER)


def victims(memory: CardMemory, there: Iterable[str], name: str) -> tuple[str, ...]:
    """Which of the models that are *there*, least recently used first, go to make room for *name*.

    >>> memory = CardMemory(10.0, {"a": 4.0, "b": 3.0, "c": 3.0, "d": 5.0}, {}, pinned=frozenset("a"))
    >>> victims(memory, ["a", "b", "c"], "d")
    ('b', 'c')
    """
    gone = []
    free = memory.room - float_sum(memory.bytes[model] for model in there)
    for model in there:
        if free >= memory.bytes[name]:
            break
        if model not in memory.pinned:
            gone.append(model)
            free += memory.bytes[model]
    return tuple(gone)
