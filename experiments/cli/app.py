"""The commands of ``servetwin``. What a command needs is imported when it runs, so that help comes at once."""

from __future__ import annotations

import gc
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from servetwin.core import BadInput

from .commands import options, real_runs
from .commands.bound import bound
from .commands.explain import explain
from .commands.explore import explore
from .commands.figures import demo, figures, plot, trace
from .commands.imports import convert, import_profile
from .commands.league import league
from .commands.lists import policies, profiles, workloads
from .commands.options import AsJson, Jobs, Strict
from .commands.plan import plan
from .commands.real_runs import (
    Ahead,
    AnyDevice,
    ApiKeyEnv,
    CompileWhat,
    Devices,
    Eager,
    Model,
    Processes,
    RunBackend,
    Sampler,
    Slots,
    Url,
    Weights,
)
from .commands.report import report
from .output import run_output, score_output, terminal
from .output.terminal import print_json, say
from .output.terminal import progress as _progress

if TYPE_CHECKING:
    from ..backends.diffusion import Setup
    from ..backends.serve import Served
    from ..spec.experiment import Experiment
    from ..validation.envelope.standing import Standing, Standings
    from ..validation.replay.host_band import OnHost

app = typer.Typer(
    name="servetwin",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve deep-learning requests in simulation, under a scheduling policy of your choice: what holds which "
    "SLO, at which rate, on which GPU. One policy file decides in simulation and on real GPUs alike.",
    epilog="Start with: servetwin demo · servetwin run dit-s2-256-rtx4090 --rate 4 · servetwin policies",
)

Cluster = Annotated[
    str | None, typer.Option(help="Run on a Dask or Ray cluster: tcp://host:8786, ray://host:10001, or ray.")
]
Cached = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse results of points that were run before.")]
AsTheyAre = Annotated[
    bool,
    typer.Option(
        "--as-they-are", help="Accept run folders made with other policies, profiles or options than today's."
    ),
]
SweepOut = Annotated[
    Path | None,
    typer.Option(
        help="Output table, .csv or .parquet; real runs: a folder that gets a run folder per point. With --json and "
        "simulated runs it may be left out."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the experiment: --set slo.factor=2.5 (repeatable)."
    ),
]


app.callback()(terminal.about)


