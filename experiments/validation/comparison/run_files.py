"""The files of a run folder, read by what they must hold: whatever else stands there ends in one line that names
file, line and key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from servetwin.core import BadInput
from servetwin.core.files import plain
from typing_extensions import TypedDict

from .compare_fleets import COMPARED
from .compare_llm_runs import FIGURES

#: The most bytes of a file of one object, of a line.
MOST_WHOLE, MOST_LINE = 64 << 20, 16 << 20

RIGHT = "a folder that `servetwin run --out` wrote"
#: Seconds to which times may have been rounded.
ROUNDED = 1e-5
OPEN = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


#: Seconds since a run began, or near enough: beyond that a number tells no instants apart.
Time = Annotated[float, Field(ge=-1e9, le=1e12)]


class Stay(TypedDict):
    """A request at a stage."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    stage: str
    worker: str | None
    queued: Time
    admitted: Time | None
    started: Time | None
    finished: Time | None
    prompt: NotRequired[int]
    limit: NotRequired[int]
    generated: NotRequired[int]
    arrival: NotRequired[Time]
    first_token: NotRequired[Time | None]
    last_token: NotRequired[Time | None]
    preemptions: NotRequired[int]
    tokens: NotRequired[list[Time]]
    iterations: NotRequired[int]
    steps_asked: NotRequired[int]
    steps_run: NotRequired[int]
    steps_skipped: NotRequired[int]
    deadline: NotRequired[Time]
    due: NotRequired[Annotated[list[Time], Field(min_length=3, max_length=3)]]
    meets: NotRequired[Literal["all", "last"]]
    limits: NotRequired[dict[Literal["ttft", "tpot", "itl", "e2el"], Annotated[float, Field(gt=0)]]]
    sent: NotRequired[Time]


class Shaped(TypedDict):
    """The shape of a request."""

    height: int
    width: int
    frames: int
    guidance: int | None
    images: int


class RequestLine(TypedDict):
    """A line of ``requests.jsonl``."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    id: int
    arrival: Time
    deadline: Time | None
    work: dict[str, int]
    outcome: Literal["met", "late", "dropped", "failed"] | None
    reason: str | None
    finished: Time | None
    ended: NotRequired[Time]
    shape: NotRequired[Shaped]
    stages: list[Stay]


class FaultLine(TypedDict):
    """A line of ``faults.jsonl``."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    kind: str
    what: str
    worker: str
    at: Time
    until: Time | None
    noticed: NotRequired[Time | None]


class BatchLine(TypedDict):
    """A line of ``batches.jsonl``."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    id: int
    worker: str
    modules: list[str]
    start: Time
    end: Time
    iterations: int
    requests: list[int]
    thread: NotRequired[int]
    ends: NotRequired[list[Time]]
    prefill: NotRequired[list[tuple[int, int, int] | list[int]]]
    decode: NotRequired[int]
    context: NotRequired[int]
    preempted: NotRequired[list[int]]
    free: NotRequired[int]
    moved: NotRequired[int]


class SwapLine(TypedDict):
    """A line of ``swaps.jsonl``."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    card: str
    model: str
    start: Time
    end: Time
    gone: list[str]


