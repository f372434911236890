"""One LLM engine in three styles: vLLM 0.5.4's scheduling (prefill first, first come, first served), paged KV memory.

`twin` is ServeTwin itself, `objects` the same where each request comes as an object. `naive` is what a first SimPy
model looks like: a process per request, which waits for each of its tokens, and every request touched at every step.
`bare` is a loop without any simulation library that knows the tricks (requests that decode are counted together, not
one by one): the floor for pure Python. All of them make the same decisions, so their results are equal to the bit.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from typing import Any

import numpy as np
import simpy
from servetwin.core import Module, Pipeline, Recorder, Request, ServingLoop
from servetwin.core.llm import CumulativeSLO, EngineLimits, TokenPolicy, TokenRequest, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.random_streams import stream
from servetwin.policies.llm.vllm import VLLM
from servetwin.sim import SimExecutor
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.latency_columns import TokenLatencies
from servetwin.sim.llm.request_columns import TokenColumns


@dataclass(frozen=True)
class Times:
    """Seconds of a step: of one that computes prompts *prefill*, and *token* for each of their tokens; of one that
    decodes *decode*, *each* for each request and *context* for each token computed before. What decodes in a step
    that computes prompts takes *mixed* for each request, and *context* as well."""

    prefill: float
    token: float
    decode: float
    context: float
    each: float
    mixed: float


#: OPT-13B on an RTX A6000, roughly.
OPT = Times(0.0135, 2.468e-4, 0.0439, 1.053e-6, 0.0, 2.468e-4)

#: So many arrivals are drawn at a time.
BLOCK = 8192


@dataclass(frozen=True)
class Case:
    """*requests* of *prompt* and *output* tokens at *load* times the rate at which the engine is saturated."""

    requests: int = 10_000
    prompt: int = 512
    output: int = 128
    load: float = 0.75
    seed: int = 0
    blocks: int = 20_000
    times: Times = OPT
    fixed: float | None = None  # requests per second, whatever the engine can do
    limits: EngineLimits = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", EngineLimits(self.blocks, watermark=0.01, headroom=1))

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.fixed or self.load * saturation(self.prompt, self.output, self.blocks)

    def arrivals(self) -> Iterator[float]:
        """Times of a Poisson process, a block at a time."""
        draws, now, left = stream(self.seed, "arrivals"), 0.0, self.requests
        while left:
            gaps = draws.exponential(1.0 / self.rate, min(left, BLOCK))
            gaps[0] += now
            times: list[float] = gaps.cumsum().tolist()
            yield from times
            now, left = times[-1], left - len(times)


@cache
def saturation(prompt: int, output: int, blocks: int) -> float:
    """Requests per second that the engine serves when a thousand come at once."""
    case = Case(1000, prompt, output, blocks=blocks)
    run = Run(case)
    run.arrivals = [0.0] * case.requests
    run.play()
    return case.requests / run.executor.now()


class Line:
    """*times* as `TokenTiming` wants them."""

    def __init__(self, times: Times) -> None:
        self.times = times

    def prefill(self, tokens: int, squares: float | None = None) -> float:
        return self.times.prefill + self.times.token * tokens

    def decode(self, batch: int, context: float) -> float:
        times = self.times
        return times.decode + times.each * batch + times.context * context

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        times = self.times
        return times.prefill + times.token * tokens + times.mixed * batch + times.context * decode_context

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        return self.times.decode + self.times.each * batch, self.times.context, float("inf")

    def between(self, sequences: int) -> float:
        return 0.0


@dataclass
class Result:
    """Latencies by request, and how many steps there were."""

    steps: int
    ttft: list[float]
    tpot: list[float]
    e2el: list[float]
    gaps: np.ndarray | None = None  # between tokens, of all requests, where they were asked for

    @property
    def key(self) -> tuple[object, ...]:
        """What two styles must agree on."""
        return self.steps, self.ttft, self.tpot, self.e2el


class Run:
    """One run of ServeTwin, built and ready; with *slo* tokens have deadlines."""

    def __init__(
        self,
        case: Case,
        policy: TokenPolicy | None = None,
        recorder: Recorder | None = None,
        slo: CumulativeSLO | None = None,
    ) -> None:
        self.case = case
        times = Line(case.times)
        (stage,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])
        view = TokenView(stage, case.limits, estimate_prefill=times.prefill, estimate_decode=times.decode, slo=slo)
        self.recorder = recorder or TokenLatencies()
        self.executor = SimExecutor(lambda _: TokenTiming(times))
        worker = TokenWorker(stage, policy or VLLM(), view)
        self.loop = ServingLoop([stage], [worker], self.executor, self.recorder)
        self.arrivals: list[float] | None = None

    def requests(self) -> TokenColumns:
        prompt, output = repeat(self.case.prompt), repeat(self.case.output)
        return TokenColumns("llm", self.arrivals or self.case.arrivals(), prompt, output, output)

    def play(self, columns: bool = True, source: Iterator[Request] | None = None) -> None:
        play(self.loop, self.executor, source or self.requests(), columns=columns)

    @property
    def steps(self) -> int:
        return sum(sizes.total() for sizes in self.recorder.summary.sizes.values())

    def result(self) -> Result:
        assert isinstance(self.recorder, TokenLatencies)
        columns = [[0.0] * self.case.requests for _ in range(3)]
        for column, values in zip(columns, (self.recorder.ttft, self.recorder.tpot, self.recorder.e2el), strict=True):
            for i, value in zip(self.recorder.ids, values, strict=True):
                column[i] = value
        ttft, tpot, e2el = columns
        return Result(self.steps, ttft, tpot, e2el)


def twin(case: Case) -> Result:
    run = Run(case)
    run.play()
    return run.result()


def objects(case: Case) -> Result:
    """Likewise, from a source that anybody may write: the policy is asked at each turn, about objects."""
    run = Run(case)
    tokens, outputs = {"llm": (case.prompt, case.output)}, {"llm": case.output}
    run.play(source=(TokenRequest(i, at, tokens, outputs) for i, at in enumerate(case.arrivals())))
    return run.result()


def bare(case: Case, gaps: bool = False) -> Result:
    """No library, no interfaces: lists, numbers and one loop. With *gaps* it keeps those between tokens."""
    ends: list[float] = []  # of steps that decode, if they are kept
    joined = [0] * case.requests  # how many such steps there had been when a request began to decode
    arrivals, n, prompt, output = list(case.arrivals()), case.requests, case.prompt, case.output
    first, last = [0.0] * n, [0.0] * n
    limits = case.limits
    size, free, most, sequences = limits.block_size, case.blocks, limits.max_batched_tokens, limits.max_sequences
    least = limits.reserve
    whole = -(-prompt // size)  # blocks of a prompt
    full = -(-(prompt + output - 1) // size)  # and of a request when it leaves
    phases = [0] * size
    leaving: deque[tuple[int, list[int]]] = deque()  # (tick, requests), in order, as all outputs are of one length
    coming = head = decoding = context = ticks = steps = 0
    times = case.times
    c0, c1, d0, d1, each = times.prefill, times.token, times.decode, times.context, times.each
    now = -1.0
    while head < n or decoding:
        if coming == head and not decoding and arrivals[coming] > now:
            now = arrivals[coming]
        while coming < n and arrivals[coming] <= now:
            coming += 1
        if head < coming:
            m = coming - head
            if m * prompt > most:
                m = most // prompt
            if m > sequences - decoding:
                m = sequences - decoding
            if m > (free - least) // whole:
                m = (free - least) // whole
            if m:
                steps += 1
                now += c0 + c1 * (m * prompt)
                batch = list(range(head, head + m))
                head += m
                for i in batch:
                    first[i] = now
                    joined[i] = ticks
                free -= m * whole
                decoding += m
                context += m * prompt
                phases[(prompt - ticks) % size] += m
                leaving.append((ticks + output - 1, batch))
                continue
        needed = phases[-ticks % size]
        if free < needed + limits.headroom:
            raise NotImplementedError("the floor knows no preemption")
        free -= needed
        steps += 1
        now += d0 + each * decoding + d1 * context
        ticks += 1
        if gaps:
            ends.append(now)
        context += decoding
        while leaving and leaving[0][0] == ticks:
            _, batch = leaving.popleft()
            for i in batch:
                last[i] = now
            m = len(batch)
            decoding -= m
            context -= m * (prompt + output - 1)
            phases[(prompt + output - 1 - ticks) % size] -= m
            free += m * full
    ttft = [f - a for f, a in zip(first, arrivals, strict=True)]
    tpot = [(b - a) / (output - 1) for a, b in zip(first, last, strict=True)]
    e2el = [b - a for b, a in zip(last, arrivals, strict=True)]
    if not gaps:
        return Result(steps, ttft, tpot, e2el)
    came = np.array(ends)[np.array(joined)[:, None] + np.arange(output - 1)]
    return Result(steps, ttft, tpot, e2el, np.diff(came, axis=1, prepend=np.array(first)[:, None]).ravel())


def naive(case: Case, gaps: bool = False) -> Result:
    """A process per request that waits for each of its tokens, and one for the engine. With *gaps* it keeps those
    between tokens."""
    came: list[list[float]] = [[] for _ in range(case.requests)]
    env = simpy.Environment()
    arrivals = list(case.arrivals())
    limits, times = case.limits, case.times
    size, most, sequences, least = limits.block_size, limits.max_batched_tokens, limits.max_sequences, limits.reserve
    free = [case.blocks]
    waiting: list[int] = []
    running: list[int] = []
    turn: dict[int, simpy.Event] = {}
    generated = [0] * case.requests
    first, last = [0.0] * case.requests, [0.0] * case.requests
    work = [env.event()]
    steps = [0]

    def blocks(tokens: int) -> int:
        return -(-tokens // size)

    def request(i: int) -> Generator[simpy.Event, None, None]:
        waiting.append(i)
        if not work[0].triggered:
            work[0].succeed()
        for token in range(case.output):
            turn[i] = env.event()
            yield turn[i]
            generated[i] += 1
            if gaps:
                came[i].append(env.now)
            if token == 0:
                first[i] = env.now
        last[i] = env.now

    def client() -> Generator[simpy.Event, None, None]:
        for i, arrival in enumerate(arrivals):
            yield env.timeout(arrival - env.now) if arrival > env.now else env.timeout(0)
            env.process(request(i))

    def engine() -> Generator[simpy.Event, Any, None]:
        while True:
            if not waiting and not running:
                work[0] = env.event()
                yield work[0]
            batch: list[int] = []
            while waiting:
                tokens = (len(batch) + 1) * case.prompt
                if tokens > most or len(running) + len(batch) >= sequences:
                    break
                if free[0] - blocks(case.prompt) < least:
                    break
                free[0] -= blocks(case.prompt)
                batch.append(waiting.pop(0))
            if batch:
                seconds = times.prefill + times.token * (len(batch) * case.prompt)
                running.extend(batch)
            else:
                batch = list(running)
                computed = [case.prompt + generated[i] - 1 for i in batch]
                free[0] -= sum(blocks(c + 1) - blocks(c) for c in computed)
                seconds = times.decode + times.each * len(batch) + times.context * sum(computed)
            yield env.timeout(seconds)
            steps[0] += 1
            for i in batch:
                turn.pop(i).succeed()
            yield env.timeout(0)  # let them take their tokens
            for i in batch:
                if generated[i] == case.output:
                    running.remove(i)
                    free[0] += blocks(case.prompt + case.output - 1)

    env.process(client())
    env.process(engine())
    env.run()
    ttft = [f - a for f, a in zip(first, arrivals, strict=True)]
    tpot = [(b - a) / (case.output - 1) for a, b in zip(first, last, strict=True)]
    e2el = [b - a for b, a in zip(last, arrivals, strict=True)]
    return Result(steps[0], ttft, tpot, e2el, np.concatenate([np.diff(times) for times in came]) if gaps else None)


STYLES: dict[str, Callable[[Case], Result]] = {"twin": twin, "objects": objects, "naive": naive, "bare": bare}


def main() -> None:
    """One long run in a process of its own: ``python -m servetwin.experiments.bench.tokens REQUESTS``."""
    case = Case(int(sys.argv[1]))
    run = Run(case, recorder=Recorder() if case.requests > 100_000 else None)
    began = time.process_time()
    run.play()
    took = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"requests": case.requests, "cpu": took, "memory": memory, "steps": run.steps}))


if __name__ == "__main__":
    main()
