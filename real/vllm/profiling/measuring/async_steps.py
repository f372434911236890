"""Measures a language model on vLLM with the pipeline full: what steps take one after the other, in random order.

With asynchronous scheduling a step is decided while the one before it runs, so what a step takes is its period, from
the tokens of the step before it to its own. `rotate` lets the engine make long rows of steps without a gap, prefills
and decode batches of all sizes in random order, again and again while time lasts: whatever drifts meanwhile meets all
sizes alike. Now and then the engine is left to run dry, which tells what a step costs that nothing runs before.
`servetwin.real.vllm.profiling.fitting.async_fit` makes of the steps what a profile file says.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from servetwin.core.llm import Step, TokenPolicy, TokenTask, TokenView

from ...engine import VllmEngine
from .recent_load import traffic
from .step_grid import Chunked, Measured, _Bench, _split

#: Of so many steps one is made once more after the engine has run dry.
DRY = 6
#: Steps whose prompts are handed to the engine at a time.
QUEUE = 25
#: Decode steps between steps of prompts, at least, one for so many tokens of them, and the sequences that decode
#: where the cell does not say. A GPU clocks down with the power that it takes: on an H100 prompts and nothing but
#: prompts take 2 % longer with 100 tokens a step and 8 % with 600 than in a run, whose steps are mostly decode steps.
REST, TOKENS_A_REST, RESTING = 2, 100, 8
#: So many rounds, and so many with the largest batches, bring every point five samples; the share of its time that a
#: rotation may last longer for them.
ROUNDS, LARGE_ROUNDS, LONGER = 3, 2, 2 / 3
#: Prompts, their tokens in all, sequences that decode beside them.
Cell = tuple[int, int, int]


@dataclass(frozen=True)
class Rotation:
    """What to measure; larger than the engine allows is left out.

    *prefill* are the totals of tokens for a number of *prompts* at a time: all of them for one and two, every other
    one for more, and the last for all. *beyond* are totals for prompts of *long* tokens. *decode* batch sizes run
    for *steps* steps each, *contexts* tokens long. In *mixed* steps prompts of so many tokens in all are computed,
    one or several (*mixed_prompts*), beside sequences that decode (*mixed_sequences*). A long prompt is computed in
    chunks of *chunk* tokens. At last, for *traffic_share* of the time, requests come at random: *traffic* are shares
    of the largest rate, and cvs.
    """

    prefill: tuple[int, ...] = (1, 16, 32, 48, *range(64, 513, 32), *range(576, 1025, 64), 1280, 1536, 1792, 2047)
    prompts: tuple[int, ...] = (1, 2, 4, 8)
    beyond: tuple[int, ...] = (2560, 3072, 4096)
    long: int = 256
    decode: tuple[int, ...] = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32))
    contexts: tuple[int, ...] = (40, 130, 260, 500)
    steps: int = 5
    mixed: tuple[int, ...] = (40, 64, 112, 192, 320, 448, 704, 1000)
    mixed_prompts: tuple[int, ...] = (1, 2, 4)
    mixed_sequences: tuple[int, ...] = (4, 8, 16, 32, 48, 64)
    mixed_context: int = 130
    chunk: int = 512
    traffic: tuple[tuple[float, float], ...] = ((0.12, 1.0), (0.3, 1.0), (0.45, 1.0), (0.7, 1.0), (0.3, 4.0))
    traffic_share: float = 0.35


#: For a CPU and the tiny model.
SMALL_ROTATION = Rotation(
    prefill=(1, 16, 64, 128, 256, 512, 1000),
    prompts=(1, 2, 4),
    beyond=(1200, 1600),
    long=100,
    decode=(1, 2, 4, 8, 16, 32),
    contexts=(32, 128),
    mixed=(32, 256),
    mixed_prompts=(1, 2),
    mixed_sequences=(4, 16),
    mixed_context=60,
    chunk=128,
    traffic=((0.2, 1.0), (0.5, 1.0), (0.3, 4.0)),
)


@dataclass(frozen=True)
class Move:
    """One step: so many of the prompts that wait, whole, and so many of the sequences that decode; neither: rest."""

    prompts: int = 0
    decode: int = 0


class Script(TokenPolicy):
    """Does what `moves` says, one after the other, and rests when there are none left.

    When the batch size changes, who comes or goes is drawn of the sequences with more than one token to generate.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.moves: deque[Move] = deque()
        self.chosen: list[TokenTask] = []

    def decide(self, view: TokenView, now: float) -> Step:
        if not self.moves:
            return Step()
        move = self.moves.popleft()
        chunks = [(task, task.pending) for task in itertools.islice(view.waiting, move.prompts)]
        if not move.decode:
            return Step(chunks, ())
        stay = [task for task in self.chosen if task in view.running]
        if len(stay) > move.decode:
            stay = self.rng.sample(stay, move.decode)
        elif len(stay) < move.decode:
            known = set(stay)
            ready = [task for task in view.running if task.limit > 1 and task.decoding and task not in known]
            stay += self.rng.sample(ready, min(move.decode - len(stay), len(ready)))
        self.chosen = stay
        return Step(chunks, list(self.chosen))


