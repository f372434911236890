"""What is found of many requests at once, in columns, is what is found of one after the other."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import servetwin.core.llm.metric_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.llm.metric_blocks import TokenBlock
from servetwin.core.llm.token_gaps import Gaps

seconds = st.floats(1e-7, 50.0) | st.sampled_from([0.05, 0.0457, 1.0])
some = st.lists(st.tuples(seconds, st.integers(1, 40)), min_size=1, max_size=30)


@given(some, st.lists(seconds, max_size=10), st.sampled_from([5, 100, 1 << 20]), st.booleans())
@settings(max_examples=200)
def test_gaps_counted_are_gaps_one_by_one(groups, others, most, first) -> None:
    counted, single = Gaps(most), Gaps(most)
    for gap in others if first else ():
        counted.add([0.0, gap])
    for at in range(0, len(groups), 7):
        values, counts = zip(*groups[at : at + 7], strict=True)
        counted.add_counted(np.array(values), np.array(counts))
    for gap in () if first else others:
        counted.add([0.0, gap])
    for gap, count in reversed(groups):
        for _ in range(count):
            single.add([0.0, gap])
    for gap in others:
        single.add([0.0, gap])
    assert counted.statistics() == single.statistics() == counted.statistics()
    every = [gap for gap, count in groups for _ in range(count)] + others
    mean, spread, *percentiles = single.statistics()
    assert mean == pytest.approx(math.fsum(every) / len(every), abs=1e-9)
    exact = [Fraction(gap) for gap in every]
    variance = sum((x - sum(exact) / len(exact)) ** 2 for x in exact) / len(exact)
    assert spread == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-9)
    if len(every) <= most:
        assert percentiles == [np.median(every), np.percentile(every, 90), np.percentile(every, 99)]


def test_the_spread_of_gaps_that_hardly_differ_is_exact() -> None:
    gaps = Gaps()
    gaps.add_counted(np.array([0.0457, 0.0457 + 2.0**-26]), np.array([500_000, 500_000]))
    assert gaps.statistics()[1] == pytest.approx(2.0**-27, rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=25),
       st.sampled_from([1, 30, 200, 1 << 15]))  # fmt: skip
@settings(max_examples=200)
def test_rows_of_times_and_gaps_are_those_of_each_request(rows, room) -> None:
    """*rows* says when each began to decode and how many tokens it has."""
    ends = np.cumsum(np.random.default_rng(len(rows)).uniform(0.01, 0.2, 120))
    begins, counts = (np.array(column) for column in zip(*rows, strict=True))
    first = np.array([(ends[b - 1] if b else 0.0) + 0.001 for b in begins])
    last = np.array([ends[b + n - 2] if n > 1 else f for b, n, f in zip(begins, counts, first, strict=True)])
    zeros = np.zeros(len(rows))
    block = TokenBlock(zeros, zeros, counts, counts, first, last, begins, ends)
    expected = [[f, *ends[b : b + n - 1]] for b, n, f in zip(begins, counts, first, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servetwin.core.llm.metric_blocks, "_ROOM", room)
        seen = {}
        for places, times in block.portions():
            for place, row in zip(places, times, strict=True):
                assert place not in seen
                seen[place] = row[: counts[place]].tolist()
        assert [seen[i] for i in range(len(rows))] == expected
        longest = block.longest_gaps()
    gaps = [np.diff(times).tolist() for times in expected]
    assert longest.tolist() == [max(g, default=0.0) for g in gaps]
    values, many = block.gaps()
    assert (many > 0).all()
    assert sorted(np.repeat(values, many).tolist()) == sorted(g for one in gaps for g in one)
