"""Which backend serves which kind of workload: a language model alone under ``--backend real`` is served by vLLM, in
a process of its own, and not by the simulated engine; what a backend cannot serve is refused in one line."""

from __future__ import annotations

import json
import multiprocessing

import pytest
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.cli import entry

LLM = {"tiny": ["tiny-opt-cpu", "--any-device", "--requests", "12", "--rate", "40"]}


@pytest.fixture
def servetwin(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["servetwin", *map(str, arguments)])
        code = entry._run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("policy", ["neustream-llm"])
def test_a_language_model_alone_is_served_by_vllm(servetwin, tmp_path, policy):
    out = tmp_path / "run"
    lengths = ["--set", "slo.prefill=5000", "--set", "slo.decode=5000", "--policy", policy]
    code, said, err = servetwin("run", *LLM["tiny"], "--backend", "real", "--out", out, *lengths)
    assert code == 0, err
    assert "12 requests" in said
    check_records(out)
    records = lines(out / "requests.jsonl")
    assert [r["outcome"] for r in records] == ["met"] * 12
    (told,) = json.loads((out / "real.json").read_text())["tools"].keys() - {"pipeline"}
    engine = json.loads((out / "real.json").read_text())["tools"][told]
    assert engine["calls"] == 12  # each went through the pipe to vLLM's process
    assert engine["steps"] == len(lines(out / "batches.jsonl")) > 12
    simulated = tmp_path / "simulated"
    there = [option for option in LLM["tiny"] if option != "--any-device"]  # which simulations do not take
    assert servetwin("run", *there, "--out", simulated, *lengths)[0] == 0
    assert list(lines(simulated / "requests.jsonl")[0]) == list(records[0])
    assert [
        r["stages"][0]["generated"] for r in sorted(lines(simulated / "requests.jsonl"), key=lambda r: r["id"])
    ] == [r["stages"][0]["generated"] for r in sorted(records, key=lambda r: r["id"])]
    assert multiprocessing.active_children() == []


#: Backend, workload, what is changed, and a word of what is said.
REFUSED = {
    "diffusion on vLLM": ("vllm", "tiny-dit-cpu", [], "vLLM cannot serve"),
    "one module of diffusion on vLLM": ("vllm", "tiny-palette-cpu", [], "vLLM cannot serve"),
    "agents on one vLLM": ("vllm", "agents.yaml", [], "vLLM cannot serve 2 workers"),
    "a language model and diffusion": ("real", "both.yaml", [], "no real modules for the pipeline"),
    "both on vLLM": ("vllm", "both.yaml", [], "vLLM cannot serve"),
    "an engine that vLLM's is not": (
        "real",
        "tiny-opt-cpu",
        ["deployment.workers.0.engine.headroom=3"],
        "not like that",
    ),
    "swapping": ("vllm", "tiny-opt-cpu", ["deployment.workers.0.engine.stamp=seen"], "vLLM's V1 engine"),
    "scheduling ahead": ("real", "tiny-opt-cpu", ["deployment.workers.0.engine.asynchronous=true"], "--backend vllm"),
    "another device": ("real", "opt-13b-h100", [], "this machine has CPU"),
    "a pool without scripts": ("real", "agents.yaml", [], "pool|scripts|tool"),
}

AGENTS = """
name: agents
pipeline: {modules: {coder: {kind: llm}, execute: {}}}
workload:
  requests: 4
  arrivals: {process: poisson, rate: 2.0}
  lengths: {coder: {prompt: {draw: constant, tokens: 30}, output: {draw: constant, tokens: 8}}}
slo: {prefill: 60.0, decode: 30.0}
policy: {name: vllm-v1}
deployment:
  devices: {gpu0: cpu/tiny-opt}
  workers:
    - {modules: [coder], device: gpu0, limit: 16}
    - {modules: [execute], threads: 2, calls: {time: constant, mean: 0.1, source: a guess}}
"""
BOTH = """
name: both
pipeline: {modules: {prompter: {kind: llm}, dit: {loop: true}, vae: {}}}
workload:
  requests: 4
  arrivals: {process: poisson, rate: 2.0}
  steps: {dit: {draw: constant, steps: 4}}
  lengths: {prompter: {prompt: {draw: constant, tokens: 30}, output: {draw: constant, tokens: 8}}}
slo: {prefill: 60.0, decode: 30.0}
policy: {name: vllm-v1}
deployment:
  devices: {gpu0: cpu/tiny-opt, gpu1: cpu/tiny-dit}
  workers:
    - {modules: [prompter], device: gpu0, limit: 16}
    - {modules: [dit], device: gpu1, limit: 3, policy: {name: edf}}
    - {modules: [vae], device: gpu1, limit: 3, policy: {name: edf}}
"""


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_backend_cannot_serve_is_refused_in_one_line(servetwin, tmp_path, case):
    backend, workload, changes, says = REFUSED[case]
    (tmp_path / "agents.yaml").write_text(AGENTS)
    (tmp_path / "both.yaml").write_text(BOTH)
    if workload.endswith(".yaml"):
        workload = tmp_path / workload
    sets = [part for change in changes for part in ("--set", change)]
    given = [] if case == "another device" else ["--any-device"]
    code, _, err = servetwin(
        "run", workload, "--backend", backend, "--requests", "4", *given, *sets, "--out", tmp_path / "run"
    )
    assert code == 2
    assert err.count("\n") == 1
    assert any(word in err for word in says.split("|")), err
    assert not (tmp_path / "run").exists()
