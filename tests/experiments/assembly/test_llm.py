"""Experiments with language models: lengths, deadlines, what is reported, what is said when something is wrong."""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from plain_llm import Deadlines, serve
from servetwin.core import BadInput, Module, Pipeline, Recorder, Request
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.llm import LimitsSLO, TokenDeadlines, TokenLimits, TokenTask
from servetwin.core.llm.token_gaps import Gaps
from servetwin.experiments.assembly import build
from servetwin.experiments.capacity.search import Asked, answers
from servetwin.experiments.plotting import paper_figures
from servetwin.experiments.spec.experiment import Experiment, Gamma
from servetwin.experiments.spec.llm import Lengths
from servetwin.experiments.spec.loading import load
from servetwin.experiments.spec.published_draws import LLM_SEEDS, listed
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.point import results_of, settings_of
from servetwin.experiments.validation.comparison.compare_runs import compare
from servetwin.experiments.workload.draws import arrival_times
from servetwin.experiments.workload.lengths import triples
from servetwin.experiments.workload.traces import sample
from servetwin.profiles import load as profile

OPT = "opt-13b-a6000"


def small(*overrides, requests=30, **keys) -> Experiment:
    """OPT-13B with few requests of short outputs, unless told otherwise."""
    given = [("requests", requests), ("workload.lengths.llm.output.tokens", 20), *overrides, *keys.items()]
    return load(OPT, given)


# -- lengths and arrivals ---------------------------------------------------------------------------------


def lengths(content, context=2048, count=1000, seed=0):
    spec = Lengths.model_validate(content)
    return list(islice(triples("llm", spec, context, seed=seed), count))


FIXED = {"draw": "constant", "tokens": 100}


def test_the_requests_of_the_artifact():
    source = build.build(load(OPT)).source
    requests = list(source)
    assert len(requests) == 1000
    prompts = [r.tokens["llm"][0] for r in requests]
    assert prompts == [*listed("neustream-llm-prompts")] * 10
    assert (min(prompts), max(prompts)) == (40, 462)
    assert prompts[12] == prompts[11]  # as its script replaces it
    assert {r.tokens["llm"][1] for r in requests} == {300}
    assert {r.outputs["llm"] for r in requests} == {300}


@pytest.mark.reference
def test_arrivals_and_prompts_are_those_of_the_reference():
    beside = Path(__file__).parents[4] / "shared/reference/neustream-ae"
    folder = Path(os.environ.get("SERVETWIN_REFERENCE", beside)) / "llm"
    if not folder.is_dir():
        pytest.skip("no reference data")
    with gzip.open(folder / "arrivals.json.gz", "rt") as file:
        published = json.load(file)
    assert {float(cv): p["seed"] for cv, p in published.items()} == LLM_SEEDS
    for cv, p in published.items():
        for rate in (1.0, 1.7):
            spec = Gamma(process="gamma", rate=rate, cv=float(cv))
            ours = list(islice(arrival_times(spec, seed=5, published=True, seeds=LLM_SEEDS), 1000))
            np.testing.assert_allclose(ours, np.cumsum(p["gaps_at_rate_1"]) / rate, rtol=1e-12)
    lines = (folder / "request_lengths.csv").read_text().split()[1:]
    rows = {int(r[0]): r for r in (line.split(",") for line in lines)}
    assert [int(rows[int(r[3])][2]) for r in rows.values()] == [*listed("neustream-llm-prompts")]


def test_arrivals_of_the_artifact_are_the_same_in_every_version():
    spec = Gamma(process="gamma", rate=2.0, cv=1.0)
    first = list(islice(arrival_times(spec, seed=0, published=True, seeds=LLM_SEEDS), 3))
    gaps_at_rate_1 = [3.4121523390980637, 0.79237597630738, 3.600295845773766]
    assert first == pytest.approx(np.cumsum(gaps_at_rate_1) / 2.0, rel=1e-12)


def test_drawn_lengths():
    uniform = lengths({"prompt": {"draw": "uniform", "low": 10, "high": 20}, "output": FIXED})
    assert {p for p, _, _ in uniform} == set(range(10, 21))
    assert {(limit, out) for _, limit, out in uniform} == {(100, 100)}
    chosen = lengths({"prompt": FIXED, "output": {"draw": "choice", "values": [5, 50], "weights": [3, 1]}})
    assert 0.2 < sum(out == 50 for _, _, out in chosen) / 1000 < 0.3
    assert {limit for _, limit, _ in chosen} == {50}  # what is declared does not tell them apart
    assert lengths({"prompt": FIXED, "output": FIXED}, seed=1) == lengths({"prompt": FIXED, "output": FIXED})


