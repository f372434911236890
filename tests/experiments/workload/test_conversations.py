"""Recorded conversations of others as traces with sessions: each form, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.workload.traces import conversations, entries
from servetwin.experiments.workload.traces.conversations import Left, rows, talks

#: A word is a token.
WORDS = lambda text: len(text.split())  # noqa: E731

HUMAN, GPT = "human", "gpt"


def said(*parts: tuple[str, str], name: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": name, "conversations": [{"from": who, "value": text} for who, text in parts], **more}


def written(folder: Path, content: list[Any], ending: str = "jsonl") -> Path:
    path = folder / f"talks.{ending}"
    lines = json.dumps(content) if ending == "json" else "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(lines)
    return path


def made(path: Path, form: str, delay: float | None = None, *, leave_out: bool = False) -> dict[str, Any]:
    count = WORDS if form in conversations.TEXTS else None
    return {talk.name: (talk.at, talk.turns) for talk in talks(path, form, count, delay, Left(leave_out))}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_sharegpt(tmp_path: Path, ending: str) -> None:
    content = [
        said(("system", "be brief"), (HUMAN, "how are you"), (GPT, "fine"), (HUMAN, "and now"), (GPT, "a bit worse")),
        {"id": 7, "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]},
        said((HUMAN, "nobody answers"), name="c"),
    ]
    assert made(written(tmp_path, content, ending), "sharegpt", 2.5) == {
        "a": (None, [(5, 1, 0.0), (2, 3, 2.5)]),
        "7": (None, [(1, 2, 0.0)]),
    }


def test_multi_turn_of_aiperf(tmp_path: Path) -> None:
    turns = [
        {"text": "how are you", "output_length": 5, "timestamp": 1500},
        {"texts": ["and", " now"], "output_length": 6, "delay": 250},
    ]
    found = made(written(tmp_path, [{"session_id": "s", "turns": turns}]), "multi-turn")
    assert found == {"s": (1.5, [(3, 5, 0.0), (2, 6, 0.25)])}


@pytest.mark.parametrize("mode", ["history", "delta"])
def test_messages_of_aiperf(tmp_path: Path, mode: str) -> None:
    """The example of AIPerf's guide: what the model said is counted by output_length, not by the recorded text."""
    first = [{"role": "system", "content": "be helpful"}, {"role": "user", "content": "Hello"}]
    answer, again = {"role": "assistant", "content": "Hi there you"}, {"role": "user", "content": "How are you?"}
    second = [again] if mode == "delta" else [*first, answer, again]
    content = [
        {"session_id": "s", "message_mode": mode, "messages": first, "output_length": 50, "timestamp": 0},
        {"session_id": "s", "message_mode": mode, "messages": second, "output_length": 30, "delay": 2000},
    ]
    assert made(written(tmp_path, content), "messages") == {"s": (0.0, [(3, 50, 0.0), (3, 30, 2.0)])}


def test_full_prompts_of_dynamo(tmp_path: Path) -> None:
    """A turn adds what its prompt exceeds the one before and its answer by; times between turns are as theirs."""
    content = [
        {"session_id": "s", "timestamp": 100, "input_length": 40, "output_length": 10},
        {"session_id": "t", "timestamp": 300, "input_tokens": 8, "output_tokens": 2},
        {"session_id": "s", "timestamp": 1100, "input_length": 57, "output_length": 4},
        {"session_id": "s", "delay": 500, "input_length": 70, "output_length": 4},
    ]
    assert made(written(tmp_path, content), "full-prompts") == {
        "s": (0.1, [(40, 10, 0.0), (7, 4, 1.0), (9, 4, 0.5)]),
        "t": (0.3, [(8, 2, 0.0)]),
    }


HEADER = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 64, "hash_id_scope": "local"}


def agents(version: int) -> list[dict[str, Any]]:
    """An agent of three requests, a tool between two of them, and one of a single request."""

    def row(key: str, session: str, tokens: int, at: float, waits: list[str], wait: float = 0.0) -> dict[str, Any]:
        out = {"request_id": key, "session_id": session, "input_length": tokens, "output_length": 5}
        if version == 1:
            return {**out, "timestamp": at, "wait_for": waits, "delay": wait / 2, "tool_wait_ms": wait / 2}
        needs = [{"request_id": w, "trigger": "completion", "delay_ms": wait, "relation": "sequence"} for w in waits]
        return {**out, "play_id": "p", "model": "m", "not_before_ms": at, "dependencies": needs}

    found = [
        row("a1", "a", 100, 0.0, []),
        row("b1", "b", 10, 50.0, []),
        row("a2", "a", 130, 0.0, ["a1"], 400.0),
        row("a3", "a", 140, 0.0, ["a2"]),
    ]
    return [HEADER, *found] if version == 2 else found


@pytest.mark.parametrize("version", [1, 2])
def test_agentic_mooncake_of_dynamo(tmp_path: Path, version: int) -> None:
    found = made(written(tmp_path, agents(version)), "agentic-mooncake")
    assert list(found.values()) == [
        (0.0, [(100, 5, 0.0), (25, 5, 0.4), (5, 5, 0.0)]),
        (0.05, [(10, 5, 0.0)]),
    ]


def test_branches_and_joins_are_refused_or_left_out_with_all_that_follows(tmp_path: Path) -> None:
    content = agents(2)
    content[3]["dependencies"].append({"request_id": "b1", "trigger": "completion", "delay_ms": 0.0})
    path = written(tmp_path, content)
    with pytest.raises(BadInput, match="a branch or a join"):
        made(path, "agentic-mooncake")
    left = Left(True)
    found = talks(path, "agentic-mooncake", None, None, left)
    assert [len(talk.turns) for talk in found] == [1, 1]
    assert sum(left.why.values()) == 2


def test_what_is_written_is_read_as_sessions(tmp_path: Path) -> None:
    found = talks(written(tmp_path, agents(2)), "agentic-mooncake", None, None, Left())
    path = tmp_path / "talks.csv"
    path.write_text("\n".join(rows(found)) + "\n")
    read = [(entry.turn.session, entry.turn.delay, *entry.work.values()) for entry in entries(path)]
    assert read == [("p/a", None, 100, 5), ("p/a", 0.4, 25, 5), ("p/a", 0.0, 5, 5), ("p/b", None, 10, 5)]


@pytest.mark.parametrize(
    ("form", "content", "what"),
    [
        ("sharegpt", [said((GPT, "before you ask"), (HUMAN, "what"))], "a conversation answers before it asks"),
        ("sharegpt", [said((HUMAN, "what"), (GPT, ""))], "an answer is empty"),
        ("sharegpt", [said((HUMAN, "a"), (GPT, "b"), (HUMAN, "c"), (GPT, "d"))], "--delay SECONDS"),
        ("sharegpt", [said(("narrator", "a"))], "'narrator' says a message"),
        ("sharegpt", [{"id": "a"}], "no list of messages"),
        ("sharegpt", [], "it holds no conversation"),
        ("multi-turn", [{"turns": [{"text": "a"}]}], "are no tokens"),
        ("multi-turn", [{"turns": [{"text": "a", "image": "b.png", "output_length": 1}]}], "a turn has image"),
        (
            "messages",
            [{"messages": [{"role": "user", "content": 5}], "output_length": 1}],
            "something else than text",
        ),
        ("full-prompts", [{"session_id": "s", "input_length": 5, "output_length": 0}], "are no tokens"),
        (
            "full-prompts",
            [{"session_id": "s", "timestamp": t, "input_length": 50, "output_length": 5} for t in (0, 9)],
            "no longer than its history: 50 tokens of 55",
        ),
        ("agentic-mooncake", [{**HEADER, "version": 3}], "version 3 is not known"),
        ("agentic-mooncake", [{"input_length": 5, "output_length": 1}], "no request_id"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tmp_path: Path, form: str, content: list[Any], what: str) -> None:
    with pytest.raises(BadInput) as error:
        made(written(tmp_path, content), form)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_need_something_that_counts_tokens_and_counts_need_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, [said((HUMAN, "a"), (GPT, "b"))])
    with pytest.raises(BadInput, match="how many tokens they have depends on the model"):
        talks(path, "sharegpt", None, None, Left())
    with pytest.raises(BadInput, match="no tokenizer"):
        talks(path, "full-prompts", WORDS, None, Left())
    four = conversations.counted_by_characters(4.0)
    assert [four(text) for text in ("", "a", "four", "fives")] == [0, 1, 1, 2]
    with pytest.raises(BadInput, match="characters-per-token"):
        conversations.counted_by_characters(0.0)


def test_the_command(servetwin, tmp_path: Path) -> None:
    """What it writes is served; what it cannot do is a line, and leaves nothing behind."""
    path, out = (
        written(tmp_path, [said((HUMAN, "how are you"), (GPT, "fine"), (HUMAN, "and"), (GPT, "well"))]),
        "t.csv",
    )
    given = ("convert", path, "--form", "sharegpt", "--out", tmp_path / out)
    code, told, error = servetwin(*given, "--characters-per-token", 4, "--delay", 1.5)
    assert (code, error) == (0, "")
    assert "1 sessions with 2 turns; a token for every 4 characters, as stated" in told
    sets = {
        "workload.requests": "null",
        "workload.trace": f"{{file: {tmp_path / out}}}",
        "workload.arrivals": "{process: poisson, rate: 1.0}",
        "workload.sessions": "{turns: {draw: trace}}",
        "workload.lengths": "{llm: {prompt: {draw: trace}, output: {draw: trace}, limit: 50}}",
    }
    code, told, error = servetwin("run", "tiny-opt-cpu", *(x for k, v in sets.items() for x in ("--set", f"{k}={v}")))
    assert code == 0, error
    assert "2 requests" in told
    for more, what in (
        (("--delay", 1), "depends on the model"),
        (("--form", "sharegtp"), "unknown form 'sharegtp'"),
        (("--out", tmp_path / out), "the file is there already"),
        (("--out", tmp_path / "t.txt"), "no kind of trace"),
        (("--tokenizer", "x", "--characters-per-token", 4), "both count tokens"),
        (("--characters-per-token", 4, "--delay", -1), "--delay"),
    ):
        code, told, error = servetwin(*given[:-1], tmp_path / "new.csv", *more)
        assert (code, told) == (2, ""), more
        assert what in error
        assert error.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"talks.jsonl", out}
