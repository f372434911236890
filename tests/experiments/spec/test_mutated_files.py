"""Experiment files with something wrong in them: each is served, or refused in one line; no traceback, no hang."""

import copy
import math
from importlib.resources import files

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servetwin.core import ServeTwinError
from servetwin.experiments.assembly import build
from servetwin.experiments.spec import loading

FOLDER = files("servetwin.experiments") / "workloads"
NAMES = ["dit-s2-256-rtx4090", "opt-13b-a6000", "matplotagent-rtx4090", "tiny-sd-cpu"]
FILES = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in NAMES}
ODD = [None, 0, -1, 1, 1.5, -0.5, math.nan, math.inf, 1e300, 1e-300, 10**30, -(10**30), "", "x", "1e3", "../.."]
ODD += [[], {}, [1], {"a": 1}, True, False, [[]], ["x", "x"], "2024-01-01"]


def places(node, path=()):
    """Every key of a file."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def _within(items, key):
    return isinstance(key, int) and key < len(items)


def change(tree, path, value):
    """Put *value* at *path* of *tree*, as far as that is still there; "delete" takes the key out."""
    for key in path[:-1]:
        if not isinstance(tree, dict | list) or (
            key not in tree if isinstance(tree, dict) else not _within(tree, key)
        ):
            return
        tree = tree[key]
    if isinstance(tree, dict) or (isinstance(tree, list) and isinstance(path[-1], int) and path[-1] < len(tree)):
        if value == "delete":
            if path[-1] in tree or isinstance(tree, list):
                del tree[path[-1]]
        else:
            tree[path[-1]] = copy.deepcopy(value)


changes = st.sampled_from(NAMES).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(
            st.tuples(
                st.one_of(
                    st.sampled_from(list(places(FILES[name]))),
                    st.sampled_from(list(places(FILES[name]))).map(lambda path: (*path[:-1], "unknown")),
                ),
                st.sampled_from([*ODD, "delete"]),
            ),
            min_size=1,
            max_size=2,
        ),
    )
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=300, deadline=5000, suppress_health_check=list(HealthCheck))
@given(changes)
@example(("dit-s2-256-rtx4090", [(("variants", "neustream-ae", "policy"), "x")]))
@example(("dit-s2-256-rtx4090", [(("workload", "steps", "dit", "high"), 10**30)]))
@example(("dit-s2-256-rtx4090", [(("workload", "arrivals", "cv"), 1e-300)]))
@example(("dit-s2-256-rtx4090", [(("workload", "arrivals", "cv"), 1e300)]))
@example(("dit-s2-256-rtx4090", [(("deployment", "devices", "gpu0"), ".nan")]))
@example(("dit-s2-256-rtx4090", [(("deployment", "name"), [[]])]))
def test_served_or_refused_in_one_line(tmp_path_factory, case):
    name, wrong = case
    tree = copy.deepcopy(FILES[name])
    for path, value in wrong:
        change(tree, path, value)
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_text(yaml.safe_dump(tree))
    try:
        assert build.run(loading.load(file, [("requests", 5)])).requests <= 5
        told = ""
    except ServeTwinError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 1000


def test_a_parameter_that_holds_itself_is_refused(tmp_path):
    file = tmp_path / "self.yaml"
    file.write_text("extends: dit-s2-256-rtx4090\npolicy: {name: edf, params: {max_batch: &x [*x]}}\n")
    with pytest.raises(ServeTwinError):
        loading.load(file)