def test_lognormal_lengths_have_the_median_and_the_90th_percentile_asked_for():
    draw = {"draw": "lognormal", "median": 415, "p90": 834, "high": 100_000}
    found = [out for _, _, out in lengths({"prompt": FIXED, "output": draw}, context=10**6, count=20_000)]
    assert np.median(found) == pytest.approx(415, rel=0.03)
    assert np.percentile(found, 90) == pytest.approx(834, rel=0.03)
    cut = lengths({"prompt": FIXED, "output": {**draw, "low": 300, "high": 500}})
    assert {limit for _, limit, _ in cut} == {500}
    assert min(out for _, _, out in cut) == 300


def test_what_does_not_fit_the_engines_context():
    spec = {"prompt": {"draw": "constant", "tokens": 2040}, "output": FIXED}
    with pytest.raises(BadInput, match="request 0 generates 100 tokens after a prompt of 2040, but the engine takes"):
        lengths(spec)
    assert lengths({**spec, "truncate": True}, count=1) == [(2040, 8, 8)]
    long = {"prompt": {"draw": "constant", "tokens": 3000}, "output": FIXED}
    with pytest.raises(BadInput, match="request 0 has a prompt of 3000 tokens, but the engine takes 2048 in all"):
        lengths(long)
    assert lengths({**long, "truncate": True}, count=1) == [(1948, 100, 100)]


@pytest.mark.parametrize("name", ["azure.csv", "burstgpt.csv", "mooncake.jsonl"])
def test_llm_traces(name):
    trace = {"process": "trace", "file": str(sample(name)), "rate": 1.0}
    drawn = {"draw": "trace"}
    settings = {"prompt": drawn, "output": drawn, "limit": 1024, "truncate": True}
    tree = load(OPT).as_dict()
    tree["workload"] |= {"requests": None, "arrivals": trace, "lengths": {"llm": settings}, "draws": "seeded"}
    summary = build.run(load(tree)).as_dict()
    assert summary["requests"] > 15
    assert summary["completed"] + summary["dropped"] == summary["requests"]
    assert summary["total_input_tokens"] > 0


# -- what is reported -------------------------------------------------------------------------------------


def test_one_request_alone():
    """Prompt of 343 tokens: the prefill of 352, then steps of one sequence that grow by a token each."""
    summary = build.run(small(requests=1)).as_dict()
    table = profile("a6000/opt-13b-tp1").tokens("measured")
    ttft, steps = table.prefill(343), [table.decode(1, 343 + k) for k in range(19)]
    assert summary["mean_ttft_ms"] == pytest.approx(1000 * ttft)
    assert summary["mean_tpot_ms"] == pytest.approx(1000 * sum(steps) / 19)
    assert summary["median_itl_ms"] == pytest.approx(1000 * steps[9])
    assert summary["mean_e2el_ms"] == pytest.approx(1000 * (ttft + sum(steps)))
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (343, 20)
    assert summary["output_throughput"] == pytest.approx(20 / (ttft + sum(steps)))
    assert summary["token_goodput"] == summary["token_goodput_artifact"] == summary["output_throughput"]
    assert summary["prefill_goodput"] == summary["decode_goodput"] == summary["request_goodput"]
    assert summary["llm"]["llm"]["completed"] == summary["completed"] == 1


def task(times, prompt=100, arrival=0.0):
    """A task that has generated its tokens at these times."""
    (stage,) = Pipeline.chain(Module("llm", loop=True)).stages([["llm"]])
    request = Request(0, arrival, 100.0, {})
    made = TokenTask(request, stage, arrival, None, prompt, 100)
    request.tasks.append(made)
    made.computed, made.generated = prompt + len(times) - 1, len(times)
    made.first_token, made.finished = times[0], times[-1]
    made.token_times = times
    return made


