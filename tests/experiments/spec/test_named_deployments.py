"""A policy fares the same by whatever name; which deployment serves is the experiment's word, and is shown."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import pytest
import servetwin.policies
from matplotlib.figure import Figure
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.plotting import paper_figures, style, sweep_plot
from servetwin.experiments.registry import policy_registry
from servetwin.experiments.registry.catalog import figure_names, workload_names
from servetwin.experiments.spec.loading import load, parse_override
from servetwin.experiments.sweeps.point import deployment_of, run_point, served_by
from servetwin.experiments.sweeps.sweep import find, points, read
from servetwin.experiments.validation.replay.folder import find as find_replays

POLICIES = Path(servetwin.policies.__file__).parent

#: One worker that runs requests from end to end, or two; a policy with a parameter, in the default deployment.
TWO = """
extends: toy.yaml
name: two
policy: {name: edf, params: {drop_late: false}}
deployment: apart
deployments:
  apart:
    workers:
      - {modules: [encode], device: gpu0, limit: 8}
      - {modules: [denoise], device: gpu0, limit: 8}
  together:
    estimates: scheduler
    workers:
      - {modules: [encode, denoise], device: gpu0, limit: 4}
variants:
  measured:
    policy: {name: fcfs, params: {max_batch: 2}}
    deployment: together
    system: {stop_after: 1.0}
"""


@pytest.fixture
def two(toy: Path) -> Path:
    path = toy.with_name("two.yaml")
    path.write_text(TWO)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def settings(row: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in row.items() if k != "policy"}


# -- by whatever name -----------------------------------------------------------------------------------


class EntryPoint:
    """As an installed package offers a policy."""

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.module, _, self.attr = value.partition(":")

    def load(self):
        module = importlib.import_module(self.module)
        return getattr(module, self.attr) if self.attr else module


def by_every_name(name: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Built in, dotted, the file itself, a copy under another name, and an entry point."""
    file = next(POLICIES.rglob(f"{name}.py"))
    copy = where / "something_else.py"
    shutil.copyfile(file, copy)
    shown = policy_registry.find_policy(name).__name__
    offered = EntryPoint(f"their-{name}", f"servetwin.policies.diffusion.{name}:{shown}")
    entry_points = importlib.metadata.entry_points

    def with_theirs(**wanted):
        mine = wanted.get("group") == policy_registry.GROUP and wanted.get("name", offered.name) == offered.name
        return [*entry_points(**wanted), *([offered] if mine else [])]

    monkeypatch.setattr(importlib.metadata, "entry_points", with_theirs)
    policy_registry.policy_names.cache_clear()
    policy_registry.offered.cache_clear()
    return [name, f"servetwin.policies.diffusion.{name}:{shown}", str(file), str(copy), offered.name]


@pytest.mark.parametrize("name", ["fcfs", "clockwork", "neustream", "edf"])
@pytest.mark.parametrize("workload", ["sd15-256-h100", "dit-xl2-256-rtx4090", "palette-256-rtx4090"])
def test_a_policy_fares_the_same_by_whatever_name(workload, name, tmp_path, monkeypatch):
    """Case 17: fcfs met 5.6 % by its name and 40.0 % as a file."""
    names = by_every_name(name, tmp_path, monkeypatch)
    try:
        rows = [settings(run_point(load(workload, [("policy", n), ("requests", 40)]))) for n in names]
        deployments = {deployment_of(load(workload, [("policy", n)])) for n in names}
    finally:
        monkeypatch.undo()
        policy_registry.policy_names.cache_clear()
        policy_registry.offered.cache_clear()
    assert all(row == rows[0] for row in rows)
    assert deployments == {"stages"}


def test_a_files_parameters_go_to_its_policy_by_whatever_name(two: Path, tmp_path, monkeypatch):
    names = by_every_name("edf", tmp_path, monkeypatch)
    try:
        found = {n: load(two, [("policy", n)]).policy.params for n in names}
    finally:
        monkeypatch.undo()
        policy_registry.policy_names.cache_clear()
        policy_registry.offered.cache_clear()
    assert all(params == {"max_batch": None, "drop_late": False} for params in found.values()), found


def test_another_policy_of_the_same_class_name_is_another(two: Path, tmp_path):
    """A copy that was edited is not the policy that the file's parameters are for."""
    copy = tmp_path / "mine.py"
    copy.write_text((POLICIES / "diffusion" / "edf.py").read_text() + "\n# edited\n")
    assert load(two, [("policy", str(copy))]).policy.params["drop_late"] is True
    assert not policy_registry.same_policy("edf", "fcfs")
    assert not policy_registry.same_policy("edf", "nobody")
    sys.modules.pop(policy_registry.find_policy(str(copy)).__module__, None)


