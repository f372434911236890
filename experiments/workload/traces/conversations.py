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
agent-turns         theirs of whole agents (``applied_compute_agentic``): a line each, with answers and tools in lists
==================  ==========================================================================================

Sources: "Trace replay" of the documents and dataset/loader/models.py of ai-dynamo/aiperf, the crate
dynamo-data-gen (``mooncake.rs``) and loadgen/trace.rs of the mocker of ai-dynamo/dynamo, benchmarks/multi_turn of
vLLM. Their times are milliseconds, those of tools in ``agent-turns`` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from .formats import LONGEST_SESSION
from .lines import MOST_WHOLE, ending, jsonl_lines, opened, strict_json

#: The tokens of a text.
Count = Callable[[str], int]

ASKS, ANSWERS = ("human", "user", "system", "tool", "developer"), ("gpt", "assistant", "chatgpt", "bing", "bard")
AGENTIC = "dynamo.agentic_mooncake"

#: Why a turn is left out, and what is said beside, wherever they occur.
FOLLOWS, UNANSWERED = "a turn follows one that was left out", "a question without an answer"
FIRST_DELAY = "the delay of a first turn is not used: no answer comes before it"
DIFFERENCES = (
    "a delay is the difference of two timestamps, so how long the answer between them took is part of it: "
    "the file does not say how long, and it is not subtracted"
)
#: What a dependency of an agent's request says (`AgenticDependency` of dynamo-data-gen), and when it is met.
DEPENDENCY, TRIGGERS = ("request_id", "trigger", "delay_ms", "relation"), ("completion", "dispatch")


@dataclass
class Talk:
    """A session: its *turns* are (tokens that it adds, tokens that it generates, seconds after the answer before),
    its first is sent *at* so many seconds (None: it is not said)."""

    name: str
    at: float | None = None
    turns: list[tuple[int, int, float]] = field(default_factory=list)


@dataclass
class Left:
    """What cannot be a turn: an error, unless it may be *left_out*; then *why*, and how often. *notes* are what else
    is to be said of the turns, and of how many."""

    left_out: bool = False
    why: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def out(self, what: str, where: str, right: str) -> None:
        """Count it, or raise `BadInput`."""
        if not self.left_out:
            raise BadInput(what, where=where, right=f"{right}; or --leave-out")
        self.count(what.split(":", 1)[0])

    def count(self, what: str, often: int = 1) -> None:
        """Count what is left out and no error: a question that nobody answered, and what follows an error."""
        if often:
            self.why[what] = self.why.get(what, 0) + often

    def note(self, what: str) -> None:
        """Count what is said of a turn that stays."""
        self.notes[what] = self.notes.get(what, 0) + 1


class _Unnamed(str):
    """The place of a session without an id, which is its name."""


class _Names:
    """The names of sessions: one for each, and such as a trace can hold. A trace knows texts alone, so the id 1 and
    the id "1" would be one session in it."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Any, str]] = {}

    def of(self, said: Any, item: Item, key: str, *, once: bool = False) -> str:
        """The name of the session that *item* calls *said* under *key* (None, or an empty text: it is called by its
        place). Raises `BadInput` if it is no name, or another's; with *once*, if it was there before."""
        where = f"{item.place}: {key}"
        if said is None or said == "":
            said = _Unnamed(item.called)
        parts = said if isinstance(said, tuple) else (said,)
        text = "/".join(map(str, parts)).strip()
        if not all(isinstance(part, str | int | float) and not isinstance(part, bool) for part in parts):
            raise BadInput(f"{text[:40]!r} is no id", where=where, right="a text, or a number")
        if not text or len(text) > LONGEST_SESSION or not text.isprintable():
            right = f"{LONGEST_SESSION} characters at most, all of which can be printed"
            raise BadInput(f"{text[:40]!r} is no name of a session", where=where, right=right)
        other, first = self.known.setdefault(text, (said, item.called))
        if first == item.called:
            return text
        if type(other) is not type(said) or other != said:
            what = f"{said!r} would be the same session as {other!r} of {first}"
            raise BadInput(what, where=where, right="an id of its own for each")
        if once:
            raise BadInput(f"{said!r} is the id of {first} too", where=where, right="an id of its own for each")
        return text


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
        why = "; ".join(f"{why} ({often})" for why, often in left.why.items())
        what = f"all of it is left out: {why}" if why else "it holds no conversation"
        raise BadInput(what, where=str(path), right=f"a file of the form {form}")
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
        name = '"' + talk.name.replace('"', '""') + '"' if set(talk.name) & set(',"') else talk.name
        for place, (asked, answered, delay) in enumerate(talk.turns):
            after = f"{delay:.6f}".rstrip("0").rstrip(".") if place else ""
            yield f"{'' if place else start},{asked},{answered},{name},{after}"