def test_deadlines_of_tokens_follow_the_closed_form():
    slo = TokenDeadlines(3.0, 1.5, 0.04, 1e-5, lambda n: n * 0.001)
    made = task([0.2, 0.5, 0.6, 0.61], arrival=0.1)
    ideal = [0.0, 0.04 + 1e-5 * 101, 0.08 + 1e-5 * (101 + 102), 0.12 + 1e-5 * (101 + 102 + 103)]
    expected = [0.1 + 3 * 0.1 + 1.5 * i for i in ideal]
    assert slo.deadlines(made) == pytest.approx(expected)
    assert [slo.deadline(made, j) for j in (1, 2, 3, 4)] == pytest.approx(expected)
    assert not slo.met(made)  # the second came at 0.5, due at 0.4615
    assert TokenDeadlines(3.0, 1.5, 0.04, 1e-5, lambda n: n * 0.001, meets="last").met(
        task([0.2, 0.5, 0.5, 0.58], arrival=0.1)
    )


def test_limits_are_those_of_vllm_bench_serve():
    limits = TokenLimits(ttft=0.3, tpot=0.1)
    assert LimitsSLO.of(limits).met(task([0.3, 0.35, 0.5]))  # tpot is a mean
    assert not LimitsSLO.of(limits).met(task([0.31, 0.35, 0.5]))
    assert not LimitsSLO.of(TokenLimits(itl=0.1)).met(task([0.3, 0.35, 0.5]))
    assert LimitsSLO.of(TokenLimits(tpot=0.01)).met(task([5.0]))  # a single token has no tpot
    assert not LimitsSLO.of(TokenLimits(e2el=0.4)).met(task([0.3, 0.35, 0.5]))
    assert LimitsSLO.of(limits).deadline(task([0.3]), 3) == pytest.approx(0.3 + 2 * 0.1)


def test_both_kinds_of_goodput_side_by_side():
    summary = build.run(small(("slo.limits", {"ttft_ms": 200.0, "tpot_ms": 60.0}), rate=4.0, policy="vllm")).as_dict()
    assert summary["requests"] == summary["completed"] == 30
    assert 0 < summary["within_limits"] < 30
    assert summary["limits_goodput"] == pytest.approx(summary["within_limits"] / summary["duration"])
    assert summary["on_time_tokens"] + summary["late_tokens"] == 600
    assert summary["token_goodput"] == pytest.approx(summary["on_time_tokens"] / summary["duration"])
    only = small(("slo", {"limits": {"ttft_ms": 200.0, "tpot_ms": 60.0}}), rate=4.0, policy="vllm")
    assert build.run(only).as_dict()["met"] == summary["within_limits"]
    assert "token_goodput" not in build.run(only).as_dict()


def test_gaps_in_bins_are_those_kept_one_by_one():
    times = np.cumsum(np.random.default_rng(0).lognormal(-3, 0.5, 5000)).tolist()
    exact, binned = Gaps(), Gaps(most=100)
    for gaps in (exact, binned):
        for i in range(0, 5000, 50):
            gaps.add(times[i : i + 50])
    assert binned.statistics() == pytest.approx(exact.statistics(), rel=2e-3)
    assert Gaps().statistics() is None


# -- runs -------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_records(tmp_path):
    experiment = small(rate=3.0)
    for name in ("a", "b"):
        build.run(experiment, tmp_path / name)
    assert (tmp_path / "a/requests.jsonl").read_bytes() == (tmp_path / "b/requests.jsonl").read_bytes()
    record = json.loads((tmp_path / "a/requests.jsonl").read_text().splitlines()[0])
    assert record["deadline"] is None
    assert record["stages"][0]["generated"] == 20
    assert "tokens" not in record["stages"][0]
    build.run(small(("records.tokens", True), rate=3.0), tmp_path / "c")
    (stay,) = json.loads((tmp_path / "c/requests.jsonl").read_text().splitlines()[0])["stages"]
    assert len(stay["tokens"]) == 20
    assert (stay["tokens"][0], stay["tokens"][-1]) == (stay["first_token"], stay["last_token"])
    assert load(tmp_path / "a/experiment.yaml") == experiment
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found["same_outcome"] == 100.0


@pytest.mark.parametrize("policy", ["neustream-llm", "vllm", "vllm-v1", "sarathi", "edf-llm"])
def test_every_policy_serves_with_noise(policy):
    summary = build.run(small(("time.noise", True), policy=policy, rate=3.0)).as_dict()
    assert summary["met"] + summary["late"] + summary["dropped"] == 30
    assert summary["met"] > 0


