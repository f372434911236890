"""Actions of a module: what an experiment may say of them, and runs that keep to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.core.errors import InvariantBroken, PolicyFault
from servetwin.core.invariants.checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.spec.loading import load

NAME = "sdxl-actions-synthetic"
AT = "pipeline.modules.unet.actions"


def run(folder: Path, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary, the requests and the batches of a run."""
    summary = build.run(load(NAME, [("requests", 60), *more.items()]), folder).as_dict()
    check_records(folder)
    lines = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("requests", "batches")]
    return summary, [json.loads(line) for line in lines[0]], [json.loads(line) for line in lines[1]]


@pytest.mark.parametrize("policy", ["fewer-steps", "reuse-steps", "from-similar"])
def test_records_tell_steps_asked_run_and_skipped(policy: str, tmp_path: Path) -> None:
    summary, requests, batches = run(tmp_path / "run", policy=policy, rate=0.9)
    done = [record for record in requests if record["outcome"] in ("met", "late")]
    stays = [record["stages"][0] for record in done]
    asked = [record["work"]["unet"] for record in done]
    assert [stay["steps_run"] + stay["steps_skipped"] for stay in stays] == asked
    assert sum(stay["steps_skipped"] for stay in stays) == summary["quality"]["steps_skipped"] > 0
    again = sum(len(batch.get("reused", ())) for batch in batches)
    assert (again > 0) == (policy == "reuse-steps")
    assert summary["quality"]["mean_quality"] < 1.0


def test_records_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    run(tmp_path, policy="reuse-steps")
    file = tmp_path / "requests.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["stages"][0]["steps_run"] += 1
    lines[0]["stages"][0]["steps_skipped"] -= 1
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvariantBroken, match="steps reused, its batches"):
        check_records(tmp_path)


def test_a_policy_that_does_not_act_runs_all_steps_at_the_same_times(tmp_path: Path) -> None:
    with_actions, requests, _ = run(tmp_path / "with", policy="edf")
    without, plain, _ = run(tmp_path / "without", policy="edf", **{AT: None})
    assert with_actions.pop("quality")["mean_quality"] == 1.0
    assert with_actions.pop("basis") == [
        *without.pop("basis", []),
        "quality by the steps of unet that were run: 0.7 at 40 %, 0.93 at 70 %, 1 at 100 %: synthetic",
        "how alike kept states of unet are is stated: synthetic",
    ]
    assert with_actions == without
    for record in requests:
        for key in ("steps_asked", "steps_run", "steps_skipped", "similarity"):
            del record["stages"][0][key]
    assert requests == plain
    assert "actions" not in load("dit-s2-256-rtx4090").as_dict()["pipeline"]["modules"]["dit"]


def test_reports_and_lists_say_that_the_times_are_made_up(servetwin: Any, tmp_path: Path) -> None:
    run(tmp_path / "run", policy="edf")
    code, out, err = servetwin("report", tmp_path / "run", "--markdown")
    assert code == 0, err
    assert "| synthetic/sdxl-actions | synthetic | nothing |" in out
    assert "How alike kept states of unet are is stated: synthetic." in out
    listed = json.loads(servetwin("profiles", "--json")[1])
    assert {"synthetic/sdxl-actions": "synthetic", "h200/opt-13b-tp1": "measured"}.items() <= {
        one["profile"]: one["basis"] for one in listed
    }.items()


def test_skipped_steps_take_what_the_profile_says(tmp_path: Path) -> None:
    """Of one request alone: the network in the computed steps, a twentieth of it in the others."""
    more = {"requests": 1, "policy": "reuse-steps", "workload.steps.unet": {"draw": "constant", "steps": 20}}
    _, (record,), _ = run(tmp_path, **{**more, "policy.params.threshold": 1.5})
    stay = record["stages"][0]
    assert (stay["steps_run"], stay["steps_skipped"]) == (11, 9)  # the first, the last, and every other
    took = stay["finished"] - stay["started"]
    assert took == pytest.approx(0.015 + 11 * 0.055 + 9 * 0.05 * 0.055 + 0.060)