# -- one run --------------------------------------------------------------------------------------------


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="A workload's name (see `servetwin workloads`) or a YAML file.")],
    policy: Annotated[
        str | None, typer.Option(help="A policy by name (neustream, edf, ...), or a file: my_policy.py.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Mean arrival rate, in requests per second.")] = None,
    cv: Annotated[
        float | None,
        typer.Option(help="Coefficient of variation of the gaps between arrivals; 1: Poisson, larger: bursts."),
    ] = None,
    slo: Annotated[
        float | None, typer.Option(help="SLO, as a multiple of the latency of a request served alone.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Number of requests.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of arrivals, lengths and noise.")] = None,
    sets: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the records of the run; created, must not contain a run.")
    ] = None,
    as_json: AsJson = False,
    backend: RunBackend = "sim",
    devices: Devices = None,
    model: Model = None,
    weights: Weights = None,
    eager: Eager = False,
    sampler: Sampler = None,
    any_device: AnyDevice = False,
    slots: Slots = None,
    processes: Processes = False,
    compile_what: CompileWhat = None,
    url: Url = None,
    api_key_env: ApiKeyEnv = None,
    asynchronous: Ahead = None,
    strict: Strict = False,
    windows: options.Windows = None,
    objective: options.Objective = None,
    jobs: options.RunJobs = None,
    cluster: Cluster = None,
    host_factor: options.HostFactor = None,
) -> None:
    """Run one experiment: in simulation, or for real on devices of this machine (--backend real)."""
    from ..backends.serve import serve
    from ..registry.catalog import source_of
    from ..spec.loading import load
    from ..spec.overrides import ByOption
    from ..validation.envelope import standing as validity

    short = {"policy": policy, "rate": rate, "cv": cv, "slo": slo, "requests": requests, "seed": seed}
    chosen = load(
        source_of(experiment),
        [*((ByOption(k), v) for k, v in short.items() if v is not None), *options.overrides_of(sets, short)],
    )
    run_output.check_windows(chosen, out, windows, objective)
    hosts = options.hosts_of(chosen, host_factor, backend)
    began = time.perf_counter()
    modules = _of_modules(devices, weights, sampler, slots, processes, compile_what)
    ahead = {"--url": url, "--api-key-env": api_key_env, "--asynchronous": asynchronous}
    ahead["--synchronous"] = asynchronous is False
    others = {"--model": model, "--eager": eager, "--any-device": any_device}
    _check_options(backend, chosen, modules, ahead, others)
    stands = None
    if strict:
        options.only_simulated({"--strict": backend != "sim"})
        validity.refuse([stands := validity.of(chosen)])
    setup = None
    if backend != "sim":
        setup = _setup(devices, model, weights, eager, sampler, any_device, slots, processes, compile_what)
    more = {"url": url, "api_key_env": api_key_env, "asynchronous": asynchronous}
    gc.freeze()  # modules and what they hold are there to stay: neither the run nor the exit looks them through
    options.only_simulated(
        {"--jobs": backend != "sim" and jobs is not None, "--cluster": backend != "sim" and cluster}
    )
    with terminal.watching(chosen.workload.requests) as watch, options.split(jobs, cluster) as many:
        aside = real_runs.say_aside if backend == "sim" else _say  # why a run is not split is told in any case
        told = {"say": aside, "watch": watch, "jobs": many}
        served = serve(chosen, out, backend=backend, setup=setup, **more, **told)  # type: ignore[arg-type]
    took = time.perf_counter() - began
    stands = stands or (validity.of(chosen) if served.real is None else None)
    by_host = options.band_of(chosen, hosts, jobs)
    _tell(chosen, served, took, out, stands, by_window=(windows, objective), by_host=by_host, as_json=as_json)


def _tell(
    chosen: Experiment,
    served: Served,
    took: float,
    out: Path | None,
    stands: Standing | None,
    *,
    by_window: tuple[float | None, float | None],
    by_host: list[OnHost],
    as_json: bool,
) -> None:
    """Print what came of a run that *took* so many seconds, whose records are in *out*, and where it *stands*;
    *by_window*: the seconds of windows to tell it by, and an objective; *by_host*: what it comes to on other hosts.
    """
    from ..assembly import build
    from ..assembly.pipeline import stale_unused

    if chosen.deployment.prices is not None and "cost" not in served.summary:  # a real run: who computed is not told
        from ..assembly.costs import costs
        from ..assembly.replicas import expanded

        served.summary["cost"] = costs(expanded(chosen), served.summary, None)
    use = run_output.use_of(out) if out is not None else None
    beside: dict[str, Any] = {"use": use} if use is not None else {}
    told = None
    if out is not None and by_window[0] is not None:
        from ..reporting.windows import of_run

        told = of_run(out, *by_window)
        beside["windows"] = told.as_dict()
    if by_host:
        beside["by_host"] = [one.as_dict() for one in by_host]
    if as_json:
        print_json({**served.summary, **({} if stands is None else {"validity": stands.as_dict()}), **beside})
        return
    run_output.show_run(chosen, served.summary, took, use)
    if told is not None:
        run_output.show_windows(told)
    if by_host:
        run_output.show_hosts(by_host)
    for line in stale_unused(chosen):
        say(line)
    if served.real is not None:
        run_output.show_real(served.real)
    else:
        for line in (*build.time_shared(chosen), *build.policy_not_measured(chosen), f"validity: {stands}"):
            say(line)
    if out is not None:
        say(f"records in {out}")


