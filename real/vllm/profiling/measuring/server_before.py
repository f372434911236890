"""What an HTTP server takes before its engine has a request: idle, asked for one token at a time.

`ask_idle` sends single requests to a server that has nothing else to do and gives the seconds to their first token.
What an engine of a known profile takes of that is taken off in `servetwin.experiments.backends.profile_server`;
`line_through` makes a line over the tokens of the prompt of what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from servetwin.core import BadInput

from ...http_client import FIRST, RIGHT, Wording, asked, model_of, whole_answer
from ...http_connection import BadAnswer, Server, closing
from ...plan import Planned, Served

#: Seconds that the server is left alone before each request, so that nothing of the one before is still going on.
PAUSE = 0.05
#: Requests before the first that counts.
WARM = 3
#: Words that prompts sent as text are made of, most of which are one token each to most tokenizers.
WORDS = ("time", "people", "year", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass(frozen=True)
class Asked:
    """A request to an idle server: its *prompt* in tokens, and *seconds* until its first token came."""

    prompt: int
    seconds: float


def ask_idle(
    url: str,
    lengths: Sequence[int],
    rounds: int,
    *,
    model: str | None = None,
    key: str | None = None,
    text: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Asked]:
    """Ask the server at *url* *rounds* times for a token after prompts of each of these *lengths*, one after another.

    Prompts are token ids, or with *text* so many words, of which the server says how many tokens they are. Raises
    `BadInput` where no server answers, or one answers a request with an error.
    """
    return asyncio.run(_ask(Server(url, key), list(lengths), rounds, model, text, progress))


async def _ask(
    server: Server,
    lengths: list[int],
    rounds: int,
    model: str | None,
    text: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Asked]:
    found: list[Asked] = []
    async with closing(server):
        name = await model_of(server, model)
        longest = await _longest(server, name)
        if not (lengths := [n for n in lengths if longest is None or n + 2 <= longest]):
            what = f"the server's model takes {longest} tokens"
            raise BadInput(what, where=f"--url {server.url}", right="a server of the profile's engine")
        # Prompts differ in their first token, so that no cache of prefixes helps any of them.
        tokens = {n: await _tokens(server, name, _words(i, n)) if text else n for i, n in enumerate(lengths)}
        order = [lengths[-1]] * WARM + lengths * rounds
        for number, length in enumerate(order, len(lengths)):
            await asyncio.sleep(PAUSE)
            words = _words(number, length) if text else None
            seconds = await _first(server, name, Planned(number, 0.0, tokens[length], 1), words)
            if number >= len(lengths) + WARM:
                found.append(Asked(tokens[length], seconds))
                if progress is not None:
                    progress(len(found), len(lengths) * rounds)
    return found


async def _first(server: Server, model: str, planned: Planned, words: str | None) -> float:
    """Seconds from sending *planned* until its first token is here."""
    zero = time.monotonic()
    out = Served(planned.id, 0.0, planned.prompt, planned.output, 0.0, "failed")
    how = Wording() if words is None else Wording(lambda _: words)
    out = await asked(server, model, planned, out, zero, how)
    if not out.times:
        what = f"a request of {planned.prompt} tokens got none: {out.reason or out.outcome}"
        raise BadInput(what, where=f"--url {server.url}", right="an idle server that answers")
    return out.times[0]


async def _longest(server: Server, model: str) -> int | None:
    """The most tokens of prompt and output that the server's *model* takes, if it says so (vLLM's does)."""
    _, got = await whole_answer(server, "GET", "/v1/models")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        for entry in json.loads(got)["data"]:
            if entry["id"] == model and isinstance(entry.get("max_model_len"), int):
                return int(entry["max_model_len"])
    return None


async def _tokens(server: Server, model: str, words: str) -> int:
    """How many tokens *words* are to the server."""
    body = {"model": model, "prompt": words, "max_tokens": 1, "temperature": 0}
    where = f"--url {server.url}"
    try:
        async with asyncio.timeout(FIRST):
            status, got = await whole_answer(server, "POST", "/v1/completions", json.dumps(body).encode())
        if status != 200:
            raise BadAnswer(f"status {status}: {server.shown(got)}")
        tokens = json.loads(got)["usage"]["prompt_tokens"]
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise BadAnswer(f"usage of {tokens!r} tokens")
    except TimeoutError:
        raise BadInput(f"a prompt of text got no answer in {FIRST:g} s", where=where, right=RIGHT) from None
    except (BadAnswer, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"a prompt of text got no answer that counts its tokens: {server.shown(str(error).encode())}"
        raise BadInput(what, where=where, right="a server with a tokenizer, or no --text") from None
    return tokens


def _words(number: int, length: int) -> str:
    start = number % len(WORDS)
    return " ".join([f"{number}", *islice(cycle(WORDS), start, start + max(length - 1, 1))])


def line_through(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(constant, per token) in seconds through the medians of *points* (tokens, seconds) of each number of tokens, by
    least squares, neither below 0."""
    at = sorted({tokens for tokens, _ in points})
    middle = [statistics.median(s for tokens, s in points if tokens == each) for each in at]
    if len(at) > 1:
        each, constant = np.polyfit(at, middle, 1)
        if constant < 0.0:
            constant, each = 0.0, float(np.dot(at, middle) / np.dot(at, at))
        if each > 0.0:
            return float(constant), float(each)
    return max(statistics.median(middle), 0.0), 0.0