def test_similarities_are_the_workloads_and_no_policys(tmp_path: Path) -> None:
    """Of each request the same one, whoever serves it and in whichever order; none without a word of them."""
    found = []
    for policy in ("from-similar", "fcfs"):
        _, requests, _ = run(tmp_path / policy, policy=policy, rate=0.9, requests=200)
        found.append({record["id"]: record["stages"][0]["similarity"] for record in requests})
    assert found[0] == found[1]
    assert set(found[0].values()) == {0.5, 0.7, 0.8, 0.92, 0.97}
    assert 60 < sum(value == 0.5 for value in found[0].values()) < 100  # four in ten
    summary, requests, _ = run(tmp_path / "none", policy="from-similar", **{f"{AT}.similar": None})
    assert summary["quality"]["steps_skipped"] == 0
    assert "similarity" not in requests[0]["stages"][0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({f"{AT}.similar": {"values": [0.5], "weights": [1, 2], "source": "mine"}}, "weights do not fit the values"),
        ({f"{AT}.similar": {"values": [0.5], "weights": [0], "source": "mine"}}, "weights do not fit the values"),
        ({f"{AT}.similar": {"values": [1.5], "source": "mine"}}, "similar.values"),
        ({f"{AT}.similar": {"values": [0.5]}}, "source"),
        ({f"{AT}.quality": [[0.5, 0.9], [0.4, 0.8], [1.0, 1.0]]}, "do not rise from above 0 to 1"),
        ({f"{AT}.quality": [[0.5, 0.9], [0.9, 1.0]]}, "do not rise from above 0 to 1"),
        ({f"{AT}.quality": [[0.0, 0.9], [1.0, 1.0]]}, "do not rise from above 0 to 1"),
        ({f"{AT}.quality": [[0.5, 0.9], [1.0, 0.8]]}, "with more steps it falls"),
        ({f"{AT}.quality": [[0.5], [1.0, 0.8]]}, "pipeline.modules.unet.actions.quality"),
        ({f"{AT}.min_steps": 0}, "min_steps"),
        ({"pipeline.modules.vae.actions": {"quality": [[1.0, 1.0]], "source": "mine"}}, "those of a loop module"),
        ({AT: {"reuse": True}}, "quality"),
        ({AT: {"quality": [[1.0, 1.0]]}}, "source"),
        ({"deployment.devices.gpu0": "synthetic/sdxl-shapes"}, "right would be: the cost unet.reuse|unet.reuse"),
    ],
    ids=[
        "weights",
        "no-weight",
        "above-1",
        "no-word",
        "order",
        "end",
        "zero",
        "falls",
        "pair",
        "none",
        "no-loop",
        "no-quality",
        "no-source",
        "not-measured",
    ],
)
def test_what_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build.build(load(NAME, [*more.items()]))


CASCADE = "sdxl-cascade-synthetic"
LIGHT = "pipeline.modules.light.actions"


def gone_on(folder: Path, **more: Any) -> tuple[dict[str, Any], dict[int, tuple[float, bool, bool]]]:
    """Of a cascade: the summary, and of each request that finished its confidence, whether its policy sent it on, and
    whether it was at the second model."""
    summary = build.run(load(CASCADE, [("requests", 80), *more.items()]), folder).as_dict()
    check_records(folder)
    found = {}
    for line in (folder / "requests.jsonl").read_text().splitlines():
        record = json.loads(line)
        stays = {stay["stage"]: stay for stay in record["stages"]}
        if record["finished"] is not None:
            light = stays["light"]
            found[record["id"]] = light["confidence"], light["onward"], "heavy" in stays
    return summary, found


