"""Trace files: what is in them, and that they keep to the rules of Chrome's trace-event format.

The rules are those of the format's description ("Trace Event Format", Google). That the file opens in a viewer is not
tested.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load

#: Phases that we use, and the keys that each needs beside ph, name, pid, tid and ts.
PHASES = {
    "X": {"dur", "cat"},
    "b": {"cat", "id"},
    "e": {"cat", "id"},
    "s": {"id"},
    "f": {"id"},
    "C": {"args"},
    "M": {"args"},
}


def check_format(events: list[dict]) -> None:
    """Raise AssertionError where *events* break a rule of the format."""
    slices = defaultdict(list)  # thread -> (start, end)
    nested = defaultdict(list)  # asynchronous id -> (ts, order, phase, name)
    flows = defaultdict(list)
    for order, e in enumerate(events):
        assert e["ph"] in PHASES, e
        assert {"name", "pid", "tid", "ts"} | PHASES[e["ph"]] <= e.keys(), e
        assert isinstance(e["name"], str)
        assert isinstance(e["pid"], int)
        assert isinstance(e["tid"], int)
        assert isinstance(e["ts"], int | float)
        assert e["ts"] >= 0
        if e["ph"] == "X":
            assert e["dur"] >= 0
            slices[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
        elif e["ph"] in "be":
            nested[e["cat"], e["id"]].append((e["ts"], order, e["ph"], e["name"]))
        elif e["ph"] in "sf":
            flows[e["cat"], e["id"]].append(e)
        elif e["ph"] == "C":
            assert e["args"]
            assert all(isinstance(x, int | float) and x >= 0 for x in e["args"].values()), e
        else:
            known = ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            assert e["name"] in known
    for on_thread in slices.values():  # slices of a thread do not overlap (they could nest; ours do neither)
        on_thread.sort()
        for (_, end), (start, _) in pairwise(on_thread):
            assert start >= end - 1e-6
    for marks in nested.values():  # begins and ends of an id match like brackets
        open_names = []
        for _, _, ph, name in sorted(marks):
            if ph == "b":
                open_names.append(name)
            else:
                assert open_names
                assert open_names.pop() == name
        assert open_names == []
    for ends in flows.values():  # an arrow has two ends, each in a slice of its thread, and goes forward
        start, finish = ends
        assert (start["ph"], finish["ph"], finish["bp"]) == ("s", "f", "e")
        assert start["ts"] <= finish["ts"]
        for end in ends:
            assert any(a <= end["ts"] <= b for a, b in slices[end["pid"], end["tid"]])
    assert len({(e["pid"], e["name"]) for e in events if e["name"] == "process_name"}) == len(
        {e["pid"] for e in events}
    )


def read(path: Path) -> list[dict]:
    data = path.read_bytes()
    content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    assert content["displayTimeUnit"] == "ms"
    return content["traceEvents"]


@pytest.mark.parametrize("policy", ["neustream", "clockwork", "edf", "fcfs"])
def test_two_runs_in_one_file_that_keeps_the_rules(servetwin, toy: Path, tmp_path: Path, policy):
    for name, rate in (("a", 8), ("b", 30)):  # the second drops many
        servetwin(
            "run", toy, "--policy", policy, "--rate", rate, "--out", tmp_path / name, "--set", "system.stop_after=0.2"
        )
    code, out, err = servetwin("trace", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "trace.json")
    assert (code, err) == (0, "")
    events = read(tmp_path / "trace.json")
    assert f"{len(events)} events in" in out
    check_format(events)
    for pid, name in ((1, "a"), (2, "b")):
        mine = [e for e in events if e["pid"] == pid]
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        slices = [e for e in mine if e["ph"] == "X"]
        assert len(slices) == sum(w["iterations"] for w in summary["workers"].values())
        assert sum(e["args"]["size"] for e in slices) == sum(
            int(n) * k for w in summary["workers"].values() for n, k in w["batch_sizes"].items()
        )
        for outcome in ("met", "late", "dropped", "failed"):
            found = [e for e in mine if e["ph"] == "b" and e["name"] == f"requests {outcome}"]
            assert len(found) == summary[outcome]
        last = {}
        for e in sorted((e for e in mine if e["ph"] == "C"), key=lambda e: e["ts"]):
            last[e["name"]] = e["args"]
        assert set(map(str, last.values())) == {"{'waiting': 0, 'served': 0}"}
        (title,) = (e["args"]["name"] for e in mine if e["name"] == "process_name")
        assert title == f"{name}: toy, {policy}, simulated"
        threads = {e["args"]["name"] for e in mine if e["name"] == "thread_name"}
        assert threads <= {"encode on gpu0", "denoise on gpu0", "encode+denoise on gpu0"}


def test_arrows_lead_from_stage_to_stage(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--out", tmp_path / "a")
    servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.json")
    events = read(tmp_path / "trace.json")
    assert sum(e["ph"] == "s" for e in events) == 60  # all of them passed from encode to denoise
    by_id = defaultdict(list)
    for e in events:
        if e["ph"] in "sf":
            by_id[e["id"]].append(e["tid"])
    assert {tuple(threads) for threads in by_id.values()} == {(1, 2)}


def test_replicas_and_a_packed_file(tmp_path: Path, servetwin, toy: Path):
    experiment = load(toy, [("replicas", 2), ("rate", 16.0)])
    build.run(experiment, tmp_path / "a")
    assert servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.json.gz")[0] == 0
    events = read(tmp_path / "trace.json.gz")
    check_format(events)
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len(threads) == 4
    assert any(name.endswith("on gpu0.2") for name in threads)


def test_a_run_that_was_cut_off(tmp_path: Path, servetwin, toy: Path):
    servetwin("run", toy, "--out", tmp_path / "a")
    (tmp_path / "a" / "summary.json").unlink()
    for name in ("requests.jsonl", "batches.jsonl"):
        lines = (tmp_path / "a" / name).read_text().splitlines(keepends=True)
        (tmp_path / "a" / name).write_text("".join(lines[: len(lines) // 2]))
    assert servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.json")[0] == 0
    check_format(read(tmp_path / "trace.json"))


@pytest.mark.parametrize("name", ["tiny-sd-cpu", "sd15-256-rtx4090"])
def test_shipped_workloads(tmp_path: Path, servetwin, name):
    servetwin("run", name, "--requests", 60, "--out", tmp_path / "a")
    assert servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.json")[0] == 0
    check_format(read(tmp_path / "trace.json"))


def test_what_makes_no_trace(tmp_path: Path, servetwin, toy: Path):
    servetwin("run", toy, "--out", tmp_path / "a")
    code, _, err = servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert ".json or .gz" in err
    code, _, err = servetwin("trace", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "trace.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "not a run folder" in err
    (tmp_path / "a" / "batches.jsonl").write_text("no json\n")
    assert servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.json")[0] == 2
    assert not list(tmp_path.glob("*trace.json*"))
