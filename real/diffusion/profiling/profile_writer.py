"""What a profiler measured, as the content of a profile file."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from servetwin.profiles import costs as costs_of
from servetwin.profiles.verdict import undisturbed

from ...server import device_facts, versions
from ..kind import Kind
from .profiler import CASES, COLD_STEPS, WAITING

if TYPE_CHECKING:
    from .measured import Measured
    from .profiler import Profiler

#: Who measured.
SOURCE = {"file": "real/diffusion/profiling/profiler.py"}
#: What a residual's quantiles are taken at.
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
#: Digits after the point.
ROUND = 9
#: What is measured one request at a time: fields of `Measured`.
ONE_BY_ONE = ("joins", "starting", "leaving", "leaves")


def write_profile(content: Mapping[str, Any], path: Path) -> None:
    """Write what `take_profile` gave with its verdict, after checking it against the schema."""
    from servetwin.profiles.verdict import with_verdict

    content = with_verdict(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(content), sort_keys=False, width=118, default_flow_style=None, allow_unicode=True)
    path.write_text("# Made by `servetwin profile`; times in seconds.\n" + text, encoding="utf-8")


#: What profiles call a precision.
_SHORT = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


def as_profile(profiler: Profiler, found: Measured, name: str, command: str) -> dict[str, Any]:
    """The content of the profile file."""
    kind = profiler.kind
    slots = profiler.server.device_slots(profiler.device)
    facts = device_facts(slots.device)
    costs = _costs(profiler, found)
    for cost in costs.values():
        cost["source"] = {**SOURCE, "name": cost.pop("of")}
    fitted = ", ".join(f"{k} {v}" for k, v in {**versions(), **_clocks(slots.device)}.items())
    return {
        "schema_version": 1,
        "name": name,
        "description": f"{kind.title}, {facts['name']}",
        "device": {
            "name": facts["name"],
            "kind": "gpu" if slots.gpu else "cpu",
            **({"memory_gib": facts["memory_gib"]} if slots.gpu else {}),
        },
        "model": kind.title.split(",")[0],
        "precision": _SHORT[str(slots.model.dtype)],
        "image": list(kind.size),
        **({"frames": kind.frames} if kind.frames is not None else {}),
        "batch_counts": "requests"
        + ("; classifier-free guidance doubles the rows inside the UNet" if kind.rows == 2 else ""),
        "measured_when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "origin": {"repository": f"this one; {command}"},
        "limits_of_data": (
            f"Weights {'random' if profiler.server.options.weights is None else 'from a checkpoint'}; "
            f"{'one CUDA graph per batch size' if slots.model.execution.graphs else 'eager'}; "
            f"driver {facts.get('driver', 'none')}; {fitted}"
        ),
        "execution": {
            **slots.model.execution.as_dict(),
            "ready_seconds": round(slots.seconds[kind.loop], 1),
        },
        "took": dict(profiler.took),
        "modules": modules_of(kind, found),
        "costs": dict(costs),
    }


def modules_of(kind: Kind, found: Measured) -> dict[str, Any]:
    """The tables of the modules of *kind* that were measured."""
    modules: dict[str, Any] = {}
    for module in kind.modules:
        if module == kind.loop:
            period = {n: [d + statistics.fmean(found.gap[n]) for d in found.iteration[n]] for n in found.iteration}
            modules[module] = {
                "loop": True,
                "rows_per_request": kind.rows,
                "tables": {
                    "scheduler": _table(period, statistics.median, "median"),
                    "measured": _table(period, statistics.fmean, "mean", spread=True),
                },
            }
        elif module in found.modules:
            table = _table(_kept(found.modules[module]), statistics.median, "median")
            modules[module] = {"loop": False, "tables": {"scheduler": table}}
        for kept in modules.get(module, {}).get("tables", {}).values():
            kept["source"] = {**SOURCE, "name": "running" if module == kind.loop else "modules"}
    return modules


def _table(
    samples: Mapping[int, Sequence[float]],
    statistic: Callable[[Sequence[float]], float],
    word: str,
    *,
    spread: bool = False,
) -> dict[str, Any]:
    sizes = sorted(samples)
    table: dict[str, Any] = {
        "batch": sizes,
        "seconds": [round(float(statistic(samples[n])), ROUND) for n in sizes],
        "samples": [len(samples[n]) for n in sizes],
        "statistic": word,
    }
    if spread:
        table["spread"] = {
            f"p{p:02}": [round(float(np.percentile(samples[n], p)), ROUND) for n in sizes] for p in (5, 50, 95, 99)
        }
    return table


def _by_batch(values: Mapping[int, float], counts: Mapping[int, int] | None = None) -> dict[str, Any]:
    sizes = sorted(values)
    out: dict[str, Any] = {"batch": sizes, "values": [round(float(values[n]), ROUND) for n in sizes]}
    if counts is not None:
        out["samples"] = [counts[n] for n in sizes]
    return out


def _quantiles(values: Sequence[float]) -> dict[str, Any]:
    return {"p": list(SHARES), "values": [round(float(np.quantile(values, p)), ROUND) for p in SHARES]}


def _middle(values: Sequence[float]) -> float:
    """The mean without the largest and the smallest tenth, in which hiccups of the host are; of a few the median."""
    cut = len(values) // 10
    return statistics.fmean(sorted(values)[cut : len(values) - cut]) if cut else statistics.median(values)


def _kept(by_size: Mapping[int, list[float]]) -> dict[int, list[float]]:
    """The samples of modules that run once, without those that a hiccup of the host made long: they are few, and one
    would decide a mean. (Iterations of the loop are many, and their hiccups are those of a run.)"""
    return {n: undisturbed(samples) for n, samples in by_size.items()}


def _mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), ROUND)


class _Costs(dict[str, dict[str, Any]]):
    """Terms that are no latency table, by their names in `servetwin.profiles.tables.costs`."""

    def add(
        self, name: str, meaning: str, how: str, of: str, *modules: str, unit: str = "seconds", **forms: Any
    ) -> None:
        """A term of *modules*, measured in the part *of* a profile's taking."""
        self[name] = {"meaning": meaning, "unit": unit, "modules": list(modules), **forms, "how": how, "of": of}


