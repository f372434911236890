"""A load over time, worked out by hand: evenly spaced requests, a worker that takes 100 ms for each, a spike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from servetwin.experiments.cli.output.json_output import Windows
from toy_systems import refused, servetwin, write_one

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


def test_windows_tell_when_it_was_overloaded_and_when_it_recovered(one: Path, tmp_path: Path) -> None:
    """By windows of 2 s: two in which more comes than is served, three in which the queue never empties. 40 wait at
    most, at 14 s, and 8 s later nobody does: within the 0.2 s between requests, and the one that counts as none."""
    sets = [part for key, value in SPIKE.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    code, out, err = servetwin(
        "run", one, *sets, "--out", tmp_path / "r", "--windows", 2, "--objective", 0.9, "--json"
    )
    assert code == 0, err
    found = json.loads(out)["windows"]
    TypeAdapter(Windows).validate_python(found)
    verdicts = [window["verdict"] for window in found["windows"]]
    assert verdicts == ["stable"] * 5 + ["overloaded"] * 2 + ["backlogged"] * 3 + ["stable"] * 10
    assert [window["burn"] for window in found["windows"][4:10]] == pytest.approx([0.0, 9.0, 10.0, 10.0, 10.0, 10.0])
    (spike,) = found["overloads"]
    assert spike["begin"] == pytest.approx(10.1, abs=0.11)
    assert spike["peak"] == pytest.approx(14.0, abs=0.11)
    assert spike["waiting"] == pytest.approx(40, abs=1)
    assert spike["end"] == pytest.approx(21.8, abs=0.21)
    assert spike["recovery"] == pytest.approx(spike["end"] - spike["peak"])
    missed = 259 - sum(window["met"] for window in found["windows"])
    assert spike["missed"] == missed
    assert found["budget"] == pytest.approx(missed / 259 / 0.1)
    code, out, err = servetwin("report", tmp_path / "r", "--markdown", "--windows", 2, "--objective", 0.9)
    assert code == 0, err
    assert f"| {spike['begin']:.1f} | {spike['peak']:.1f} | {spike['waiting']} | {spike['end']:.1f} |" in out
    assert "Error budget (10 % may miss)" in out


def test_windows_are_refused_where_nothing_tells_them(one: Path, tmp_path: Path) -> None:
    assert "--windows: windows are told from the records of a run" in refused("run", one, "--windows", 2)
    out = "--out", tmp_path / "r"
    assert "--objective: the burn is that of windows" in refused("run", one, *out, "--objective", 0.9)
    assert "--windows: -2 s is no length" in refused("run", one, *out, "--windows", -2)
    assert not (tmp_path / "r").exists()


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