@pytest.mark.parametrize("blocks", [1403, 120])
@pytest.mark.parametrize("policy", ["neustream-llm", "vllm", "vllm-v1", "sarathi", "edf-llm"])
def test_the_workload_keeps_the_invariants(policy, blocks):
    """With memory for all, and with so little that requests are preempted; blocks are conserved either way."""
    experiment = small(("deployment.workers.0.engine.blocks", blocks), requests=60, policy=policy, rate=12.0)
    experiment = load(experiment.as_dict(), [("workload.lengths.llm.output.tokens", 60)])
    checker = InvariantChecker()
    run = build.build(experiment, checker)
    checker.watch(run.loop)
    summary = run.play().as_dict()
    checker.finish()
    assert summary["met"] + summary["late"] + summary["dropped"] == 60
    assert (summary["preemptions"] > 0) == (blocks == 120)


def test_what_the_engine_allows_comes_from_the_profile_unless_it_is_given():
    given = {"blocks": 64, "max_batched_tokens": 512, "preemption": "swap"}
    with pytest.raises(BadInput, match="does not say how long KV blocks take to the host and back"):
        build.build(small(("deployment.workers.0.engine", given)))
    run = build.build(small(("deployment.workers.0.engine", given), ("time.costs", False)))
    view = run.loop.workers[0].view
    assert (view.blocks, view.max_batched_tokens, view.max_sequences) == (64, 512, 256)
    assert view.limits.watermark == 0.01
    assert build.build(small()).loop.workers[0].view.blocks == 1403
    pressed = small(("deployment.workers.0.engine", {"blocks": 64, "headroom": 1}), rate=20.0, policy="vllm")
    assert build.run(pressed).as_dict()["preemptions"] > 0


@pytest.mark.parametrize("router", ["least_loaded", "least_violating", "round_robin"])
def test_replicas_of_an_engine(router):
    two = small(("deployment.replicas", 2), ("router", router), rate=4.0, policy="vllm")
    one = small(rate=4.0, policy="vllm")
    assert len(build.build(two).loop.workers) == 2
    fast, slow = build.run(two).as_dict(), build.run(one).as_dict()
    assert fast["completed"] == slow["completed"] == 30
    assert fast["mean_tpot_ms"] < slow["mean_tpot_ms"]
    assert [w["iterations"] > 0 for w in fast["workers"].values()] == [True, True]


def test_swapping_takes_the_time_that_was_measured(tmp_path):
    content = profile("a6000/opt-13b-tp1").data.model_dump(mode="json", exclude_none=True)
    how = {"how": "made up", "source": {"file": "here"}}
    swap = {"meaning": "a block", "unit": "seconds", "modules": ["decode"], **how}
    engine = {"blocks": 64, "headroom": 1, "preemption": "swap"}
    took = []
    for name, form in (("fast", {"value": 1e-9}), ("slow", {"line": {"constant": 0.1, "per_request": 0.01}})):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**content, "costs": {"kv.swap": {**swap, **form}}}))
        given = [("deployment.devices", {"gpu0": str(path)}), ("deployment.workers.0.engine", engine)]
        summary = build.run(small(*given, rate=20.0, policy="vllm")).as_dict()
        assert summary["preemptions"] > 0
        assert summary["completed"] == 30
        took.append(summary["mean_e2el_ms"])
    assert took[1] > took[0] + 100


def test_sweeps_and_searches(tmp_path):
    spec = tmp_path / "spec.yaml"
    lengths = "{workload.lengths.llm.output.tokens: 20, requests: 30}"
    spec.write_text(
        f"name: toy\nsweeps:\n  - extends: {OPT}\n    set: {lengths}\n"
        "    grid: {policy: [neustream-llm, vllm], decode_slo: [1.2, 2.0]}\n"
    )
    rows = sweep.sweep(spec, tmp_path / "rows.csv", jobs=1)
    assert [(r["policy"], r["decode_slo"]) for r in rows] == [
        ("neustream-llm", 1.2),
        ("neustream-llm", 2.0),
        ("vllm", 1.2),
        ("vllm", 2.0),
    ]
    assert all(r["token_goodput"] > 0 and r["slo_factor"] is None for r in rows)
    repeated = sweep.sweep(spec, tmp_path / "more.csv", jobs=1, seeds=2)
    assert repeated[0]["seeds"] == 2
    asked = Asked("rate", [0.9], 2, requests=60)
    (answer,) = answers([OPT], ["vllm"], asked, [("workload.lengths.llm.output.tokens", 20)], jobs=1)
    assert 1.0 < answer.found.value < 20.0


