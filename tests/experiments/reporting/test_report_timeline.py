"""A run over time: what its records say of it, against what the run itself knew at each step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.experiments.assembly import build
from servetwin.experiments.reporting.timeline import Level, level_of, read
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.run_files import batch_lines

changes = st.lists(st.tuples(st.integers(0, 40), st.integers(-3, 3)), min_size=1, max_size=30)


@given(changes, st.integers(1, 13))
def test_means_of_a_level_are_those_of_its_instants(steps, bins):
    level = level_of(np.array([t for t, _ in steps]), np.array([c for _, c in steps]))
    edges = np.arange(bins + 1) * 3.0
    for low, mean in zip(edges, level.means(edges), strict=False):
        inside = [sum(c for t, c in steps if t <= low + k) for k in range(3)]  # it changes at whole times only
        assert mean == pytest.approx(sum(inside) / 3)
    whole = np.arange(45.0)
    assert level.at(whole) == pytest.approx([sum(c for t, c in steps if t <= w) for w in whole])


def test_a_level_without_changes_is_nothing():
    empty = Level(np.zeros(0), np.zeros(0))
    assert list(empty.means(np.array([0.0, 1.0, 2.0]))) == [0.0, 0.0]
    assert (empty.peak, list(empty.at(np.array([1.0])))) == (0.0, [0.0])


def served(folder: Path, name: str, *keys) -> Path:
    build.run(load(name, list(keys)), folder)
    return folder


LIMITS = ("slo.limits", {"ttft_ms": 500})


def scarce(blocks: int, **engine) -> list:
    worker = {"modules": ["llm"], "device": "gpu0", "limit": 256, "engine": {"blocks": blocks, **engine}}
    return [("deployment.workers", [worker]), ("policy", "vllm-v1"), ("rate", 4.0), ("requests", 80), LIMITS]


@pytest.mark.parametrize(
    ("name", "keys", "preempted"),
    [
        ("opt-13b-a6000", [("requests", 60), LIMITS], False),
        ("opt-13b-a6000", scarce(250, preemption="recompute"), True),
        ("opt-13b-h100-async", [("requests", 80), ("policy", "sarathi"), ("slo.limits", {"ttft_ms": 500})], False),
        ("matplotagent-h200", [("requests", 20), ("policy", "vllm-v1")], False),
    ],
    ids=["vllm 0.5", "preempted", "asynchronous", "agents"],
)
def test_kv_cache_use_is_what_each_step_looked_back_on(tmp_path: Path, name, keys, preempted):
    """A step's record tells the tokens that it found in the cache, of those that decode and of those whose prompt
    goes on: under these policies all that run take part in each step that decodes. The timeline does not read it."""
    timeline = read(served(tmp_path / "a", name, *keys))
    lost = 0
    for worker, held in timeline.kv.items():
        compared = 0
        for step in batch_lines(tmp_path / "a"):
            if step["worker"] != worker:
                continue
            lost += len(step["preempted"])
            if step["decode"]:
                found = step["context"] + sum(before for _, _, before in step["prefill"])
                assert held.at(np.array([step["start"] + 1e-9]))[0] == pytest.approx(found, abs=1e-6)
                compared += 1
        assert compared > 50
        assert held.values.min() >= -1e-6
        assert held.values[-1] == pytest.approx(0.0, abs=1e-6)
        assert 0 < held.peak <= timeline.capacity[worker]
    assert timeline.kv
    assert (lost > 0) == preempted


def test_who_was_swapped_is_not_guessed(tmp_path: Path):
    keys = [*scarce(250, preemption="swap"), ("time.costs", False)]
    timeline = read(served(tmp_path / "a", "opt-13b-a6000", *keys))
    assert "llm" not in timeline.kv
    assert "moved to the host" in timeline.untold["llm"]


def test_queues_batches_and_devices_of_a_run(tmp_path: Path):
    timeline = read(served(tmp_path / "a", "dit-s2-256-rtx4090", ("requests", 60), ("policy", "edf"), ("rate", 6.0)))
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    edges = timeline.edges(100)
    for worker, own in summary["workers"].items():
        sizes = timeline.batches[worker].sizes
        assert (len(sizes), sizes.max()) == (own["iterations"], own["max_batch_size"])
        assert sizes.mean() == pytest.approx(own["mean_batch_size"])
        means = timeline.batches[worker].mean_sizes(edges)
        assert np.nanmax(means) <= own["max_batch_size"] + 1e-9
        assert timeline.waiting[worker].values[-1] == timeline.served[worker].values[-1] == 0
        # Little's law: the mean number at the worker times how long, is the sum of the times spent there.
        stays = [
            stay["finished"] - stay["queued"]
            for line in (tmp_path / "a" / "requests.jsonl").read_text().splitlines()
            for stay in json.loads(line)["stages"]
            if stay["worker"] == worker and stay["finished"] is not None
        ]
        both = timeline.waiting[worker].means(edges) + timeline.served[worker].means(edges)
        if summary["dropped"] == 0:
            assert both.mean() * timeline.end == pytest.approx(sum(stays))
    (busy,) = timeline.busy.values()
    assert 0 < busy.means(edges).mean() <= 1
    assert set(busy.values) <= {0.0, 1.0}


def test_a_run_of_another_version_has_no_devices(tmp_path: Path):
    folder = served(tmp_path / "a", "dit-s2-256-rtx4090", ("requests", 10))
    meta = json.loads((folder / "meta.json").read_text())
    meta["experiment"] = {"name": "old", "from": "before"}
    (folder / "meta.json").write_text(json.dumps(meta))
    timeline = read(folder)
    assert timeline.busy == {}
    assert set(timeline.batches) == {"dit", "vae"}
