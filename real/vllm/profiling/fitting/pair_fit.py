"""What two engines on one device cost each other, from the steps of both (see `pair_runs.spell`). Needs no vLLM."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from servetwin.core.arithmetic import float_sum
from servetwin.profiles.tables.costs import RATE_BESIDE

#: When a step began and ended, in seconds.
Span = tuple[float, float]


def overlap(steps: Sequence[Span], others: Sequence[Span]) -> list[float]:
    """Seconds of each of *steps* during which one of *others*, in order of time, ran too.

    >>> overlap([(0.0, 4.0)], [(1.0, 2.0), (3.0, 9.0)])
    [2.0]
    """
    ends = [end for _, end in others]
    found = []
    for start, end in steps:
        seconds = 0.0
        for i in range(bisect_left(ends, start), len(others)):
            if others[i][0] >= end:
                break
            seconds += max(0.0, min(end, ends[i]) - max(start, others[i][0]))
        found.append(seconds)
    return found


def rate(steps: Sequence[Span], others: Sequence[Span], alone: Sequence[float]) -> float:
    """At which rate *steps* got on while one of *others* ran: beside them at that rate, else at full speed, and so
    far in all as they need *alone* (seconds, step by step; the last goes on).

    >>> rate([(0.0, 3.0)], [(1.0, 3.0)], [2.0])
    0.5
    """
    beside = float_sum(overlap(steps, others))
    lasted = float_sum(end - start for start, end in steps)
    needed = float_sum(alone[min(i, len(alone) - 1)] for i in range(len(steps)))
    return min(1.0, max(0.01, (needed - (lasted - beside)) / beside))


def contention(kept: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """The costs ``<kind>.rate_beside.<kind>.<size>`` of a profile.

    *kept* holds, for each load and each pair of loads, *loads* ((kind, size), and the same or None) and *steps* of
    one or both engines, as `flat` gives them.
    """
    alone: dict[tuple[str, int], list[float]] = {}
    found: dict[tuple[str, int], dict[tuple[str, int], list[float]]] = {}
    for one in kept:
        loads = [(str(load[0]), int(load[1])) for load in one["loads"] if load]
        steps = [[(float(step[0]), float(step[3])) for step in made] for made in one["steps"]]
        if len(loads) == 1:
            seconds = [end - start for start, end in steps[0]]
            usual = statistics.median(seconds)
            # Contexts grow from step to step; a prompt is as long as the one before it.
            alone[loads[0]] = seconds if loads[0][0] == "decode" else [usual]
            continue
        for i in (0, 1):
            if float_sum(overlap(steps[i], steps[1 - i])) <= 0.0:
                continue  # the other one was late: nothing is known of this pair
            value = rate(steps[i], steps[1 - i], alone[loads[i]])
            found.setdefault(loads[1 - i], {}).setdefault(loads[i], []).append(value)
    costs = {}
    for (other, size), own in sorted(found.items()):
        for kind in ("prefill", "decode"):
            sizes = sorted(n for k, n in own if k == kind)
            if sizes:
                costs[RATE_BESIDE(kind, other, size)] = {
                    "meaning": f"rate at which a {kind} step gets on while the other engine on the device runs a "
                    f"{other} step of {size} {'tokens' if other == 'prefill' else 'sequences'}",
                    "unit": "ratio",
                    "modules": [kind],
                    "by_batch": {
                        "batch": sizes,
                        "values": [round(statistics.mean(own[kind, n]), 5) for n in sizes],
                    },
                    "samples": sum(len(own[kind, n]) for n in sizes),
                    "how": "both engines busy for a second; by the tokens of a prefill or the sequences of a decode "
                    "step; what the steps take alone, less the time in which the other one did nothing, over the "
                    "time beside its steps",
                    "source": {"file": source},
                }
    return costs
