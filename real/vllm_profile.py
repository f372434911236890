"""Measures a language model on vLLM: what its steps take, by what they compute.

Everything is measured with whole engine steps, from the moment the scheduler is asked until the tokens are on the
host, in the process that later serves. `measure` gives the steps as they were; `tokens_section` makes of them what a
profile file says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from servetwin.core.tokens import ALL, Step, TokenPolicy, TokenView

from .vllm_engine import VllmEngine, undisturbed
from .vllm_plan import Planned
from .vllm_scheduler import Settings, StepLog

#: Steps of a kind that are left out before those that count: the first ones after a change are slower.
SETTLE = 2


@dataclass(frozen=True)
class Grid:
    """What to measure; tokens, prompts and sequences. Larger than the engine allows is left out.

    *prefill* are the totals of tokens for *prompts* prompts at a time, *beyond* totals for prompts of *long* tokens.
    *decode* batch sizes run for *steps* steps each at *contexts* tokens. *mixed* are (tokens, sequences). A prompt of
    the longest length is computed in chunks of *chunks* tokens.
    """

    prefill: tuple[int, ...] = (1, 16, 32, *range(64, 2048, 64), 2047)
    prompts: tuple[int, ...] = (1, 4, 16)
    every: int = 2
    beyond: tuple[int, ...] = (2560, 3072, 4096, 5120, 6144, 8192)
    long: tuple[int, ...] = (256, 1024)
    decode: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
    contexts: tuple[int, ...] = (32, 128, 256, 512, 1024, 1900)
    steps: int = 6
    mixed_tokens: tuple[int, ...] = (32, 128, 256, 512, 1024, 1536)
    mixed_sequences: tuple[int, ...] = (1, 8, 32, 64, 128)
    mixed_context: int = 160
    chunks: tuple[int, ...] = (256, 512)
    repeats: int = 3


#: For a CPU and the tiny model.
SMALL = Grid(
    prefill=(1, 16, 64, 128, 256, 384, 512, 768, 1000),
    prompts=(1, 4),
    every=1,
    beyond=(1200, 1600, 2000),
    long=(100,),
    decode=(1, 2, 4, 8, 12, 16, 24, 32),
    contexts=(32, 128, 400),
    steps=12,
    mixed_tokens=(32, 256, 800),
    mixed_sequences=(1, 8, 24),
    mixed_context=60,
    chunks=(128,),
    repeats=4,
)


class Chunked(TokenPolicy):
    """Prefills at most *chunk* tokens of one request a step, decoding beside it or (*alone*) not."""

    def __init__(self, chunk: int, alone: bool = False) -> None:
        self.chunk, self.alone = chunk, alone

    def decide(self, view: TokenView, now: float) -> Step:
        for task in (*view.running, *view.waiting):
            if not task.decoding:
                return Step([(task, min(self.chunk, task.pending))], () if self.alone else ALL)
        return Step((), ALL)


class Together(TokenPolicy):
    """Prefills all that waits, as far as it fits; decodes when nothing does."""

    def decide(self, view: TokenView, now: float) -> Step:
        chunks = view.admissible([(task, task.pending) for task in view.waiting])
        return Step(chunks) if chunks else Step((), ALL)


class Preempting(TokenPolicy):
    """As `Together`, but takes the memory of the newest request every few decode steps."""

    def __init__(self, every: int) -> None:
        self.every, self.count = every, 0

    def decide(self, view: TokenView, now: float) -> Step:
        chunks = view.admissible([(task, task.pending) for task in view.waiting])
        if chunks:
            return Step(chunks)
        self.count += 1
        if self.count % self.every == 0 and len(view.running) > 1:
            return Step((), [], preempt=[next(reversed(view.running))])
        return Step((), ALL)


@dataclass
class Measured:
    """The steps of one kind of measurement, as they came; *intake* holds (prompt tokens, seconds) of the requests
    that were handed to the engine before them."""

    kind: str
    steps: list[StepLog]
    intake: list[tuple[int, float]]


class _Bench:
    """Runs requests through the engine without a client."""

    def __init__(self, engine: VllmEngine, progress: Callable[[str], None]) -> None:
        self.engine = engine
        self.progress = progress
        self.number = 0
        self.intake: list[tuple[int, float]] = []
        self.done: list[Measured] = []

    def install(self, policy: TokenPolicy | None) -> None:
        self.engine.empty()
        self.engine.scheduler.install(Settings(), policy=policy)
        self.engine.scheduler.keep_log = True

    def add(self, prompt: int, output: int) -> None:
        self.number += 1
        begun = time.perf_counter()
        self.engine.add(Planned(self.number, 0.0, prompt, output), self.engine.scheduler.zero)
        self.intake.append((prompt, time.perf_counter() - begun))

    def run(self, kind: str, requests: Iterable[tuple[int, int]]) -> list[StepLog]:
        """All requests at once, to their end."""
        for prompt, output in requests:
            self.add(prompt, output)
        return self.finish(kind)

    def finish(self, kind: str) -> list[StepLog]:
        while self.engine.engine.has_unfinished_requests():
            self.engine.step()
        return self.take(kind)

    def take(self, kind: str) -> list[StepLog]:
        scheduler = self.engine.scheduler
        steps = list(scheduler.log)
        scheduler.log.clear()
        scheduler.times.clear()
        self.done.append(Measured(kind, steps, self.intake))
        self.intake = []
        return steps


def measure(
    engine: VllmEngine, grid: Grid, progress: Callable[[str], None] = lambda _: None, tokens: int | None = None
) -> list[Measured]:
    """Measure *grid* on *engine*. *tokens* bounds the KV memory used (None: what there is)."""
    bench = _Bench(engine, progress)
    with undisturbed():
        _measure(bench, grid, tokens)
    engine.empty()
    engine.scheduler.keep_log = False
    return bench.done


def _measure(bench: _Bench, grid: Grid, tokens: int | None) -> None:
    engine, progress = bench.engine, bench.progress
    options = engine.options
    room = tokens or engine.scheduler.blocks * engine.scheduler.block_size
    longest = options.max_model_len - 1
    budget, sequences = options.max_batched_tokens, options.max_sequences
    bench.install(Together())
    for _ in range(3):  # warm-up: the first of everything is slow
        bench.run("warm-up", [(min(longest, 256), 8)] * min(8, sequences))
    bench.done.clear()

    progress("prefill")
    for row, prompts in enumerate(grid.prompts):
        for total in grid.prefill[:: 1 if row == 0 else grid.every] + grid.prefill[-1:]:
            if prompts <= total <= min(longest, budget) and prompts <= sequences:
                for _ in range(grid.repeats):
                    bench.run("prefill", [(n, 1) for n in _split(total, prompts)])
    for length in grid.long:
        for total in grid.beyond:
            if total <= min(budget, room) and total // length <= sequences:
                for _ in range(2):
                    bench.run("prefill", [(n, 1) for n in _split(total, total // length)])

    progress("decode")
    for context in grid.contexts:
        sizes = [b for b in grid.decode if b <= sequences and b * (context + len(grid.decode) * grid.steps) <= room]
        if sizes and context + len(sizes) * grid.steps <= longest:
            bench.run("decode", _falling(sizes, context, grid.steps))

    progress("mixed")
    bench.install(None)  # vLLM's own decisions mix
    for size in grid.mixed_sequences:
        long = grid.mixed_context + 8 * len(grid.mixed_tokens) * grid.repeats
        if size >= sequences or size * long > room:
            continue
        for _ in range(size):
            bench.add(grid.mixed_context, long - grid.mixed_context)
        while engine.scheduler.view.decoding < size:
            engine.step()
        for total in grid.mixed_tokens:
            if total + size > min(budget, longest):
                continue
            for _ in range(grid.repeats):
                for _ in range(SETTLE):
                    engine.step()
                bench.add(total, 1)
                engine.step()
        engine.empty()
        bench.take("mixed")

    progress("chunks")
    for chunk in grid.chunks:
        bench.install(Chunked(chunk, alone=True))
        for _ in range(2):
            bench.run("chunks", [(longest, 1)])

    progress("preemption")
    size = min(16, sequences - 1)
    bench.install(Preempting(every=4))
    bench.run("preemption", [(64, 40)] * size)


def _split(total: int, parts: int) -> list[int]:
    """*total* tokens in equal prompts, as nearly as may be."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _falling(sizes: Sequence[int], context: int, steps: int) -> list[tuple[int, int]]:
    """Requests such that the batch shrinks through *sizes*, *steps* decode steps at each."""
    ordered = sorted(sizes, reverse=True)
    requests = []
    for i, size in enumerate(ordered):
        following = ordered[i + 1] if i + 1 < len(ordered) else 0
        requests += [(context, (i + 1) * steps + 1)] * (size - following)
    return requests


