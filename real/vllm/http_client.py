"""A client of a running OpenAI-compatible server, such as ``vllm serve``: streams completions and stamps each token
as it arrives. Requests are sent on their clock, or, of sessions and closed loops, when others have ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from servetwin.core import BadInput

from .http_connection import Answer, BadAnswer, Server, closing
from .plan import KEY, Planned, Run, Served, SessionSender, prompt_ids
from .prompts import Prompts

#: Seconds between the start of the client and its first request.
LEAD = 0.2
#: The longest that the list of models, and that a request may take, in seconds.
FIRST, PATIENCE = 10.0, 600.0
#: The most bytes of the list of models, and of a line of a stream.
MOST_BODY, MOST_LINE = 8 << 20, 1 << 20

RIGHT = "a server as vLLM's"


@dataclass(frozen=True)
class Wording:
    """How requests are put to a server: their prompts, token *ids* or text, and what is said in *more* fields."""

    ids: Callable[[Planned], list[int] | str] = prompt_ids
    more: dict[str, Any] = field(default_factory=dict)


def wording(caching: bool) -> Wording:
    """For a run against servers that cache prefixes, or are not asked to.

    Prompts then begin alike as is said of them; a salt keeps what a server has cached of other runs from them, and
    the server is asked how many tokens of each prompt it has found (vLLM tells with
    ``--enable-prompt-tokens-details``).
    """
    if not caching:
        return Wording()
    return Wording(Prompts().ids, {"cache_salt": secrets.token_hex(16), "stream_options": {"include_usage": True}})


def serve_url(
    url: str,
    requests: Sequence[Planned],
    *,
    model: str | None = None,
    key: str | None = None,
    caching: bool = False,
) -> Run:
    """Send *requests* (by arrival) to the server at *url* on their clock; return when all have ended.

    Prompts are token ids, as of `wording`, outputs have forced lengths. *model* is the name that the server knows
    (None: its first), *key* the API key that it wants. A server under our scheduler is told each request's declared
    limit. Raises `BadInput` if there is no such server.
    """
    return asyncio.run(_serve(Server(url, key), list(requests), model, wording(caching)))


async def _serve(server: Server, requests: list[Planned], model: str | None, how: Wording) -> Run:
    async with closing(server):
        name = await model_of(server, model)
        zero = time.monotonic() + LEAD
        served = await all_of(_one(server, name, planned, zero, how) for planned in requests)
    lateness = [s.arrival - p.arrival for s, p in zip(served, requests, strict=True)]
    return Run(served, [], lateness, [], time.monotonic() - zero)


def serve_turns(
    url: str, sender: SessionSender, *, model: str | None = None, key: str | None = None, caching: bool = False
) -> Run:
    """Send what *sender* says, when it says, to the server at *url*; return when all have ended. Otherwise as
    `serve_url`. Raises `BadInput` also if the server does not tell which tokens it generates."""
    return asyncio.run(_serve_turns(Server(url, key), sender, model, wording(caching)))


async def _serve_turns(server: Server, sender: SessionSender, model: str | None, how: Wording) -> Run:
    async with closing(server):
        name = await model_of(server, model)
        zero = time.monotonic() + LEAD

        async def ask(planned: Planned) -> tuple[Served, Server]:
            sent = time.monotonic() - zero
            out = Served(planned.id, sent, planned.prompt, planned.output, sent, "failed", ids=[])
            return await asked(server, name, planned, out, zero, how), server

        served, lateness = await in_turns(sender, zero, how, ask)
    return Run(served, [], lateness, [], time.monotonic() - zero)


async def in_turns(
    sender: SessionSender, zero: float, how: Wording, ask: Callable[[Planned], Awaitable[tuple[Served, Server]]]
) -> tuple[list[Served], list[float]]:
    """Let *ask* send what *sender* says, when it says, seconds since *zero*, until all have ended; what became of
    each, and by how much it was sent late. *ask* also tells which server answered. Raises `BadInput` if one does not
    tell which tokens it generates."""
    served: list[Served] = []
    lateness: list[float] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(planned: Planned) -> None:
        lateness.append(time.monotonic() - zero - planned.arrival)
        out, server = await ask(planned)
        if len(out.ids or ()) < len(out.times):
            what = "the server does not tell which tokens it generates, and the next prompt would begin with them"
            raise BadInput(what, where=f"--url {server.url}", right=f"{RIGHT}, with return_token_ids; or no sessions")
        served.append(out)
        sender.ended(planned.id, time.monotonic() - zero, out.ids or (), answered=out.outcome == "finished")

    try:
        sender.begin(how.ids)
        while not sender.over or tasks:
            for planned in sender.due(time.monotonic() - zero):
                tasks.add(asyncio.create_task(one(planned)))
            left = max(0.0, sender.next_time - (time.monotonic() - zero))
            if tasks:
                until = left if left < math.inf else None
                await asyncio.wait(tasks, timeout=until, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(left)
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                task.result()
    finally:
        await ended(tasks)
    return served, lateness


async def all_of(asking: Iterable[Coroutine[Any, Any, Served]]) -> list[Served]:
    """What became of each. Where one fails, the others are ended before their servers are closed."""
    tasks = [asyncio.create_task(one) for one in asking]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await ended(tasks)


async def ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Give up those of *tasks* that go on, and wait until they have closed what they had open."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def model_of(server: Server, model: str | None) -> str:
    """The name of the *model* to ask for, which the server has. Raises `BadInput`."""
    where = f"--url {server.url}"
    try:
        status, body = await asyncio.wait_for(whole_answer(server, "GET", "/v1/models"), FIRST)
    except TimeoutError:
        raise BadInput(f"no server answers in {FIRST:g} s", where=where) from None
    except (OSError, UnicodeError) as error:
        raise BadInput(f"no server answers ({error})", where=where) from None
    except BadAnswer as error:
        what = f"the server answers /v1/models with {server.shown(str(error).encode())}"
        raise BadInput(what, where=where, right=RIGHT) from None
    if status != 200:
        right = "--api-key-env NAME, a variable that holds its key" if status in (401, 403) else None
        raise BadInput(f"the server answers /v1/models with {status}", where=where, right=right)
    known = _models(server, body, where)
    if model is not None and model not in known:
        right = server.shown(", ".join(known).encode(errors="replace"))
        raise BadInput(f"the server has no model {model!r}", where="--model", right=right)
    return model or known[0]


def _models(server: Server, body: bytes, where: str) -> list[str]:
    """The names of a server's models. Raises `BadInput`."""
    try:
        known = [entry["id"] for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        known = []
    if not known or not all(isinstance(name, str) for name in known):
        what = f"the server answers /v1/models with no list of models: {server.shown(body)}"
        raise BadInput(what, where=where, right=RIGHT)
    return known


async def _one(server: Server, model: str, planned: Planned, zero: float, how: Wording) -> Served:
    """Send one request when it is due."""
    due = zero + planned.arrival
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    sent = time.monotonic()
    out = Served(planned.id, sent - zero, planned.prompt, planned.output, sent - zero, "failed")
    return await asked(server, model, planned, out, zero, how)


async def asked(
    server: Server,
    model: str,
    planned: Planned,
    out: Served,
    zero: float,
    how: Wording,
    heard: Callable[[int], None] | None = None,
) -> Served:
    """*out* with what became of *planned*, which is sent now, as *how* puts it; *heard* is told how many tokens have
    come, whenever some do."""
    body = {
        "model": model,
        "prompt": how.ids(planned) if planned.ids is None else [*planned.ids],
        "max_tokens": planned.output,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
        "vllm_xargs": {KEY: json.dumps(planned.told())},
        **how.more,
    }
    try:
        async with asyncio.timeout(PATIENCE):
            await _stream(server, body, out, zero, heard)
    except TimeoutError:
        out.outcome, out.reason = "failed", f"the server did not end its answer in {PATIENCE:g} s"
    except BadAnswer as error:
        out.outcome, out.reason = "failed", f"the server answered with {error}"
    except OSError as error:
        out.outcome, out.reason = "failed", f"the server is gone: {error.strerror or type(error).__name__}"
    out.ended = out.ended or time.monotonic() - zero
    return out


async def _stream(
    server: Server, body: dict[str, Any], out: Served, zero: float, heard: Callable[[int], None] | None
) -> None:
    reason, over = None, False
    async with server.ask("POST", "/v1/completions", json.dumps(body).encode()) as answer:
        if answer.status != 200:
            raise BadAnswer(f"status {answer.status}")
        async for line in _lines(answer):
            if not line.startswith(b"data:"):
                continue
            at = time.monotonic() - zero
            text = line[5:].strip()
            if text == b"[DONE]":
                over, out.ended = True, at
                break
            event = _event(server, text)
            out.cached = _cached(event) if out.cached is None else out.cached
            for count, ended in _choices(server, text, event):
                out.times += [at] * min(count, out.output + 1)
                reason = ended or reason
            if out.ids is not None:
                out.ids += _ids(server, text, event)
            if heard is not None and out.times:
                heard(len(out.times))
            if len(out.times) > out.output:
                raise BadAnswer(f"more than the {out.output} tokens that were asked for")
    if len(out.times) == out.output:
        out.outcome = "finished"
    elif over or reason == "abort":  # the server gave it up: some versions end the stream without a reason
        out.outcome = "dropped"
    else:
        out.reason = f"the server ended the answer after {len(out.times)} of {out.output} tokens"


def _event(server: Server, text: bytes) -> dict[str, Any]:
    """What an event says. Raises `BadAnswer`."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise BadAnswer(f"an event that is no JSON: {server.shown(text)}") from None
    if not isinstance(event, dict):
        raise BadAnswer(f"an event that is no object: {server.shown(text)}")
    if "error" in event:
        raise BadAnswer(f"an error: {server.shown(text)}")
    return event


def _cached(event: dict[str, Any]) -> int | None:
    """How many tokens of the prompt the server found in its prefix cache, if it says so."""
    usage = event.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    found = details.get("cached_tokens") if isinstance(details, dict) else None
    return found if type(found) is int and found >= 0 else None


def _choices(server: Server, text: bytes, event: dict[str, Any]) -> Iterator[tuple[int, str | None]]:
    """Of each choice in an *event*, whose *text* that is: how many tokens came out, and why it ended, if it did.
    Raises `BadAnswer`."""
    choices = event.get("choices", ())
    if choices is None:
        choices = ()
    if not isinstance(choices, list | tuple):
        raise BadAnswer(f"choices that are no list: {server.shown(text)}")
    for choice in choices:
        if not isinstance(choice, dict):
            raise BadAnswer(f"a choice that is no object: {server.shown(text)}")
        ids, ended = choice.get("token_ids"), choice.get("finish_reason")
        if not isinstance(ids, list | None) or not isinstance(ended, str | None):
            raise BadAnswer(f"token_ids or a finish_reason that are none: {server.shown(text)}")
        yield len(ids) if ids is not None else int(bool(choice.get("text"))), ended


def _ids(server: Server, text: bytes, event: dict[str, Any]) -> list[int]:
    """The tokens that came out with an *event*, whose *text* that is. Raises `BadAnswer`."""
    found = [number for choice in event.get("choices") or () for number in choice.get("token_ids") or ()]
    if any(type(number) is not int or not 0 <= number < 1 << 31 for number in found):
        raise BadAnswer(f"token_ids that are none: {server.shown(text)}")
    return found


async def whole_answer(server: Server, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """The status of an answer, and its body. Raises `BadAnswer` if that is too long, and `OSError`."""
    found = bytearray()
    async with server.ask(method, path, body) as answer:
        async for part in answer.chunks():
            found += part
            if len(found) > MOST_BODY:
                raise BadAnswer(f"more than {MOST_BODY >> 20} MiB")
    return answer.status, bytes(found)


async def _lines(answer: Answer) -> AsyncIterator[bytes]:
    """The lines of a body, wherever its parts end."""
    kept = bytearray()
    async for part in answer.chunks():
        kept += part
        *lines, rest = kept.split(b"\n")
        for line in lines:
            yield bytes(line)
        kept = rest
        if len(kept) > MOST_LINE:
            raise BadAnswer(f"a line of more than {MOST_LINE >> 10} KiB")
    if kept:
        yield bytes(kept)
