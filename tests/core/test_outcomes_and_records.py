"""What a run leaves behind: requests with their SLOs and outcomes, a summary, the files of a run folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from harness import Script, WorkerSetup, one_stage, simulate
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import (
    AbsoluteSLO,
    BadInput,
    Batch,
    BatchWorker,
    Decision,
    FactorSLO,
    InvariantBroken,
    Module,
    Outcome,
    Pipeline,
    Repeat,
    Request,
    RunFolder,
    ServeTwinError,
    Summary,
    Task,
    WorkerView,
)
from servetwin.core.arithmetic.quantiles import median, quantiles
from servetwin.policies.diffusion.fcfs import FCFS

# -- SLOs -----------------------------------------------------------------------------------------------------


def test_a_factor_slo_is_a_multiple_of_the_request_alone() -> None:
    slo = FactorSLO(2.0, {"dit": 0.01, "vae": 0.5}, constant=0.1)
    assert slo.seconds({"dit": 100}) == pytest.approx(2.0 * (0.1 + 1.0 + 0.5))
    assert slo.seconds({}) == pytest.approx(2.0 * (0.1 + 0.01 + 0.5))  # what is not named runs once


def test_an_absolute_slo_is_the_same_for_all() -> None:
    slo = AbsoluteSLO(2.5)
    assert (slo.seconds({"dit": 1}), slo.seconds({"dit": 1000}), slo.factor) == (2.5, 2.5, None)


def test_a_request_knows_its_deadline() -> None:
    request = Request(7, 1.5, 2.0, {"dit": 3})
    assert (request.deadline, request.slo) == (3.5, 2.0)
    assert repr(request) == "<Request 7 arrival=1.5 deadline=3.5 live>"


def test_a_task_asks_for_the_iterations_of_its_stage() -> None:
    dit, vae = Pipeline.chain(Module("dit", loop=True), Module("vae")).stages([["dit"], ["vae"]])
    request = Request(7, 0.0, 2.0, {"dit": 3})
    assert (Task(request, dit, 0.0).left, Task(request, vae, 0.0).left) == (3, 1)
    assert Task(Request(8, 0.0, 2.0, {}), dit, 0.0).iterations == 1
    assert repr(Task(request, dit, 0.0)) == "<Task of 7 at dit: 3/3 left>"


# -- the view -------------------------------------------------------------------------------------------------


def test_solo_counts_what_is_left_here_and_all_that_follows() -> None:
    pipeline = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("decode", loop=True))
    seconds = {"clip": 0.5, "unet": 0.25, "vae": 2.0, "decode": 0.125}
    request = Request(1, 0.0, 9.0, {"unet": 4, "decode": 8})
    first, last = pipeline.stages([["clip", "unet", "vae"], ["decode"]])
    view = WorkerView(first, lambda module, n: seconds[module] * n, limit=4)
    task = Task(request, first, 0.0)
    assert view.solo(task) == 0.5 + 4 * 0.25 + 2.0 + 8 * 0.125
    task.left = 3  # the first iteration, and what stands before the loop, is done
    assert view.solo(task) == 3 * 0.25 + 2.0 + 8 * 0.125
    assert WorkerView(last, lambda module, n: seconds[module], limit=4).solo(Task(request, last, 0.0)) == 1.0
    assert view.estimate("clip", 3) == 1.5


# -- the summary ----------------------------------------------------------------------------------------------


def ended(id_: int, outcome: Outcome, arrival: float, finished: float | None) -> Request:
    request = Request(id_, arrival, 1.0, {})
    request.outcome, request.finished = outcome, finished
    return request


def test_a_summary_counts_met_only_as_goodput_and_failures_against_attainment() -> None:
    summary = Summary()
    ends = [
        (ended(1, Outcome.MET, 1.0, 1.5), 1.5),
        (ended(2, Outcome.LATE, 1.0, 3.5), 3.5),
        (ended(3, Outcome.DROPPED, 2.0, None), 4.0),
        (ended(4, Outcome.FAILED, 3.0, None), 6.0),
    ]
    for request, now in ends:
        summary.arrived(request)
        summary.ended(request, now)
    assert (summary.met, summary.finished, summary.attainment) == (1, 2, 0.25)
    d = summary.as_dict()
    assert {k: d[k] for k in ("requests", "met", "late", "dropped", "failed", "finished")} == {
        "requests": 4, "met": 1, "late": 1, "dropped": 1, "failed": 1, "finished": 2,
    }  # fmt: skip
    assert (d["duration"], d["arrival_span"]) == (5.0, 2.0)
    assert (d["request_goodput"], d["request_throughput"]) == (0.2, 0.4)
    assert (d["mean_e2el_ms"], d["median_e2el_ms"], d["std_e2el_ms"]) == (1500.0, 1500.0, 1000.0)
    assert d["p90_e2el_ms"] == pytest.approx(2300.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_percentiles_are_those_of_numpy_to_the_bit(values: list[float]) -> None:
    array = np.array(values)
    shares = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
    assert quantiles(array, shares) == [float(np.percentile(array, 100 * share)) for share in shares]
    assert median(array) == float(np.median(array))
    assert list(array) == values


def test_an_empty_summary_says_nothing_rather_than_nought() -> None:
    d = Summary().as_dict()
    assert (d["requests"], d["attainment"], d["mean_e2el_ms"], d["request_goodput"]) == (0, None, None, None)
    assert math.isnan(Summary().attainment)
    assert math.isnan(Summary().mean_batch_size("dit"))
    json.dumps(d, allow_nan=False)


def test_mean_batch_size_counts_every_iteration() -> None:
    (stage,) = Pipeline([Module("m", loop=True)], []).stages([["m"]])
    worker = BatchWorker(stage, FCFS(), WorkerView(stage, lambda m, n: 1.0, limit=9))
    tasks = [Task(Request(i, 0.0, 9.0, {"m": 9}), stage, 0.0) for i in range(3)]
    summary = Summary()
    summary.batch(Batch(1, worker.place, tasks[:1]))
    often = Batch(2, worker.place, tasks, repeat=Repeat(9))
    often.count = 3
    summary.batch(often)
    assert summary.mean_batch_size("m") == (1 + 3 * 3) / 4
    assert summary.as_dict()["workers"]["m"] == {
        "iterations": 4, "mean_batch_size": 2.5, "max_batch_size": 3, "batch_sizes": {"1": 1, "3": 3},
    }  # fmt: skip


# -- run folders ----------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_folder_holds_what_happened(tmp_path: Path) -> None:
    def decide(view, now):
        run = [t for t in [*view.running, *view.waiting] if t.id != 2]
        drop = [t for t in view.waiting if t.id == 2]
        return Decision(run, drop=drop, repeat=Repeat(run[0].left) if run else None)

    recorder = RunFolder(tmp_path / "run", {"seed": 7})
    pipeline = Pipeline.chain(Module("dit", loop=True), Module("vae"))
    requests = [Request(1, 0.5, 9.0, {"dit": 5}), Request(2, 0.75, 9.0, {"dit": 5})]
    simulate(
        pipeline, [WorkerSetup(["dit"], Script(decide)), WorkerSetup(["vae"], FCFS())], requests, recorder=recorder
    )
    recorder.close()

    assert json.loads((tmp_path / "run/meta.json").read_text()) == {"seed": 7}
    dropped, met = lines(tmp_path / "run/requests.jsonl")  # in the order in which they ended
    assert (dropped["id"], dropped["outcome"], dropped["reason"]) == (2, "dropped", "dropped at dit")
    assert (dropped["finished"], dropped["ended"]) == (None, 1.5)  # when the iteration in flight was over
    assert met == {
        "id": 1,
        "arrival": 0.5,
        "deadline": 9.5,
        "work": {"dit": 5},
        "outcome": "met",
        "reason": None,
        "finished": 6.5,
        "stages": [
            {"stage": "dit", "worker": "dit", "queued": 0.5, "admitted": 0.5, "started": 0.5, "finished": 5.5,
             "iterations": 5},
            {"stage": "vae", "worker": "vae", "queued": 5.5, "admitted": 5.5, "started": 5.5, "finished": 6.5,
             "iterations": 1},
        ],
    }  # fmt: skip
    batches = lines(tmp_path / "run/batches.jsonl")
    assert [(b["worker"], b["start"], b["end"], b.get("ends")) for b in batches] == [
        ("dit", 0.5, 1.5, None),  # it joins
        ("dit", 1.5, 5.5, [2.5, 3.5, 4.5, 5.5]),  # taken together; with the last it leaves
        ("vae", 5.5, 6.5, None),
    ]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["met"], summary["dropped"], summary["workers"]["dit"]["iterations"]) == (1, 1, 5)


def test_a_request_cut_off_between_iterations_taken_together_counts_those_that_are_over(tmp_path: Path) -> None:
    recorder = RunFolder(tmp_path, {})
    together = Script(lambda view, now: Decision(list(view.running or view.waiting), repeat=Repeat(9)))
    pipeline = Pipeline([Module("m", loop=True)], [])
    simulate(
        pipeline, [WorkerSetup(["m"], together)], [Request(1, 0.0, 9.0, {"m": 9})], recorder=recorder, stop_at=4.25
    )
    recorder.close()
    (request,) = lines(tmp_path / "requests.jsonl")
    assert (request["outcome"], request["stages"][0]["iterations"]) == ("failed", 4)
    assert request["ended"] == 4.25


def test_a_run_that_breaks_off_leaves_no_summary(tmp_path: Path) -> None:
    recorder = RunFolder(tmp_path / "ended", {})
    simulate(Pipeline([Module("m")], []), [WorkerSetup(["m"], FCFS())], [Request(1, 0.0, 9.0, {})], recorder=recorder)
    recorder.close(complete=False)
    assert sorted(p.name for p in (tmp_path / "ended").iterdir()) == ["batches.jsonl", "meta.json", "requests.jsonl"]
    assert lines(tmp_path / "ended" / "requests.jsonl")  # what had ended is kept
    RunFolder(tmp_path / "nothing", {}).close(complete=False)
    assert [p.name for p in tmp_path.iterdir()] == ["ended"]  # and of nothing there is no folder


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    RunFolder(tmp_path, {}).close()
    with pytest.raises(FileExistsError):
        RunFolder(tmp_path, {})


# -- errors ---------------------------------------------------------------------------------------------------


def test_bad_input_says_what_where_and_what_would_be_right() -> None:
    assert str(BadInput("the rate is -1", where="exp.yaml", right="above 0")) == (
        "exp.yaml: the rate is -1 (right would be: above 0)"
    )
    assert str(BadInput("the rate is -1")) == "the rate is -1"
    assert (BadInput.exit_code, InvariantBroken.exit_code) == (2, 1)
    assert issubclass(BadInput, ServeTwinError)


def test_outcomes_of_a_small_run() -> None:
    requests = [Request(i, 0.0, slo, {}) for i, slo in enumerate([1.0, 1.9, 3.0])]
    run = one_stage(FCFS(), requests, loop=False, limit=1)
    assert run.outcomes() == ["met", "late", "met"]
    assert run.stamps("m") == [(0.0, 0.0, 1.0), (0.0, 1.0, 2.0), (0.0, 2.0, 3.0)]


def test_one_reason_at_several_replicas_is_one_reason() -> None:
    """And so is one with other numbers: who reads it wants to know why, not where."""
    summary = Summary()
    summary.failures.update({"llm@gpu0.3 failed": 6, "llm@gpu0.2 failed": 5, "llm failed": 4, "a script said no": 9})
    told = summary.as_dict()["failed_most"]
    assert told == {"reason": "llm failed", "requests": 15}
    long = {f"its prompt of {n} tokens does not fit into llm@gpu0#2": 1 for n in (900, 901, 902, 903)}
    summary.failures = Counter({"llm failed": 3, **long})
    told = summary.as_dict()["failed_most"]
    assert told == {"reason": "its prompt of 900 tokens does not fit into llm (or other numbers)", "requests": 4}
