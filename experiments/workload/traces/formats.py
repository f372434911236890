"""What the lines of each format mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from servetwin.core import BadInput, Shape

from ...registry.catalog import closest, suggest
from ...spec.keys.field_types import WEIGHTS
from . import bench_file, katz_file
from .lines import (
    ARRIVALS,
    SHAPES,
    SIDES,
    TERMS,
    TURNS,
    WORK,
    Line,
    Row,
    csv_header,
    csv_lines,
    ending,
    json_lists,
    jsonl_lines,
    request_lines,
)

SAMPLES = Path(__file__).parent / "samples"

#: Stamps above this many seconds are of no time that anybody recorded: three thousand years.
MOST_SECONDS = 1e11
#: What a number of this many digits and fewer than the next probably is: an epoch, today, has 10, 13, 16 or 19.
EPOCHS = ((20, "nanoseconds"), (17, "microseconds"), (14, "milliseconds"))

#: What looks like an epoch in seconds (2001 to 2065) in a column of milliseconds, where it would be days 12 to 34;
#: likewise one in milliseconds in a column of microseconds.
EPOCH_SECONDS = (1e9, 3e9)


#: Seconds by which two columns of a request's arrival may differ: one of them may have been rounded.
ROUNDED = Decimal("0.001")

#: What others call it, in lower case.
OTHERWISE = ("arrivals", "arrived", "arrival_time", "time", "timestamp", "start", "start_time", "ts")

#: The unit of a column by how many make a second.
UNITS = {1: "seconds", 1000: "milliseconds", 1_000_000: "microseconds"}


class Turn(NamedTuple):
    """Of which *session* a request is (None: of none), and how many seconds after the answer before it is sent
    (*delay*; None: it does not say); *follows*: it says that instead of a time."""

    session: str | None = None
    delay: float | None = None
    follows: bool = False


class Entry(NamedTuple):
    """A request of a trace: *arrival* in seconds since its first request, *work* by column, *size* of the image, and
    what else is *said* of it (`TERMS`); *hashes* are Mooncake's ``hash_ids`` (None: there are none), *shape* what is
    said of its images beside their size."""

    line: int
    arrival: float
    work: dict[str, int]
    size: str | None
    said: Mapping[str, Any] = MappingProxyType({})
    hashes: tuple[int, ...] | None = None
    shape: Shape | None = None
    turn: Turn = Turn()


Parser = Callable[[Row, str, Sequence[str]], "tuple[Decimal, dict[str, int], str | None] | None"]


@dataclass(frozen=True)
class Format:
    """*columns* tell the format by the first line; *moments* says that its times are dates and times of day."""

    name: str
    endings: tuple[str, ...]
    columns: tuple[str, ...]
    parse: Parser
    moments: bool = False


def _azure(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None]:
    arrival = _moment(row.get("TIMESTAMP"), f"{where}: TIMESTAMP")
    return arrival, _tokens(row, where, "ContextTokens", "GeneratedTokens"), None


def _burstgpt(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None] | None:
    arrival = _time(row.get("Timestamp"), f"{where}: Timestamp")
    if str(row.get("Response tokens")).strip() == "0":
        return None  # the request failed when the trace was taken
    return arrival, _tokens(row, where, "Request tokens", "Response tokens"), None


def _mooncake(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None]:
    hashes = row.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(type(h) is int and h >= 0 for h in hashes):
        raise BadInput("hash_ids is no list of whole numbers, 0 or more", where=where, right="hash_ids: [0, 1, 2]")
    arrival = _time(row.get("timestamp"), f"{where}: timestamp", unit=1000)
    return arrival, _tokens(row, where, "input_length", "output_length"), None


def _bench(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None] | None:
    arrival = _time(row.get("start_times"), f"{where}: start_times")
    if row.get("output_lens") == 0:
        return None  # the request failed
    return arrival, _tokens(row, where, "input_lens", "output_lens"), None


def _gentd26(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None] | None:
    arrival = _moment(row.get("gmt_create"), f"{where}: gmt_create")
    if row.get("predict_status") != "SUCCEED":
        return None  # it failed, or was never served
    name = "num_images_per_prompt"
    row["images"] = _count(row.get(name), f"{where}: {name}", "images")
    name = "num_inference_steps"
    return arrival, {"steps": _count(row.get(name), f"{where}: {name}", "steps")}, None


def _katz(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None]:
    return _time(row.get("timestamp"), f"{where}: timestamp"), {}, None


def _requests(row: Row, where: str, _: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None]:
    arrival = _time(row.get("timestamp"), f"{where}: timestamp")
    work = {"steps": _count(row.get("steps"), f"{where}: num_inference_steps", "steps")}
    return arrival, work, _size(row, where)


def _plain(row: Row, where: str, modules: Sequence[str]) -> tuple[Decimal, dict[str, int], str | None]:
    name, *others = [name for name in ARRIVALS if name in row] or ["arrival"]
    arrival = _time(row.get(name), f"{where}: {name}", unit=ARRIVALS[name])
    for other in others:
        again = _time(row[other], f"{where}: {other}", unit=ARRIVALS[other])
        if abs(again - arrival) > ROUNDED:
            what = f"{name} says {float(arrival):g} s, and {other} {float(again):g} s"
            raise BadInput(what, where=where, right="one column of arrivals, or the same times in all")
    work = {}
    for name in dict.fromkeys((*WORK, *modules)):
        if name in row:
            work[name] = _count(row[name], f"{where}: {name}", "tokens" if name.endswith("tokens") else "steps")
    if "tokens" in work:
        work["output_tokens"] = work.pop("tokens")
    return arrival, work, _size(row, where)


FORMATS = {
    f.name: f
    for f in (
        Format("azure", (".csv",), ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure, moments=True),
        Format("burstgpt", (".csv",), ("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
        Format("mooncake", (".jsonl",), ("timestamp", "input_length", "output_length"), _mooncake),
        Format("vllm-bench", (".json",), ("start_times", "input_lens", "output_lens"), _bench),
        Format("gentd26", (".csv",), ("gmt_create", "predict_status", "num_inference_steps"), _gentd26, moments=True),
        Format("katz", (".json",), ("timestamp", "scene_id", "base_model_id"), _katz),
        Format("requests", (".txt",), ("timestamp", "steps"), _requests),
        Format("plain", (".csv", ".json", ".jsonl"), ("arrival",), _plain),
    )
}


def entries(
    path: Path,
    modules: Sequence[str] = (),
    form: str = "auto",
    failed: Callable[[int], None] | None = None,
    size: str | None = None,
) -> Iterator[Entry]:
    """The requests of the trace at *path*, in order of arrival; *modules* are columns to read besides the usual ones.

    *form* is a key of `FORMATS`, or "auto". *failed* hears the numbers of the lines that are left out, because their
    requests had failed when the trace was taken. *size* is that of images whose lines say none. Raises `BadInput`
    with the line that is wrong, when it comes to it.
    """
    known = _recognise(path) if form == "auto" else FORMATS[form]
    zero, last = Decimal(0), Decimal("-Infinity")
    seen: set[str] = set()
    for number, row in _lines(path):
        where = f"{path}:{number}"
        if not seen.issuperset(row):
            _check_names(row, where)
            seen.update(row)
        turn = _turn(row, where, known.name)
        stamps = [row.get(name) for name in (known.columns[0], *ARRIVALS)]
        if turn.delay is not None and last.is_finite() and all(stamp in (None, "") for stamp in stamps):
            turn = turn._replace(follows=True)  # it stands after one whose answer it waits for
            row = {name: value for name, value in row.items() if name not in ARRIVALS}
            row[known.columns[0]] = str(last * 1000 if known.name == "mooncake" else last)
        parsed = known.parse(row, where, modules)
        if parsed is None:
            if failed is not None:
                failed(number)
            continue
        moment, work, own_size = parsed
        if not last.is_finite():
            zero = moment
        elif moment < last:
            shown = zero if known.moments else Decimal(0)
            what = f"{float(moment - shown):g} comes after {float(last - shown):g}"
            column = next((name for name in (known.columns[0], *ARRIVALS) if name in row), known.columns[0])
            raise BadInput(what, where=f"{where}: {column}", right="a later time")
        last = moment
        # Stamps are decimal numbers, and their differences are taken as such: a binary epoch has lost microseconds.
        hashes = tuple(row["hash_ids"]) if known.name == "mooncake" and "hash_ids" in row else None
        of_size = own_size or size
        shape = _shape(row, of_size, where) if of_size is not None else None
        yield Entry(number, float(moment - zero), work, own_size, _said(row, where), hashes, shape, turn)


def columns_of(path: Path) -> tuple[str, ...]:
    """The names of what the first request of the trace at *path* says, also of what nobody reads."""
    return tuple(next(_lines(path), (0, {}))[1])


def unknown_columns(path: Path, form: str = "auto") -> tuple[str, ...]:
    """The columns of the trace at *path* that are never read, whatever is asked for, but may be a loop module's. None
    in the formats that others publish, whose further columns say nothing that is simulated."""
    known = _recognise(path) if form == "auto" else FORMATS[form]
    if known.name != "plain":
        return ()
    return tuple(name for name in columns_of(path) if name not in {*ARRIVALS, *WORK, *SIDES, *SHAPES, *TERMS, *TURNS})


def sample(name: str) -> Path:
    """The sample of this name that comes with ServeTwin."""
    if name not in samples():
        raise BadInput(f"unknown sample {name!r}", right=suggest(name, samples()))
    return SAMPLES / name


def samples() -> list[str]:
    """The names of the samples."""
    return sorted(p.name for p in SAMPLES.iterdir() if ending(p) in (".csv", ".json", ".jsonl", ".txt"))


def _lines(path: Path) -> Iterator[Line]:
    if ending(path) == ".json" and bench_file.is_bench(path):
        return iter(bench_file.rows(path))
    if ending(path) == ".json" and katz_file.is_katz(path):
        return katz_file.rows(path)
    reader = {".json": json_lists, ".jsonl": jsonl_lines, ".txt": request_lines}.get(ending(path), csv_lines)
    return reader(path)


def _recognise(path: Path) -> Format:
    """The format whose columns the first line has."""
    if ending(path) == ".json":
        name = "vllm-bench" if bench_file.is_bench(path) else "katz" if katz_file.is_katz(path) else "plain"
        return FORMATS[name]
    if ending(path) == ".txt":
        return FORMATS["requests"]
    if ending(path) == ".jsonl":
        first = next(jsonl_lines(path), None)
        header = list(first[1]) if first is not None else []
    else:
        header = csv_header(path)
    for form in FORMATS.values():
        if all(column in header for column in form.columns):
            return form
    if any(name in header for name in ARRIVALS):
        return FORMATS["plain"]
    raise _no_arrival(header, f"{path}:1", "object" if ending(path) == ".jsonl" else "line")


def _no_arrival(header: list[str], where: str, kind: str) -> BadInput:
    """The error for a first line whose columns are none of a trace."""
    what = f"the first {kind} names no column 'arrival'"
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and mark in header[0]:
            return BadInput(f"its columns are separated by {name}", where=where, right=header[0].replace(mark, ","))
    units = f"{', '.join(ARRIVALS)} (by its unit)"
    called = next((name for name in header if name.lower() in OTHERWISE), None) or closest("arrival", header)
    if called is not None:
        return BadInput(f"{what}, but one {called!r}", where=where, right=f"to call it {units}")
    return BadInput(what, where=where, right=f"arrival,steps; the first is {units}")


#: What others call one of these, or mean by it, in lower case.
NEARLY = {
    **{name + ending: name for name in TERMS for ending in ("", "s", "_name", "_id", "_s", "_ms", "_us", "_seconds")},
    **dict.fromkeys(("deadline", "deadline_s", "deadline_ms", "slo_latency"), "slo"),
    "prio": "priority",
    **dict.fromkeys(("slo_scale", "slo_factors", "slo_scales"), "slo_factor"),
}

#: What the names of such columns are followed by in messages.
MEANT = {
    "slo": "slo, in seconds from arrival to deadline",
    "slo_factor": "slo_factor, a multiple of what the request takes alone",
}

#: The longest name of a class or tenant, and of a session, in characters.
LONGEST_NAME, LONGEST_SESSION = 64, 256


def _check_names(row: Row, where: str) -> None:
    """Raise `BadInput` for a column that is nearly one of `TERMS`: nobody would read it, and nobody would notice."""
    for name in row:
        term = NEARLY.get(re.sub(r"[\s-]+", "_", name.strip().lower()))
        if term is not None and name not in TERMS:
            right = f"to call it {MEANT.get(term, term)}; or to leave it out"
            raise BadInput(f"a column {name!r} would not be read", where=where, right=right)


def _said(row: Row, where: str) -> dict[str, Any]:
    """What *row* says of `TERMS`."""
    said: dict[str, Any] = {}
    for key in TERMS:
        value = row.get(key)
        if value is None or value == "":
            continue
        place = f"{where}: {key}"
        if key in ("class", "tenant"):
            text = str(value).strip()
            if len(text) > LONGEST_NAME or not text.isprintable() or isinstance(value, bool | list | dict):
                raise BadInput(
                    f"{str(value)[:40]!r} is no name", where=place, right=f"{LONGEST_NAME} characters at most"
                )
            if text:
                said[key] = text
        elif key == "priority":
            said[key] = _priority(value, place)
        elif key == "weight":
            said[key] = _positive(value, place, "weight")
            if not WEIGHTS[0] <= said[key] <= WEIGHTS[1]:
                right = f"a number from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}"
                raise BadInput(f"{str(value)[:40]!r} is no weight", where=place, right=right)
        else:
            said[key] = _positive(value, place, "seconds" if key == "slo" else "factor")
    if "slo" in said and "slo_factor" in said:
        raise BadInput("it says slo and slo_factor", where=where, right="one of them")
    return said


def _turn(row: Row, where: str, form: str) -> Turn:
    """What *row* says of sessions: a delay is in milliseconds in Mooncake's format, as AIPerf reads it, else in
    seconds, unless its name says otherwise."""
    name = row.get("session", row.get("session_id"))
    if name is None or name == "":
        return Turn()
    text = str(name).strip()
    if isinstance(name, bool | list | dict) or len(text) > LONGEST_SESSION or not text.isprintable():
        right = f"{LONGEST_SESSION} characters at most"
        raise BadInput(f"{str(name)[:40]!r} is no name of a session", where=f"{where}: session", right=right)
    key = "delay_ms" if "delay_ms" in row else "delay"
    value = row.get(key)
    if value is None or value == "":
        return Turn(text)
    return Turn(text, float(_time(value, f"{where}: {key}", 1000 if key == "delay_ms" or form == "mooncake" else 1)))


def _priority(value: Any, where: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = MOST_COUNT
    if abs(number) >= MOST_COUNT or isinstance(value, bool | float):
        raise BadInput(f"{str(value)[:40]!r} is no priority", where=where, right="a whole number; lower is sooner")
    return number


def _positive(value: Any, where: str, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0.0) or isinstance(value, bool):
        raise BadInput(f"{str(value)[:40]!r} is no {what}", where=where, right="a number above 0")
    return number


def _tokens(row: Row, where: str, given: str, made: str) -> dict[str, int]:
    return {
        "input_tokens": _count(row.get(given), f"{where}: {given}", "tokens", least=0),
        "output_tokens": _count(row.get(made), f"{where}: {made}", "tokens"),
    }


def _time(value: Any, where: str, unit: int = 1) -> Decimal:
    """Seconds of a stamp in a column where so many *unit* make a second."""
    try:
        number = Decimal(str(value).strip())
        size = float(number)
    except InvalidOperation:
        number, size = Decimal(0), math.nan
    if not math.isfinite(size) or size < 0.0 or isinstance(value, bool | list | dict):
        raise BadInput(f"{str(value)[:40]!r} is no time", where=where, right="0 or more")
    if unit > 1 and EPOCH_SECONDS[0] <= size * 1000 / unit < EPOCH_SECONDS[1]:
        what = f"{str(value)[:40]} in {UNITS[unit]} is probably an epoch in {UNITS[unit // 1000]}"
        raise BadInput(what, where=where, right=f"{UNITS[unit]} since the trace began")
    if size / unit >= MOST_SECONDS:
        column = UNITS[unit]
        likely = next((name for digits, name in reversed(EPOCHS) if size < 10.0**digits), None)
        probably = f"it is probably an epoch in {likely}" if likely else "it is no epoch in any unit"
        what = f"{str(value)[:40]} is far too large for {column}: {probably}"
        raise BadInput(what, where=where, right=f"{column}")
    return number / unit if unit != 1 else number


_LONG_FRACTION = re.compile(r"(\.\d{6})\d+")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(value: Any, where: str) -> Decimal:
    """Seconds of a date and time; more digits than microseconds are cut off."""
    try:
        moment = datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", str(value).strip()))
    except ValueError:
        raise BadInput(f"{value!r} is no date and time", where=where, right="2023-11-16 18:15:46.68") from None
    since = moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH
    return Decimal(since // timedelta(microseconds=1)) / 1_000_000


#: No request has that many tokens, steps or pixels.
MOST_COUNT = 1 << 31


def _count(value: Any, where: str, what: str, least: int = 1) -> int:
    whole = what != "tokens" and _is_whole(value)  # 30.0, as tables with gaps have them
    try:
        count = int(float(value)) if whole else int(value)
    except (TypeError, ValueError, OverflowError):
        count = -1
    if not least <= count < MOST_COUNT or isinstance(value, bool) or (isinstance(value, float) and not whole):
        raise BadInput(
            f"{str(value)[:40]!r} is no number of {what}", where=where, right=f"a whole number, {least} or more"
        )
    return count


def _is_whole(value: Any) -> bool:
    """Whether *value* is a whole number with a decimal point."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, str) and re.fullmatch(r"\s*\d{1,10}\.0*\s*", value) is not None


