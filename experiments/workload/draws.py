"""What requests are drawn from: endless iterators of the times, in seconds, at which they are due (arrival
processes), of the iterations of loop modules that they ask for, and of the tokens of their prompts and outputs.

The first request is due one gap after the start. Numbers are drawn in blocks, but which numbers come does not
depend on the size of the blocks: the first thousand of a million are those of a run of a thousand.

The traces that come with the NeuStream artifact are gamma processes drawn with numpy's legacy generator,
seeded with 0 for each pair of rate and cv; `gaps` gives the same from `published_stream`, to the microsecond to
which they were stored (tests/experiments/workload/test_draws.py holds all of them to it).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING

import numpy as np
from servetwin.core import Shape
from servetwin.core.random_streams import stream

from ..spec.experiment import (
    Arrivals,
    Bursty,
    ChoiceSteps,
    Constant,
    ConstantSteps,
    DrawnArrivals,
    Gamma,
    Steps,
    Trace,
    TraceSteps,
    UniformSteps,
    Workload,
)
from ..spec.keys.schedule import ByClass, Schedule
from ..spec.llm import (
    ChoiceTokens,
    ConstantTokens,
    ListedTokens,
    LognormalTokens,
    TokenDraw,
    TraceTokens,
    UniformTokens,
)
from ..spec.published_draws import listed
from ..spec.sessions import (
    ChoiceTurns,
    ClosedLoop,
    ConstantSeconds,
    ConstantTurns,
    ExponentialSeconds,
    LognormalSeconds,
    SecondsDraw,
    TraceTurns,
    TurnsDraw,
    UniformSeconds,
    UniformTurns,
)
from ..spec.shapes import ConstantShape, ShapeDraw, TraceShape
from .schedules import Load, schedule_times

if TYPE_CHECKING:
    from .trace_reader import TraceFile

BLOCK = 2048

#: Of a standard normal distribution, the 90th percentile.
Z90 = 1.2815515655446004

Source = np.random.Generator | np.random.RandomState


def published_stream(seed: int = 0) -> np.random.RandomState:
    """numpy's legacy generator as the NeuStream artifact seeds it, for each list of numbers anew."""
    return np.random.RandomState(seed)


def arrival_times(
    spec: Arrivals,
    *,
    seed: int,
    published: bool,
    trace: TraceFile | None = None,
    seeds: Mapping[float, int] | None = None,
    purpose: str = "arrivals",
) -> Iterator[float]:
    """The times at which the requests of *spec* are due: *published* as in the artifact's experiments, which took
    *seeds* by the cv of the gaps (None: 0 for all). *purpose* tells the draws of one experiment apart."""
    if isinstance(spec, Trace):
        assert trace is not None
        return trace.arrivals_at(spec.rate)
    assert not isinstance(spec, ClosedLoop | ByClass)  # when those come depends on who has ended, or on the class
    if isinstance(spec, Constant):
        return _constant(spec.rate)
    first = seeds[spec.cv] if seeds is not None and isinstance(spec, Gamma) else 0
    source: Source = published_stream(first) if published else stream(seed, purpose)
    if isinstance(spec, Schedule):
        assert isinstance(source, np.random.Generator)
        return schedule_times(Load(spec, trace), _gaps_of_one(spec.cv, source) if spec.cv else None)
    if isinstance(spec, Bursty):
        assert isinstance(source, np.random.Generator)
        return _bursty(spec, source)
    cv = spec.cv if isinstance(spec, Gamma) else 1.0
    return _renewal(spec.rate, cv, source)


def arrivals_by_class(load: Workload, seed: int) -> Iterator[tuple[float, str]]:
    """When requests are due, and of which class they are, where each class has *arrivals* of its own; of those that
    are due at once that of the class which stands first in the file."""
    assert isinstance(load.arrivals, ByClass)
    by_class = []
    for place, (name, own) in enumerate(load.classes.items()):
        assert own.arrivals is not None  # checked with the file
        assert own.arrivals.rate is not None
        spec = own.arrivals.model_copy(update={"rate": own.arrivals.rate * load.arrivals.scale})
        times = arrival_times(spec, seed=seed, published=False, purpose=f"arrivals of class {name}")
        by_class.append(zip(times, repeat(place)))
    names = list(load.classes)
    return ((at, names[place]) for at, place in heapq.merge(*by_class))


