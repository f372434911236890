"""Invariant 8: the same seed gives the same bytes; invariant 11: what has not arrived changes no decision."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import Batch, Recorder
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.spec import loading

WORKLOADS = [("sd15-512-rtx4090", 0.5), ("dit-s2-256-rtx4090", 4.0), ("palette-256-rtx4090", 0.9)]
POLICIES = ["neustream", "clockwork", "edf", "fcfs"]


ENGINES = [("opt-13b-a6000", 3.0, p) for p in ("neustream-llm", "vllm", "vllm-v1", "sarathi", "edf-llm")]


@pytest.mark.parametrize(("workload", "rate", "policy"), [(*w, p) for w in WORKLOADS for p in POLICIES] + ENGINES)
def test_same_seed_same_bytes(tmp_path: Path, workload: str, rate: float, policy: str) -> None:
    experiment = loading.load(workload, [("policy", policy), ("rate", rate), ("requests", 120)])
    for name in ("a", "b"):
        run(experiment, tmp_path / name)
        check_records(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["batches.jsonl", "experiment.yaml", "meta.json", "requests.jsonl", "summary.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(("workload", "rate", "policy"), ENGINES)
@pytest.mark.parametrize("blocks", [1403, 150])
def test_engines_keep_the_invariants(workload: str, rate: float, policy: str, blocks: int) -> None:
    tight = {"modules": ["llm"], "device": "gpu0", "limit": 256, "engine": {"blocks": blocks, "headroom": 1}}
    settings = [("policy", policy), ("rate", rate), ("requests", 100), ("deployment.workers", [tight])]
    checker = InvariantChecker()
    run = build(loading.load(workload, settings), checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    preempted = sum(stage["preemptions"] for stage in checker.summary.as_dict()["llm"].values())
    assert preempted or blocks > 150 or policy != "vllm"


def test_another_seed_gives_other_noise() -> None:
    latencies = set()
    for seed in (0, 1):
        experiment = loading.load("sd15-256-rtx4090", [("seed", seed), ("requests", 50)])
        latencies.add(run(experiment).as_dict()["mean_e2el_ms"])
    assert len(latencies) == 2


class Batches(Recorder):
    """What ran, up to a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float, float, tuple[int, ...]]] = []

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        self.seen.append((batch.worker.name, batch.start, batch.end, tuple(t.id for t in batch.tasks)))


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_looks_ahead(policy: str) -> None:
    """With the second half of the requests left out, the first half is served as before until they would come."""
    recorders = []
    for requests in (60, 120):
        experiment = loading.load(
            "sd15-256-rtx4090", [("policy", policy), ("requests", requests), ("system.stop_after", None)]
        )
        recorder = Batches()
        build(experiment, recorder).play()
        recorders.append(recorder)
    few, many = recorders
    horizon = few.summary.last_arrival
    assert [b for b in few.seen if b[2] <= horizon] == [b for b in many.seen if b[2] <= horizon]
    assert sum(b[2] <= horizon for b in few.seen) >= 10
