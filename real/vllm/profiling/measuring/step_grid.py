"""Measures a language model on vLLM: what its steps take, by what they compute.

Everything is measured with whole engine steps, from the moment the scheduler is asked until the tokens are on the
host, in the process that later serves. `measure` gives the steps as they were; `grid_fit` makes of them what a
profile file says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from servetwin.core.llm import ALL, Step, TokenPolicy, TokenView

from ...engine import VllmEngine
from ...plan import Planned
from ...scheduler import Settings, StepLog

#: Steps of a kind that are left out before those that count: the first ones after a change are slower.
SETTLE = 2


@dataclass(frozen=True)
class Grid:
    """What to measure; tokens, prompts and sequences. Larger than the engine allows is left out.

    *prefill* are the totals of tokens for *prompts* prompts at a time, *beyond* totals for prompts of *long* tokens.
    *decode* batch sizes run for *steps* steps each at *contexts* tokens. *mixed* are (tokens, sequences). A prompt of
    the longest length is computed in chunks of *chunks* tokens.
    """

    prefill: tuple[int, ...] = (1, 16, 32, *range(64, 2048, 64), 2047)
    prompts: tuple[int, ...] = (1, 4, 16)
    every: int = 2
    beyond: tuple[int, ...] = (2560, 3072, 4096, 5120, 6144, 8192)
    long: tuple[int, ...] = (256, 1024)
    decode: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
    contexts: tuple[int, ...] = (32, 128, 256, 512, 1024, 1900)
    steps: int = 7
    mixed_tokens: tuple[int, ...] = (32, 128, 256, 512, 1024, 1536)
    mixed_sequences: tuple[int, ...] = (1, 8, 32, 64, 128)
    mixed_context: int = 160
    chunks: tuple[int, ...] = (256, 512)
    repeats: int = 5


#: For a CPU and the tiny model.
SMALL = Grid(
    prefill=(1, 16, 64, 128, 256, 384, 512, 768, 1000),
    prompts=(1, 4),
    every=1,
    beyond=(1200, 1600, 2000),
    long=(100,),
    decode=(1, 2, 4, 8, 12, 16, 24, 32),
    contexts=(32, 128, 400),
    steps=12,
    mixed_tokens=(32, 256, 800),
    mixed_sequences=(1, 8, 24),
    mixed_context=60,
    chunks=(128,),
    repeats=5,
)


class Chunked(TokenPolicy):
    """Prefills at most *chunk* tokens of one request a step, decoding beside it or (*alone*) not."""

    def __init__(self, chunk: int, alone: bool = False) -> None:
        self.chunk, self.alone = chunk, alone

    def decide(self, view: TokenView, now: float) -> Step:
        for task in (*view.running, *view.waiting):
            if not task.decoding:
                return Step([(task, min(self.chunk, task.pending))], () if self.alone else ALL)
        return Step((), ALL)


class Together(TokenPolicy):
    """Prefills all that waits, as far as it fits; decodes when nothing does."""

    def decide(self, view: TokenView, now: float) -> Step:
        chunks = view.admissible([(task, task.pending) for task in view.waiting])
        return Step(chunks) if chunks else Step((), ALL)


class Preempting(TokenPolicy):
    """As `Together`, but takes the memory of the newest request every few decode steps."""

    def __init__(self, every: int) -> None:
        self.every, self.count = every, 0

    def decide(self, view: TokenView, now: float) -> Step:
        chunks = view.admissible([(task, task.pending) for task in view.waiting])
        if chunks:
            return Step(chunks)
        self.count += 1
        if self.count % self.every == 0 and len(view.running) > 1:
            return Step((), [], preempt=[next(reversed(view.running))])
        return Step((), ALL)


@dataclass
class Measured:
    """The steps of one kind of measurement, as they came; *intake* holds (prompt tokens, seconds) of the requests
    that were handed to the engine before them."""

    kind: str
    steps: list[StepLog]
    intake: list[tuple[int, float]]


class _Bench:
    """Runs requests through the engine without a client."""

    def __init__(self, engine: VllmEngine, progress: Callable[[str], None]) -> None:
        self.engine = engine
        self.progress = progress
        self.number = 0
        self.intake: list[tuple[int, float]] = []
        self.done: list[Measured] = []

    def install(self, policy: TokenPolicy | None) -> None:
        self.engine.empty()
        self.engine.scheduler.install(Settings(), policy=policy)
        self.engine.scheduler.keep_log = True

    def add(self, prompt: int, output: int) -> None:
        self.number += 1
        begun = time.perf_counter()
        self.engine.add(Planned(self.number, 0.0, prompt, output), self.engine.scheduler.zero)
        self.intake.append((prompt, time.perf_counter() - begun))

    def run(self, kind: str, requests: Iterable[tuple[int, int]]) -> list[StepLog]:
        """All requests at once, to their end."""
        for prompt, output in requests:
            self.add(prompt, output)
        return self.finish(kind)

    def finish(self, kind: str) -> list[StepLog]:
        while self.engine.engine.has_unfinished_requests():
            self.engine.step()
        return self.take(kind)

    def take(self, kind: str) -> list[StepLog]:
        scheduler = self.engine.scheduler
        steps = list(scheduler.log)
        scheduler.log.clear()
        scheduler.times.clear()
        self.done.append(Measured(kind, steps, self.intake))
        self.intake = []
        return steps


def measure(
    engine: VllmEngine, grid: Grid, progress: Callable[[str], None] = lambda _: None, tokens: int | None = None
) -> list[Measured]:
    """Measure *grid* on *engine*. *tokens* bounds the KV memory used (None: what there is)."""
    bench = _Bench(engine, progress)
    with engine.undisturbed():
        _measure(bench, grid, tokens)
    engine.empty()
    engine.scheduler.keep_log = False
    return bench.done


def _measure(bench: _Bench, grid: Grid, tokens: int | None) -> None:
    engine, progress = bench.engine, bench.progress
    options = engine.options
    room = tokens or engine.scheduler.blocks * engine.scheduler.block_size
    longest = options.max_model_len - 1
    budget, sequences = options.max_batched_tokens, options.max_sequences
    bench.install(Together())
    for _ in range(3):  # warm-up: the first of everything is slow
        bench.run("warm-up", [(min(longest, 256), 8)] * min(8, sequences))
    bench.done.clear()

    progress("prefill")
    for row, prompts in enumerate(grid.prompts):
        for total in grid.prefill[:: 1 if row == 0 else grid.every] + grid.prefill[-1:]:
            if prompts <= total <= min(longest, budget) and prompts <= sequences:
                for _ in range(grid.repeats):
                    bench.run("prefill", [(n, 1) for n in _split(total, prompts)])
    for length in grid.long:
        for total in grid.beyond:
            if total <= min(budget, room) and total // length <= sequences:
                for _ in range(grid.repeats):
                    bench.run("prefill", [(n, 1) for n in _split(total, total // length)])

    progress("decode")
    for context in grid.contexts:
        sizes = [b for b in grid.decode if b <= sequences and b * (context + len(grid.decode) * grid.steps) <= room]
        if sizes and context + len(sizes) * grid.steps <= longest:
            bench.run("decode", _falling(sizes, context, grid.steps))

    progress("mixed")
    bench.install(None)  # vLLM's own decisions mix
    for size in grid.mixed_sequences:
        long = grid.mixed_context + 8 * len(grid.mixed_tokens) * grid.repeats
        if size >= sequences or size * long > room:
            continue
        for _ in range(size):
            bench.add(grid.mixed_context, long - grid.mixed_context)
        while engine.scheduler.view.decoding < size:
            engine.step()
        for total in grid.mixed_tokens:
            if total + size > min(budget, longest):
                continue
            for _ in range(grid.repeats):
                for _ in range(SETTLE):
                    engine.step()
                bench.add(total, 1)
                engine.step()
        engine.empty()
        bench.take("mixed")

    progress("chunks")
    for chunk in grid.chunks:
        bench.install(Chunked(chunk, alone=True))
        for _ in range(2):
            bench.run("chunks", [(longest, 1)])

    progress("preemption")
    size = min(16, sequences - 1)
    bench.install(Preempting(every=4))
    bench.run("preemption", [(64, 40)] * size)


def _split(total: int, parts: int) -> list[int]:
    """*total* tokens in equal prompts, as nearly as may be."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _falling(sizes: Sequence[int], context: int, steps: int) -> list[tuple[int, int]]:
    """Requests such that the batch shrinks through *sizes*, *steps* decode steps at each."""
    ordered = sorted(sizes, reverse=True)
    requests = []
    for i, size in enumerate(ordered):
        following = ordered[i + 1] if i + 1 < len(ordered) else 0
        requests += [(context, (i + 1) * steps + 1)] * (size - following)
    return requests
