"""Requests as they come, and what steps take among them over a table that was measured in rows of like steps.

How long a step takes depends on what was computed just before (`servetwin.profiles.llm.recent_load`), and in rows
that is much the same always. So a profile ends with traffic: requests at random times, at several rates, under
vLLM's own scheduling, which computes prompts beside those who decode, and prefill first, which does not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

from servetwin.profiles.llm.recent_load import MEMORY, Density
from servetwin.profiles.tables.costs import RECENT_LOAD, RECENT_LOAD_MEMORY
from servetwin.profiles.tables.latency_table import interpolate

from ...engine import VllmEngine
from ...plan import Planned
from ...scheduler import Settings, StepLog
from .step_grid import Measured

#: Lengths in tokens of the prompts (evenly on a logarithmic scale) and of the outputs (evenly), as far as they fit.
PROMPT, OUTPUT = (32, 480), (16, 48)
#: Requests that come at once, to see how many the engine takes a second at most.
AT_ONCE = 60
#: The policies by turns: vLLM decides, and prefill first.
TURNS = (None, "vllm")
#: Steps of up to so many tokens go together, by whether they compute prompts, and those up to the largest graph.
LIMITS, LIMITS_DECODE = (64, 128, 384), (16, 64)
#: Shares of the steps at whose densities the curve bends.
KNOTS = (0.0, 0.14, 0.28, 0.42, 0.56, 0.7, 0.84, 0.96)
#: Shares of the largest density by which bends lie apart at least.
APART = 0.02
#: A step has stalled that took so many seconds more than the table says, and such a share more. No step counts that
#: did, since stalls are told apart, nor one that makes up for more than that.
STALLED, SHARE = 2e-3, 0.1
#: Steps at least, and a bend at most for so many; how many steps at 1 each bend has beside those that were measured.
LEAST, A_BEND, PRIOR = 12, 8, 3


def traffic(
    engine: VllmEngine,
    shares: Sequence[tuple[float, float]],
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
    seed: int = 1,
) -> list[Measured]:
    """Serve requests for about *seconds* in all, at (share of the rate at which *engine* takes them if all are there,
    cv of the gaps between them), each under either policy."""
    rng = random.Random(seed)
    longest = engine.options.max_model_len - OUTPUT[1]

    def request(number: int, arrival: float) -> Planned:
        prompt = min(round(PROMPT[0] * (PROMPT[1] / PROMPT[0]) ** rng.random()), longest)
        return Planned(number, arrival, prompt, rng.randint(*OUTPUT))

    made = engine.serve([request(i, 0.0) for i in range(AT_ONCE)], Settings(), stop_after=60.0)
    most = AT_ONCE / max(r.times[-1] for r in made.requests if r.times)
    found = []
    for (share, cv), policy in itertools.product(shares, TURNS):
        rate = share * most
        count = max(2, round(rate * seconds / len(shares) / len(TURNS)))
        now, planned = 0.0, []
        for i in range(count):
            planned.append(request(i, now))
            now += rng.gammavariate(1 / cv**2, cv**2 / rate)
        progress(f"traffic: {count} requests at {rate:.1f} a second, cv {cv:g}, {policy or 'vLLM decides'}")
        found.append(Measured("traffic", engine.serve(planned, Settings(policy=policy), stop_after=60.0).steps, []))
    return found


def recent_load_costs(
    measured: Sequence[Measured],
    usual: Callable[[StepLog], float],
    within: int,
    most: int,
    origin: dict[str, str],
) -> dict[str, Any]:
    """``prefill.recent_load`` and ``<kind>.recent_load.<tokens>``, of *measured* traffic: what steps of up to *most*
    tokens take over what is *usual* for them by the table, by the density of what was computed before. Nothing
    without traffic.

    Steps of more than *within* tokens are launched kernel by kernel: they count from when the step before should have
    been over. Where too few steps of the traffic only compute prompts, theirs is the curve of those that decode too,
    at such a level that where rows of them made the table it is what they take.
    """
    limits = {
        "decode": sorted({*(n for n in LIMITS_DECODE if n < within), within}),
        "prefill": sorted({*(n for n in LIMITS if n < within), within, most}),
    }
    limits["mixed"] = limits["prefill"]
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    rows: dict[int, list[float]] = {}  # densities at which the table's prompts were measured
    for one in measured:
        if one.kind not in ("traffic", "prefill"):
            continue
        for step, density, seconds, table in _behind(one.steps, usual, within):
            kind = "decode" if not step.prefill else "mixed" if step.decode else "prefill"
            limit = next((n for n in limits[kind] if step.tokens <= n), None)
            if limit is None:
                continue
            if one.kind == "prefill" and kind == "prefill":
                rows.setdefault(limit, []).append(density)
            elif one.kind == "traffic" and not stalled(abs(seconds - table), table):
                points.setdefault((kind, limit), []).append((density, seconds / table))
    curves = {key: _curve(points[key]) for key in sorted(points) if len(points[key]) >= LEAST}
    for limit in limits["prefill"]:
        if ("prefill", limit) not in curves and ("mixed", limit) in curves:
            densities, ratios = curves["mixed", limit]
            level = 1.0
            if limit <= within and limit in rows:  # beyond the graphs rows have few totals, and round ones
                level = fmean(interpolate(x, densities, ratios) for x in rows[limit])
            curves["prefill", limit] = densities, [round(ratio / level, 5) for ratio in ratios]
            points["prefill", limit] = points["mixed", limit]
    if not curves:
        return {}
    told = {"decode": "only decodes", "prefill": "only computes prompts", "mixed": "computes prompts and decodes"}
    common: dict[str, Any] = {
        "how": "steps of requests that came at random, decided while another ran; straight lines by least squares",
        "source": origin,
    }
    costs: dict[str, Any] = {
        RECENT_LOAD_MEMORY(): {
            "meaning": "within how many seconds tokens that were computed fade from the density on which a step "
            "depends",
            "unit": "seconds",
            "value": MEMORY,
            "statistic": "set; between 0.03 and 0.05 it is all one",
            "modules": ["prefill", "decode"],
            **common,
        }
    }
    for (kind, limit), (knots, ratios) in curves.items():
        costs[RECENT_LOAD(kind, limit)] = {
            "meaning": f"how long a step that {told[kind]} takes over the table, with up to {limit} tokens, by the "
            "tokens a second computed lately",
            "unit": "ratio",
            "modules": ["prefill", "decode"] if kind == "mixed" else [kind],
            "by_batch": {"batch": knots, "values": ratios},
            "statistic": "least squares",
            "samples": len(points[kind, limit]),
            **common,
        }
    return costs


def _behind(
    steps: Sequence[StepLog], usual: Callable[[StepLog], float], within: int
) -> Iterator[tuple[StepLog, float, float, float]]:
    """(step, the density before it, its seconds, those that are *usual*) of *steps* that were decided while another
    ran, where it is known when they began."""
    density, due = Density(MEMORY), None
    for step in steps:
        graph = step.tokens <= within
        begun, table = step.began if graph else due, usual(step)
        if step.behind and begun is not None:
            yield step, density.at(begun), step.end - begun, table
        due = step.began + table if step.behind and graph else None
        density.add(step.began if begun is None else begun, step.end, step.tokens)


def _curve(points: Sequence[tuple[float, float]]) -> tuple[list[int], list[float]]:
    """Densities, and the ratios there: straight lines between them through *points*."""
    import numpy as np

    x, y = np.array(points).T
    apart = max(1, round(APART * float(x.max())))
    # As many bends as there are steps for, evenly among KNOTS.
    at = np.interp(np.linspace(0, 1, min(len(KNOTS), max(1, len(x) // A_BEND))), np.linspace(0, 1, len(KNOTS)), KNOTS)
    knots = np.unique(np.maximum(1, np.round(np.quantile(x, at) / apart))).astype(int) * apart
    # How much of each knot is in each point.
    shares = np.array([np.interp(x, knots, row) for row in np.eye(len(knots))]).T
    known = np.vstack([shares, PRIOR**0.5 * np.eye(len(knots))])
    over, *_ = np.linalg.lstsq(known, np.append(y - 1.0, np.zeros(len(knots))), rcond=None)
    return knots.tolist(), [round(1.0 + float(v), 5) for v in over]


def stalled(more: float, usual: float) -> bool:
    """Whether a step that takes so many seconds *more* than *usual* has stalled."""
    return more > max(STALLED, SHARE * usual)
