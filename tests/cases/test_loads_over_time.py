"""A load over time, worked out by hand: evenly spaced requests, a worker that takes 100 ms for each, a spike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_systems import refused, write_one

import servetwin as st

#: 5 requests/s, and 20/s from 10 s to 14 s. 100 ms each: the worker serves 10/s.
SPIKE = {
    "workload.arrivals": {
        "process": "schedule",
        "rate": 5.0,
        "cv": 0.0,
        "spikes": [{"at": 10.0, "seconds": 4.0, "factor": 4.0}],
        "until": 40.0,
    },
    "workload.requests": None,
}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_one(tmp_path)


def latencies(one: Path, settings: dict[str, Any]) -> list[tuple[float, float]]:
    """(arrival, seconds until its answer) of each request."""
    table = st.run(one, settings=settings).requests
    return [(a, b) for a, b in zip(table["arrival"], table["latency"], strict=True)]


def test_a_queue_drains_when_arithmetic_says(one: Path) -> None:
    """In the spike the 80 requests come every 50 ms and are served every 100: one that comes x seconds into it waits
    x seconds. At 14 s 40 wait, of which 5/s net are worked off: each waits 100 ms less than the one before, until
    22 s."""
    found = latencies(one, SPIKE)
    assert len(found) == 259  # 50 by 10 s, 80 in the spike, 129 before 40 s
    for at, seconds in found:
        waits = 0.0
        if 10.0 <= at <= 14.0:
            waits = at - 10.0
        elif 14.0 < at < 22.0:
            waits = 4.0 - 0.5 * (at - 14.0)
        assert seconds == pytest.approx(0.1 + waits, abs=1e-6)


def test_a_night_without_requests_lets_the_morning_begin_afresh(one: Path) -> None:
    """8/s by day and none by night: the first of each day finds nobody."""
    day = {"points": [[0.0, 1.0], [30.0, 0.0]], "every": 60.0}
    arrivals = {"process": "schedule", "rate": 8.0, **day, "until": 180.0}
    found = latencies(one, {**SPIKE, "workload.arrivals": arrivals})
    days = [[(at, s) for at, s in found if 60.0 * day <= at < 60.0 * day + 30.0] for day in range(3)]
    assert sum(map(len, days)) == len(found)
    assert all(day[0][1] == pytest.approx(0.1) for day in days)


def test_searches_say_that_this_load_has_no_long_run(one: Path) -> None:
    arrivals = "workload.arrivals={process: schedule, rate: 5.0, wave: {period: 60, amplitude: 0.5}}"
    error = refused("search", one, "--set", arrivals)
    assert "workload.arrivals.process: a search looks for what is held in the long run" in error
    by_class = "workload.arrivals={process: by_class}"
    classes = "workload.classes={a: {arrivals: {process: poisson, rate: 1}}}"
    error = refused("search", one, "--set", by_class, "--set", classes)
    assert "--find rate: each class has a rate of its own" in error