def test_a_policy_chooses_who_goes_on_to_the_second_model(tmp_path: Path) -> None:
    calm, at_ease = gone_on(tmp_path / "calm", rate=0.2)
    assert {onward for _, onward, _ in at_ease.values()} == {True, False}
    assert all(onward == there for _, onward, there in at_ease.values())
    assert all(confidence < 0.6 for confidence, onward, _ in at_ease.values() if onward)
    crowded, in_a_crowd = gone_on(tmp_path / "crowded", rate=2.0)
    assert all(in_a_crowd[i][0] == at_ease[i][0] for i in in_a_crowd.keys() & at_ease)  # the workload's
    assert sum(onward for _, onward, _ in in_a_crowd.values()) < 0.7 * sum(
        onward for _, onward, _ in at_ease.values()
    )
    assert crowded["quality"]["mean_quality"] < calm["quality"]["mean_quality"] < 1.0


def test_a_policy_that_chooses_nothing_leaves_it_to_chance(tmp_path: Path) -> None:
    summary, found = gone_on(tmp_path / "told", policy="edf")
    assert all(onward == (confidence < 0.6) for confidence, onward, _ in found.values())
    plain = build.run(load(CASCADE, [("requests", 80), ("policy", "edf"), (f"{LIGHT}.confidence", None)])).as_dict()
    by_confidence = "quality of results of light by confidence: 0.4 at 0, 0.8 at 0.5, 1 at 1: synthetic"
    assert summary.pop("basis") == [*plain.pop("basis", []), by_confidence]
    assert plain.pop("quality") != summary.pop("quality")  # that of who does not go on is not told
    assert plain == summary


def test_an_answer_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = "from servetwin.core import Decision, Policy\n\n\nclass Mine(Policy):\n"
    text += (
        "    def decide(self, view, now):\n        return Decision([*view.running, *view.waiting][: view.limit])\n\n"
    )
    file.write_text(text + "    def onward(self, task, view, now):\n        return 'yes'\n")
    with pytest.raises(PolicyFault, match=r"onward returned 'yes' .right would be: True or False"):
        build.run(load(CASCADE, [("requests", 5), ("policy", str(file))]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"pipeline.branches": [], "pipeline.edges": [["light", "heavy"], ["heavy", "vae"]]},
            "0 branches leave this",
        ),
        ({f"{LIGHT}.confidence.quality": [[0.5, 0.4], [0.2, 1.0]]}, "do not rise from 0 to 1"),
        ({f"{LIGHT}.confidence.quality": [[0.0, 0.4], [1.5, 1.0]]}, "do not rise from 0 to 1"),
        ({f"{LIGHT}.confidence": {"quality": [[0.0, 0.4]]}}, "source"),
    ],
    ids=["no-branch", "order", "above-1", "no-word"],
)
def test_what_is_refused_of_a_cascade(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load(CASCADE, [*more.items()])


def test_what_knows_nothing_of_it_says_so() -> None:
    with pytest.raises(BadInput, match="the bound knows nothing of steps that are left out"):
        most_met(load(NAME))


@pytest.mark.parametrize(
    ("policy", "without", "key"),
    [
        ("fewer-steps", "pipeline.modules.unet.actions", "quality"),
        ("reuse-steps", "pipeline.modules.unet.actions.reuse", "reuse"),
        ("from-similar", "pipeline.modules.unet.actions.similar", "similar"),
        ("cascade", None, "confidence"),
    ],
)
def test_a_run_says_where_a_policy_has_no_steps_to_choose(servetwin, policy: str, without: str | None, key: str):
    asked = ("run", "sdxl-actions-synthetic", "--set", "requests=5", "--policy", policy)
    told = f"policy {policy} has no steps to choose: no module has actions.{key} (pipeline.modules.NAME)"
    code, said, _ = servetwin(*asked, *(("--set", f"{without}=null") if without is not None else ()))
    if key == "reuse":
        code, said, _ = servetwin(*asked, "--set", f"{without}=false")
    assert code == 0
    assert told in " ".join(said.split())
    if without is not None:
        code, said, _ = servetwin(*asked)
        assert (code, "has no steps to choose" in said) == (0, False)