# -- what a profile file says ---------------------------------------------------------------------------------------


def tokens_section(
    measured: Sequence[Measured], described: dict[str, Any], grid: Grid, source: str
) -> dict[str, Any]:
    """The ``tokens`` and ``costs`` of a profile file, of what `measure` gave on the engine *described*.

    *source* names the file that the steps are kept in. Raises `BadInput` if a kind of step was not measured.
    """
    from servetwin.profiles.tokendata import TokenModel
    from servetwin.profiles.tokens import TokenTable

    options = described["options"]
    by_kind: dict[str, list[StepLog]] = {}
    for one in measured:
        by_kind.setdefault(one.kind, []).extend(one.steps)
    origin = {"file": source}
    model: dict[str, Any] = {
        "prefill": _prefill(
            by_kind["prefill"],
            grid,
            options["max_batched_tokens"],
            options["graphs"] if options.get("graphs_for") == "all" else (),
            origin,
        ),
        "surface": _surface(by_kind["decode"], grid, bool(options["graphs"]), origin),
    }
    plain = TokenTable(TokenModel.model_validate(model), hold=True)
    model["prefill"]["per_pair"] = _per_pair(by_kind.get("chunks", []), plain)
    plain = TokenTable(TokenModel.model_validate(model), hold=True)
    model["mixed"] = _mixed(by_kind.get("mixed", []), plain, origin)
    table = TokenTable(TokenModel.model_validate(model), hold=True)
    d0, d1 = table.solo_decode()
    section = {
        "architecture": options["model"],
        "tensor_parallel": options["tensor_parallel"],
        "engine": {
            "name": f"vLLM {described['vllm']}",
            "max_batched_tokens": options["max_batched_tokens"],
            "max_sequences": options["max_sequences"],
            "max_model_len": options["max_model_len"],
            "gpu_memory_utilization": options["gpu_memory_utilization"],
            "chunked_prefill": True,
            "cuda_graphs": bool(options["graphs"]),
            "note": _engine_note(options),
        },
        "kv": {
            "block_size": described["block_size"],
            "blocks": described["blocks"],
            "statistic": "what the engine reported, less the one that it keeps for itself",
        },
        "step_includes": "from the moment the scheduler is asked until the tokens are on the host and the scheduler "
        "has taken them in (vLLM in one process, synchronous scheduling); what is between two steps stands apart",
        "solo": {
            "d0": round(d0, 9),
            "d1": round(max(d1, 0.0), 12),
            "statistic": "least squares line through the decode steps of one sequence",
            "source": origin,
        },
        "kinds": {"measured": model},
    }
    return {"tokens": section, "costs": _costs(measured, table, grid, origin)}