def _costs(profiler: Profiler, found: Measured) -> _Costs:
    """Every term that is no latency table."""
    costs = _Costs()
    _add_joins_and_leaves(costs, profiler.loop, found)
    _add_crowds(costs, profiler.loop, found)
    _add_stages(costs, found)
    _add_whole_requests(costs, profiler, found)
    _add_contention(costs, profiler, found)
    if found.client:
        meaning = "from sent by the client until queued at the first stage"
        value, quantiles = _mean(found.client), _quantiles(found.client)
        name = costs_of.TRANSPORT("client", profiler.kind.modules[0])
        costs.add(name, meaning, "with the loop half busy", "client", value=value, quantiles=quantiles)
    # What the simulator does not read, since the tables contain it, or to explain what they hold:
    _add_gaps(costs, profiler.loop, found)
    _add_iterations(costs, profiler.loop, found)
    return costs


def _add_joins_and_leaves(costs: _Costs, loop: str, found: Measured) -> None:
    """What is measured one request at a time."""
    # Medians: there are some ten samples of each, and a hiccup of the host in one of them would decide a mean.
    each = {name: statistics.median(v) for name, v in vars(found).items() if name in ONE_BY_ONE and v}
    how = "one at a time"

    def few(kind: str) -> dict[str, Any]:
        return {"statistic": "median", "samples": len(getattr(found, kind))}

    if "joins" in each:
        meaning = "what an iteration takes longer for each request that begins with it"
        value, samples = round(each["joins"], ROUND), len(found.joins)
        costs.add(costs_of.JOIN(loop), meaning, how, "running", loop, value=value, samples=samples)
    if "joins" in each and "starting" in each:
        meaning = "what the first iteration after an idle period takes longer beside that"
        value = round(max(each["starting"] - each["joins"], 0.0), ROUND)
        costs.add(costs_of.COLD(loop), meaning, how, "running", loop, value=value, **few("starting"))
    if "leaving" in each:
        meaning = "what an iteration takes longer for each request that ends with it"
        line = {"constant": 0.0, "per_request": round(max(each["leaving"], 0.0), ROUND)}
        costs.add(costs_of.LEAVE(loop), meaning, how, "running", loop, line=line, **few("leaving"))
    if "leaves" in each:
        meaning = "what the gap after an iteration takes longer for each request that ended with it"
        value = round(max(each["leaves"], 0.0), ROUND)
        costs.add(costs_of.PAUSE(loop), meaning, how, "running", loop, value=value, **few("leaves"))


