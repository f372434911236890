"""``servetwin explain``: what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from servetwin.experiments.explaining import explanation, telling
from servetwin.experiments.explaining.causes import Cause
from servetwin.experiments.explaining.explanation import StageTime


@pytest.fixture
def run(servetwin, toy: Path, tmp_path: Path) -> Path:
    code, _, err = servetwin("run", toy, "--rate", 12, "--policy", "fcfs", "--out", tmp_path / "run")
    assert code == 0, err
    return tmp_path / "run"


def missed(run: Path) -> list[dict]:
    records = map(json.loads, (run / "requests.jsonl").read_text().splitlines())
    return sorted(
        (r for r in records if r["outcome"] == "late"), key=lambda r: r["deadline"] - r["finished"]
    )  # the worst first


def test_the_worst_are_listed_worst_first(servetwin, run: Path) -> None:
    code, out, _ = servetwin("explain", run, "--worst", 4)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if " late " in line]
    assert [int(row[0]) for row in rows] == [r["id"] for r in missed(run)[:4]]
    assert [float(row[3]) for row in rows] == [round(r["deadline"] - r["finished"], 3) for r in missed(run)[:4]]
    assert f"--request {missed(run)[0]['id']}" in out


def test_dropped_ones_are_not_early_but_after_the_late_ones(servetwin, toy: Path, tmp_path: Path) -> None:
    """One that was dropped before its deadline is late by nothing, however early that was: of these, the one comes
    first that had been there for longest."""
    run = tmp_path / "run"
    assert servetwin("run", toy, "--rate", 12, "--policy", "fcfs", "--out", run)[0] == 0
    path = run / "requests.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    late = sorted((r for r in records if r["outcome"] == "late"), key=lambda r: r["finished"] - r["deadline"])
    for record, after in zip(late[:2], (0.01, 0.02), strict=True):
        record |= {"outcome": "dropped", "finished": None, "ended": record["arrival"] + after}
    order = [explanation._badness(record) for record in (*late[2:3], late[1], late[0])]
    assert order == sorted(order, reverse=True)
    assert [badness for badness, _ in order[1:]] == [0.0, 0.0]
    assert explanation.overrun(late[0]) < 0


def test_one_request_is_told_in_full(servetwin, run: Path) -> None:
    number = missed(run)[0]["id"]
    code, out, _ = servetwin("explain", run, "--request", number)
    assert code == 0
    assert out.startswith(f"request {number}: late")
    for words in ("queue", "served alone", "meanwhile", "lost at batch", "of slack were left"):
        assert words in out
    cells = [
        line.split()
        for line in out.splitlines()
        if line.startswith((" queue", " batch", " joined", " served", " shared", " held"))
    ]
    whole = missed(run)[0]["finished"] - missed(run)[0]["arrival"]
    assert sum(float(row[-1]) for row in cells) == pytest.approx(whole, abs=0.002)


def test_few_batches_are_named_and_many_are_counted() -> None:
    for numbers, words in (
        ([16, 19], "batches 16 and 19 ran"),
        ([7], "batch 7 ran"),
        ([*range(1, 40, 2)], "20 batches, the first 1 and the last 39, ran"),
    ):
        stage = StageTime("dit", "dit", {Cause.QUEUE: 1.0}, {3: 1.0}, numbers, 0, None)
        assert words in (telling.instead(stage) or "")


def test_of_several_workers_batches_are_told_of_each() -> None:
    ran = {"prefill0": [7], "decode0": [7, 9]}
    stage = StageTime("llm", "prefill0 and decode0", {Cause.QUEUE: 1.0}, {3: 1.0}, [7, 9], 0, None, ran)
    told = "meanwhile batch 7 of prefill0 and batches 7 and 9 of decode0 ran, with requests 3 (1.000 s)"
    assert telling.instead(stage) == f"at prefill0 and decode0 it waited 1.000 s; {told}"


def test_causes_of_next_to_nothing_are_not_among_most(servetwin, run: Path) -> None:
    _, out, _ = servetwin("explain", run, "--worst", 60)
    assert "%" in out
    assert " 0 %" not in out


def test_as_json(servetwin, run: Path) -> None:
    code, out, _ = servetwin("explain", run, "--json", "--request", 7, "--request", 8)
    assert code == 0
    found = json.loads(out)
    assert [one["id"] for one in found] == [7, 8]
    for one in found:
        assert sum(one["seconds"].values()) == pytest.approx(one["latency"])
        assert sum(sum(stage["seconds"].values()) for stage in one["stages"]) == pytest.approx(one["latency"])


def test_a_run_in_which_all_were_met(servetwin, toy: Path, tmp_path: Path) -> None:
    servetwin("run", toy, "--slo", 1000, "--requests", 5, "--out", tmp_path / "met")
    assert servetwin("explain", tmp_path / "met")[:2] == (0, "every request of this run was met\n")


def test_bad_input_is_one_line(servetwin, run: Path, tmp_path: Path) -> None:
    cases = {
        ("--request", 999): "there is no request 999 (right would be: an id from 0 to 59)",
        ("--request", 1, "--worst", 3): "--request and --worst: both are given (right would be: one of the two)",
        ("--worst", 0): "--worst",
    }
    for options, words in cases.items():
        code, out, err = servetwin("explain", run, *options)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    for wrong in (tmp_path, tmp_path / "nowhere"):
        code, out, err = servetwin("explain", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "not a run folder" in err
    (run / "batches.jsonl").unlink()
    code, out, err = servetwin("explain", run)
    assert (code, out) == (2, "")
    assert "it has no batches.jsonl" in err


def cut(path: Path, lines: int) -> None:
    """Leave the first *lines* of the file *path*."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize("name", ["requests.jsonl", "batches.jsonl"])
