"""Runs whose requests have shapes, repeated with the shapes that they had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay.folder import find, replay

CLOSED = {"process": "closed", "clients": 4}


@pytest.mark.parametrize("arrivals", [{"process": "poisson", "rate": 0.6}, CLOSED])
def test_each_request_keeps_its_shape_and_ends_when_it_did(arrivals: dict[str, object], tmp_path: Path) -> None:
    experiment = load("sdxl-shapes-synthetic", [("workload.requests", 30), ("workload.arrivals", arrivals)])
    run(experiment, tmp_path / "run")
    (found,) = find(tmp_path / "run")
    replay(found.run.folder, found.experiment, tmp_path / "again")
    told = []
    for folder in ("run", "again"):
        lines = map(json.loads, (tmp_path / folder / "requests.jsonl").read_text().splitlines())
        told.append({r["id"]: (tuple(r["shape"].values()), r["outcome"], r["finished"]) for r in lines})
    assert len({shape for shape, *_ in told[0].values()}) == 4
    assert told[0].keys() == told[1].keys()
    for i, (shape, outcome, finished) in told[0].items():
        assert told[1][i] == (shape, outcome, finished if finished is None else pytest.approx(finished, abs=1e-6))


@pytest.mark.parametrize("shape", [None, {"draw": "constant", "size": "512x512"}])
def test_shapes_that_the_experiment_has_not_are_refused(shape: object, tmp_path: Path) -> None:
    run(load("sdxl-shapes-synthetic", [("workload.requests", 20)]), tmp_path / "run")
    (found,) = find(tmp_path / "run", [("workload.shape", shape)])
    with pytest.raises(BadInput, match="its experiment knows none such"):
        replay(found.run.folder, found.experiment)
