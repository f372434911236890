"""The simulated executor: workers are lanes on shared devices, and a batch takes as long as was measured.

One calendar event per batch, not per request or iteration; where a policy allows it (`Repeat`) a run of iterations
between two other events is one event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from servetwin.core import BadInput, Batch, Task, Worker
from servetwin.core.arithmetic import float_sum
from servetwin.core.groups.group_worker import GroupWorker
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.serving.pool import Pool

from .batch_lane import Lane, Rates
from .faulty_lanes import FaultyAheadLane, FaultyLane, FaultyTokenLane
from .group_lane import GroupLane
from .llm.async_lane import AheadLane
from .llm.lane import TokenLane, TokenTiming
from .llm.look_ahead_lane import LookAheadLane
from .llm.pipeline_lane import PipelineLane
from .llm.shared_lane import EngineRates, SharedTokenLane
from .pool_lane import CallTimes, PoolLane
from .time.calendar import Calendar, Timer
from .time.out_of_range import Watch
from .time.timing import Timing
from .transports import Delay
from .weights import Card, CardMemory, Swap


class SimExecutor:
    """Runs batches in simulated time. *timing* gives each worker its `Timing`, a group of devices one by degree.

    *contention* tells, for a pair (worker, other worker on the same device), at which `Rates` the first gets on while
    the second is busy; pairs that are not named do not disturb each other. Longer keys (worker, others...) are for
    several others that are busy at once, whose rates multiply where there is none. *delays* holds the transport
    between two workers by name (None: the client); what is not named takes no time. *calls* gives the times of pools
    of threads, by name. *engines* gives the rates of engines that share a device with another one, by name. *shared*
    names the pairs that share a device in time: invariant 14 holds what they compute to the time that passes.
    """

    starts = False  #: workers that failed are back when that was said (`core.faults.faulty_executor.Breakable`)

    def __init__(
        self,
        timing: Callable[[Worker], Timing | TokenTiming | dict[int, Timing]],
        *,
        contention: Mapping[tuple[str, ...], Rates] | None = None,
        delays: Mapping[tuple[str | None, str], Delay] | None = None,
        calls: Mapping[str, CallTimes] | None = None,
        engines: Mapping[str, EngineRates] | None = None,
        shared: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.watch = Watch()  # what goes beyond what was measured
        self.calendar = Calendar()
        self.now = self.calendar.clock
        self.when_settled = self.calendar.when_settled
        self._timing = timing
        self._contention = dict(contention or {})
        self._delays = dict(delays or {})
        self._calls = dict(calls or {})
        self._engines = dict(engines or {})
        self._shared: dict[str, SharedTokenLane] = {}  # by device
        self._in_time = frozenset(shared)
        self._lanes: dict[Worker, Lane] = {}
        self._runs: dict[Worker, Callable[[Any, Any], None]] = {}
        self._ahead: dict[str, LookAheadLane] = {}  # by the worker's name
        #: Whether engines may take steps on end beyond other engines' (`servetwin.sim.llm.look_ahead_lane`); to be
        #: set before anything runs.
        self.looks_ahead = False
        #: Whether workers may fail, slow down and stand still (`abort`, `set_slowdown`); to be set before anything
        #: runs.
        self.breaks = False
        self.swaps: list[Swap] = []  #: of weights, on cards that several models share
        self._cards: dict[str, Card] = {}  # by the device of each of the models

    def share_card(self, name: str, memory: CardMemory) -> None:
        """The devices that *memory* has the weights of are models on one card. Before anything runs."""
        card = Card(self.calendar, name, memory, self.swaps.append)
        self._cards |= dict.fromkeys(memory.bytes, card)

    @property
    def cards(self) -> bool:
        """Whether models share a card."""
        return bool(self._cards)

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        self.runner(worker)(batch, done)

    def runner(self, worker: Worker) -> Callable[[Any, Any], None]:
        """What runs the batches of *worker*, given each and whom to call when it is done."""
        run = self._runs.get(worker)
        if run is None:
            run = self._place(worker)
            if worker.device in self._cards:
                run = self._cards[worker.device].gate(worker, run)
            self._runs[worker] = run
        return run

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        if self._ahead:
            deliver = partial(self._bring, deliver)
        if self._delays and task.worker is not None:
            delay = self._delays.get((source.name if source else None, task.worker.name))
            seconds = delay(task) if delay is not None else 0.0
            if seconds > 0.0:
                Timer(self.calendar, self.calendar.now + seconds, partial(deliver, task))
                return
        deliver(task)

    def _bring(self, deliver: Callable[[Task], None], task: Task) -> None:
        """Let *task* come to its worker, whose engine may be ahead of time."""
        lane = self._ahead.get(task.worker.name) if task.worker is not None else None
        if lane is not None:
            lane.cut_short()
        deliver(task)

    def abort(self, worker: Worker) -> float:
        """As `servetwin.core.faults.faulty_executor.Breakable.abort`. Raises `BadInput` if that is of a kind that
        cannot fail."""
        return self._breakable(worker).abort()

    def set_slowdown(self, worker: Worker, factor: float) -> None:
        """As `servetwin.core.faults.faulty_executor.Breakable.set_slowdown`. Raises `BadInput` likewise."""
        self._breakable(worker).set_slowdown(factor)

    def start(self, worker: Worker, ready: Callable[[], None]) -> None:
        """As `servetwin.core.faults.faulty_executor.Breakable.start`: it is there at once."""
        ready()

    def _breakable(self, worker: Worker) -> FaultyLane | FaultyTokenLane | FaultyAheadLane:
        lane = getattr(self.runner(worker), "__self__", None)
        if not isinstance(lane, FaultyLane | FaultyTokenLane | FaultyAheadLane):
            right = "faults of engines, and of workers with batches"
            raise BadInput(f"{worker.name} is of a kind that cannot fail", right=right)
        return lane

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        now = self.calendar.now
        if when < now:
            raise BadInput(f"a call at {when:g} s, but it is {now:g} s already", right="a time to come")
        return Timer(self.calendar, when, callback)

    def token_lane(self, worker: TokenWorker) -> TokenLane:
        """Where the steps of that engine run."""
        lane = getattr(self.runner(worker), "__self__", None)
        assert isinstance(lane, TokenLane)
        return lane

    def ahead_lane(self, worker: TokenWorker) -> AheadLane | None:
        """Likewise, of an engine that decides ahead and has its device for itself; None if it has not."""
        lane = getattr(self.runner(worker), "__self__", None)
        return lane if isinstance(lane, AheadLane) else None

    def undisturbed(self, worker: TokenWorker) -> bool:
        """Whether requests come to that engine without delay, and no other engine slows its steps down."""
        return not self._delays and worker.name not in self._engines and worker.device not in self._cards

    def shares(self) -> Iterator[tuple[list[str], float]]:
        """Those that are busy and share a device in time with each other: their names, and their rates together."""
        if not self._in_time:
            return
        going = {lane.worker.name: lane.device_rate for lane in self._lanes.values() if lane.busy}
        for worker, run in self._runs.items():
            engine = getattr(run, "__self__", None)
            if isinstance(engine, SharedTokenLane) and engine.load is not None:
                going[worker.name] = engine.rate
        for first in going:
            group = [first]
            for name in going:
                if all((name, other) in self._in_time or (other, name) in self._in_time for other in group):
                    group.append(name)
            if len(group) > 1:
                yield group, float_sum(going[name] for name in group)

    def run_until_idle(self) -> None:
        """Let time pass until nothing is left to happen."""
        self.calendar.run()

    def _place(self, worker: Worker) -> Callable[[Any, Any], None]:
        """What runs the batches of *worker*."""
        if isinstance(worker, Pool):
            return PoolLane(self.calendar, self._calls[worker.name]).run
        timing = self._timing(worker)
        if isinstance(worker, GroupWorker):
            assert isinstance(timing, dict)
            return GroupLane(self.calendar, timing, worker.change or 0.0).run
        if isinstance(worker, TokenWorker):
            assert isinstance(timing, TokenTiming)
            if worker.name in self._engines:
                return self._share(worker, timing).run
            if worker.host is not None and worker.stages is not None:
                return PipelineLane(self.calendar, timing, worker.host, worker.stages).run
            if worker.host is not None and worker.host.ahead:
                return (FaultyAheadLane if self.breaks else AheadLane)(self.calendar, timing, worker.host).run
            if self.breaks:
                return FaultyTokenLane(self.calendar, timing).run
            if self.looks_ahead and worker.device not in self._cards:
                lane = self._ahead[worker.name] = LookAheadLane(self.calendar, timing)
                return lane.run
            return TokenLane(self.calendar, timing).run
        assert not isinstance(timing, TokenTiming | dict)
        return self._add_lane(worker, timing).run

    def _share(self, worker: TokenWorker, timing: TokenTiming) -> SharedTokenLane:
        host = worker.host if worker.host is not None and worker.host.ahead else None
        lane = SharedTokenLane(self.calendar, timing, self._engines[worker.name], host)
        neighbour = self._shared.setdefault(worker.device, lane)
        if neighbour is not lane:
            lane.neighbour, neighbour.neighbour = neighbour, lane
        return lane

    def _add_lane(self, worker: Worker, timing: Timing) -> Lane:
        lane = (FaultyLane if self.breaks else Lane)(self.calendar, worker, timing)
        for other in self._lanes.values():
            if other.worker.device == worker.device:
                to, back = (worker.name, other.worker.name), (other.worker.name, worker.name)
                if to in self._contention or back in self._contention:
                    lane.rates[other] = self._contention.get(to, (1.0, 1.0))
                    other.rates[lane] = self._contention.get(back, (1.0, 1.0))
                    by_size = any(not isinstance(r, float) for r in (*lane.rates[other], *other.rates[lane]))
                    lane.by_size = lane.by_size or by_size
                    other.by_size = other.by_size or by_size
        self._lanes[worker] = lane
        for every in self._lanes.values():
            every.known.clear()  # they may have a neighbour more
        for key, rates in self._contention.items():
            if len(key) > 2 and worker.name in key:
                here = {own.worker.name: own for own in self._lanes.values() if own.worker.device == worker.device}
                if all(name in here for name in key):
                    here[key[0]].together[frozenset(here[name] for name in key[1:])] = rates
        return lane