def _add_crowds(costs: _Costs, loop: str, found: Measured) -> None:
    """What several requests cost that begin or end with one iteration."""
    meanings = {
        "joins": "what an iteration takes longer if so many requests begin with it",
        "leaves": "what an iteration takes longer if so many requests end with it",
        "pauses": "what the gap after an iteration takes longer if so many requests ended with it",
    }
    names = {"joins": costs_of.JOINS, "leaves": costs_of.LEAVES, "pauses": costs_of.PAUSES}
    for kind, by_count in found.crowds.items():
        enough = {n: v for n, v in by_count.items() if len(v) >= CASES}
        values = {n: max(_middle(v), 0.0) for n, v in enough.items()}
        counts = {n: len(v) for n, v in enough.items()}
        if 1 in values:
            by_batch = _by_batch(values, counts)
            how = "as requests arrive; mean of the middle eight tenths"
            costs.add(names[kind](loop), meanings[kind], how, "arrivals", loop, by_batch=by_batch)


def _add_stages(costs: _Costs, found: Measured) -> None:
    """What a batch of each stage takes alone."""
    for stage, samples in found.stages.items():
        modules = stage.split("+")
        by_size = _kept(samples)
        values = {n: statistics.fmean(v) for n, v in by_size.items()}
        counts = {n: len(v) for n, v in by_size.items()}
        meaning = "a batch of the stage, from launch until it was heard to be over"
        how = "with nothing else running"
        costs.add(costs_of.TIME(modules[0]), meaning, how, "plain", *modules, by_batch=_by_batch(values, counts))


def _add_whole_requests(costs: _Costs, profiler: Profiler, found: Measured) -> None:
    """Batches of whole requests, against what the tables of the scheduler expect of them."""
    ratios: dict[int, list[float]] = {}
    for (steps, n), took in found.whole.items():
        ratios.setdefault(n, []).append(statistics.median(took) / profiler.expected(steps, n))
    means = {n: statistics.fmean(v) for n, v in ratios.items()}
    meaning = "time of a batch of whole requests over what the scheduler's tables expect of it"
    how = "one worker for all modules; the value is that of a batch of one"
    value, by_batch = round(means[1], ROUND), _by_batch(means)
    forms = {"value": value, "by_batch": by_batch, "statistic": "mean at batch 1"}
    costs.add(costs_of.WHOLE_RATIO(), meaning, how, "whole", unit="ratio", **forms)
    spread = [t / profiler.expected(steps, n) / means[n] for (steps, n), took in found.whole.items() for t in took]
    meaning = "the same over its mean at that batch size"
    costs.add(costs_of.WHOLE_SPREAD(), meaning, "all together", "whole", unit="ratio", quantiles=_quantiles(spread))
    if found.between:
        meaning = "from the end of a batch of whole requests to the start of the next, where one waits"
        pauses = {n: _middle(v) for n, v in found.between.items()}
        costs.add(costs_of.WHOLE_PAUSE(), meaning, "batches on end", "whole", by_batch=_by_batch(pauses))