def profile_content(
    measured: Sequence[Measured],
    described: dict[str, Any],
    grid: Grid,
    *,
    name: str,
    when: str,
    command: str,
    source: str,
) -> dict[str, Any]:
    """The content of a profile file called *name*, measured *when* by *command*; see `tokens_section`."""
    section = tokens_section(measured, described, grid, source)
    model = section["tokens"]["kinds"]["measured"]
    # The policies of a measured system plan with what was measured.
    section["tokens"]["kinds"] = {"scheduler": model, "measured": model}
    options = described["options"]
    gpu = described["device"] != "cpu"
    device = {"name": described["device"], "kind": "gpu" if gpu else "cpu"}
    if gpu:
        device["memory_gib"] = round(described["memory_gib"], 2)
    return {
        "schema_version": 1,
        "name": name,
        "description": f"{model_title(options['model'])}, {described['device']}, vLLM {described['vllm']}",
        "device": device,
        "model": model_title(options["model"]),
        "precision": {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[options["dtype"]],
        "batch_counts": "tokens in prefill; sequences, and their tokens in all, in decode",
        "measured_when": when,
        "origin": {"repository": f"this one; {command}"},
        "limits_of_data": f"Weights random. torch {described['torch']}, vLLM {described['vllm']}; one process; "
        f"{'asynchronous' if options['asynchronous'] else 'synchronous'} scheduling, no prefix cache. What "
        "else the host does moves steps by some per cent from one minute to the next.",
        **section,
    }


def model_title(model: str) -> str:
    """How a model is called in a description."""
    return "a tiny OPT" if model == "tiny" else model.upper() if model.startswith("opt-") else model


def _engine_note(options: dict[str, Any]) -> str:
    graphs = options["graphs"]
    if not graphs:
        return "eager, no CUDA graphs"
    sizes = ", ".join(map(str, graphs))
    if options.get("graphs_for") == "all":
        return f"all steps as CUDA graphs for {sizes} tokens, padded to the next; larger ones eager; no torch.compile"
    return f"decode steps as CUDA graphs for batches of {sizes}; steps with a prefill eager; no torch.compile"


def _seconds(step: StepLog) -> float:
    return step.end - step.start


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 7)


