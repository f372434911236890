"""What a profile file says of a language model that was measured with the pipeline full (`async_steps`)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from servetwin.profiles.tables.costs import BEGINS, LAUNCH, STALL, STALL_CHANGING, STALL_EVERY

from ...scheduler import StepLog
from ..measuring.async_steps import Rotation, both_ends
from ..measuring.recent_load import STALLED, recent_load_costs, stalled
from ..measuring.step_grid import Measured
from .grid_fit import _mixed, _per_pair, _prefill, between_cost, intake_cost, ratio_costs, section_of, surface_of

#: Decode steps of a batch that are left out after it has changed: the first pays for the change.
CHANGE = 2
#: Seconds by which the tokens before a step must have come late for its launch to show.
LATE = 1e-3
#: With fewer stalls than this nothing is said of them.
STALLS = 5


def steady_section(
    measured: Sequence[Measured], described: dict[str, Any], rotation: Rotation, source: str
) -> dict[str, Any]:
    """The ``tokens`` and ``costs`` of a profile file, of what `rotate` gave on the engine *described*.

    *source* names the file that the steps are kept in. Tables hold medians of steps that were decided while another
    ran. What is launched kernel by kernel, beyond the graphs, keeps the host from hearing of the step before it: such
    a step counts from when that one should have been over.
    """
    from servetwin.profiles.llm.schema import TokenModel
    from servetwin.profiles.llm.step_table import TokenTable

    options = described["options"]
    origin = {"file": source}
    steady = {kind: [s for one in measured if one.kind == kind for s in one.steps if s.behind] for kind in KINDS}
    single = max(sum(n for _, n, _ in s.prefill) for s in steady["prefill"] if len(s.prefill) == 1)
    fill = [s for s in steady["fill"] if not s.decode and s.tokens > single]
    decodes = [step for one in measured if one.kind == "decode" for step in _settled(one.steps) if step.behind]
    prefills = [s for s in steady["prefill"] if s.prefill and not s.decode]
    graphs = options["graphs"] if options.get("graphs_for") == "all" else ()
    # With both ends of each stair measured the way between them is a line, and so is the jump to the next.
    sizes = {step.decode for step in decodes}
    padded = bool(options["graphs"]) and not sizes.issuperset(both_ends(sorted(sizes), options["graphs"]))
    model: dict[str, Any] = {"surface": _surface(decodes, rotation.contexts, padded, origin)}
    budget, within = options["max_batched_tokens"], max(graphs, default=options["max_batched_tokens"])

    def prefill_of(steps: Sequence[StepLog]) -> dict[str, Any]:
        return _prefill([*steps, *fill], rotation.prompts, budget, graphs, origin)

    model["prefill"] = prefill_of(prefills)
    if graphs:
        plain = TokenTable(TokenModel.model_validate(model), hold=True)
        model["prefill"] = prefill_of(
            [*_alone(measured, plain, within), *(s for s in prefills if s.tokens <= within)]
        )
    plain = TokenTable(TokenModel.model_validate(model), hold=True)
    model["prefill"]["per_pair"] = _per_pair(steady["chunks"], plain)
    plain = TokenTable(TokenModel.model_validate(model), hold=True)
    mixed = [s for s in steady["mixed"] if s.prefill and s.decode]
    mixed = [s for s in mixed if s.tokens <= within] or mixed
    model["mixed"] = _mixed(mixed, plain, origin)
    table = TokenTable(TokenModel.model_validate(model), hold=True)
    costs = _costs(measured, table, within, origin)
    costs |= recent_load_costs(measured, lambda step: expected(step, table), within, budget, origin)
    costs |= _launch_cost(measured, table, within if graphs else 0, origin)
    costs |= _stall_costs(measured, table, within, costs, origin)
    includes = (
        "the period of a step that is decided while another runs: from the tokens of that one on the host until its "
        "own are there (vLLM in one process, asynchronous scheduling). What a step takes longer that nothing runs "
        "before, and what the host does until it asks for the next one, stand apart"
    )
    section = section_of(model, table, described, includes, origin)
    if graphs:
        section["engine"]["graph_tokens"] = within
    return {"tokens": section, "costs": costs}


def _stall_costs(
    measured: Sequence[Measured], table: Any, within: int, costs: dict[str, Any], origin: dict[str, str]
) -> dict[str, Any]:
    """``host.stall``, ``host.stall_every`` and, of traffic, ``host.stall_every.changing``: a host that stands still
    while it launches a step keeps the tokens of the one that runs back, if it does so for longer than that one has
    left. Told by steps that only decode."""
    hidden = costs[BEGINS()]["value"] if BEGINS() in costs else 0.0
    found: dict[bool, list[float]] = {False: [], True: []}  # by whether what is launched changes the batch
    busy = {False: 0.0, True: 0.0}
    for one in measured:
        if one.kind not in ("decode", "prefill", "traffic"):
            continue
        for three in zip(one.steps, one.steps[1:], one.steps[2:], strict=False):
            before, step, after = three
            if step.prefill or not all(s.behind and s.tokens <= within for s in three):
                continue
            changing = bool(after.prefill) or after.decode < step.decode
            if one.kind != "traffic" and (changing or before.prefill or before.decode != step.decode):
                continue  # in rows those who come and go are many, and take time of their own
            busy[changing] += step.seconds
            usual = expected(step, table)
            # What the next step makes up for was no time lost: the device was at work before the host was through.
            seconds = step.seconds + min(0.0, after.seconds - expected(after, table))
            if stalled(seconds - usual, usual):
                found[changing].append(max(seconds - hidden, STALLED))
    if len(found[False]) < STALLS:
        return {}
    lengths = sorted(found[False] + found[True])
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    common: dict[str, Any] = {"unit": "seconds", "modules": ["prefill", "decode"], "source": origin}

    def every(meaning: str, changing: bool) -> dict[str, Any]:
        count = len(found[changing])
        return {
            "meaning": meaning,
            "value": round(busy[changing] / count, 7),
            "statistic": f"{busy[changing]:.1f} busy seconds over their number",
            "how": "the same steps",
            "samples": count,
            **common,
        }

    told = {
        STALL(): {
            "meaning": "for how long the host stands still, now and then, while it launches a step",
            "value": round(statistics.fmean(lengths), 7),
            "quantiles": {
                "p": list(shares),
                "values": [round(lengths[int(p * (len(lengths) - 1))], 7) for p in shares],
            },
            "statistic": "mean",
            "how": "what steps that decode took whose tokens came late, less what the next one made up for and "
            "step.begins; stalls that a step hides are not seen",
            "samples": len(lengths),
            **common,
        },
        STALL_EVERY(): every("from one such stall to the next, while the engine is busy", False),
    }
    if len(found[True]) >= STALLS:
        told[STALL_CHANGING()] = every(
            "likewise, while what is launched computes prompts, or lacks somebody who was in the step before", True
        )
    return told


def _behind_graph(measured: Sequence[Measured], within: int) -> Iterator[tuple[StepLog, StepLog]]:
    """(step, next one) where only the next one has more than *within* tokens, both decided while another ran."""
    for one in measured:
        for before, step in itertools.pairwise(one.steps):
            if step.behind and before.behind and before.tokens <= within < step.tokens:
                yield before, step


def _alone(measured: Sequence[Measured], table: Any, within: int) -> list[StepLog]:
    """Prefills of more than *within* tokens, from when the step before each should have been over by *table*."""
    return [
        replace(step, start=0.0, after=before.began + expected(before, table))
        for before, step in _behind_graph(measured, within)
        if not step.decode
    ]


def _launch_cost(measured: Sequence[Measured], table: Any, within: int, origin: dict[str, str]) -> dict[str, Any]:
    """``step.launch``, where the tokens of the step before came late for it."""
    found = sorted(
        step.after - step.start
        for before, step in _behind_graph(measured, within)
        if step.after - before.began > expected(before, table) + LATE
    )
    if not within or not found:
        return {}
    tenth = len(found) // 10
    return {
        LAUNCH(): {
            "meaning": f"from when the scheduler is asked for a step of more than {within} tokens until the host has "
            "launched it, kernel by kernel: only then it hears of the step before",
            "unit": "seconds",
            "modules": ["prefill", "decode"],
            "value": round(statistics.fmean(found[tenth : len(found) - tenth]), 7),
            "statistic": "mean of the middle eight tenths",
            "samples": len(found),
            "how": "until the tokens of the step before such a step were there, where they came late",
            "source": origin,
        }
    }


KINDS = ("fill", "prefill", "decode", "mixed", "chunks")


def _settled(steps: Sequence[StepLog]) -> Iterator[StepLog]:
    """Decode steps without the first ones after the batch changed."""
    before, count = 0, 0
    for step in steps:
        count = count + 1 if step.decode == before and not step.prefill else 1
        before = step.decode
        if count > CHANGE and not step.prefill:
            yield step


def _surface(
    steps: Sequence[StepLog], contexts: Sequence[int], padded: bool, origin: dict[str, str]
) -> dict[str, Any]:
    """Seconds by batch size and context per sequence: medians about each of *contexts*, brought to it by straight
    lines between."""
    near: dict[int, dict[int, list[tuple[float, float]]]] = {}
    for step in steps:
        each = step.context / step.decode
        knot = min(contexts, key=lambda k: max(k / each, each / k) if each else k)
        near.setdefault(step.decode, {}).setdefault(knot, []).append((each, step.seconds))
    points = {
        size: sorted((statistics.median(c for c, _ in p), statistics.median(s for _, s in p)) for p in of.values())
        for size, of in near.items()
    }
    knots = sorted({k for of in near.values() for k in of})
    reach = {size: [k for k in knots if k <= max(of)] for size, of in near.items()}
    return surface_of(points, knots, reach, padded) | {
        "statistic": "median of the periods of steps in random order; straight lines between contexts",
        "samples": len(steps),
        "source": origin,
    }


def begins(measured: Sequence[Measured], table: Any) -> dict[str, list[float]]:
    """Seconds by kind of step that those took longer than *table* says which nothing ran before.

    Of decode steps those count whose batch is that of the steps before the rest.
    """
    found: dict[str, list[float]] = {"prefill": [], "decode": [], "mixed": []}
    for one in measured:
        if one.kind not in found:
            continue
        for before, step in itertools.pairwise(one.steps):
            if step.behind or (one.kind == "decode" and before.decode != step.decode):
                continue
            if one.kind == "prefill" and not step.prefill:
                continue
            found[one.kind].append(step.seconds - expected(step, table))
    return found


def expected(step: StepLog, table: Any) -> float:
    """Seconds that *table* gives for *step*."""
    total = sum(n for _, n, _ in step.prefill)
    squares = float(sum(n * n for _, n, _ in step.prefill))
    context = float(sum(n * c for _, n, c in step.prefill))
    return float(table.step(total, squares, context, step.decode, step.context))


def between(steps: Sequence[StepLog]) -> Iterator[tuple[int, float]]:
    """(sequences of a step, seconds from its tokens until the scheduler is asked for the next step) of *steps* that
    are made without a gap: that is asked for while the step after it runs."""
    for first, _, third in zip(steps, steps[1:], steps[2:], strict=False):
        if third.behind and third.start >= first.end:
            yield first.decode + len(first.prefill), third.start - first.end


def _costs(measured: Sequence[Measured], table: Any, within: int, origin: dict[str, str]) -> dict[str, Any]:
    gaps: dict[int, list[float]] = {}
    for one in measured:
        if one.kind == "decode":
            for size, seconds in between(one.steps):
                gaps.setdefault(size, []).append(seconds)
    costs = between_cost(gaps, ", while the step after it runs", "without a gap", origin)
    dry = begins(measured, table)
    medians = {kind: statistics.median(values) for kind, values in dry.items() if values}
    if medians:
        told = ", ".join(f"{kind} {1e3 * value:.2f} ms ({len(dry[kind])})" for kind, value in medians.items())
        costs[BEGINS()] = {
            "meaning": "what a step takes longer that nothing runs before, from when the scheduler is asked until "
            "its tokens are there: deciding and launching it is not hidden",
            "unit": "seconds",
            "modules": ["prefill", "decode"],
            "value": round(max(0.0, statistics.median(v for values in dry.values() for v in values)), 7),
            "statistic": f"median; by kind of step: {told}",
            "samples": sum(map(len, dry.values())),
            "how": "steps after the engine had run dry, less what the table says for them",
            "source": origin,
        }
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for one in measured:
        if one.kind in ratios:
            for step in one.steps if one.kind == "prefill" else _settled(one.steps):
                if not step.behind or bool(step.prefill) != (one.kind == "prefill") or step.tokens > within:
                    continue  # beyond the graphs a period is not what the step takes
                usual = expected(step, table)
                if not stalled(step.seconds - usual, usual):  # that is counted apart
                    ratios[one.kind].append(step.seconds / usual)
    return costs | intake_cost(measured, origin) | ratio_costs(ratios, origin)
