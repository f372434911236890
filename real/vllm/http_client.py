"""An open-loop client of a running OpenAI-compatible server, such as ``vllm serve``: streams completions and stamps
each token as it arrives. Needs nothing but Python.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from servetwin.core import BadInput, ServeTwinError

from .plan import KEY, Planned, Run, Served, prompt_ids

#: Seconds between the start of the client and its first request.
LEAD = 0.2
#: The longest that a request may take, in seconds.
PATIENCE = 600.0


def serve_url(url: str, requests: Sequence[Planned], *, model: str | None = None) -> Run:
    """Send *requests* (by arrival) to the server at *url* on their clock; return when all have ended.

    Prompts are token ids, outputs have forced lengths. *model* is the name that the server knows (None: its first).
    A server under our scheduler is told each request's declared limit. Raises `BadInput` if there is no such server.
    """
    where = urlsplit(url if "//" in url else f"http://{url}")
    if where.scheme != "http" or not where.hostname:
        raise BadInput(f"{url!r} is no address of a server", where="--url", right="http://127.0.0.1:8000")
    return asyncio.run(_serve(where, list(requests), model))


async def _serve(where: SplitResult, requests: list[Planned], model: str | None) -> Run:
    try:
        status, body = await asyncio.wait_for(_get(where, "/v1/models"), 10.0)
    except (OSError, TimeoutError) as error:
        raise BadInput(f"no server answers ({error or 'timeout'})", where=f"--url {where.geturl()}") from None
    if status != 200:
        raise BadInput(f"the server answers /v1/models with {status}", where=f"--url {where.geturl()}")
    known = [entry["id"] for entry in json.loads(body)["data"]]
    if model is not None and model not in known:
        raise BadInput(f"the server has no model {model!r}", where="--model", right=", ".join(known))
    zero = time.monotonic() + LEAD
    name = model or known[0]
    served = await asyncio.gather(*(_one(where, name, planned, zero) for planned in requests))
    lateness = [s.arrival - p.arrival for s, p in zip(served, requests, strict=True)]
    return Run(list(served), [], lateness, [], time.monotonic() - zero)


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
        "vllm_xargs": {KEY: json.dumps({"id": planned.id, "limit": planned.limit or planned.output})},
    }
    try:
        async with asyncio.timeout(PATIENCE):
            await _stream(where, body, out, zero)
    except (OSError, TimeoutError, ServeTwinError, ValueError):
        out.outcome = "failed"
    out.ended = time.monotonic() - zero
    return out


async def _stream(where: SplitResult, body: dict[str, Any], out: Served, zero: float) -> None:
    reader, writer = await _ask(where, "POST", "/v1/completions", json.dumps(body).encode())
    reason, over = None, False
    try:
        status = int((await reader.readline()).split()[1])
        if status != 200:
            raise ServeTwinError(f"status {status}")
        # Events are lines of their own; the sizes of chunks between them begin with no such word.
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            at = time.monotonic() - zero
            text = line[6:].strip()
            if text == b"[DONE]":
                over = True
                break
            event = json.loads(text)
            if "error" in event:
                raise ServeTwinError(str(event["error"]))
            for choice in event.get("choices", ()):
                ids = choice.get("token_ids")
                out.times += [at] * (len(ids) if ids is not None else int(bool(choice.get("text"))))
                reason = choice.get("finish_reason") or reason
    finally:
        writer.close()
    if len(out.times) >= out.output:
        out.outcome = "finished"
    elif over or reason == "abort":  # the server gave it up: some versions end the stream without a reason
        out.outcome = "dropped"


async def _get(where: SplitResult, path: str) -> tuple[int, bytes]:
    reader, writer = await _ask(where, "GET", path, b"")
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


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