def _prefill(
    steps: Sequence[StepLog], grid: Grid, budget: int, graphs: Sequence[int], origin: dict[str, str]
) -> dict[str, Any]:
    """Seconds by tokens and prompts. Up to the largest of *graphs* a step takes what the next graph takes: flights of
    stairs, written as lines between their edges."""
    found: dict[tuple[int, int], list[float]] = {}
    large: list[tuple[int, int, float]] = []
    single = max(sum(n for _, n, _ in s.prefill) for s in steps if len(s.prefill) == 1)
    for step in steps:
        total = sum(n for _, n, _ in step.prefill)
        if total > single:
            large.append((total, sum(n * n for _, n, _ in step.prefill), _seconds(step)))
        else:
            found.setdefault((len(step.prefill), total), []).append(_seconds(step))
    rows = [n for n in grid.prompts if any(prompts == n and total == single for prompts, total in found)]
    totals = sorted({total for prompts, total in found if prompts == 1})
    table: list[list[float | None]] = []
    for n in rows:
        at = {total: _median(values) for (prompts, total), values in found.items() if prompts == n}
        known = sorted(at)
        row: list[float | None] = []
        for total in totals:
            if total < known[0]:
                row.append(None)
            elif total in at:
                row.append(at[total])
            else:  # measured more coarsely than the row of one prompt
                low = max(t for t in known if t < total)
                high = min(t for t in known if t > total)
                row.append(round(at[low] + (at[high] - at[low]) * (total - low) / (high - low), 7))
        table.append(row)
    if graphs:
        totals, table = _stairs(totals, table, max(graphs))
    out: dict[str, Any] = {
        "tokens": totals,
        "prompts": rows,
        "seconds": table,
        "between": "line",
        "statistic": "median",
        "samples": grid.repeats,
        "source": origin,
    }
    if large:
        c0, c1, c2 = _plane(large)
        out["beyond"] = {
            "c0": c0,
            "c1": c1,
            "c2": c2,
            "until": budget + 1,
            "statistic": f"least squares over {len(large)} steps of {single} to {max(t for t, _, _ in large)} tokens",
            "source": origin,
        }
    return out


def _stairs(
    totals: Sequence[int], table: Sequence[Sequence[float | None]], until: int
) -> tuple[list[int], list[list[float | None]]]:
    """The same with each value up to *until* tokens holding from just beyond the total before it.

    >>> _stairs([1, 16, 32, 64], [[1.0, 2.0, 3.0, 4.0]], 32)
    ([1, 2, 16, 17, 32, 64], [[1.0, 2.0, 2.0, 3.0, 3.0, 4.0]])
    """
    edges: list[int] = []
    rows: list[list[float | None]] = [[] for _ in table]
    for i, total in enumerate(totals):
        first = totals[i - 1] + 1 if i else total
        places = [first, total] if i and total <= until and first < total else [total]
        edges += places
        for row, values in zip(rows, table, strict=True):
            row += [values[i]] * len(places)
    return edges, rows


