"""Recorded conversations of others as traces with sessions: each form, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.workload.traces import conversations, entries
from servetwin.experiments.workload.traces.conversations import AGENT_LISTS, Left, rows, talks

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


AGENT: dict[str, Any] = {
    "num_turns": 2,
    "input_prompt_length": 64,
    "assistant_response_length": [2, 3],
    "tool_call_output_length": [5, 7],
    "tool_call_latency": [1.5, 0],
    "final_assistant_response_length": 9,
}


def test_whole_agents_of_dynamo(tmp_path: Path) -> None:
    """An answer, its tool, and so on; a last answer. Prompts with history are 64, 64 + 2 + 5, and 71 + 3 + 7."""
    short = {**AGENT, "num_turns": 0, **{key: [] for key in AGENT_LISTS}}
    found = made(written(tmp_path, [AGENT, short]), "agent-turns")
    assert found == {
        "line 1": (None, [(64, 2, 0.0), (5, 3, 1.5), (7, 9, 0.0)]),
        "line 2": (None, [(64, 9, 0.0)]),
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_turns": 3}, "it has not as many as num_turns"),
        ({"num_turns": -1}, "no number of turns"),
        ({"num_turns": None}, "no number of turns"),
        ({"tool_call_latency": [1.0]}, "tool_call_latency: it has not as many"),
        ({"tool_call_latency": [1.0, -1.0]}, "turn 3: tool_call_latency"),
        ({"tool_call_latency": [True, 1.0]}, "turn 2: tool_call_latency"),
        ({"assistant_response_length": [2, "3"]}, "assistant_response_length"),
        ({"tool_call_output_length": [5, 0]}, "tool_call_output_length is 0"),
        ({"input_prompt_length": None}, "input_prompt_length is missing"),
        ({"final_assistant_response_length": None}, "final_assistant_response_length is missing"),
    ],
)
def test_what_is_no_agent_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = written(tmp_path, [{**AGENT, **change}])
    with pytest.raises(BadInput, match=says):
        made(path, "agent-turns")


def test_what_an_agent_does_after_a_tool_that_says_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    left, path = Left(True), written(tmp_path, [{**AGENT, "tool_call_output_length": [0, 7]}])
    (talk,) = talks(path, "agent-turns", None, None, left)
    assert len(talk.turns) == 1
    assert sum(left.why.values()) == 2


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
        ("multi-turn", [{"turns": [{"text": "a"}]}], ":1: turn 1: output_length is missing"),
        ("multi-turn", [{"turns": [{"text": "a", "output_length": -1}]}], "'-1' is no number of tokens"),
        ("messages", [{"messages": [{"role": "user", "content": "a"}]}], "output_length is missing"),
        ("messages", [{"message_mode": "news", "messages": [{}]}], "message_mode: 'news' is not known"),
        ("full-prompts", [{"input_length": 5, "output_length": 5, "hash_ids": [-1]}], "hash_ids is no list"),
        ("multi-turn", [{"turns": [{"text": "a", "image": "b.png", "output_length": 1}]}], "a turn has image"),
        (
            "messages",
            [{"messages": [{"role": "user", "content": 5}], "output_length": 1}],
            "something else than text",
        ),
        ("full-prompts", [{"session_id": "s", "input_length": 5, "output_length": 0}], "output_length is 0"),
        (
            "full-prompts",
            [{"session_id": "s", "timestamp": t, "input_length": 50, "output_length": 5} for t in (0, 9)],
            "no longer than its history: 50 tokens of 55",
        ),
        ("agentic-mooncake", [{**HEADER, "version": 3}], "version 3 is not known"),
        ("agentic-mooncake", [{"input_length": 5, "output_length": 1}], "no request_id"),
        ("agentic-mooncake", [{**HEADER, "block_size": 0}], "block_size: '0' is no number of tokens"),
        ("agentic-mooncake", [{"request_id": "a", "dependencies": 5}], "dependencies is no list"),
        ("agentic-mooncake", [{"request_id": "a", "dependencies": [{"request_id": "b"}]}], "a trigger is missing"),
        (
            "agentic-mooncake",
            [{"request_id": "a", "dependencies": [{"request_id": "b", "trigger": "completion", "delay": 5}]}],
            "a dependency has 'delay', which is not known (right would be: request_id, trigger, delay_ms, relation)",
        ),
        (
            "agentic-mooncake",
            [{"request_id": "a", "input_length": 5, "output_length": 1}] * 2,
            ":2: request_id: 'a' is the request of line 1 too",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tmp_path: Path, form: str, content: list[Any], what: str) -> None:
    with pytest.raises(BadInput) as error:
        made(written(tmp_path, content), form)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def turn(text: str = "a", tokens: int | None = 1, **more: Any) -> dict[str, Any]:
    return {"text": text, **({} if tokens is None else {"output_length": tokens}), **more}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (("a", "b", "a"), "'a' is the id of {first} too"),
        (("a", "b", " a "), "' a ' would be the same session as 'a' of {first}"),  # a trace is read without spaces
        (("1", "b", 1), "1 would be the same session as '1' of {first}"),
        (("{third}", "b", None), "'{third}' would be the same session as '{third}' of {first}"),
        (("a", "b", "\ud800"), "is no name of a session"),
        (("a", "b", "c\nd"), "is no name of a session"),
        (("a", "b", ["c"]), "is no id"),
        (("a", "b", float("nan")), "no valid JSON: NaN is no value of JSON"),
    ],
)
@pytest.mark.parametrize("form", ["sharegpt", "multi-turn"])
def test_each_conversation_has_a_name_of_its_own(
    tmp_path: Path, form: str, ids: tuple[Any, ...], what: str, ending: str
) -> None:
    """What is wrong is told with both places, which count from 1 in a list as lines do."""
    word = "item" if ending == "json" else "line"
    places = {"first": f"{word} 1", "third": f"{word} 3"}
    names = [name.format(**places) if isinstance(name, str) else name for name in ids]
    key = "id" if form == "sharegpt" else "session_id"
    own = {"messages": said((HUMAN, "a"), (GPT, "b"))["conversations"]} if form == "sharegpt" else {"turns": [turn()]}
    path = written(tmp_path, [{key: name, **own} for name in names], ending)
    with pytest.raises(BadInput) as error:
        made(path, form)
    assert what.format(**places) in str(error.value)
    assert "\n" not in str(error.value)
    if "JSON" not in what:
        assert f"{path}: item 3" in str(error.value) if ending == "json" else f"{path}:3: " in str(error.value)


def test_sessions_without_a_name_are_called_by_their_places(tmp_path: Path) -> None:
    content = [{"turns": [turn()]}, {"session_id": 0, "turns": [turn()]}, {"session_id": "1", "turns": [turn()]}]
    assert set(made(written(tmp_path, content), "multi-turn")) == {"line 1", "0", "1"}
    assert set(made(written(tmp_path, content, "json"), "multi-turn")) == {"item 1", "0", "1"}


@pytest.mark.parametrize("form", ["messages", "full-prompts"])
def test_rows_of_one_session_say_its_id_in_one_way(tmp_path: Path, form: str) -> None:
    own = {"messages": [{"role": "user", "content": "a"}], "input_length": 9, "output_length": 1, "timestamp": 0}
    for names in ((1, "1"), (None, "line 1")):
        with pytest.raises(BadInput, match="would be the same session as"):
            made(written(tmp_path, [{"session_id": name, **own} for name in names]), form)


def test_a_play_and_a_session_are_not_taken_for_others(tmp_path: Path) -> None:
    rows_ = [
        {"request_id": key, "play_id": play, "session_id": name, "input_length": 5, "output_length": 1}
        for key, play, name in (("x", "a/b", "c"), ("y", "a", "b/c"))
    ]
    with pytest.raises(BadInput, match="would be the same session as"):
        made(written(tmp_path, rows_), "agentic-mooncake")


def test_half_of_a_character_is_told_in_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, [said((HUMAN, "hi \ud83d"), (GPT, "b"))])
    with pytest.raises(BadInput, match="half of a character"):
        made(path, "sharegpt")


def prompts(*turns: tuple[int, list[int] | None], **more: Any) -> list[dict[str, Any]]:
    """Requests of one session, each with so many tokens and these hashes."""
    named = {"session_id": "s", "timestamp": 0, "output_length": 10, **more}
    return [{**named, "input_length": length, "hash_ids": hashes} for length, hashes in turns]


def test_hashes_that_contradict_are_no_history(tmp_path: Path) -> None:
    """The last block of a prompt may go on with the answer; those before it stay as they were."""
    path = written(tmp_path, prompts((600, [1, 2]), (1300, [1, 3, 4]), (1400, None), (1600, [1, 3, 5, 6])))
    assert [turn_[0] for turn_ in made(path, "full-prompts")["s"][1]] == [600, 690, 90, 190]
    path = written(tmp_path, prompts((600, [1, 2]), (1300, [7, 8, 9]), (2000, [1, 3, 4, 5])))
    with pytest.raises(BadInput, match=":2: hash_ids do not begin with those of the turn before"):
        made(path, "full-prompts")
    left = Left(True)
    (talk,) = talks(path, "full-prompts", None, None, left)
    assert talk.turns == [(600, 10, 0.0)]
    assert left.why == {
        "hash_ids do not begin with those of the turn before": 1,
        "a turn follows one that was left out": 1,
    }


def test_with_the_size_of_a_block_the_last_one_is_compared_if_it_is_full(tmp_path: Path) -> None:
    def agent(length: int) -> list[dict[str, Any]]:
        first, second = prompts((length, [1, 2]), (300, [1, 3, 4, 5, 6]))
        needs = [{"request_id": "x", "trigger": "completion", "delay_ms": 0}]
        return [HEADER, {**first, "request_id": "x"}, {**second, "request_id": "y", "dependencies": needs}]

    assert [len(turns) for _, turns in made(written(tmp_path, agent(127)), "agentic-mooncake").values()] == [2]
    with pytest.raises(BadInput, match="hash_ids do not begin"):
        made(written(tmp_path, agent(128)), "agentic-mooncake")


def test_delays_of_timestamps_and_of_first_turns_are_told(tmp_path: Path) -> None:
    content = [
        {"session_id": "s", "timestamp": 100, "input_length": 40, "output_length": 10, "delay": 5},
        {"session_id": "s", "timestamp": 1100, "input_length": 57, "output_length": 4},
        {"session_id": "s", "timestamp": 2100, "delay": 500, "input_length": 70, "output_length": 4},
    ]
    left = Left()
    (talk,) = talks(written(tmp_path, content), "full-prompts", None, None, left)
    assert talk.turns == [(40, 10, 0.0), (7, 4, 1.0), (9, 4, 0.5)]
    assert left.notes == {conversations.DIFFERENCES: 1, conversations.FIRST_DELAY: 1}
    left = Left()
    talks(written(tmp_path, [{"turns": [turn(delay=250), turn(delay=0)]}]), "multi-turn", WORDS, None, left)
    assert left.notes == {conversations.FIRST_DELAY: 1}


LAST, LATER = conversations.UNANSWERED, conversations.FOLLOWS


@pytest.mark.parametrize(
    ("form", "content", "why"),
    [
        ("sharegpt", [said((HUMAN, "a"))], {LAST: 1}),
        ("sharegpt", [said((HUMAN, "a"), (GPT, "b"), (HUMAN, "c"))], {LAST: 1}),
        ("sharegpt", [said()], {"a conversation has no message": 1}),
        (
            "sharegpt",
            [said((HUMAN, "a"), (GPT, ""), (HUMAN, "c"), (GPT, "d"), (HUMAN, "e"))],
            {"an answer is empty": 1, LATER: 1, LAST: 1},
        ),
        ("multi-turn", [{"turns": [turn(), turn(""), turn(), turn()]}], {"a turn has no text": 1, LATER: 2}),
        ("multi-turn", [{"turns": [turn(tokens=None), turn()]}], {"output_length is missing": 1, LATER: 1}),
        (
            "messages",
            [
                {"session_id": "s", "messages": [{"role": "user", "content": "a"}] * n, **own}
                for n, own in ((1, {"output_length": 1}), (2, {}), (3, {"output_length": 1}))
            ],
            {"output_length is missing": 1, LATER: 1},
        ),
        (
            "full-prompts",
            [{"session_id": "s", "input_length": n, "output_length": m} for n, m in ((5, 1), (4, 1), (9, 1), (9, 0))],
            {"a prompt is no longer than its history": 1, LATER: 2},
        ),
        ("full-prompts", [{"output_length": 1}], {"input_length is missing": 1}),
    ],
)
def test_all_that_is_left_out_is_counted(tmp_path: Path, form: str, content: list[Any], why: dict[str, int]) -> None:
    """Beside one that is whole, so that something is left."""
    whole: dict[str, dict[str, Any]] = {
        "sharegpt": said((HUMAN, "a"), (GPT, "b"), name="whole"),
        "multi-turn": {"session_id": "whole", "turns": [turn()]},
        "messages": {"messages": [{"role": "user", "content": "a"}], "output_length": 1},
        "full-prompts": {"input_length": 1, "output_length": 1},
    }
    left = Left(True)
    count = WORDS if form in conversations.TEXTS else None
    talks(written(tmp_path, [*content, whole[form]]), form, count, 1.0, left)
    assert left.why == why


def test_a_file_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    path = written(tmp_path, [said((HUMAN, "a"))])
    with pytest.raises(BadInput, match=r"all of it is left out: a question without an answer \(1\)"):
        made(path, "sharegpt", leave_out=True)


def test_any_name_is_read_as_it_was_said(tmp_path: Path) -> None:
    names = ["plain", "with, comma", 'a "quoted" é', '"', "back\\slash, too"]
    found = talks(
        written(tmp_path, [said((HUMAN, "a"), (GPT, "b"), name=n) for n in names]), "sharegpt", len, 0, Left()
    )
    path = tmp_path / "talks.csv"
    path.write_text("\n".join(rows(found)) + "\n", encoding="utf-8")
    assert [entry.turn.session for entry in entries(path)] == names


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
    (tmp_path / "link.csv").symlink_to(tmp_path / "nothing.csv")
    code, told, error = servetwin(*given[:-1], tmp_path / "link.csv", "--characters-per-token", 4, "--delay", 1)
    assert (code, told) == (2, "")
    assert "link.csv: a link of this name is there, to nothing" in error
    assert (tmp_path / "link.csv").is_symlink()
    assert {file.name for file in tmp_path.iterdir()} == {"talks.jsonl", "link.csv", out}


def test_the_command_tells_what_is_left_out_and_what_is_not_known(servetwin, tmp_path: Path) -> None:
    path = written(tmp_path, prompts((600, [1, 2]), (1300, [1, 3, 4]), (1400, [9, 9, 9])))
    code, told, error = servetwin(
        "convert", path, "--form", "full-prompts", "--leave-out", "--out", tmp_path / "t.csv"
    )
    assert (code, error) == (0, "")
    assert told.splitlines()[1:] == [
        "left out 1 times: hash_ids do not begin with those of the turn before",
        f"1 turns: {conversations.DIFFERENCES}",
    ]
    twice = written(tmp_path, [said((HUMAN, "a"), (GPT, "b"))] * 2, "json")
    given = ("convert", twice, "--form", "sharegpt", "--characters-per-token", 4, "--out", tmp_path / "new" / "u.csv")
    code, told, error = servetwin(*given)
    assert (code, told, error.count("\n")) == (2, "", 1)
    assert "talks.json: item 2: id: 'a' is the id of item 1 too" in error
    assert not (tmp_path / "new").exists()
