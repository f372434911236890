"""Recordings, read by what they must hold: whatever else stands there ends in one line that names file and key."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict
from servetwin.core import BadInput
from servetwin.core.files import plain
from typing_extensions import TypedDict

from .run_files import checked, loaded

#: The most bytes that a recording unpacks to.
MOST_UNPACKED = 1 << 30

RIGHT = "a .json.gz of runs"
_OPEN = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
_CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RunOfSteps(TypedDict):
    """A run in a recording of a diffusion model (`servetwin.experiments.validation.replay.diffusion`)."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    policy: str
    load: float
    rate: float
    cv: float
    slo_factor: float
    repeat: int
    whole: bool
    arrival: list[float]
    slo: list[float]
    steps: list[int]
    outcome: str
    finished: list[float | None]
    facts: NotRequired[dict[str, Any]]


class RecordingOfSteps(TypedDict):
    """A recording of a diffusion model."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    model: str
    profile: str
    modules: list[list[Any]]
    placement: list[list[str]]
    limit: int
    once: int
    stop_after: float
    meta: dict[str, Any]
    runs: list[RunOfSteps]
    together: NotRequired[bool]


class RunOfTokens(TypedDict):
    """A run in a recording of a language model (`servetwin.experiments.validation.replay.llm`)."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    id: str
    policy: str
    slo: str
    rate: float
    cv: float
    repeat: int
    steps: int
    busy: float
    limit: int
    requests: list[list[Any]]
    gpu: NotRequired[float | None]
    profile: NotRequired[str | None]
    profiled: NotRequired[bool]


class _EngineOptions(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    max_batched_tokens: int
    max_sequences: int


class _Engine(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    blocks: int
    block_size: int
    options: _EngineOptions


class RecordingOfTokens(TypedDict):
    """A recording of a language model."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    engine: _Engine
    runs: list[RunOfTokens]
    profile: NotRequired[str | None]


@contextmanager
def _of_a_recording() -> Iterator[None]:
    """Say of what is wrong that it makes the file no recording."""
    try:
        yield
    except BadInput as wrong:
        raise BadInput(f"this is no recording: {wrong.what}", where=wrong.where, right=wrong.right) from None


@_of_a_recording()
def of_steps(path: Path) -> dict[str, Any]:
    """What the recording of a diffusion model in the file *path* holds. Raises `BadInput`."""
    data: dict[str, Any] = checked(unpacked(path), RecordingOfSteps, str(path), RIGHT)
    where = str(path)
    for module in data["modules"]:
        if len(module) != 2 or not isinstance(module[0], str) or not isinstance(module[1], bool):
            raise BadInput(f"modules holds {str(module)[:60]}", where=where, right="[name, whether it loops]")
    loops = {name for name, loop in data["modules"] if loop}
    if len(loops) != 1:
        raise BadInput(f"{len(loops)} of its modules loop", where=where, right="one")
    for name in ("limit", "once"):
        if data[name] < 1:
            raise BadInput(f"{name} is {data[name]}", where=where, right="1 or more")
    if data["stop_after"] < 0.0:
        raise BadInput(f"stop_after is {data['stop_after']:g}", where=where, right="seconds")
    if not data["runs"]:
        raise BadInput("it holds no runs", where=where, right=RIGHT)
    for number, run in enumerate(data["runs"]):
        _check_steps(run, f"{where}: runs.{number}")
    return data


def _check_steps(run: dict[str, Any], where: str) -> None:
    arrival, lengths = run["arrival"], {n: len(run[n]) for n in ("arrival", "slo", "steps", "outcome", "finished")}
    if len(set(lengths.values())) > 1 or not arrival:
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise BadInput(f"it has {told}", where=where, right="as many of each, and one at least")
    if arrival[0] < 0.0 or any(b < a for a, b in pairwise(arrival)):
        raise BadInput("arrival goes back in time", where=where, right="seconds since the run began, in order")
    for name, least in (("slo", 0.0), ("steps", 1)):
        if min(run[name]) < least:
            raise BadInput(f"{name} holds {min(run[name])}", where=where, right=f"{least:g} or more")
    if not {*run["outcome"]} <= {*"mldf"}:
        raise BadInput(f"outcome is {run['outcome'][:30]!r}", where=where, right="letters m, l, d and f")
    for end, begin in zip(run["finished"], arrival, strict=True):
        if end is not None and end < begin:
            raise BadInput(f"finished is {end:g} of what came at {begin:g}", where=where, right="later than that")


@_of_a_recording()
def of_tokens(path: Path) -> dict[str, Any]:
    """What the recording of a language model in the file *path* holds. Raises `BadInput`."""
    data: dict[str, Any] = checked(unpacked(path), RecordingOfTokens, str(path), RIGHT)
    engine, where = data["engine"], str(path)
    sizes = {"blocks": engine["blocks"], "block_size": engine["block_size"]}
    sizes |= {f"options.{name}": engine["options"][name] for name in ("max_batched_tokens", "max_sequences")}
    for name, size in sizes.items():
        if size < 1:
            raise BadInput(f"engine.{name} is {size}", where=where, right="1 or more")
    if not data["runs"]:
        raise BadInput("it holds no runs", where=where, right=RIGHT)
    for number, run in enumerate(data["runs"]):
        at = f"{where}: runs.{number}"
        if not _is_slo(run["slo"]):
            raise BadInput(f"slo is {run['slo'][:60]!r}", where=at, right="factors of prefill and decode, 3+1.5")
        if not run["requests"]:
            raise BadInput("it holds no requests", where=at, right="one at least")
        for place, request in enumerate(run["requests"]):
            if not _is_request(request):
                right = "[id, arrival, prompt, output, outcome, first token or null, [gaps in microseconds]]"
                raise BadInput(f"it is {str(request)[:60]}", where=f"{at}.requests.{place}", right=right)
        if len({request[0] for request in run["requests"]}) < len(run["requests"]):
            raise BadInput("requests holds a number twice", where=at, right="each request once")
    return data


def _is_slo(text: str) -> bool:
    try:
        scales = [float(part) for part in text.split("+")]
    except ValueError:
        return False
    return len(scales) == 2 and all(0.0 < scale < math.inf for scale in scales)


def _is_request(request: Sequence[Any]) -> bool:
    if len(request) != 7:
        return False
    number, arrival, prompt, output, outcome, first, gaps = request
    return (
        type(number) is int
        and _is_time(arrival)
        and type(prompt) is int
        and prompt > 0
        and type(output) is int
        and output > 0
        and isinstance(outcome, str)
        and (first is None or (_is_time(first) and first >= arrival))
        and isinstance(gaps, list)
        and all(type(gap) is int and 0 <= gap < 10**12 for gap in gaps)
    )


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0.0 <= value < 1e9  # type: ignore[operator]


def unpacked(path: Path) -> Any:
    """What a packed file of JSON holds, a recording. Raises `BadInput`."""
    try:
        with gzip.open(plain(path), "rb") as file:
            text = file.read(MOST_UNPACKED + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise BadInput("the file is no gzip file, or not whole", where=str(path), right=RIGHT) from None
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", where=str(path), right=RIGHT) from None
    if len(text) > MOST_UNPACKED:
        raise BadInput(f"it unpacks to more than {MOST_UNPACKED >> 20} MiB", where=str(path), right=RIGHT)
    return loaded(text, str(path))
