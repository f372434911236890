"""Files of ``vllm bench serve --save-result --save-detailed``: when each request was sent, its lengths, its tokens.

The lists of such a file (vLLM 0.25 to 0.32, ``vllm/benchmarks/serve.py``) are in order of sending: ``start_times``
(seconds, by a clock of its own), ``input_lens``, ``output_lens`` (tokens; 0 of a request that failed), ``ttfts``
(seconds), ``itls`` (seconds between the events of the stream) and ``errors``. An event may hold several tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ...provenance.file_digests import Stamp, stamp
from .lines import MOST_WHOLE, Line, opened

#: The lists that ``--save-detailed`` leaves in a file, and what their values are.
LISTS = {
    "start_times": "seconds",
    "input_lens": "tokens",
    "output_lens": "tokens",
    "ttfts": "seconds",
    "itls": "lists of seconds",
    "errors": "texts",
}
#: What every file of ``vllm bench serve`` has, with details or without.
MARKS = ("num_prompts", "request_rate", "burstiness", "duration")
RIGHT = "a file of `vllm bench serve --save-result --save-detailed`"
MOST_TOKENS, MOST_SECONDS = 1 << 24, 1e9


@dataclass(frozen=True)
class BenchRequest:
    """A request that was answered: seconds by the client's clock, tokens. *times* are those of its tokens."""

    number: int
    start: float
    prompt: int
    output: int
    times: tuple[float, ...]


@dataclass(frozen=True)
class BenchRun:
    """What a file says: those *requests* that were answered, in order of sending; number and start of those that
    *failed*; in how many (*bundled*) events held several tokens or none, whose times are spread over them; and
    *concurrency*, the most that the client had in flight (None: it sent when requests were due)."""

    path: Path
    requests: tuple[BenchRequest, ...]
    failed: tuple[tuple[int, float], ...]
    bundled: int
    concurrency: int | None


def is_bench(path: Path) -> bool:
    """Whether the file at *path* looks like one of ``vllm bench serve``, with details or without."""
    try:
        data = _object(path, stamp(path))
    except BadInput:
        return False
    return isinstance(data, dict) and all(name in data for name in MARKS)


def read(path: Path) -> BenchRun:
    """The file at *path*. Raises `BadInput` where it is another, or lacks details."""
    data = _object(path, stamp(path))
    if not isinstance(data, dict) or not all(name in data for name in MARKS):
        raise BadInput("this is no result of vllm bench serve", where=str(path), right=RIGHT)
    missing = [name for name in LISTS if name not in data]
    if missing:
        what = f"it has no {missing[0]}: it was written without --save-detailed, or by an old vLLM"
        raise BadInput(what, where=str(path), right=RIGHT)
    rows = _rows(data, str(path))
    concurrency = data.get("max_concurrency")
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise BadInput(f"max_concurrency is {str(concurrency)[:40]}", where=str(path), right="a number, or null")
    good = sorted((row for row in rows if row is not None), key=lambda row: (row[0].start, row[0].number))
    if not good:
        raise BadInput(f"all of its {len(rows)} requests failed", where=str(path), right="a run with answers")
    failed = tuple((i, data["start_times"][i]) for i, row in enumerate(rows) if row is None)
    return BenchRun(path, tuple(r for r, _ in good), failed, sum(b for _, b in good), concurrency)


def _rows(data: Mapping[str, Any], where: str) -> list[tuple[BenchRequest, bool] | None]:
    """Of each request what it was, and whether its events were other than its tokens; None of those that failed."""
    for name in LISTS:
        if not isinstance(data[name], list):
            raise BadInput(f"{name} is no list", where=where, right=f"a list of {LISTS[name]}")
    lengths = {name: len(data[name]) for name in LISTS}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise BadInput(f"it has {told}", where=where, right="as many of each")
    found: list[tuple[BenchRequest, bool] | None] = []
    for i, row in enumerate(zip(*(data[name] for name in LISTS), strict=True)):
        start, prompt, output, ttft, gaps, error = row
        _check(i, dict(zip(LISTS, row, strict=True)), where)
        if error or output == 0:
            found.append(None)
            continue
        events = [start + ttft]
        for gap in gaps:
            events.append(events[-1] + gap)
        times = tuple(_spread(events, output))
        found.append((BenchRequest(i, start, prompt, output, times), len(events) != output))
    return found


def _spread(events: list[float], tokens: int) -> list[float]:
    """Times of so many *tokens* that came in *events*: the first with the first event, the last with the last."""
    if len(events) == tokens:
        return events
    if tokens == 1:
        return events[-1:]
    last = len(events) - 1
    return [events[round(k * last / (tokens - 1))] for k in range(tokens)]


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0.0 <= value < MOST_SECONDS  # type: ignore[operator]


_GOOD: dict[str, Callable[[Any], bool]] = {
    "seconds": _is_time,
    "tokens": lambda x: type(x) is int and 0 <= x < MOST_TOKENS,
    "texts": lambda x: x is None or isinstance(x, str),
    "lists of seconds": lambda x: isinstance(x, list) and all(map(_is_time, x)),
}


def _check(number: int, row: Mapping[str, Any], where: str) -> None:
    for name, value in row.items():
        if not _GOOD[LISTS[name]](value):
            shown = str(value)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise BadInput(f"{name}.{number} is {shown}", where=where, right=LISTS[name])
    if not row["errors"] and row["output_lens"] and not row["input_lens"]:
        raise BadInput(f"input_lens.{number} is 0", where=where, right="a prompt of one token at least")


def rows(path: Path) -> list[Line]:
    """The requests as lines of a trace, by time, numbered from 0 as in the file; those that failed have no output."""
    run = read(path)
    lines = [(r.start, r.number, r.prompt, r.output) for r in run.requests]
    lines += [(start, number, 0, 0) for number, start in run.failed]
    return [
        (number, {"start_times": repr(start), "input_lens": prompt, "output_lens": output})
        for start, number, prompt, output in sorted(lines)
    ]


@lru_cache(maxsize=4)
def _object(path: Path, _: Stamp | None) -> Any:
    with opened(path, MOST_WHOLE) as file:
        text = file.read(MOST_WHOLE + 1)
    if len(text) > MOST_WHOLE:
        raise BadInput(f"the file has more than {MOST_WHOLE >> 20} MiB", where=str(path), right=RIGHT)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            what = "it holds several results, or something after the first"
            raise BadInput(
                what, where=f"{path}:{error.lineno}", right="a file per run, without --append-result"
            ) from None
        raise BadInput(f"no valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"no valid JSON: {error}", where=str(path)) from None