def test_records_that_were_cut_are_refused(servetwin, run: Path, name: str) -> None:
    cut(run / name, 20)
    code, out, err = servetwin("explain", run)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{name}: it has " in err
    assert "summary.json counts" in err


def test_of_a_run_that_did_not_come_to_its_end_what_is_missing_is_not_recorded(servetwin, run: Path) -> None:
    late = missed(run)[0]["id"]
    last = json.loads((run / "batches.jsonl").read_text().splitlines()[19])["end"]
    cut(run / "batches.jsonl", 20)
    (run / "summary.json").unlink()
    code, out, _ = servetwin("explain", run, "--json", "--request", late)
    (one,) = json.loads(out)
    assert code == 0
    assert one["arrival"] > last or one["ended"] > last
    assert set(one["seconds"]) <= {"not recorded", "transfer"}
    assert sum(one["seconds"].values()) == pytest.approx(one["latency"])
    assert one["slack"] is one["lost"] is None
    assert any("did not come to its end" in note for note in one["notes"])
    assert any("where its time went there is not known" in note for note in one["notes"])
    cut(run / "requests.jsonl", 1)
    assert servetwin("explain", run)[1] == "every request that its records hold was met\n"


@pytest.mark.parametrize("key", ["finished", "deadline", "queued"])
def test_times_in_no_order_are_refused(servetwin, run: Path, key: str) -> None:
    lines = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    record = missed(run)[0]
    changed = next(r for r in lines if r["id"] == record["id"])
    (changed if key in changed else changed["stages"][0])[key] = changed["arrival"] - 2.0
    (run / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    code, out, err = servetwin("explain", run, "--request", record["id"])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert ("before its arrival" if key != "queued" else "in no order") in err


def test_why_most_failed_is_told_and_of_each_what_is_recorded(servetwin, tmp_path: Path) -> None:
    """A cache of 12 blocks holds 192 tokens: who wants more fails."""
    folder, file = tmp_path / "failed", tmp_path / "small.yaml"
    worker = "{modules: [llm], device: gpu0, limit: 8, engine: {blocks: 12}}"
    load = "{requests: 12, draws: seeded, arrivals: {process: poisson, rate: 2.0}}"
    file.write_text(f"extends: opt-13b-a6000\nname: small\nworkload: {load}\ndeployment: {{workers: [{worker}]}}\n")
    _, out, _ = servetwin("run", file, "--policy", "vllm-v1", "--out", folder)
    records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    reasons = Counter(record["reason"] for record in records if record["outcome"] == "failed")
    assert all("do not fit into llm" in reason or "does not fit into llm" in reason for reason in reasons)
    kinds = Counter(re.sub(r"\d+", "", reason) for reason in reasons.elements())
    kind, many = kinds.most_common(1)[0]
    alike = [reason for reason in reasons if re.sub(r"\d+", "", reason) == kind]
    reason = min(alike, key=lambda one: (-reasons[one], one)) + (" (or other numbers)" if len(alike) > 1 else "")
    told = " ".join(out.split())
    assert f"{many} failed: {reason}" in told
    if reasons.total() > many:
        assert f"{reasons.total() - many} failed for other reasons" in told
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed_most"] == {"reason": reason, "requests": many}
    found = explanation.explain(folder, requests=[r["id"] for r in records if r["outcome"] == "failed"])
    for one in found:
        if one.lost is None:
            assert telling.short_lost(one) == one.reason
        if one.slack is None or not one.slack.lost:
            assert telling.verdict(one) == f"it failed: {one.reason}"
    assert any(one.lost is None for one in found)
