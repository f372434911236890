"""Plain traces whose times are not in seconds, or whose columns are not separated by commas."""

from __future__ import annotations

import json

import pytest
from servetwin.core import BadInput
from servetwin.experiments.workload import trace_reader

TIMES = [0.0, 0.25, 0.75, 1.0, 2.5, 2.75]
REPLAY = "extends: toy.yaml\nworkload:\n  requests: null\n  arrivals: {process: trace, file: FILE}\n"


def text_of(name: str, unit: float, times=TIMES) -> str:
    return f"{name},denoise\n" + "".join(f"{t * unit:g},25\n" for t in times)


@pytest.mark.parametrize(
    ("name", "unit"), [("arrival", 1), ("arrival_s", 1), ("arrival_ms", 1e3), ("arrival_us", 1e6)]
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_the_name_of_the_column_says_the_unit(tmp_path, name, unit, ending):
    path = tmp_path / f"t.{ending}"
    times = [t * unit for t in TIMES]
    if ending == "csv":
        path.write_text(text_of(name, unit))
    elif ending == "jsonl":
        path.write_text("".join(json.dumps({name: t, "denoise": 25}) + "\n" for t in times))
    else:
        path.write_text(json.dumps({name: times, "denoise": [25] * len(times)}))
    trace = trace_reader.read(path, ["denoise"])
    assert list(trace.arrivals_at(None)) == TIMES
    assert list(trace.work_of("denoise")) == [25] * len(TIMES)
    assert trace.probably_milliseconds() is None


def test_order_is_told_by_the_column_that_there_is(tmp_path):
    (tmp_path / "t.csv").write_text("arrival_ms,steps\n500,3\n400,3\n")
    with pytest.raises(BadInput, match=r"t.csv:3: arrival_ms: 400 comes after 500|arrival_ms: 0.4 comes after 0.5"):
        trace_reader.read(tmp_path / "t.csv", [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "arrival;steps\n0.5;3\n",
            r"t.csv:1: its columns are separated by semicolons \(right would be: arrival,steps\)",
        ),
        ("arrival\tsteps\n0.5\t3\n", r"separated by tabs \(right would be: arrival,steps\)"),
        ("arrival|steps\n0.5|3\n", r"separated by bars \(right would be: arrival,steps\)"),
        (
            "time,steps\n0.5,3\n",
            r"no column 'arrival', but one 'time' \(right would be: to call it arrival, arrival_s",
        ),
        ("Arrival,steps\n0.5,3\n", r"no column 'arrival', but one 'Arrival'"),
        ("arrivel,steps\n0.5,3\n", r"no column 'arrival', but one 'arrivel'"),
        (
            "when,steps\n0.5,3\n",
            r"no column 'arrival' \(right would be: arrival,steps; the first is arrival, arrival_s",
        ),
        ("arrival_ms,steps\n1.7e9,3\n", r"1.7e9 in milliseconds is probably an epoch in seconds"),
        ("arrival_us,steps\n-1,3\n", r"arrival_us: '-1' is no time"),
    ],
)
def test_what_is_wrong_with_the_first_line_is_said(tmp_path, content, says):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(BadInput, match=says):
        trace_reader.read(tmp_path / "t.csv", [])


def test_a_list_of_objects_is_no_object_of_lists(tmp_path):
    (tmp_path / "t.json").write_text('[{"arrival": 0.5}]')
    with pytest.raises(BadInput, match=r"it is a list, not an object.* or a file .jsonl"):
        trace_reader.read(tmp_path / "t.json", [])


@pytest.fixture
def replay(servetwin, toy):
    """Replay a trace of six requests, *gap* apart in a column of this name."""

    def call(gap, name="arrival", rate=None, count=6):
        toy.with_name("t.csv").write_text(text_of(name, gap, [float(i) for i in range(count)]))
        text = REPLAY.replace("FILE", f"t.csv, rate: {rate}" if rate else "t.csv")
        toy.with_name("replay.yaml").write_text(text + "  steps: {denoise: {draw: trace}}\n")
        return servetwin("run", toy.with_name("replay.yaml"))

    return call


def test_times_far_apart_that_name_no_unit_are_taken_for_milliseconds(replay):
    code, out, err = replay(2500)
    assert code == 2
    assert "t.csv: arrival: its requests come 2500 s apart in the mean: these are probably milliseconds" in err
    assert "(right would be: to call the column arrival_ms; or arrival_s, if seconds they are)" in err
    code, out, _ = replay(250)
    assert code == 0
    assert "requests come 250 s apart in the mean; if its times are milliseconds, call the column arrival_ms" in out


@pytest.mark.parametrize(
    "given",
    [{"name": "arrival_s"}, {"name": "arrival_ms"}, {"rate": 2.0}, {"count": 4}],
    ids=["s", "ms", "rate", "few"],
)
def test_where_the_unit_is_known_or_does_not_matter_nothing_is_said(replay, given):
    code, out, err = replay(2500, **given)
    assert code == 0, err
    assert "milliseconds" not in out


@pytest.mark.parametrize(("unit", "digits"), [(1000, 0), (1000, 3), (1, 6)])
def test_two_columns_of_arrivals_say_the_same(tmp_path, unit, digits):
    rows = [f"{t + 0.0004},{(t + 0.0004) * unit:.{digits}f},3\n" for t in TIMES]
    (tmp_path / "t.csv").write_text("".join(["arrival,arrival_ms,steps\n", *rows]))
    if unit == 1000:
        assert list(trace_reader.read(tmp_path / "t.csv", []).arrivals_at(None)) == pytest.approx(TIMES)
    else:
        with pytest.raises(BadInput, match=r"t.csv:3: arrival says 0.2504 s, and arrival_ms 0.0002504 s"):
            trace_reader.read(tmp_path / "t.csv", [])
