"""Files of ``vllm bench serve`` and run folders of language models: what was sent, and what it is scored against.

The files are made of simulations, by the format of vLLM's ``benchmarks/serve.py``, so that what must come out is
known: a simulation scored against itself is off by nothing. Those that vLLM itself wrote are in tests/real/vllm.
"""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.traces.bench_file import LISTS, read

EXPERIMENT = """
extends: tiny-opt-cpu
workload: {requests: 60, arrivals: {process: gamma, rate: 40, cv: 1.0}, draws: seeded}
slo: {prefill: null, decode: null, limits: {ttft_ms: 6, tpot_ms: 4}}
policy: {name: POLICY}
records: {tokens: true}
"""


def requests_of(folder: Path) -> list[dict]:
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda r: r["id"])


def bench_file(folder: Path, out: Path, zero: float = 5000.0, **changes) -> Path:
    """What ``vllm bench serve --save-detailed`` would have written of the run in *folder*."""
    rows = requests_of(folder)
    tokens = [r["stages"][0]["tokens"] for r in rows]
    content = {
        "date": "20261129-120000",
        "backend": "vllm",
        "num_prompts": len(rows),
        "request_rate": 40.0,
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": 2.0,
        "start_times": [zero + r["arrival"] for r in rows],
        "input_lens": [r["stages"][0]["prompt"] for r in rows],
        "output_lens": [len(t) for t in tokens],
        "ttfts": [t[0] - r["arrival"] for r, t in zip(rows, tokens, strict=True)],
        "itls": [[b - a for a, b in pairwise(t)] for t in tokens],
        "generated_texts": ["" for _ in rows],
        "errors": ["" for _ in rows],
    }
    out.write_text(json.dumps({**content, **changes}))
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run under vLLM's policy, one under a policy that drops, and a bench file of the first."""
    here = tmp_path_factory.mktemp("runs")
    for policy in ("vllm-v1", "neustream-llm"):
        (here / f"{policy}.yaml").write_text(EXPERIMENT.replace("POLICY", policy))
        build.run(load(here / f"{policy}.yaml"), here / policy)
    bench_file(here / "vllm-v1", here / "bench.json")
    return here


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("policy", ["vllm-v1", "neustream-llm"])
def test_a_run_of_a_language_model_is_repeated_with_its_own_requests(servetwin, runs, tmp_path, policy):
    code, out, err = servetwin(
        "score", runs / policy, "--out", tmp_path / "s.csv", "--seeds", 1, "--keep", tmp_path / "k"
    )
    assert (code, err) == (0, "")
    (row,) = rows_of(tmp_path / "s.csv")
    assert float(row["gap_met_pp"]) == float(row["gap_finished_pp"]) == 0.0
    for name in ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "median_itl_ms", "p99_e2el_ms"):
        assert float(row[name]) == pytest.approx(float(row[f"sim_{name}"]), rel=1e-9), name
    assert "mean ttft" in out
    assert "authors" not in out  # nobody else simulated these
    again = requests_of(tmp_path / "k" / policy)
    assert [r["stages"] for r in again] == [r["stages"] for r in requests_of(runs / policy)]
    if policy == "neustream-llm":
        assert "dropped" in {r["outcome"] for r in again}


def test_the_requests_stay_those_of_the_run_whatever_the_seed_of_the_noise(servetwin, runs, tmp_path):
    code, _, err = servetwin("score", runs / "neustream-llm", "--out", tmp_path / "s.csv", "--seeds", 3, "--jobs", 1)
    assert (code, err) == (0, "")  # else the outputs of those that were dropped would be others
    assert abs(float(rows_of(tmp_path / "s.csv")[0]["gap_finished_pp"])) < 20.0


