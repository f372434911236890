"""The lines of a trace file, one at a time, each with its number."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from servetwin.core import BadInput
from servetwin.core.files import plain

Row = dict[str, Any]
Line = tuple[int, Row]

#: What a plain trace may call its column of arrivals, and how many of its unit make a second.
ARRIVALS = {"arrival": 1, "arrival_s": 1, "arrival_ms": 1000, "arrival_us": 1_000_000}

#: What else it may say of the work, and of images, of a request.
WORK = ("steps", "tokens", "input_tokens")
SIDES = ("size", "height", "width")
#: What it may say of images beside their size, and what the values count.
SHAPES = {"frames": "frames", "guidance": "rows", "images": "images"}
#: What a trace of any format may say of a request beside its work. An empty value says nothing.
TERMS = ("class", "tenant", "priority", "weight", "slo", "slo_factor")

#: What it may say of sessions: which one a request belongs to, and how long after the answer before it is sent.
TURNS = ("session", "session_id", "delay", "delay_ms")

#: The most bytes that a packed trace may unpack to, and that a .json trace, which is read as a whole, may have.
MOST_UNPACKED = 4 << 30
MOST_WHOLE = 256 << 20
#: The most characters of a line: nothing that people publish comes near.
MOST_LINE = 16 << 20


class _Unpacked(io.RawIOBase):
    """The bytes of a .gz file, of which so many at most: a small file can unpack to more than any disk holds."""

    def __init__(self, path: Path, most: int) -> None:
        self.where, self.most, self.left = str(path), most, most
        self.packed = gzip.open(plain(path), "rb")  # noqa: SIM115 (closed with this object)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        read = self.packed.readinto(view)
        self.left -= read
        if self.left < 0:
            what = f"the trace unpacks to more than {self.most >> 20} MiB"
            raise BadInput(what, where=self.where, right="a smaller part of it, or the unpacked file")
        return read

    def close(self) -> None:
        self.packed.close()
        super().close()


def ending(path: Path) -> str:
    """The ending that tells what a file holds: that before ``.gz`` where it is packed."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


