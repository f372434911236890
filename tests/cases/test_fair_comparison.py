"""Kind 3, fair comparison: cases 03 (runs that are cut off at their end) and 17 (a policy by name or by path), each
with variants of its own.

More ways to name a policy, and what deployments say: tests/experiments/spec/test_named_deployments.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servetwin.experiments.registry.catalog import workload_names
from servetwin.experiments.spec.loading import load
from servetwin.policies.diffusion import clockwork, edf, fcfs, neustream
from toy_systems import rows, servetwin, write_one

import servetwin as st

MODULES = {"fcfs": fcfs, "clockwork": clockwork, "neustream": neustream, "edf": edf}
CLASSES = {"fcfs": fcfs.FCFS, "clockwork": clockwork.Clockwork, "neustream": neustream.NeuStream, "edf": edf.EDF}


# -- case 03 --------------------------------------------------------------------------------------------

#: Those that serve images, whose published runs were cut off.
IMAGES = [name for name in workload_names() if load(name).slo.model_dump().get("factor") and "llm" not in name]


@pytest.mark.parametrize("workload", [n for n in IMAGES if n.split("-")[0] in ("dit", "sd15", "palette")])
def test_03_one_request_on_an_idle_gpu_is_met(workload: str):
    """Alone it takes a fraction of its SLO, which is a multiple of what it takes alone."""
    result = st.run(workload, rate=0.01, requests=1, records=False)
    assert (result.met, result.summary["failed"], result.summary.get("cut_off", 0)) == (1, 0, 0)


@pytest.mark.parametrize("policy", ["edf", "fcfs", "neustream"])
@pytest.mark.parametrize("workload", ["dit-xl2-256-rtx4090", "sd15-512-rtx4090", "sd15-256-h100"])
def test_03_who_drops_nothing_holds_an_slo_that_nobody_can_miss(workload: str, policy: str):
    result = st.run(workload, rate=4, slo=16384, requests=60, policy=policy, records=False)
    assert result.attainment == 1.0


def test_03_pd_and_pc(here: Path):
    """As shipped, and with no stop for all: the same rows, policy by policy."""
    common = "extends: sd15-512-rtx4090\nset: {requests: 60, workload.draws: seeded, slo: 20, rate: 2.0}\n"
    policies = "policy: [neustream, edf, fcfs, clockwork]"
    (here / "pd.yaml").write_text(f"{common}grid: {{{policies}}}\n")
    (here / "pc.yaml").write_text(f"{common}grid: {{{policies}, system.stop_after: [null, 0.0]}}\n")
    for name in ("pd", "pc"):
        assert servetwin("sweep", f"{name}.yaml", "--out", f"{name}.csv", "-j", 1)[0] == 0
    shipped, both = rows(here / "pd.csv"), rows(here / "pc.csv")
    never = [row for row in both if not row["system.stop_after"]]
    assert [r["met"] for r in shipped] == [r["met"] for r in never]
    assert {r["cut_off"] for r in (*shipped, *never)} == {"0"}
    # whom the stop costs something is said in the table, and it is all who then failed
    for row in both:
        if row["system.stop_after"]:
            assert int(row["cut_off"]) == int(row["failed"]) > 0


@pytest.mark.parametrize("after", [0.0, 0.16, None])
def test_03_how_many_a_stop_cuts_off_by_hand(here: Path, after: float | None):
    """Six at once, a tenth of a second each: what is not finished when the stop comes has failed."""
    write_one(here)
    (here / "s.csv").write_text("arrival,steps\n" + "0.0,10\n" * 5 + "0.25,10\n")
    settings = {
        "workload.steps.denoise": {"draw": "trace"},
        "slo": {"seconds": 9.0},
        "system": {"stop_after": after, "client_delay": 0.0},
    }
    result = st.run("one.yaml", trace=here / "s.csv", requests=6, settings=settings)
    ends = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    met = 6 if after is None else sum(end <= 0.25 + after + 1e-9 for end in ends)
    assert (result.met, result.summary["failed"]) == (met, 6 - met)
    assert result.summary.get("cut_off", 0) == 6 - met


@pytest.mark.parametrize("way", ["03: run", "03: search", "03: sweep"])
def test_a_stop_is_said_wherever_it_acts(here: Path, way: str):
    write_one(here)
    stop = "system.stop_after=0.0"
    if way == "03: run":
        _, told, _ = servetwin("run", "one.yaml", "--rate", 50, "--set", stop)
        assert "cut off 0 s after the last request was sent" in told
    elif way == "03: search":
        options = ("--requests", 200, "--longest", 200, "--seeds", 2, "-j", 1, "--no-cache")
        _, told, _ = servetwin("search", "one.yaml", *options, "--set", stop)
        assert "runs are cut off 0 s after the last request was sent" in told
    else:
        (row,) = st.sweep("one.yaml", rate=[50.0], settings={"system.stop_after": 0.0}, jobs=1).to_dicts()
        assert row["stop_after"] == 0.0
        assert row["cut_off"] == row["failed"] > 0


def test_03_a_search_for_an_slo_ends_where_all_are_served(here: Path):
    """Ten at once, one at a time: the last has waited for all, and an SLO of ten times the latency alone holds."""
    write_one(here)
    (here / "s.csv").write_text("arrival,steps\n" + "0.0,10\n" * 10)
    settings = {"workload.steps.denoise": {"draw": "trace"}, "slo": {"factor": 4.0}}
    settings |= {"workload.requests": None, "system": {"client_delay": 0.0}}
    answer = st.search(
        "one.yaml", "slo", trace=here / "s.csv", target=0.99, seeds=1, settings=settings, jobs=1
    ).answer
    assert answer.value == pytest.approx(10.0, rel=0.012)


# -- case 17 --------------------------------------------------------------------------------------------


def by_path(name: str, here: Path) -> Any:
    return str(Path(MODULES[name].__file__))


def by_copy(name: str, here: Path) -> Any:
    shutil.copyfile(MODULES[name].__file__, here / "something_else.py")
    return "something_else.py"


def by_link(name: str, here: Path) -> Any:
    (here / "link.py").symlink_to(MODULES[name].__file__)
    return "link.py"


def by_class(name: str, here: Path) -> Any:
    return CLASSES[name]


def by_function(name: str, here: Path) -> Any:
    return lambda: CLASSES[name]()


def by_subclass(name: str, here: Path) -> Any:
    kind = CLASSES[name].__name__
    text = f"from {MODULES[name].__name__} import {kind}\n\n\nclass Mine({kind}):\n    pass\n"
    (here / "mine.py").write_text(text)
    return "mine.py"


def by_dotted_name(name: str, here: Path) -> Any:
    return f"{MODULES[name].__name__}:{CLASSES[name].__name__}"


NAMED = [by_path, by_copy, by_link, by_class, by_function, by_subclass, by_dotted_name]


@pytest.mark.parametrize("named", NAMED, ids=lambda f: f"17: {f.__name__}")
@pytest.mark.parametrize("name", ["fcfs", "clockwork", "neustream"])
def test_a_policy_is_what_it_does_and_not_what_it_is_called(here: Path, name: str, named: Callable[[str, Path], Any]):
    runs = [st.run("sd15-256-h100", rate=9, requests=60, policy=p) for p in (name, named(name, here))]
    assert runs[0].summary == runs[1].summary
    assert {run.experiment["deployment"]["name"] for run in runs} == {"stages"}
    assert runs[0].requests["finished"] == runs[1].requests["finished"]


def test_17_an_axis_of_names_and_one_of_deployments(here: Path):
    """A table says which deployment served, and a name makes no difference in either."""
    policies = ["fcfs", by_copy("fcfs", here), by_subclass("fcfs", here), by_dotted_name("fcfs", here)]
    grid = {"policy": policies, "deployment": ["stages", "whole"]}
    table = st.sweep("sd15-256-h100", rate=9.0, requests=60, jobs=1, **grid).to_dicts()
    assert len(table) == 8
    found = {d: {(r["met"], r["duration"]) for r in table if r["deployment"] == d} for d in ("stages", "whole")}
    assert [len(values) for values in found.values()] == [1, 1]
    assert found["stages"] != found["whole"]


def test_17_a_search_by_command(here: Path):
    policies = ["fcfs", by_copy("fcfs", here), by_dotted_name("fcfs", here)]
    options = [part for p in policies for part in ("--policy", p)]
    more = ("--target", 90, "--seeds", 1, "--requests", 20, "--longest", 20, "-j", 1, "--no-cache", "--out", "a.csv")
    assert servetwin("search", "sd15-256-h100", *options, *more)[0] == 0
    found = rows(here / "a.csv")
    assert len(found) == 3
    assert len({(r["value"], r["low"], r["high"], r["deployment"]) for r in found}) == 1


@pytest.mark.parametrize("deployment", ["stages", "whole"])
def test_17_differences_between_names_are_none(here: Path, deployment: str):
    """`--versus`: a copy against the original, seed by seed."""
    policies = ["fcfs", by_copy("fcfs", here)]
    settings = {"deployment": deployment, "rate": 9.0, "requests": 60, "seeds": 3, "jobs": 1}
    table = st.sweep("sd15-256-h100", policy=policies, versus="fcfs", **settings).to_dicts()
    assert [row["attainment_minus_fcfs"] for row in table] == [0.0, 0.0]
    assert len({row["attainment"] for row in table}) == 1


def test_17_run_folders_are_compared_as_served_alike(here: Path):
    assert servetwin("run", "sd15-256-h100", "--rate", 9, "--requests", 60, "--policy", "fcfs", "--out", "a")[0] == 0
    copy = by_copy("fcfs", here)
    assert servetwin("run", "sd15-256-h100", "--rate", 9, "--requests", 60, "--policy", copy, "--out", "b")[0] == 0
    assert servetwin("compare", "a", "b", "--json")[0] == 0
    for folder in ("a", "b"):
        assert "stages" in servetwin("run", "sd15-256-h100", "--requests", 5, "--policy", "fcfs")[1]
        assert '"name": "stages"' in (here / folder / "meta.json").read_text()
    assert (here / "a/summary.json").read_text() == (here / "b/summary.json").read_text()
