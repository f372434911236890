"""The real executor: an event loop on one thread, with batches on streams (GPU), threads (CPU) or in other processes.

On a GPU the loop never sleeps: it polls the streams, the timers and the client in turn, so that an iteration follows
the one before within a fraction of a millisecond. On the CPU it sleeps until something happens.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import NoReturn

from servetwin.core import BadInput, Batch, Request, ServeTwinError, ServingLoop, Task, Worker
from servetwin.core.errors import PolicyFault
from servetwin.core.llm import TokenRequest
from servetwin.core.serving.pool import Pool

from .answer import Answer, Standstill
from .client import END, PACKET, Client
from .cpu_affinity import PinnedCore
from .diffusion.device_slots import DeviceSlots, HandOver
from .diffusion.lanes import Lane, Sink, StreamLane, ThreadLane
from .diffusion.process_lane import ProcessLane, RemoteSlots, Started
from .tools.script_tool import Call, ScriptTool, ToolLane

#: Seconds from planning a run until its clock stands at 0: the client must be ready by then.
LEAD = 0.05
#: Polls of the streams between two looks at the client.
POLLS = 4
#: Of so many hand-overs between two devices it is kept how long they took.
TIMED = 10_000


class Timer:
    """A call that is still to come."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class RealExecutor:
    """Runs batches on the slots of *by_device* (by the worker's device), and calls of *tools* (by the pool's name).

    `play` serves one run. With *pinned* the thread that polls a GPU moves to an undisturbed core. Workers in
    processes of their own may fail: it is a `servetwin.core.faults.faulty_executor.Breakable`.
    """

    starts = True

    def __init__(
        self,
        by_device: Mapping[str, DeviceSlots | RemoteSlots],
        sink: Sink | None = None,
        tools: Mapping[str, ScriptTool] | None = None,
        pinned: PinnedCore | None = None,
    ) -> None:
        self.by_device = by_device
        self.tools = dict(tools or {})
        self.pools: dict[Worker, ToolLane] = {}
        self.sink = sink
        self.gpu = any(slots.gpu for slots in by_device.values())
        self.pinned = pinned if self.gpu else None
        self.zero = time.monotonic()
        self.lanes: dict[Worker, Lane] = {}
        # By the names of workers, which is what a task tells of where it is served.
        self._named: dict[str, Lane] = {}
        self._tooled: set[str] = set()
        self._loop: ServingLoop | None = None
        self.busy: list[Lane] = []
        self.heard: SimpleQueue[tuple[object, object]] = SimpleQueue()
        self.timers: list[tuple[float, int, Timer]] = []
        self.ended: list[int] = []
        self._number = itertools.count()
        self.running = 0
        self.still: dict[str, int] = {}  # engines whose policies wait for arrivals -> tasks that they hold
        self.lateness: list[float] = []
        self.spare: Callable[[], None] = _nothing  # called when nothing has happened, while lanes compute
        self._waiting: deque[Task] = deque()  # not prepared yet
        # Transfers, while a lane goes on.
        self._outbox: list[tuple[Worker | None, Task, Callable[[Task], None]]] | None = None
        self._listens = False  # whether something is heard of beside what is polled
        self.hand_overs: dict[tuple[str, str], list[HandOver]] = {}  # from which device to which
        self.broken: Worker | None = None  # whose lane ended the run
        self.restarts: dict[str, list[float]] = {}  # seconds until each could serve, by worker

    # -- what the loop calls ---------------------------------------------------------------------------------------

    def now(self) -> float:
        return time.monotonic() - self.zero

    def add(self, worker: Worker) -> None:
        """Make the lane of *worker*, warmed up. Raises `BadInput` if it is a pool and there is no tool for it."""
        if isinstance(worker, Pool):
            if worker.name not in self.tools:
                raise BadInput(
                    f"there is no real tool for the pool {worker.name}", right="scripts, in the experiment"
                )
            self.pools[worker] = ToolLane(worker, self.tools[worker.name], self.heard)
            self._tooled.add(worker.name)
            self._listens = True
            return
        slots = self.by_device[worker.device]
        if isinstance(slots, RemoteSlots):
            self.lanes[worker] = ProcessLane(slots, worker, self.heard, self.sink)
        elif slots.gpu:
            self.lanes[worker] = StreamLane(slots, worker, self.sink)
        else:
            self.lanes[worker] = ThreadLane(slots, worker, self.heard, self.sink)
        self._listens = self._listens or not self.lanes[worker].polled
        self._named[worker.name] = self.lanes[worker]

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        self.running += 1
        if worker in self.pools:
            self.pools[worker].start(batch, done)
            return
        lane = self.lanes[worker]
        if lane.polled:
            self.busy.append(lane)
        try:
            lane.start(batch, done)
        except Exception:
            self.broken = worker
            raise

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        if self._outbox is not None and (source is None or task.worker != source.place):
            self._outbox.append((source, task, deliver))
        else:
            self._deliver(source, task, deliver)

    def _deliver(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        if source is not None:
            self._hand_over(source, task)
        deliver(task)
        lane = self._named.get(task.worker.name) if task.worker is not None else None
        if lane is not None and lane.polled and task.started is None:
            self._waiting.append(task)

    def _hand_over(self, source: Worker, task: Task) -> None:
        """Bring what *task*, which comes from *source*, needs to the device on which it is served next."""
        target = task.worker
        if target is None or target.name in self._tooled or target.device not in self.by_device:
            return
        there = self.by_device[target.device]
        # What comes from a tool is still where it was before the tool.
        holders = self.by_device if source in self.pools else (source.device,)
        for name in holders:
            here = self.by_device[name]
            if here is not there and task.id in here.progress:
                assert isinstance(here, DeviceSlots)
                assert isinstance(there, DeviceSlots)
                way = here.hand_over(task.id, there)  # nobody leaves a batch before it is over
                timed = self.hand_overs.setdefault((name, target.device), [])
                if len(timed) < TIMED:
                    timed.append(way)

    def _finish(self, lane: Lane) -> None:
        """The batch of *lane* is over. Its next one is launched first, and then those who left it are handed on: the
        host takes a while to launch what they go to, for which the device would stand still."""
        outbox: list[tuple[Worker | None, Task, Callable[[Task], None]]] = []
        self._outbox = outbox
        try:
            lane.finish()
        finally:
            self._outbox = None
        if not outbox:
            return
        assert self._loop is not None
        self._loop.hold()  # they are there together when somebody decides
        for source, task, deliver in outbox:
            self._deliver(source, task, deliver)
        self._loop.let_decide()

    def _prepare(self) -> None:
        """Something for a request that waits, while the lanes are busy."""
        task = self._waiting.popleft()
        if task.worker is not None and task.started is None and task.request.outcome is None:
            self._named[task.worker.name].prepare(task)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self.timers, (when, next(self._number), timer))
        return timer

    def when_settled(self, callback: Callable[[], None]) -> bool:
        return False

    # -- what faults ask for ------------------------------------------------------------------------------

    def abort(self, worker: Worker) -> float:
        """Kill the process of *worker*; gives when its batch began (now, if it has none)."""
        lane = self._of_its_own(worker)
        began = self.now()
        if lane.batch is not None:
            began = lane.batch.start
            self.running -= 1
            if lane.polled:
                self.busy.remove(lane)
        lane.kill()
        return began

    def set_slowdown(self, worker: Worker, factor: float) -> None:
        """Let the process of *worker* wait after each step, or (infinite) stop it."""
        self._of_its_own(worker).slow(factor)

    def start(self, worker: Worker, ready: Callable[[], None]) -> None:
        """Start the process of *worker* again, which was killed; call *ready* when it is warmed up."""
        lane = self._of_its_own(worker)
        self.lanes[worker] = self._named[worker.name] = lane.remote.begin_again(lane, ready)
        self._listens = True

    def _of_its_own(self, worker: Worker) -> ProcessLane:
        lane = self.lanes[worker]
        assert isinstance(lane, ProcessLane)  # the server has seen to that
        return lane

    def _is_started(self, what: Started, problem: object) -> None:
        if what.lane.dead:
            return
        if isinstance(problem, BaseException):
            self.broken = what.lane.worker
            raise problem
        what.lane.starts = False
        self.restarts.setdefault(what.lane.worker.name, []).append(what.seconds)
        what.ready()

    # -- a run ------------------------------------------------------------------------------------------

    def forget(self, request: int) -> None:
        """*request* has ended: its slot is free as soon as no batch works on it."""
        self.ended.append(request)

    def play(self, loop: ServingLoop, requests: Sequence[Request], stop_after: float | None = None) -> None:
        """Send *requests* (by arrival) through *loop* on their clock; return when all have ended.

        A request's arrival becomes the time at which it was sent, its SLO stays. With *stop_after* the run is
        stopped so many seconds after the last was sent. Raises whatever breaks the run.
        """
        client = Client([r.arrival for r in requests])
        try:
            with undisturbed(self.gpu, self.pinned):
                self.zero = time.monotonic() + LEAD
                client.begin(self.zero)
                self._go(loop, client.channel, _Inlet(loop, requests, self, stop_after))
        finally:
            client.close()

    def measured_run(self, loop: ServingLoop, requests: Sequence[Request]) -> None:
        """As `play`, but without a client: timers of this executor send the requests, exactly as they are."""
        inlet = _Inlet(loop, requests, self, None)
        silent, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with silent, ours, undisturbed(self.gpu, self.pinned):
            self.zero = time.monotonic()
            for request in requests:
                self.call_at(request.arrival, lambda r=request: loop.arrive(r))  # type: ignore[misc]
            self.call_at(max(r.arrival for r in requests), inlet.close)
            self._go(loop, ours, inlet)

    def _go(self, loop: ServingLoop, channel: socket.socket, inlet: _Inlet) -> None:
        self._loop = loop
        (self._spin if self.gpu else self._wait)(loop, channel, inlet)

    def close(self) -> None:
        """End the lanes."""
        for lane in self.lanes.values():
            lane.close()
        for pool in self.pools.values():
            pool.close()
        self.lanes.clear()
        self._named.clear()
        self.pools.clear()

    def _spin(self, loop: ServingLoop, channel: socket.socket, inlet: _Inlet) -> None:
        """The event loop with a GPU: polls everything in turn."""
        channel.setblocking(False)
        busy, timers, recv, pinned = self.busy, self.timers, channel.recv, self.pinned
        while not (inlet.closed and not self.running and not loop.live):
            for _ in range(POLLS):
                for lane in busy:
                    try:
                        over = lane.is_over()
                    except Exception:
                        self.broken = lane.worker
                        raise
                    if over:
                        busy.remove(lane)
                        self.running -= 1
                        self._finish(lane)
                        self._free()
                        if pinned is not None:
                            pinned.look()  # what has just been launched is not over for a while
                        break  # the list has changed
            if timers and timers[0][0] <= self.now():
                self._ring()
            if self._listens and not self.heard.empty():
                what, problem = self.heard.get()
                if isinstance(what, Started):
                    self._is_started(what, problem)
                else:
                    assert isinstance(what, Call | Lane)
                    self._over(what, problem)
            try:
                packet = recv(PACKET.size)
            except BlockingIOError:
                if self._waiting:
                    self._prepare()
                else:
                    self.spare()
                    if pinned is not None and not busy:
                        pinned.look()
                    idle = inlet.closed and not self.running and loop.live and not timers
                    if idle and self.heard.empty() and not self._starts():
                        self._tell_stuck(loop)
                continue
            inlet.take(packet)

    def _wait(self, loop: ServingLoop, channel: socket.socket, inlet: _Inlet) -> None:
        """The event loop without one: sleeps until something is heard or a timer is due."""
        threading.Thread(target=_listen, args=(channel, self.heard), name="client", daemon=True).start()
        while not (inlet.closed and not self.running and not loop.live):
            wait = max(0.0, self.timers[0][0] - self.now()) if self.timers else None
            moves = self.running > sum(self.still.values()) or self._waiting or not self.heard.empty()
            if wait is None and inlet.closed and not moves and not self._starts():
                self._tell_stuck(loop)
            try:
                what, problem = self.heard.get(timeout=wait)
            except Empty:
                self._ring()
                continue
            if isinstance(what, Lane | Call | Answer):
                self._over(what, problem)
                self.spare()
            elif isinstance(what, Standstill):
                what.finish()
            elif isinstance(what, Started):
                self._is_started(what, problem)
            elif isinstance(what, bytes):
                inlet.take(what)
            if self.timers and self.timers[0][0] <= self.now():
                self._ring()

    def _starts(self) -> bool:
        """Whether a worker is being started again."""
        return any(isinstance(lane, ProcessLane) and lane.starts for lane in self.lanes.values())

    def _tell_stuck(self, loop: ServingLoop) -> NoReturn:
        """Nothing is left to happen, and requests have not ended."""
        what = f"{len(loop.live)} requests never ended, though nothing was left to happen"
        held = loop.holders()
        raise PolicyFault(f"{what}; held by {held}") if held else ServeTwinError(what)

    def _over(self, what: Lane | Call | Answer, problem: object) -> None:
        """A lane's batch or a call is over."""
        if isinstance(what, Lane) and what.dead:
            return  # it was killed since
        self.running -= 1
        if isinstance(problem, BaseException):
            if isinstance(what, Lane):
                self.broken = what.worker
            raise problem
        self._finish(what) if isinstance(what, Lane) else what.finish()
        self._free()

    def _ring(self) -> None:
        """Make the calls that are due."""
        timers = self.timers
        while timers and timers[0][0] <= self.now():
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                callback()

    def _free(self) -> None:
        """Free the slots of requests that have ended, except those that a batch still works on."""
        if not self.ended:
            return
        flying: set[int] = set()
        for lane in self.lanes.values():
            if lane.batch is not None:
                flying.update(task.id for task in lane.batch.tasks)
        kept = []
        for request in self.ended:
            if request in flying:
                kept.append(request)
            else:
                for slots in self.by_device.values():
                    slots.release(request)
        self.ended = kept