def _size(row: Row, where: str) -> str | None:
    """The size of an image as ``height x width`` without blanks; None where the row says none, or leaves it empty."""
    said = {key for key in ("size", "height", "width") if row.get(key) not in (None, "")}
    text = sides = None
    if "size" in said:
        text = str(row["size"]).strip().lower()
        if not re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8}", text):
            raise BadInput(f"{str(row['size'])[:40]!r} is no size", where=f"{where}: size", right="512x512")
    if ("height" in said) != ("width" in said):
        one, other = ("height", "width") if "height" in said else ("width", "height")
        raise BadInput(f"it says a {one}, and no {other}", where=where, right="height and width, or size")
    if "height" in said:
        height, width = (_count(row[side], f"{where}: {side}", "pixels") for side in ("height", "width"))
        sides = f"{height}x{width}"
    if text is not None and sides is not None and text != sides:
        what = f"its size is {text}, and its height and width are {sides}"
        raise BadInput(what, where=where, right="the same of both, or one of them")
    return text if text is not None else sides


def _shape(row: Row, size: str, where: str) -> Shape:
    """What is said of images of that *size*; what is left empty is the usual."""
    height, width = map(int, size.split("x"))
    said = {}
    for key, what in SHAPES.items():
        value = row.get(key)
        if value is not None and value != "":
            said[key] = _count(value, f"{where}: {key}", what)
    return Shape(height, width, said.get("frames", 1), said.get("guidance"), said.get("images", 1))