def last_due(load: Workload, count: int, trace: TraceFile | None) -> float:
    """About when the last of *count* requests is due, of loads that change over time or by class: when all are over,
    or when so many are expected."""
    if isinstance(load.arrivals, Schedule):
        found = Load(load.arrivals, trace)
        return found.until if found.until < math.inf else found.when(count)
    assert isinstance(load.arrivals, ByClass)
    # Not later than the slowest class alone would be with all of them.
    return max(_alone(own.arrivals, name, count, load.arrivals.scale) for name, own in load.classes.items())


def _alone(spec: DrawnArrivals | None, name: str, count: int, scale: float) -> float:
    assert spec is not None
    assert spec.rate is not None
    if isinstance(spec, Schedule):
        found = Load(spec, where=f"workload.classes.{name}.arrivals")
        return found.until if found.until < math.inf else found.when(count / scale)
    return count / (spec.rate * scale)


def gaps(rate: float, cv: float, source: Source, count: int) -> np.ndarray:
    """*count* gamma gaps with mean 1 / *rate* and coefficient of variation *cv*."""
    shape = 1.0 / cv**2
    return source.gamma(shape, cv**2 / rate, count)


def _renewal(rate: float, cv: float, source: Source) -> Iterator[float]:
    now = 0.0
    while True:
        block = gaps(rate, cv, source, BLOCK)
        block[0] += now
        times = np.cumsum(block).tolist()
        now = times[-1]
        yield from times


def _gaps_of_one(cv: float, source: Source) -> Iterator[float]:
    while True:
        yield from gaps(1.0, cv, source, BLOCK).tolist()


def _constant(rate: float) -> Iterator[float]:
    i = 0
    while True:
        i += 1
        yield i / rate


def _bursty(spec: Bursty, source: np.random.Generator) -> Iterator[float]:
    """Two Poisson processes by turns; the turns last exponentially long."""
    calm = spec.rate / (1.0 - spec.share + spec.share * spec.burst)
    rates = (calm, calm * spec.burst)
    means = (spec.cycle * (1.0 - spec.share), spec.cycle * spec.share)
    state = int(source.random() < spec.share)
    draw = _exponentials(source).__next__
    now, left = 0.0, draw() * means[state]
    while True:
        wait = draw()  # in units of the mean gap
        while wait > left * rates[state]:
            wait -= left * rates[state]
            now += left
            state = 1 - state
            left = draw() * means[state]
        gap = wait / rates[state]
        now += gap
        left -= gap
        yield now


def _exponentials(source: np.random.Generator) -> Iterator[float]:
    while True:
        yield from source.standard_exponential(BLOCK).tolist()


def steps_of(
    module: str, spec: Steps, *, seed: int, published: bool, trace: TraceFile | None = None
) -> Iterator[int]:
    """The iterations of *module* for request 0, 1, ..."""
    if isinstance(spec, ConstantSteps):
        return repeat(spec.steps)
    if isinstance(spec, TraceSteps):
        assert trace is not None
        return trace.work_of(module)
    source: Source = published_stream() if published else stream(seed, f"steps of {module}")
    return _uniform(spec.low, spec.high, source) if isinstance(spec, UniformSteps) else _choice(spec, source)


def _uniform(low: int, high: int, source: Source) -> Iterator[int]:
    while True:
        if isinstance(source, np.random.Generator):
            yield from source.integers(low, high, BLOCK, endpoint=True).tolist()
        else:
            yield from source.randint(low, high + 1, BLOCK).tolist()


def _choice(spec: ChoiceSteps, source: Source) -> Iterator[int]:
    weights = np.array(spec.weights or [1.0] * len(spec.values))
    while True:
        yield from source.choice(spec.values, BLOCK, p=weights / weights.sum()).tolist()