def _nothing() -> None:
    pass


@contextlib.contextmanager
def undisturbed(gpu: bool, pinned: PinnedCore | None = None) -> Iterator[None]:
    """No garbage collection, which stops everything for milliseconds; on the CPU threads take turns more often. With
    *pinned* this thread goes to an undisturbed core.
    """
    interval = sys.getswitchinterval()
    gc.disable()
    if not gpu:
        sys.setswitchinterval(0.0005)
    if pinned is not None:
        pinned.enter()
    try:
        yield
    finally:
        if pinned is not None:
            pinned.leave()
        sys.setswitchinterval(interval)
        gc.enable()


class _Inlet:
    """Turns the client's packets into requests that arrive."""

    def __init__(
        self, loop: ServingLoop, requests: Sequence[Request], executor: RealExecutor, stop_after: float | None
    ) -> None:
        self.loop = loop
        self.requests = requests
        self.executor = executor
        self.stop_after = stop_after
        self.closed = False
        self.taken = 0
        loop.more_come = lambda: not self.closed

    def close(self) -> None:
        """Nothing more comes."""
        self.closed = True

    def take(self, packet: bytes) -> None:
        if not packet:
            if not self.closed:
                raise ServeTwinError(f"the client ended after {self.taken} of {len(self.requests)} requests")
            return
        number, sent = PACKET.unpack(packet)
        executor = self.executor
        if number == END:
            self.close()
            if self.stop_after is not None:
                executor.call_at(executor.now() + self.stop_after, self.loop.stop)
            return
        planned = self.requests[number]
        arrival = sent - executor.zero
        executor.lateness.append(arrival - planned.arrival)
        self.taken += 1
        self.loop.arrive(_sent(planned, arrival))


def _sent(planned: Request, arrival: float) -> Request:
    """*planned* as it was really sent."""
    if isinstance(planned, TokenRequest):
        tokens, outputs = planned.tokens, planned.outputs
        slo, work = planned.slo, planned.work
        return TokenRequest(planned.id, arrival, tokens, outputs, slo=slo, work=work, **planned.terms)
    return Request(planned.id, arrival, planned.slo, planned.work, **planned.terms)


def _listen(channel: socket.socket, heard: SimpleQueue[tuple[object, object]]) -> None:
    """Pass the client's packets on until it ends."""
    try:
        while packet := channel.recv(PACKET.size):
            heard.put((packet, None))
    except OSError:
        return  # closed by us
    heard.put((b"", None))
