"""Sessions and closed loops on vLLM: each turn is sent when it is due, with what was really said before."""

import json

import pytest
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.traces import conversations
from servetwin.real.vllm.engine import VllmEngine
from servetwin.real.vllm.plan import SessionSender

SETS = [
    ("requests", 40),
    ("workload.lengths.llm.prompt", {"draw": "uniform", "low": 5, "high": 40}),
    (
        "workload.sessions",
        {"turns": {"draw": "uniform", "low": 1, "high": 5}, "think": {"draw": "constant", "seconds": 0.02}},
    ),
]
CLOSED = ("workload.arrivals", {"process": "closed", "clients": 6})
CACHING = ("deployment.workers.0.engine.enable_prefix_caching", True)
DROPS = """
from servetwin.policies.llm.vllm_v1 import VLLMV1

class DropsFives(VLLMV1):
    def decide(self, view, now):
        step = super().decide(view, now)
        drop = [task for task in view.waiting if task.id % 5 == 3]
        if not drop:
            return step
        return type(step)(drop=drop)
"""


@pytest.fixture(scope="module")
def backend():
    found = VllmBackend()
    yield found
    found.close()


@pytest.fixture
def heard(monkeypatch):
    """The tokens of each prompt that was sent, and of each answer, by the request's number."""
    prompts, answers = {}, {}
    add, ended = VllmEngine.add, SessionSender.ended

    def adding(self, planned, sent):
        if planned.ids is not None:
            prompts[planned.id] = list(planned.ids)
        add(self, planned, sent)

    def ending(self, number, now, tokens, *, answered):
        answers[number] = list(tokens)
        ended(self, number, now, tokens, answered=answered)

    monkeypatch.setattr(VllmEngine, "add", adding)
    monkeypatch.setattr(SessionSender, "ended", ending)
    return prompts, answers


def lines(folder):
    return sorted(
        (json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()), key=lambda r: r["id"]
    )


def same_hits(folder):
    """For real and in simulation as many tokens of each prompt were found, and so the hit rates are the same."""
    found = {
        kind: (
            [r["stages"][0]["cached"] for r in lines(folder / kind)],
            json.loads((folder / kind / "summary.json").read_text())["llm"]["llm"]["prefix_cache_hit_rate"],
        )
        for kind in ("real", "sim")
    }
    assert found["real"] == found["sim"]
    assert found["sim"][1] > 0.0


@pytest.mark.parametrize("more", [[CACHING], [CLOSED]], ids=["open, prefixes cached", "closed"])
def test_the_prompt_of_a_turn_is_what_was_really_said(backend, heard, tmp_path, more):
    prompts, answers = heard
    experiment = load("tiny-opt-cpu", [*SETS, *more])
    backend.run(experiment, tmp_path / "real")
    build.run(experiment, tmp_path / "sim")
    check_records(tmp_path / "real")
    real, sim = lines(tmp_path / "real"), lines(tmp_path / "sim")
    assert len(real) == 40
    for r, s in zip(real, sim, strict=True):
        assert (r["id"], r["session"], r["turn"]) == (s["id"], s["session"], s["turn"])
        assert [r["stages"][0][k] for k in ("prompt", "generated")] == [
            s["stages"][0][k] for k in ("prompt", "generated")
        ]
        if r["turn"]:
            before = real[r["id"] - 1]
            said = prompts[before["id"]] + answers[before["id"]]
            assert prompts[r["id"]][: len(said)] == said
            if CACHING in more:  # answers too, but the last token's KV is never computed
                assert r["stages"][0]["cached"] == (len(said) - 1) // 16 * 16
            assert 0.0 <= r["arrival"] - before["finished"] - 0.02 < 0.5
        assert len(prompts[r["id"]]) == r["stages"][0]["prompt"]
        assert r["arrival"] <= r["stages"][0]["queued"]
    assert max(r["turn"] for r in real) > 1
    if CACHING in more:
        same_hits(tmp_path)
    if CLOSED in more:  # what is in flight at any time is what clients keep there
        events = sorted([(r["arrival"], 1) for r in real] + [(r["finished"], -1) for r in real])
        counts = [sum(step for _, step in events[: i + 1]) for i in range(len(events))]
        assert max(counts) == 6


@pytest.mark.parametrize("after_drop", ["end", "continue"])
def test_drops_end_sessions_or_do_not(backend, heard, tmp_path, after_drop):
    prompts, _ = heard
    (tmp_path / "drops.py").write_text(DROPS)
    policy = ("policy", str(tmp_path / "drops.py"))
    sessions = ("workload.sessions", {**SETS[-1][1], "after_drop": after_drop})
    experiment = load("tiny-opt-cpu", [*SETS[:-1], sessions, CLOSED, policy])
    backend.run(experiment, tmp_path / "real")
    real = lines(tmp_path / "real")
    dropped = [r for r in real if r["outcome"] == "dropped"]
    assert dropped
    follow = {(r["session"], r["turn"]) for r in real}
    if after_drop == "continue":
        assert len(real) == 40
        for r in dropped:  # nothing was generated, but it was asked
            after = next((a for a in real if (a["session"], a["turn"]) == (r["session"], r["turn"] + 1)), None)
            assert after is None or prompts[after["id"]][: len(prompts[r["id"]])] == prompts[r["id"]]
    else:
        assert not any((r["session"], r["turn"] + 1) in follow for r in dropped)


def test_conversations_of_others_whose_tokens_a_tokenizer_counts(backend, tmp_path):
    """ShareGPT's form, by a tokenizer.json: for real and in simulation turns are as long, and find as much."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    said = [["human", "one two three " * 9], ["gpt", "four five"], ["human", "six"], ["gpt", "seven " * 7]]
    talk = {"id": "a", "conversations": [{"from": who, "value": text} for who, text in said]}
    (tmp_path / "talks.json").write_text(json.dumps([talk, {**talk, "id": "b"}]))
    count = conversations.counted_by(str(tmp_path))
    left = conversations.Left()
    found = conversations.talks(tmp_path / "talks.json", "sharegpt", count, 0.01, left)
    assert found[0].turns == [(27, 2, 0.0), (1, 7, 0.01)]
    (tmp_path / "talks.csv").write_text("\n".join(conversations.rows(found)) + "\n")
    drawn = {"draw": "trace"}
    sets = [
        ("workload.requests", None),
        ("workload.trace", {"file": str(tmp_path / "talks.csv")}),
        ("workload.arrivals", {"process": "closed", "clients": 1}),
        ("workload.sessions", {"turns": drawn}),
        ("workload.lengths", {"llm": {"prompt": drawn, "output": drawn, "limit": 20}}),
        CACHING,
    ]
    experiment = load("tiny-opt-cpu", sets)
    backend.run(experiment, tmp_path / "real")
    build.run(experiment, tmp_path / "sim")
    for kind in ("real", "sim"):
        stays = [r["stages"][0] for r in lines(tmp_path / kind)]
        assert [(s["prompt"], s["generated"]) for s in stays] == [(27, 2), (30, 7)] * 2
    same_hits(tmp_path)