def test_a_run_whose_requests_are_others_is_refused(servetwin, runs, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (runs / "vllm-v1").iterdir():
        text = path.read_text()
        if path.name == "requests.jsonl":
            first = json.loads(text.splitlines()[0])
            prompt = first["stages"][0]["prompt"]
            text = text.replace(f'"prompt": {prompt},', f'"prompt": {prompt + 1},', 1)
            text = text.replace(f'"prompt":{prompt},', f'"prompt":{prompt + 1},', 1)
        (folder / path.name).write_text(text)
    code, out, err = servetwin("score", folder, "--out", tmp_path / "s.csv", "--seeds", 1)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "its experiment draws" in err
    assert not (tmp_path / "s.csv").exists()


def test_a_bench_file_is_scored_as_a_run_of_an_experiment(servetwin, runs, tmp_path):
    options = ("--experiment", runs / "vllm-v1.yaml", "--out", tmp_path / "s.csv", "--seeds", 1)
    code, out, err = servetwin("score", runs / "bench.json", *options)
    assert (code, err) == (0, "")
    (row,) = rows_of(tmp_path / "s.csv")
    assert (row["requests"], row["policy"]) == ("60", "vllm-v1")
    was = json.loads((runs / "vllm-v1" / "summary.json").read_text())
    assert int(row["met"]) == was["met"] > 0
    assert float(row["gap_met_pp"]) == 0.0
    for name in ("mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "mean_e2el_ms"):
        assert float(row[name]) == pytest.approx(float(row[f"sim_{name}"]), rel=1e-6), name
    assert "mean ttft" in out


def test_a_slower_server_is_seen(servetwin, runs, tmp_path):
    held = json.loads((runs / "bench.json").read_text())
    slower = [t + 0.001 for t in held["ttfts"]]
    bench_file(runs / "vllm-v1", tmp_path / "slow.json", ttfts=slower)
    options = ("--experiment", runs / "vllm-v1.yaml", "--out", tmp_path / "s.csv", "--seeds", 1)
    assert servetwin("score", tmp_path, *options)[0] == 0
    (row,) = rows_of(tmp_path / "s.csv")
    assert float(row["mean_ttft_ms"]) - float(row["sim_mean_ttft_ms"]) == pytest.approx(1.0, abs=1e-3)


def test_a_bench_file_beside_a_run(servetwin, runs):
    code, out, err = servetwin("compare", runs / "vllm-v1", runs / "bench.json", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["requests"] == [60, 60]
    assert found["same_outcome"] == 100.0
    assert found["tokens"]["llm"]["mean_ttft_ms"]["gap"] == pytest.approx(0.0, abs=1e-6)
    assert found["runs"][1]["folder"] == str(runs / "bench.json")
    code, out, _ = servetwin("compare", runs / "bench.json", runs / "vllm-v1")
    assert code == 0
    assert "mean ttft, ms of llm" in out
    code, out, err = servetwin("compare", runs / "bench.json", runs / "bench.json")
    assert (code, out) == (2, "")
    assert "a run folder on one side" in err


def test_a_bench_file_is_a_workload(servetwin, runs, tmp_path):
    (tmp_path / "e.yaml").write_text(
        f"extends: tiny-opt-cpu\nworkload:\n  requests: null\n  draws: seeded\n"
        f"  arrivals: {{process: trace, file: {runs / 'bench.json'}}}\n"
        "  lengths: {llm: {prompt: {draw: trace}, output: {draw: trace}, limit: 64}}\n"
    )
    code, _, err = servetwin("run", tmp_path / "e.yaml", "--policy", "vllm-v1", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    was, now = requests_of(runs / "vllm-v1"), requests_of(tmp_path / "run")
    assert [r["stages"][0]["prompt"] for r in now] == [r["stages"][0]["prompt"] for r in was]
    assert [r["stages"][0]["generated"] for r in now] == [r["stages"][0]["generated"] for r in was]
    first = was[0]["arrival"]
    assert [r["arrival"] for r in now] == pytest.approx([r["arrival"] - first for r in was], abs=1e-9)


def test_requests_that_failed_are_left_out_and_said(servetwin, runs, tmp_path):
    held = json.loads((runs / "bench.json").read_text())
    errors, lengths = list(held["errors"]), list(held["output_lens"])
    errors[3], lengths[3], lengths[7] = "ClientConnectorError", 0, 0
    path = bench_file(runs / "vllm-v1", tmp_path / "b.json", errors=errors, output_lens=lengths)
    assert [number for number, _ in read(path).failed] == [3, 7]
    options = ("--experiment", runs / "vllm-v1.yaml", "--out", tmp_path / "s.csv", "--seeds", 1)
    code, out, _ = servetwin("score", path, *options)
    assert code == 0
    assert "b.json: 2 requests failed, and are left out" in out
    assert rows_of(tmp_path / "s.csv")[0]["requests"] == "58"


def test_events_of_several_tokens_keep_first_and_last(runs, tmp_path):
    held = json.loads((runs / "bench.json").read_text())
    gaps = [[g[0] + g[1], *g[2:]] if len(g) > 2 else g for g in held["itls"]]
    told = read(bench_file(runs / "vllm-v1", tmp_path / "b.json", itls=gaps))
    whole = read(runs / "bench.json")
    assert told.bundled == sum(len(g) > 2 for g in held["itls"]) > 0
    for a, b in zip(told.requests, whole.requests, strict=True):
        assert len(a.times) == len(b.times)
        assert (a.times[0], a.times[-1]) == pytest.approx((b.times[0], b.times[-1]))
        assert list(a.times) == sorted(a.times)


WRONG = {
    "no details": (dict.fromkeys(LISTS), "without --save-detailed"),
    "an old vLLM": ({"start_times": None}, "no start_times"),
    "shorter": ({"ttfts": [0.1]}, "as many of each"),
    "no list": ({"itls": {}}, "itls is no list"),
    "a text": ({"input_lens": ["5"] * 60}, "input_lens.0 is 5"),
    "no number": ({"ttfts": [float("nan")] * 60}, "ttfts.0 is nan"),
    "back in time": ({"itls": [[-1.0]] * 60}, "itls.0"),
    "no prompt": ({"input_lens": [0] * 60}, "input_lens.0 is 0"),
    "endless": ({"start_times": [1e300] * 60}, "start_times.0"),
    "all failed": ({"output_lens": [0] * 60}, "all of its 60 requests failed"),
    "a pace of its own": ({"max_concurrency": 8}, "--max-concurrency"),
    "no concurrency": ({"max_concurrency": "8"}, "max_concurrency is 8"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_a_bench_file_lacks_is_told_in_a_line(case, servetwin, runs, tmp_path):
    changes, word = case
    path = bench_file(runs / "vllm-v1", tmp_path / "b.json", **changes)
    content = {k: v for k, v in json.loads(path.read_text()).items() if v is not None or k not in LISTS}
    path.write_text(json.dumps(content))
    options = ("--experiment", runs / "vllm-v1.yaml", "--out", tmp_path / "s.csv", "--seeds", 1)
    code, out, err = servetwin("score", path, *options)
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    assert word in err
    assert not (tmp_path / "s.csv").exists()


def test_what_does_not_fit_is_told_in_a_line(servetwin, runs, tmp_path):
    out = ("--out", tmp_path / "s.csv")
    both = tmp_path / "both.json"
    both.write_text((runs / "bench.json").read_text() + "\n" + (runs / "bench.json").read_text())
    with pytest.raises(BadInput, match="several results"):
        read(both)
    for arguments, word in (
        ([runs / "bench.json"], "--experiment"),
        ([runs / "vllm-v1", "--experiment", runs / "vllm-v1.yaml"], "no file of vllm bench serve"),
        ([runs / "bench.json", "--experiment", "tiny-sd-cpu"], "one language model"),
    ):
        code, _, err = servetwin("score", *arguments, *out)
        assert (code, err.count("\n")) == (2, 1)
        assert word in err
