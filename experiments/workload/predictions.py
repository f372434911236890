"""Predicted numbers of output tokens, wrong as a workload says (``workload.lengths.MODULE.predict``).

What is predicted for a request has a random stream of its own: it changes neither arrivals nor lengths.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import numpy as np
from servetwin.core.random_streams import stream

from ..spec.llm import BucketPrediction, ExactPrediction, Lengths, NoisyPrediction
from .draws import BLOCK, tokens_of

if TYPE_CHECKING:
    from .trace_reader import TraceFile

#: Outputs that quantiles are taken of.
SAMPLE = 10_000

#: From the true number of output tokens and the declared limit to what is predicted.
Predictor = Callable[[int, int], int]


def predictor(lengths: Lengths, name: str, *, seed: int, trace: TraceFile | None = None) -> Predictor | None:
    """What predicts outputs of *lengths*, whose draws have that *name*; None if nothing does. It is to be called for
    each request once, in their order."""
    said = lengths.predict
    if said is None:
        return None
    if isinstance(said, ExactPrediction):
        return _exact
    source = stream(seed, f"predictions of {name}")
    return _noisy(said, source) if isinstance(said, NoisyPrediction) else _buckets(said, lengths, name, source, trace)


def about(lengths: Lengths) -> str | None:
    """What is to be said of the predictions in results; None if there are none."""
    said = lengths.predict
    if isinstance(said, ExactPrediction):
        return "exact: an oracle, which no real system has"
    if isinstance(said, NoisyPrediction):
        return f"noisy: off by a lognormal factor with sigma {said.sigma:g}"
    if isinstance(said, BucketPrediction):
        of = (
            f"{said.quantiles} quantiles"
            if said.quantiles
            else f"buckets up to {', '.join(map(str, said.edges or ()))}"
        )
        return f"{of}, the right one with probability {said.accuracy:g}"
    return None


def _exact(output: int, limit: int) -> int:
    return output


def _noisy(said: NoisyPrediction, source: np.random.Generator) -> Predictor:
    errors = _endless(lambda: np.exp(said.sigma * source.standard_normal(BLOCK)))

    def predict(output: int, limit: int) -> int:
        return min(max(1, round(output * errors())), limit)

    return predict


def _buckets(
    said: BucketPrediction, lengths: Lengths, name: str, source: np.random.Generator, trace: TraceFile | None
) -> Predictor:
    edges = said.edges or _quantiles(said.quantiles or 1, lengths, name, trace)
    chance, others = _endless(lambda: source.random(BLOCK)), _endless(lambda: source.random(BLOCK))

    def predict(output: int, limit: int) -> int:
        ends = [*(edge for edge in edges if edge < limit), limit]
        at = bisect_left(ends, output)
        wrong, where = chance() >= said.accuracy, others()
        if wrong and len(ends) > 1:
            other = int(where * (len(ends) - 1))
            at = other + (other >= at)
        return ends[at]

    return predict


def _quantiles(parts: int, lengths: Lengths, name: str, trace: TraceFile | None) -> list[int]:
    """The upper ends of all but the last of *parts* buckets with equally many outputs each."""
    drawn = np.array([*islice(tokens_of(lengths.output, f"quantiles of {name}", seed=0, trace=trace), SAMPLE)])
    ends = np.quantile(drawn, np.arange(1, parts) / parts, method="higher")
    return sorted({math.ceil(end) for end in ends})


def _endless(draw: Callable[[], np.ndarray]) -> Callable[[], float]:
    return chain.from_iterable(draw().tolist() for _ in count()).__next__
