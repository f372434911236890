"""LLM engines for tests: linear step times, and whole runs under the invariants."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from servetwin.core import Module, Pipeline, Recorder, Repeat, ServingLoop
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import ALL, EngineLimits, Step, TokenPolicy, TokenRequest, TokenSLO, TokenView
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.host import Stages
from servetwin.core.llm.serving.worker import Host, TokenWorker, kind_of_view
from servetwin.core.llm.speculation import Speculation
from servetwin.core.records import request_record
from servetwin.core.serving.client import play
from servetwin.sim import SimExecutor
from servetwin.sim.llm.lane import TokenTiming


class Anything(TokenPolicy):
    """Does anything that a policy may do, by dice; *repeats*: now and then it says for how long."""

    def __init__(self, seed: int, repeats: bool = True) -> None:
        self.dice = random.Random(seed)
        self.repeats = repeats

    def decide(self, view: TokenView, now: float) -> Step:
        dice = self.dice
        running = list(view.running)
        waiting = list(view.waiting)
        dice.shuffle(waiting)
        some = dice.random
        preempt = [t for t in running if some() < 0.05]
        drop = [t for t in [*running, *waiting] if some() < 0.02 and t not in preempt]
        rest = [t for t in running if t not in preempt and t not in drop]
        decode = [t for t in rest if t.decoding]
        prefill = [(t, dice.randint(1, t.pending)) for t in rest if not t.decoding and some() < 0.8]
        prefill += [(t, dice.randint(1, t.pending)) for t in waiting if t not in drop and some() < 0.5]
        if some() < 0.3:
            decode = [t for t in decode if some() < 0.6]
        elif decode and some() < 0.5 and not preempt and not drop:
            prefill = prefill if some() < 0.5 else []
            return Step(prefill, ALL, repeat=Repeat(dice.randint(1, 9)) if self.repeats and not prefill else None)
        return Step(prefill, decode, preempt=preempt, drop=drop, idle_until=now + 0.25)


@dataclass
class Linear:
    """Seconds of a step: *c0* plus *c1* per prefilled token, *d0* plus *d1* per token of context."""

    c0: float = 0.0135
    c1: float = 2.5e-4
    d0: float = 0.0438
    d1: float = 1.05e-6
    gap: float = 0.0

    def prefill(self, tokens: int, squares: float | None = None) -> float:
        return self.c0 + self.c1 * tokens

    def decode(self, batch: int, context: float) -> float:
        return self.d0 + self.d1 * context

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        if not tokens:
            return self.decode(batch, decode_context) if batch else 0.0
        if not batch:
            return self.prefill(tokens)
        return max(self.prefill(tokens + batch), self.decode(batch, decode_context))

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        return self.d0, self.d1, math.inf

    def between(self, sequences: int) -> float:
        return self.gap


class Log(Recorder):
    """Keeps what each step did and when each token came out."""

    wants_batches = True
    wants_token_times = True

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[float, list[tuple[int, int]], int]] = []  # end, (id, tokens) prefilled, decoding
        self.tokens: dict[int, list[list[float]]] = {}  # request -> stay -> ends of its tokens
        self.ends: list[tuple[int, str, float]] = []
        self.records: list[dict] = []  # lines of requests.jsonl

    def batch(self, batch) -> None:
        super().batch(batch)
        for end in (batch.ends or [batch.end]) if isinstance(batch, TokenBatch) else ():
            self.steps.append((end, [(t.id, n) for t, n, _ in batch.prefill], batch.decode))

    def ended(self, request, now) -> None:
        super().ended(request, now)
        self.tokens[request.id] = [list(t.times()) for t in request.tasks if hasattr(t, "times")]
        self.records.append(request_record(request))
        self.ends.append((request.id, request.outcome.value, now))


@dataclass
class Served:
    loop: ServingLoop
    executor: SimExecutor
    log: Log
    requests: list[TokenRequest]

    def first_and_last(self) -> list[tuple[float, float]]:
        return [(r.tasks[0].first_token, r.tasks[0].finished) for r in self.requests]


def requests(*rows: tuple[float, int, int], limit: int | None = None) -> list[TokenRequest]:
    """Requests from (arrival, prompt, output); *limit* is what they declare, by default their true output."""
    return [
        TokenRequest(i, at, {"llm": (prompt, limit or output)}, {"llm": output})
        for i, (at, prompt, output) in enumerate(rows)
    ]


def view_of(times: Linear, limits: EngineLimits, slo: TokenSLO | None = None, module: str = "llm") -> TokenView:
    (stage,) = Pipeline([Module(module, loop=True)], []).stages([[module]])
    return kind_of_view(limits)(
        stage,
        limits,
        estimate_prefill=times.prefill,
        estimate_decode=times.decode,
        estimate_step=times.step,
        slo=slo,
        name="engine",
    )


def play_out(
    loop: ServingLoop, executor: SimExecutor, sent: Sequence[TokenRequest], stop_at: float | None, most_events: int
) -> None:
    """Send all, and let all happen until nothing is left to."""
    play(loop, iter(sent))
    if stop_at is not None:
        executor.call_at(stop_at, loop.stop)
    for _ in range(most_events):
        if executor.calendar.peek() == math.inf:
            return
        executor.calendar.step()
    raise AssertionError(f"the run does not come to an end: it is {executor.now():g} s")


def serve(
    policy: TokenPolicy,
    sent: Iterable[TokenRequest],
    *,
    times: Linear | None = None,
    slo: TokenSLO | None = None,
    draw=None,
    stop_at: float | None = None,
    swap=None,
    invariants: bool = True,
    most_events: int = 200_000,
    host: Host | None = None,
    stalls=None,
    recent_load=None,
    log: Log | None = None,
    speculation: Speculation | None = None,
    stages: Stages | None = None,
    fails: Iterable[tuple[float, int]] = (),
    **limits,
) -> Served:
    """Serve *sent* on one engine to the end, in simulated time, under the invariants. *fails*: when something breaks
    under which of them."""
    times = times or Linear()
    sent = list(sent)
    drafts = speculation.drafts if speculation is not None else 0
    view = view_of(times, EngineLimits(**{"blocks": 1000, "num_speculative_tokens": drafts, **limits}), slo)
    worker = TokenWorker(view.stage, policy, view, host=host)
    worker.speculation, worker.stages = speculation, stages
    executor = SimExecutor(lambda worker: TokenTiming(times, draw, swap, stalls=stalls, recent_load=recent_load))
    log = log or Log()
    checker = InvariantChecker(log)
    loop = ServingLoop([view.stage], [worker], executor, checker if invariants else log)
    if invariants:
        checker.watch(loop)
    for when, number in fails:
        executor.call_at(when, partial(loop.fail, sent[number], "it broke"))
    play_out(loop, executor, sent, stop_at, most_events)
    if invariants:
        checker.finish()
    return Served(loop, executor, log, sent)


class Told(TokenPolicy):
    """Does as *decide* says, a function of (view, now)."""

    def __init__(self, decide) -> None:
        self._decide = decide

    def decide(self, view: TokenView, now: float) -> Step:
        return self._decide(view, now)


class SteppingTokens(TokenPolicy):
    """*inner* without its `Repeat`: the executor has to take every step by itself."""

    def __init__(self, inner: TokenPolicy) -> None:
        self.inner = inner
        self.start, self.removed = inner.start, inner.removed

    def admit(self, task, view: TokenView, now: float) -> bool:
        return self.inner.admit(task, view, now)

    def decide(self, view: TokenView, now: float) -> Step:
        step = self.inner.decide(view, now)
        return Step(step.prefill, step.decode, preempt=step.preempt, drop=step.drop, idle_until=step.idle_until)
