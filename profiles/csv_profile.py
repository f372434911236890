"""A profile from nothing but a CSV file of latencies, for what somebody has measured in his own way."""

from __future__ import annotations

import csv
import itertools
import math
import re
from pathlib import Path
from statistics import median
from typing import Any

from servetwin.core import BadInput
from servetwin.core.files import plain

COLUMNS = ["module", "batch", "seconds"]


def read_csv(path: Path) -> dict[str, Any]:
    """The content of a profile whose tables are the rows of *path*: ``module,batch,seconds``, in seconds, of one
    iteration for a loop module. Rows of the same module and batch size are samples; the median counts. Raises
    `BadInput`.

    All that a CSV file does not say (device, precision, date) is said not to be known.
    """
    samples: dict[str, dict[int, list[float]]] = {}
    try:
        with plain(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if header != COLUMNS:
                first = ",".join(header) or "nothing"
                raise BadInput(f"the first line says {first[:60]}", where=f"{path}:1", right=",".join(COLUMNS))
            for row in reader:
                if row:
                    module, batch, seconds = _parsed(row, f"{path}:{reader.line_num}")
                    samples.setdefault(module, {}).setdefault(batch, []).append(seconds)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error):
        raise BadInput("is no CSV file (UTF-8)", where=str(path)) from None
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "latencies"
    return {
        "schema_version": 1,
        "name": f"csv/{name}",
        "description": f"latencies of {path.name}",
        "device": {"name": "not stated", "kind": "gpu"},
        "model": "not stated",
        "precision": "not stated",
        "batch_counts": "requests",
        "measured_when": "not stated",
        "origin": {"repository": "a CSV file of the user's"},
        "limits_of_data": "Only latencies by batch size: no costs of joins, transfers or contention.",
        "modules": {module: _module(path, module, by_batch) for module, by_batch in samples.items()},
    }


def _module(path: Path, module: str, by_batch: dict[int, list[float]]) -> dict[str, Any]:
    sizes = sorted(by_batch)
    times = [median(by_batch[size]) for size in sizes]
    for (smaller, less), (size, time) in itertools.pairwise(zip(sizes, times, strict=True)):
        if time < less:
            raise BadInput(
                f"{module}: a batch of {size} takes {time:g} s, one of {smaller} takes {less:g} s",
                where=str(path),
                right="times that do not fall as the batch grows",
            )
    table = {
        "batch": sizes,
        "seconds": times,
        "samples": [len(by_batch[size]) for size in sizes],
        "statistic": "median of the rows",
        "source": {"file": path.name},
    }
    return {"tables": {"scheduler": table}}


def _parsed(row: list[str], where: str) -> tuple[str, int, float]:
    if len(row) != len(COLUMNS):
        raise BadInput(f"{len(row)} values", where=where, right=",".join(COLUMNS))
    module, batch, seconds = (value.strip() for value in row)
    if not batch.isascii() or not batch.isdigit() or not 0 < int(batch) < 10**6:
        raise BadInput(f"batch: {batch!r} is no batch size", where=where, right="a whole number, 1 or more")
    try:
        time = float(seconds)
    except ValueError:
        time = math.nan
    if not 0 < time < math.inf:
        raise BadInput(f"seconds: {seconds!r} is no time", where=where, right="seconds, above 0")
    return module, int(batch), time
