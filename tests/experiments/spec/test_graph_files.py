"""Graphs, tools and budgets in experiment files: a pipeline that the code does not know is a file."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from servetwin.core import BadInput, Recorder
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.plotting import perfetto
from servetwin.experiments.spec.loading import load

AGENT = """
name: agent
pipeline:
  modules:
    plan: {}
    write: {loop: true}
    execute: {}
    judge: {}
  branches:
    - {from: execute, to: write, probability: 0.4, most: 2}
workload:
  requests: 80
  arrivals: {process: poisson, rate: 2.0}
  steps: {write: {draw: uniform, low: 10, high: 20}}
slo: {factor: 4.0}
policy: {name: edf}
deployment:
  devices: {gpu0: profile.yaml}
  workers:
    - {modules: [plan], device: gpu0, limit: 4}
    - {modules: [write], device: gpu0, limit: 8}
    - {modules: [execute], threads: 3, calls: {time: exponential, mean: 0.2, source: assumed}}
    - {modules: [judge], device: gpu0, limit: 4}
time: {unmeasured: shared}
"""

PROFILE = """
schema_version: 1
name: mine/agent
description: made up
device: {name: some GPU, kind: gpu}
model: made up
precision: none
batch_counts: requests
measured_when: never
origin: {repository: made up}
modules:
  plan: {tables: {scheduler: {batch: [1, 8], seconds: [0.02, 0.03], statistic: none, source: {file: none}}}}
  write:
    loop: true
    tables: {scheduler: {batch: [1, 8], seconds: [0.010, 0.017], statistic: none, source: {file: none}}}
  judge: {tables: {scheduler: {batch: [1, 8], seconds: [0.02, 0.03], statistic: none, source: {file: none}}}}
