"""Sessions and closed loops against a server: each turn is sent when the one before it has been answered, with what
the server said it generated."""

from __future__ import annotations

import itertools
import json

import pytest
from servetwin.core import BadInput

pytest.importorskip("h11", reason="a client of servers needs h11: pip install 'servetwin[url]'")

from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.spec.loading import load
from test_url import Serving, chunk

SETS = [
    ("requests", 20),
    ("workload.arrivals", {"process": "closed", "clients": 3, "think": {"draw": "constant", "seconds": 0.01}}),
    ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 5, "high": 40}),
    (
        "workload.sessions",
        {"turns": {"draw": "constant", "turns": 4}, "think": {"draw": "constant", "seconds": 0.02}},
    ),
]


class Asked:
    """Answers with tokens that tell of their prompt, and keeps who asked what; *ids* off: it does not tell which."""

    def __init__(self, ids=True, drops=()):
        self.prompts, self.answers, self.ids, self.drops = {}, {}, ids, drops

    async def __call__(self, writer, asked):
        number = json.loads(asked["vllm_xargs"]["servetwin"])["id"]
        self.prompts[number] = asked["prompt"]
        many = 1 if number in self.drops else asked["max_tokens"]
        self.answers[number] = [(sum(asked["prompt"]) + i) % 400 for i in range(many)]
        for token in self.answers[number]:
            said = {"token_ids": [token]} if self.ids else {"text": "x"}
            writer.write(chunk(b"data: " + json.dumps({"choices": [said]}).encode() + b"\n\n"))
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def lines(folder):
    return sorted(
        (json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()), key=lambda r: r["id"]
    )


def test_the_prompt_of_a_turn_is_what_the_server_said(tmp_path):
    answers = Asked()
    with Serving(answers=answers) as server:
        VllmBackend().ask(server.url, load("tiny-opt-cpu", SETS), tmp_path / "run")
    check_records(tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [(r["session"], r["turn"]) for r in found] == [(i // 4, i % 4) for i in range(20)]
    for before, r in itertools.pairwise(found):
        if r["turn"]:
            said = answers.prompts[before["id"]] + answers.answers[before["id"]]
            assert answers.prompts[r["id"]][: len(said)] == said
            assert r["arrival"] >= before["finished"] + 0.02
        assert len(answers.prompts[r["id"]]) == r["stages"][0]["prompt"]
    flying = sorted([(r["arrival"], 1) for r in found] + [(r["finished"], -1) for r in found])
    assert max(sum(step for _, step in flying[: i + 1]) for i in range(len(flying))) <= 3


def test_what_the_server_drops_ends_its_session(tmp_path):
    with Serving(answers=Asked(drops=(5,))) as server:
        VllmBackend().ask(server.url, load("tiny-opt-cpu", SETS), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [r["id"] for r in found] == [i for i in range(20) if i not in (6, 7)]
    assert {r["id"]: r["outcome"] for r in found}[5] == "dropped"


def test_a_server_that_does_not_tell_its_tokens_has_no_sessions(tmp_path):
    with (
        Serving(answers=Asked(ids=False)) as server,
        pytest.raises(BadInput, match="does not tell which tokens it generates") as refused,
    ):
        VllmBackend().ask(server.url, load("tiny-opt-cpu", SETS), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_several_servers_want_a_worker_each(tmp_path):
    with pytest.raises(BadInput, match=r"2 servers for 1 workers"):
        VllmBackend().ask(["http://127.0.0.1:1", "http://127.0.0.1:2"], load("tiny-opt-cpu", SETS), tmp_path / "run")


@pytest.mark.parametrize("router", ["round_robin", "central"])
def test_turns_go_to_several_servers_as_the_router_says(tmp_path, router):
    """What a turn begins with was said by whichever server had the one before."""
    answers = Asked()
    sets = [*SETS, ("deployment.replicas", 2), ("deployment.router", router)]
    with Serving(answers=answers) as a, Serving(answers=answers) as b:
        VllmBackend().ask([a.url, b.url], load("tiny-opt-cpu", sets), tmp_path / "run")
        asked = [sum(head.startswith(b"POST") for head in server.heads) for server in (a, b)]
    check_records(tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [(r["session"], r["turn"]) for r in found] == [(i // 4, i % 4) for i in range(20)]
    moved = 0
    for before, r in itertools.pairwise(found):
        if r["turn"]:
            said = answers.prompts[before["id"]] + answers.answers[before["id"]]
            assert answers.prompts[r["id"]][: len(said)] == said
            assert r["arrival"] >= before["finished"] + 0.02
            moved += r["stages"][0]["worker"] != before["stages"][0]["worker"]
    assert sum(asked) == 20
    assert min(asked) > 0
    if router == "round_robin":
        assert asked == [10, 10]
        assert moved


def test_a_session_that_several_servers_cannot_go_on_with_is_told(tmp_path):
    sets = [*SETS, ("deployment.replicas", 2)]
    with (
        Serving(answers=Asked(ids=False)) as a,
        Serving(answers=Asked(ids=False)) as b,
        pytest.raises(BadInput, match="does not tell which tokens it generates"),
    ):
        VllmBackend().ask([a.url, b.url], load("tiny-opt-cpu", sets), tmp_path / "run")


def test_a_trace_of_sessions_is_sent_to_a_server(tmp_path):
    """AIPerf's form, whose rows say what turns add: as it is read for a simulation."""
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 30, "output_length": 4},
        {"session_id": "b", "timestamp": 10, "input_length": 20, "output_length": 5},
        {"session_id": "a", "delay": 15, "input_length": 6, "output_length": 3},
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = {"draw": "trace"}
    sets = [
        ("workload.requests", None),
        ("workload.arrivals", {"process": "trace", "file": str(tmp_path / "talks.jsonl")}),
        ("workload.lengths", {"llm": {"prompt": drawn, "output": drawn, "limit": 20}}),
        ("workload.sessions", {"turns": drawn}),
    ]
    answers = Asked()
    with Serving(answers=answers) as server:
        VllmBackend().ask(server.url, load("tiny-opt-cpu", sets), tmp_path / "run")
    found = {(r["session"], r["turn"]): r for r in lines(tmp_path / "run")}
    assert {k: (r["stages"][0]["prompt"], r["stages"][0]["generated"]) for k, r in found.items()} == {
        (0, 0): (30, 4),
        (0, 1): (40, 3),
        (1, 0): (20, 5),
    }
    assert found[0, 1]["arrival"] >= found[0, 0]["finished"] + 0.015
