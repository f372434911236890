"""Two runs of language models side by side: latencies of tokens, goodput, and what steps took against the profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

if TYPE_CHECKING:
    from servetwin.profiles import Profile, TokenTable

    from ...spec.experiment import Experiment, WorkerSpec

#: What is compared of each LLM stage where both runs have it, and where one has it (`LABELS`): keys of its summary.
BOTH = (
    *("output_throughput", "token_goodput", "prefill_goodput", "decode_goodput", "limits_goodput"),
    *(f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "itl") for statistic in ("mean", "median", "p99")),
    "preemptions",
)
#: What only runs with that option of an engine have: key, label, digits. The other run has nothing there.
LABELS = {
    "prefix_cache_hit_rate": ("prefix cache hit rate", 4),
    "prefix_cache_hit_rate_on_host": ("prefix cache hit rate, in host memory alone", 4),
    "handover_hit_rate": ("prompt tokens found where they decode", 4),
    "mean_handover_wait_ms": ("mean wait for a hand-over, ms", 1),
    "mean_handover_ms": ("mean hand-over, ms", 1),
    "adapter_loads": ("adapters loaded", 0),
    "spec_decode_num_draft_tokens": ("drafts", 0),
    "spec_decode_num_accepted_tokens": ("drafts accepted", 0),
    "mean_acceptance_length": ("tokens a step of a request", 3),
}
FIGURES = (*BOTH, *LABELS)


class EngineTimes(NamedTuple):
    """What the steps of an engine take by its profile and options: *steps* has its step times, *table* is the
    profile's own, *begins* seconds pass before each step, and *moves* gives what moving so many blocks or adapters
    for a step takes (None: it is not known)."""

    steps: Any
    table: TokenTable
    begins: float = 0.0
    moves: Callable[[int], float] | None = None


class EngineStep(NamedTuple):
    """A step of ``batches.jsonl``: seconds, what was prefilled as (id, tokens, tokens before), how many decoded and
    on how much context, and how many KV blocks or adapters were moved for it."""

    seconds: float
    prefill: list[tuple[int, int, int]]
    decode: int
    context: int
    moved: int = 0

    @property
    def kind(self) -> str:
        return ("mixed" if self.decode else "prefill") if self.prefill else "decode"

    def by(self, times: EngineTimes) -> float | None:
        """What *times* say that it takes, with the time between it and the step before; None if they do not say what
        is moved for it takes."""
        if self.moved and times.moves is None:
            return None
        tokens = sum(n for _, n, _ in self.prefill)
        squares = sum(n * n for _, n, _ in self.prefill)
        before = sum(n * context for _, n, context in self.prefill)
        seconds = times.begins + times.steps.between(self.decode + len(self.prefill))
        seconds += times.moves(self.moved) if self.moved and times.moves is not None else 0.0
        return seconds + times.steps.step(tokens, float(squares), float(before), self.decode, self.context)


def steps_of(record: Mapping[str, Any]) -> Iterator[EngineStep]:
    """The engine steps of a line of ``batches.jsonl``; none if it is no engine's."""
    if "prefill" not in record:
        return
    start, context, moved = record["start"], record["context"], record.get("moved", 0)
    for end in record.get("ends") or [record["end"]]:
        yield EngineStep(end - start, record["prefill"], record["decode"], context, moved)
        start, context, moved = end, context + record["decode"], 0


def figures(
    first: Mapping[str, Any], second: Mapping[str, Any], pair: Callable[[float | None, float | None], Any]
) -> dict[str, Any]:
    """The `FIGURES` of each LLM stage that both summaries have, as *pair* puts two numbers side by side."""
    a, b = first.get("llm", {}), second.get("llm", {})
    found: dict[str, Any] = {}
    for stage in [stage for stage in a if stage in b]:
        one, other = a[stage], b[stage]
        keys = [key for key in BOTH if key in one and key in other]
        keys += [key for key in LABELS if key in one or key in other]
        found[stage] = {key: pair(one.get(key), other.get(key)) for key in keys}
    return found


