"""Tables of values by batch size."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.profiles import BatchTable, LatencyTable, OutOfRange

UNET = LatencyTable([1, 2, 4, 8], [0.25, 0.5, 1.0, 1.5], name="unet")


@st.composite
def tables(draw: st.DrawFn) -> LatencyTable:
    sizes = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=12)))
    seconds = st.floats(1e-6, 1e3, allow_nan=False)
    return LatencyTable(sizes, draw(st.lists(seconds, min_size=len(sizes), max_size=len(sizes))))


def test_a_measured_point_comes_back_and_between_two_lies_the_line() -> None:
    assert UNET(2) == 0.5
    assert UNET(3) == 0.75
    assert [UNET(n) for n in (5, 6, 7)] == [1.125, 1.25, 1.375]


def test_out_of_range_says_whose_range_and_which() -> None:
    with pytest.raises(
        OutOfRange, match=r"^unet: no value for a batch of 9 \(right would be: 1 to 8, or hold: true\)$"
    ):
        UNET(9)
    with pytest.raises(OutOfRange):
        UNET(0)
    assert issubclass(OutOfRange, BadInput)


def test_hold_gives_the_end_values() -> None:
    table = LatencyTable([2, 4], [0.5, 1.0], hold=True)
    assert (table(1), table(3), table(99)) == (0.5, 0.75, 1.0)
    assert UNET.holding()(99) == 1.5
    assert UNET.holding().holding(False) == UNET
    with pytest.raises(OutOfRange):
        table(0)


def test_upto_is_for_hot_loops() -> None:
    seconds = UNET.upto(4)
    assert math.isnan(seconds[0])
    assert seconds[1:] == [0.25, 0.5, 0.75, 1.0]
    assert UNET.largest == 8
    assert UNET.holding().upto(9)[8:] == [1.5, 1.5]
    with pytest.raises(OutOfRange):
        UNET.upto(9)
    with pytest.raises(OutOfRange, match="batch of 1 "):
        LatencyTable([2, 4], [0.5, 1.0]).upto(3)


def test_upto_gives_a_list_of_its_own() -> None:
    UNET.upto(2)[1] = 7.0
    assert UNET(1) == 0.25


def test_scaled_is_the_same_table_on_a_slower_host() -> None:
    assert UNET.scaled(2.0)(3) == 1.5
    assert UNET.scaled(1.0) is UNET
    with pytest.raises(BadInput, match="not above 0"):
        UNET.scaled(0.0)


def test_a_table_does_not_change() -> None:
    with pytest.raises(AttributeError):
        UNET.values = (1.0,)
    with pytest.raises(AttributeError):
        del UNET.sizes


def test_the_digest_is_that_of_the_content() -> None:
    same = LatencyTable((1, 2, 4, 8), (0.25, 0.5, 1, 1.5), name="another name")
    assert same == UNET
    assert hash(same) == hash(UNET)
    assert same.digest == UNET.digest
    assert UNET.digest.startswith("01c444bed5a1ca26")  # in every process, on every machine
    assert UNET.scaled(1.5).digest != UNET.digest
    assert UNET.holding().digest != UNET.digest
    assert BatchTable(UNET.sizes, UNET.values) != UNET
    assert UNET != "unet"


def test_a_table_travels_to_another_process() -> None:
    back = pickle.loads(pickle.dumps(UNET))
    assert back == UNET
    assert back.name == "unet"
    assert repr(back) == "<LatencyTable unet: 4 sizes from 1 to 8>"


@pytest.mark.parametrize(
    ("sizes", "seconds", "fault"),
    [
        ([], [], "no batch sizes"),
        ([1, 2], [0.1], "2 batch sizes but 1 values"),
        ([0, 1], [0.1, 0.2], "batch size 0 is below 1"),
        ([1, 2, 2], [0.1, 0.2, 0.3], "batch size 2 stands twice"),
        ([2, 1], [0.1, 0.2], "batch sizes must increase, but 1 follows 2"),
        ([1, 2], [0.1, 0.0], "the latency for batch size 2 is 0 s, not above 0"),
        ([1], [-0.1], "the latency for batch size 1 is -0.1 s, not above 0"),
        ([1], [math.nan], "the value for batch size 1 is nan, not a finite number"),
    ],
)
def test_bad_tables(sizes: list[int], seconds: list[float], fault: str) -> None:
    with pytest.raises(BadInput, match=f"^bad: {fault}"):
        LatencyTable(sizes, seconds, name="bad")


def test_a_quantity_that_is_no_latency_may_be_negative() -> None:
    assert BatchTable([1, 3], [0.5, -0.5])(2) == 0.0


@given(tables())
def test_exact_at_every_measured_point(table: LatencyTable) -> None:
    assert [table(n) for n in table.sizes] == list(table.values)


@given(tables())
def test_between_two_points_it_is_monotone_and_on_the_line(table: LatencyTable) -> None:
    points = list(zip(table.sizes, table.values, strict=True))
    for (a, low), (b, high) in itertools.pairwise(points):
        line = [table(n) for n in range(a, b + 1)]
        assert line == sorted(line, reverse=low > high)
        for n in range(a, b + 1):
            assert table(n) == pytest.approx(low + (high - low) * (n - a) / (b - a), rel=1e-12)


@given(tables(), st.integers(1, 80))
def test_call_and_upto_agree(table: LatencyTable, n: int) -> None:
    held = table.holding()
    assert held.upto(n)[1:] == [held(i) for i in range(1, n + 1)]
    if n <= table.largest and table.smallest == 1:
        assert table.upto(n)[1:] == held.upto(n)[1:]
    if n < table.smallest or n > table.largest:
        with pytest.raises(OutOfRange):
            table(n)


@given(tables(), st.floats(0.5, 2.0))
def test_scaling_commutes_with_reading(table: LatencyTable, factor: float) -> None:
    scaled = table.scaled(factor)
    for n in range(table.smallest, table.largest + 1):
        assert scaled(n) == pytest.approx(table(n) * factor, rel=1e-12)
