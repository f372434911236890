"""The walks of an experiment and of a request stay short, and are drawn as they are."""

from __future__ import annotations

import pytest
from walks import EXPERIMENTS, PAGE, Walk, walk_of_a_request, walk_of_an_experiment, with_drawings

DIFFUSION, LANGUAGE = EXPERIMENTS

#: By the files of a checkout, which the drawings name.
pytestmark = pytest.mark.checkout


def size(walk: Walk) -> tuple[int, int]:
    return len(walk.functions), len(walk.files)


@pytest.mark.parametrize(("name", "most", "most_files"), [(DIFFUSION, 24, 8), (LANGUAGE, 26, 9)])
def test_an_experiment_gets_from_yaml_to_a_run_in_few_functions(name: str, most: int, most_files: int) -> None:
    walk = walk_of_an_experiment(name)
    functions, files = size(walk)
    assert functions <= most, list(walk.functions)
    assert files <= most_files, walk.files
    # The way goes through what it says it does: from the first function to the one that plays the run.
    assert next(iter(walk.functions)) == "experiments/spec/loading.py::load"
    assert "experiments/assembly/build.py::Run.play" in walk.functions
    assert "experiments/spec/validation.py::check" in walk.checks
    assert "experiments/workload/requests.py::check_resolution" in walk.checks


@pytest.mark.parametrize(("name", "most", "files", "with_batches"), [(DIFFUSION, 11, 7, 26), (LANGUAGE, 15, 9, 20)])
def test_a_request_gets_from_arrival_to_record_in_few_functions(
    name: str, most: int, files: int, with_batches: int
) -> None:
    walk = walk_of_a_request(name)
    assert len(walk.functions) <= most, list(walk.functions)
    assert len(walk.files) <= files, walk.files
    assert "core/serving/loop.py::ServingLoop.arrive" in walk.functions
    assert "core/metrics.py::Summary.ended" in walk.functions
    walk = walk_of_a_request(name, batches=True)
    assert len(walk.functions) <= with_batches, list(walk.functions)
    assert any("lane.py::" in place for place in walk.functions), "it was in no batch"


def test_the_page_draws_the_walks_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_drawings(text) == text, "python tests/walks.py draws them anew"