def test_no_file_that_comes_along_knows_policies_by_name():
    for name in workload_names():
        own = {load(name, [("policy", p)]).deployment.model_dump_json() for p in ("fcfs", "edf", "clockwork")}
        assert len(own) == 1, name


# -- nothing is cut off ---------------------------------------------------------------------------------


def test_one_request_on_an_idle_gpu_is_served(servetwin):
    """Case 03: it failed, with a stop right after the last request was sent."""
    code, out, _ = servetwin("run", "sd15-512-rtx4090", "--rate", 0.05, "--requests", 1)
    assert code == 0
    assert any(line.split() == ["met", "1", "100.0", "%"] for line in out.splitlines()), out
    assert "cut off" not in out


def test_an_slo_that_nobody_can_miss_is_held(servetwin, tmp_path: Path):
    """Case 03: no SLO was held by more than 39.3 %, not even of 16384 times the latency alone."""
    row = run_point(load("dit-xl2-256-rtx4090", [("policy", "edf"), ("rate", 2), ("slo", 16384), ("requests", 100)]))
    assert row["attainment"] == 1.0
    arguments = ("search", "dit-xl2-256-rtx4090", "--policy", "edf", "--find", "slo", "--target", 90, "--seeds", 2)
    more = ("--set", "rate=2", "--set", "slo.factor=4", "--out", tmp_path / "found.csv", "-j", 1)
    code, out, _ = servetwin(*arguments, "--requests", 40, "--longest", 160, *more)
    assert code == 0, out
    (found,) = table(tmp_path / "found.csv")
    assert "met nowhere" not in found["notes"]
    assert (found["deployment"], float(found["value"]) < 16384) == ("stages", True)
    assert "the backlog is overloaded" in found["notes"]  # at this rate: how much is held depends on the run's length


@pytest.mark.parametrize("policy", ["fcfs", "clockwork"])
def test_policies_are_let_end_alike(policy):
    """Case 03: the stop was clockwork's alone to escape."""
    with_null = [("policy", policy), ("requests", 60), ("slo", 20), ("rate", 2.0), ("workload.draws", "seeded")]
    default = run_point(load("sd15-512-rtx4090", with_null))
    assert default == run_point(load("sd15-512-rtx4090", [*with_null, ("system.stop_after", None)]))
    assert default["cut_off"] == default["failed"] == 0


def test_no_workload_that_comes_along_cuts_off():
    assert {name: load(name).system.stop_after for name in workload_names()} == dict.fromkeys(workload_names())


def test_who_was_cut_off_is_said(two: Path, servetwin, tmp_path: Path):
    code, out, _ = servetwin("run", two, "--rate", 200, "--set", "variant=measured", "--out", tmp_path / "run")
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["cut_off"] == summary["failed"] > 0
    assert f"{summary['cut_off']} of the failed were under way when the run was cut off, 1 s after the last" in out
    assert "cut off 1 s after the last request was sent" in out
    whole = build.run(load(two, [("rate", 200)])).as_dict()
    assert "cut_off" not in whole
    assert whole["failed"] == 0


# -- choosing -------------------------------------------------------------------------------------------


def workers(experiment) -> list[list[str]]:
    return [w.modules for w in experiment.deployment.workers]


APART, TOGETHER = [["encode"], ["denoise"]], [["encode", "denoise"]]


def test_a_deployment_is_chosen_by_name(two: Path):
    assert (load(two).deployment.name, workers(load(two))) == ("apart", APART)
    for key in ("deployment=together", "deployment.name=together"):
        chosen = load(two, [parse_override(key), ("policy", "clockwork")])
        assert (chosen.deployment.name, workers(chosen)) == ("together", TOGETHER)
    again = load(chosen.as_dict())
    assert again == chosen
    assert again.digest() == chosen.digest()


