"""Commands about real runs and about runs that are there already: ``profile``, ``check``, ``compare``.

`servetwin.experiments.cli.app` takes them up. What a command needs is imported when it runs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from servetwin.core import BadInput

from .terminal import print_table, steps, table

if TYPE_CHECKING:
    from servetwin.profiles import ProfileFile

    from ..backends.diffusion import Setup
    from ..capacity.search import Answer
    from ..validation.baselines import Baseline
    from ..validation.compare_grids import Decisions
    from ..validation.replay_external import Means
    from ..validation.score import Scored

#: So many classes, or tenants, are told of a line each.
MOST_GROUPS = 12

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="cpu or cuda:0 (default) for all devices, or one by one: gpu1=cuda:1 (repeatable)."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Checkpoint folder in diffusers' layout; by default random weights.")
]
Eager = Annotated[bool, typer.Option("--eager", help="Run without CUDA graphs.")]
Ahead = Annotated[
    bool | None,
    typer.Option(
        "--asynchronous/--synchronous",
        help="vLLM: whether each step is scheduled while the previous one runs. By default a run does as its "
        "profile was measured, and `profile` as vLLM does by default: asynchronously on GPUs, not on CPUs.",
        show_default=False,
    ),
]
Sampler = Annotated[str, typer.Option(help="Diffusion sampler: ddim or euler.")]
RunBackend = Annotated[
    Literal["sim", "real", "vllm"],
    typer.Option(
        "--backend", help="sim: simulated devices; real: models on this machine; vllm: a vLLM engine in this process."
    ),
]
Url = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="With --backend vllm: send the requests to a running server, http://host:port or https://host; "
        "to several (repeatable), one for each worker, through the deployment's router.",
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --url: the environment variable that holds the server's API key."),
]
Model = Annotated[str | None, typer.Option(help="The model to serve, if the profile does not name it.")]
AnyDevice = Annotated[
    bool, typer.Option("--any-device", help="Accept a profile that was measured on another device.")
]
Slots = Annotated[
    int | None,
    typer.Option(min=1, help="Most requests in service at once: memory slots for their latents (diffusion)."),
]
Processes = Annotated[bool, typer.Option("--processes", help="Run each worker in its own process.")]


def show_answers(find: str, answers: Sequence[Answer]) -> None:
    """The answers of ``servetwin search`` and, in a line each, what they stand on."""
    columns = [
        ("workload", "left"),
        ("policy", "left"),
        ("deployment", "left"),
        ("target", "right"),
        (find, "right"),
    ]
    lines = table(*columns, ("95 % interval", "right"), ("backlog", "left"))
    for a in answers:
        known = a.found.low is not None and a.found.high is not None
        span = f"{a.found.low:.4g} to {a.found.high:.4g}" if known else "none"
        name = a.found.target.name
        lines.add_row(a.workload, a.policy, a.deployment, name, f"{a.found.value:.4g}", span, a.stable.backlog)
    print_table(lines)
    from ..capacity.root_search import QUANTITIES

    for a in answers:
        twice = "; what runs twice as long give lies inside" if a.twice else ""
        settled = f"after {a.settled}" if a.settled is not None else "not within half a run"
        length = f"runs of {a.requests} requests, the first {a.warm_up} not counted (latencies steady {settled})"
        typer.echo(f"{a.workload}, {a.policy}, {a.found.target.name}: {length}{twice}")
        if not math.isnan(a.found.fails):
            places = f"met at {a.found.value:.4g}, not met at {a.found.fails:.4g}"
            typer.echo(f"  {a.found.target.name} {places} {QUANTITIES[find].unit}")
        for note in a.found.notes:
            typer.echo(f"  {note}")


def input_lines(summary: dict[str, Any]) -> list[str]:
    """What is to be said of the requests of a run: which part of a trace they are, and what was cut of them."""
    lines = list(summary.get("basis", ()))
    if trace := summary.get("trace"):
        part = f"requests {trace['first']:g} s to {trace['last']:g} s after the first"
        lines.append(f"trace: {trace['requests']} of {trace['requests_in_file']} {part}")
        if trace["failed_left_out"]:
            lines.append(f"trace: {trace['failed_left_out']} requests had failed when it was taken, and are left out")
        if trace.get("empty_prompts"):
            lines.append(f"trace: {trace['empty_prompts']} prompts of no token count as one token")
        for column, key in trace.get("not_used", {}).items():
            why = f"{key} does not say {{draw: trace}}, which uses it" if key else "nothing here takes it"
            lines.append(f"trace: column {column} is not used: {why}")
        lines += [f"trace: {trace[key]}" for key in ("doubt", "other_images") if trace.get(key)]
        if summary["requests"] > 1 and summary["arrival_span"] == 0.0:
            lines.append("all requests arrive at once: there is no rate")
    if published := summary.get("published"):
        lines.append(f"seed {published['seed']}: {published['kept']}")
    for module, told in summary.get("predictions", {}).items():
        lines.append(f"outputs of {module} are predicted; {told}")
    for module, cut in summary.get("cut", {}).items():
        lines.append(
            f"cut at {module}: {cut['prompts']} prompts by {cut['prompt_tokens']} tokens, "
            f"{cut['outputs']} outputs by {cut['output_tokens']}"
        )
    return lines


def group_lines(summary: Mapping[str, Any]) -> list[str]:
    """What came of each class and each tenant, a line each, and how evenly tenants were served."""
    lines = []
    for kind, groups in (("class", summary.get("classes", {})), ("tenant", summary.get("tenants", {}))):
        for name, found in list(groups.items())[:MOST_GROUPS]:
            share, goodput = 100 * found["attainment"], found["request_goodput"] or 0.0
            lines.append(f"{kind} {name}: {found['requests']} requests, {share:.1f} % met, goodput {goodput:.3f}/s")
        if len(groups) > MOST_GROUPS:
            lines.append(f"and {len(groups) - MOST_GROUPS} more of that kind, in summary.json")
    if fairness := summary.get("fairness"):
        known = [(name.removeprefix("jain_"), value) for name, value in fairness.items() if value is not None]
        lines.append("Jain's index: " + ", ".join(f"{value:.3f} of {name}" for name, value in known))
    return lines


def show_tokens(stage: str, tokens: dict[str, Any]) -> None:
    """What a run says of the tokens of a *stage*."""
    made = f"{tokens['output_throughput'] or 0.0:.1f}"
    if "token_goodput" in tokens:
        typer.echo(f"tokens of {stage}: {tokens['token_goodput'] or 0.0:.1f} on time of {made} generated per second")
    else:
        typer.echo(f"tokens of {stage}: {made} generated per second")
    if tokens["mean_ttft_ms"] is not None:
        for name in ("ttft", "tpot", "itl"):
            if tokens[f"mean_{name}_ms"] is not None:
                times = ", ".join(f"{p} {tokens[f'{p}_{name}_ms']:.1f} ms" for p in ("mean", "median", "p99"))
                typer.echo(f"  {name} {times}")
    if "within_limits" in tokens:
        typer.echo(f"  {tokens['within_limits']} requests within the limits")


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="sd15-512, tiny-dit, opt-13b, a Hugging Face folder, ... (docs/guides/: real-execution, vllm)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Profile file to write, .yaml; must not exist.")],
    devices: Devices = None,
    weights: Weights = None,
    eager: Eager = False,
    sampler: Sampler = "ddim",
    name: Annotated[str | None, typer.Option(help="Name of the profile; by default from device and model.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Largest batch to measure; by default the model's own limit.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Seconds to measure each point, roughly.")] = 0.4,
    brief: Annotated[bool, typer.Option("--brief", help="Measure only what the simulator reads.")] = False,
    asynchronous: Ahead = None,
    vllm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A vLLM engine setting by its name, e.g. max_num_seqs=256 (repeatable)."
        ),
    ] = None,
) -> None:
    """Measure a model on a device of this machine and write its profile."""
    from ..backends.diffusion import Setup
    from ..backends.profile import measure

    began = time.perf_counter()
    setup = Setup(tuple(devices or ()), weights=weights, eager=eager, sampler=sampler)
    more = {"limit": limit, "seconds": seconds, "brief": brief, "asynchronous": asynchronous, "vllm": vllm or ()}
    with steps() as report:
        found = measure(model, out, setup, name=name, **more, progress=report)  # type: ignore[arg-type]
    took = time.perf_counter() - began
    typer.echo(f"{found.name}: {found.data.description}, measured in {took:.0f} s")
    show_verdict(found.data)
    typer.echo(f"to use it: servetwin run ... --set deployment.devices.gpu0={out}")


def check(
    policy: Annotated[str, typer.Argument(help="A policy or router by name, my_policy.py, or package.module:Class.")],
    experiment: Annotated[str | None, typer.Argument(help="Where to try it; by default short built-in runs.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the experiment: --set policy.params.max_batch=8."),
    ] = None,
) -> None:
    """Hold a policy to its contract: whether it keeps to what it may do, decides the same again, keeps its word, and
    lets nobody starve; a fault is drawn as a schedule."""
    from servetwin.core.testing.contract import ContractBroken

    from ..spec.loading import parse_override
    from ..validation import check_router
    from ..validation.check_policy import check as engine

    try:
        if check_router.is_router(policy):
            if experiment is not None or sets:
                raise BadInput("a router is checked on a system of its own", where=policy, right="nothing else")
            typer.echo("\n".join(check_router.check(policy)))
            return
        found = engine(policy, experiment, [parse_override(each) for each in sets or ()])
    except ContractBroken as broken:
        if broken.drawing:
            typer.echo(broken.drawing)
        raise
    for line in found.lines():
        typer.echo(line)


def show_verdict(data: ProfileFile) -> None:
    """Print whether a profile is clean, and what may be asked of it that nobody measured."""
    from servetwin.profiles import verdict

    if line := verdict.basis(data):
        typer.echo(line)
    lines = verdict.lines(data)
    typer.echo("verdict: not clean" if lines else "verdict: clean")
    for line in lines:
        typer.echo(f"  {line}")
    for line in verdict.beyond(data):
        typer.echo(f"  not measured: {line}")
    for line in verdict.blind(data):
        typer.echo(line)


def serve_sweep(spec: str, out: Path, kind: str, setup: Setup, seeds: int, repeats: int, as_they_are: bool) -> None:
    """``servetwin sweep --backend real`` and ``vllm``."""
    from ..backends.grid import serve

    def broken(what: str) -> None:
        typer.echo(f"servetwin: {what}", err=True)

    with steps() as report:
        more = {"kind": kind, "seeds": seeds, "repeats": repeats, "as_they_are": as_they_are}
        count = serve(spec, out, setup, **more, progress=report, broken=broken)  # type: ignore[arg-type]
    typer.echo(f"{count} runs in {out}")


def say_aside(what: str) -> None:
    """A line about what is not asked for, on standard error."""
    typer.echo(f"servetwin: {what}", err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="A run folder; or a folder of run folders, or a sweep's table.")],
    second: Annotated[Path, typer.Argument(help="Another of the same kind; gaps are this one minus the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    target: Annotated[
        float | None, typer.Option(help="Grids: attainment that counts as sustained, in %; by default 90.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Grids: noise floor in percentage points; by default from repeats in FIRST.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Grids: write the cells as a table, .csv or .parquet.")] = None,
) -> None:
    """Compare two runs; or two grids of runs, cell by cell and by the decisions that follow from them."""
    from ..validation.compare_runs import are_runs

    if are_runs(first, second):
        for option, value in (("--target", target), ("--floor", floor), ("--out", out)):
            if value is not None and first.exists():
                what = "this is for grids, and these are two runs"
                raise BadInput(what, where=option, right="folders of run folders, or sweeps' tables")
        _compare_runs(first, second, as_json)
    else:
        _compare_grids(first, second, as_json, 90.0 if target is None else target, floor, out)


def _compare_runs(first: Path, second: Path, as_json: bool) -> None:
    from ..validation.bench_runs import compared
    from ..validation.compare_llm_runs import rows_of
    from ..validation.compare_runs import PERCENTILES

    found, notes = compared(first, second)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, side in zip("AB", found["runs"], strict=True):
        facts = "".join(f", {key} {side[key]:g}" for key in ("rate", "cv", "seed") if key in side)
        count = found["requests"]["AB".index(name)]
        typer.echo(f"{name}: {side['folder']} ({side['label']}): {count} requests{facts}")
    lines = table(("", "left"), ("A", "right"), ("B", "right"), ("B - A", "right"))
    rows = [("attainment, %", "attainment", 2), ("finished, %", "finished", 2), ("dropped, %", "dropped", 2)]
    rows += [("goodput, requests/s", "goodput", 4)]
    rows += [(f"latency p{p}, s", f"e2el_p{p}", 3) for p in PERCENTILES]
    for label, key, digits in rows:
        lines.add_row(label, *_figures(found[key], digits))
    for worker, w in found["workers"].items():
        lines.add_row(f"mean batch of {worker}", *_figures(w["mean_batch_size"], 3))
        lines.add_row(
            f"batches of {worker}", *map(str, w["iterations"]), f"{w['iterations'][1] - w['iterations'][0]:+d}"
        )
        lines.add_row(f"batch sizes of {worker} that differ, %", "", "", f"{w['distance']:.2f}")
    for stage, figures in found["tokens"].items():
        for label, key, digits in rows_of(figures):
            lines.add_row(f"{label} of {stage}", *_figures(figures[key], digits))
    if found["same_outcome"] is not None:
        lines.add_row("requests with the same outcome, %", "", "", f"{found['same_outcome']:.2f}")
    elif found["other_requests"] is not None:
        lines.add_row("requests with the same outcome, %", "", "", "-")
    print_table(lines)
    for line in (*found["basis"], *notes):
        typer.echo(line)
    if found["other_requests"] is not None:
        typer.echo(f"not the same requests in A and B: {found['other_requests']}")
    columns = [("iteration, ms", "left"), ("batch", "right"), ("median A", "right"), ("median B", "right")]
    columns += [("B / A", "right"), ("mean A", "right"), ("mean B", "right"), ("table", "right")]
    lines = table(*columns, ("A / table", "right"), ("of", "left"))
    for worker, sizes in found["iterations"].items():
        for n, ms in sizes.items():
            medians = [*(_number(ms[k]) for k in ("first", "second")), _ratio(ms["second"], ms["first"])]
            others = (_number(ms[k]) for k in ("first_mean", "second_mean", "table", "first_over_table"))
            lines.add_row(worker, str(n), *medians, *others, f"{ms['statistic']}s" if ms["statistic"] else "")
    if found["iterations"]:
        print_table(lines)
    if found.get("steps"):
        _show_steps(found["steps"])


def _show_steps(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    columns = [("steps", "left"), ("", "left"), ("A", "right"), ("B", "right"), ("mean A, ms", "right")]
    lines = table(*columns, ("mean B, ms", "right"), ("A / table", "right"), ("B / table", "right"), ("of", "left"))
    nothing = {"steps": 0, "mean_ms": None, "over_table": None, "statistic": None}
    for worker, kinds in found.items():
        for kind in ("prefill", "decode", "mixed"):
            if kind in kinds:
                a, b = (kinds[kind].get(side, nothing) for side in ("first", "second"))
                cells = [_number(x[key]) for key in ("mean_ms", "over_table") for x in (a, b)]
                said = a["statistic"] or b["statistic"]
                lines.add_row(worker, kind, str(a["steps"]), str(b["steps"]), *cells, f"{said}s" if said else "")
    print_table(lines)


def _compare_grids(
    first: Path, second: Path, as_json: bool, target: float, floor: float | None, out: Path | None
) -> None:
    from ..validation.compare_grids import compare_grids, grids_dict, read_collection

    rows, found = compare_grids(read_collection(first), read_collection(second), target=target, floor=floor, out=out)
    full = grids_dict(rows, found)
    if as_json:
        typer.echo(json.dumps(full, indent=2))
        return
    typer.echo(f"A: {first}\nB: {second}\nattainment, in percent of the requests sent")
    columns = [("workload", "left"), ("policy", "left"), ("rate", "right"), ("cv", "right"), ("SLO", "right")]
    plain = ("workload", "policy", "rate", "cv", "slo_factor")
    others = dict.fromkeys(k for row in rows for k in list(row)[: list(row).index("runs_first")] if k not in plain)
    columns += [(name, "right") for name in others]
    lines = table(*columns, ("A", "right"), ("B", "right"), ("B - A", "right"), ("batch\nB / A", "right"))
    for row in rows:
        numbers = ("" if row[k] is None else f"{row[k]:g}" for k in ("rate", "cv", "slo_factor"))
        pair = (f"{row[f'attainment_{side}']:.2f}" for side in ("first", "second"))
        batch = _ratio(row["batch_second"], row["batch_first"])
        more = (row.get(name, "") for name in others)
        lines.add_row(row["workload"], row["policy"], *numbers, *more, *pair, f"{row['attainment_gap']:+.2f}", batch)
    print_table(lines)
    mean, largest = full["mean_gap_points"], full["max_gap_points"]
    typer.echo(f"{len(rows)} cells: |B - A| mean {mean:.2f}, max {largest:.2f} points")
    show_decisions(found)
    if out is not None:
        typer.echo(f"cells in {out}")


def show_means(found: list[tuple[str, str | None, list[Means]]]) -> None:
    """Of runs that somebody else measured: latencies in seconds, measured and simulated, and what they stand on."""
    for name, basis, means in found:
        typer.echo(f"{name}, in seconds")
        lines = table(("", "left"), ("measured", "right"), ("simulated", "right"), ("off, %", "right"),
                      ("authors' own, %", "right"))  # fmt: skip
        for m in means:
            was, off, own = m.measured, m.off, m.authors_error
            lines.add_row(
                m.what,
                "" if was is None else f"{was:.4f}",
                f"{m.simulated:.4f}",
                "" if off is None else f"{off:+.2f}",
                "" if own is None else f"{own:+.1f}",
            )
        print_table(lines)
        if basis is not None:
            typer.echo(basis)


def show_latencies(scored: Sequence[Scored]) -> None:
    """Of runs of language models: their latencies, one run as `show_means` has it, of many how far off they are."""
    told = [s for s in scored if s.latencies]
    if len(told) == 1:
        show_means([(told[0].run.cells.get("folder", told[0].run.workload), None, list(told[0].latencies))])
    elif told:
        typer.echo(f"latencies of {len(told)} runs, |simulated / measured - 1| in percent")
        lines = table(("", "left"), ("mean", "right"), ("max", "right"))
        for what in dict.fromkeys(m.what for s in told for m in s.latencies):
            off = [abs(m.off) for s in told for m in s.latencies if m.what == what and m.off is not None]
            if off:
                lines.add_row(what, f"{sum(off) / len(off):.1f}", f"{max(off):.1f}")
        print_table(lines)
    for note in dict.fromkeys(note for s in scored for note in s.notes):
        typer.echo(note)


def show_baselines(found: list[Baseline], target: float, floor: float | None) -> None:
    """A line for each way of predicting the runs: its gaps, and what one would decide by it."""
    from ..validation.baselines import favourite
    from ..validation.compare_grids import decide, grids_of
    from ..validation.score import entries, gaps_of

    typer.echo("beside it, what is simpler; each run left out of what predicts it")
    columns: list[tuple[str, Any]] = [("predicted by", "left"), ("runs", "right")]
    columns += [(f"{what}\n{how}", "right") for what in ("met", "finished") for how in ("mean", "max")]
    lines = table(*columns, ("winners", "right"), ("pairs", "right"), ("curves", "right"))
    for one in found:
        part = gaps_of(one.scored)[-1]
        decided = decide(*grids_of(*entries(one.scored)), target=target, floor=floor)
        gaps = [f"{g[k]:.2f}" if g else "" for g in (part.met, part.finished) for k in (0, 1)]
        shares = (
            (decided.same, decided.decided),
            (decided.same_order, decided.pairs),
            (decided.within, decided.curves),
        )
        lines.add_row(one.name, str(part.runs), *gaps, *(f"{a}/{b}" if b else "" for a, b in shares))
    print_table(lines)
    best = favourite(found[0].scored, floor)
    if best is not None:
        typer.echo(
            f"'{best.policy} always wins' names {best.decided} of {best.settings_decided} winners beyond the noise, "
            f"and {best.won} of {best.settings} in all ({best.tied} tied)"
        )


def show_decisions(found: Decisions, title: str = "") -> None:
    """What follows from two grids, one line each, and below it where they disagree; nothing if nothing does. *title*
    says which the two are."""
    if not found.settings and not found.curves:
        return
    if title:
        typer.echo(title)
    noise = found.noise
    known = sorted(noise.deviations.values())
    size = " to ".join(f"{x:.2f}" for x in dict.fromkeys(known[:1] + known[-1:]))
    spread = f"deviation {size} points by workload, " if size else ""
    typer.echo(f"noise: {f'{noise.fixed:g} points, ' if noise.fixed is not None else spread}{noise.source}")
    undecided = found.settings - found.decided
    typer.echo(f"same winner in {found.same} of {found.decided} settings; {undecided} more are within the noise")
    tau = "" if found.tau is None else f"; Kendall's tau {found.tau:.2f} on average"
    typer.echo(f"same order of {found.same_order} of {found.pairs} pairs of policies{tau}")
    if any(found.tied):
        one, other, both = found.tied
        typer.echo(f"tied pairs, which agree with nothing: {one} in the first, {other} in the second, {both} in both")
    typer.echo(f"largest rate at {found.target:g} % within one step on {found.within} of {found.curves} curves")
    for what, where in (
        ("deployments differ", found.unlike),
        ("winner", found.others),
        ("order", [*found.swaps, *found.ties]),
        ("rate", found.off),
    ):
        for line in where:
            typer.echo(f"  {what}: {line}")


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.3f}" if a is not None and b else ""


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.3f}"


def _figures(pair: dict[str, float | None], digits: int) -> list[str]:
    a, b, gap = (pair[k] for k in ("first", "second", "gap"))
    return [
        *("" if x is None else f"{x:.{digits}f}" for x in (a, b)),
        "" if gap is None else f"{gap:+.{digits}f}",
    ]
