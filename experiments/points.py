"""One point: an experiment that is run, and the row of numbers that it gives.

A point is known by its key, a hash of everything that can change its numbers: the resolved experiment, the profiles,
the policies' and our own code, the trace. Equal keys mean equal rows, so a row need not be computed twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import servetwin.core
from servetwin.core import BadInput, ServeTwinError, Summary

from . import registry
from .build import load_profiles, policies_used, run
from .config import Experiment, RelativeSLO
from .llmspec import TokenSLOSpec
from .workload import read_trace

Row = dict[str, Any]


@cache
def code_digest() -> str:
    """A hash of the code that simulates."""
    root = Path(servetwin.core.__file__).parents[1]
    digest = hashlib.sha256()
    for package in ("core", "policies", "profiles", "sim", "experiments"):
        for file in sorted((root / package).glob("*.py")):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def _profile_digest(name: str) -> str:
    from servetwin.profiles import load

    return load(name).digest


def key_of(experiment: Experiment) -> str:
    """The key of the point; raises `BadInput` if it names a profile, a policy or a trace that is not there."""
    trace = read_trace(experiment)
    parts = [
        experiment.digest(),
        *(p.digest for p in load_profiles(experiment).values()),
        *(registry.code_digest(name) for name in policies_used(experiment)),
        trace.digest if trace is not None else "",
        code_digest(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
    }
    if isinstance(slo, TokenSLOSpec):
        settings |= {"prefill_slo": slo.prefill, "decode_slo": slo.decode}
    return settings


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
    row["iterations"] = main.get("iterations", 0)
    row["mean_batch_size"] = main.get("mean_batch_size")
    row["max_batch_size"] = main.get("max_batch_size")
    row |= {name: full[name] for name in TOKENS if name in full}
    if "cut" in full:
        row |= {f"{what}_cut": sum(cut[what] for cut in full["cut"].values()) for what in ("prompts", "outputs")}
    stages = full.get("window", {}).get("stages", {})
    row |= {f"{stage}.{name}": value for stage, rates in stages.items() for name, value in rates.items()}
    return row


#: What a run of a single LLM adds (see docs/llm.md): tokens and requests per second, latencies in milliseconds.
TOKENS = (
    *("token_goodput", "token_goodput_artifact", "prefill_goodput", "decode_goodput", "limits_goodput"),
    *("output_throughput", "total_token_throughput", "on_time_tokens", "late_tokens", "preemptions"),
    *(f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "itl") for statistic in ("mean", "median", "p99")),
)


def run_point(experiment: Experiment) -> Row:
    """Run one point."""
    return results_of(experiment, run(experiment))


#: Runs a point and gives a row that its key, with the *tag* of this, is of.
Point = Callable[[Experiment], Row]


def _run_numbered(number: int, experiment: Experiment, point: Point | None) -> tuple[int, Row]:
    try:
        return number, (point or run_point)(experiment)
    except BadInput as error:
        raise BadInput(error.what, where=f"{title(experiment)}: {error.where or 'run'}", right=error.right) from None


def title(experiment: Experiment) -> str:
    """What tells a point from its neighbours, for messages."""
    settings = settings_of(experiment)
    keys = ("rate", "cv", "slo_factor", "prefill_slo", "decode_slo")
    numbers = [f"{k} {settings[k]:g}" for k in keys if settings.get(k) is not None]
    return ", ".join([str(settings["workload"]), str(settings["policy"]), *numbers])


def run_all(
    experiments: Sequence[Experiment],
    *,
    jobs: int = -1,
    known: Mapping[str, Row] | None = None,
    finished: Callable[[str, Row], None] | None = None,
    progress: Callable[[int], None] | None = None,
    point: Point | None = None,
) -> list[Row]:
    """The rows of *experiments*, in their order, computed by *jobs* processes (-1: one per core) with *point*
    (`run_point`).

    Experiments with equal keys are run once; those in *known* not at all. *finished* hears each new (key, row) as it
    comes, *progress* how many experiments have their row.
    """
    tag = getattr(point, "tag", "")
    keys = [key_of(e) + tag for e in experiments]
    rows = {k: known[k] for k in keys if known and k in known}
    missing = {k: e for k, e in zip(keys, experiments, strict=True) if k not in rows}
    order = list(missing)
    done = sum(k in rows for k in keys)
    if progress is not None:
        progress(done)
    for number, row in _in_parallel(list(missing.values()), jobs, point):
        key = order[number]
        rows[key] = row
        if finished is not None:
            finished(key, row)
        done += keys.count(key)
        if progress is not None:
            progress(done)
    return [rows[k] for k in keys]


#: What is averaged over seeds; the other columns of a row are those of the first seed.
AVERAGED = ("met", "late", "dropped", "failed", "finished", "attainment", "request_goodput", "mean_batch_size")


def run_all_averaged(
    experiments: Sequence[Experiment],
    seeds: int,
    *,
    jobs: int = -1,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """The rows of *experiments*, each run with *seeds* seeds (its own and those that follow) and averaged.

    What a measured run shows is one draw of its host's noise; the mean over several is what to expect.
    """
    every = [e.model_copy(update={"seed": e.seed + k}) for e in experiments for k in range(seeds)]
    rows = run_all(every, jobs=jobs, progress=progress)
    means = []
    for i in range(0, len(rows), seeds):
        same = rows[i : i + seeds]
        mean = {name: _mean([row[name] for row in same]) for name in (*AVERAGED, *TOKENS) if name in same[0]}
        means.append({**same[0], **mean})
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _portions(tasks: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(tasks)
    while portion := list(islice(remaining, size)):
        yield portion


def _in_parallel(experiments: Sequence[Experiment], jobs: int, point: Point | None) -> Iterator[tuple[int, Row]]:
    if jobs == 1 or len(experiments) <= 1:
        for number, experiment in enumerate(experiments):
            yield _run_numbered(number, experiment, point)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    tasks: Iterable[Any] = (delayed(_run_numbered)(i, e, point) for i, e in enumerate(experiments))
    try:
        try:
            parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
        except ValueError:  # this back-end (Ray's) gives its results all at once, so it gets the work in portions
            for portion in _portions(tasks, 64):
                yield from Parallel(n_jobs=jobs)(portion)
        else:
            yield from parallel(tasks)
    except TerminatedWorkerError:
        raise ServeTwinError(
            "a worker process was killed, perhaps for want of memory; what had finished is kept: run the same again"
        ) from None
