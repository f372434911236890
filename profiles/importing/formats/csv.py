"""A table of times of steps: kind,tokens,prompts,context,batch,per_sequence,seconds (kind: prefill, decode, mixed).

What a kind has not stays empty. A *prefill* row is a step of *tokens* tokens in all, of so many *prompts* (empty: 1),
with so many tokens of *context* before them (empty or 0: whole prompts); a *decode* row is a step of *batch*
sequences of *per_sequence* tokens each; a *mixed* row is both in one step. Rows of the same place are samples, of
which the median counts. Decode rows are a full grid, and so are prefill rows with context, and mixed ones.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from servetwin.core import BadInput

from ...llm.hf_config import shape_of
from ..devices import device
from ..grids import tables
from ..imported import Imported, Places
from ..plausible import at_peak, check_time
from ..settings import Option, Settings

OPTIONS: Mapping[str, Option[Any]] = {}

COLUMNS = ("kind", "tokens", "prompts", "context", "batch", "per_sequence", "seconds")
#: What each kind needs, and what it may have.
NEEDS = {"prefill": ("tokens",), "decode": ("batch", "per_sequence"), "mixed": ("tokens", "batch", "per_sequence")}
MAY = {"prefill": ("prompts", "context"), "decode": (), "mixed": ("context",)}

#: (tokens, prompts, context, batch, per_sequence).
Place = tuple[int, int, int, int, int]


def read(source: str, settings: Settings) -> Imported:
    """The rows of the file *source*. Raises `BadInput`."""
    steps = Rows(Path(source))
    if settings.model is None or settings.device is None:
        missing = "--model" if settings.model is None else "--device"
        raise BadInput("a table of times does not say it", where=missing, right="the model, and the device, by name")
    name, shape = shape_of(settings.model)
    known = device(settings.device)
    for place, seconds in steps.times.items():
        tokens, _, _, batch, each = place
        sizes = {"tokens": tokens, "batch": batch, "per_sequence": each}
        check_time(seconds, at_peak(shape, known, settings.tensor_parallel_size, **sizes), steps.where[place])
    return Imported(
        model=tables(steps, steps.places(), statistic="median of the rows", file=Path(source).name),
        kind="imported",
        source=f"the times in {Path(source).name}",
        known_error="not known: the file does not say how they were measured",
        architecture=name,
        shape=shape,
        device=known.name,
        memory_gib=known.memory_gib,
        origin={"repository": "a CSV file of the user's"},
        engine="not stated",
        unlike="Only what the rows hold: nothing of the host, of launches, or of sequences of unlike lengths.",
        step_includes="not stated",
    )


class Rows:
    """`servetwin.profiles.importing.imported.Steps` at the places that the rows of a file are of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        samples: dict[Place, list[float]] = {}
        self.where: dict[Place, str] = {}  # the first row of each place
        for where, place, seconds in _rows(path):
            samples.setdefault(place, []).append(seconds)
            self.where.setdefault(place, where)
            self._check(place, where)
        self.times = {place: median(found) for place, found in samples.items()}

    def _check(self, place: Place, where: str) -> None:
        tokens, prompts, context, *_ = place
        if tokens and prompts > tokens:
            raise BadInput(f"{prompts} prompts of {tokens} tokens", where=where, right="a token each at least")
        if context and prompts > 1:
            raise BadInput("several prompts, and context before them", where=where, right="one chunk")

    def places(self) -> Places:
        """The axes that the rows span. Raises `BadInput` for a kind that is missing, or for gaps."""
        whole = {(t, p) for t, p, c, n, _ in self.times if t and not c and not n}
        chunks: set[tuple[int, ...]] = {(t, c) for t, _, c, n, _ in self.times if t and c and not n}
        decode: set[tuple[int, ...]] = {(n, k) for t, _, _, n, k in self.times if n and not t}
        mixed: set[tuple[int, ...]] = {(t, c, n, k) for t, _, c, n, k in self.times if t and n}
        for rows, what in ((whole, "prefill"), (decode, "decode")):
            if not rows:
                raise BadInput(f"there is no {what} row", where=str(self.path), right="prefill and decode rows")
        prompts = sorted({p for _, p in whole})
        tokens = sorted({t for t, _ in whole})
        gaps = [(t, p) for p in prompts for t in tokens if t >= p and (t, p) not in whole]
        if gaps or prompts[0] != 1:
            (t, p), *_ = gaps or [(tokens[0], 1)]
            raise BadInput(f"no prefill row of {t} tokens in {p} prompts", where=str(self.path), right="a full grid")
        over, both = (self._grid(rows, what) for rows, what in ((chunks, "chunk"), (mixed, "mixed")))
        batch, each = self._grid(decode, "decode")
        empty: Sequence[int] = ()
        return Places(
            tokens=tokens,
            prompts=prompts,
            chunks=over[0] if over else empty,
            context=[0, *over[1]] if over else (0,),
            batch=batch,
            each=each,
            mixed_chunks=both[0] if both else empty,
            mixed_context=both[1] if both else (0,),
            mixed_batch=both[2] if both else empty,
            mixed_each=both[3] if both else empty,
        )

    def _grid(self, rows: set[tuple[int, ...]], what: str) -> list[list[int]]:
        """The axes of *rows*, which are a full grid of *what*."""
        axes = [sorted(set(column)) for column in zip(*rows, strict=True)]
        if rows and len(rows) < math.prod(map(len, axes)):
            lacks = math.prod(map(len, axes)) - len(rows)
            text = f"{what} rows: {lacks} of {lacks + len(rows)} places are missing"
            raise BadInput(text, where=str(self.path), right="a row for each of their values with each other")
        return axes

    def whole(self, tokens: int, prompts: int) -> float:
        return self.times[tokens, prompts, 0, 0, 0]

    def chunk(self, tokens: int, context: int) -> float:
        return self.times[tokens, 1, context, 0, 0]

    def decode(self, batch: int, per_sequence: int) -> float:
        return self.times[0, 0, 0, batch, per_sequence]

    def mixed(self, tokens: int, context: int, batch: int, per_sequence: int) -> float:
        return self.times[tokens, 1, context, batch, per_sequence]


