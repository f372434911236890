"""What a profile says of a language model whose steps were made in all compositions (`compositions`), and judged.

`section` makes the ``tokens`` and ``costs`` of a profile file of the parts that were played; steps of traffic among
them are for `blind` alone, which says how far the profile is off on them, by kind of step.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from servetwin.profiles.llm.recent_load import Curves, recent_load_of
from servetwin.profiles.llm.schema import TokenModel
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.profiles.tables.cost import Cost
from servetwin.profiles.tables.costs import RECENT_LOAD, RECENT_LOAD_MEMORY

from ..measuring.decode_points import FEW
from ..measuring.device_steps import Sample, Steps, all_samples
from ..measuring.step_cells import CONTEXTS
from . import decode_fit, host_fit, pass_fit

#: Seconds in which what was computed fades.
MEMORY = 0.05
#: Up to how many tokens steps share a curve by density.
LOADS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 32768)
#: Kinds of steps, as they are judged.
KINDS = ("decode", "prompts", "chunks", "mixed", "beyond graphs")
#: Fewer steps of a kind, or of a place in the table of decode steps, are not judged.
JUDGED = 20
#: Places in that table: sequences from and to, and tokens of context of each.
BATCHES = ((1, 3), (4, 9), (10, 24), (25, 48), (49, 96), (97, 160), (161, 256), (257, 512), (513, 4096))
LONG = ((1, 255), (256, 511), (512, 1023), (1024, 2047), (2048, 4095), (4096, 8191), (8192, 1 << 20))


def kind_of(sample: Sample, graphs: int) -> str:
    """Of `KINDS`."""
    if graphs and sample.tokens > graphs:
        return KINDS[4]
    if not sample.prompt:
        return KINDS[0]
    if sample.decode:
        return KINDS[3]
    return KINDS[2] if sample.pairs else KINDS[1]


def section(
    parts: Sequence[Steps], described: dict[str, Any], origin: dict[str, str], intake: Sequence[float] = ()
) -> dict[str, Any]:
    """``tokens`` and ``costs`` of a profile file, of the *parts* that were played on the engine *described*, with its
    graphs; what taking requests in took, in seconds, is *intake*. Parts of kind "traffic" are not looked at, but for
    the host and the judgement. Raises `ValueError` where there is nothing to fit."""
    graphs = tuple(described["graphs"])
    last = max(graphs, default=0)
    found = all_samples(parts, last, MEMORY)
    made = [s for s in found if s.kind != "traffic"]
    model = pass_fit.fit(made, graphs, MEMORY)
    options = described["options"]
    content: dict[str, Any] = {
        "surface": _surface(made, options, origin),
        "prefill": _prefill(model, made, options["max_batched_tokens"], origin),
        "mixed": _mixed(model, made, origin),
    }
    table = TokenTable(TokenModel.model_validate(content), hold=True)
    costs = _recent_load(model, made, table, last, origin) | host_fit.host(parts, found, last, origin)
    costs |= host_fit.intake(intake, origin) | host_fit.stalls(parts, last, origin)
    judged = blind(found, table, costs, last, origin)
    tokens = _tokens(content, table, described, origin) | ({"blind": judged} if judged else {})
    regions = decode_regions(found, table, costs)
    return {"tokens": tokens | ({"decode_regions": regions} if regions else {}), "costs": costs}


def blind(
    found: Sequence[Sample], table: TokenTable, costs: dict[str, Any], graphs: int, origin: dict[str, str]
) -> dict[str, Any] | None:
    """How far *table* and the paces among *costs* are off on the steps of traffic in *found*; None without any."""
    errors = blind_errors(found, table, costs, graphs)
    kinds = {}
    for kind, values in errors.items():
        if len(values) >= JUDGED:
            off = np.abs(values)
            kinds[kind] = {
                "steps": len(values),
                "median": round(float(np.median(off)), 5),
                "p95": round(float(np.quantile(off, 0.95)), 5),
                "bias": round(float(np.median(values)), 5),
            }
    if not kinds:
        return None
    left = sum(s.kind == "traffic" and (s.waited or not s.alone) for s in found)
    every = sum(s.kind == "traffic" for s in found)
    return {
        "kinds": kinds,
        "statistic": "absolute errors of single steps, as shares of what each took on the device",
        "source": origin,
        "note": f"requests at random, that the profile was not made of; {left} of {every} steps are left out, in "
        "which the device waited for the host",
    }


def blind_errors(
    found: Sequence[Sample], table: TokenTable, costs: dict[str, Any], graphs: int
) -> dict[str, list[float]]:
    """(predicted - taken) / taken of the steps of traffic in *found* that did not wait for their launch, by kind."""
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for s, error in _errors([s for s in found if s.kind == "traffic"], table, costs):
        errors[kind_of(s, graphs)].append(error)
    return errors


def _errors(some: Sequence[Sample], table: TokenTable, costs: dict[str, Any]) -> Iterator[tuple[Sample, float]]:
    """Those of *some* steps that did not wait for their launch, each with (predicted - taken) / taken."""
    load = recent_load_of({name: Cost.model_validate(cost) for name, cost in costs.items()})
    for s in some:
        if s.waited or not s.alone:
            continue
        seconds = seconds_of(s, table)
        if load is not None:
            kind = "decode" if not s.prompt else "mixed" if s.decode else "prefill"
            curves = load.curves.get(kind) or load.curves.get("prefill", Curves())  # type: ignore[call-overload]
            seconds *= curves.at(s.tokens, s.density)
        yield s, seconds / s.seconds - 1.0


def decode_regions(found: Sequence[Sample], table: TokenTable, costs: dict[str, Any]) -> list[dict[str, Any]]:
    """How far *table* is off on the steps in *found* that only decode, place by place: on those that it was made of,
    since a table of few or of disturbed points is read by its neighbours, and on those of traffic, as far as that has
    such batches."""
    errors: dict[tuple[bool, tuple[int, int], tuple[int, int]], list[float]] = {}
    for s, error in _errors([s for s in found if s.decode and not s.prompt], table, costs):
        each = int(s.context / s.decode)
        batch = next((b for b in BATCHES if b[0] <= s.decode <= b[1]), None)
        long = next((c for c in LONG if c[0] <= each <= c[1]), None)
        if batch is not None and long is not None:
            errors.setdefault((s.kind != "traffic", batch, long), []).append(error)
    return [
        {
            "batch": list(batch),
            "context": list(long),
            "steps": len(values),
            "bias": round(float(np.median(values)), 5),
            "own": own,
        }
        for (own, batch, long), values in sorted(errors.items())
        if len(values) >= JUDGED
    ]


def seconds_of(sample: Sample, table: TokenTable) -> float:
    """What *table* says of a step."""
    return table.step(sample.prompt, float(sample.squares), float(sample.pairs), sample.decode, float(sample.context))


def _surface(made: Sequence[Sample], options: dict[str, Any], origin: dict[str, str]) -> dict[str, Any]:
    most = max((s.context / s.decode for s in made if s.decode and not s.prompt), default=1.0)
    contexts = [c for c in CONTEXTS if c <= 1.3 * most] or [CONTEXTS[0]]
    sizes, seconds, few = decode_fit.surface(made, contexts)
    steps = [s for s in made if not s.prompt and s.alone]
    note = {}
    if few:
        some = ", ".join(f"batch {size} at {context} tokens" for size, context in few[:8])
        more = f" and {len(few) - 8} more" if len(few) > 8 else ""
        what = f"fewer than {FEW} steps that did not wait for the host, and stand on their neighbours"
        note = {"note": f"{len(few)} points have {what}: {some}{more}"}
    return {
        "batch": sizes,
        "per_sequence": contexts,
        "seconds": [[round(value, 7) for value in row] for row in seconds],
        "between": "line",
        "until_context": int(max(s.context for s in steps) * 1.5) + 1,
        "statistic": "least squares through steps of even and of uneven batches, on the device",
        "samples": len(steps),
        "source": origin,
        **note,
    }


def _prefill(
    model: pass_fit.PassModel, made: Sequence[Sample], budget: int, origin: dict[str, str]
) -> dict[str, Any]:
    """By tokens: both ends of each stair of the graphs, and what is straight beyond them. Tiles that are not full
    are in the squares."""
    last = max(model.graphs, default=0)
    before = [0, *model.graphs]
    tokens = sorted({*(n + 1 for n in before if n < last), *model.graphs, *(int(k) for k in model.knots if k > last)})
    tokens = [n for n in tokens if n <= budget]
    if tokens[-1] < budget:
        tokens.append(budget)
    per_square, per_tile, each = (model.terms[name] for name in ("squares", "tiles", "each"))

    def alone(n: int) -> float:
        tile = per_tile * n * (-n % pass_fit.TILE) if n <= 4 * pass_fit.TILE else 0.5 * per_tile * n * pass_fit.TILE
        return model.a_pass(n) + 0.5 * per_square * n * n + tile + each

    # Policies plan with more than a step takes: the line of the last passes goes on.
    end = tokens[-1]
    slope = (model.a_pass(end) - model.a_pass(end // 2)) / (end - end // 2)
    square = 0.5 * per_square
    return {
        "tokens": tokens,
        "beyond": {
            "c0": round(alone(end) - slope * end - square * end * end, 9),
            "c1": float(f"{slope:.6g}"),
            "c2": float(f"{square:.6g}"),
            "until": 8 * budget,
            "statistic": "the line from half the budget to all of it goes on",
            "source": origin,
        },
        "seconds": [[round(max(alone(n), 1e-7), 7) for n in tokens]],
        "between": "line",
        "statistic": "least squares through steps of all compositions, on the device",
        "per_pair": float(f"{model.terms['pairs']:.6g}"),
        "per_square": float(f"{0.5 * per_square:.6g}"),
        "source": origin,
        "note": f"{sum(bool(s.prompt and s.alone) for s in made)} steps",
    }


def _mixed(model: pass_fit.PassModel, made: Sequence[Sample], origin: dict[str, str]) -> dict[str, Any]:
    return {
        "rule": "one_pass",
        "decoding": {
            "tokens": list(pass_fit.LENGTHS),
            "per_sequence": [float(f"{v:.6g}") for v in model.per_sequence],
            "per_context": [float(f"{v:.6g}") for v in model.per_context],
            "per_both": float(f"{model.terms['both']:.6g}"),
        },
        "source": origin,
        "note": f"{sum(bool(s.prompt and s.decode and s.alone) for s in made)} steps",
    }


def _recent_load(
    model: pass_fit.PassModel, made: Sequence[Sample], table: TokenTable, last: int, origin: dict[str, str]
) -> dict[str, Any]:
    """``prefill.recent_load``, and what steps take by the density before them."""
    common: dict[str, Any] = {"statistic": "least squares", "source": origin}
    how = "steps of all compositions, between more and fewer that only decode"
    densities = sorted({max(1, round(float(d))) for d in model.densities})
    costs: dict[str, Any] = {
        RECENT_LOAD_MEMORY(): {
            "meaning": "within how many seconds tokens that were computed fade from the density on which a step "
            "depends",
            "unit": "seconds",
            "modules": ["prefill", "decode"],
            "value": MEMORY,
            "how": how,
            **(common | {"statistic": "set"}),
        }
    }
    most = max(s.tokens for s in made)
    for limit in LOADS:
        if limit <= most or limit == next((p for p in LOADS if p >= most), None):
            seconds = model.a_pass(int(0.8 * limit))
            shares = [round(float(model.share(seconds, d)), 5) for d in densities]
            costs[RECENT_LOAD("prefill", limit)] = {
                "meaning": f"how long a step that computes prompts takes over the table, with up to {limit} tokens, "
                "by the tokens a second computed lately",
                "unit": "ratio",
                "modules": ["prefill"],
                "by_batch": {"batch": densities, "values": shares},
                "how": how,
                **common,
            }
    steps = [s for s in made if not s.prompt and s.alone and not s.waited]
    usual = np.array([table.decode(s.decode, s.context) for s in steps])
    knots, ratios = decode_fit.over_recent_load(steps, usual)
    costs[RECENT_LOAD("decode", 32768)] = {
        "meaning": "how long a step that only decodes takes over the table, by the tokens a second computed lately",
        "unit": "ratio",
        "modules": ["decode"],
        "by_batch": {"batch": knots, "values": [round(r, 5) for r in ratios]},
        "samples": len(steps),
        "how": how,
        **common,
    }
    return costs


def engine_limits(described: dict[str, Any]) -> dict[str, Any]:
    """What a profile says of the version and the limits of the engine that was *described*."""
    options = described["options"]
    return {
        "name": f"vLLM {described['vllm']}",
        "max_batched_tokens": options["max_batched_tokens"],
        "max_sequences": options["max_sequences"],
        "max_model_len": options["max_model_len"],
        "gpu_memory_utilization": options["gpu_memory_utilization"],
        "chunked_prefill": True,
    }


def _tokens(
    content: dict[str, Any], table: TokenTable, described: dict[str, Any], origin: dict[str, str]
) -> dict[str, Any]:
    options, graphs = described["options"], tuple(described["graphs"])
    d0, d1 = table.solo_decode()
    if d0 <= 0.0 or d1 < 0.0:  # only chance makes longer contexts faster
        d0, d1 = statistics.fmean(content["surface"]["seconds"][0]), 0.0
    engine = {
        **engine_limits(described),
        "cuda_graphs": bool(graphs),
        "compiled": bool(options["compiled"]),
        "asynchronous": bool(options["asynchronous"]),
        "note": f"torch.compile and graphs as vLLM has them by default ({described.get('mode', 'none')})",
    }
    if graphs:
        engine["graph_tokens"] = max(graphs)
    return {
        "architecture": options["model"],
        "tensor_parallel": options["tensor_parallel"],
        "engine": engine,
        "kv": {
            "block_size": described["block_size"],
            "blocks": described["blocks"],
            "statistic": "what the engine reported, less the one that it keeps for itself",
        },
        "step_includes": "the device from the end of the step before, or from when it could begin, to its own end "
        "(events on its stream); what the host does beside it stands apart, and a step is not over before it is "
        "launched",
        "solo": {
            "d0": round(d0, 9),
            "d1": round(d1, 12),
            "statistic": "least squares line through the decode steps of one sequence",
            "source": origin,
        },
        "kinds": {"measured": content},
    }