def shapes_of(name: str, spec: ShapeDraw, *, seed: int, trace: TraceFile | None = None) -> Iterator[Shape]:
    """The shapes for request 0, 1, ... *name* tells the draws of one experiment apart."""
    if isinstance(spec, ConstantShape):
        yield from repeat(spec.shape)
    elif isinstance(spec, TraceShape):
        assert trace is not None
        yield from trace.shapes()
    else:
        source, values = stream(seed, name), [said.shape for said in spec.values]
        weights = np.array(spec.weights or [1.0] * len(values))
        while True:
            for place in source.choice(len(values), BLOCK, p=weights / weights.sum()).tolist():
                yield values[place]


def tokens_of(draw: TokenDraw, name: str, *, seed: int, trace: TraceFile | None) -> Iterator[int]:
    """The lengths for request 0, 1, ... *name* tells the draws of one experiment apart (and prompts from outputs)."""
    if isinstance(draw, ConstantTokens):
        return repeat(draw.tokens)
    if isinstance(draw, ListedTokens):
        return cycle(listed(draw.name))
    if isinstance(draw, TraceTokens):
        assert trace is not None
        return trace.tokens("input_tokens" if name.startswith("prompts") else "output_tokens")
    return _tokens(draw, stream(seed, name))


def _tokens(draw: UniformTokens | ChoiceTokens | LognormalTokens, source: np.random.Generator) -> Iterator[int]:
    if isinstance(draw, ChoiceTokens):
        weights = np.array(draw.weights or [1.0] * len(draw.values))
        weights = weights / weights.sum()
        while True:
            yield from source.choice(draw.values, BLOCK, p=weights).tolist()
    elif isinstance(draw, UniformTokens):
        while True:
            yield from source.integers(draw.low, draw.high, BLOCK, endpoint=True).tolist()
    else:
        mean, sigma = math.log(draw.median), math.log(draw.p90 / draw.median) / Z90
        while True:
            drawn = np.rint(np.exp(mean + sigma * source.standard_normal(BLOCK)))
            yield from np.clip(drawn, draw.low, draw.high).astype(int).tolist()


def seconds_of(draw: SecondsDraw | None, name: str, seed: int) -> Iterator[float]:
    """Times for one after the other, in seconds; *name* tells the draws of one experiment apart."""
    if draw is None:
        return repeat(0.0)
    if isinstance(draw, ConstantSeconds):
        return repeat(draw.seconds)
    source = stream(seed, name)
    return chain.from_iterable(_seconds(draw, source).tolist() for _ in repeat(None))


def _seconds(draw: ExponentialSeconds | UniformSeconds | LognormalSeconds, source: np.random.Generator) -> np.ndarray:
    if isinstance(draw, ExponentialSeconds):
        return source.exponential(draw.mean, BLOCK)
    if isinstance(draw, UniformSeconds):
        return source.uniform(draw.low, draw.high, BLOCK)
    sigma = math.log(draw.p90 / draw.median) / Z90
    return np.minimum(draw.median * np.exp(sigma * source.standard_normal(BLOCK)), draw.high)


def turns_of(draw: TurnsDraw, seed: int) -> Iterator[int]:
    """The turns of session 0, 1, ..."""
    if isinstance(draw, ConstantTurns):
        return repeat(draw.turns)
    assert not isinstance(draw, TraceTurns)  # those are in the file
    source = stream(seed, "turns")
    if isinstance(draw, UniformTurns):
        drawn: Callable[[], np.ndarray] = lambda: source.integers(draw.low, draw.high, BLOCK, endpoint=True)  # noqa: E731
    elif isinstance(draw, ChoiceTurns):
        weights = np.array(draw.weights or [1.0] * len(draw.values))
        drawn = lambda: source.choice(draw.values, BLOCK, p=weights / weights.sum())  # noqa: E731
    else:
        drawn = lambda: source.geometric(1.0 / draw.mean, BLOCK)  # noqa: E731
    return chain.from_iterable(drawn().tolist() for _ in repeat(None))