def _plane(points: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """c0 + c1 total + c2 squares by least squares."""
    import numpy as np

    columns = np.array([[1.0, total, squares] for total, squares, _ in points])
    scale = columns.max(axis=0)
    solution, *_ = np.linalg.lstsq(columns / scale, np.array([s for _, _, s in points]), rcond=None)
    c0, c1, c2 = (solution / scale).tolist()
    return c0, c1, c2


def _surface(steps: Sequence[StepLog], grid: Grid, padded: bool, origin: dict[str, str]) -> dict[str, Any]:
    """Seconds by batch size and context per sequence: each batch's steps, brought to common contexts."""
    spells: dict[int, dict[int, list[tuple[float, float]]]] = {}  # batch -> spell -> (context per sequence, seconds)
    spell = 0
    before = 0
    in_spell = 0
    for step in steps:
        if step.prefill or step.decode != before:
            spell, in_spell, before = spell + 1, 0, 0 if step.prefill else step.decode
        if step.prefill:
            continue
        in_spell += 1
        if in_spell > SETTLE or grid.steps <= SETTLE:
            spells.setdefault(step.decode, {}).setdefault(spell, []).append(
                (step.context / step.decode, _seconds(step))
            )
    sizes = sorted(spells)
    points = {
        size: sorted(
            (statistics.median(c for c, _ in p), statistics.median(s for _, s in p)) for p in spells[size].values()
        )
        for size in sizes
    }
    knots = sorted(grid.contexts)
    knots = [k for k in knots if any(points[size][-1][0] >= k for size in sizes)]
    rows = []
    for size in sizes:
        reach = [k for k in knots if k <= points[size][-1][0] * 1.05] or knots[:1]
        rows.append([round(max(_on_line(points[size], k), 1e-7), 7) for k in reach])
    return {
        "batch": sizes,
        "per_sequence": knots,
        "seconds": rows,
        "between": "up" if padded else "line",
        "until_context": int(max(size * points[size][-1][0] for size in sizes) * 1.5) + 1,
        "statistic": f"median of {max(1, grid.steps - SETTLE)} steps on end; straight lines between contexts",
        "samples": sum(len(p) for size in sizes for p in spells[size].values()),
        "source": origin,
    }


def _on_line(points: Sequence[tuple[float, float]], x: float) -> float:
    """On straight lines between *points*; beyond their ends the end lines go on."""
    if len(points) == 1:
        return points[0][1]
    at = next((i for i in range(1, len(points) - 1) if x <= points[i][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _per_pair(steps: Sequence[StepLog], table: Any) -> float:
    """Seconds for each pair of a computed token and one that stood before, from chunks of a long prompt."""
    pairs = [(n * c, _seconds(s) - table.prefill(n)) for s in steps for _, n, c in s.prefill if c]
    if not pairs:
        return 0.0
    slope: float = sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)
    return max(0.0, slope)


def _mixed(steps: Sequence[StepLog], table: Any, origin: dict[str, str]) -> dict[str, Any]:
    ratios = []
    for step in steps:
        if step.prefill and step.decode:
            total = sum(n for _, n, _ in step.prefill)
            squares = sum(n * n for _, n, _ in step.prefill)
            pairs = sum(n * c for _, n, c in step.prefill)
            ratios.append(_seconds(step) / table.mixed(total, squares, pairs, step.decode, step.context))
    if not ratios:
        return {"rule": "one_pass"}
    return {
        "rule": "one_pass",
        "factor": round(statistics.median(ratios), 5),
        "source": origin,
        "note": f"median of {len(ratios)} steps; from {min(ratios):.3f} to {max(ratios):.3f}",
    }


def _costs(measured: Sequence[Measured], table: Any, grid: Grid, origin: dict[str, str]) -> dict[str, Any]:
    between: dict[int, list[float]] = {}
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for one in measured:
        for a, b in zip(one.steps, one.steps[1:], strict=False):
            if one.kind == "decode" and a.decode == b.decode:
                between.setdefault(a.decode + len(a.prefill), []).append(b.start - a.end)
        for i, step in enumerate(one.steps):
            if one.kind == "prefill" and len(step.prefill) == 1:
                total = sum(n for _, n, _ in step.prefill)
                ratios["prefill"].append(_seconds(step) / table.prefill(total, None))
            elif one.kind == "decode" and not step.prefill and i:
                ratios["decode"].append(_seconds(step) / table.decode(step.decode, step.context))
    sizes = sorted(between)
    costs: dict[str, Any] = {
        "step.between": {
            "meaning": "from the end of a step until the scheduler is asked for the next, where nothing has come "
            "meanwhile: the engine hands the outputs on",
            "unit": "seconds",
            "modules": ["prefill", "decode"],
            "by_batch": {
                "batch": sizes,
                "values": [round(statistics.median(between[n]), 7) for n in sizes],
            },
            "statistic": "median",
            "samples": sum(map(len, between.values())),
            "how": "decode steps on end, by the sequences of the step that ended",
            "source": origin,
        }
    }
    intake = [seconds for one in measured for _, seconds in one.intake]
    if intake:
        costs["engine.intake"] = {
            "meaning": "the engine takes a request in: between two steps, one after the other",
            "unit": "seconds",
            "value": round(statistics.mean(sorted(intake)[: max(1, int(len(intake) * 0.99))]), 7),
            "statistic": "mean without the slowest hundredth",
            "samples": len(intake),
            "how": "around the engine's add_request, prompts of all lengths",
            "source": origin,
        }
    shares = [0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0]
    for kind, values in ratios.items():
        if len(values) < 20:
            continue
        ordered = sorted(values)
        costs[f"{kind}.ratio"] = {
            "meaning": f"how long a {kind} step took over what the measured table gives",
            "unit": "ratio",
            "modules": [kind],
            "value": round(statistics.mean(values), 6),
            "quantiles": {
                "p": shares,
                "values": [round(ordered[min(len(ordered) - 1, int(p * len(ordered)))], 6) for p in shares],
            },
            "samples": len(values),
            "how": "the steps that the table was made of",
            "source": origin,
        }
    return costs
