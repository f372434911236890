"""Files of JSON with a line for each record, in the very bytes of ``json.dumps``, at a fraction of its cost.

``json.dumps`` takes a microsecond for each number with decimals; pydantic's serializer, which is written in Rust,
takes a tenth. It writes the same digits, but no spaces, and small numbers in another notation. What may stand in a
text as well as between values is not told apart here: records in which a text holds such characters, and numbers for
which the notations differ in more than a zero, are left to ``json.dumps``.

Of many records that differ in some of their values alone, these stand in columns (`Column`): the rest is made into
text once for all of them (`lines_of`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: So many records are made into lines at once. A killed process loses no more than that, and no line in part.
AT_ONCE = 16

#: What a text may hold without being taken for what stands between values.
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_ ./()%+-"

#: ``1e-7``, which `json.dumps` writes as ``1e-07``. (Behind a text stands a quotation mark.)
_ONE_DIGIT = re.compile(rb"e-([0-9][,\]}])")

#: What a serializer must make of these numbers, for its lines to be those of ``json.dumps`` in the end.
_NUMBERS: tuple[tuple[object, bytes], ...] = (
    ([0.1, 1.0, -0.0, None, True, 5, 1 / 3], b"[0.1,1.0,-0.0,null,true,5,0.3333333333333333]"),
    ([1e15, 1e16, 1e22, 123456789012345680.0], b"[1000000000000000.0,1e+16,1e+22,1.2345678901234568e+17]"),
    ([0.0001, 1.5e-7, 1.5e-10, 5e-324], b"[0.0001,1.5e-7,1.5e-10,5e-324]"),
    ([float("nan"), float("inf"), float("-inf")], b"[NaN,Infinity,-Infinity]"),
    ({"a": {"b": [1]}}, b'{"a":{"b":[1]}}'),
)


#: Numbers from this one on are written as `json.dumps` does.
_NOT_SMALL = 0.0001

#: Stands for a column in the text that all of its records share.
_HOLE = "\0column\0"


class Column:
    """What stands at one place of many records: the JSON *texts* of its values. (Of numbers an array will do.)"""

    __slots__ = ("texts",)

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts


def texts_of(numbers: Sequence[float | int]) -> list[bytes]:
    """Each of *numbers* as ``json.dumps`` writes it."""
    serialize = _serializer()
    if serialize is None or not numbers:
        return [json.dumps(number).encode("ascii") for number in numbers]
    texts = serialize([*numbers])[1:-1].split(b",")
    if not min(numbers) >= _NOT_SMALL:
        for place, number in enumerate(numbers):
            if -_NOT_SMALL < number < _NOT_SMALL and number:
                texts[place] = json.dumps(number).encode("ascii")
    return texts


def lines_of(record: Any) -> list[bytes]:
    """The lines of the records that *record* stands for: in place of each value that differs between them it holds
    an array of numbers or a `Column`, all of them equally long."""
    texts: dict[int, Sequence[bytes]] = {}  # of each array once, wherever it stands
    columns: list[Sequence[bytes]] = []

    def hole(value: Any) -> str:
        if isinstance(value, Column):
            columns.append(value.texts)
        elif isinstance(value, np.ndarray):
            if id(value) not in texts:
                texts[id(value)] = texts_of(value.tolist())
            columns.append(texts[id(value)])
        else:
            raise TypeError(f"JSON has nothing for {value!r}")
        return _HOLE

    text = json.dumps(record, default=hole).replace("%", "%%").replace(json.dumps(_HOLE), "%b") + "\n"
    line = text.encode("ascii")
    return [line % row for row in zip(*columns, strict=True)]


class JsonLines:
    """Writes records to the file at *path*, which is made anew. Raises `OSError` if that cannot be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self._waiting: list[Any] = []
        self._serialize = _serializer()

    def add(self, record: Any) -> None:
        """Write *record*, which nobody may change any more: now, or with the next ones."""
        waiting = self._waiting
        waiting.append(record)
        if len(waiting) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises `TypeError` if JSON has nothing for it."""
        if self._waiting:
            lines = self._lines(self._waiting)
            self._waiting = []
            self._write(lines)

    def add_lines(self, lines: Sequence[bytes]) -> None:
        """Write *lines*, as `lines_of` gives them, after all that was added before."""
        self.flush()
        self._write(b"".join(lines))

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        try:
            while rest:  # of what a disk has no room for, it may take a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            error.filename = str(self._path)  # which the system does not say of a file that is open
            raise

    def close(self) -> None:
        """Write what waits, and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()

    def _lines(self, records: Sequence[Any]) -> bytes:
        if self._serialize is None:
            return _by_json(records)
        serialize = self._serialize
        try:
            text = b"\n".join([serialize(record) for record in records])
        except ValueError:
            return _by_json(records)
        # 0.00001 is 1e-05 for `json.dumps`.
        if b"0.0000" in text or not _all_plain(text):
            return _by_json(records) if len(records) == 1 else b"".join([self._lines([r]) for r in records])
        if b"e-" in text:
            text = _ONE_DIGIT.sub(rb"e-0\1", text)
        return text.replace(b",", b", ").replace(b":", b": ") + b"\n"


def _all_plain(text: bytes) -> bool:
    """Whether all texts in *text*, which has no spaces between values, are plain: then nothing is left between their
    quotation marks when what is plain is taken out. Two texts never stand side by side."""
    return b'"' not in text.translate(None, _PLAIN).replace(b'""', b"")


def _by_json(records: Sequence[Any]) -> bytes:
    return "".join([json.dumps(record) + "\n" for record in records]).encode("ascii")


@cache
def _serializer() -> Callable[[Any], bytes] | None:
    """Pydantic's serializer, if it is there and writes as is counted on here."""
    try:
        from pydantic_core import to_json
    except ImportError:  # `servetwin.core` does without pydantic
        return None
    return to_json if all(to_json(value) == written for value, written in _NUMBERS) else None