class Item(NamedTuple):
    """An object of a file: its *place* for errors, what it is *called* ("line 3", "item 3"; from 1 on), and its
    *row*."""

    place: str
    called: str
    row: dict[str, Any]


def _objects(path: Path) -> Iterator[Item]:
    """The objects of a .jsonl file, or of the list in a .json file."""
    if ending(path) == ".jsonl":
        yield from (Item(f"{path}:{number}", f"line {number}", row) for number, row in jsonl_lines(path, strict=True))
        return
    if ending(path) != ".json":
        raise BadInput(
            "it ends neither in .json nor in .jsonl", where=str(path), right="such a file, or one packed (.gz)"
        )
    with opened(path, MOST_WHOLE) as file:
        text = file.read()
    try:
        data = strict_json(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = str(path) if line is None else f"{path}:{line}"
        raise BadInput(f"no valid JSON: {getattr(error, 'msg', error)}", where=where) from None
    if not isinstance(data, list):
        raise BadInput("it holds no list of conversations", where=str(path), right='[{"id": ..., ...}, ...]')
    for number, row in enumerate(data, 1):
        if not isinstance(row, dict):
            raise BadInput("it is no object", where=f"{path}: item {number}", right='{"id": ..., ...}')
        yield Item(f"{path}: item {number}", f"item {number}", row)


def _text(value: Any, where: str) -> str:
    """The text of a message: a string, or a list of its parts."""
    if isinstance(value, list):
        parts = [
            part if isinstance(part, str) else part.get("text") for part in value if isinstance(part, str | dict)
        ]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            value = "".join(map(str, parts))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput("a message holds something else than text", where=where, right="text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise BadInput(f"a message holds {half!r}, half of a character", where=where, right="whole ones") from None
    return value


def _whole(row: Mapping[str, Any], names: Sequence[str], place: str, left: Left) -> int | None:
    """The whole number above 0 that *row* has under one of *names*. None: it is missing or 0, which may be left
    out."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        left.out(f"{names[0]} is missing", place, "a whole number from 1")
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        what = f"{str(value)[:40]!r} is no number of tokens"
        raise BadInput(what, where=f"{place}: {names[0]}", right="a whole number from 1")
    if not value:
        left.out(f"{names[0]} is 0", place, "a whole number from 1")
    return value or None


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


def _wait(talk: Talk, said: float | None, otherwise: float | None, place: str, left: Left) -> float:
    """How long after the answer before the next turn of *talk* is sent; its first comes after none."""
    if talk.turns:
        return _after(said, otherwise, place)
    if said:
        left.note(FIRST_DELAY)
    return 0.0


def _sharegpt(path: Path, count: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    names = _Names()
    for item in _objects(path):
        name = names.of(item.row.get("id"), item, "id", once=True)
        where = f"{item.place}: conversation {name!r}"
        keys = ("conversations", "messages")
        messages = next((item.row[key] for key in keys if isinstance(item.row.get(key), list)), None)
        if messages is None:
            raise BadInput("it has no list of messages", where=where, right="conversations, or messages")
        if not messages:
            left.count("a conversation has no message")
        talk, asked, who = Talk(name), 0, ""
        for place, message in enumerate(messages):
            who, text = _said(message, where)
            if who in ASKS:
                asked += count(text)
                continue
            answered = count(text)
            if not asked or not answered:
                what = "a conversation answers before it asks" if not asked else "an answer is empty"
                left.out(what, where, "a question and its answer, in turn")
                later = [_said(message, where)[0] for message in messages[place + 1 :]]
                left.count(FOLLOWS, sum(who in ANSWERS for who in later))
                who = later[-1] if later else who
                break
            talk.turns.append((asked, answered, _wait(talk, None, delay, where, left)))
            asked = 0
        if who in ASKS:
            left.count(UNANSWERED)
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
    names = _Names()
    for item in _objects(path):
        place, turns = item.place, item.row.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise BadInput("it has no turns", where=place, right='{"session_id": ..., "turns": [{"text": ...}, ...]}')
        talk = Talk(names.of(item.row.get("session_id"), item, "session_id", once=True))
        for number, turn in enumerate(turns, 1):
            where = f"{place}: turn {number}"
            others = [key for key in ("image", "images", "audio", "audios", "video", "videos") if turn.get(key)]
            if others:
                raise BadInput(f"a turn has {others[0]}", where=where, right="text alone")
            asked = count(_text(turn.get("text", turn.get("texts")), where))
            if not asked:
                left.out("a turn has no text", where, "text")
            answered = _whole(turn, ("output_length",), where, left) if asked else None
            if answered is None:
                left.count(FOLLOWS, len(turns) - number)
                break
            if not talk.turns:
                talk.at = _seconds(turn, ("timestamp",), where)
            said = _seconds(turn, ("delay",), where)
            talk.turns.append((asked, answered, _wait(talk, said, delay, where, left)))
        yield talk


def _messages(path: Path, count: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    found: dict[str, Talk] = {}
    before: dict[str, list[Any]] = {}
    names, gone = _Names(), set[str]()
    for item in _objects(path):
        place, row = item.place, item.row
        name = names.of(row.get("session_id"), item, "session_id")
        if name in gone:
            left.count(FOLLOWS)
            continue
        messages, mode = row.get("messages"), row.get("message_mode") or "history"
        if not isinstance(messages, list) or not messages:
            raise BadInput("it has no messages", where=place, right='{"messages": [{"role": "user", ...}], ...}')
        if mode not in ("history", "delta"):
            what = f"{str(mode)[:40]!r} is not known"
            raise BadInput(what, where=f"{place}: message_mode", right="history, or delta")
        new, talk = messages, found.setdefault(name, Talk(name, _seconds(row, ("timestamp",), place)))
        if talk.turns and mode == "history":
            if messages[: len(before[name])] != before[name]:
                left.out("a history is not that of the turn before", place, "what was said before, and more")
                gone.add(name)
                continue
            new = messages[len(before[name]) :]
        before[name] = messages
        said = [_said(message, place) for message in new]
        # An answer that is part of the history is what the turn before generated; its output_length counts it.
        asked = sum(count(text) for who, text in said if who in ASKS or not talk.turns)
        if not asked:
            left.out("a turn asks nothing", place, "a message besides the answer before")
        answered = _whole(row, ("output_length",), place, left) if asked else None
        if answered is None:
            gone.add(name)
            continue
        wait = _seconds(row, ("delay",), place)
        talk.turns.append((asked, answered, _wait(talk, wait, delay, place, left)))
    yield from found.values()


@dataclass
class _Prompts:
    """Sessions of requests whose prompts are whole: what each adds is what exceeds the history of its session, the
    prompt and the answer before. One that cannot be a turn ends its session."""

    delay: float | None
    left: Left
    block: int | None = None  # tokens of which there is one of hash_ids (None: the file does not say it)
    found: dict[str, Talk] = field(default_factory=dict)
    history: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, list[int]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def add(self, name: str, row: Mapping[str, Any], at: float | None, wait: float | None, place: str) -> bool:
        """Add the turn of *row*; False: it is left out."""
        if name in self.gone:
            self.left.count(FOLLOWS)
            return False
        prompt = _whole(row, ("input_length", "input_tokens"), place, self.left)
        answered = _whole(row, ("output_length", "output_tokens"), place, self.left) if prompt else None
        if prompt is None or answered is None or not self._goes_on(name, row, prompt, place):
            self.gone.add(name)
            return False
        asked = prompt - self.history.get(name, 0)
        talk = self.found.setdefault(name, Talk(name, at))
        talk.turns.append((asked, answered, _wait(talk, wait, self.delay, place, self.left)))
        self.history[name] = prompt + answered
        return True

    def _goes_on(self, name: str, row: Mapping[str, Any], prompt: int, place: str) -> bool:
        """Whether the prompt of *row* is the history of its session and more, as far as lengths and hashes tell."""
        hashes = row.get("hash_ids") or []
        if not isinstance(hashes, list) or not all(isinstance(x, int) and x >= 0 for x in hashes):
            right = "hash_ids: [0, 1, 2]"
            raise BadInput("hash_ids is no list of whole numbers, 0 or more", where=place, right=right)
        said = self.hashes.get(name, [])
        if hashes and hashes[: len(said)] != said:
            self.left.out(
                "hash_ids do not begin with those of the turn before", place, "what was said before, and more"
            )
            return False
        if prompt <= self.history.get(name, 0):
            what = f"a prompt is no longer than its history: {prompt} tokens of {self.history[name]}"
            self.left.out(what, place, "what was said before, and more")
            return False
        if hashes:
            # The last block may be full only when the answer is there, and have another hash then.
            full = len(hashes) - 1 if self.block is None else min(len(hashes), prompt // self.block)
            self.hashes[name] = hashes[:full]
        return True


def _full_prompts(path: Path, _: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    prompts, names = _Prompts(delay, left), _Names()
    last: dict[str, float | None] = {}
    for item in _objects(path):
        place, row = item.place, item.row
        name = names.of(row.get("session_id"), item, "session_id")
        at = _seconds(row, ("timestamp", "created_time"), place)
        wait = _seconds(row, ("delay", "delay_ms"), place)
        earlier, differ = last.get(name), False
        if wait is None and at is not None and earlier is not None:
            wait, differ = at - earlier, True  # as Dynamo's replay takes it
            if wait < 0.0:
                raise BadInput(
                    "a turn comes before the one before", where=f"{place}: timestamp", right="a later time"
                )
        last[name] = at
        if prompts.add(name, row, at, wait, place) and differ:
            left.note(DIFFERENCES)
    yield from prompts.found.values()


def _agentic(path: Path, _: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    prompts, names = _Prompts(delay, left), _Names()
    last: dict[str, str] = {}
    places: dict[str, str] = {}
    for number, item in enumerate(_objects(path)):
        place, row = item.place, item.row
        if not number and row.get("schema") == AGENTIC:
            if row.get("version") != 2:
                raise BadInput(f"version {row.get('version')!r} is not known", where=place, right="version 2")
            prompts.block = size = row.get("block_size")
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                what = f"{str(size)[:40]!r} is no number of tokens"
                raise BadInput(what, where=f"{place}: block_size", right="a whole number from 1")
            continue
        key, name, play = row.get("request_id"), row.get("session_id"), row.get("play_id")
        if not isinstance(key, str) or not key:
            raise BadInput("it has no request_id", where=place, right="request_id, as in Dynamo's agentic Mooncake")
        if key in places:
            what = f"{key[:40]!r} is the request of {places[key]} too"
            raise BadInput(what, where=f"{place}: request_id", right="one of its own for each")
        places[key] = item.called
        own = key if name is None or name == "" else name
        session = names.of((play, own) if play else own, item, "session_id")
        others, wait = _waits_for(row, place)
        expected = [last[session]] if session in last else []
        if session not in prompts.gone and others != expected:
            what = "a request waits for others than the one before in its session: a branch or a join"
            left.out(what, place, "one request after the other in each session")
            prompts.gone.add(session)
            continue
        prompts.add(session, row, _seconds(row, ("not_before_ms", "timestamp"), place), wait, place)
        last[session] = key
    yield from prompts.found.values()


def _waits_for(row: Mapping[str, Any], place: str) -> tuple[list[str], float | None]:
    """Which requests that of *row* waits for, and how long after their ends it is sent (None: it is not said)."""
    needs = row.get("dependencies")
    if needs is not None:
        if not isinstance(needs, list):
            raise BadInput("dependencies is no list", where=place, right='[{"request_id": ..., ...}]')
        found = [_dependency(other, place) for other in needs]
        delays = [delay for _, delay in found if delay is not None]
        return [name for name, _ in found], max(delays, default=None)
    names = row.get("wait_for") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput("wait_for is no list of requests", where=place, right='"wait_for": ["a-1"]')
    parts = [_seconds(row, (key,), place) for key in ("delay", "tool_wait_ms")]
    return names, None if parts == [None, None] else float_sum(part or 0.0 for part in parts)


def _dependency(other: Any, place: str) -> tuple[str, float | None]:
    """The request that a dependency names, and how long after its end it is met."""
    if not isinstance(other, dict) or not isinstance(other.get("request_id"), str):
        raise BadInput("a dependency names no request", where=place, right='{"request_id": ..., ...}')
    unknown = next((key for key in other if key not in DEPENDENCY), None)
    if unknown is not None:
        what = f"a dependency has {str(unknown)[:40]!r}, which is not known"
        raise BadInput(what, where=f"{place}: dependencies", right=", ".join(DEPENDENCY))
    trigger = other.get("trigger")
    if trigger not in TRIGGERS:
        what = "a trigger is missing" if trigger is None else f"{str(trigger)[:40]!r} is no trigger"
        raise BadInput(what, where=f"{place}: dependencies", right=" or ".join(TRIGGERS))
    # What begins with another request, and not at its end, is a branch.
    name = other["request_id"] if trigger == "completion" else f"begin of {other['request_id']}"
    return name, _seconds(other, ("delay_ms",), place)


#: The lists of an agent's turns: what it answers, and of the tool that it then calls, tokens and seconds.
AGENT_LISTS = ("assistant_response_length", "tool_call_output_length", "tool_call_latency")


def _agent_turns(path: Path, _: Count, delay: float | None, left: Left) -> Iterator[Talk]:
    """A turn's answer calls a tool, and what that says comes after its latency: so many turns, and a last answer."""
    for item in _objects(path):
        place, row = item.place, item.row
        number, lists = row.get("num_turns"), [row.get(key) for key in AGENT_LISTS]
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            what = f"{str(number)[:40]!r} is no number of turns"
            raise BadInput(what, where=f"{place}: num_turns", right="a whole number, 0 or more")
        for key, values in zip(AGENT_LISTS, lists, strict=True):
            if not isinstance(values, list) or len(values) != number:
                raise BadInput(f"it has not as many as num_turns ({number})", where=f"{place}: {key}", right="a list")
        answers, outputs, latencies = (cast("list[Any]", values) for values in lists)
        talk = Talk(item.called)
        turns = [
            {"input_prompt_length": row.get("input_prompt_length")},
            *({"tool_call_output_length": value} for value in outputs),
        ]
        said = [
            *({"assistant_response_length": value} for value in answers),
            {"final_assistant_response_length": row.get("final_assistant_response_length")},
        ]
        for turn, (asks, answer) in enumerate(zip(turns, said, strict=True)):
            where = f"{place}: turn {turn + 1}"
            asked = _whole(asks, (*asks,), where, left)
            answered = _whole(answer, (*answer,), where, left) if asked else None
            if asked is None or answered is None:
                left.count(FOLLOWS, number - turn)
                break
            talk.turns.append((asked, answered, _latency(latencies[turn - 1], where) if turn else 0.0))
        yield talk


def _latency(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        what = f"{str(value)[:40]!r} is no time"
        raise BadInput(what, where=f"{where}: tool_call_latency", right="seconds, 0 or more")
    return float(value)


Reader = Callable[[Path, Count, "float | None", Left], Iterator[Talk]]

FORMS: Mapping[str, Reader] = {
    "sharegpt": _sharegpt,
    "multi-turn": _multi_turn,
    "messages": _messages,
    "full-prompts": _full_prompts,
    "agentic-mooncake": _agentic,
    "agent-turns": _agent_turns,
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