def test_figure_14_is_a_grid_of_three_models_and_two_policies(tmp_path):
    path = sweep.find("figure14")
    experiments, _ = sweep.points(sweep.read(path), path)
    assert {e.name for e in experiments} == {"opt-13b-a6000", "opt-30b-a6000", "opt-66b-a6000"}
    assert {e.policy.name for e in experiments} == {"neustream-llm", "vllm"}
    assert len(experiments) == 3 * 2 * (9 + 7 + 5)
    few = [e for e in experiments if e.name == OPT][:9]
    small_ones = [load(e.as_dict(), [("requests", 20)]) for e in few]
    rows = [{**settings_of(e), **results_of(e, build.run(e))} for e in small_ones]
    for ending in ("png", "svg"):
        path = tmp_path / f"figure.{ending}"
        paper_figures.token_figure(rows).save(path)
        drawn = path.read_bytes()
        paper_figures.token_figure(rows).save(path)
        assert path.read_bytes() == drawn


def test_figure_15_runs_on_what_was_measured(tmp_path):
    content = sweep.find("figure15").read_text()
    spec = tmp_path / "figure15.yaml"
    spec.write_text(content.replace("rate: 6.0", "rate: 6.0\n      requests: 10"))
    assert len(sweep.sweep(spec, tmp_path / "rows.csv", jobs=1)) == 2 * (9 + 7 + 5)


# -- what is wrong ----------------------------------------------------------------------------------------

WRONG = [
    ("slo.facter", 2, "slo has no key 'facter'"),
    ("slo", {"prefill": 3.0}, "slo.decode: prefill and decode go together"),
    ("slo", {"limits": {}}, "nothing is promised"),
    ("slo", {"limits": {"ttft": 1.0}}, "unknown key 'ttft' (right would be: ttft_ms)"),
    ("slo", {"factor": 2.0}, "an LLM module has no solo latency that a factor could be of"),
    ("workload.lengths.llm.output", {"draw": "trace"}, "the arrivals come from no trace"),
    ("workload.lengths.llm.output", {"draw": "gaussian"}, "unknown draw 'gaussian'"),
    ("workload.lengths.llm.prompt", {"draw": "listed", "name": "sharegpt"}, "unknown list 'sharegpt'"),
    (
        "workload.lengths.llm.prompt",
        {"draw": "uniform", "low": 1, "high": 2},
        "artifact has no uniform lengths that could be repeated",
    ),
    ("workload.lengths", {}, "no lengths for the module 'llm'"),
    ("workload.lengths", {"unet": {"prompt": FIXED, "output": FIXED}}, "'unet' is not a module of kind llm"),
    ("workload.steps", {"llm": {"draw": "constant", "steps": 3}}, "'llm' is not a loop module"),
    ("cv", 5.0, "there is no published seed for cv 5"),
    ("policy", "neustream", "neustream is no policy for language models"),
    ("deployment.workers.0.engine", {"blokcs": 3}, "unknown key 'blokcs' (right would be: blocks)"),
    ("deployment.workers.0.engine", {"preemption": "drop"}, "does not fit (right would be: 'recompute' or 'swap'"),
    ("deployment.devices", {"gpu0": "rtx4090/sd15-512"}, "this is no profile of a language model"),
    (
        "deployment.workers",
        [{"modules": ["llm"], "device": "gpu0", "limit": 8, "name": name} for name in "ab"],
        "a, b share a device, and a6000/opt-13b-tp1 does not say what they cost each other",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(WRONG)])
