"""An engine with requests as numbers that are sent to it one by one, and what a router may see of it.

What is computed, and when, is what `servetwin.sim.llm.columns` computes; here it is stopped wherever somebody looks.
At the time of a look a step is under way, as a rule, whose end is already known: `FedEngine` tells what there was
before that end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator
from typing import Any

from servetwin.core.llm import Step
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.metrics import Tally
from servetwin.core.serving.client import Client

from ..llm.column_requests import FAR_AHEAD
from ..llm.columns import Columns, Left
from ..llm.lane import NEVER, TokenLane
from ..llm.request_columns import TokenColumns


class Whole(Exception):
    """Numbers do not do for this run, and that is no error: a policy is to be asked again, or a router asks for what
    is not kept."""


class Alone(dict[tuple[int, int], float]):
    """Seconds that a request takes alone, by the prompt and the declared limit of its output: what
    `servetwin.core.llm.policy.TokenView.solo` says of one that has not begun at the engine of *worker*."""

    def __init__(self, worker: TokenWorker) -> None:
        super().__init__()
        self.prefill, self.steps = worker.view.estimators()[0], worker.alone_steps

    def __missing__(self, asked: tuple[int, int]) -> float:
        prompt, limit = asked
        seconds = self[asked] = self.prefill(prompt, None) + self.output(prompt, limit)
        return seconds

    def output(self, prompt: int, limit: int) -> float:
        """Those of its output."""
        return limit * self.steps[prompt + limit // 2]


class FedEngine(Columns):
    """An engine on *lane*, whose requests `feed` gives it.

    *source* has no requests, so that *client* sends none, but says what they have in common. Requests have numbers
    here, in the order in which they were fed.
    """

    __slots__ = (
        *("alone", "ended_many", "fed", "gathered", "gone", "head", "joined_upto", "now", "out"),
        *("pass_on", "rows", "seconds", "ticks_over", "weighs"),
    )

    def __init__(
        self, engine: TokenEngine, lane: TokenLane, client: Client, source: TokenColumns, alone: Alone
    ) -> None:
        super().__init__(engine, lane, source, client)
        self.alone, self.weighs = alone, False  # the latter: whether it is to be asked for `left`
        self.pass_on: Generator[Left, None, Left] | None = None
        self.fed = self.ended_many = 0
        self.gathered = 0  # so many of those that have ended and are not noted are in *gone*
        self.gone: list[tuple[int, float, int]] = []  # who ended since the last look: number, when, at which tick
        self.out: dict[int, int] = {}  # those of them who end with the step under way, with its tick
        self.now = 0.0  # when the step under way ends
        self.head = 0  # the number of the first without a token
        self.joined_upto = 0  # the number of the first that has no token before the step under way ends
        self.ticks_over = 0  # ticks before the step under way ends
        #: Of those who decode, by number: what they may generate and the tick before their first token; prompt and
        #: what they may generate.
        self.rows: dict[int, tuple[int, int]] = {}
        self.seconds: list[float] | None = None  # what `left` gives, until a step ends

    def begin(self, step: Step) -> None:
        """Nobody is here, and *step* is what the policy says then. Raises `Whole` if that stands for no others."""
        repeat, rule = step.repeat, step.standing
        if repeat is None or repeat.longest < NEVER or not rule:
            raise Whole
        self.open(step)
        self.pass_on = self.steps(rule, repeat, 0.0)

    def feed(self, at: float, prompt: int, limit: int, output: int, name: str) -> bool:
        """A request is sent here at that time; whether nobody else is here."""
        if prompt > self.longest:
            raise Whole
        summary = self.engine.loop.recorder.summary
        if summary.first_arrival is None:
            summary.first_arrival = at
        self.arrivals[-1:] = [at, NEVER]
        self.prompts.append(prompt)
        self.limits.append(limit)
        self.outputs.append(output)
        self.classes.append(name)
        self.lengths.append(min(limit, output))
        self.edge += 1
        self.fed += 1
        if self.seconds is not None:
            self.seconds.append(self.alone[prompt, limit])
        return self.here() == 1

    def come(self, tail: int, until: float, head: int) -> tuple[int, int]:
        """As of `ColumnRequests`; all who come before the next look are known."""
        shift = self._forget(head) if tail > 2 * FAR_AHEAD else 0
        tail -= shift
        while self.arrivals[tail] <= until:
            tail += 1
        return tail, shift

    # -- going on -----------------------------------------------------------------------------------------

    def go_until(self, at: float) -> float:
        """Go on to the first end of a step at that time or later; nobody comes before *at* but who has been fed.
        Gives when it is; `NEVER` if nobody is here and nothing is computed."""
        self.settle()
        self.until = self.arrivals[-1] = at
        try:
            assert self.pass_on is not None
            now, tick, _, _, _, decoding, head, _, _ = next(self.pass_on)
        except StopIteration:
            raise Whole from None
        self.now, self.head = now, self.first + head
        self._gather()
        gone, self.gone = self.gone, []
        self.out = {number: last for number, when, last in gone if when == now}
        self.ended_many += len(gone)
        self.seconds = None
        if self.weighs:
            self._weigh(tick, {number for number, when, _ in gone if when < now})
        if not decoding and self.head == self.fed and not self.out:
            return NEVER
        return now

    def settle(self) -> None:
        """The step under way is over."""
        self.seconds = None
        if self.weighs:
            rows = self.rows
            for number in range(self.joined_upto, self.head):
                self._join(number)
            for number in self.out:
                del rows[number]
            self.joined_upto = self.head
            self.ticks_over = self.engine.first_end + len(self.engine.ends)
        self.out = {}

    def finish(self) -> None:
        """Nobody comes any more: go on until all have ended."""
        self.settle()
        self.until = self.arrivals[-1] = NEVER
        try:
            assert self.pass_on is not None
            next(self.pass_on)
        except StopIteration as over:
            *stands, head, _, _ = over.value
        else:
            raise AssertionError("all that come are known")
        if self.short or self.first + head < self.fed:
            raise Whole
        if self.fed:
            self._note(self.edge)
            self.record()
            self.engine.loop.recorder.summary.sizes[self.engine.worker.name] = Tally()
            self._close(*stands)

    def record(self) -> None:
        """As of `ColumnRequests`."""
        self._gather()
        super().record()
        self.gathered = 0

    def _gather(self) -> None:
        """Note who has ended."""
        done, first = self.done, self.first
        for i in range(self.gathered, len(done)):
            self.gone.append((first + done[i], self.lasts[i], self.ticks[i]))
        self.gathered = len(done)

    # -- what routers see ---------------------------------------------------------------------------------

    def here(self) -> int:
        """How many requests are here."""
        return self.fed - self.ended_many + len(self.out)

    def left(self) -> list[float]:
        """The seconds that each request here still takes alone, in the order in which they were sent: as
        `servetwin.core.llm.serving.worker.TokenWorker.seconds_left`."""
        if self.seconds is None:
            self.seconds = self._left()
        return self.seconds

    def _left(self) -> list[float]:
        if not self.weighs:
            raise Whole
        alone, first, prompts, limits = self.alone, self.first, self.prompts, self.limits
        steps, over = alone.steps, self.ticks_over
        found = [(left := until - over) * steps[all_ - (left + 1) // 2] for until, all_ in self.rows.values()]
        head = self.head - first
        found += [alone.output(prompts[i], limits[i]) for i in range(self.joined_upto - first, head)]
        if self.part:
            prompt, limit = prompts[head], limits[head]
            pending = prompt - self.part
            found.append((alone.prefill(pending, None) if pending else 0.0) + alone.output(prompt, limit))
            head += 1
        return found + [alone[i] for i in zip(prompts[head:], limits[head:], strict=True)]

    def _weigh(self, tick: int, gone: set[int]) -> None:
        """Note who decodes while the step under way is, those who are *gone* before its end not."""
        ends, rows, now = self.engine.ends, self.rows, self.now
        self.ticks_over = tick - (ends[-1] == now) if ends else tick
        for number in gone:
            rows.pop(number, None)
        place = max(0, self.joined_upto - self.first)
        while place < len(self.firsts) and self.firsts[place] < now:
            if self.first + place not in gone:
                self._join(self.first + place)
            place += 1
        self.joined_upto = self.first + place

    def _join(self, number: int) -> None:
        """The one of that *number* decodes: how many ticks there were before its first token?"""
        engine, place = self.engine, number - self.first
        prompt, limit = self.prompts[place], self.limits[place]
        if number in self.out:
            begun = self.out[number] - self.lengths[place] + 1
        else:
            begun = engine.first_end + bisect_right(engine.ends, self.firsts[place])
        self.rows[number] = limit - 1 + begun, prompt + limit


def shown(worker: TokenWorker, engine: FedEngine, **told: Any) -> dict[str, Any]:
    """What `servetwin.core.routing.WorkerState` takes, of *worker* as a router sees it."""

    def not_kept(*_: object) -> Any:
        raise Whole

    return {
        "name": worker.name,
        "device": worker.device,
        "stage": worker.stage,
        "kind": worker.kind,
        "limit": worker.most,
        "estimate": worker.view.estimate,
        "here": engine.here,
        "left": engine.left,
        **dict.fromkeys(("counts", "jobs", "found"), not_kept),
        **told,
    }
