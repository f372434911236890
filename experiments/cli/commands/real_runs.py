"""Commands about real runs and about runs that are there already: ``profile``, ``check``, ``compare``.

`servetwin.experiments.cli.app` takes them up. What a command needs is imported when it runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..output.score_output import show_decisions
from ..output.terminal import print_json, print_table, say, steps, table
from .lists import profile_dict, show_verdict
from .options import AsJson, Strict

if TYPE_CHECKING:
    from ...backends.diffusion import Setup

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
CompileWhat = Annotated[
    str | None,
    typer.Option(
        "--compile",
        metavar="none|blocks|whole",
        help="Diffusion: what of the loop's network goes through torch.compile. By default a run does as its profile "
        "was measured, and `profile` what measured best.",
        show_default=False,
    ),
]
Ahead = Annotated[
    bool | None,
    typer.Option(
        "--asynchronous/--synchronous",
        help="vLLM: whether each step is scheduled while the previous one runs. By default a run does as its "
        "profile was measured, and `profile` as vLLM does by default: asynchronously on GPUs, not on CPUs.",
        show_default=False,
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="Diffusion sampler: ddim, euler, dpm++2m or flow-euler; by default the model's own."),
]
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
ServerUrl = Annotated[
    str | None,
    typer.Option(
        help="Measure what this running, idle server takes before its engine, and add it to MODEL, a profile."
    ),
]
Text = Annotated[bool, typer.Option("--text", help="With --url: send prompts as text, which the server tokenizes.")]
Model = Annotated[
    str | None,
    typer.Option(help="The model to serve, if the profile does not name it; by name, my_model.py, or package:name."),
]
AnyDevice = Annotated[
    bool, typer.Option("--any-device", help="Accept a profile that was measured on another device.")
]
Slots = Annotated[
    int | None,
    typer.Option(min=1, help="Most requests in service at once: memory slots for their latents (diffusion)."),
]
Processes = Annotated[bool, typer.Option("--processes", help="Run each worker in its own process.")]


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="sdxl-1024, tiny-dit, my_model.py, opt-13b, a Hugging Face folder, ... (docs/guides/: "
            "diffusion-models, vllm); with --url the profile of a server's engine."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Profile file to write, .yaml; must not exist.")],
    url: ServerUrl = None,
    api_key_env: ApiKeyEnv = None,
    text: Text = False,
    devices: Devices = None,
    weights: Weights = None,
    eager: Eager = False,
    sampler: Sampler = None,
    compile_what: CompileWhat = None,
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
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="A module to leave out, e.g. the safety checker (repeatable)."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Another size to measure too: 512x768 (height x width), 480x832x49 (frames); 512x768:1 without "
            "guidance (repeatable).",
        ),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Measure also steps that take the network's last prediction again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on a device of this machine and write its profile."""
    if url is not None:
        others = (devices, weights, eager, sampler, compile_what, limit, seconds != 0.4, brief, reuse)
        if any((*others, asynchronous is not None, vllm, without, shape)):
            raise BadInput(
                "a server is as it is",
                where="--url",
                right="no other options but --out, --name, --text, --api-key-env, --json",
            )
        _profile_server(model, url, out, name, api_key_env, text, as_json)
        return
    if text or api_key_env is not None:
        raise BadInput(
            "this is for a server", where="--text" if text else "--api-key-env", right="--url http://host:port"
        )
    from ...backends.diffusion import Setup
    from ...backends.profile import measure
    from ...spec.shapes import parsed

    began = time.perf_counter()
    setup = Setup(tuple(devices or ()), weights=weights, eager=eager, sampler=sampler, compile=compile_what)
    more = {"limit": limit, "seconds": seconds, "brief": brief, "asynchronous": asynchronous, "vllm": vllm or ()}
    more |= {"without": without or (), "reuse": reuse}
    shapes = [parsed(text, "--shape") for text in shape or ()]
    with steps() as report:
        found = measure(model, out, setup, name=name, shapes=shapes, **more, progress=report)  # type: ignore[arg-type]
    took = time.perf_counter() - began
    if as_json:
        print_json(profile_dict(found.data, out))
        return
    say(f"{found.name}: {found.data.description}, measured in {took:.0f} s")
    show_verdict(found.data)
    say(f"to use it: servetwin run ... --set deployment.devices.gpu0={out}")


