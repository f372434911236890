"""What prompts begin with: drawn by groups, from a trace, by class; and what it comes to in a run."""

from __future__ import annotations

import json

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.traces import sample

from servetwin import run as servetwin_run

OPT = "opt-13b-a6000"
CACHING = ("deployment.workers.0.engine.enable_prefix_caching", True)
DRAWN = [
    ("policy", "vllm-v1"),
    ("workload.draws", "seeded"),
    ("workload.requests", 300),
    ("workload.arrivals.rate", 3.0),
    ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 100, "high": 600}),
    ("workload.lengths.llm.output", {"draw": "uniform", "low": 5, "high": 60}),
]
GROUPS = ("workload.lengths.llm.prefix", {"draw": "shared", "groups": 4, "tokens": 200})


def sent(changes):
    return list(build(load(OPT, changes)).source)


def test_groups_change_neither_arrivals_nor_lengths():
    plain, grouped = sent(DRAWN), sent([*DRAWN, GROUPS])
    assert [(r.arrival, r.tokens, r.outputs) for r in plain] == [(r.arrival, r.tokens, r.outputs) for r in grouped]
    assert all(r.prefix is None for r in plain)
    contents = [r.prefix["llm"] for r in grouped]
    assert len(set(contents)) == 4
    assert all(content.tokens(1000) == 200 and content.tokens(150) == 150 for content in contents)
    assert contents != [r.prefix["llm"] for r in sent([*DRAWN, GROUPS, ("seed", 1)])]


def test_a_run_tells_what_was_found(tmp_path):
    found = servetwin_run(OPT, settings=dict([*DRAWN, GROUPS, CACHING]), folder=tmp_path / "run")
    summary = found.summary
    assert 0.3 < summary["prefix_cache_hit_rate"] < 0.6
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    stays = [record["stages"][0] for record in records]
    assert sum(stay["cached"] for stay in stays) == summary["prefix_cache_hits"]
    assert sum(stay["prompt"] for stay in stays) == summary["prefix_cache_queries"]
    # The first 12 blocks of 16 are all of one group, but for the first request of each.
    assert {stay["cached"] for stay in stays if stay["prompt"] > 200} <= {0, 192}
    without = servetwin_run(OPT, settings=dict([*DRAWN, GROUPS])).summary
    assert "prefix_cache_hits" not in without
    assert summary["mean_ttft_ms"] < without["mean_ttft_ms"]


