"""Two runs of language models side by side: latencies of tokens, goodput, and what steps took against the profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

if TYPE_CHECKING:
    from servetwin.profiles import TokenTable

#: What is compared of each LLM stage: keys of its summary.
FIGURES = (
    *("output_throughput", "token_goodput", "prefill_goodput", "decode_goodput", "limits_goodput"),
    *(f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "itl") for statistic in ("mean", "median", "p99")),
    "preemptions",
    "prefix_cache_hit_rate",
)


class EngineStep(NamedTuple):
    """A step of ``batches.jsonl``: seconds, what was prefilled as (id, tokens, tokens before), how many decoded and
    on how much context."""

    seconds: float
    prefill: list[tuple[int, int, int]]
    decode: int
    context: int

    @property
    def kind(self) -> str:
        return ("mixed" if self.decode else "prefill") if self.prefill else "decode"

    def by(self, table: TokenTable) -> float:
        """What *table* says that it takes, with the time between it and the step before."""
        tokens = sum(n for _, n, _ in self.prefill)
        squares = sum(n * n for _, n, _ in self.prefill)
        before = sum(n * context for _, n, context in self.prefill)
        pause = table.between(self.decode + len(self.prefill))
        return pause + table.step(tokens, float(squares), float(before), self.decode, self.context)


def steps_of(record: Mapping[str, Any]) -> Iterator[EngineStep]:
    """The engine steps of a line of ``batches.jsonl``; none if it is no engine's."""
    if "prefill" not in record:
        return
    start, context = record["start"], record["context"]
    for end in record.get("ends") or [record["end"]]:
        yield EngineStep(end - start, record["prefill"], record["decode"], context)
        start, context = end, context + record["decode"]


def figures(
    first: Mapping[str, Any], second: Mapping[str, Any], pair: Callable[[float | None, float | None], Any]
) -> dict[str, Any]:
    """The `FIGURES` of each LLM stage that both summaries have, as *pair* puts two numbers side by side."""
    a, b = first.get("llm", {}), second.get("llm", {})
    return {
        stage: {key: pair(a[stage][key], b[stage][key]) for key in FIGURES if key in a[stage] and key in b[stage]}
        for stage in a
        if stage in b
    }


def steps(
    first: Iterator[dict[str, Any]],
    second: Iterator[dict[str, Any]],
    tables: Mapping[str, TokenTable | None],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per engine and kind of step (prefill, decode, mixed): how many each run made, their mean in milliseconds, and
    what they took over what the profile's table says of the very same steps (None: it does not reach). Where the
    table holds medians (*statistic*) that is the median of the steps' ratios, else what they took in all over what it
    says in all."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, lines in (("first", first), ("second", second)):
        seconds: dict[tuple[str, str], list[float]] = {}
        expected: dict[tuple[str, str], list[float] | None] = {}
        for record in lines:
            for step in steps_of(record):
                key = (record["worker"], step.kind)
                seconds.setdefault(key, []).append(step.seconds)
                told = expected.setdefault(key, [])
                by = _by(step, tables.get(record["worker"])) if told is not None else None
                if told is None or by is None:
                    expected[key] = None
                else:
                    told.append(by)
        for (worker, kind), took in seconds.items():
            told = expected[worker, kind]
            statistic = _statistic(tables.get(worker), kind)
            found.setdefault(worker, {}).setdefault(kind, {})[name] = {
                "steps": len(took),
                "mean_ms": 1e3 * mean(took),
                "over_table": _over(took, told, statistic) if told else None,
                "statistic": statistic if told else None,
            }
    return found


def _over(took: list[float], told: list[float], statistic: str) -> float:
    if statistic == "median":
        return median(a / b for a, b in zip(took, told, strict=True))
    return float_sum(took) / float_sum(told)


def _statistic(table: TokenTable | None, kind: str) -> str:
    """What the table holds of steps of a *kind*: "median" or "mean"."""
    if table is None:
        return "mean"
    decode = table.model.line or table.model.surface
    said = [table.model.prefill.statistic] if kind != "decode" else []
    said += [decode.statistic] if kind != "prefill" and decode is not None else []
    return "median" if any(text.startswith("median") for text in said) else "mean"


def _by(step: EngineStep, table: TokenTable | None) -> float | None:
    if table is None:
        return None
    try:
        return step.by(table)
    except BadInput:
        return None


def tables_of(meta: Mapping[str, Any]) -> dict[str, TokenTable | None]:
    """The measured latency model of each engine of a run, by worker; None where its profile is not here, or
    its model stands in stages: a step there has bubbles and sending in it."""
    from servetwin.profiles import load

    from ...assembly.llm_workers import settings_of
    from ...assembly.replicas import expanded
    from ...spec.experiment import Experiment

    found: dict[str, TokenTable | None] = {}
    try:
        experiment = expanded(Experiment.model_validate(meta["experiment"]))
    except (KeyError, ValueError, BadInput):
        return found
    for spec in experiment.deployment.workers:
        if any(experiment.pipeline.modules[m].llm for m in spec.modules):
            name = spec.name or "+".join(spec.modules)
            if spec.engine is not None and spec.engine.pipeline_parallel is not None:
                found[name] = None
                continue
            try:
                profile = load(experiment.deployment.devices[spec.device or ""])
                # What passes between two steps is hidden behind them if they are decided ahead.
                found[name] = profile.tokens(
                    "measured", "scheduler", between=not settings_of(spec, profile).asynchronous
                )
            except (KeyError, BadInput):
                found[name] = None
    return found


def rows_of(found: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(label, key, digits) of the lines to show of a stage's figures."""
    units = {"output_throughput": "tokens/s", "token_goodput": "tokens on time/s"}
    for key in found:
        if key.endswith("_ms"):
            yield f"{key.removesuffix('_ms').replace('_', ' ')}, ms", key, 1
        elif key == "preemptions":
            yield key, key, 0
        elif key == "prefix_cache_hit_rate":
            yield "prefix cache hit rate", key, 4
        else:
            yield units.get(key, f"{key.replace('_', ' ')}, requests/s"), key, 2
