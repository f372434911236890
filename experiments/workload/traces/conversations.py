"""Recorded conversations of others as sessions: how many tokens each turn adds and generates, and when it is sent.
``servetwin convert`` writes them as a trace of ServeTwin's own.

==================  ==========================================================================================
form                is
==================  ==========================================================================================
sharegpt            a list of (or a line with) ``{"id", "conversations": [{"from": "human", "value": text}]}``, or
                    ``messages`` with ``role`` and ``content``, as vLLM's multi-turn benchmark has it
multi-turn          AIPerf's ``multi_turn``: a line ``{"session_id", "turns": [{"text", "output_length", "delay"}]}``
messages            AIPerf's ``mooncake_trace`` with ``messages``: a line a request, its history whole
                    (``message_mode: history``) or what is new of it (``delta``), ``output_length``, ``delay``
full-prompts        Dynamo's and AISimulate's ``mooncake``: a line a request, ``input_length`` of its whole prompt
agentic-mooncake    theirs of agents, versions 1 and 2: requests that wait for others (``wait_for``, ``dependencies``)
==================  ==========================================================================================

Sources: "Trace replay" of the documents and dataset/loader/models.py of ai-dynamo/aiperf, the crate
dynamo-data-gen (``mooncake.rs``) of ai-dynamo/dynamo, benchmarks/multi_turn of vLLM. Their times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from .lines import MOST_WHOLE, ending, jsonl_lines, opened

#: The tokens of a text.
Count = Callable[[str], int]

ASKS, ANSWERS = ("human", "user", "system", "tool", "developer"), ("gpt", "assistant", "chatgpt", "bing", "bard")
AGENTIC = "dynamo.agentic_mooncake"


@dataclass
class Talk:
    """A session: its *turns* are (tokens that it adds, tokens that it generates, seconds after the answer before),
    its first is sent *at* so many seconds (None: it is not said)."""

    name: str
    at: float | None = None
    turns: list[tuple[int, int, float]] = field(default_factory=list)


@dataclass
class Left:
    """What cannot be a turn: an error, unless it may be *left_out*; then why, and how often."""

    left_out: bool = False
    why: dict[str, int] = field(default_factory=dict)

    def out(self, what: str, where: str, right: str) -> None:
        """Count it, or raise `BadInput`."""
        if not self.left_out:
            raise BadInput(what, where=where, right=f"{right}; or --leave-out")
        kind = what.split(":", 1)[0]
        self.why[kind] = self.why.get(kind, 0) + 1


def talks(path: Path, form: str, count: Count | None, delay: float | None, left: Left) -> list[Talk]:
    """The sessions of the file at *path*, which is of this *form*. *count* counts tokens of texts, *delay* is how
    many seconds after an answer a turn is sent where the file does not say it. Raises `BadInput`."""
    if form in TEXTS and count is None:
        right = "--tokenizer tokenizer.json, or --characters-per-token 4"
        raise BadInput(
            "it holds texts, and how many tokens they have depends on the model", where=str(path), right=right
        )
    if form not in TEXTS and count is not None:
        raise BadInput("it says how many tokens there are", where=str(path), right="no tokenizer")
    found = [talk for talk in FORMS[form](path, count or len, delay, left) if talk.turns]
    if not found:
        raise BadInput("it holds no conversation", where=str(path), right=f"a file of the form {form}")
    if any(talk.at is not None for talk in found):
        late = next((talk.name for talk in found if talk.at is None), None)
        if late is not None:
            raise BadInput(f"session {late!r} does not say when it begins, and others do", where=str(path))
        found.sort(key=lambda talk: talk.at or 0.0)
    return found


def rows(found: Sequence[Talk]) -> Iterator[str]:
    """The lines of a plain trace of *found*. Sessions of which it is not said when they begin all begin at 0."""
    yield "arrival,input_tokens,tokens,session,delay"
    begin = min((talk.at for talk in found if talk.at is not None), default=0.0)
    for talk in found:
        start = f"{(talk.at or begin) - begin:.6f}".rstrip("0").rstrip(".")
        name = json.dumps(talk.name).replace('\\"', '""') if set(talk.name) & set(',"') else talk.name
        for place, (asked, answered, delay) in enumerate(talk.turns):
            after = f"{delay:.6f}".rstrip("0").rstrip(".") if place else ""
            yield f"{'' if place else start},{asked},{answered},{name},{after}"


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl file, or of the list in a .json file, each with its place."""
    if ending(path) == ".jsonl":
        yield from ((f"{path}:{number}", row) for number, row in jsonl_lines(path))
        return
    if ending(path) != ".json":
        raise BadInput(
            "it ends neither in .json nor in .jsonl", where=str(path), right="such a file, or one packed (.gz)"
        )
    with opened(path, MOST_WHOLE) as file:
        try:
            data = json.load(file)
        except json.JSONDecodeError as error:
            raise BadInput(f"no valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
        except RecursionError as error:
            raise BadInput(f"no valid JSON: {error}", where=str(path)) from None
    if not isinstance(data, list):
        raise BadInput("it holds no list of conversations", where=str(path), right='[{"id": ..., ...}, ...]')
    for number, row in enumerate(data):
        if not isinstance(row, dict):
            raise BadInput("it is no object", where=f"{path}:{number}", right='{"id": ..., ...}')
        yield f"{path}:{number}", row


def _text(value: Any, where: str) -> str:
    """The text of a message: a string, or a list of its parts."""
    if isinstance(value, list):
        parts = [
            part if isinstance(part, str) else part.get("text") for part in value if isinstance(part, str | dict)
        ]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput("a message holds something else than text", where=where, right="text")
    return value


def _whole(row: Mapping[str, Any], names: Sequence[str], where: str, least: int = 1) -> int:
    """The whole number that *row* has under one of *names*."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**53:
        raise BadInput(
            f"{str(value)[:40]!r} are no tokens", where=f"{where}: {names[0]}", right=f"a number from {least}"
        )
    return value


def _seconds(row: Mapping[str, Any], names: Sequence[str], where: str) -> float | None:
    """Seconds of the milliseconds that *row* has under one of *names* (None: under none)."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e14:
        raise BadInput(
            f"{str(value)[:40]!r} is no time", where=f"{where}: {names[0]}", right="milliseconds, 0 or more"
        )
    return value / 1000.0


def _after(said: float | None, otherwise: float | None, where: str) -> float:
    """How long after the answer before a turn is sent."""
    if said is None and otherwise is None:
        what = "a turn does not say how long after the answer before it is sent"
        raise BadInput(what, where=where, right="--delay SECONDS, for all that do not say it")
    return said if said is not None else otherwise or 0.0


def _sharegpt(path: Path, count: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    for place, row in _objects(path):
        name = str(row.get("id", place.rsplit(":", 1)[1]))
        where = f"{place}: conversation {name!r}"
        messages = next((row[key] for key in ("conversations", "messages") if isinstance(row.get(key), list)), None)
        if messages is None:
            raise BadInput("it has no list of messages", where=where, right="conversations, or messages")
        talk, asked = Talk(name), 0
        for message in messages:
            who, text = _said(message, where)
            if who in ASKS:
                asked += count(text)
                continue
            answered = count(text)
            if not asked or not answered:
                what = "a conversation answers before it asks" if not asked else "an answer is empty"
                left.out(what, where, "a question and its answer, in turn")
                break
            talk.turns.append((asked, answered, _after(None, delay, where) if talk.turns else 0.0))
            asked = 0
        yield talk


def _said(message: Any, where: str) -> tuple[str, str]:
    """Who says a message, and its text."""
    if not isinstance(message, dict):
        raise BadInput("a message is no object", where=where, right='{"from": "human", "value": ...}')
    who = message.get("from", message.get("role"))
    if who not in ASKS and who not in ANSWERS:
        right = f"one of {', '.join((*ASKS, *ANSWERS))}"
        raise BadInput(f"{str(who)[:40]!r} says a message", where=where, right=right)
    return str(who), _text(message.get("value", message.get("content")), where)


def _multi_turn(path: Path, count: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    for number, (place, row) in enumerate(_objects(path)):
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise BadInput("it has no turns", where=place, right='{"session_id": ..., "turns": [{"text": ...}, ...]}')
        talk = Talk(str(row.get("session_id") or number))
        for turn in turns:
            others = [key for key in ("image", "images", "audio", "audios", "video", "videos") if turn.get(key)]
            if others:
                raise BadInput(f"a turn has {others[0]}", where=place, right="text alone")
            asked = count(_text(turn.get("text", turn.get("texts")), place))
            if not asked:
                left.out("a turn has no text", place, "text")
                break
            answered = _whole(turn, ("output_length",), place)
            if not talk.turns:
                talk.at = _seconds(turn, ("timestamp",), place)
            said = _seconds(turn, ("delay",), place)
            talk.turns.append((asked, answered, _after(said, delay, place) if talk.turns else 0.0))
        yield talk


def _messages(path: Path, count: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    found: dict[str, Talk] = {}
    before: dict[str, list[Any]] = {}
    for number, (place, row) in enumerate(_objects(path)):
        name = str(row.get("session_id") or f"line {number}")
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadInput("it has no messages", where=place, right='{"messages": [{"role": "user", ...}], ...}')
        new = messages
        if name in found and row.get("message_mode", "history") == "history":
            if messages[: len(before[name])] != before[name]:
                left.out("a history is not that of the turn before", place, "what was said before, and more")
                before[name] = messages
                continue
            new = messages[len(before[name]) :]
        before[name] = messages
        talk = found.setdefault(name, Talk(name, _seconds(row, ("timestamp",), place)))
        said = [_said(message, place) for message in new]
        # An answer that is part of the history is what the turn before generated; its output_length counts it.
        asked = sum(count(text) for who, text in said if who in ASKS or not talk.turns)
        if not asked:
            left.out("a turn asks nothing", place, "a message besides the answer before")
            continue
        wait = _seconds(row, ("delay",), place)
        answered = _whole(row, ("output_length",), place)
        talk.turns.append((asked, answered, _after(wait, delay, place) if talk.turns else 0.0))
    yield from found.values()


def _full_prompts(path: Path, _: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    found: dict[str, Talk] = {}
    history: dict[str, int] = {}
    last: dict[str, float | None] = {}
    for number, (place, row) in enumerate(_objects(path)):
        name = str(row.get("session_id") or f"line {number}")
        at = _seconds(row, ("timestamp", "created_time"), place)
        wait = _seconds(row, ("delay", "delay_ms"), place)
        earlier = last.get(name)
        if wait is None and at is not None and earlier is not None:
            wait = at - earlier  # as Dynamo's replay takes it
            if wait < 0.0:
                raise BadInput(
                    "a turn comes before the one before", where=f"{place}: timestamp", right="a later time"
                )
        last[name] = at
        _add(found, history, name, row, at, wait if name in found else 0.0, delay, place, left)
    yield from found.values()


def _add(
    found: dict[str, Talk],
    history: dict[str, int],
    name: str,
    row: Mapping[str, Any],
    at: float | None,
    wait: float | None,
    delay: float | None,
    place: str,
    left: Left,
) -> None:
    """The turn of *row*, whose prompt is whole: what it adds is what exceeds the *history* of its session."""
    prompt = _whole(row, ("input_length", "input_tokens"), place)
    answered = _whole(row, ("output_length", "output_tokens"), place)
    asked = prompt - history.get(name, 0)
    if asked < 1:
        what = f"a prompt is no longer than its history: {prompt} tokens of {history[name]}"
        left.out(what, place, "what was said before, and more")
        return
    talk = found.setdefault(name, Talk(name, at))
    talk.turns.append((asked, answered, _after(wait, delay, place) if talk.turns else 0.0))
    history[name] = prompt + answered


def _agentic(path: Path, _: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    found: dict[str, Talk] = {}
    history: dict[str, int] = {}
    last: dict[str, str] = {}
    gone: set[str] = set()
    for number, (place, row) in enumerate(_objects(path)):
        if not number and row.get("schema") == AGENTIC:
            if row.get("version") != 2:
                raise BadInput(f"version {row.get('version')!r} is not known", where=place, right="version 2")
            continue
        key, name = row.get("request_id"), row.get("session_id")
        if not isinstance(key, str) or not key:
            raise BadInput("it has no request_id", where=place, right="request_id, as in Dynamo's agentic Mooncake")
        session = f"{row['play_id']}/{name}" if row.get("play_id") else str(name or key)
        others, wait = _waits_for(row, place)
        if session in gone:
            left.out("a turn follows one that was left out", place, "all turns of a session")
            continue
        expected = [last[session]] if session in last else []
        if others != expected:
            what = "a request waits for others than the one before in its session: a branch or a join"
            left.out(what, place, "one request after the other in each session")
            gone.add(session)
            continue
        at = _seconds(row, ("not_before_ms", "timestamp"), place)
        before = len(found[session].turns) if session in found else 0
        _add(found, history, session, row, at, wait, delay, place, left)
        if session not in found or len(found[session].turns) == before:
            gone.add(session)
        last[session] = key
    yield from found.values()


def _waits_for(row: Mapping[str, Any], place: str) -> tuple[list[str], float | None]:
    """Which requests that of *row* waits for, and how long after their ends it is sent (None: it is not said)."""
    if "dependencies" in row:
        names, most = [], 0.0
        for other in row["dependencies"] if isinstance(row["dependencies"], list) else ():
            if not isinstance(other, dict) or not isinstance(other.get("request_id"), str):
                raise BadInput("a dependency names no request", where=place, right='{"request_id": ..., ...}')
            # What begins with another request, and not at its end, is a branch.
            names.append(
                other["request_id"] if other.get("trigger") == "completion" else f"begin of {other['request_id']}"
            )
            most = max(most, _seconds(other, ("delay_ms",), place) or 0.0)
        return names, most
    names = row.get("wait_for") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput("wait_for is no list of requests", where=place, right='"wait_for": ["a-1"]')
    parts = [_seconds(row, (key,), place) for key in ("delay", "tool_wait_ms")]
    return names, None if parts == [None, None] else float_sum(part or 0.0 for part in parts)


Reader = Callable[[Path, Count, "float | None", Left], Iterator[Talk]]

FORMS: Mapping[str, Reader] = {
    "sharegpt": _sharegpt,
    "multi-turn": _multi_turn,
    "messages": _messages,
    "full-prompts": _full_prompts,
    "agentic-mooncake": _agentic,
}
#: Those whose messages are texts.
TEXTS = ("sharegpt", "multi-turn", "messages")


def counted_by(tokenizer: str) -> Count:
    """Tokens as a model's own tokenizer counts them: a ``tokenizer.json``, a folder that has one, or a model's name
    on Hugging Face; without the special tokens that a chat template adds. Raises `BadInput`."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        right = "pip install 'servetwin[tokenizer]'; or --characters-per-token"
        raise BadInput("counting tokens needs the package tokenizers", where="--tokenizer", right=right) from None
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        made = Tokenizer.from_file(str(path)) if path.exists() else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:
        what = f"there is no tokenizer: {str(error).splitlines()[0][:120]}"
        right = "a tokenizer.json, a folder that has one, or a model on Hugging Face"
        raise BadInput(what, where=f"--tokenizer {tokenizer}", right=right) from None
    return lambda text: len(made.encode(text, add_special_tokens=False).ids)


def counted_by_characters(each: float) -> Count:
    """So many characters a token, rounded up."""
    if not 0.1 <= each <= 100.0:
        raise BadInput(f"is {each:g}", where="--characters-per-token", right="a number from 0.1 to 100")
    return lambda text: int(-(-len(text) // each))