def test_a_prefix_that_no_engine_caches_is_told(servetwin, tmp_path):
    line = "no engine caches prefixes (engine: {enable_prefix_caching: true})"
    changes = [*DRAWN, ("workload.requests", 20)]
    lengths = {key.rpartition(".")[2]: value for key, value in [*DRAWN, GROUPS] if "lengths" in key}
    of_a_class = ("workload.classes", {"chat": {"share": 1, "lengths": {"llm": lengths}}})
    for more in ([GROUPS], [of_a_class]):
        assert servetwin_run(OPT, settings=dict([*changes, *more])).summary["prefix"] == line
        for own in (changes, [*changes, *more, CACHING]):
            assert "no engine" not in servetwin_run(OPT, settings=dict(own)).summary.get("prefix", "")
    options = [f"--set={key}={json.dumps(value)}" for key, value in dict([*changes, GROUPS]).items()]
    code, out, err = servetwin("run", OPT, *options, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert f"\nprefix: {line}\n" in out
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["input"]["prefix"] == line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["prefix"] == line


def test_without_a_prefix_the_cache_changes_nothing():
    changes = [*DRAWN, ("workload.requests", 100), ("workload.arrivals.rate", 1.0)]
    plain = servetwin_run(OPT, settings=dict(changes)).summary
    cached = servetwin_run(OPT, settings=dict([*changes, CACHING])).summary
    assert cached["prefix_cache_hits"] == cached["preemptions"] == 0
    assert {key: value for key, value in cached.items() if key in plain and key != "llm"} == {
        key: value for key, value in plain.items() if key != "llm"
    }


def test_a_class_has_groups_of_its_own():
    lengths = {"prompt": {"draw": "constant", "tokens": 300}, "output": {"draw": "constant", "tokens": 5}}
    classes = {
        "chat": {"share": 0.5, "lengths": {"llm": {**lengths, "prefix": {"draw": "shared", "tokens": 100}}}},
        "code": {"share": 0.3, "lengths": {"llm": lengths}},
        "rest": {"share": 0.2},
    }
    requests = sent([*DRAWN, GROUPS, ("workload.classes", classes)])
    sizes = {name: {r.prefix and r.prefix["llm"].size for r in requests if r.class_name == name} for name in classes}
    assert sizes == {"chat": {100}, "code": {None}, "rest": {200}}


def traced(tmp_path, *lines):
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw = {"draw": "trace"}
    return [
        ("policy", "vllm-v1"),
        ("workload.draws", "seeded"),
        ("workload.requests", None),
        ("workload.arrivals", {"process": "trace", "file": str(tmp_path / "trace.jsonl")}),
        ("workload.lengths.llm", {"prompt": draw, "output": draw, "prefix": draw, "limit": 100, "truncate": True}),
        CACHING,
    ]


def line(at, prompt, *hashes):
    return {"timestamp": at, "input_length": prompt, "output_length": 5, "hash_ids": list(hashes)}


def test_hashes_of_a_trace_say_what_is_shared(tmp_path):
    lines = [line(0, 1500, 1, 2, 3), line(9000, 1300, 1, 2, 4), line(20000, 1200, 1, 5, 4)]
    servetwin_run(OPT, settings=dict(traced(tmp_path, *lines)), folder=tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    # Of hashes that are the same after others that are not, nothing is found.
    assert [record["stages"][0]["cached"] for record in records] == [0, 1024, 512]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (line(5000, 1300, 1, 2), "trace.jsonl:2: hash_ids: 2 hashes of 512 tokens each for a prompt of 1300 tokens"),
        (line(5000, 500, 1, 2), "trace.jsonl:2: hash_ids: 2 hashes of 512 tokens each for a prompt of 500 tokens"),
        (
            {"timestamp": 5000, "input_length": 9, "output_length": 5},
            "trace.jsonl:2: hash_ids: the trace does not say what prompts begin with",
        ),
    ],
)
def test_hashes_that_contradict_lengths_are_refused(tmp_path, wrong, said):
    with pytest.raises(BadInput) as error:
        sent(traced(tmp_path, line(0, 100, 1), wrong))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_sample_of_mooncake_has_hashes_that_fit(tmp_path):
    changes = traced(tmp_path)
    changes[3] = ("workload.arrivals", {"process": "trace", "file": str(sample("mooncake.jsonl"))})
    assert servetwin_run(OPT, settings=dict(changes)).summary["prefix_cache_hit_rate"] > 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([("workload.lengths.llm.prefix", {"draw": "trace"})], "the arrivals come from no trace"),
        ([GROUPS, CACHING, ("deployment.workers.0.engine.keep_freed", True)], "keep_freed"),
        ([GROUPS, CACHING, ("deployment.workers.0.engine.preemption", "swap")], "preemption"),
        ([("workload.lengths.llm.prefix", {"draw": "shared", "groups": 0, "tokens": 5})], "groups"),
    ],
)
def test_what_does_not_fit_together(more, said):
    with pytest.raises(BadInput, match=said) as error:
        load(OPT, [*DRAWN, *more])
    assert "\n" not in str(error.value)


def test_prompts_that_are_shorter_than_what_is_shared_are_counted_and_told(servetwin, tmp_path):
    long = ("workload.lengths.llm.prefix", {"draw": "shared", "groups": 4, "tokens": 350})
    prompts = [r.tokens["llm"][0] for r in sent([*DRAWN, long])]
    short = sum(prompt < 350 for prompt in prompts)
    assert 100 < short < 200
    line = f"llm: {short} of 300 prompts are but the beginning of the 350 tokens shared"
    options = [f"--set={key}={json.dumps(value)}" for key, value in dict([*DRAWN, long, CACHING]).items()]
    code, out, err = servetwin("run", OPT, *options, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert f"\nprefix: {line}\n" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["prefix"] == line
    own = {"llm": {"prompt": {"draw": "constant", "tokens": 349}, **{k.rpartition(".")[2]: v for k, v in DRAWN[-1:]}}}
    own["llm"]["prefix"] = {"draw": "shared", "groups": 2, "tokens": 349}
    classes = ("workload.classes", {"chat": {"share": 1, "lengths": own}})
    assert "prefix" not in servetwin_run(OPT, settings=dict([*DRAWN, CACHING, classes])).summary


@pytest.mark.parametrize(
    "prompt",
    [
        {"draw": "constant", "tokens": 199},
        {"draw": "uniform", "low": 5, "high": 199},
        {"draw": "choice", "values": [7, 199, 20]},
        {"draw": "lognormal", "median": 50, "p90": 90, "high": 199},
    ],
)
def test_a_prefix_that_no_prompt_can_have_whole_is_refused(prompt):
    with pytest.raises(BadInput, match="prompts have 199 tokens at most, and all of a group would share 200"):
        load(OPT, [*DRAWN, ("workload.lengths.llm.prompt", prompt), GROUPS])


def test_what_sessions_begin_with_comes_before_their_first_prompt():
    sessions = (
        "workload.sessions",
        {"turns": {"draw": "constant", "turns": 2}, "think": {"draw": "constant", "seconds": 1}},
    )
    prompt = ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 20, "high": 90})
    summary = servetwin_run(
        OPT, settings=dict([*DRAWN, ("workload.requests", 20), prompt, GROUPS, CACHING, sessions])
    ).summary
    assert "prefix" not in summary
    assert summary["total_input_tokens"] > 20 * 200
