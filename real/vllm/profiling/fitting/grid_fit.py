"""What a profile file says of a language model, made of the steps that were measured on vLLM.

`tokens_section` is for synchronous scheduling (steps of `step_grid.measure`), `async_fit.steady_section` for
asynchronous scheduling.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from servetwin.core.arithmetic import float_sum
from servetwin.profiles.tables.costs import INTAKE, RATIO, STEP_BETWEEN

from ...engine import VllmEngine
from ...scheduler import StepLog
from ..measuring.step_grid import SETTLE, Grid, Measured, measure
from .step_profile import engine_limits

#: A step that takes so many times what the table says, or the table so many times what it takes, shows a stall.
STALL = 1.4


def measured_section(engine: VllmEngine, grid: Grid) -> dict[str, Any]:
    """The ``tokens`` and ``costs`` of *engine*, measured now."""
    return tokens_section(measure(engine, grid), engine.describe(), grid, "steps")


def tokens_section(
    measured: Sequence[Measured], described: dict[str, Any], grid: Grid, source: str
) -> dict[str, Any]:
    """The ``tokens`` and ``costs`` of a profile file, of what `measure` gave on the engine *described*.

    *source* names the file that the steps are kept in. Raises `BadInput` if a kind of step was not measured.
    """
    from servetwin.profiles.llm.schema import TokenModel
    from servetwin.profiles.llm.step_table import TokenTable

    options = described["options"]
    by_kind: dict[str, list[StepLog]] = {}
    for one in measured:
        by_kind.setdefault(one.kind, []).extend(one.steps)
    origin = {"file": source}
    model: dict[str, Any] = {
        "prefill": _prefill(
            by_kind["prefill"],
            grid.prompts,
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
    includes = (
        "from the moment the scheduler is asked until the tokens are on the host and the scheduler has taken them in "
        "(vLLM in one process, synchronous scheduling); what is between two steps stands apart"
    )
    section = section_of(model, table, described, includes, origin)
    return {"tokens": section, "costs": _costs(measured, table, grid, origin)}


def section_of(
    model: dict[str, Any], table: Any, described: dict[str, Any], includes: str, origin: dict[str, str]
) -> dict[str, Any]:
    """The ``tokens`` of a profile file for the latency *model*, whose *table* it is; *includes* says from where to
    where a step was timed."""
    options = described["options"]
    d0, d1 = table.solo_decode()
    line = d0 > 0.0 and d1 >= 0.0
    if not line:  # only chance makes longer contexts faster, or an empty one take no time
        d0, d1 = statistics.fmean(model["surface"]["seconds"][0]), 0.0
    engine = {
        **engine_limits(described),
        "cuda_graphs": bool(options["graphs"]),
        "note": _engine_note(options),
    }
    if options.get("asynchronous"):
        engine["asynchronous"] = True
    return {
        "architecture": options["model"],
        "tensor_parallel": options["tensor_parallel"],
        "engine": engine,
        "kv": {
            "block_size": described["block_size"],
            "blocks": described["blocks"],
            "statistic": "what the engine reported, less the one that it keeps for itself",
        },
        "step_includes": includes,
        "solo": {
            "d0": round(d0, 9),
            "d1": round(d1, 12),
            "statistic": f"{'least squares line through' if line else 'level of'} the decode steps of one sequence",
            "source": origin,
        },
        "kinds": {"measured": model},
    }


def _engine_note(options: dict[str, Any]) -> str:
    graphs = options["graphs"]
    if not graphs:
        return "eager, no CUDA graphs"
    sizes = ", ".join(map(str, graphs))
    if options.get("graphs_for") == "all":
        return f"all steps as CUDA graphs for {sizes} tokens, padded to the next; larger ones eager; no torch.compile"
    return f"decode steps as CUDA graphs for batches of {sizes}; steps with a prefill eager; no torch.compile"


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 7)


def _prefill(
    steps: Sequence[StepLog], prompts: Sequence[int], budget: int, graphs: Sequence[int], origin: dict[str, str]
) -> dict[str, Any]:
    """Seconds by tokens and *prompts*.

    Up to the largest of *graphs* a step takes what the next graph takes: flights of stairs, written as lines between
    their edges.
    """
    found: dict[tuple[int, int], list[float]] = {}
    large: list[tuple[int, int, float]] = []
    single = max(sum(n for _, n, _ in s.prefill) for s in steps if len(s.prefill) == 1)
    for step in steps:
        total = sum(n for _, n, _ in step.prefill)
        if total > single:
            large.append((total, sum(n * n for _, n, _ in step.prefill), step.seconds))
        else:
            found.setdefault((len(step.prefill), total), []).append(step.seconds)
    rows = [n for n in prompts if (n, single) in found]
    totals = sorted({total for n, total in found if n == 1})
    alone = {total: _median(found[1, total]) for total in totals}
    table: list[list[float | None]] = []
    for n in rows:
        at = {total: _median(values) for (many, total), values in found.items() if many == n and total in totals}
        known = sorted(at)
        row: list[float | None] = []
        for total in totals:
            if total < known[0]:
                row.append(None)
            elif total in at:
                row.append(at[total])
            else:  # measured more coarsely than the row of one prompt, on whose stairs it stands
                low = max(t for t in known if t < total)
                high = min(t for t in known if t > total)
                more, rise = at[low] / alone[low], at[high] / alone[high] - at[low] / alone[low]
                row.append(round(alone[total] * (more + rise * (total - low) / (high - low)), 7))
        table.append(row)
    if graphs:
        totals, table = _stairs(totals, table, max(graphs))
    out: dict[str, Any] = {
        "tokens": totals,
        "prompts": rows,
        "seconds": table,
        "between": "line",
        "statistic": "median",
        "samples": min(len(values) for (n, total), values in found.items() if n == 1),
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
    """c0 + c1 total + c2 squares by least squares; without the squares if these would make steps shorter, which only
    chance does."""
    import numpy as np

    columns = np.array([[1.0, total, squares] for total, squares, _ in points])
    seconds = np.array([s for _, _, s in points])
    scale = columns.max(axis=0)
    solution, *_ = np.linalg.lstsq(columns / scale, seconds, rcond=None)
    if solution[2] < 0.0:
        line, *_ = np.linalg.lstsq(columns[:, :2] / scale[:2], seconds, rcond=None)
        solution = np.append(line, 0.0)
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
                (step.context / step.decode, step.seconds)
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
    reach = {size: [k for k in knots if k <= points[size][-1][0] * 1.05] or knots[:1] for size in sizes}
    return surface_of(points, knots, reach, padded) | {
        "statistic": f"median of {max(1, grid.steps - SETTLE)} steps on end; straight lines between contexts",
        "samples": sum(len(p) for size in sizes for p in spells[size].values()),
        "source": origin,
    }


def surface_of(
    points: Mapping[int, Sequence[tuple[float, float]]],
    knots: Sequence[int],
    reach: Mapping[int, Sequence[int]],
    padded: bool,
) -> dict[str, Any]:
    """Of *points* (context per sequence, seconds) by batch size: the table at *knots*, by size as far as *reach*."""
    sizes = sorted(points)
    return {
        "batch": sizes,
        "per_sequence": list(knots),
        "seconds": [[round(max(_on_line(points[size], k), 1e-7), 7) for k in reach[size]] for size in sizes],
        "between": "up" if padded else "line",
        "until_context": int(max(size * points[size][-1][0] for size in sizes) * 1.5) + 1,
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
    pairs = [(n * c, s.seconds - table.prefill(n)) for s in steps for _, n, c in s.prefill if c]
    if not pairs:
        return 0.0
    slope: float = float_sum(x * y for x, y in pairs) / float_sum(x * x for x, _ in pairs)
    return max(0.0, slope)


def _mixed(steps: Sequence[StepLog], table: Any, origin: dict[str, str]) -> dict[str, Any]:
    """The three terms of one pass (see `servetwin.profiles.llm.schema.Mixed`), by a fit of the ratios that makes
    little of outliers. *table* has none of them yet."""
    import numpy as np
    from scipy.optimize import least_squares

    parts, seconds = [], []
    for step in steps:
        if step.prefill and step.decode:
            total = sum(n for _, n, _ in step.prefill)
            squares = sum(n * n for _, n, _ in step.prefill)
            pairs = sum(n * c for _, n, c in step.prefill)
            whole = table.prefill(total + step.decode, squares + step.decode, pairs)
            parts.append((whole, table.decode(step.decode, step.context) - table.decode(step.decode, 0), step.decode))
            seconds.append(step.seconds)
    if not parts:
        return {"rule": "one_pass"}
    known, took = np.array(parts), np.array(seconds)
    found = least_squares(
        lambda terms: known @ terms / took - 1.0,
        (1.0, 1.0, 0.0),
        bounds=((0.2, 0.0, 0.0), (5.0, 20.0, 1.0)),
        x_scale=(1.0, 1.0, 1e-4),
        loss="soft_l1",
        f_scale=0.03,
    )
    factor, attention = (round(float(x), 5) for x in found.x[:2])
    per_sequence = round(float(found.x[2]), 8)
    ratios = took / (known @ (factor, attention, per_sequence))
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    return {
        "rule": "one_pass",
        "factor": factor,
        "attention": attention,
        "per_sequence": per_sequence,
        "source": origin,
        "note": f"fit of {len(ratios)} steps; measured over fitted {middle:.3f} in the median, of eight tenths "
        f"{low:.3f} to {high:.3f}",
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
                ratios["prefill"].append(step.seconds / table.prefill(total, None))
            elif one.kind == "decode" and not step.prefill and i:
                ratios["decode"].append(step.seconds / table.decode(step.decode, step.context))
    costs = between_cost(between, "", "on end", origin)
    return costs | intake_cost(measured, origin) | ratio_costs(ratios, origin)


def between_cost(
    between: Mapping[int, Sequence[float]], meanwhile: str, how: str, origin: dict[str, str]
) -> dict[str, Any]:
    """``step.between``, of seconds by the sequences of the step that ended; what goes on *meanwhile*, and *how* the
    steps followed each other."""
    sizes = sorted(between)
    return {
        STEP_BETWEEN(): {
            "meaning": "from the end of a step until the scheduler is asked for the next, where nothing has come "
            f"meanwhile: the engine hands the outputs on{meanwhile}",
            "unit": "seconds",
            "modules": ["prefill", "decode"],
            "by_batch": {"batch": sizes, "values": [round(statistics.median(between[n]), 7) for n in sizes]},
            "statistic": "median",
            "samples": sum(map(len, between.values())),
            "how": f"decode steps {how}, by the sequences of the step that ended",
            "source": origin,
        }
    }


def intake_cost(measured: Sequence[Measured], origin: dict[str, str]) -> dict[str, Any]:
    """``engine.intake``, of the requests that were handed to the engine."""
    intake = sorted(seconds for one in measured for _, seconds in one.intake)
    if not intake:
        return {}
    return {
        INTAKE(): {
            "meaning": "the engine takes a request in: between two steps, one after the other",
            "unit": "seconds",
            "value": round(statistics.mean(intake[: max(1, int(len(intake) * 0.99))]), 7),
            "statistic": "mean without the slowest hundredth",
            "samples": len(intake),
            "how": "around the engine's add_request, prompts of all lengths",
            "source": origin,
        }
    }


def ratio_costs(ratios: Mapping[str, Sequence[float]], origin: dict[str, str]) -> dict[str, Any]:
    """``<kind>.ratio``: how the steps of a kind lie about the table, if there are enough of them.

    A host that stalls lets one step take twice as long and the next one half: those are not drawn for single steps,
    but counted.
    """
    costs = {}
    shares = [0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0]
    for kind, values in ratios.items():
        ordered = sorted(v for v in values if 1 / STALL <= v <= STALL)
        if len(ordered) < 20:
            continue
        stalls = f"; {len(values) - len(ordered)} of {len(values)} are left out" if len(ordered) < len(values) else ""
        costs[RATIO(kind)] = {
            "meaning": f"how long a {kind} step took over what the measured table gives",
            "unit": "ratio",
            "modules": [kind],
            "value": round(statistics.mean(ordered), 6),
            "quantiles": {
                "p": shares,
                "values": [round(ordered[min(len(ordered) - 1, int(p * len(ordered)))], 6) for p in shares],
            },
            "samples": len(ordered),
            "how": f"the steps that the table was made of, where none stalled{stalls}",
            "source": origin,
        }
    return costs
