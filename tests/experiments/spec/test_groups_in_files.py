"""Groups of devices: what an experiment may say of them, and what its records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.core.errors import InvariantBroken
from servetwin.core.invariants.checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.backends.diffusion import Plan
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.cli.output.run_output import device_lines, input_lines
from servetwin.experiments.explaining.causes import Cause
from servetwin.experiments.explaining.explanation import explain
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_runs import compare
from servetwin.profiles.profile import DATA

NAME = "flux-groups-published"


def run(folder: Path, *more: tuple[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary, the requests and the batches of a run."""
    summary = build.run(load(NAME, [("requests", 40), *more]), folder).as_dict()
    check_records(folder)
    lines = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("requests", "batches")]
    return summary, [json.loads(line) for line in lines[0]], [json.loads(line) for line in lines[1]]


@pytest.mark.parametrize("policy", ["deadline-degree", "fixed-degree"])
def test_what_requests_used_is_what_batches_took(policy: str, tmp_path: Path) -> None:
    summary, requests, batches = run(tmp_path / "run", ("policy", policy))
    used = summary["device_groups"]["transformer"]
    by_batches = sum(len(batch["devices"]) * (batch["end"] - batch["start"]) for batch in batches)
    assert used["device_seconds"] == pytest.approx(by_batches)
    stays = [record["stages"][0] for record in requests]
    assert sum(stay["device_seconds"] for stay in stays) == pytest.approx(by_batches)
    assert sum(stay["changes"] for stay in stays) == used["changes"]  # each runs alone
    assert {len(batch["devices"]) for batch in batches} == {int(n) for n in used["device_seconds_by_degree"]}
    assert (used["changes"] > 0) == (policy == "deadline-degree")
    (line,) = device_lines(summary)
    assert f"{used['changes']} changes of devices" in line


@pytest.mark.parametrize("router", [None, "least_violating", "jsq"])
def test_routers_weigh_groups(router: str | None, tmp_path: Path) -> None:
    more = [("deployment.router", router)] if router else []
    _, _, batches = run(tmp_path / "run", ("deployment.replicas", 2), *more)
    assert {batch["worker"] for batch in batches} == {"transformer", "transformer@node.2"}


def test_who_is_dropped_half_way_has_used_what_its_batches_took(tmp_path: Path) -> None:
    policy = tmp_path / "half.py"
    policy.write_text("""
from servetwin.core import Decision, Policy


class Half(Policy):
    names_devices = heeds_shapes = True

    def decide(self, view, now):
        group, tasks = view.group, [task for task in (*view.running, *view.waiting) if not view.group.busy(task)]
        for task in tasks:
            if task.left <= 25:
                return Decision(drop=[task])
            devices = group.devices_of(task) or group.free[:2]
            if len(devices) == 2 and set(devices) <= set(group.free):
                return Decision([task], devices=devices)
        return Decision()
""")
    _, requests, batches = run(tmp_path / "run", ("policy", str(policy)))
    assert {record["outcome"] for record in requests} == {"dropped"}
    for record in requests:
        own = sum(2 * (b["end"] - b["start"]) for b in batches if record["id"] in b["requests"])
        assert record["stages"][0]["device_seconds"] == pytest.approx(own)
        assert own > 0.0


