"""Which steps a profile is made of: parts for `compositions.Player`, in random order, again and again.

* ``decode``: batches of all sizes at a few contexts, and around the borders of CUDA graphs and beyond them.
* ``uneven``: batches whose sequences are not equally long.
* ``prompts``: whole prompts, one or several, and chunks with tokens before them, beside nobody.
* ``mixed``: chunks of all sizes, one or several, with and without tokens before them, beside sequences that decode,
  mostly all as long, and in turns of drawn lengths: a few long ones take longer than as many tokens in all.

Between steps with prompts the pool decodes for a few steps, now more, now fewer: how a device runs depends on what it
has just done, and so all sizes meet all of that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: Contexts at which batches decode.
CONTEXTS = (64, 256, 512, 1024, 2048, 4096, 8192, 16000, 32000)
#: Decode steps between steps with prompts.
RESTS = (0, 0, 0, 1, 1, 2, 2, 3, 5)
#: Spread of the logarithms of contexts that are drawn beside chunks.
SPREAD = 1.0
#: Steps at most of one part of prompts or of mixed steps.
PART = 160


@dataclass(frozen=True)
class Beat:
    """One step: *chunks* of (tokens, context before), and of the pool *size* sequences from place *first* on."""

    chunks: tuple[tuple[int, int], ...] = ()
    first: int = 0
    size: int = 0

    @property
    def tokens(self) -> int:
        """The tokens that it computes."""
        return sum(n for n, _ in self.chunks) + self.size


@dataclass(frozen=True)
class Part:
    """Steps to make: *pool* holds the contexts of the sequences that are there before the first of *beats*."""

    kind: str
    pool: tuple[int, ...]
    beats: tuple[Beat, ...]


@dataclass(frozen=True)
class Cells:
    """What to measure; larger than the engine allows is left out.

    *decode* batch sizes run for *steps* steps each at *contexts*. Prompts are computed alone, *totals* tokens of one
    prompt or of several (*prompts*), and chunks of *chunks* tokens with *before* tokens before them, beside nobody.
    *mixed* batch sizes decode at *beside* tokens of context each, and beside them *anchors* (tokens, context before)
    are computed, and *drawn* chunks: some fill one of *budgets*, which is what a busy engine does most.
    """

    decode: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int
    totals: tuple[int, ...]
    prompts: tuple[int, ...]
    chunks: tuple[int, ...]
    before: tuple[int, ...]
    mixed: tuple[int, ...]
    beside: tuple[int, ...]
    anchors: tuple[tuple[int, int], ...]
    drawn: int
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """What an engine allows: tokens a step, sequences, tokens of a request, and tokens of memory in all."""

    budget: int
    sequences: int
    length: int
    room: int


def around(graphs: Sequence[int], most: int) -> tuple[int, ...]:
    """Batch sizes up to *most*: some of *graphs*, just beyond them, and beyond the last.

    A batch is padded to the next graph, so the time is a stair. In a mixture of experts a stair is up to a twelfth
    high, for what is padded goes to experts too (Qwen3-30B-A3B on an H200: 14.5 ms at 24, 15.7 at 25 and at 32).
    """
    last = max(graphs, default=0)
    some = [n for n in graphs if n <= 64 or n in (96, 128, 160, 192, 256, 320, 384, 448, 512)]
    found = {*some, *(n + 1 for n in some if n <= 64 or n in (128, 256)), 1, 2, 3, 4}
    found |= {n for n in (last + 1, last * 5 // 4, last * 3 // 2, 2 * last) if n > 4}
    found |= {n for n in (24, 32, 48, 64, 96, 128, 192, 256, 384, 512) if not graphs}
    return tuple(sorted(n for n in found if 1 <= n <= most))


def cells_for(graphs: Sequence[int], limits: Limits) -> Cells:
    """What to measure on an engine with CUDA graphs of these sizes."""
    budget, length = limits.budget, limits.length
    totals = {8, 16, *range(32, 513, 32), *graphs, *range(544, 1025, 32), *range(1088, 2049, 64)}
    totals |= {*range(2304, 4097, 256), *range(4608, 8193, 512), *range(9216, 32769, 1024), budget}
    # A prefix cache leaves a few tokens to compute after many, and so does the end of a prompt in chunks.
    anchors = ((4, 1500), (16, 4000), (128, 0), (512, 0), (512, 1000), (512, 4000), (2048, 0))
    return Cells(
        decode=around(graphs, limits.sequences),
        contexts=tuple(c for c in [*CONTEXTS, length * 7 // 8] if c <= length * 7 // 8)[:8],
        steps=4,
        totals=tuple(sorted(n for n in totals if n <= budget)),
        prompts=(2, 4, 8, 16),
        chunks=tuple(n for n in (32, 128, 256, 512, 1024, 2048, 4096, 8192) if n <= budget),
        before=tuple(c for c in (250, 1000, 4000, 8000, 14000) if c < length - 64),
        mixed=tuple(n for n in (1, 4, 16, 32, 64, 128, 256, 512, 896) if n <= limits.sequences * 7 // 8),
        beside=tuple(c for c in (100, 500, 2000) if c <= length // 2),
        anchors=tuple((n, c) for n, c in anchors if n + c < length and n < budget),
        drawn=8,
        budgets=tuple(n for n in (512, 1024, 2048, 4096, budget) if n <= budget),
    )


def decode_batches(cells: Cells, limits: Limits, rng: random.Random, number: int = 0) -> Iterator[Part]:
    """Batches of all sizes: at each context in the first round (*number* 0), and at every other one in those after
    it, in turns. So all points are measured about equally often, and some time apart."""
    for place, context in enumerate(cells.contexts):
        if number and (place + number) % 2:
            continue
        part = _batches(context, cells.decode, cells.steps, limits, rng)
        if part is not None:
            yield part


def decode_again(
    points: Iterable[tuple[int, int]], cells: Cells, limits: Limits, rng: random.Random
) -> Iterator[Part]:
    """Once more the batches of *points* (size, context)."""
    by_context: dict[int, list[int]] = {}
    for size, context in points:
        by_context.setdefault(context, []).append(size)
    for context, sizes in sorted(by_context.items()):
        part = _batches(context, sizes, cells.steps, limits, rng)
        if part is not None:
            yield part


def _batches(context: int, wanted: Sequence[int], steps: int, limits: Limits, rng: random.Random) -> Part | None:
    """Spells of those of the *wanted* sizes that have room, in random order."""
    longest = context + steps * len(wanted)
    sizes = _fitting(wanted, longest, limits)
    if not sizes or longest >= limits.length:
        return None
    rng.shuffle(sizes)
    return Part("decode", (context,) * max(sizes), tuple(_spells(sizes, steps, max(sizes), rng)))


def uneven_part(cells: Cells, limits: Limits, rng: random.Random) -> Part | None:
    """Batches of sequences whose lengths are drawn, from nearly equal ones to a few long ones among short ones."""
    sizes = [n for n in cells.decode if n in (2, 4, 8, 16, 32, 64, 128, 256)]
    growth = cells.steps * 3 * len(sizes)
    median, spread = rng.choice((100, 300, 800)), rng.choice((0.5, 1.0, 1.5))
    pool = _drawn_pool(median, spread, max(sizes, default=0), growth, limits, rng)
    fitting = [n for n in sizes if n <= len(pool)] * 3
    rng.shuffle(fitting)
    return Part("uneven", pool, tuple(_spells(fitting, cells.steps, len(pool), rng))) if fitting else None


def _drawn_pool(
    median: float, spread: float, most: int, growth: int, limits: Limits, rng: random.Random
) -> tuple[int, ...]:
    """Contexts of up to *most* sequences, lognormal, that have room with *growth* tokens more of each."""
    longest = limits.length - growth - 2
    pool: list[int] = []
    room = 0.9 * limits.room
    while len(pool) < most and longest >= 8:
        context = round(min(max(median * math.exp(spread * rng.gauss(0.0, 1.0)), 8), longest))
        room -= context + growth
        if room < 0:
            break
        pool.append(context)
    return tuple(pool)


def prompt_batches(cells: Cells, limits: Limits, rng: random.Random, *, chunks: bool) -> Iterator[Part]:
    """Whole prompts beside nobody, and with *chunks* also some with tokens before them."""
    shapes: list[tuple[tuple[int, int], ...]] = [((total, 0),) for total in cells.totals if total < limits.length]
    for count in cells.prompts:
        some = [t for t in cells.totals if t in (64, 128, 256, 512, 1024, 2048, 4096, 8192, limits.budget)]
        shapes += [_split(t, count) for t in some if t >= 8 * count and -(-t // count) < limits.length]
    if chunks:
        shapes += [((n, c),) for n in cells.chunks for c in cells.before if n + c < limits.length]
    rng.shuffle(shapes)
    beside = min(8, limits.sequences // 2)
    for at in range(0, len(shapes), PART):
        beats: list[Beat] = []
        for shape in shapes[at : at + PART]:
            beats += [Beat((), 0, beside)] * rng.choice(RESTS)
            beats.append(Beat(shape))
        yield Part("prompts", (200,) * beside, (*beats, Beat((), 0, beside)))


def mixed_batches(cells: Cells, limits: Limits, rng: random.Random, number: int = 0) -> Iterator[Part]:
    """Chunks beside sequences that decode: each batch at each context, with all anchors and what is drawn. At one of
    the contexts, in turns by *number*, that is the mean, and few sequences are as long as others."""
    growth = 4 * (len(cells.anchors) + cells.drawn) * len(cells.mixed)
    most = limits.sequences - min(40, limits.sequences // 4)
    for place, context in enumerate(cells.beside):
        sizes = [n for n in cells.mixed if n <= most and n * (context + growth) <= 0.8 * limits.room]
        sizes = [n for n in sizes if n <= 256 or context == min(cells.beside)]  # their contexts add up to the same
        if not sizes or context + growth >= limits.length:
            continue
        pool = (context,) * max(sizes)
        if (place + number) % len(cells.beside) == len(cells.beside) - 1:  # the longest first
            drawn = _drawn_pool(context * math.exp(-0.5 * SPREAD**2), SPREAD, max(sizes), growth, limits, rng)
            sizes = [n for n in sizes if n <= len(drawn)]
            pool = drawn[: max(sizes, default=0)]
            if not sizes:
                continue
        rng.shuffle(sizes)
        beats: list[Beat] = []
        for size in sizes:
            shapes: list[tuple[tuple[int, int], ...]] = [
                ((n, c),) for n, c in cells.anchors if n + size <= limits.budget
            ]
            shapes += [draw_chunks(cells, limits, rng, size) for _ in range(cells.drawn)]
            rng.shuffle(shapes)
            beats += [Beat((), 0, size)] * 2
            for shape in shapes:
                beats += [Beat((), 0, size)] * rng.choice(RESTS)
                beats.append(Beat(shape, 0, size))
        yield Part("mixed", pool, (*beats, Beat((), 0, min(sizes))))


def draw_chunks(cells: Cells, limits: Limits, rng: random.Random, size: int) -> tuple[tuple[int, int], ...]:
    """Chunks for a step beside *size* sequences: two of five fill a budget, and most begin their prompt."""
    most = limits.budget - size
    budgets = [b - size for b in cells.budgets if b - size >= 16]
    if budgets and rng.random() < 0.4:
        total = rng.choice(budgets)
    else:
        total = round(8 * (most / 8) ** rng.random())
    count = min(rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 4, 6, 10)), max(1, total // 8))
    cuts = sorted(rng.sample(range(1, total), count - 1)) if count > 1 else []
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    chunks = []
    for n in sizes:
        longest = limits.length - n - 2
        before = 0
        if longest > 100 and rng.random() < 0.4:
            before = round(100 * (min(longest, 12000) / 100) ** rng.random())
        chunks.append((min(n, limits.length - 2), before))
    return tuple(chunks)


def _fitting(sizes: Sequence[int], length: int, limits: Limits) -> list[int]:
    """Those of *sizes* that have room at so many tokens each."""
    return [n for n in sizes if n <= limits.sequences and n * length <= 0.95 * limits.room]


def _spells(sizes: Sequence[int], steps: int, pool: int, rng: random.Random) -> Iterator[Beat]:
    """*steps* steps of each of *sizes*, of sequences anywhere in the pool."""
    for size in sizes:
        yield from [Beat((), rng.randint(0, pool - size), size)] * steps


def _split(total: int, parts: int) -> tuple[tuple[int, int], ...]:
    """*total* tokens in equal prompts, as nearly as may be."""
    return tuple((total // parts + (i < total % parts), 0) for i in range(parts))


def round_of(number: int, cells: Cells, limits: Limits, rng: random.Random) -> list[Part]:
    """All parts of a round, in random order; chunks alone and all decode batches in the first, some in others."""
    parts: list[Part | None] = [*prompt_batches(cells, limits, rng, chunks=number % 3 == 0)]
    parts += [*mixed_batches(cells, limits, rng, number), *(uneven_part(cells, limits, rng) for _ in range(3))]
    parts += decode_batches(cells, limits, rng, number)
    found = [part for part in parts if part is not None]
    rng.shuffle(found)
    return found
