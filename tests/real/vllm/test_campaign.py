"""The work of a campaign among several processes, and what they leave as one file."""

import gzip
import json
from argparse import Namespace

import campaign
import pytest
from async_campaign import Campaign
from async_plan import LOOSE, TIGHT, Shard
from servetwin.experiments.validation.replay.llm import read


def test_each_group_of_runs_goes_to_one_process_and_all_have_about_the_same_to_do():
    groups = {i: [{"id": f"{i}-{j}", "requests": [[0.0], [10.0 * i]]} for j in range(4)] for i in range(1, 11)}
    parts = [Shard(k, 3).groups(groups) for k in range(3)]
    ids = [cell["id"] for part in parts for group in part for cell in group]
    assert sorted(ids) == sorted(cell["id"] for group in groups.values() for cell in group)
    seconds = [sum(cell["requests"][-1][0] for group in part for cell in group) for part in parts]
    assert max(seconds) < 1.2 * min(seconds)


def test_the_processes_make_all_runs_once_and_the_least_certain_each(tmp_path):
    knees = {TIGHT: 12.4, LOOSE: 48.4}
    ids = []
    for k in range(4):
        told = {"model": "opt-13b", "tensor_parallel": 1, "tiny": False, "smoke": False, "lasting": 1.0}
        args = Namespace(folder=tmp_path / str(k), seconds=1500, shard=Shard(k, 4), **told)
        mine = Campaign(args).sharded(knees)
        assert mine[-1][0]["id"] == f"neustream-llm_5+2_r48.4_cv1_s10_{k}"
        assert sum(cell["requests"][-1][0] for group in mine for cell in group) < 1250
        ids += [cell["id"] for group in mine for cell in group]
    assert len(ids) == len(set(ids)) == 4 * (2 * 3 + 2 * 2) + 3
    assert "vllm-v1_any_r24.2_cv1_s10_0" in ids  # half the loose SLO's knee


def test_the_knees_are_those_of_who_finds_them_first(tmp_path):
    found = []
    for k, knee in enumerate((12.0, 13.0)):
        (tmp_path / str(k)).mkdir()
        found.append(Shard(k, 2).agreed(tmp_path / str(k), {TIGHT: knee, LOOSE: 48.0}))
    assert found == [{TIGHT: 12.0, LOOSE: 48.0}] * 2


@pytest.mark.parametrize("text", ["4/4", "-1/2", "1", "a/b"])
def test_a_process_is_one_of_so_many(text):
    assert Shard.parse("3/4") == Shard(3, 4)
    with pytest.raises(ValueError, match=r"."):
        Shard.parse(text)


def test_runs_of_several_processes_are_packed_as_one(tmp_path):
    step = [0.0, 0.0, 0.001, 0.02, [[0, 30, 0]], 0, 0, [], [], 0, 0, 0.0]
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        options = {"max_batched_tokens": 2048, "max_sequences": 64}
        lines = [{"kind": "engine", "blocks": 10, "block_size": 16, "options": options, "rotation": {}}]
        for number in range(2):
            run = {
                "id": f"{k}-{number}",
                "policy": "vllm",
                "slo": TIGHT,
                "rate": 1.0,
                "cv": 1,
                "repeat": 0,
                "limit": 9,
            }
            rows = [[0, 0.0, 30, 2, 0.0, "finished", 0, [0.02, 0.03]]]
            lines.append({"kind": "run", **run, "requests": rows, "steps": [step]})
        with gzip.open(tmp_path / str(k) / "runs.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    campaign.pack([tmp_path / "0", tmp_path / "1"], tmp_path / "llm.json.gz", "here/opt", first=True)
    packed = read(tmp_path / "llm.json.gz")
    assert packed.profile == "here/opt-0"
    assert [(run.id, run.profile, run.profiled) for run in packed.runs] == [
        ("0-0", None, True),
        ("0-1", None, False),
        ("1-0", "here/opt-1", True),
        ("1-1", "here/opt-1", False),
    ]
    assert packed.runs[3].requests[0].times == (0.02, 0.03)
    assert campaign.first_run(tmp_path / "1") == [step]
