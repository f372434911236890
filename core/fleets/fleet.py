"""A fleet whose replicas come and go: it asks an autoscaler, starts and stops replicas, and keeps requests that no
replica can take yet.

Routers see the replicas that are ready, and no others. One that drains takes no new requests; what it has goes on
there to the end, then it is off. A replica that starts serves when its start is over; one that is not wanted any more
is let go at once. When more are wanted, those that drain are taken back before others are started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..arithmetic import float_sum
from ..isolation.answers import fault, shown
from ..pipeline import Stage
from ..policy import Batch
from ..request import Outcome, Request, Task
from ..scaling.autoscaler import Autoscaler, FleetState
from ..scaling.recent import Recent
from ..serving.dispatch import Dispatcher, counts_of
from ..serving.worker import Handle, Worker
from .replica import Replica, State

#: So many answers on end by which requests are left without a replica, when no other will come, end the run.
PATIENCE = 100_000


@dataclass(frozen=True)
class Rules:
    """From *least* to *most* replicas, *initial* of which are ready at the start.

    The autoscaler is asked each *every* seconds, or (None) whenever a request has come or ended, or a replica become
    ready; it sees the last *window* seconds, and all of it *stale* seconds late. More replicas are started once as
    many have been wanted for *up_after* seconds on end, and fewer kept once no more have been wanted for
    *down_after*; for *cooldown* seconds after a change nothing is changed.
    """

    least: int
    most: int
    initial: int
    every: float | None = 10.0
    window: float = 60.0
    stale: float = 0.0
    up_after: float = 0.0
    down_after: float = 0.0
    cooldown: float = 0.0


class Served(Protocol):
    """The serving loop, as far as a fleet asks it for something."""

    now: Callable[[], float]
    hear_batch: Callable[[Any], None]
    live: dict[int, Request]
    serving: dict[str, list[Worker]]
    stopped: bool
    dispatcher: Dispatcher | None

    def more_come(self) -> bool: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> Handle: ...
    def forward_held(self, waiting: dict[Request, list[tuple[Stage, Task | None]]]) -> None: ...


class Fleet:
    """The *replicas*, each the workers that start and stop together, under *scaler* and *rules*. *start* gives the
    seconds that the next start takes, by the replica's number from 0 on."""

    called = "fleet"

    def __init__(
        self, replicas: Sequence[Sequence[Worker]], scaler: Autoscaler, rules: Rules, start: Callable[[int], float]
    ) -> None:
        self.replicas = [Replica(number, workers) for number, workers in enumerate(replicas)]
        self.scaler, self.rules, self.seconds = scaler, rules, start
        self.of = {worker: replica for replica in self.replicas for worker in replica.workers}
        self.stages = list(dict.fromkeys(worker.stage for worker in self.of))
        self.recent = Recent(rules.window)
        self.limit = max((min(w.most for w in workers) for workers in replicas), default=0)
        self.starts = self.held_back = 0
        self.changes: list[tuple[float, int, State]] = []  #: when which replica came to be in which state
        self._waiting: dict[Request, list[tuple[Stage, Task | None]]] = {}  # until a replica is ready
        self._seen: deque[FleetState] = deque()
        self._wanted: deque[tuple[float, int]] = deque([(float("-inf"), rules.initial)])
        self._changed_at = float("-inf")
        self._asking: Handle | None = None
        self._ask_due = 0.0
        self._looking = False
        self._without = 0  # answers on end by which nobody is there for those that wait

    # -- what the loop tells it -------------------------------------------------------------------------------

    def attach(self, loop: Served) -> None:
        """Work for *loop*, before anything arrives."""
        self.loop = loop
        self._by_number = {worker.place.number: worker for worker in self.of}
        hear = loop.hear_batch

        def heard(batch: Batch) -> None:
            replica = self.of[self._by_number[batch.worker.number]]
            replica.computed(batch)
            hear(batch)
            if replica.state == "draining":
                self._look_soon()

        loop.hear_batch = heard
        self.scaler.start(self.rules.least, self.rules.most)
        for replica in self.replicas[: self.rules.initial]:
            self._turn(replica, "ready", 0.0)
        self._offer()
        self._ask_at(0.0)

    def arrived(self, request: Request) -> None:
        """*request* has been sent."""
        now = self.loop.now()
        self.recent.arrived(now)
        if self.rules.every is not None and self._asking is None:
            self._ask_at(now)  # nothing was there, and nothing was to come
        self._something_happened()

    def ended(self, request: Request, now: float) -> None:
        """*request* has ended."""
        self.recent.ended(now, request.outcome is Outcome.MET)
        self._waiting.pop(request, None)
        self._look_soon()
        self._something_happened()
        if self._asking is not None and self.rules.every is not None and not self._goes_on():
            self._asking.cancel()
            self._asking = None

    def moved(self) -> None:
        """A request has left a worker."""
        self._look_soon()

    def stays(self, stage: Stage, before: Task | None) -> Worker | None:
        """The worker of *stage* that a request goes to after its visit *before* to a replica that drains now, if
        there is one: what such a replica has it ends."""
        if before is None or before.worker is None:
            return None
        own = self.of[self._by_number[before.worker.number]]
        here = [worker for worker in own.workers if worker.stage is stage] if own.state == "draining" else []
        return min(here, key=lambda worker: sum(counts_of(worker)[:3]), default=None)

    def hold(self, request: Request, stage: Stage, before: Task | None) -> None:
        """*request* waits for a replica that could take it at *stage*."""
        if request.outcome is None:
            self._waiting.setdefault(request, []).append((stage, before))
            self.held_back += 1

    # -- what is asked, and when --------------------------------------------------------------------------------

    def _something_happened(self) -> None:
        if self.rules.every is None and not self.loop.stopped:
            self._ask_at(self.loop.now())

    def _ask_at(self, when: float) -> None:
        """Ask again then, or at the time that was planned if that is sooner."""
        if self._asking is not None:
            if self._ask_due <= when:
                return
            self._asking.cancel()
        self._ask_due = when
        self._asking = self.loop.call_at(when, self._ask)

    def _ask(self) -> None:
        self._asking, loop, rules = None, self.loop, self.rules
        now = loop.now()
        if loop.stopped:
            return
        seen = self._what_it_sees(now)
        answer = self.scaler.want(seen, now)
        if type(answer) is not int or answer < 0:
            raise fault(self.scaler, f"it wants {shown(answer)} replicas", "a whole number, 0 or more", "want")
        wanted = min(max(answer, rules.least), rules.most)
        again = self._follow(wanted, now)
        self._check_patience(now)
        if rules.every is None:
            if again is not None:
                self._ask_at(again)
        elif self._goes_on():
            self._ask_at(now + rules.every)

    def _goes_on(self) -> bool:
        """Whether requests are there, or come."""
        return bool(self.loop.live) or self.loop.more_come()

    def _follow(self, wanted: int, now: float) -> float | None:
        """Change what is to be changed now that so many are *wanted*; gives when to ask again if a delay or the
        cooldown holds something back."""
        rules, answers = self.rules, self._wanted
        answers.append((now, wanted))
        while len(answers) > 1 and answers[1][0] <= now - max(rules.up_after, rules.down_after):
            answers.popleft()
        on = sum(replica.state in ("starting", "ready") for replica in self.replicas)
        if wanted != on and now >= self._changed_at + rules.cooldown:
            aim = self._agreed(wanted, on, now)
            if aim != on:
                self._changed_at = now
                self._set(aim, on, now)
                on = aim
        if wanted == on:
            return None
        first = now
        for when, count in reversed(answers):
            if count == on or (count > on) != (wanted > on):
                break
            first = when
        delay = rules.up_after if wanted > on else rules.down_after
        again = max(first + delay, self._changed_at + rules.cooldown)
        return again if again > now else None

    def _agreed(self, wanted: int, on: int, now: float) -> int:
        """How many all answers of the delay's length agree on: the least of them where more are *wanted* than are
        *on*, else the most; never to the other side."""
        more = wanted > on
        since = now - (self.rules.up_after if more else self.rules.down_after)
        answers = self._wanted
        counts = [
            count
            for place, (when, count) in enumerate(answers)
            if when > since or place + 1 == len(answers) or answers[place + 1][0] > since
        ]
        return max(min(counts), on) if more else min(max(counts), on)

    def _check_patience(self, now: float) -> None:
        """Raise `PolicyFault` if requests wait for a replica that never comes."""
        on = any(replica.state != "off" for replica in self.replicas)
        if on or not self._waiting or self.loop.more_come():
            self._without = 0
            return
        self._without += 1
        if self._without >= PATIENCE:
            what = f"it wanted no replica {PATIENCE} times on end, and {len(self._waiting)} requests wait for one"
            raise fault(self.scaler, f"{what} (at {now:g} s)", "one at least while requests wait", "want")

    def _what_it_sees(self, now: float) -> FleetState:
        """How things stand, or stood as long ago as the rules say."""
        self._seen.append(self._state(now))
        since = now - self.rules.stale
        while len(self._seen) > 1 and self._seen[1].time <= since:
            self._seen.popleft()
        return self._seen[0]

    def _state(self, now: float) -> FleetState:
        states = [replica.state for replica in self.replicas]
        window = min(self.rules.window, now)
        served = used = 0.0
        for replica in self.replicas:
            if replica.state == "ready":
                since = max(now - window, replica.since)
                served += now - since
                used += replica.busy(since, now)
        counts = [counts_of(worker) for worker in self.of]
        held = sum(map(len, self._waiting.values())) + self._central()
        arrived, ended, met = self.recent.counts(now)
        return FleetState(
            time=now,
            ready=states.count("ready"),
            starting=states.count("starting"),
            draining=states.count("draining"),
            waiting=sum(c.waiting + c.on_wire for c in counts) + held,
            running=sum(c.running for c in counts),
            arrived=arrived,
            ended=ended,
            met=met,
            utilisation=min(used / served, 1.0) if served > 0.0 else 0.0,
            window=window,
            limit=self.limit,
        )

    def _central(self) -> int:
        """How many requests wait in central queues."""
        dispatcher = self.loop.dispatcher
        if dispatcher is None:
            return 0
        return sum(dispatcher.waiting(stage) for stage in self.stages)

    # -- replicas that come and go --------------------------------------------------------------------------------

    def _set(self, aim: int, on: int, now: float) -> None:
        """Have *aim* replicas ready or starting, of which there are *on*."""
        while on < aim:
            draining = [r for r in self.replicas if r.state == "draining"]
            if draining:
                self._turn(max(draining, key=lambda r: r.present), "ready", now)
            else:
                off = next((r for r in self.replicas if r.state == "off"), None)
                if off is None:
                    break
                self._begin(off, now)
            on += 1
        while on > aim:
            starting = [r for r in self.replicas if r.state == "starting"]
            if starting:
                last = max(starting, key=lambda r: (r.since, r.number))
                if last.timer is not None:
                    last.timer.cancel()
                self._turn(last, "off", now)
            else:
                ready = [r for r in self.replicas if r.state == "ready"]
                self._turn(min(ready, key=lambda r: (r.present, -r.number)), "draining", now)
                self._look_soon()
            on -= 1
        self._offer()

    def _begin(self, replica: Replica, now: float) -> None:
        self._turn(replica, "starting", now)
        self.starts += 1

        def ready() -> None:
            replica.timer = None
            self._turn(replica, "ready", self.loop.now())
            self._offer()
            self._something_happened()

        replica.timer = self.loop.call_at(now + self.seconds(replica.number), ready)

    def _turn(self, replica: Replica, state: State, now: float) -> None:
        if state == "off":
            for worker in replica.workers:
                worker.restart()
        replica.turn(state, now)
        self.changes.append((now, replica.number, state))

    def _look_soon(self) -> None:
        """See whether a replica that drains has nothing left, once all that happens now has."""
        if not self._looking and any(replica.state == "draining" for replica in self.replicas):
            self._looking = True
            self.loop.call_at(self.loop.now(), self._look)

    def _look(self) -> None:
        self._looking, now = False, self.loop.now()
        for replica in self.replicas:
            if replica.state == "draining" and replica.empty:
                self._turn(replica, "off", now)

    def _offer(self) -> None:
        """Let routers see who is ready, and send there who has waited for that."""
        serving = self.loop.serving
        ready = [worker for replica in self.replicas if replica.state == "ready" for worker in replica.workers]
        for name, workers in serving.items():
            workers[:] = [worker for worker in ready if worker.stage.name == name]
        self.loop.forward_held(self._waiting)
        if self.loop.dispatcher is not None:
            for stage in self.stages:
                self.loop.dispatcher.freed(stage)

    # -- what is told of it at the end ------------------------------------------------------------------------------

    def summary(self, since: float, until: float) -> dict[str, Any]:
        """How many replicas there were between these times: held from the beginning of a start to the stop."""
        length = until - since
        spans = [span for replica in self.replicas for span in replica.held_between(since, until)]
        steps = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
        level = most = 0
        for _, step in steps:
            level += step
            most = max(most, level)
        return {
            "mean_replicas": float_sum(b - a for a, b in spans) / length if length > 0.0 else None,
            "most_replicas": most,
            "starts": self.starts,
            "waited_for_a_replica": self.held_back,
        }

    def lines(self) -> list[dict[str, Any]]:
        """When which replica, from 1 on, came to be in which state."""
        return [{"at": at, "replica": number + 1, "state": state} for at, number, state in self.changes]

    def held(self, since: float, until: float) -> dict[str, float]:
        """Seconds between these times in which each device was held."""
        return {
            worker.device: float_sum(b - a for a, b in replica.held_between(since, until))
            for replica in self.replicas
            for worker in replica.workers
        }