def _profile_server(
    profile: str, url: str, out: Path, name: str | None, key_env: str | None, text: bool, as_json: bool
) -> None:
    """Measure what a server takes before its engine."""
    from servetwin.real.vllm.http_connection import key_in

    from ...backends.profile_server import measure_server

    with steps() as report:
        key = key_in(key_env, os.environ)
        found = measure_server(profile, url, out, name=name, key=key, text=text, progress=report)
    if as_json:
        print_json(profile_dict(found.profile.data, out))
        return
    took = f"{1e3 * found.constant:.2f} ms and {1e6 * found.each:.2f} us per token of the prompt"
    say(f"{found.profile.name}: before the engine {took}")
    names = ("tokens of the prompt", "first token, ms", "of it the engine", "the rest", "by the line")
    lines = table(*((name, "right") for name in names))
    for tokens, whole, engine, line in found.points:
        lines.add_row(str(tokens), *(f"{1e3 * x:.2f}" for x in (whole, engine, whole - engine, line)))
    print_table(lines)
    say(f"to use it: servetwin run ... --set deployment.devices.gpu0={out}")


def check(
    policy: Annotated[str, typer.Argument(help="A policy or router by name, my_policy.py, or package.module:Class.")],
    experiment: Annotated[str | None, typer.Argument(help="Where to try it; by default short built-in runs.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A key of the experiment, policy.params.max_batch=8; of a router, router.params.choices=3.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test a policy: whether it does only what it may, decides the same again, keeps its promises, and lets nobody
    starve; a fault is drawn as a schedule."""
    from servetwin.core.testing.contract import ContractBroken

    from ...spec.loading import parse_override
    from ...validation import check_asked
    from ...validation.check_policy import check as engine

    try:
        kind = check_asked.kind_of(policy)
        if kind is not None:
            if experiment is not None:
                raise BadInput(f"this {kind} is checked on a system of its own", where=policy, right="nothing else")
            _checked(policy, check_asked.check(kind, policy, [parse_override(each) for each in sets or ()]), as_json)
            return
        found = engine(policy, experiment, [parse_override(each) for each in sets or ()])
    except ContractBroken as broken:
        if broken.drawing and not as_json:
            typer.echo(broken.drawing)
        raise
    _checked(policy, found.lines(), as_json)


def _checked(policy: str, lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        print_json({"policy": policy, "keeps_contract": True, "lines": [*lines]})
        return
    for line in lines:
        say(line)


def serve_sweep(spec: str, out: Path, kind: str, setup: Setup, seeds: int, repeats: int, as_they_are: bool) -> int:
    """Serve a sweep for real, and give the number of its runs."""
    from ...backends.grid import serve

    def broken(what: str) -> None:
        typer.echo(f"servetwin: {what}", err=True)

    with steps() as report:
        more = {"kind": kind, "seeds": seeds, "repeats": repeats, "as_they_are": as_they_are}
        return serve(spec, out, setup, **more, progress=report, broken=broken)  # type: ignore[arg-type]


def tell(count: int, out: Path, as_json: bool) -> None:
    """Print that there are *count* runs in *out*."""
    if as_json:
        print_json({"runs": count, "files": [str(out)]})
    else:
        say(f"{count} runs in {out}")


def say_aside(what: str) -> None:
    """A line about what is not asked for, on standard error."""
    typer.echo(f"servetwin: {what}", err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="A run folder; or a folder of run folders, or a sweep's table.")],
    second: Annotated[Path, typer.Argument(help="Another of the same kind; gaps are this one minus the first.")],
    as_json: AsJson = False,
    target: Annotated[
        float | None, typer.Option(help="Sets of runs: attainment that counts as sustained, in %; by default 90.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            help="Sets of runs: percentage points below which a difference is a tie; by default from repeats."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Sets of runs: write a row for each setting, .csv or .parquet.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Compare two runs; or two sets of runs, setting by setting, and whether both lead to the same decisions."""
    from ...validation.comparison.compare_runs import are_runs
    from ...validation.envelope import places

    if strict:
        places.of_sides(first, second, strict=True)
    if are_runs(first, second):
        for option, value in (("--target", target), ("--floor", floor), ("--out", out)):
            if value is not None and first.exists():
                what = "this is for grids, and these are two runs"
                raise BadInput(what, where=option, right="folders of run folders, or sweeps' tables")
        _compare_runs(first, second, as_json)
    else:
        _compare_grids(first, second, as_json, 90.0 if target is None else target, floor, out)


def _compare_runs(first: Path, second: Path, as_json: bool) -> None:
    from ...validation.comparison import compare_quality
    from ...validation.comparison.bench_runs import compared
    from ...validation.comparison.compare_fleets import COMPARED
    from ...validation.comparison.compare_llm_runs import rows_of
    from ...validation.comparison.compare_runs import PERCENTILES
    from ...validation.envelope import places
    from ...validation.replay.host_band import line_of

    found, notes = compared(first, second)
    stands = places.of_sides(first, second)
    if as_json:
        print_json({**found, "validity": places.as_dict(stands)})
        return
    for name, side in zip("AB", found["runs"], strict=True):
        facts = "".join(f", {key} {side[key]:g}" for key in ("rate", "cv", "seed") if key in side)
        count = found["requests"]["AB".index(name)]
        say(f"{name}: {side['folder']} ({side['label']}): {count} requests{facts}")
    lines = table(("", "left"), ("A", "right"), ("B", "right"), ("B - A", "right"))
    rows = [("attainment, %", "attainment", 2), ("finished, %", "finished", 2), ("dropped, %", "dropped", 2)]
    rows += [("goodput, requests/s", "goodput", 4)]
    rows += [(f"latency p{p}, s", f"e2el_p{p}", 3) for p in PERCENTILES]
    for label, key, digits in rows:
        lines.add_row(label, *_figures(found[key], digits))
    for label, key, digits, _ in compare_quality.FIGURES if "quality" in found else ():
        lines.add_row(label, *_figures(found["quality"][key], digits))
    for worker, w in found["workers"].items():
        lines.add_row(f"mean batch of {worker}", *_figures(w["mean_batch_size"], 3))
        lines.add_row(
            f"batches of {worker}", *map(str, w["iterations"]), f"{w['iterations'][1] - w['iterations'][0]:+d}"
        )
        lines.add_row(f"batch sizes of {worker} that differ, %", "", "", f"{w['distance']:.2f}")
    for stage, figures in found["tokens"].items():
        for label, key, digits in rows_of(figures):
            lines.add_row(f"{label} of {stage}", *_figures(figures[key], digits))
    for part, own in COMPARED.items():
        for key, label, digits in own if part in found else ():
            lines.add_row(label, *_figures(found[part][key], digits))
    for name, values in found.get("cost", {}).items():
        lines.add_row(name.replace("_", " "), *_figures(values, 4))
    if found["same_outcome"] is not None:
        lines.add_row("requests with the same outcome, %", "", "", f"{found['same_outcome']:.2f}")
    elif found["other_requests"] is not None:
        lines.add_row("requests with the same outcome, %", "", "", "-")
    print_table(lines)
    hosts = [line for side in dict.fromkeys((first, second)) if (line := line_of(side))]
    for line in (*found["basis"], *notes, *hosts, *places.told(stands)):
        say(line)
    if found["other_requests"] is not None:
        say(f"not the same requests in A and B: {found['other_requests']}")
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
    from ...validation.comparison.compare_grids import compare_grids, grids_dict, read_collection
    from ...validation.envelope import places

    rows, found = compare_grids(read_collection(first), read_collection(second), target=target, floor=floor, out=out)
    full = grids_dict(rows, found)
    stands = places.of_sides(first, second)
    if as_json:
        print_json({**full, "validity": places.as_dict(stands)})
        return
    say(f"A: {first}\nB: {second}\nattainment, in percent of the requests sent")
    columns = [("workload", "left"), ("policy", "left"), ("rate", "right"), ("cv", "right"), ("SLO", "right")]
    plain = ("workload", "policy", "rate", "cv", "slo_factor")
    others = dict.fromkeys(k for row in rows for k in list(row)[: list(row).index("runs_first")] if k not in plain)
    columns += [(name, "right") for name in others]
    columns += [("A", "right"), ("B", "right"), ("B - A", "right"), ("batch\nB / A", "right")]
    worth = ("quality", "quality_goodput") if "quality_goodput_gap" in rows[0] else ()
    columns += [(f"{what}\n{side}", "right") for what in ("quality", "in time")[: len(worth)] for side in "AB"]
    lines = table(*columns)
    for row in rows:
        numbers = ("" if row[k] is None else f"{row[k]:g}" for k in ("rate", "cv", "slo_factor"))
        pair = (f"{row[f'attainment_{side}']:.2f}" for side in ("first", "second"))
        batch = _ratio(row["batch_second"], row["batch_first"])
        more = (row.get(name, "") for name in others)
        told = (_number(row[f"{what}_{side}"]) for what in worth for side in ("first", "second"))
        gap = f"{row['attainment_gap']:+.2f}"
        lines.add_row(row["workload"], row["policy"], *numbers, *more, *pair, gap, batch, *told)
    print_table(lines)
    mean, largest = full["mean_gap_points"], full["max_gap_points"]
    say(f"{len(rows)} cells: |B - A| mean {mean:.2f}, max {largest:.2f} points")
    if apart := [abs(row["quality_goodput_gap"]) for row in rows if row.get("quality_goodput_gap") is not None]:
        say(f"quality in time, per second: |B - A| mean {float_sum(apart) / len(apart):.3f}, max {max(apart):.3f}")
    show_decisions(found)
    for line in places.told(stands):
        say(line)
    if out is not None:
        say(f"cells in {out}")


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
