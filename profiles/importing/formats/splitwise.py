"""Splitwise's table of requests' times (perf_model.csv): by model, GPU, batch and tensor parallelism.

Rows are of a *batch_size* of requests with *prompt_size* tokens each that generate *token_size* tokens: *prompt_time*
and *token_time* in milliseconds. A decode step of it has, on average, half of the output in its context beside
the prompt. Nothing in it is of steps that do both, or of chunks.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from servetwin.core import BadInput

from ...llm.architectures import Architecture
from ..devices import device
from ..imported import Imported
from ..settings import Option, Settings

OPTIONS: Mapping[str, Option[Any]] = {
    "model": Option("", "the model as the table calls it: llama2-70b or bloom-176b"),
    "hardware": Option("", "the GPU as the table calls it: a100-80gb, h100-80gb, ..."),
}

COLUMNS = ("model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time")
#: The models of the table, by their published configurations; BLOOM has a token's query, key and value in each head.
SHAPES = {
    "llama2-70b": Architecture(
        layers=80, hidden=8192, heads=64, kv_heads=8, feed_forward=28672, vocabulary=32000, positions=4096,
        parameters=68976648192,
    ),
    "bloom-176b": Architecture(
        layers=70, hidden=14336, heads=112, kv_heads=112, feed_forward=57344, vocabulary=250880, positions=2048,
        parameters=176247271424, gated=False,
    ),
}  # fmt: skip

UNLIKE = (
    "Times of whole requests served batch by batch, not of steps: nothing of chunks, of steps that do both (the pass "
    "of all tokens and the attention of a decode of its own stand for them), of the host, or of CUDA graphs."
)


def read(source: str, settings: Settings) -> Imported:
    """The rows of the file *source* that are of the model, the hardware and the parallelism. Raises `BadInput`."""
    told = settings.known(OPTIONS)
    path = Path(source)
    rows = _rows(path)
    chosen = {}
    for name, kind in (("model", "model"), ("hardware", "hardware")):
        there = sorted({row[kind] for row in rows})
        if told[name] not in there:
            what = f"nothing in it is of {told[name]!r}" if told[name] else "it holds several"
            raise BadInput(what, where=f"--set {name}", right=f"one of {', '.join(there)}")
        chosen[kind] = told[name]
    parallel = settings.tensor_parallel_size
    mine = [row for row in rows if all(row[k] == v for k, v in chosen.items())]
    sizes = sorted({int(row["tensor_parallel"]) for row in mine})
    mine = [row for row in mine if int(row["tensor_parallel"]) == parallel]
    if not mine:
        right = f"one of {', '.join(map(str, sizes))}"
        raise BadInput(f"nothing in it is of {parallel} devices", where="--tensor-parallel-size", right=right)
    most = max(int(row["batch_size"]) for row in mine)
    if settings.max_num_seqs > most:
        what = f"its batches reach {most}"
        raise BadInput(what, where="--max-num-seqs", right=f"{most} at most")
    shape = SHAPES.get(chosen["model"])
    known = device(settings.device or chosen["hardware"])
    spread = _spread(mine)
    return Imported(
        model=_model(mine, path),
        kind="imported",
        source=f"Splitwise's table of {chosen['model']} on {parallel} {chosen['hardware']}",
        known_error=f"its authors' table repeats itself within {spread:.1f} % (median of the spreads); against an "
        "engine of today it was not compared",
        architecture=chosen["model"],
        shape=shape,
        device=known.name,
        memory_gib=known.memory_gib,
        origin={"repository": "https://github.com/Mutinifni/splitwise-sim", "licence": "MIT"},
        engine="vLLM, as Splitwise measured it (ISCA'24)",
        unlike=UNLIKE,
        precision="fp16",
        step_includes="times of requests by their authors' clock",
    )


def _model(rows: list[dict[str, str]], path: Path) -> dict[str, Any]:
    prompts: dict[tuple[int, int], list[float]] = {}
    decodes: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        n, size, out = (int(row[name]) for name in ("batch_size", "prompt_size", "token_size"))
        prompts.setdefault((n * size, n), []).append(float(row["prompt_time"]) / 1e3)
        if out > 1:
            at = decodes.setdefault(n, {}).setdefault(size + out // 2, [])
            at.append(float(row["token_time"]) / 1e3)
    source = {"file": path.name}
    statistic = "median of the rows"
    totals: dict[int, list[float]] = {}
    for (total, n), found in prompts.items():
        if n == 1 or total not in {t for t, m in prompts if m == 1}:
            totals.setdefault(total, []).extend(found)
    tokens = sorted(totals)
    batch = sorted(decodes)
    lengths = {n: {k: median(times) for k, times in decodes[n].items()} for n in batch}
    alone = lengths[batch[0]]
    each = sorted(alone)
    slope = _slope(alone)
    surface = []
    for n in batch:
        # Larger batches were measured at one length. A token more in a sequence's context takes what it takes one
        # alone, by a line through its times: the noise of single times would be multiplied by the sequences.
        own, first = lengths[n], min(lengths[n])
        surface.append([own.get(k, max(own[first] + n * slope * (k - first), alone[each[0]])) for k in each])
    return {
        "prefill": {
            "tokens": [1, *tokens],  # fewer than the table's take what its fewest do
            "seconds": [[_rounded(median(totals[n])) for n in (tokens[0], *tokens)]],
            "between": "line",
            "statistic": statistic,
            "source": source,
        },
        "surface": {
            "batch": batch,
            "per_sequence": each,
            "seconds": [[_rounded(x) for x in row] for row in surface],
            "statistic": statistic,
            "source": source,
        },
    }


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.6g}")


def _slope(times: Mapping[int, float]) -> float:
    """Seconds that a token more takes, by least squares through *times*; not less than none."""
    xs, ys = list(times), list(times.values())
    return max(linear_regression(xs, ys).slope, 0.0) if len(xs) > 1 else 0.0


def _spread(rows: list[dict[str, str]]) -> float:
    """Median over places of the largest over the smallest prompt time, less one, in percent."""
    by_place: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        place = tuple(row[name] for name in ("prompt_size", "batch_size", "token_size"))
        by_place.setdefault(place, []).append(float(row["prompt_time"]))
    return 100 * median(max(found) / min(found) - 1 for found in by_place.values())


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            for name in (*COLUMNS, "tensor_parallel"):
                if name not in header:
                    raise BadInput(f"column {name!r} is missing", where=f"{path}:1", right=", ".join(COLUMNS))
            rows = []
            for row in reader:
                where = f"{path}:{reader.line_num}"
                for name in (*COLUMNS[2:], "tensor_parallel"):
                    _check(row.get(name), name, where)
                rows.append(row)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error):
        raise BadInput("is no CSV file (UTF-8)", where=str(path)) from None
    return rows


def _check(text: str | None, name: str, where: str) -> None:
    count = not name.endswith("_time")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf or (count and not value.is_integer()):
        right = "a whole number, 1 or more" if count else "milliseconds, above 0"
        raise BadInput(f"{name}: {text!r} does not fit", where=where, right=right)
