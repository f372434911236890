"""Two language models and a tool, each engine vLLM in a process of its own, served for real and simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from servetwin.experiments.assembly import build
from servetwin.experiments.backends.pipeline import AgentsBackend
from servetwin.experiments.spec.loading import load
from servetwin.real.tools.sandbox import confinement
from servetwin.real.tools.script_tool import ScriptTool
from servetwin.real.vllm.profiling.fitting.grid_fit import measured_section
from servetwin.real.vllm.profiling.measuring.step_grid import SMALL

#: Hosts that run this are small and busy, and two engines share their cores.
TOLERANCE, FACTOR, TRIES = 0.25, 2.0, 3

FILE = """
name: coder-and-judge
pipeline:
  modules: {{coder: {{kind: llm}}, execute: {{}}, judge: {{kind: llm}}}}
  branches:
    - {{from: execute, to: coder, probability: 0.2, most: 1}}
workload:
  requests: 16
  arrivals: {{process: poisson, rate: 2.0}}
  lengths:
    coder: {{prompt: {{draw: uniform, low: 20, high: 60}}, output: {{draw: uniform, low: 10, high: 24}}}}
    judge: {{prompt: {{draw: constant, tokens: 30}}, after: coder, output: {{draw: uniform, low: 4, high: 10}}}}
slo: {{prefill: 60.0, decode: 30.0, meets: last, base: measured}}
budget: {{split: fixed, seconds: {{execute: 1.0}}}}
policy: {{name: vllm-v1}}
deployment:
  devices: {{coder: engine.yaml, judge: engine.yaml}}
  workers:
    - {{modules: [coder], device: coder, limit: 16}}
    - modules: [execute]
      threads: 2
      calls: {{time: list, values: {values}, source: measured before the run}}
      scripts: {{folder: scripts, seconds: 5, strict: {strict}}}
    - {{modules: [judge], device: judge, limit: 16}}
time: {{noise: false, hold: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    (folder / "scripts").mkdir()
    (folder / "scripts/plot.py").write_text("print(sum(i * i for i in range(10_000)))")
    (folder / "scripts/slow.py").write_text("import time\ntime.sleep(0.1)")
    return folder


@pytest.fixture(scope="module")
def backend():
    backend = AgentsBackend("tiny")
    yield backend
    backend.close()


def measured(folder: Path, backend: AgentsBackend) -> Path:
    """The experiment file, with the engine's and the scripts' times as they are now."""
    values = [round(t, 5) for t in ScriptTool(folder / "scripts").seconds()]
    strict = str({"no_network", "writes_confined"} <= set(confinement())).lower()
    (folder / "agents.yaml").write_text(FILE.format(values=values, strict=strict))
    if not (folder / "engine.yaml").exists():
        _profile(folder, {"a": None})
    backend.start(load(folder / "agents.yaml"))
    _profile(folder, backend.engines["coder"].ask(("call", measured_section, SMALL)))
    return folder / "agents.yaml"


def _profile(folder: Path, section: dict) -> None:
    """A profile file of *section*, or of nothing in particular to begin with."""
    if "tokens" not in section:
        line = {"d0": 0.002, "d1": 1e-9, "until_batch": 16, "until_context": 9999}
        source = {"statistic": "none", "source": {"file": "none"}}
        prefill = {"tokens": [1, 1024], "between": "line", "seconds": [[0.002, 0.02]], **source}
        engine = {"name": "vLLM", "max_batched_tokens": 1024, "max_sequences": 16, "max_model_len": 1024}
        section = {
            "tokens": {
                "architecture": "tiny",
                "engine": {**engine, "gpu_memory_utilization": 0.9},
                "kv": {"blocks": 500, "statistic": "none"},
                "step_includes": "nothing",
                "kinds": {"measured": {"prefill": prefill, "line": {**line, **source}}},
            }
        }
    kinds = section["tokens"]["kinds"]
    kinds["scheduler"] = kinds["measured"]
    head = {
        "schema_version": 1,
        "name": "cpu/tiny-agents",
        "description": "a tiny model",
        "device": {"name": "cpu", "kind": "cpu"},
        "model": "tiny",
        "precision": "fp32",
        "batch_counts": "tokens; sequences",
        "measured_when": "now",
        "origin": {"repository": "this one"},
    }
    (folder / "engine.yaml").write_text(yaml.safe_dump({**head, **json.loads(json.dumps(section))}))


def test_agents_are_served_as_simulated(folder: Path, backend: AgentsBackend, tmp_path: Path) -> None:
    gaps = []
    for attempt in range(TRIES):
        experiment = load(measured(folder, backend), [("seed", attempt)])
        report = backend.run(experiment, tmp_path / str(attempt))
        runs = [json.loads(s) for s in (tmp_path / str(attempt) / "requests.jsonl").read_text().splitlines()]
        assert len(runs) == 16
        for run in runs:
            coded = [s for s in run["stages"] if s["stage"] == "coder"]
            judged = [s for s in run["stages"] if s["stage"] == "judge"]
            assert judged[0]["prompt"] == 30 + coded[-1]["generated"]
            assert len(coded) == sum(s["stage"] == "execute" for s in run["stages"])
        assert sum(len([s for s in r["stages"] if s["stage"] == "coder"]) for r in runs) > 16  # some tried again
        simulated = build.run(experiment)
        assert report.tools["execute"]["failed"] == 0
        ratio = report.summary.as_dict()["mean_e2el_ms"] / simulated.as_dict()["mean_e2el_ms"]
        gaps.append((report.summary.attainment - simulated.attainment, ratio))
        if abs(gaps[-1][0]) <= TOLERANCE and 0.5 < ratio < FACTOR:
            return
    pytest.fail(f"(attainment, real minus simulated; mean latency, real over simulated): {gaps}")
