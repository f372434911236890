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

#: Seconds: prefill C0 + C1 a token, decode D0 + D1 a token of context. OPT-13B on an RTX A6000, roughly.
C0, C1, D0, D1 = 0.0135, 2.468e-4, 0.0439, 1.053e-6

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
    limits: EngineLimits = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", EngineLimits(self.blocks, watermark=0.01, headroom=1))

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.load * saturation(self.prompt, self.output, self.blocks)

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
    """The times above, as `TokenTiming` wants them."""

    def prefill(self, tokens: int, squares: float | None = None) -> float:
        return C0 + C1 * tokens

    def decode(self, batch: int, context: float) -> float:
        return D0 + D1 * context

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        return C0 + C1 * (tokens + batch) + D1 * decode_context

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        return D0, D1, float("inf")

    def between(self, sequences: int) -> float:
        return 0.0


@dataclass
class Result:
    """Latencies by request, and how many steps there were."""

    steps: int
    ttft: list[float]
    tpot: list[float]
    e2el: list[float]

    @property
    def key(self) -> tuple[object, ...]:
        """What two styles must agree on."""
        return self.steps, self.ttft, self.tpot, self.e2el


class Run:
    """One run of ServeTwin, built and ready."""

    def __init__(self, case: Case, policy: TokenPolicy | None = None, recorder: Recorder | None = None) -> None:
        self.case = case
        times = Line()
        (stage,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])
        slo = CumulativeSLO(3.0, 1.5, D0, D1, times.prefill) if policy is not None else None
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
        return Result(self.steps, *columns)


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


def bare(case: Case) -> Result:
    """No library, no interfaces: lists, numbers and one loop."""
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
                now += C0 + C1 * (m * prompt)
                batch = list(range(head, head + m))
                head += m
                for i in batch:
                    first[i] = now
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
        now += D0 + D1 * context
        ticks += 1
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
    return Result(steps, ttft, tpot, e2el)


def naive(case: Case) -> Result:
    """A process per request that waits for each of its tokens, and one for the engine."""
    env = simpy.Environment()
    arrivals = list(case.arrivals())
    limits = case.limits
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
                seconds = C0 + C1 * (len(batch) * case.prompt)
                running.extend(batch)
            else:
                batch = list(running)
                computed = [case.prompt + generated[i] - 1 for i in batch]
                free[0] -= sum(blocks(c + 1) - blocks(c) for c in computed)
                seconds = D0 + D1 * sum(computed)
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
    return Result(steps[0], ttft, tpot, e2el)


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