"""


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "agent.yaml").write_text(AGENT)
    return tmp_path / "agent.yaml"


def stays(file: Path, folder: Path, *overrides) -> dict[int, list[dict]]:
    build.run(load(file, overrides), folder)
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return {r["id"]: r["stages"] for r in map(json.loads, lines)}


def test_an_agent_with_a_tool_keeps_the_invariants(agent: Path, tmp_path: Path) -> None:
    experiment = load(agent)
    checker = InvariantChecker()
    run = build.build(experiment, checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    ways = stays(agent, tmp_path / "run")
    check_records(tmp_path / "run")
    tries = Counter(sum(s["stage"] == "execute" for s in stages) for stages in ways.values())
    assert set(tries) == {1, 2, 3}


def test_the_resolved_experiment_says_the_same(agent: Path, tmp_path: Path) -> None:
    experiment = load(agent)
    assert load(experiment.as_dict()) == experiment
    assert experiment.as_dict()["pipeline"]["branches"][0]["from"] == "execute"


def test_tries_and_times_of_a_call_belong_to_the_workload(agent: Path, tmp_path: Path) -> None:
    """Another policy, more threads, another order: the same requests try as often, and take as long."""

    def calls(folder: str, *overrides) -> dict[int, list[float]]:
        took = stays(agent, tmp_path / folder, *overrides)
        return {
            i: [round(s["finished"] - s["started"], 9) for s in stages if s["stage"] == "execute"]
            for i, stages in took.items()
        }

    one = calls("a", ("policy", "fcfs"))
    assert one == calls("b", ("policy", "fcfs"), ("deployment.workers.2.threads", 40), ("rate", 9.0))
    assert one != calls("c", ("policy", "fcfs"), ("seed", 1))


def test_the_slo_goes_by_the_likely_way_and_the_tools_mean(agent: Path) -> None:
    request = next(build.build(load(agent)).source)
    assert request.slo == pytest.approx(4.0 * (0.02 + 0.010 * request.work["write"] + 0.2 + 0.02))


def test_stages_have_deadlines_of_their_own_with_a_split(agent: Path) -> None:
    requests = []

    class Keeps(Recorder):
        def ended(self, request, now):
            requests.append(request)
            super().ended(request, now)

    run = build.build(load(agent, [("budget.split", "proportional"), ("rate", 0.1)]), Keeps())
    loop = run.loop
    run.play()
    plan, write, execute, judge = next(r for r in requests if len(r.tasks) == 4).tasks
    assert plan.arrival < plan.deadline < write.deadline < execute.deadline < judge.deadline
    assert judge.deadline == pytest.approx(judge.request.deadline)
    assert loop.workers[plan.worker.number].view.solo(plan) == pytest.approx(0.02)  # its policy looks no further


def test_replicas_of_one_stage_may_have_a_router_of_their_own(agent: Path, tmp_path: Path) -> None:
    workers = load(agent).as_dict()["deployment"]["workers"]
    two = [*workers, {**workers[3], "name": "judge2"}]
    overrides = [("deployment.workers", two), ("deployment.routers", {"judge": "round_robin"})]
    ways = stays(agent, tmp_path / "run", *overrides)
    went = Counter(s["worker"] for stages in ways.values() for s in stages if s["stage"] == "judge")
    assert abs(went["judge"] - went["judge2"]) <= 1


def test_replicas_of_the_whole_have_pools_of_their_own(agent: Path, tmp_path: Path) -> None:
    ways = stays(agent, tmp_path / "run", ("replicas", 2))
    pools = {s["worker"] for stages in ways.values() for s in stages if s["stage"] == "execute"}
    assert pools == {"execute", "execute@cpu.2"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", most: 2}", "}", "edge execute -> write leads back without a bound"),
        ("from: execute, to: write", "from: execute, to: wrote", r"branches.0.to: unknown module 'wrote' .*write"),
        ("most: 2", "mots: 2", r"agent.yaml:\d+: pipeline.branches.0.mots: unknown key 'mots' .*most"),
        ("threads: 3, ", "", r"workers.2.threads: key 'threads' is missing"),
        ("threads: 3", "device: gpu0, threads: 3", r"workers.2.device: a pool of threads has no device"),
        (", source: assumed", "", r"calls.source: key 'source' is missing"),
        ("time: exponential", "time: exponentail", r"calls.time: unknown time 'exponentail' .*exponential"),
        ("modules: [execute]", "modules: [execute, judge]", "no single module without a loop|overlaps"),
        ("threads: 3", "policy: {name: edf}, threads: 3", r"workers.2.policy: policy EDF cannot serve a pool"),
        ("[judge], device: gpu0, ", "[judge], ", "workers.3.device: key 'device' is missing"),
        ("policy: {name: edf}", "policy: {name: edf}\nbudget: {forward: budget}", "stages have no budgets"),
        ("policy: {name: edf}", "policy: {name: edf}\nbudget: {split: fixed}", "budget.seconds: no seconds for plan"),
        ("{gpu0: profile.yaml}", "{gpu0: profile.yaml}\n  routers: {juge: round_robin}", "begin with 'juge' .*judge"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(agent: Path, old: str, new: str, message: str) -> None:
    assert old in AGENT
    agent.write_text(AGENT.replace(old, new))
    with pytest.raises(BadInput, match=message) as told:
        build.build(load(agent))
    assert "\n" not in str(told.value)


def test_calls_side_by_side_have_tracks_of_their_own(agent: Path, tmp_path: Path) -> None:
    stays(agent, tmp_path / "run", ("rate", 20.0))
    perfetto.write([tmp_path / "run"], tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    tracks: dict[str, list[tuple[float, float]]] = {}
    for e in events:
        if e["ph"] == "X":
            tracks.setdefault(names[e["tid"]], []).append((e["ts"], e["ts"] + e["dur"]))
    assert {"execute #0", "execute #1", "execute #2"} <= set(tracks)
    for spans in tracks.values():
        spans.sort()
        assert all(b[0] >= a[1] - 1e-3 for a, b in pairwise(spans))