def test_what_an_extending_file_says_outdoes_the_name(two: Path):
    child = two.with_name("child.yaml")
    child.write_text("extends: two.yaml\ndeployment: together\n")
    assert workers(load(child)) == TOGETHER
    child.write_text(
        "extends: two.yaml\ndeployment: {workers: [{modules: [encode, denoise], device: gpu0, limit: 2}]}\n"
    )
    own = load(child)
    assert (own.deployment.name, own.deployment.workers[0].limit) == (None, 2)
    assert deployment_of(own) == "encode+denoise"
    asked = load(child, [("deployment", "apart")])
    assert (asked.deployment.name, workers(asked)) == ("apart", APART)  # but not what somebody asks for besides
    child.write_text("extends: two.yaml\ndeployments: {together: {replicas: 2}}\ndeployment: together\n")
    assert (load(child).deployment.replicas, workers(load(child))) == (2, TOGETHER)


def test_a_deployment_that_was_changed_says_so(two: Path):
    assert load(two, [("deployment.workers.1.limit", 4)]).deployment.name == "apart, changed"
    assert load(two, [("deployment.workers.1.limit", 8)]).deployment.name == "apart"
    assert load(two, [("deployment.devices.gpu0", load(two).deployment.devices["gpu0"])]).deployment.name == "apart"
    twice = load(load(two, [("deployment.workers.1.limit", 4)]).as_dict(), [("deployment.workers.0.limit", 4)])
    assert twice.deployment.name == "apart, changed"


def test_a_variant_says_what_a_system_was(two: Path):
    chosen = load(two, [("variant", "measured")])
    assert (chosen.policy.name, chosen.policy.params) == ("fcfs", {"max_batch": 2})
    assert (chosen.deployment.name, chosen.system.stop_after) == ("together", 1.0)
    other = load(two, [("variant", "measured"), ("policy", "edf"), ("deployment", "apart")])
    assert (other.policy.name, other.deployment.name, other.system.stop_after) == ("edf", "apart", 1.0)
    child = two.with_name("child.yaml")
    child.write_text("extends: two.yaml\nvariant: measured\nsystem: {stop_after: 2.0}\n")
    assert (load(child).policy.name, load(child).system.stop_after) == ("fcfs", 2.0)
    assert load(child, [("variant", None)]).policy.name == "edf"