def steps(
    first: Iterator[dict[str, Any]],
    second: Iterator[dict[str, Any]],
    tables: Mapping[str, EngineTimes | None],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per engine and kind of step (prefill, decode, mixed): how many each run made, their mean in milliseconds, and
    what they took over what the profile's table says of the very same steps, with what the engine's options make of
    it (None: it does not reach). Where the
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
            times = tables.get(worker)
            statistic = _statistic(None if times is None else times.table, kind)
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


def _by(step: EngineStep, times: EngineTimes | None) -> float | None:
    if times is None:
        return None
    try:
        return step.by(times)
    except BadInput:
        return None


def tables_of(meta: Mapping[str, Any]) -> dict[str, EngineTimes | None]:
    """What the steps of each engine of a run take, by worker: by the measured latency model of its profile, and its
    options (drafts, adapters, KV in 8 bits or in host memory). None where a profile is not here or does not say it,
    or its model stands in stages: a step there has bubbles and sending in it."""
    from ...assembly.replicas import expanded
    from ...spec.experiment import Experiment

    found: dict[str, EngineTimes | None] = {}
    try:
        experiment = expanded(Experiment.model_validate(meta["experiment"]))
    except (KeyError, ValueError, BadInput):
        return found
    for spec in experiment.deployment.workers:
        if any(experiment.pipeline.modules[m].llm for m in spec.modules):
            name = spec.name or "+".join(spec.modules)
            try:
                found[name] = _times_of(spec, experiment)
            except (KeyError, BadInput):
                found[name] = None
    return found


def _times_of(spec: WorkerSpec, experiment: Experiment) -> EngineTimes | None:
    """As of `tables_of`, for the engine of *spec*. Raises `KeyError` or `BadInput` if nothing says it."""
    from servetwin.profiles import load
    from servetwin.profiles.tables.costs import BEGINS
    from servetwin.sim.measured import swap_of

    from ...assembly import engine_options
    from ...assembly.llm_workers import settings_of

    engine, devices = spec.engine, {spec.device or ""}
    if engine is not None and engine.pipeline_parallel is not None:
        return None
    if engine is not None and engine.speculative_config is not None:
        draft = engine.speculative_config.draft
        devices |= {draft.device} if draft is not None and draft.device is not None else set()
    profiles: dict[str, Profile] = {device: load(experiment.deployment.devices[device]) for device in devices}
    profile = profiles[spec.device or ""]
    ahead = settings_of(spec, profile).asynchronous
    # What passes between two steps is hidden behind them if they are decided ahead; if not, and the profile is of an
    # engine where they are, what passes until a step begins is not in its steps.
    table = profile.tokens("measured", "scheduler", between=not ahead)
    late = not ahead and profile.token_data.engine.asynchronous and BEGINS() in profile.costs
    costs = experiment.time.costs
    begins = profile.cost(BEGINS()).scalar() if late and costs else 0.0
    if engine is None or not engine.options:
        return EngineTimes(table, table, begins, swap_of(profile) if costs else _nothing)
    moves = engine_options.swap_of(spec, profiles) or swap_of(profile) if costs else _nothing
    return EngineTimes(engine_options.planned(spec, experiment, profiles, table), table, begins, moves)


def _nothing(blocks: int) -> float:
    return 0.0


def rows_of(found: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(label, key, digits) of the lines to show of a stage's figures."""
    units = {"output_throughput": "tokens/s", "token_goodput": "tokens on time/s"}
    for key in found:
        if key in LABELS:
            label, digits = LABELS[key]
            yield label, key, digits
        elif key.endswith("_ms"):
            yield f"{key.removesuffix('_ms').replace('_', ' ')}, ms", key, 1
        elif key == "preemptions":
            yield key, key, 0
        else:
            yield units.get(key, f"{key.replace('_', ' ')}, requests/s"), key, 2
