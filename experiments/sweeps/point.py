"""One point: an experiment that is run, and the row of numbers that it gives.

A point is known by its key, a hash of everything that can change its numbers: the resolved experiment, the profiles,
the policies' and our own code, traces and lists, Python. Equal keys mean equal rows, so a row need not be computed
twice. The process that runs a point says by what it ran it; a row is only ever kept under the key made of that.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from servetwin.core import BadInput, ServeTwinError, Summary
from servetwin.core.arithmetic import float_sum

from ..assembly.build import policies_used, run
from ..assembly.inputs import Inputs, difference, inputs_of
from ..provenance import policy_code, policy_imports
from ..provenance.file_digests import code_changed, combined
from ..provenance.stored_rows import Kept
from ..registry import autoscaler_registry, policy_objects, policy_registry, router_registry
from ..spec.experiment import Experiment, RelativeSLO
from ..spec.llm import TokenSLOSpec
from . import cluster
from .pool import pooled

Row = dict[str, Any]


class Progress(Protocol):
    """Hears how many points of how many have ended (None: not known), and their mean attainment, if it is known."""

    def __call__(self, done: int, total: int | None, share: float | None = None, /) -> None: ...


def key_of(experiment: Experiment) -> str:
    """The key of the point; raises `BadInput` if it names a profile, a policy or a trace that is not there."""
    return key_from(inputs_of(experiment))


def key_from(inputs: Inputs) -> str:
    """The key of a point that is made of *inputs*."""
    return combined(f"{name} {digest}" for name, digest in inputs.items())


def settings_of(experiment: Experiment) -> Row:
    """The columns that say which experiment a row is of."""
    load, slo = experiment.workload, experiment.slo
    settings: Row = {
        "workload": experiment.name,
        "policy": experiment.policy.name,
        "rate": getattr(load.arrivals, "rate", None),
        "cv": getattr(load.arrivals, "cv", None),
        "slo_factor": slo.factor if isinstance(slo, RelativeSLO) else None,
        "seed": experiment.seed,
        "deployment": deployment_of(experiment),
        "stop_after": experiment.system.stop_after,
    }
    if isinstance(slo, TokenSLOSpec):
        settings |= {"prefill_slo": slo.prefill, "decode_slo": slo.decode}
    return settings


def deployment_of(experiment: Experiment) -> str:
    """What the deployment is called, or, where it has no name, which modules share a worker."""
    plan = experiment.deployment
    return plan.name or " | ".join("+".join(worker.modules) for worker in plan.workers)


def served_by(experiment: Experiment) -> str:
    """The deployment in words: its name, its workers with their limits, and what else it has by the experiment."""
    plan = experiment.deployment
    workers = []
    for worker in plan.workers:
        where = f" on {worker.device}" if len(plan.devices) > 1 and worker.device is not None else ""
        size = f"{worker.threads} threads" if worker.limit is None else str(worker.limit)
        workers.append(f"{worker.name or '+'.join(worker.modules)}{where} ({size})")
    said = [f"{plan.name + ': ' if plan.name else ''}{', '.join(workers)}"]
    if any(worker.intake == "after" for worker in plan.workers):
        said.append("requests that arrive are taken in once a batch has started")
    if plan.estimates != "scheduler":
        said.append(f"estimates {plan.estimates}")
    if plan.replicas > 1:
        said.append(f"{plan.replicas} replicas")
    after = experiment.system.stop_after
    if after is not None:
        said.append(f"cut off {after:g} s after the last request was sent")
    return "; ".join(said)


def main_worker(experiment: Experiment) -> str:
    """The name of the worker that runs the first loop module, or else of the first worker."""
    loops = [m for m, spec in experiment.pipeline.modules.items() if spec.loop or spec.llm]
    workers = experiment.deployment.workers
    chosen = next((w for w in workers if loops and loops[0] in w.modules), workers[0])
    return chosen.name or "+".join(chosen.modules)


def results_of(experiment: Experiment, summary: Summary) -> Row:
    """The columns that the run gives: counts in requests, rates per second, latencies in milliseconds."""
    full = summary.as_dict()
    main = full["workers"].get(main_worker(experiment), {})
    columns = (
        *("requests", "met", "late", "dropped", "failed", "finished", "attainment"),
        *("request_throughput", "request_goodput", "duration", "arrival_span"),
        *("mean_e2el_ms", "median_e2el_ms", "p90_e2el_ms", "p99_e2el_ms"),
    )
    row = {name: full[name] for name in columns}
    row["cut_off"] = summary.cut_off
    row["iterations"] = main.get("iterations", 0)
    row["mean_batch_size"] = main.get("mean_batch_size")
    row["max_batch_size"] = main.get("max_batch_size")
    row |= {name: full[name] for name in TOKENS if name in full}
    if "cut" in full:
        row |= {f"{what}_cut": sum(int(cut[what]) for cut in full["cut"].values()) for what in ("prompts", "outputs")}
    for name, group in full.get("classes", {}).items():
        row |= {f"class.{name}.{column}": group[column] for column in ("requests", "attainment", "request_goodput")}
    row |= full.get("fairness", {})
    row |= full.get("quality", {})
    row |= full.get("cost", {})
    row |= full.get("fleet", {})
    row |= {key: told for key, told in full.get("faults", {}).items() if key != "workers"}
    row |= {name: value for name, value in full.get("placement", {}).items() if name != "models"}
    if used := full.get("device_groups", {}).get(main_worker(experiment)):
        row |= {name: used[name] for name in ("device_seconds", "mean_degree", "changes")}
    if predictions := full.get("predictions"):
        row["predictions"] = "; ".join(f"{module} {told}" for module, told in predictions.items())
    if experiment.time.hold:
        row["steps_beyond_measured"] = beyond_measured(summary)
    stages = full.get("window", {}).get("stages", {})
    row |= {f"{stage}.{name}": value for stage, rates in stages.items() for name, value in rates.items()}
    return row


def beyond_measured(summary: Summary) -> int:
    """How many steps went beyond what was measured, where `TimeOptions.hold` lets them; several tables that know too
    little of the same steps count once, and so do sequences and their context."""
    found: dict[str, int] = {}
    for held in summary.held:
        found[held["worker"]] = max(found.get(held["worker"], 0), held["steps"])
    return sum(found.values())


#: What a run of a single LLM adds (see docs/reference/token-metrics.md): tokens and requests per second, latencies
#: in milliseconds.
TOKENS = (
    *("token_goodput", "token_goodput_artifact", "prefill_goodput", "decode_goodput", "limits_goodput"),
    *("output_throughput", "total_token_throughput", "on_time_tokens", "late_tokens", "preemptions"),
    *("prefix_cache_hit_rate", "prefix_cache_hit_rate_on_host", "mean_acceptance_length", "adapter_loads"),
    *("handovers", "mean_handover_wait_ms", "mean_handover_ms", "handover_hit_rate"),
    *(f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "itl") for statistic in ("mean", "median", "p90", "p99")),
)


def run_point(experiment: Experiment) -> Row:
    """Run one point."""
    return results_of(experiment, run(experiment))


#: Runs a point. One that gives other rows than `run_point` has a *tag*, which is part of their keys.
Point = Callable[[Experiment], Row]


def _inputs(experiment: Experiment, point: Point | None, before: Inputs | None = None) -> Inputs:
    """What the row of a point is made of, the question that is asked of the run included."""
    tag = getattr(point, "tag", "")
    return {**inputs_of(experiment, before), **({"the question": combined([tag])} if tag else {})}


@dataclass(frozen=True)
class Outcome:
    """What a point gave, and what it was made of where it ran. *reads* are files that its policies read without
    declaring them, by path with their hashes; *doubts* say why the row cannot be kept; *changed* is what was not the
    same after the run as before: then the row is of neither."""

    number: int
    inputs: Inputs
    row: Row
    reads: Mapping[str, str]
    doubts: tuple[str, ...]
    changed: tuple[str, ...]


def run_numbered(number: int, experiment: Experiment, point: Point | None = None) -> Outcome:
    """Run one point, and say what it was made of. This is what other processes do."""
    try:
        with policy_code.as_loaded(), policy_imports.following():
            before = _inputs(experiment, point)
            since = len(policy_imports.loaded)
            row = (point or run_point)(experiment)
            codes = {name: policy_registry.code_of(name) for name in policies_used(experiment)}
            named = {spec.name for spec in experiment.deployment.routings.values()}
            codes |= {f"router {name}": router_registry.code_of(name) for name in sorted(named)}
            scaler = experiment.deployment.autoscaler
            if scaler is not None:
                codes[f"autoscaler {scaler.name}"] = autoscaler_registry.code_of(scaler.name)
            reads, changed = policy_code.settle(list(codes.values()), since)
            after = _inputs(experiment, point, before)
    except BadInput as error:
        raise BadInput(error.what, where=f"{title(experiment)}: {error.where or 'run'}", right=error.right) from None
    doubts = [f"{name}: {doubt}" for name, code in codes.items() for doubt in code.doubts]
    if code_changed():
        doubts.append(f"ServeTwin's own {code_changed()[0]} was changed since this process began: start it again")
    return Outcome(number, before, row, reads, tuple(doubts), (*difference(before, after), *changed))


def title(experiment: Experiment) -> str:
    """What tells a point from its neighbours, for messages."""
    settings = settings_of(experiment)
    keys = ("rate", "cv", "slo_factor", "prefill_slo", "decode_slo")
    numbers = [f"{k} {settings[k]:g}" for k in keys if settings.get(k) is not None]
    return ", ".join([str(settings["workload"]), str(settings["policy"]), *numbers])


class Changed(ServeTwinError):
    """What points are made of was changed while they ran, so that their rows do not belong together."""


class Together:
    """Points whose rows belong together: all are of the same version of whatever they share."""

    def __init__(self) -> None:
        self._inputs: dict[str, str] = {}
        self._reads: dict[str, str] = {}
        self.doubts: dict[str, None] = {}  #: why rows were not kept

    def take(self, inputs: Inputs, reads: Mapping[str, str]) -> None:
        """A row of *inputs* and *reads* is to be one of them. Raises `Changed` if it does not fit the others."""
        shared = {name: digest for name, digest in inputs.items() if name != "experiment"}
        for known, new in ((self._inputs, shared), (self._reads, dict(reads))):
            for name, digest in new.items():
                if known.setdefault(name, digest) != digest:
                    raise _changed([name])

    def made_of(self) -> dict[str, object]:
        """What all rows are made of, for the file beside a table: our code, versions, and the rest by name."""
        own = {"the code of ServeTwin": "code"}
        plain = {own.get(name, name): digest for name, digest in self._inputs.items() if not name.startswith("the ")}
        code = {new: self._inputs[name] for name, new in own.items() if name in self._inputs}
        named = {name: d for name, d in self._inputs.items() if name.startswith("the ") and name not in own}
        return {**code, **plain, "made_of": dict(sorted({**named, **self._reads}.items()))}


def _changed(names: Sequence[str]) -> Changed:
    what = ", ".join(dict.fromkeys(names))
    return Changed(f"{what} was changed while the points ran; rows are kept as what they are of: run the same again")


def run_all(
    experiments: Sequence[Experiment],
    *,
    jobs: int = -1,
    known: Callable[[str], Kept | None] | None = None,
    finished: Callable[[str, Row, Mapping[str, str]], None] | None = None,
    progress: Callable[[int, float | None], None] | None = None,
    together: Together | None = None,
    point: Point | None = None,
) -> list[Row]:
    """The rows of *experiments*, in their order, computed by *jobs* processes (-1: one per core) or on the cluster
    with *point* (`run_point`).

    Experiments with equal keys are run once; those that are *known* not at all. *finished* hears each new row that
    may be kept as it comes (key, row, further files that it depends on by their hashes), *progress* how many
    experiments have their row, and the mean attainment in those rows. With *together* these rows have to fit those of
    other calls. Raises `Changed` if what they are made of is changed meanwhile.
    """
    together = together or Together()
    made = [_inputs(e, point) for e in experiments]
    keys = [key_from(inputs) for inputs in made]
    rows: dict[str, Row] = {}
    for key, inputs in dict(zip(keys, made, strict=True)).items():
        kept = known(key) if known is not None else None
        together.take(inputs, kept.reads if kept is not None else {})
        if kept is not None:
            rows[key] = kept.row
    missing = {k: e for k, e in zip(keys, experiments, strict=True) if k not in rows}
    order = list(missing)
    expected = dict(zip(keys, made, strict=True))
    done = sum(k in rows for k in keys)
    if progress is not None:
        progress(done, mean_attainment(rows.values()))
    with closing(_in_parallel(list(missing.values()), jobs, point)) as outcomes:
        for outcome in outcomes:
            key = order[outcome.number]
            _accept(outcome, expected[key], missing[key], finished, together, point)
            rows[key] = outcome.row
            done += keys.count(key)
            if progress is not None:
                progress(done, mean_attainment(rows.values()))
    return [rows[k] for k in keys]


def mean_attainment(rows: Iterable[Row]) -> float | None:
    """The mean attainment of *rows*, None if none has one."""
    return _mean([row.get("attainment") for row in rows])


def _accept(
    outcome: Outcome,
    expected: Inputs,
    experiment: Experiment,
    finished: Callable[[str, Row, Mapping[str, str]], None] | None,
    together: Together,
    point: Point | None,
) -> None:
    """Keep the row of a point under the key of what it was made of, if it may be kept; raise unless that is as
    *expected*."""
    if outcome.changed:
        raise _changed(outcome.changed)
    if outcome.doubts:
        together.doubts |= dict.fromkeys(outcome.doubts)
    elif finished is not None:
        finished(key_from(outcome.inputs), outcome.row, outcome.reads)
    differing = difference(expected, outcome.inputs)
    if differing and difference(_inputs(experiment, point), expected):
        raise _changed(differing)
    if differing:
        what = f"{', '.join(differing)}: not the same in this process and in those that run the points"
        raise ServeTwinError(f"{what} (right would be: the same files and versions; start them again)")
    together.take(outcome.inputs, outcome.reads)


#: What is averaged over seeds; the other columns of a row are those of the first seed.
AVERAGED = (
    *("met", "late", "dropped", "failed", "cut_off", "finished"),
    *("attainment", "request_goodput", "mean_batch_size", "steps_beyond_measured"),
)


def run_all_averaged(
    experiments: Sequence[Experiment],
    seeds: int,
    *,
    jobs: int = -1,
    progress: Callable[[int, float | None], None] | None = None,
) -> list[Row]:
    """The rows of *experiments*, each run with *seeds* seeds (its own and those that follow) and averaged.

    What a measured run shows is one draw of its host's noise; the mean over several is what to expect. What each seed
    met is under ``met_by_seed``.
    """
    every = [e.model_copy(update={"seed": e.seed + k}) for e in experiments for k in range(seeds)]
    rows = run_all(every, jobs=jobs, progress=progress)
    means = []
    for i in range(0, len(rows), seeds):
        same = rows[i : i + seeds]
        mean = {name: _mean([row[name] for row in same]) for name in (*AVERAGED, *TOKENS) if name in same[0]}
        means.append({**same[0], **mean, "met_by_seed": [row["met"] for row in same]})
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float_sum(known) / len(known) if known else None


def _only_here(experiment: Experiment) -> bool:
    """Whether *experiment* has a policy that no other process knows (see
    `servetwin.experiments.registry.policy_objects`)."""
    return any(policy_objects.offered(name) is not None for name in policies_used(experiment))


def _in_parallel(experiments: Sequence[Experiment], jobs: int, point: Point | None) -> Generator[Outcome, None, None]:
    here = [number for number, experiment in enumerate(experiments) if _only_here(experiment)]
    others = [number for number in range(len(experiments)) if number not in set(here)]
    runner = cluster.current()
    if runner is not None and here:
        what = f"the policy {experiments[here[0]].policy.name} is known to this process alone"
        raise BadInput(what, where="--cluster", right="a file, my_policy.py, that all workers have")
    if runner is None and (jobs == 1 or len(others) <= 1):
        here, others = list(range(len(experiments))), []
    for number in here:
        yield run_numbered(number, experiments[number], point)
    if runner is not None:
        yield from runner(partial(run_numbered, point=point), experiments)
    elif others:
        yield from _in_processes(experiments, others, jobs, point)


def _run_elsewhere(
    here: tuple[str, tuple[str, ...]], number: int, experiment: Experiment, point: Point | None
) -> Outcome:
    """`run_numbered` in a process that may have been started long ago, in another folder: it finds files and modules
    where the process that asks finds them, whose folder and ``sys.path`` *here* are."""
    if os.getcwd() != here[0]:
        os.chdir(here[0])
    if tuple(sys.path) != here[1]:
        sys.path[:] = here[1]
    return run_numbered(number, experiment, point)


def _in_processes(
    experiments: Sequence[Experiment], numbers: Sequence[int], jobs: int, point: Point | None
) -> Generator[Outcome, None, None]:
    """The outcomes of those of *experiments* that have these *numbers*."""
    from joblib import delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        here = (os.getcwd(), tuple(sys.path))
        tasks = (delayed(_run_elsewhere)(here, i, experiments[i], point) for i in numbers)
        outcomes = pooled(jobs, tasks, in_order=False)
        try:
            for outcome in outcomes:  # noqa: UP028 - closed below, which "yield from" would do first
                yield outcome
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that what was under way was for nothing
                outcomes.close()
    except TerminatedWorkerError:
        raise ServeTwinError(
            "a worker process was killed, perhaps for want of memory; what had finished is kept: run the same again"
        ) from None