def test_runs_say_that_their_times_are_estimated(tmp_path: Path) -> None:
    text = (DATA / "h100" / "flux1-dev-by-degree.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("h100/flux1-dev-by-degree", "h100/mine"))
    for name, file in (("flux1-dev-by-degree", "h100/flux1-dev-by-degree"), ("mine", str(tmp_path / "mine.yaml"))):
        summary = build.run(load(NAME, [("requests", 3), ("deployment.devices.node", file)])).as_dict()
        (line,) = summary["basis"]
        assert line.startswith(f"profile h100/{name} is estimated")
        assert "known error: not known" in line
        assert line in input_lines(summary)


def test_iterations_are_held_against_the_table_of_their_degree(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, ("time.table", "scheduler"), ("policy", "fixed-degree"), ("policy.params.degree", 8))
    run(tmp_path / "changing", ("time.table", "scheduler"))
    iterations = compare(folder, tmp_path / "changing")["iterations"]
    assert {name for name in iterations if "2048" in name} == {"transformer of 2048x2048 on 8 devices"}
    assert all(own[1]["first_over_table"] == pytest.approx(1.0) for own in iterations.values())
    changing = compare(tmp_path / "changing", folder)["iterations"]
    assert len({name.split(" on ")[-1] for name in changing}) > 1
    assert all(own[1]["first_over_table"] == pytest.approx(1.0, abs=0.02) for own in changing.values())


def test_each_iteration_is_explained_though_others_overlap_it(tmp_path: Path) -> None:
    _, requests, _ = run(tmp_path / "run", ("rate", 0.6))
    explained = explain(tmp_path / "run", requests=range(40))
    records = {record["id"]: record for record in requests}
    for one in explained:
        assert not any("hold" in note for note in one.notes)
        stay, parts = records[one.id]["stages"][0], one.spans
        assert sum(part.seconds for part in parts) == pytest.approx(one.ended - one.arrival)
        served = sum(part.seconds for part in parts if part.cause is Cause.ALONE)
        assert (parts[-1].done, served <= stay["finished"] - stay["started"] + 1e-9) == (50, True)


def test_records_of_a_device_in_two_batches_are_found(tmp_path: Path) -> None:
    run(tmp_path, ("policy", "fixed-degree"), ("rate", 2.0))
    file = tmp_path / "batches.jsonl"
    lines = [json.loads(line) | {"devices": [0]} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvariantBroken, match="before the last one ended"):
        check_records(tmp_path)


def test_sizes_have_degrees_of_their_own(tmp_path: Path) -> None:
    sizes = {"name": "fixed-degree", "params": {"degree": 1, "by_size": {"1024x1024": 2, "2048x2048": 8}}}
    _, requests, batches = run(tmp_path / "run", ("policy", sizes))
    of = {record["id"]: record["shape"]["height"] for record in requests}
    assert {(of[batch["requests"][0]], len(batch["devices"])) for batch in batches} == {
        (256, 1),
        (512, 1),
        (1024, 2),
        (2048, 8),
    }


def test_changes_of_devices_are_free_where_costs_are_off(tmp_path: Path) -> None:
    _, _, batches = run(tmp_path / "run", ("time.costs", False))
    seconds = {round(batch["end"] - batch["start"], 5) for batch in batches}
    _, _, paid = run(tmp_path / "paid")
    assert seconds < {round(batch["end"] - batch["start"], 5) for batch in paid}


WORKER = "deployment.workers.0"


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ([("policy", "edf")], "edf does not say on which devices of a group a batch runs .*fixed-degree"),
        ([(f"{WORKER}.gpus", 1)], "greater than or equal to 2"),
        ([("policy", {"name": "fixed-degree", "params": {"degree": 3}})], "on 3 devices of transformer .*1, 2, 4, 8"),
        (
            [("policy", {"name": "fixed-degree", "params": {"by_size": {"1024*1024": 2}}})],
            "no request at transformer is of '1024.1024' .*256x256, 512x512, 1024x1024, 2048x2048",
        ),
        ([(f"{WORKER}.intake", "after")], "takes in what arrives at once"),
        (
            [("deployment.devices.node", "h100/sd15-512"), ("workload.classes", {})],
            "does not know what a step takes on several devices at once",
        ),
        (
            [("pipeline.modules.transformer.actions", {"quality": [[1.0, 1.0]], "source": "none"})],
            "steps of transformer that are left out on a group",
        ),
        ([("deployment.prices", {"node": {"per_hour": 1.0, "source": "none"}})], "prices of groups of devices"),
    ],
    ids=["policy", "one", "degree", "size", "intake", "profile", "actions", "prices"],
)
def test_what_does_not_fit_is_refused_in_one_line(settings: list[tuple[str, Any]], wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        build.build(load(NAME, settings))


def test_a_group_has_its_device_alone(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(f"""
extends: {NAME}
deployment:
  workers:
    - {{modules: [transformer], device: node, limit: 1, gpus: 8, name: a}}
    - {{modules: [transformer], device: node, limit: 1, gpus: 8, name: b}}
""")
    with pytest.raises(BadInput, match="another worker is on node"):
        load(str(file))


def test_who_knows_nothing_of_groups_says_so() -> None:
    with pytest.raises(BadInput, match="groups of devices are simulated only: the real side knows nothing of them"):
        Plan(load(NAME))
    with pytest.raises(BadInput, match="groups of devices are simulated only"):
        most_met(load(NAME, [("requests", 5)]))