class _Named(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: NotRequired[str]


class _Arrivals(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    rate: NotRequired[float | None]
    cv: NotRequired[float | None]


class _Workload(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    arrivals: NotRequired[_Arrivals]


class _Experiment(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: NotRequired[str]
    policy: NotRequired[_Named]
    workload: NotRequired[_Workload]


class Meta(TypedDict):
    """``meta.json``, as far as it is read without the experiment being made of it."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    kind: NotRequired[str]
    experiment: NotRequired[_Experiment]
    seed: NotRequired[int]
    profiles: NotRequired[dict[str, str]]
    policies: NotRequired[dict[str, str]]
    policy_files: NotRequired[dict[str, dict[str, str]]]


class _WorkerCounts(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    iterations: int
    mean_batch_size: float | None
    batch_sizes: dict[str, int]


class Counts(TypedDict):
    """``summary.json``, as far as others stand on it."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    requests: int
    met: int
    late: int
    dropped: int
    failed: int
    finished: int
    attainment: float | None
    request_goodput: float | None
    workers: dict[str, _WorkerCounts]
    llm: NotRequired[dict[str, dict[str, Any]]]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(content: Any, kind: Any, where: str, right: str = RIGHT) -> Any:
    """*content*, which must be of *kind*. Raises `BadInput` with the first key that is not."""
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        raise BadInput(_first(error), where=where, right=right) from None
    except RecursionError:
        raise BadInput("it is nested too deep", where=where, right=right) from None
    return content


def _first(error: ValidationError) -> str:
    """What is wrong first, in a line: ``stages.0.queued: 'x' is no number``."""
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    if found["type"] == "missing":
        return f"it has no key {place}"
    shown = repr(found["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    text = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ").replace("a valid ", "a ")
    for ours, theirs in (("a mapping", "a dictionary"), ("a whole number", "a integer"), ("a text", "a string")):
        text = text.replace(theirs, ours)
    return f"{place or 'it'} is {shown}, and not {text}"


def read_json(path: Path, missing: str, *, divided: bool = True) -> dict[str, Any]:
    """The object in the file *path*; *missing* is said if there is none. A summary whose figures are to be *divided*
    by must have them: a run that took no time has no goodput. Raises `BadInput`."""
    try:
        if plain(path).stat().st_size > MOST_WHOLE:
            raise BadInput(f"the file has more than {MOST_WHOLE >> 20} MiB", where=str(path), right=RIGHT)
        found = loaded(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise BadInput(missing, where=str(path.parent), right=RIGHT) from None
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", where=str(path), right=RIGHT) from None
    if not isinstance(found, dict):
        raise BadInput("there is no mapping", where=str(path))
    kind = {"meta.json": Meta, "summary.json": Counts}.get(path.name)
    if kind is None:
        return found
    checked(found, kind, str(path))
    return _counted(found, str(path)) if divided else found


def _counted(found: dict[str, Any], where: str) -> dict[str, Any]:
    """A summary whose counts can be: what is divided by them is no surprise then."""
    for name, worker in found.get("workers", {}).items():
        sizes: dict[str, int] = worker["batch_sizes"]
        if not all(size.isascii() and size.isdigit() for size in sizes) or min(sizes.values(), default=0) < 0:
            raise BadInput(f"workers.{name}.batch_sizes is {str(sizes)[:60]}", where=where, right="counts by size")
        if sum(sizes.values()) and not worker["iterations"] > 0:
            what = f"workers.{name}.iterations is {worker['iterations']}, and there are batches"
            raise BadInput(what, where=where, right=RIGHT)
    for stage, figures in found.get("llm", {}).items():
        for name in FIGURES:
            value = figures.get(name)
            _number(value, f"llm.{stage}.{name}", where)
    for part, keys in COMPARED.items():
        told = found.get(part)
        if told is not None:
            checked(told, dict[str, Any], f"{where}: {part}")
            _number(found.get("duration"), "duration", where)
            for name, *_ in keys:
                _number(told.get(name), f"{part}.{name}", where)
    if "requests" in found:
        counts = {name: found[name] for name in ("requests", "met", "late", "dropped", "failed", "finished")}
        wrong = next((name for name, n in counts.items() if not 0 <= n <= counts["requests"]), None)
        if wrong is not None:
            right = f"from 0 to {max(counts['requests'], 0)}"
            raise BadInput(f"{wrong} is {counts[wrong]} of {counts['requests']} requests", where=where, right=right)
        if counts["requests"] and (found["attainment"] is None or found["request_goodput"] is None):
            raise BadInput("attainment or request_goodput is null", where=where, right="a number")
    return found


def _number(value: Any, name: str, where: str) -> None:
    if value is not None and (type(value) not in (int, float) or not abs(value) < math.inf):
        raise BadInput(f"{name} is {str(value)[:60]}", where=where, right="a number")


def loaded(text: bytes | str, where: str) -> Any:
    """What a text of JSON holds. Raises `BadInput`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"no valid JSON: {error.msg}", where=f"{where}:{error.lineno}") from None
    except UnicodeDecodeError:
        raise BadInput("this is not a text file (UTF-8)", where=where) from None
    except RecursionError:
        raise BadInput("it is nested too deep", where=where) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise BadInput(f"no valid JSON: {error}", where=where) from None


def request_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of the requests of a run, in the order in which they ended. Raises `BadInput`."""
    seen: set[int] = set()
    for where, record in _lines(folder / "requests.jsonl", RequestLine):
        if record["id"] in seen:
            raise BadInput(f"request {record['id']} stands twice", where=where, right="each request once")
        seen.add(record["id"])
        for name in ("finished", "ended", "deadline"):
            at = record.get(name)
            if at is not None and at < record["arrival"] - ROUNDED:
                raise BadInput(f"{name} is {at}, before its arrival at {record['arrival']}", where=where, right=RIGHT)
        yield record


def fault_lines(folder: Path) -> list[dict[str, Any]]:
    """What went wrong with workers in a run; nothing if that could not be. Raises `BadInput`."""
    path = folder / "faults.jsonl"
    return [line for _, line in _lines(path, FaultLine)] if path.exists() else []


def batch_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of the batches of a run, in the order in which they ended. Raises `BadInput`."""
    for where, record in _lines(folder / "batches.jsonl", BatchLine):
        if "prefill" in record:
            if not {"decode", "context"} <= record.keys():
                raise BadInput("it has prefill, and not decode and context", where=where, right=RIGHT)
            if any(len(chunk) != 3 for chunk in record["prefill"]):
                raise BadInput("prefill holds what is no chunk", where=where, right="[id, tokens, tokens before]")
        if "ends" in record and not record["ends"]:
            raise BadInput("ends is empty", where=where, right=RIGHT)
        yield record


def swap_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The swaps of weights of a run, in the order in which they began; none where no models share a card. Raises
    `BadInput`."""
    path = folder / "swaps.jsonl"
    if path.exists():
        yield from (record for _, record in _lines(path, SwapLine))


def _lines(path: Path, kind: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with plain(path).open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MOST_LINE:
                    raise BadInput(f"the line has more than {MOST_LINE >> 20} MiB", where=where, right=RIGHT)
                try:
                    record = json.loads(line)
                except ValueError:
                    raise BadInput("the line is no JSON", where=where) from None
                except RecursionError:
                    raise BadInput("it is nested too deep", where=where) from None
                yield where, checked(record, kind, where)
    except FileNotFoundError:
        raise BadInput(f"not a run folder: it has no {path.name}", where=str(path.parent)) from None
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", where=str(path), right=RIGHT) from None