class _Rotating(_Bench):
    """Runs scripts."""

    def __init__(self, engine: VllmEngine, progress: Callable[[str], None], seed: int) -> None:
        super().__init__(engine, progress)
        self.rng = random.Random(seed)
        self.policy = Script(self.rng)

    def begin(self) -> None:
        """Nothing is in the engine."""
        self.policy = Script(self.rng)
        self.install(self.policy)

    def play(self, kind: str, moves: Sequence[Move], prompts: Sequence[tuple[int, int]]) -> None:
        """Make the steps *moves* on requests of (prompt, output) tokens, taken in before."""
        for prompt, output in prompts:
            self.add(prompt, output)
        self.policy.moves.extend(moves)
        while self.policy.moves or self.engine.scheduler.in_flight:
            self.engine.step()
        self.take(kind)

    def hold(self, size: int, context: int) -> None:
        """*size* sequences with *context* tokens each, that could generate tokens for ever."""
        options = self.engine.options
        self.begin()
        at_once = max(1, options.max_batched_tokens // context)
        moves = [Move(min(at_once, size - done)) for done in range(0, size, at_once)]
        self.play("fill", moves, [(context, options.max_model_len - context - 1)] * size)


def rotate(
    engine: VllmEngine,
    rotation: Rotation,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
    seed: int = 1,
) -> list[Measured]:
    """Measure *rotation* on *engine* for about so many *seconds*, everything once at least; and up to two thirds
    longer as long as there are fewer than `ROUNDS` rounds, which bring every point five samples."""
    bench = _Rotating(engine, progress, seed)
    among_requests = seconds * rotation.traffic_share if rotation.traffic else 0.0
    deadline = time.monotonic() + seconds - among_requests
    longest = deadline + seconds * LONGER
    until = longest
    options = engine.options
    with engine.undisturbed():
        for _ in range(3):  # warm-up: the first of everything is slow
            size = min(8, options.max_sequences // 2)
            bench.hold(size, 64)
            bench.play("warm-up", [Move(1), *[Move(0, size)] * 4, Move(2, size)], [(64, 1)] * 3)
        bench.done.clear()
        for number in itertools.count():
            large = bench.rng.random() < 0.5 or number < LARGE_ROUNDS
            parts: list[Callable[[], None]] = [partial(_decode, bench, rotation, c, large) for c in rotation.contexts]
            parts += [partial(_prefills, bench, rotation)] * 2 + [partial(_beside, bench, rotation)]
            if number == 0:
                parts.append(partial(_chunks, bench, rotation))
            bench.rng.shuffle(parts)
            progress(f"round {number + 1}")
            for part in parts:
                if number == 0 or time.monotonic() < until:
                    part()
            until = longest if number + 1 < ROUNDS else deadline
            if time.monotonic() >= until:
                break
    engine.empty()
    engine.scheduler.keep_log = False
    if rotation.traffic:
        bench.done += traffic(engine, rotation.traffic, among_requests, progress, seed)
    return bench.done


def _room(engine: VllmEngine) -> int:
    """Tokens whose keys and values the engine has memory for."""
    return int(engine.scheduler.blocks * engine.scheduler.block_size)


def both_ends(sizes: Sequence[int], graphs: Sequence[int], until: int = 64) -> list[int]:
    """*sizes* and, up to *until*, the smallest batch that runs in the same graph as each of them: weights are read
    for the graph's size, but keys and values for the sequences that there are.

    >>> both_ends((1, 2, 4, 8, 16, 96), (1, 2, 4, 8, 16, 32, 96))
    [1, 2, 3, 4, 5, 8, 9, 16, 96]
    """
    below = {b: a + 1 for a, b in itertools.pairwise(sorted(graphs))}
    return sorted({*sizes, *(below[n] for n in sizes if n in below and n <= until)})


def _decode(bench: _Rotating, rotation: Rotation, context: int, large: bool) -> None:
    """Decode batches of all sizes in random order, in spells; every third spell the engine runs dry once.

    The largest batches want many prompts, so they are measured with *large* only, and at short contexts.
    """
    engine = bench.engine
    most = engine.options.max_sequences if large and context <= 200 else 96
    known = both_ends(rotation.decode, engine.options.graphs)
    sizes = [n for n in known if n <= min(most, engine.options.max_sequences)]
    while sizes:
        longest = context + (rotation.steps + 1) * len(sizes)
        if sizes[-1] * longest <= _room(engine) and longest < engine.options.max_model_len:
            break
        sizes.pop()
    else:
        return
    bench.hold(sizes[-1], context)
    moves: list[Move] = []
    bench.rng.shuffle(sizes)
    for i, size in enumerate(sizes):
        moves += [Move(0, size)] * rotation.steps
        if i % 3 == 0:
            moves += [Move(), Move(0, size), Move(0, size)]
    bench.play("decode", moves, [])


def _prefills(bench: _Rotating, rotation: Rotation) -> None:
    """All totals of prompt tokens in random order, one step each."""
    options = bench.engine.options
    cells: list[tuple[int, int]] = []
    for n in rotation.prompts:
        totals = rotation.prefill if n <= 2 else (*rotation.prefill[1:-1:2], rotation.prefill[-1])
        cells += [(n, total) for total in totals if total >= n and (total >= 16 * n or n <= 2)]
    if bench.rng.random() < 0.5:
        cells += [(total // rotation.long, total) for total in rotation.beyond]
    most = min(options.max_batched_tokens, _room(bench.engine) // 2)
    cells = [
        (n, total)
        for n, total in cells
        if total <= most and n < options.max_sequences and -(-total // n) < options.max_model_len
    ]
    # A step beyond the graphs is launched kernel by kernel, which keeps the host from hearing of the step before it:
    # those steps are for themselves.
    graphs = options.graphs if options.graphs_for == "all" else ()
    last = max(graphs, default=0)
    for some in ([c for c in cells if c[1] <= last], [c for c in cells if c[1] > last]):
        if some:
            beside = min(RESTING, options.max_sequences // 2)
            bench.hold(beside, rotation.mixed_context)
            _stream(bench, "prefill", [(n, total, 0) for n, total in some], beside)


def _beside(bench: _Rotating, rotation: Rotation) -> None:
    """Prompts beside sequences that decode, all pairs in random order, one step each."""
    engine = bench.engine
    options = engine.options
    cells = [
        (n, total, size)
        for n in rotation.mixed_prompts
        for total in (rotation.mixed if n == 1 else [t for t in rotation.mixed if t >= 32 * n][::2])
        for size in rotation.mixed_sequences
    ]
    longest = rotation.mixed_context + sum(1 + rests(total) for _, total, _ in cells)
    cells = [
        (n, total, size)
        for n, total, size in cells
        if total + size <= options.max_batched_tokens
        and size + 2 * n < options.max_sequences
        and size * longest + 3 * total <= _room(engine)
    ]
    if not cells:
        return
    bench.hold(max(size for _, _, size in cells), rotation.mixed_context)
    _stream(bench, "mixed", cells, 0)


def _chunks(bench: _Rotating, rotation: Rotation) -> None:
    """A long prompt in chunks."""
    longest = min(bench.engine.options.max_model_len - 2, _room(bench.engine) // 2)
    for _ in range(2):
        bench.install(Chunked(rotation.chunk, alone=True))
        bench.run("chunks", [(longest, 1)])
        bench.engine.empty()


def rests(tokens: int) -> int:
    """How many decode steps there are for a step with so many tokens of prompts.

    >>> rests(16), rests(512)
    (2, 6)
    """
    return max(REST, -(-tokens // TOKENS_A_REST))


def _stream(bench: _Rotating, kind: str, cells: Sequence[Cell], beside: int) -> None:
    """*cells* in random order, a step each, and some of them once more after the engine has run dry; between them
    decode steps, of the sequences that the next one has, or of *beside*.

    Their prompts are handed over for some steps at a time: a long queue would cost the scheduler time of its own.
    """
    rng = bench.rng
    row = [(cell, False) for cell in cells]
    row += [(cell, True) for cell in rng.sample(cells, len(cells) // DRY)]
    rng.shuffle(row)
    for at in range(0, len(row), QUEUE):
        # The first step has nothing before it: it is made once more, and the others come as they are.
        part = [(rng.choice(cells), True), *row[at : at + QUEUE]]
        moves: list[Move] = []
        for (prompts, total, size), dry in part:
            moves += [Move(0, size or beside)] * rests(total)
            moves += [Move(), Move(prompts, size)] if dry else [Move(prompts, size)]
        bench.play(kind, moves, [(n, 1) for (many, total, _), _ in part for n in _split(total, many)])