def _check_options(
    backend: str, chosen: Experiment, modules: dict[str, Any], ahead: dict[str, Any], others: dict[str, Any]
) -> None:
    """Raise `BadInput` if an option was given that *backend* does not have: of *modules*, of vLLM (*ahead*), or what
    both of them have (*others*)."""
    if backend == "sim":
        options.only_real({**modules, **ahead, **others})
    elif backend == "vllm":
        options.only_modules(modules)
        options.only_with_url({"--api-key-env": ahead["--api-key-env"] if not ahead["--url"] else None})
    else:
        options.only_vllm(ahead)
        from ..backends import pipeline

        if pipeline.serves(chosen):
            options.only_modules({**modules, "--eager": others["--eager"]})


def _of_modules(
    devices: object, weights: object, sampler: str | None, slots: object, processes: bool, compile_what: object
) -> dict[str, Any]:
    """The options that real modules have and vLLM has not."""
    given = {"--device": devices, "--weights": weights, "--sampler": sampler, "--slots": slots}
    return {**given, "--processes": processes, "--compile": compile_what}


def _setup(devices: list[str] | None, *rest: Any) -> Setup:
    from ..backends.diffusion import Setup

    return Setup(tuple(devices or ()), *rest)


def _say(what: str) -> None:
    """A step of something slow, to whoever sits at the terminal."""
    if sys.stderr.isatty():
        typer.echo(what, err=True)


# -- many runs ------------------------------------------------------------------------------------------