def test_what_is_wrong_is_said_in_one_line(key, value, message):
    with pytest.raises(BadInput) as error:
        build.build(load(OPT, [(key, value)]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_policies_are_for_the_one_or_the_other():
    with pytest.raises(BadInput, match="vllm is a policy for language models, and dit is none"):
        build.build(load("dit-s2-256-rtx4090", [("policy", "vllm")]))
    with pytest.raises(BadInput, match="there is no module of kind llm"):
        load("dit-s2-256-rtx4090", [("slo", {"prefill": 3.0, "decode": 1.5})])
    with pytest.raises(BadInput, match="only models of LLM modules are corrected"):
        load("dit-s2-256-rtx4090", [("time.table", "corrected")])


def test_only_the_trace_knows_outputs_so_a_limit_is_declared():
    tree = load(OPT).as_dict()
    trace = {"process": "trace", "file": str(sample("azure.csv"))}
    drawn = {"prompt": {"draw": "trace"}, "output": {"draw": "trace"}}
    tree["workload"] |= {"requests": None, "arrivals": trace, "lengths": {"llm": drawn}, "draws": "seeded"}
    with pytest.raises(BadInput, match="only the trace knows how long outputs are, and policies must not"):
        load(tree)


# -- the regime -------------------------------------------------------------------------------------------


def goodput(policy, rate, **more):
    return build.run(load(OPT, [("policy", policy), ("rate", rate), *more.items()])).as_dict()["token_goodput"]


def test_the_regime_of_opt_13b_on_an_a6000():
    """SLO 3+1.5, cv 1, decode with the authors' offset; docs/reports/2026-11-figure-14-opt.md tells what is
    known. No measured run exists.
    """
    assert goodput("neustream-llm", 1.0) == pytest.approx(goodput("vllm", 1.0), rel=0.01)
    assert goodput("neustream-llm", 1.0) == pytest.approx(290, rel=0.02)
    assert 400 < goodput("neustream-llm", 2.0) < 500
    assert 180 < goodput("vllm", 2.0) < 260
    assert 400 < goodput("neustream-llm", 4.0) < 500
    assert goodput("vllm", 4.0) < 15


class EveryToken(Recorder):
    """Keeps the times of all tokens by request."""

    def __init__(self):
        super().__init__()
        self.times = {}

    def ended(self, request, now):
        super().ended(request, now)
        self.times[request.id] = [t for task in request.tasks for t in task.times()]


@pytest.mark.parametrize(
    ("policy", "name", "rate", "requests", "blocks", "params"),
    [
        ("vllm", OPT, 2.0, 300, 1403, {}),
        ("vllm", OPT, 4.0, 300, 700, {}),
        ("neustream-llm", OPT, 2.0, 300, 1403, {}),
        ("neustream-llm", OPT, 4.0, 500, 1403, {"batch_cost": "queue"}),
        ("neustream-llm", OPT, 4.0, 500, 1403, {"offset": True}),
        ("neustream-llm", "opt-66b-a6000", 3.0, 300, 1187, {"b0": 0.072}),
    ],
)
def test_every_token_comes_when_a_plain_loop_says(policy, name, rate, requests, blocks, params):
    """`plain_llm` was written apart from the engine and its policies; the two must agree token by token."""
    given = [
        ("policy", policy),
        ("rate", rate),
        ("requests", requests),
        ("deployment.workers.0.engine.blocks", blocks),
    ]
    experiment = load(name, [*given, *((f"policy.params.{k}", v) for k, v in params.items())])
    recorder = EveryToken()
    summary = build.build(experiment, recorder).play()
    opt = profile(experiment.deployment.devices["gpu0"])
    plans = opt.tokens("scheduler")
    quirks = [q for q, on in (("queue", "batch_cost" in params), ("offset", "offset" in params)) if on]
    options = {"slo": Deadlines(3.0, 1.5, plans), "b0": params.get("b0"), "quirks": tuple(quirks)}
    plain = serve(
        list(build.build(experiment).source),
        opt.tokens("corrected"),
        plans,
        blocks,
        **(options if policy == "neustream-llm" else {}),
    )
    assert {r.number for r in plain.dropped} == {i for i in recorder.times if len(recorder.times[i]) < 300}
    for r in [*plain.done, *plain.dropped]:
        assert recorder.times[r.number] == pytest.approx(r.times, rel=1e-9)
    assert summary.as_dict()["preemptions"] == plain.preemptions
    assert (plain.preemptions > 0) == (blocks == 700)


def test_two_runs_side_by_side(tmp_path, servetwin):
    build.run(small(rate=3.0, policy="vllm"), tmp_path / "a")
    build.run(small(("time.table", "measured"), rate=3.0, policy="vllm-v1"), tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b")
    ttft = found["tokens"]["llm"]["mean_ttft_ms"]
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab"]
    assert [ttft["first"], ttft["second"]] == [s["mean_ttft_ms"] for s in summaries]
    kinds = found["steps"]["llm"]
    assert set(kinds) == {"prefill", "decode", "mixed"}
    assert "first" not in kinds["mixed"]  # vLLM 0.5.4 never mixes
    for kind in kinds:
        assert kinds[kind]["second"]["over_table"] == pytest.approx(1.0)  # simulated with that very table
    assert kinds["decode"]["first"]["over_table"] >= 1.0  # corrected: 2 ms and more for some
    assert sum(k["second"]["steps"] for k in kinds.values()) == summaries[1]["workers"]["llm"]["iterations"]
    code, shown, err = servetwin("compare", tmp_path / "a", tmp_path / "b")
    assert (code, err) == (0, "")
    assert "mean ttft, ms of llm" in shown
    assert "B / table" in shown