def _add_contention(costs: _Costs, profiler: Profiler, found: Measured) -> None:
    """How fast each stage gets on while others are busy."""
    order, loop = profiler.stages, profiler.loop
    how = "period alone over period together; the value is the mean over batch sizes"
    for key, rates in found.rates.items():
        stage, others = key[0], key[1:]
        # The tables go by the batch of the loop, or else of the later stage; those of the others come by name.
        lead = loop if loop in key else max(key, key=order.index)
        late = max((name for name in key if name != lead), key=order.index)
        pair = profiler.head(stage), [profiler.head(name) for name in others]
        while_busy = f"{' and '.join(others)} {'is' if len(others) == 1 else 'are'} busy"
        for m in sorted({m for _, m in rates}):
            column = {n: rate for (n, by), rate in rates.items() if by == m}
            if m == 1:
                name = costs_of.BESIDE(*pair)
                meaning = f"rate at which {stage} gets on while {while_busy}, by the batch of {lead}; others in ones"
            else:
                name = costs_of.BESIDE_BATCH(*pair, m)
                meaning = f"the same with {late} in batches of {m}"
            forms = {"value": _mean(column.values()), "by_batch": _by_batch(column)}
            costs.add(name, meaning, how, "contention", profiler.head(stage), unit="ratio", **forms)


def _add_gaps(costs: _Costs, loop: str, found: Measured) -> None:
    """The time between two iterations, under all policies and under each."""
    gaps = {n: statistics.fmean(v) for n, v in found.gap.items()}
    meaning = "from the end of an iteration to the launch of the next; the measured periods contain it"
    costs.add(costs_of.GAP(loop), meaning, "all policies together", "running", loop, by_batch=_by_batch(gaps))
    for policy, by_size in found.policies.items():
        values = {n: statistics.fmean(v) for n, v in by_size.items()}
        meaning = f"{costs_of.GAP(loop)} under the policy {policy}"
        costs.add(costs_of.GAP_OF(loop, policy), meaning, "nobody waits", "running", loop, by_batch=_by_batch(values))
        meaning = f"what {policy} takes longer between two iterations for each request that it leaves waiting"
        how = f"{WAITING} wait, two run"
        value = round(max(found.deciding[policy], 0.0), ROUND)
        costs.add(costs_of.DECIDING_OF(loop, policy), meaning, how, "policies", loop, value=value)


def _add_iterations(costs: _Costs, loop: str, found: Measured) -> None:
    """How iterations spread, what they take alone, and what the first of a batch or after an idle period take."""
    residuals = [d / statistics.fmean(v) for v in found.iteration.values() for d in v]
    meaning, how = "time of an iteration over its mean at that batch size", "all batch sizes together"
    quantiles = _quantiles(residuals)
    costs.add(costs_of.RESIDUAL(loop), meaning, how, "running", loop, unit="ratio", quantiles=quantiles)
    tails = {n: float(np.percentile(v, 99)) / statistics.median(v) for n, v in found.plain.items()}
    counts = {n: len(v) for n, v in found.plain.items()}
    meaning = "99th percentile of an iteration over its median, nothing else going on"
    costs.add(costs_of.P99(loop), meaning, "plain", "plain", loop, unit="ratio", by_batch=_by_batch(tails, counts))
    alone = {n: statistics.median(v) for n, v in found.plain.items()}
    meaning = "median of an iteration from launch until heard, nothing else going on"
    costs.add(costs_of.PLAIN(loop), meaning, "plain", "plain", loop, by_batch=_by_batch(alone, counts))
    meaning, by_batch = "what the first iteration of a batch takes longer if all of it begins at once", found.together
    name = costs_of.JOIN_TOGETHER(loop)
    costs.add(name, meaning, "first iterations", "plain", loop, by_batch=_by_batch(by_batch))
    for idle, seconds in found.cold.items():
        meaning = f"what a request of {COLD_STEPS} steps takes longer after {idle:g} s without work"
        name, value = costs_of.AFTER_IDLE(loop, f"{idle:g}"), round(seconds, ROUND)
        costs.add(name, meaning, "requests one by one", "cold", loop, value=value)


def _clocks(device: torch.device) -> dict[str, str]:
    """The clock of a GPU just after measuring, if it can be asked for."""
    if device.type != "cuda":
        return {}
    try:
        return {"SM clock": f"{torch.cuda.clock_rate(device)} MHz"}
    except Exception:  # what it needs is optional
        return {}