WRONG = {
    "no such deployment": ("deployment: apar", ["child.yaml: deployment: unknown deployment 'apar'", "apart"]),
    "no such variant": ("variant: mesured", ["child.yaml: variant: unknown variant 'mesured'", "measured"]),
    "no name": ("variant: 3", ["child.yaml", "variant is 3"]),
    "a number for a deployment": ("deployment: {name: 3}", ["3 is no name of a deployment"]),
    "said twice": (
        "deployments: {x: {workers: []}}\ndeployment: {name: x, workers: []}",
        ["deployment and deployments.x both say workers", "one of them"],
    ),
    "no mapping": ("deployments: [x]", ["deployments does not map names to settings", "shared"]),
    "no mapping inside": ("variants: {x: 3}", ["variants does not map names to settings"]),
    "a name within": ("deployments: {x: {name: y}}", ["deployments.x has a key 'name'"]),
    "wrong in a deployment": (
        "deployments: {x: {workers: [{modules: [encode], device: gpu0, limit: few}]}}\ndeployment: x",
        ["child.yaml:2: deployment.workers.0.limit", "'few'"],
    ),
    "unknown key in a variant": ("variants: {x: {systm: {}}}\nvariant: x", ["child.yaml:2: systm", "system"]),
    "by_policy, of old": ("by_policy: {edf: {}}", ["child.yaml", "no key any more", "deployments", "variants"]),
    "a session of a policy": ("sessions: [{policy: edf, set: {}}]", ["child.yaml", "sessions", "variant"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_choice_is_told_in_one_line(two: Path, case):
    text, expected = WRONG[case]
    child = two.with_name("child.yaml")
    child.write_text(f"extends: two.yaml\n{text}\n")
    with pytest.raises(BadInput) as caught:
        load(child)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_a_wrong_choice_by_hand(two: Path, toy: Path):
    with pytest.raises(BadInput, match=r"--set deployment: unknown deployment 'tgether'.*together"):
        load(two, [("deployment", "tgether")])
    with pytest.raises(BadInput, match=r"--set variant: unknown variant 'x'.*variants: {x: {...}} in the file"):
        load(toy, [("variant", "x")])
    with pytest.raises(BadInput, match=r"--set variant: 3 is no variant"):
        load(two, [("variant", 3)])
    with pytest.raises(BadInput, match=r"--set deployment: unknown deployment 'anything'"):
        load("opt-13b-a6000", [("deployment", "anything")])


# -- shown ----------------------------------------------------------------------------------------------


def test_a_run_says_which_deployment_served(servetwin, two: Path):
    out = servetwin("run", two, "--set", "deployment=together")[1]
    assert "deployment together: encode+denoise (4)\n" in out
    said = served_by(load("sd15-256-rtx4090", [("variant", "clockwork-ae"), ("replicas", 2)]))
    assert said == "whole-clockwork: clip+unet+vae+safety (5); estimates clockwork; 2 replicas"
    assert served_by(load("sd15-512-rtx4090", [("variant", "neustream-ae")])) == (
        "stages: clip (15), unet (15), vae+safety (15); requests that arrive are taken in "
        "once a batch has started; cut off 0 s after the last request was sent"
    )
    assert "gpu1" in served_by(load("sdxl-caption-synthetic"))


def swept(servetwin, two: Path, grid: str, *more: object) -> list[dict[str, str]]:
    spec, out = two.with_name("grid.yaml"), two.with_name("grid.csv")
    spec.write_text(f"extends: two.yaml\n{grid}\n")
    code, _, err = servetwin("sweep", spec, "--out", out, "--jobs", 1, *more)
    assert code == 0, err
    return table(out)


def test_a_deployment_is_an_axis_and_a_column(servetwin, two: Path):
    rows = swept(servetwin, two, "set: {rate: 30}\ngrid: {policy: [edf, fcfs], deployment: [apart, together]}")
    places = [(r["policy"], r["deployment"], r["stop_after"]) for r in rows]
    assert places == [(p, d, "") for p in ("edf", "fcfs") for d in ("apart", "together")]
    assert len({r["met"] for r in rows}) > 1
    rows = swept(servetwin, two, "grid: {variant: [measured, null]}")
    assert [(r["variant"], r["policy"], r["deployment"], r["stop_after"]) for r in rows] == [
        ("measured", "fcfs", "together", "1.0"),
        ("", "edf", "apart", ""),
    ]


def test_policies_are_compared_with_what_goes_with_them(servetwin, two: Path):
    """--versus: at the same deployment if there is one, else system against system; never by chance."""
    rows = swept(servetwin, two, "grid: {policy: [edf, fcfs], deployment: [apart, together]}", "--versus", "edf")
    assert [float(r["attainment_minus_edf"]) == 0.0 for r in rows if r["policy"] == "edf"] == [True, True]
    rows = swept(servetwin, two, "grid: {variant: [measured, null], rate: [4.0, 60.0]}", "--versus", "edf")
    gaps = [float(r["attainment"]) - float(s["attainment"]) for r, s in zip(rows[:2], rows[2:], strict=True)]
    assert [float(r["attainment_minus_edf"]) for r in rows] == pytest.approx([*gaps, 0.0, 0.0])
    spec = two.with_name("grid.yaml")
    # Twice as many replicas are another system; and of two systems neither is the one to compare with.
    for more, doubtful in ((", set: {deployment.replicas: 2}", "fcfs"), ("", "clockwork")):
        spec.write_text(
            "sweeps:\n- {extends: two.yaml, grid: {policy: [edf], deployment: [apart, together]}}\n"
            f"- {{extends: two.yaml, grid: {{policy: [fcfs], deployment: [together]}}{more}}}\n"
            "- {extends: two.yaml, grid: {policy: [clockwork], variant: [measured]}}\n"
        )
        code, _, err = servetwin("sweep", spec, "--out", two.with_name("x.csv"), "--jobs", 1, "--versus", "edf")
        assert code == 2
        assert f"2 points of policy 'edf' could be compared with {doubtful}" in err


def test_lines_of_a_figure_name_their_deployment_where_it_differs(servetwin, two: Path, monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr(style.Sheet, "save", lambda sheet, *_: kept.append(sheet.figure) or [])
    out = two.with_name("plot.png")
    labels = []
    for axes in ("policy: [edf, fcfs]", "policy: [edf], deployment: [apart, together]", "variant: [measured, null]"):
        swept(servetwin, two, f"grid: {{{axes}, rate: [4.0, 8.0]}}")
        assert sweep_plot.draw(two.with_name("grid.csv"), out) == (1, [])
        labels.append([line.get_label() for line in kept[-1].axes[0].lines])
    assert labels == [
        ["edf", "fcfs"],
        ["edf, apart", "edf, together"],
        ["fcfs, together, cut off after 1.0 s", "edf, apart, runs to the end"],
    ]


def test_figures_name_deployments_where_they_differ():
    rows = [{"policy": p, "deployment": d} for p, d in (("neustream", "stages"), ("clockwork", "whole"))]
    assert paper_figures.deployments_of(rows) == "deployments: neustream on stages; clockwork on whole"
    assert paper_figures.deployments_of(rows[1:]) is None
    assert paper_figures.deployments_of([{"policy": "vllm"}]) is None


def test_grids_keep_deployments_apart(servetwin, two: Path):
    swept(servetwin, two, "set: {rate: 60}\ngrid: {policy: [edf, fcfs], deployment: [apart, together]}")
    shutil.copyfile(two.with_name("grid.csv"), two.with_name("both.csv"))
    code, out, _ = servetwin("compare", two.with_name("both.csv"), two.with_name("both.csv"))
    assert code == 0
    assert "4 cells: |B - A| mean 0.00" in out
    assert "edf (together)" in out
    swept(servetwin, two, "set: {rate: 60}\ngrid: {policy: [edf, fcfs]}")
    shutil.copyfile(two.with_name("grid.csv"), two.with_name("apart.csv"))
    swept(servetwin, two, "set: {rate: 60, deployment: together}\ngrid: {policy: [edf, fcfs]}")
    code, out, _ = servetwin("compare", two.with_name("apart.csv"), two.with_name("grid.csv"))
    assert code == 0
    assert "deployments differ: two, edf: apart against together" in out


# -- what was measured ----------------------------------------------------------------------------------


def test_the_papers_figures_have_each_system_as_it_was():
    for name, wanted in (("figure11", {"stages", "whole-clockwork"}), ("figure13", {"stages", "whole-clockwork"})):
        found, _ = points(read(find(name)), find(name))
        assert {(e.policy.name, e.deployment.name) for e in found} == {
            ("neustream", "stages"), ("clockwork", "whole-clockwork")
        }, wanted  # fmt: skip
        stops = {(e.name, e.policy.name): e.system.stop_after for e in found}
        assert stops["dit-s2-256-rtx4090", "neustream"] == 10.0
        assert stops["sd15-256-rtx4090", "neustream"] == 0.0
        assert {stop for (_, policy), stop in stops.items() if policy == "clockwork"} == {None}
    assert "figure14" in figure_names()


def test_a_measured_run_is_shown_where_the_set_up_is_the_same(servetwin):
    shown = ("run", "dit-s2-256-rtx4090", "--rate", 4)
    assert "measured" not in servetwin(*shown)[1]
    out = servetwin(*shown, "--set", "variant=neustream-ae")[1]
    assert "measured on 2024-04-28 17:41:55: 463 met, 463 finished" in out
    assert "measured" not in servetwin(*shown, "--set", "variant=neustream-ae", "--set", "deployment=whole")[1]


def test_a_run_folder_from_before_deployments_had_names_is_repeated(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--rate", 6, "--out", tmp_path / "run")
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    digest = meta["experiment_digest"]
    del meta["experiment"]["deployment"]["name"]
    (tmp_path / "run" / "meta.json").write_text(json.dumps(meta))
    (found,) = find_replays(tmp_path / "run")
    assert found.experiment.digest() == digest


def test_a_search_is_of_the_deployment_that_is_asked_for(servetwin, two: Path, tmp_path: Path):
    found = []
    for name in ("apart", "together"):
        out = tmp_path / f"{name}.csv"
        arguments = ("search", two, "--set", f"deployment={name}", "--seeds", 2, "-j", 1)
        assert servetwin(*arguments, "--requests", 40, "--longest", 80, "--out", out)[0] == 0
        found += table(out)
    assert [row["deployment"] for row in found] == ["apart", "together"]
    assert found[0]["value"] != found[1]["value"]


def test_times_by_policy_that_a_policy_has_none_of_are_said(tmp_path: Path, servetwin):
    """A copy of a policy under a class of another name goes by the usual times, and that is said."""
    experiment, options = "sd15-512-h100-graphs", ("--rate", 4, "--requests", 30)
    code, out, _ = servetwin("run", experiment, "--policy", "edf", *options)
    assert (code, "not under" in out) == (0, False)
    copy = tmp_path / "mine.py"
    copy.write_text((POLICIES / "diffusion" / "edf.py").read_text().replace("class EDF(", "class Mine("))
    code, out, _ = servetwin("run", experiment, "--policy", copy, *options, "--out", tmp_path / "run")
    assert code == 0
    said = (
        "time between iterations of unet: measured under edf, neustream, not under mine: it is simulated with the "
        "profile's default"
    )
    assert said in out
    assert said in json.loads((tmp_path / "run" / "meta.json").read_text())["policy_not_measured"]
