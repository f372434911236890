"""What a run on a real engine is held against at once: its profile's table, and what the machine did meanwhile."""

from __future__ import annotations

import bisect
import contextlib
import resource
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.real.vllm.profiling.fitting.async_fit import expected

#: Seconds more than they should be with which something counts as a stall.
STALL = 5e-3


def against(steps: list[Any], table: TokenTable) -> dict[str, list[float]]:
    """By kind of step, of those decided while another ran: how many, the median of their seconds over *table*'s, and
    the mean of what they took longer in milliseconds. "joined" are decode steps after one with a prefill, "left"
    those after a larger batch; "dry" is all that was decided when nothing ran."""
    found: dict[str, list[tuple[float, float]]] = {}
    before = None
    for step in steps:
        if not step.behind:
            kind = "dry"
        elif step.prefill:
            kind = "mixed" if step.decode else "prefill"
        elif before is not None and before.prefill:
            kind = "joined"
        else:
            kind = "left" if before is not None and before.decode > step.decode else "decode"
        found.setdefault(kind, []).append((step.seconds, expected(step, table)))
        before = step
    return {
        kind: [
            len(pairs),
            round(float(np.median([a / b for a, b in pairs])), 3),
            round(1e3 * float(np.mean([a - b for a, b in pairs])), 2),
        ]
        for kind, pairs in found.items()
    }


def machine() -> dict[str, int]:
    """How often this thread has let go of its core and how often it was taken from it, the pages that it had to wait
    for, and the ticks for which all cores of this machine were kept from it, so far; nothing where that is not
    told."""
    out = {"faults": resource.getrusage(resource.RUSAGE_THREAD).ru_minflt}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.endswith("voluntary_ctxt_switches"):
                out[name.removesuffix("_ctxt_switches")] = int(value)
    with contextlib.suppress(OSError, ValueError, IndexError):
        out["steal"] = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    return out


def since(before: dict[str, int]) -> dict[str, int]:
    """What `machine` tells by now beyond what it told *before*."""
    return {what: ticks - before.get(what, 0) for what, ticks in machine().items()}


def stalls(steps: list[Any], gpu: list[list[float]], table: TokenTable | None) -> dict[str, list[float]]:
    """[how many, the largest in milliseconds] of the stalls in *steps* that were decided while another ran: "gap" are
    those of the GPU between two steps' graphs, "step" is what steps without a prefill took longer than in *table*."""
    found: dict[str, list[float]] = {"gap": [], "step": []}
    starts, before = [step.start for step in steps], None
    for at, _, gap in gpu:
        index = bisect.bisect_right(starts, at) - 1
        if index >= 0 and steps[index].behind and before == index - 1:
            found["gap"].append(gap)
        before = index
    if table is not None:
        found["step"] = [1e3 * (s.seconds - expected(s, table)) for s in steps if s.behind and not s.prefill]
    return {
        kind: [sum(ms > 1e3 * STALL for ms in all_ms), round(max(all_ms), 2)]
        for kind, all_ms in found.items()
        if all_ms
    }
