"""``servetwin sweep --backend vllm``: a run folder per point, and one engine for all that can have the same."""

import json

import pytest
from servetwin.core import BadInput
from servetwin.experiments.backends import grid
from servetwin.experiments.backends.diffusion import Setup
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.spec.loading import load
from servetwin.real.vllm import engine as engines

SWEEP = """
extends: e.yaml
grid:
  policy: [vllm-v1, sarathi]
  deployment.workers.0.limit: [8, 16]
"""
EXPERIMENT = """
extends: tiny-opt-cpu
workload: {requests: 12}
"""


@pytest.fixture
def started(monkeypatch):
    """The options of engines that were started, and of those that were ended."""
    made, ended = [], []
    start, close = engines.VllmEngine.__init__, engines.VllmEngine.close
    monkeypatch.setattr(engines.VllmEngine, "__init__", lambda self, o, *a: (made.append(o), start(self, o, *a))[1])
    monkeypatch.setattr(engines.VllmEngine, "close", lambda self: (ended.append(self.options), close(self))[1])
    return made, ended


def test_points_with_the_same_engine_follow_each_other_on_it(tmp_path, started):
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    (tmp_path / "s.yaml").write_text(SWEEP)
    made, ended = started
    assert grid.serve(tmp_path / "s.yaml", tmp_path / "runs", kind="vllm", repeats=2) == 8
    assert [o.max_sequences for o in made] == [8, 16]
    assert [o.max_sequences for o in ended] == [8]
    metas = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/meta.json"))]
    assert len(metas) == 8
    assert all(meta["kind"] == "real" and meta["engine"]["vllm"] for meta in metas)
    # It goes on where it was: nothing is served again, and no engine started.
    assert grid.serve(tmp_path / "s.yaml", tmp_path / "runs", kind="vllm", repeats=2) == 8
    assert len(made) == 2
    with pytest.raises(BadInput, match=r"made with another state.*model"):
        grid.serve(tmp_path / "s.yaml", tmp_path / "runs", Setup(model="tiny-llama"), kind="vllm")


def test_an_engine_that_has_ended_leaves_room_for_the_next(started):
    made, ended = started
    backend = VllmBackend()
    first = load("tiny-opt-cpu", [("requests", 5)])
    second = load("tiny-opt-cpu", [("requests", 5), ("deployment.workers.0.limit", 4)])
    assert [backend.run(e).summary.finished for e in (first, second, second, first)] == [5] * 4
    assert (len(made), len(ended), len(backend.engines)) == (3, 2, 1)
