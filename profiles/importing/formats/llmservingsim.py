"""LLMServingSim 2's tables of one layer: a folder with dense.csv, per_sequence.csv, attention.csv and meta.yaml.

A step is the embedding, all layers, the last norm, the head and the sampler. Each part was timed alone, as vLLM runs
it without CUDA graphs. dense.csv holds parts by the tokens in a step, per_sequence.csv those that come once for each
sequence, attention.csv one layer's attention by prompt chunk, tokens before it, sequences that decode and their
length. So the attention of a step that does both is read off as it was measured, not made of the two.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ...llm.hf_config import shape_of
from ...tables.latency_table import interpolate
from ...tables.loading import read_mapping
from ..devices import device
from ..grids import padded, tables, up_to
from ..imported import Imported, Places
from ..settings import Option, Settings

OPTIONS: Mapping[str, Option[Any]] = {}

#: Parts by the tokens in a step: how often a layer has them, and those that come once.
LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
ONCE = ("embedding", "final_layernorm")
#: Parts by sequences.
SEQUENCE = ("lm_head", "sampler")

KNOWN_ERROR = (
    "on the one run that they come with (Llama-3.1-8B, RTX 4090) mean ttft, tpot and e2el by this profile are off by "
    "1.3, 0.7 and 0.8 % (servetwin score experiments/measured/rtx4090); LLMServingSim's own figures on it are 0.6, "
    "0.2 and 0.5 %"
)
UNLIKE = (
    "Parts were timed one by one without CUDA graphs and torch.compile; gaps between kernels, fused kernels, "
    "sequences of unlike lengths and the host's part are not in them. Several prompts in a step: the first takes "
    "what it takes alone, the others what they take of a device that is full."
)


def read(source: str, settings: Settings) -> Imported:
    """The tables in the folder *source*. Raises `BadInput`."""
    folder = Path(source)
    if not folder.is_dir():
        raise BadInput("is no folder", where=source, right="one with dense.csv, per_sequence.csv, attention.csv")
    meta = read_mapping(folder / "meta.yaml")
    if settings.tensor_parallel_size != 1 or folder.name not in ("tp1", folder.name.removeprefix("tp")):
        what = "its tables hold no communication between devices"
        raise BadInput(what, where=source, right="the folder tp1, and --tensor-parallel-size 1")
    name, shape = shape_of(settings.model or str(meta.get("model")))
    known = device(settings.device or str(meta.get("gpu")))
    steps = Layers(folder, shape.layers, settings)
    file = f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name}"
    return Imported(
        model=tables(steps, steps.places(settings), statistic="sum of the parts' means", file=file),
        kind="imported",
        source=f"LLMServingSim's tables of {meta.get('gpu')} (vLLM {meta.get('vllm_version')}), part by part",
        known_error=KNOWN_ERROR,
        architecture=name,
        shape=shape,
        device=known.name,
        memory_gib=known.memory_gib,
        origin={"repository": "https://github.com/casys-kaist/LLMServingSim", "licence": "MIT"},
        engine=f"vLLM {meta.get('vllm_version')}",
        unlike=UNLIKE,
        measured_when=str(meta.get("profiled_at", "not stated"))[:10],
    )


class Layers:
    """`servetwin.profiles.importing.imported.Steps` of a model of so many *layers*, made of its parts."""

    def __init__(self, folder: Path, layers: int, settings: Settings) -> None:
        dense = _by_part(folder / "dense.csv", "tokens", (*LAYER, *ONCE))
        sizes = sorted(set.intersection(*(set(part) for part in dense.values())))
        once = [float_sum(dense[part][n] for part in ONCE) for n in sizes]
        each = [float_sum(times * dense[part][n] for part, times in LAYER.items()) for n in sizes]
        self.sizes, self._dense = sizes, [a + layers * b for a, b in zip(once, each, strict=True)]
        rows = _by_part(folder / "per_sequence.csv", "sequences", SEQUENCE)
        self._counts = sorted(set(rows["lm_head"]) & set(rows["sampler"]))
        self._heads = [float_sum(rows[part][n] for part in SEQUENCE) for n in self._counts]
        self.attention = Attention(folder / "attention.csv")
        self.layers, self.graphs = layers, settings.graphs

    def places(self, settings: Settings) -> Places:
        """Where these tables say something: nothing beyond them is asked for."""
        axes = self.attention.axes
        most = min(settings.max_num_batched_tokens, self.sizes[-1])
        if most < settings.max_num_batched_tokens:
            what = f"the tables reach steps of {self.sizes[-1]} tokens"
            raise BadInput(what, where="--max-num-batched-tokens", right=f"{self.sizes[-1]} at most")
        largest = min(settings.max_num_seqs, self.attention.most, self._counts[-1])
        if largest < settings.max_num_seqs:
            what = f"the tables reach {largest} sequences that decode"
            raise BadInput(what, where="--max-num-seqs", right=f"{largest} at most")
        lengths = [k for k in axes[3] if k]
        batch = sorted({n for n in (*self.graphs, *axes[2], largest) if 0 < n <= largest})
        return Places(
            tokens=padded([n for n in self.graphs if n <= most], most, lambda n: 16 if n < 1024 else 32),
            prompts=[1, 2, 4, 8, 16, 32],
            chunks=up_to([n for n in axes[0] if n], most),
            context=axes[1],
            batch=batch,
            each=lengths,
            mixed_chunks=up_to([n for n in axes[0] if n], most),
            mixed_context=axes[1][::2],
            mixed_batch=[n for n in axes[2] if 0 < n <= largest],
            mixed_each=lengths,
        )

    def _rest(self, tokens: int, sequences: int) -> float:
        """Microseconds of all but the attention; tokens are padded to the next CUDA graph."""
        at = bisect_left(self.graphs, tokens)
        tokens = self.graphs[at] if at < len(self.graphs) else tokens
        return interpolate(tokens, self.sizes, self._dense) + interpolate(
            min(sequences, self._counts[-1]), self._counts, self._heads
        )

    def whole(self, tokens: int, prompts: int) -> float:
        one = self.attention(tokens // prompts or 1, 0, 0, 0)
        more = (prompts - 1) * (tokens / prompts) ** 2 * self.attention.rate
        return 1e-6 * (self._rest(tokens, prompts) + self.layers * (one + more))

    def chunk(self, tokens: int, context: int) -> float:
        return self.mixed(tokens, context, 0, 0)

    def decode(self, batch: int, per_sequence: int) -> float:
        return 1e-6 * (self._rest(batch, batch) + self.layers * self.attention(0, 0, batch, per_sequence))

    def mixed(self, tokens: int, context: int, batch: int, per_sequence: int) -> float:
        seconds = self.layers * self.attention(tokens, context, batch, per_sequence)
        return 1e-6 * (self._rest(tokens + batch, batch + 1) + seconds)


class Attention:
    """Microseconds of one layer's attention by (chunk, tokens before it, sequences that decode, length of each)."""

    def __init__(self, path: Path) -> None:
        self._times: dict[tuple[int, ...], float] = {}
        for line, cells in _rows(path, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")):
            self._times[tuple(_whole(c, f"{path}:{line}") for c in cells[:4])] = _time(cells[4], f"{path}:{line}")
        self.axes = full_grid(self._times)
        longest = self.axes[0][-1]
        if (longest, 0, 0, 0) not in self._times or not longest:
            raise BadInput("no prompt alone was timed", where=str(path), right="rows with n_decode 0")
        decodes = [place for place in self._times if not place[0]]
        if not decodes:
            raise BadInput("no decode alone was timed", where=str(path), right="rows with prefill_chunk 0")
        self._alone = [sorted({place[i] for place in decodes}) for i in range(4)]
        #: The most sequences that decoded alone.
        self.most = self._alone[2][-1]
        #: For each pair of tokens of a chunk that fills the device.
        self.rate = self._times[longest, 0, 0, 0] / longest**2

    def __call__(self, *place: int) -> float:
        """At a place, on straight lines between those that were timed; level beyond the ends."""
        if place in self._times:
            return self._times[place]
        axes = self.axes if place[0] else self._alone
        for i, x in enumerate(place):
            # 0 is no point of an axis: a step without a chunk, or without decodes, is another kind of step.
            values = [v for v in axes[i] if v or i == 1]
            if x in values or (x == 0 and i != 1):
                continue
            if x <= values[0] or x >= values[-1]:
                return self(*place[:i], values[0] if x <= values[0] else values[-1], *place[i + 1 :])
            at = bisect_left(values, x)
            low, high = values[at - 1], values[at]
            share = (x - low) / (high - low)
            below, above = (self(*place[:i], v, *place[i + 1 :]) for v in (low, high))
            return below + (above - below) * share
        raise BadInput(f"nothing was timed at {place}", where="attention.csv", right="a full grid")


def full_grid(places: Collection[tuple[int, ...]]) -> list[list[int]]:
    """The values of each axis at which *places* are a full grid, of steps with chunks and decodes. A file may hold
    several; of those that some chunk has, the one that spans most. Before the values stands 0 where it is among
    *places*. Raises `BadInput` if there is none."""
    by_chunk: dict[int, set[tuple[int, ...]]] = {}
    for chunk, *rest in places:
        if chunk and rest[1]:
            by_chunk.setdefault(chunk, set()).add(tuple(rest))
    best: tuple[float, list[list[int]]] = (-1.0, [])
    for cells in by_chunk.values():
        axes = [sorted({cell[i] for cell in cells}) for i in range(3)]
        if len(cells) == math.prod(map(len, axes)):
            chunks = sorted(chunk for chunk, other in by_chunk.items() if other >= cells)
            found = [chunks, *axes]
            best = max(best, (float_sum(math.log((axis[-1] + 1) / (axis[0] + 1)) for axis in found), found))
    if not best[1]:
        raise BadInput("chunks beside decodes are no full grid", where="attention.csv", right="a full grid")
    zero = [{place[i] for place in places} & {0} for i in range(4)]
    return [sorted({*axis, *start}) for axis, start in zip(best[1], zero, strict=True)]


def _by_part(path: Path, size: str, parts: Sequence[str]) -> dict[str, dict[int, float]]:
    """Microseconds by part and size. Raises `BadInput` for parts that are missing or not known."""
    found: dict[str, dict[int, float]] = {}
    for line, (part, n, time) in _rows(path, ("layer", size, "time_us")):
        where = f"{path}:{line}"
        if part not in parts:
            raise BadInput(f"unknown layer {part!r}", where=where, right=", ".join(parts))
        found.setdefault(part, {})[_whole(n, where)] = _time(time, where)
    if missing := [part for part in parts if part not in found]:
        raise BadInput(f"layer {missing[0]!r} is missing", where=str(path), right=", ".join(parts))
    return found


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Lines with their numbers. Raises `BadInput`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if header != list(columns):
                first = ",".join(header)[:60] or "nothing"
                raise BadInput(f"the first line says {first}", where=f"{path}:1", right=",".join(columns))
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error):
        raise BadInput("is no CSV file (UTF-8)", where=str(path)) from None
    for line, row in rows:
        if len(row) != len(columns):
            raise BadInput(f"{len(row)} values", where=f"{path}:{line}", right=",".join(columns))
    if not rows:
        raise BadInput("holds no row", where=str(path))
    return rows


def _whole(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 10**8:
        raise BadInput(f"{text!r} is no count", where=where, right="a whole number")
    return int(text)


def _time(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"{text!r} is no time", where=where, right="a number above 0")
    return value
