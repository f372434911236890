"""An open-loop client of a running OpenAI-compatible server, such as ``vllm serve``: streams completions and stamps
each token as it arrives. Needs nothing but Python.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from servetwin.core import BadInput

from .plan import KEY, Planned, Run, Served, prompt_ids

#: Seconds between the start of the client and its first request.
LEAD = 0.2
#: The longest that a request may take, in seconds.
PATIENCE = 600.0
#: The most bytes of the list of models, of a line of a stream, and of what is read at once.
MOST_BODY, MOST_LINE, PART = 8 << 20, 1 << 20, 1 << 16

RIGHT = "a server as vLLM's"


class BadAnswer(Exception):
    """What a server answers is no answer; the text says what it is."""


def serve_url(url: str, requests: Sequence[Planned], *, model: str | None = None) -> Run:
    """Send *requests* (by arrival) to the server at *url* on their clock; return when all have ended.

    Prompts are token ids, outputs have forced lengths. *model* is the name that the server knows (None: its first).
    A server under our scheduler is told each request's declared limit. Raises `BadInput` if there is no such server.
    """
    try:
        where = urlsplit(url if "//" in url else f"http://{url}")
        good = where.scheme == "http" and bool(where.hostname) and where.port != 0
    except ValueError:  # a port that is none
        good = False
    if not good:
        raise BadInput(f"{url!r} is no address of a server", where="--url", right="http://127.0.0.1:8000")
    return asyncio.run(_serve(where, list(requests), model))


async def _serve(where: SplitResult, requests: list[Planned], model: str | None) -> Run:
    try:
        status, body = await asyncio.wait_for(_get(where, "/v1/models"), 10.0)
    except TimeoutError:
        raise BadInput("no server answers in 10 s", where=f"--url {where.geturl()}") from None
    except (OSError, UnicodeError) as error:
        raise BadInput(f"no server answers ({error})", where=f"--url {where.geturl()}") from None
    except BadAnswer as error:
        what = f"the server answers /v1/models with {error}"
        raise BadInput(what, where=f"--url {where.geturl()}", right=RIGHT) from None
    if status != 200:
        raise BadInput(f"the server answers /v1/models with {status}", where=f"--url {where.geturl()}")
    known = _models(body, f"--url {where.geturl()}")
    if model is not None and model not in known:
        raise BadInput(
            f"the server has no model {model!r}",
            where="--model",
            right=_shown(", ".join(known).encode(errors="replace")),
        )
    zero = time.monotonic() + LEAD
    name = model or known[0]
    served = await asyncio.gather(*(_one(where, name, planned, zero) for planned in requests))
    lateness = [s.arrival - p.arrival for s, p in zip(served, requests, strict=True)]
    return Run(list(served), [], lateness, [], time.monotonic() - zero)


def _models(body: bytes, where: str) -> list[str]:
    """The names of a server's models. Raises `BadInput`."""
    try:
        known = [entry["id"] for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        known = []
    if not known or not all(isinstance(name, str) for name in known):
        what = f"the server answers /v1/models with no list of models: {_shown(body)}"
        raise BadInput(what, where=where, right=RIGHT)
    return known


async def _one(where: SplitResult, model: str, planned: Planned, zero: float) -> Served:
    """Send one request when it is due."""
    due = zero + planned.arrival
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    sent = time.monotonic()
    out = Served(planned.id, sent - zero, planned.prompt, planned.output, sent - zero, "failed")
    body = {
        "model": model,
        "prompt": prompt_ids(planned),
        "max_tokens": planned.output,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
        "vllm_xargs": {KEY: json.dumps(planned.told())},
    }
    try:
        async with asyncio.timeout(PATIENCE):
            await _stream(where, body, out, zero)
    except TimeoutError:
        out.outcome, out.reason = "failed", f"the server did not end its answer in {PATIENCE:g} s"
    except BadAnswer as error:
        out.outcome, out.reason = "failed", f"the server answered with {error}"
    except OSError as error:
        out.outcome, out.reason = "failed", f"the server is gone: {error.strerror or type(error).__name__}"
    out.ended = time.monotonic() - zero
    return out


async def _stream(where: SplitResult, body: dict[str, Any], out: Served, zero: float) -> None:
    reader, writer = await _ask(where, "POST", "/v1/completions", json.dumps(body).encode())
    reason, over = None, False
    try:
        status, headers = await _head(reader)
        if status != 200:
            raise BadAnswer(f"status {status}")
        async for line in _lines(reader, headers):
            if not line.startswith(b"data:"):
                continue
            at = time.monotonic() - zero
            text = line[5:].strip()
            if text == b"[DONE]":
                over = True
                break
            for count, ended in _choices(text):
                out.times += [at] * min(count, out.output + 1)
                reason = ended or reason
            if len(out.times) > out.output:
                raise BadAnswer(f"more than the {out.output} tokens that were asked for")
    finally:
        writer.close()
    if len(out.times) == out.output:
        out.outcome = "finished"
    elif over or reason == "abort":  # the server gave it up: some versions end the stream without a reason
        out.outcome = "dropped"
    else:
        out.reason = f"the server ended the answer after {len(out.times)} of {out.output} tokens"


def _choices(text: bytes) -> Iterator[tuple[int, str | None]]:
    """Of each choice in an event: how many tokens came out, and why it ended, if it did. Raises `BadAnswer`."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise BadAnswer(f"an event that is no JSON: {_shown(text)}") from None
    if not isinstance(event, dict):
        raise BadAnswer(f"an event that is no object: {_shown(text)}")
    if "error" in event:
        raise BadAnswer(f"an error: {_shown(text)}")
    choices = event.get("choices", ())
    if choices is None:
        choices = ()
    if not isinstance(choices, list | tuple):
        raise BadAnswer(f"choices that are no list: {_shown(text)}")
    for choice in choices:
        if not isinstance(choice, dict):
            raise BadAnswer(f"a choice that is no object: {_shown(text)}")
        ids, ended = choice.get("token_ids"), choice.get("finish_reason")
        if not isinstance(ids, list | None) or not isinstance(ended, str | None):
            raise BadAnswer(f"token_ids or a finish_reason that are none: {_shown(text)}")
        yield len(ids) if ids is not None else int(bool(choice.get("text"))), ended


def _shown(text: bytes) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text[:200].decode(errors="replace"))
    words = " ".join(plain.split())
    return words if len(words) <= 60 else words[:57] + "..."


async def _get(where: SplitResult, path: str) -> tuple[int, bytes]:
    reader, writer = await _ask(where, "GET", path, b"")
    try:
        status, headers = await _head(reader)
        body = bytearray()
        async for part in _body(reader, headers):
            body += part
            if len(body) > MOST_BODY:
                raise BadAnswer(f"more than {MOST_BODY >> 20} MiB")
        return status, bytes(body)
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status and the headers of an answer. Raises `BadAnswer`."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise BadAnswer("no HTTP") from None
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split()
    if len(words) < 2 or not words[0].startswith("HTTP/") or not (words[1].isascii() and words[1].isdigit()):
        raise BadAnswer(f"no HTTP: {_shown(first.encode())}")
    named = (line.partition(":") for line in lines if ":" in line)
    return int(words[1][:9]), {name.strip().lower(): value.strip() for name, _, value in named}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The parts of a body as they come: in chunks, of a length that was said, or until the server closes."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := _size(await _line(reader), 16):
            while size:
                part = await reader.read(min(size, PART))
                if not part:
                    raise BadAnswer("a chunk that is not whole")
                size -= len(part)
                yield part
            await _line(reader)
        return
    left = _size(headers["content-length"].encode(), 10) if "content-length" in headers else None
    while left is None or left:
        part = await reader.read(PART if left is None else min(left, PART))
        if not part:
            if left:
                raise BadAnswer("less than the length that it said")
            return
        left = left if left is None else left - len(part)
        yield part


def _size(text: bytes, base: int) -> int:
    digits = text.partition(b";")[0].strip()
    try:
        return abs(int(digits[:19], base))
    except ValueError:
        raise BadAnswer(f"a length that is none: {_shown(digits)}") from None


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise BadAnswer("a chunk that is not whole") from None


async def _lines(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The lines of a body, wherever chunks end."""
    kept = bytearray()
    async for part in _body(reader, headers):
        kept += part
        *lines, rest = kept.split(b"\n")
        for line in lines:
            yield bytes(line)
        kept = rest
        if len(kept) > MOST_LINE:
            raise BadAnswer(f"a line of more than {MOST_LINE >> 10} KiB")
    if kept:
        yield bytes(kept)


async def _ask(
    where: SplitResult, method: str, path: str, body: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert where.hostname is not None
    reader, writer = await asyncio.open_connection(where.hostname, where.port or 80, limit=1 << 20)
    head = (
        f"{method} {where.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {where.hostname}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer
