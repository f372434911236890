"""Requests as they come, and what steps take among them over a table that was measured in rows of like steps.

How long a step that computes prompts takes depends on what was computed just before (`servetwin.profiles.pace`), and
in rows that is always much. So a profile ends with traffic: requests at random times, at several rates, under vLLM's
own scheduling.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from servetwin.profiles.pace import MEMORY, Density

from .vllm_engine import VllmEngine
from .vllm_plan import Planned
from .vllm_profile import Measured
from .vllm_scheduler import Settings, StepLog

#: Lengths in tokens of the prompts (evenly on a logarithmic scale) and of the outputs (evenly), as far as they fit.
PROMPT, OUTPUT = (32, 480), (16, 48)
#: Requests that come at once, to see how many the engine takes a second at most.
AT_ONCE = 60
#: Steps of up to so many tokens go together, and those up to the largest graph.
LIMITS = (64, 128, 384)
#: Shares of the steps at whose densities the curve bends.
KNOTS = (0.0, 0.14, 0.28, 0.42, 0.56, 0.7, 0.84, 0.96)
#: Shares of the largest density by which bends lie apart at least.
APART = 0.02
#: A step counts that takes no more than so many times the table, or so little of it: the others stalled.
FAR = 1.12
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
    cv of the gaps between them)."""
    rng = random.Random(seed)
    longest = engine.options.max_model_len - OUTPUT[1]

    def request(number: int, arrival: float) -> Planned:
        prompt = min(round(PROMPT[0] * (PROMPT[1] / PROMPT[0]) ** rng.random()), longest)
        return Planned(number, arrival, prompt, rng.randint(*OUTPUT))

    made = engine.serve([request(i, 0.0) for i in range(AT_ONCE)], Settings(), stop_after=60.0)
    most = AT_ONCE / max(r.times[-1] for r in made.requests if r.times)
    found = []
    for share, cv in shares:
        rate = share * most
        count = max(2, round(rate * seconds / len(shares)))
        now, planned = 0.0, []
        for i in range(count):
            planned.append(request(i, now))
            now += rng.gammavariate(1 / cv**2, cv**2 / rate)
        progress(f"traffic: {count} requests at {rate:.1f} a second, cv {cv:g}")
        found.append(Measured("traffic", engine.serve(planned, Settings(), stop_after=60.0).steps, []))
    return found


def pace_costs(
    measured: Sequence[Measured],
    usual: Callable[[StepLog], float],
    within: int,
    most: int,
    origin: dict[str, str],
) -> dict[str, Any]:
    """``prefill.pace`` and ``prefill.pace.<tokens>``, of *measured* traffic: steps of up to *most* tokens over what
    is *usual* for them by the table, by the density of what was computed before. Nothing without traffic.

    Steps of more than *within* tokens are launched kernel by kernel: they count from when the step before should have
    been over.
    """
    limits = sorted({*(n for n in LIMITS if n < within), within, most})
    points: dict[int, list[tuple[float, float]]] = {limit: [] for limit in limits}
    for one in measured:
        if one.kind != "traffic":
            continue
        density, due = Density(MEMORY), None
        for step in one.steps:
            total = step.tokens
            begun = step.began if total <= within else due
            if step.behind and step.prefill and total <= most and begun is not None:
                ratio = (step.end - begun) / usual(step)
                if 1 / FAR < ratio < FAR:
                    limit = next(n for n in limits if total <= n)
                    points[limit].append((density.at(begun), ratio))
            due = step.began + usual(step) if step.behind and total <= within else None
            density.add(step.began if begun is None else begun, step.end, total)
    curves = {limit: _curve(found) for limit, found in points.items() if len(found) >= LEAST}
    if not curves:
        return {}
    meaning = "how long a step that computes prompts takes over the table"
    common: dict[str, Any] = {
        "modules": ["prefill"],
        "how": "steps of requests that came at random, decided while another ran; straight lines by least squares",
        "source": origin,
    }
    costs: dict[str, Any] = {
        "prefill.pace": {
            "meaning": "within how many seconds tokens that were computed fade from the density on which such a step "
            "depends",
            "unit": "seconds",
            "value": MEMORY,
            "statistic": "set; between 0.03 and 0.07 it is all one",
            **common,
        }
    }
    for limit, (knots, ratios) in curves.items():
        costs[f"prefill.pace.{limit}"] = {
            "meaning": f"{meaning}, with up to {limit} tokens, by the tokens a second computed lately",
            "unit": "ratio",
            "by_batch": {"batch": knots, "values": ratios},
            "statistic": "least squares",
            "samples": len(points[limit]),
            **common,
        }
    return costs


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
    known = np.vstack([shares, PRIOR * np.eye(len(knots))])
    over, *_ = np.linalg.lstsq(known, np.append(y - 1.0, np.zeros(len(knots))), rcond=None)
    return knots.tolist(), [round(1.0 + float(v), 5) for v in over]