@contextmanager
def opened(path: Path, most: int = MOST_UNPACKED) -> Iterator[IO[str]]:
    """*path* as text, unpacked if its name ends in ``.gz``. Raises `BadInput` if it cannot be read."""
    try:
        with _text(path, most) as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise BadInput("the file is no gzip file, or not whole", where=str(path)) from None
    except FileNotFoundError:
        raise BadInput("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise BadInput("this is a folder, not a file", where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("this is not a text file (UTF-8)", where=str(path)) from None
    except OSError as error:
        raise BadInput(error.strerror or "the file cannot be read", where=str(path)) from None


def _text(path: Path, most: int) -> IO[str]:
    if path.suffix != ".gz":
        return plain(path).open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(io.BufferedReader(cast(io.RawIOBase, _Unpacked(path, most))), "utf-8-sig", newline="")


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines, none of which may be so long that reading it would take all memory."""
    number = 0
    while text := file.readline(MOST_LINE):
        number += 1
        if len(text) == MOST_LINE:
            raise BadInput(f"the line has more than {MOST_LINE} characters", where=f"{path}:{number}")
        yield text


def _rows(file: IO[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(file, path))
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise BadInput(f"no valid CSV: {error}", where=f"{path}:{reader.line_num}") from None


def csv_header(path: Path) -> list[str]:
    """The names of the columns."""
    with opened(path) as file:
        return [name.strip() for name in next(_rows(file, path), (0, []))[1]]


def csv_lines(path: Path) -> Iterator[Line]:
    """The rows of a CSV file by column name; empty lines are passed over."""
    with opened(path) as file:
        rows = _rows(file, path)
        header = [name.strip() for name in next(rows, (0, []))[1]]
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise BadInput(f"column {twice!r} stands twice", where=f"{path}:1", right="a name for each column")
        for number, values in rows:
            if not values:
                continue
            if len(values) != len(header):
                right = f"{len(header)} values: {','.join(header)}"
                raise BadInput("the line does not fit the header", where=f"{path}:{number}", right=right)
            yield number, dict(zip(header, values, strict=True))


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """The object of these *pairs*. Raises `ValueError` for a key that stands twice: a value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def strict_json(text: str) -> Any:
    """The value of *text*, which is JSON as its standard (RFC 8259) has it. Raises `ValueError` for anything else,
    NaN and Infinity too, which Python takes, and for a key that stands twice."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def jsonl_lines(path: Path, *, strict: bool = False) -> Iterator[Line]:
    """The objects of a file with one on each line; empty lines are passed over. *strict*: as `strict_json`."""
    with opened(path) as file:
        for number, text in enumerate(_lines(file, path), 1):
            if not text.strip():
                continue
            try:
                row = strict_json(text) if strict else json.loads(text, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                what = getattr(error, "msg", str(error))
                raise BadInput(f"no valid JSON: {what}", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise BadInput("the line is no object", where=f"{path}:{number}", right='{"arrival": 0.5, ...}')
            yield number, row


#: What the lines of a list of requests call what a plain trace calls otherwise.
CALLED = {"num_inference_steps": "steps", "num_frames": "frames", "num_images_per_prompt": "images"}


def request_lines(path: Path) -> Iterator[Line]:
    """The requests of a file with one on each line, written as Python shows such an object: ``Request(height=512,
    ...)``; empty lines are passed over. Their ``slo_ms`` becomes ``slo`` in seconds."""
    with opened(path) as file:
        for number, text in enumerate(_lines(file, path), 1):
            if not text.strip():
                continue
            try:
                call = ast.parse(text.strip(), mode="eval").body
                if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "Request":
                    raise ValueError
                if any(word.arg is None for word in call.keywords):
                    raise ValueError
                row = _once([(str(word.arg), ast.literal_eval(word.value)) for word in call.keywords])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                right = "Request(timestamp=0.5, height=512, width=512, num_inference_steps=28)"
                raise BadInput("the line is no request", where=f"{path}:{number}", right=right) from None
            row = {CALLED.get(name, name): value for name, value in row.items()}
            limit = row.pop("slo_ms", None)
            if limit is not None:
                if isinstance(limit, bool) or not isinstance(limit, int | float):
                    raise BadInput(f"{limit!r} is no time", where=f"{path}:{number}: slo_ms", right="milliseconds")
                row["slo"] = limit / 1000.0
            yield number, row


def json_lists(path: Path) -> Iterator[Line]:
    """The places of the lists in a JSON object, which is read as a whole; numbered from 1, as lines are."""
    with opened(path, MOST_WHOLE) as file:
        try:
            data = json.load(file, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise BadInput(f"no valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
        except (UnicodeDecodeError, OSError):
            raise
        except (ValueError, RecursionError) as error:
            raise BadInput(f"no valid JSON: {error}", where=str(path)) from None
    right = '{"arrival": [...], "steps": [...]}'
    if isinstance(data, list):
        what = "it is a list, not an object that holds lists"
        raise BadInput(what, where=str(path), right=f"{right}; or a file .jsonl with an object on each line")
    lists = {k: v for k, v in data.items() if isinstance(v, list)} if isinstance(data, dict) else {}
    arrival = next((name for name in ARRIVALS if name in lists), None)
    if arrival is None:
        raise BadInput("there is no list 'arrival'", where=str(path), right=right)
    for name in (*WORK, *SIDES, *SHAPES, *TERMS):
        if name in data and name not in lists:
            raise BadInput(f"{name} is no list", where=str(path), right=f"a list as long as {arrival}")
    for name, values in lists.items():
        if len(values) != len(lists[arrival]):
            what = f"{name} has {len(values)} values, but {arrival} has {len(lists[arrival])}"
            raise BadInput(what, where=str(path), right="lists of one length")
    for i in range(len(lists[arrival])):
        yield i + 1, {name: values[i] for name, values in lists.items()}