@app.command()
def sweep(
    spec: Annotated[str, typer.Argument(help="A sweep file, or the name of a figure (figure11, figure12).")],
    out: SweepOut = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds per point; rows then contain 95 % intervals.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Add seeds until attainment is known to so many percentage points either way: 0.5pp."),
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Upper limit on seeds for --until; by default 100.")] = None,
    versus: Annotated[
        str | None,
        typer.Option(help="A policy: adds how much better or worse each other one is than it, seed by seed."),
    ] = None,
    bound: Annotated[
        bool,
        typer.Option("--bound", help="Add the most that any schedule could meet, and what is met as a share of it."),
    ] = False,
    cluster: Cluster = None,
    cache: Cached = True,
    jobs: Jobs = -1,
    backend: RunBackend = "sim",
    repeats: Annotated[int, typer.Option(min=1, help="Real runs per point, with the same requests.")] = 1,
    devices: Devices = None,
    model: Model = None,
    weights: Weights = None,
    eager: Eager = False,
    sampler: Sampler = None,
    any_device: AnyDevice = False,
    slots: Slots = None,
    processes: Processes = False,
    compile_what: CompileWhat = None,
    as_they_are: AsTheyAre = False,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Run an experiment over a grid of settings; one row per point. An interrupted sweep resumes.

    With --backend real or vllm each point is served for real, and leaves a run folder.
    """
    if out is None and (backend != "sim" or not as_json):
        raise options.no_out("--json, to print the table" if backend == "sim" else "")
    modules = _of_modules(devices, weights, sampler, slots, processes, compile_what)
    if backend != "sim":
        assert out is not None
        more = {"--until": until, "--most": most, "--bound": bound, "--versus": versus, "--cluster": cluster}
        options.only_simulated({**more, "--strict": strict})
        setup = _setup(devices, model, weights, eager, sampler, any_device, slots, processes, compile_what)
        if backend == "vllm":
            options.only_modules(modules)
        count = real_runs.serve_sweep(spec, out, backend, setup, seeds or 1, repeats, as_they_are)
        real_runs.tell(count, out, as_json)
        return
    real = {**modules, "--model": model, "--eager": eager, "--any-device": any_device, "--as-they-are": as_they_are}
    options.only_real({**real, "--repeats": repeats > 1})
    _check_most(most, until)
    from ..bound import sweep_bounds
    from ..sweeps import sweep as engine
    from ..sweeps.cache import Cache
    from ..sweeps.statistics import parse_until
    from ..validation.envelope.standing import Look

    look = Look(strict)
    with _progress("sweep") as report, Cache() if cache else nullcontext() as known:
        rows = engine.sweep(
            *(spec, out),
            jobs=jobs,
            progress=report,
            cache=known,
            cluster=cluster,
            seeds=seeds,
            until=parse_until(until) if until is not None else None,
            most=100 if most is None else most,
            versus=versus,
            beside=sweep_bounds if bound else None,
            say=real_runs.say_aside,
            look=look,
        )
    _tell_sweep(rows, out, versus, look.stands, bound=bound, as_json=as_json)


def _check_most(most: int | None, until: str | None) -> None:
    if most is not None and until is None:
        raise BadInput("there is nothing that would take more seeds", where="--most", right="--until 0.5pp")


def _files(out: Path | None) -> list[str]:
    return [str(out)] if out is not None else []


def _tell_sweep(
    rows: list[dict[str, Any]],
    out: Path | None,
    versus: str | None,
    stands: Standings,
    *,
    bound: bool,
    as_json: bool,
) -> None:
    from ..bound import sweep_bounds
    from ..sweeps.repeat import told_apart

    if as_json:
        print_json({"points": rows, "validity": stands.as_dicts(), "files": _files(out)})
        return
    told = told_apart(rows, versus) if versus is not None else score_output.best_of(rows)
    told += score_output.best_by_quality(rows)
    told += sweep_bounds.told(rows) if bound else []
    say("\n".join([*told, stands.line(), f"{len(rows)} points in {out}"]))


@app.command()
def search(
    experiments: Annotated[list[str], typer.Argument(help="Workloads or YAML files; one answer line each.")],
    find: Annotated[
        str, typer.Option(help="What to find: the largest rate, the smallest slo or the fewest replicas.")
    ] = ("rate"),
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy (repeatable); by default the experiment's.")
    ] = None,
    target: Annotated[list[float] | None, typer.Option(help="Attainment to reach, in % (repeatable).")] = None,
    target_metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Latency limits to meet: 'p99_ttft_ms<=500'; separated by commas, all must hold (repeatable)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per value tried.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 0,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests per run at the start; by default at least 2000.")
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(min=1, help="Upper limit on requests per run; by default 32000, or 16 times --requests."),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option(help="A policy: adds how much more each other one holds than it, seed by seed."),
    ] = None,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers as a table: .csv or .parquet.")] = None,
    cluster: Cluster = None,
    cache: Cached = True,
    jobs: Jobs = -1,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Find the capacity: the largest rate at which a target attainment is reached, with its interval."""
    from ..capacity import search as engine
    from ..capacity.targets import parse
    from ..registry.catalog import source_of
    from ..sweeps.cache import Cache
    from ..validation.envelope import standing as validity

    for given in target or ():
        if not 1.0 <= given < 100.0:
            raise BadInput(
                f"{given:g} is no attainment in percent", where="--target", right="90, say, from 1 to below 100"
            )
    limits = [parse(text) for text in target_metric or ()]
    shares = [t / 100 for t in target or ([] if limits else [90.0])]
    asked = engine.Asked(find, [*shares, *limits], seeds, first_seed, requests, longest)
    with _progress("search") as report, Cache() if cache else nullcontext() as known:
        answers = engine.answers(
            [source_of(e) for e in experiments],
            policy,
            asked,
            options.overrides_of(sets),
            jobs=jobs,
            cache=known,
            cluster=cluster,
            out=out,
            versus=versus,
            progress=report,
            say=real_runs.say_aside,
            check=validity.strictly(find)[0] if strict else None,
            accept=validity.strictly(find)[1] if strict else None,
        )
    stands = validity.of_all(a.at for a in answers)
    if as_json:
        rows = (engine.row_of(a, asked) for a in answers)
        lines = [score_output.answer_dict(*line) for line in zip(rows, answers, stands, strict=True)]
        print_json({"answers": lines, "files": _files(out)})
        return
    score_output.show_answers(find, answers)
    most = max(a.seeds for a in answers)
    drawn = f"seeds {first_seed} to {first_seed + most - 1}, common to all" if most > 1 else f"seed {first_seed}"
    say(stands.line("answers"))
    say(f"{engine.UNITS[find]}; {drawn}")
    if out is not None:
        say(f"{len(answers)} answers in {out}")


@app.command()
def score(
    runs: Annotated[
        Path,
        typer.Argument(help="A CSV of measured runs, run folders, recordings, or files of `vllm bench serve`."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output table: the same rows with sim_met, sim_finished and gaps; .csv or .parquet. With --json it "
            "may be left out."
        ),
    ] = None,
    sets: Sets = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Draws of the noise over which each simulated run is averaged.")
    ] = 10,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the records of the simulated runs, if RUNS are run folders.")
    ] = None,
    target: Annotated[
        float, typer.Option(help="Attainment that counts as sustained when capacities are compared, in %.")
    ] = 90.0,
    floor: Annotated[
        float | None,
        typer.Option(
            help="Noise floor in percentage points: smaller differences count as ties; by default from repeats."
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Also score simpler predictors: without run dates, tables only, no simulation."
        ),
    ] = False,
    jobs: Jobs = -1,
    as_they_are: AsTheyAre = False,
    experiment: Annotated[
        str | None,
        typer.Option(help="Of files of `vllm bench serve`: the experiment with their profile, policy and SLO."),
    ] = None,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Simulate every run of a set of measured runs, and report how far off the simulation is."""
    from ..registry.catalog import source_of
    from ..spec.loading import load
    from ..validation import score as engine
    from ..validation.comparison.compare_grids import check_decisions, decide, grids_of
    from ..validation.envelope import places

    if out is None and not as_json:
        raise options.no_out("--json, to print the table")
    check_decisions(target, floor)
    judged = load(source_of(experiment)) if experiment is not None else None
    places.refused(strict, runs, options.overrides_of(sets), judged)
    with _progress("score") as report:
        more = {"seeds": seeds, "jobs": jobs, "keep": keep, "as_they_are": as_they_are, "experiment": judged}
        scored = engine.score(runs, out, options.overrides_of(sets), **more, progress=report)  # type: ignore[arg-type]
    decided = decide(*grids_of(*engine.entries(scored)), target=target, floor=floor)
    found = None
    if baselines:
        from ..validation.baselines import baselines as others

        with _progress("baselines") as report:
            found = others(runs, scored, options.overrides_of(sets), seeds=seeds, jobs=jobs, progress=report)
    means = engine.external_means(runs)
    stands = places.scored(runs, options.overrides_of(sets), judged)
    if as_json:
        told = score_output.score_dict(scored, means, decided, found)
        print_json({**told, "validity": stands.as_dicts(), "files": _files(out)})
        return
    score_output.show_gaps(scored)
    score_output.show_means(means)
    score_output.show_latencies(scored)
    score_output.show_decisions(decided, "decisions: the first are the measured runs, the second the simulated ones")
    if found is not None:
        score_output.show_baselines(found, target, floor)
    for line in (*score_output.changed_since(scored), stands.line("runs"), f"{len(scored)} rows in {out}"):
        say(line)


# -- looking at things ----------------------------------------------------------------------------------


app.command()(real_runs.check)
app.command()(bound)
app.command()(league)
app.command()(plan)
app.command()(real_runs.compare)
app.command()(plot)
app.command()(figures)
app.command()(demo)
app.command()(report)
app.command()(explore)
app.command()(trace)
app.command()(explain)
app.command()(real_runs.profile)
app.command("import")(import_profile)
app.command("convert")(convert)
app.command()(policies)
app.command()(workloads)
app.command()(profiles)
