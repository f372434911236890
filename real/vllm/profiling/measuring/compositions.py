"""Makes engine steps of any composition on vLLM: chunks of prompts, tokens before them, sequences beside them.

What stands before a chunk or a token need not be computed: keys and values are whatever is in the memory, which was
filled with random numbers, and a request comes with as many of its tokens counted as computed as its step wants
(`servetwin.real.vllm.internals.stand_before`). So a batch of 500 sequences with 2,000 tokens each stands after one
step, and what a profile asks is made in minutes.

A `Part` is a *pool* of sequences that decode, and steps (`Beat`) that are made one after the other without a gap:
some of the pool decode, beside chunks of new requests that end with them. `Player` makes them. With asynchronous
scheduling each is decided while the one before it runs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from servetwin.core import ServeTwinError
from servetwin.core.llm import Step, TokenPolicy, TokenTask, TokenView

from ...engine import VllmEngine
from ...internals import fill_kv, stand_before
from ...launches.launch_clock import Launch, LaunchClock
from ...plan import Planned
from ...scheduler import Settings, StepLog
from .step_cells import Beat, Part

#: New requests that join in one step while a pool is set up.
AT_ONCE = 64
#: Requests whose prompts are handed to the engine at a time: a long queue would cost the scheduler time of its own.
QUEUE = 60


@dataclass
class Played:
    """What came of a part: its steps, with the contexts of all that decode, and how each was launched (empty if that
    was not watched); *began* is when, in seconds on the monotonic clock."""

    kind: str
    began: float
    steps: list[StepLog]
    launches: list[Launch] = field(default_factory=list)


class _Played(TokenPolicy):
    """Makes the beats that it is given, and rests when there are none left."""

    def __init__(self) -> None:
        self.beats: deque[tuple[int, Sequence[TokenTask]]] = deque()

    def decide(self, view: TokenView, now: float) -> Step:
        if not self.beats:
            return Step()
        count, decode = self.beats.popleft()
        waiting = iter(view.waiting)
        chunks = [(task, task.pending) for task in (next(waiting) for _ in range(count))]
        return Step(chunks, decode)


class Player:
    """Makes parts on *engine*, which it has for itself. With *watch* launches are watched."""

    def __init__(self, engine: VllmEngine, *, watch: bool = False) -> None:
        self.engine = engine
        self.number = 0
        self.clock = LaunchClock(engine.core) if watch else None
        self.pool: list[TokenTask] = []
        fill_kv(engine.core)

    @property
    def room(self) -> int:
        """Tokens whose keys and values the engine has memory for."""
        return int(self.engine.scheduler.blocks * self.engine.scheduler.block_size)

    def play(self, part: Part, until: float = float("inf")) -> Played:
        """Make *part*, of which the rest is left out once the monotonic clock shows *until*. Raises `ServeTwinError`
        if the engine does not let all of its pool stand."""
        scheduler = self.engine.scheduler
        policy = _Played()
        self.engine.empty()
        scheduler.install(Settings(), policy=policy)
        self._fill(policy, part.pool)
        scheduler.keep_log = scheduler.keep_contexts = True
        scheduler.log.clear()
        scheduler.times.clear()
        if self.clock is not None:
            self.clock.take()
        played = Played(part.kind, time.monotonic(), [])
        zero = scheduler.zero
        for some in _portions(part.beats):
            for beat in some:
                for tokens, context in beat.chunks:
                    self._add(tokens, context, 1)
            policy.beats.extend((len(b.chunks), self.pool[b.first : b.first + b.size]) for b in some)
            while policy.beats or scheduler.in_flight:
                self.engine.step()
            if time.monotonic() > until:
                break
        played.steps = list(scheduler.log)
        played.began = zero
        if self.clock is not None:
            played.launches = self.clock.take()
        scheduler.keep_log = scheduler.keep_contexts = False
        return played

    def _fill(self, policy: _Played, pool: Sequence[int]) -> None:
        """Let sequences with these contexts stand, that could generate tokens for ever."""
        longest = self.engine.options.max_model_len
        self.pool = []
        for at in range(0, len(pool), AT_ONCE):
            some = pool[at : at + AT_ONCE]
            self.pool += [self._add(1, context - 1, longest - context - 1) for context in some]
            policy.beats.append((len(some), ()))
            while policy.beats or self.engine.scheduler.in_flight:
                self.engine.step()
        stand = len(self.engine.scheduler.view.running)
        if stand < len(pool):  # batches would be smaller than asked for, and nobody would know
            raise ServeTwinError(f"of {len(pool)} sequences that are to decode {stand} stand in the engine")

    def _add(self, tokens: int, context: int, output: int) -> TokenTask:
        """A request of which *context* tokens stand and so many more are to be computed."""
        self.number += 1
        scheduler = self.engine.scheduler
        self.engine.add(Planned(self.number, 0.0, context + tokens, output), scheduler.zero)
        key: str = next(reversed(scheduler.tasks))
        task: TokenTask = scheduler.tasks[key]
        if context:
            stand_before(scheduler, key, context)
            task.computed = context
        return task


def _portions(beats: Sequence[Beat]) -> Iterator[list[Beat]]:
    """*beats* in portions of about `QUEUE` requests, none of them for a step or two only."""
    some: list[Beat] = []
    requests = 0
    for beat in beats:
        some.append(beat)
        requests += len(beat.chunks)
        if requests >= QUEUE and len(some) > 2:
            yield some
            some, requests = [], 0
    if some:
        yield some


#: Hears what is measured next.
Progress = Callable[[str], None]