def _rows(path: Path) -> list[tuple[str, Place, float]]:
    """(where it stands, place, seconds) of each row. Raises `BadInput`."""
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if header != list(COLUMNS):
                first = ",".join(header)[:60] or "nothing"
                raise BadInput(f"the first line says {first}", where=f"{path}:1", right=",".join(COLUMNS))
            for row in reader:
                if row:
                    where = f"{path}:{reader.line_num}"
                    found.append((where, *_parsed([cell.strip() for cell in row], where)))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error):
        raise BadInput("is no CSV file (UTF-8)", where=str(path)) from None
    return found


def _parsed(row: list[str], where: str) -> tuple[Place, float]:
    if len(row) != len(COLUMNS):
        raise BadInput(f"{len(row)} values", where=where, right=",".join(COLUMNS))
    cells = dict(zip(COLUMNS, row, strict=True))
    kind = cells["kind"]
    if kind not in NEEDS:
        raise BadInput(f"kind: {kind!r} is none", where=where, right=", ".join(NEEDS))
    counts = {"prompts": 1 if kind != "decode" else 0}
    for name in COLUMNS[1:-1]:
        text = cells[name]
        if not text and name not in NEEDS[kind]:
            continue
        least = 0 if name == "context" else 1
        if not text.isascii() or not text.isdigit() or not least <= int(text) < 10**8:
            raise BadInput(f"{name}: {text!r} is no count", where=where, right=f"a whole number, {least} or more")
        if name not in (*NEEDS[kind], *MAY[kind]):
            raise BadInput(f"{name} of a {kind} row", where=where, right="nothing there")
        counts[name] = int(text)
    try:
        seconds = float(cells["seconds"])
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadInput(f"seconds: {cells['seconds']!r} is no time", where=where, right="seconds, above 0")
    tokens, prompts, context, batch, each = (counts.get(name, 0) for name in COLUMNS[1:-1])
    return (tokens, prompts, context, batch, each), seconds
