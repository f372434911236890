"""The commands of ``servetwin``. What a command needs is imported when it runs, so that help comes at once."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from servetwin.core import BadInput

from . import commands, options, terminal
from .bound_command import bound
from .commands import (
    Ahead,
    AnyDevice,
    ApiKeyEnv,
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
from .explain_command import explain
from .explore_command import explore
from .figure_commands import demo, figures, plot, trace
from .import_command import import_profile
from .league_command import league
from .options import Jobs
from .report_command import report
from .terminal import print_table as _print
from .terminal import progress as _progress
from .terminal import table as _table

if TYPE_CHECKING:
    from ..backends.diffusion import Setup
    from ..spec.experiment import Experiment
    from ..validation.score import Scored

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
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    backend: RunBackend = "sim",
    devices: Devices = None,
    model: Model = None,
    weights: Weights = None,
    eager: Eager = False,
    sampler: Sampler = "ddim",
    any_device: AnyDevice = False,
    slots: Slots = None,
    processes: Processes = False,
    url: Url = None,
    api_key_env: ApiKeyEnv = None,
    asynchronous: Ahead = None,
) -> None:
    """Run one experiment: in simulation, or for real on devices of this machine (--backend real)."""
    from ..assembly import build
    from ..backends.serve import serve
    from ..spec.catalog import source_of
    from ..spec.loading import load
    from ..spec.overrides import ByOption

    short = {"policy": policy, "rate": rate, "cv": cv, "slo": slo, "requests": requests, "seed": seed}
    chosen = load(
        source_of(experiment),
        [*((ByOption(k), v) for k, v in short.items() if v is not None), *options.overrides_of(sets, short)],
    )
    began = time.perf_counter()
    modules = {"--device": devices, "--weights": weights, "--sampler": sampler != "ddim", "--slots": slots}
    modules |= {"--processes": processes}
    ahead = {
        "--url": url,
        "--api-key-env": api_key_env,
        "--asynchronous": asynchronous,
        "--synchronous": asynchronous is False,
    }
    others = {"--model": model, "--eager": eager, "--any-device": any_device}
    _check_options(backend, chosen, modules, ahead, others)
    setup = None
    if backend != "sim":
        setup = _setup(devices, model, weights, eager, sampler, any_device, slots, processes)
    more = {"url": url, "api_key_env": api_key_env, "asynchronous": asynchronous}
    served = serve(chosen, out, backend=backend, setup=setup, **more, say=_say)  # type: ignore[arg-type]
    took = time.perf_counter() - began
    if as_json:
        typer.echo(json.dumps(served.summary, indent=2))
        return
    _show_run(chosen, served.summary, took)
    if served.real is not None:
        _show_real(served.real)
    else:
        for line in (*build.time_shared(chosen), *build.policy_not_measured(chosen)):
            typer.echo(line)
    if out is not None:
        typer.echo(f"records in {out}")


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


def _setup(devices: list[str] | None, *rest: Any) -> Setup:
    from ..backends.diffusion import Setup

    return Setup(tuple(devices or ()), *rest)


def _say(what: str) -> None:
    """A step of something slow, to whoever sits at the terminal."""
    if sys.stderr.isatty():
        typer.echo(what, err=True)


def _show_real(real: dict[str, Any]) -> None:
    for what, key in (("client late by", "lateness_ms"), ("between iterations", "gap_ms")):
        if spread := real[key]:
            typer.echo(f"{what} {spread['median']:.3f} ms in the median, p99 {spread['p99']:.3f} ms")


def _show_run(experiment: Experiment, summary: dict[str, Any], took: float) -> None:
    from servetwin.profiles import load as load_profile
    from servetwin.profiles import verdict

    from ..sweeps.point import served_by, title
    from ..validation.run_table import matching

    total = summary["requests"]
    typer.echo(f"{title(experiment)}: {total} requests")
    typer.echo(f"deployment {served_by(experiment)}")
    lines = _table(("", "left"), ("requests", "right"), ("share", "right"))
    for count in ("met", "late", "dropped", "failed"):
        lines.add_row(count, str(summary[count]), f"{100 * summary[count] / total:.1f} %" if total else "")
    _print(lines)
    if summary.get("cut_off"):
        after = experiment.system.stop_after
        when = f", {after:g} s after the last was sent" if after is not None else ""
        typer.echo(f"{summary['cut_off']} of the failed were under way when the run was cut off{when}")
    for line in commands.input_lines(summary):
        typer.echo(line)
    if summary["request_goodput"] is not None:
        typer.echo(f"goodput {summary['request_goodput']:.3f} of {total / summary['duration']:.3f} requests/s")
    if summary["finished"]:
        times = ", ".join(f"{p} {summary[f'{p}_e2el_ms'] / 1000:.2f} s" for p in ("mean", "median", "p90", "p99"))
        typer.echo(f"latency {times}")
    for stage, tokens in summary.get("llm", {}).items():
        commands.show_tokens(stage, tokens)
    for line in commands.group_lines(summary):
        typer.echo(line)
    for worker, w in summary["workers"].items():
        sizes = f"mean {w['mean_batch_size']:.2f}, largest {w['max_batch_size']}"
        typer.echo(f"batches of {worker}: {w['iterations']} run, {sizes}")
    for device in dict.fromkeys(experiment.deployment.devices.values()):
        if faults := verdict.short(load_profile(device).data):
            typer.echo(f"profile {device} is not clean: {faults} (servetwin profiles {device})")
    for held in summary.get("held", ()):
        asked = f"{held['steps']} steps of {held['worker']}, up to {held['largest_asked']} {held['of']}"
        known = f"{held['profile']} knows {held['largest_known']} at most, whose value was held"
        typer.echo(f"beyond what was measured: {asked}; {known}")
    for was in matching(experiment):
        typer.echo(f"measured on {was.start}: {was.met} met, {was.finished} finished")
    typer.echo(f"{summary['duration']:.0f} s served in {took:.2f} s")


# -- many runs ------------------------------------------------------------------------------------------


@app.command()
def sweep(
    spec: Annotated[str, typer.Argument(help="A sweep file, or the name of a figure (figure11, figure12).")],
    out: Annotated[
        Path,
        typer.Option(help="Output table, .csv or .parquet; real runs: a folder that gets a run folder per point."),
    ],
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds per point; rows then contain 95 % intervals.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Add seeds until attainment is known to within this half-width, e.g. 0.5pp.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Upper limit on seeds for --until; by default 100.")] = None,
    versus: Annotated[
        str | None, typer.Option(help="Baseline policy: adds paired differences of every other policy to it.")
    ] = None,
    cluster: Cluster = None,
    cache: Cached = True,
    jobs: Jobs = -1,
    backend: RunBackend = "sim",
    repeats: Annotated[int, typer.Option(min=1, help="Real runs per point, with the same requests.")] = 1,
    devices: Devices = None,
    model: Model = None,
    weights: Weights = None,
    eager: Eager = False,
    sampler: Sampler = "ddim",
    any_device: AnyDevice = False,
    slots: Slots = None,
    processes: Processes = False,
    as_they_are: AsTheyAre = False,
) -> None:
    """Run an experiment over a grid of settings; one row per point. An interrupted sweep resumes.

    With --backend real or vllm each point is served for real, and leaves a run folder.
    """
    if backend != "sim":
        options.only_simulated({"--until": until, "--most": most, "--versus": versus, "--cluster": cluster})
        setup = _setup(devices, model, weights, eager, sampler, any_device, slots, processes)
        if backend == "vllm":
            modules = {"--device": devices, "--weights": weights, "--sampler": sampler != "ddim", "--slots": slots}
            options.only_modules({**modules, "--processes": processes})
        commands.serve_sweep(spec, out, backend, setup, seeds or 1, repeats, as_they_are)
        return
    real = {"--device": devices, "--model": model, "--weights": weights, "--eager": eager, "--slots": slots}
    real |= {"--sampler": sampler != "ddim", "--any-device": any_device, "--processes": processes}
    options.only_real({**real, "--repeats": repeats > 1, "--as-they-are": as_they_are})
    if most is not None and until is None:
        raise BadInput("there is nothing that would take more seeds", where="--most", right="--until 0.5pp")
    from ..sweeps import sweep as engine
    from ..sweeps.cache import Cache
    from ..sweeps.repeat import told_apart
    from ..sweeps.statistics import parse_until

    width = parse_until(until) if until is not None else None
    with _progress("sweep") as report, Cache() if cache else nullcontext() as known:
        rows = engine.sweep(
            spec,
            out,
            jobs=jobs,
            progress=report,
            cache=known,
            cluster=cluster,
            seeds=seeds,
            until=width,
            most=100 if most is None else most,
            versus=versus,
            say=commands.say_aside,
        )
    told = told_apart(rows, versus) if versus is not None else []
    typer.echo("\n".join([*told, f"{len(rows)} points in {out}"]))


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
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers as a table: .csv or .parquet.")] = None,
    cluster: Cluster = None,
    cache: Cached = True,
    jobs: Jobs = -1,
) -> None:
    """Find the capacity: the largest rate at which a target attainment is reached, with its interval."""
    from ..capacity import search as engine
    from ..capacity.targets import parse
    from ..spec.catalog import source_of
    from ..sweeps.cache import Cache

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
            progress=report,
            say=commands.say_aside,
        )
    commands.show_answers(find, answers)
    most = max(a.seeds for a in answers)
    drawn = f"seeds {first_seed} to {first_seed + most - 1}, common to all" if most > 1 else f"seed {first_seed}"
    typer.echo(f"{engine.UNITS[find]}; {drawn}")
    if out is not None:
        typer.echo(f"{len(answers)} answers in {out}")


@app.command()
def score(
    runs: Annotated[
        Path,
        typer.Argument(
            help="A CSV of measured runs (see the README), run folders, recordings, or files of `vllm bench serve`."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Output table: the same rows with sim_met, sim_finished and gaps; .csv or .parquet.")
    ],
    sets: Sets = None,
    seeds: Annotated[int, typer.Option(min=1, help="Noise seeds over which each simulated run is averaged.")] = 10,
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
) -> None:
    """Simulate every run of a set of measured runs, and report how far off the simulation is."""
    from ..validation import score as engine
    from ..validation.compare_grids import check_decisions, decide, grids_of

    check_decisions(target, floor)
    judged = None
    if experiment is not None:
        from ..spec.catalog import source_of
        from ..spec.loading import load

        judged = load(source_of(experiment))
    with _progress("score") as report:
        more = {"seeds": seeds, "jobs": jobs, "keep": keep, "as_they_are": as_they_are, "experiment": judged}
        scored = engine.score(runs, out, options.overrides_of(sets), **more, progress=report)  # type: ignore[arg-type]
    _show_gaps(scored)
    commands.show_means(engine.external_means(runs))
    commands.show_latencies(scored)
    decided = decide(*grids_of(*engine.entries(scored)), target=target, floor=floor)
    commands.show_decisions(decided, "decisions: the first are the measured runs, the second the simulated ones")
    if baselines:
        from ..validation.baselines import baselines as others

        with _progress("baselines") as report:
            found = others(runs, scored, options.overrides_of(sets), seeds=seeds, jobs=jobs, progress=report)
        commands.show_baselines(found, target, floor)
    for name in dict.fromkeys(p for s in scored for p in s.changed):
        typer.echo(f"{name} is not what it was when the runs were made")
    typer.echo(f"{len(scored)} rows in {out}")


def _show_gaps(scored: list[Scored]) -> None:
    from ..validation.score import gaps_of

    found = gaps_of(scored)
    with_batch = any(p.batch for p in found)
    columns = [("workload", "left"), ("policy", "left"), ("runs", "right")]
    columns += [(f"{what}\n{how}", "right") for what in ("met", "finished") for how in ("mean", "max")]
    columns += [("mean batch\nmean, %", "right")] if with_batch else []
    typer.echo("|simulated - measured|, in percentage points of the requests sent")
    lines = _table(*columns)
    for p in found:
        gaps = [f"{g[k]:.2f}" if g else "" for g in (p.met, p.finished) for k in (0, 1)]
        batch = [f"{p.batch[0]:.2f}" if p.batch else ""] if with_batch else []
        lines.add_row(p.workload, p.policy, str(p.runs), *gaps, *batch, style="bold" if p.workload == "all" else None)
    _print(lines)


# -- looking at things ----------------------------------------------------------------------------------


app.command()(commands.check)
app.command()(bound)
app.command()(league)
app.command()(commands.compare)
app.command()(plot)
app.command()(figures)
app.command()(demo)
app.command()(report)
app.command()(explore)
app.command()(trace)
app.command()(explain)
app.command()(commands.profile)
app.command("import")(import_profile)


@app.command()
def policies(
    name: Annotated[
        str | None, typer.Argument(help="One of them, my_policy.py, or package.module:Class: what it does and takes.")
    ] = None,
) -> None:
    """List the policies known by name; or tell what one does, and its parameters."""
    from ..spec.policy_docs import page
    from ..spec.policy_registry import describe, policy_names

    if name is not None:
        typer.echo("\n".join(page(name)))
        return
    lines = _table(("policy", "left"), ("", "left"))
    for name in policy_names():
        text, params = describe(name)
        lines.add_row(name, "\n".join([text, *(f"  {p}: {kind}" for p, kind in params.items())]))
    _print(lines)
    typer.echo("a policy of your own: servetwin run WORKLOAD --policy my_policy.py")


@app.command()
def workloads() -> None:
    """List the workloads that come with ServeTwin."""
    from ..spec.catalog import workload_names
    from ..spec.loading import load
    from ..sweeps.point import settings_of

    columns = [("workload", "left"), ("", "left"), ("rate", "right"), ("cv", "right"), ("SLO", "right")]
    lines = _table(*columns, ("requests", "right"))
    for name in workload_names():
        e = load(name)
        given = settings_of(e)
        rate, cv, factor = ("" if given[k] is None else f"{given[k]:g}" for k in ("rate", "cv", "slo_factor"))
        slo = f"{factor}x" if factor else ""
        if given.get("prefill_slo"):
            slo = f"{given['prefill_slo']:g}+{given['decode_slo']:g}"
        lines.add_row(name, e.about, rate, cv, slo, str(e.workload.requests))
    _print(lines)


@app.command()
def profiles(
    name: Annotated[str | None, typer.Argument(help="A profile or a file: print its verdict.")] = None,
) -> None:
    """List the profiles that come with ServeTwin; or judge one: noisy samples, gaps in what was measured."""
    from servetwin.profiles import load, names

    if name is not None:
        data = load(name).data
        typer.echo(f"{data.name}: {data.description}")
        commands.show_verdict(data)
        return
    lines = _table(("profile", "left"), ("device", "left"), ("modules", "left"), ("", "left"), ("digest", "left"))
    for name in names():
        profile = load(name)
        basis = profile.data.basis.kind if profile.data.basis else "measured"
        lines.add_row(name, profile.data.device.name, ", ".join(profile.modules), basis, profile.digest[:12])
    _print(lines)
