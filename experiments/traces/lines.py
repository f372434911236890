"""The lines of a trace file, one at a time, each with its number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from servetwin.core import BadInput

Row = dict[str, Any]
Line = tuple[int, Row]


@contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """*path* as text. Raises `BadInput` if it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError:
        raise BadInput("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise BadInput("this is a folder, not a file", where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("this is not a text file (UTF-8)", where=str(path)) from None
    except OSError as error:
        raise BadInput(error.strerror or "the file cannot be read", where=str(path)) from None


def csv_header(path: Path) -> list[str]:
    """The names of the columns."""
    with opened(path) as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def csv_lines(path: Path) -> Iterator[Line]:
    """The rows of a CSV file by column name; empty lines are passed over."""
    with opened(path) as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise BadInput(f"column {twice!r} stands twice", where=f"{path}:1", right="a name for each column")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                right = f"{len(header)} values: {','.join(header)}"
                where = f"{path}:{reader.line_num}"
                raise BadInput("the line does not fit the header", where=where, right=right)
            yield reader.line_num, dict(zip(header, values, strict=True))


def jsonl_lines(path: Path) -> Iterator[Line]:
    """The objects of a file with one on each line; empty lines are passed over."""
    with opened(path) as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise BadInput(f"no valid JSON: {error.msg}", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise BadInput("the line is no object", where=f"{path}:{number}", right='{"arrival": 0.5, ...}')
            yield number, row


def json_lists(path: Path) -> Iterator[Line]:
    """The places of the lists in a JSON object, which is read as a whole; numbered from 0."""
    with opened(path) as file:
        try:
            data = json.load(file)
        except json.JSONDecodeError as error:
            raise BadInput(f"no valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    if not isinstance(data, dict) or not isinstance(data.get("arrival"), list):
        raise BadInput("there is no list 'arrival'", where=str(path), right='{"arrival": [...], "steps": [...]}')
    lists = {k: v for k, v in data.items() if isinstance(v, list)}
    for name, values in lists.items():
        if len(values) != len(lists["arrival"]):
            what = f"{name} has {len(values)} values, but arrival has {len(lists['arrival'])}"
            raise BadInput(what, where=str(path), right="lists of one length")
    for i in range(len(lists["arrival"])):
        yield i, {name: values[i] for name, values in lists.items()}
