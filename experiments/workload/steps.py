"""Iterations of loop modules, request by request."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
from servetwin.core.random_streams import stream

from ..spec.experiment import ChoiceSteps, ConstantSteps, Steps, TraceSteps, UniformSteps
from .arrivals import BLOCK, Source, published_stream

if TYPE_CHECKING:
    from . import trace_reader


def steps_of(
    module: str, spec: Steps, *, seed: int, published: bool, trace: trace_reader.TraceFile | None = None
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
