"""``servetwin league``: policies ranked over several workloads, beside the best possible."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output.terminal import print_json, print_table, progress, say, table
from .options import AsJson, overrides_of

if TYPE_CHECKING:
    from ...bound.league import League
    from ...sweeps.statistics import Interval


def league(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(help="diffusion (the default) or language, or workloads and files."),
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="A policy (repeatable); else all that fit.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each workload.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Requests per second, of all workloads.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests per run.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the experiments: --set slo.factor=2.5 (repeatable)."
        ),
    ] = None,
    bounds: Annotated[bool, typer.Option("--bound/--no-bound", help="Compute the best possible, too.")] = True,
    out: Annotated[Path | None, typer.Option(help="A table of the results: .csv or .parquet.")] = None,
    as_json: AsJson = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take points that are known already from the cache.")
    ] = True,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Processes to run on; -1 is one per core.", show_default=True)
    ] = -1,
) -> None:
    """Rank policies over several workloads, with intervals, beside the most that any schedule could meet."""
    from ...bound.league import LEAGUES
    from ...bound.league import league as engine
    from ...registry.catalog import source_of
    from ...spec.overrides import ByOption, Override
    from ...sweeps import tables
    from ...sweeps.cache import Cache

    if out is not None:
        tables.check_target(out)
    short = {"rate": rate, "requests": requests}
    asked: list[Override] = [(ByOption(k), v) for k, v in short.items() if v is not None]
    asked += overrides_of(sets, short)
    sources: dict[str, list[Override]] = {}
    for name in workloads or ["diffusion"]:
        for place, usual in LEAGUES[name].items() if name in LEAGUES else [(str(source_of(name)), None)]:
            own: list[Override] = [("rate", usual)] if usual is not None and rate is None else []
            sources[place] = [*own, *asked]
    with progress("league") as report, Cache() if cache else nullcontext() as known:
        found = engine(
            sources,
            policy,
            seeds=seeds,
            first_seed=first_seed,
            bounds=bounds,
            jobs=jobs,
            cache=known,
            progress=report,
        )
    if out is not None:
        tables.write(out, _rows(found))
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)


def _rows(found: League) -> list[dict[str, object]]:
    """A line for each policy and workload."""
    rows: list[dict[str, object]] = []
    for place, standing in enumerate(found.standings, 1):
        for workload, own in standing.by_workload.items():
            bound = found.bounds.get(workload)
            rows.append(
                {
                    "place": place,
                    "policy": standing.policy,
                    "workload": workload,
                    "attainment": own.mean,
                    "attainment_low": own.low,
                    "attainment_high": own.high,
                    "bound": bound.mean if bound is not None else None,
                    "seeds": own.count,
                    **(standing.quality[workload].as_dict() if workload in standing.quality else {}),
                }
            )
    return rows


def _percent(found: Interval) -> str:
    return found.spelled(100.0, 1)


def _show(found: League) -> None:
    workloads = list(found.standings[0].by_workload)
    columns = [("place", "right"), ("policy", "left"), ("met, %", "right")]
    columns += [("of the bound, %", "right")] if found.bounds else []
    lines = table(*columns, ("not told apart from", "left"))
    for place, standing in enumerate(found.standings, 1):
        share = [f"{100.0 * standing.share:.1f}" if standing.share is not None else ""] if found.bounds else []
        lines.add_row(str(place), standing.policy, _percent(standing.attainment), *share, ", ".join(standing.alike))
    print_table(lines)
    each = table(("met, %", "left"), *((name, "right") for name in workloads))
    for standing in found.standings:
        each.add_row(standing.policy, *(_percent(standing.by_workload[name]) for name in workloads))
    if found.bounds:
        each.add_section()
        each.add_row("no schedule more than", *(_percent(found.bounds[name]) for name in workloads))
    print_table(each)
    if worth := [name for name in workloads if any(name in s.quality for s in found.standings)]:
        _show_quality(found, worth)
    last = found.seeds[-1]
    say(f"means over seeds {found.seeds[0]} to {last} with 95 % intervals; differences are taken seed by seed")
    if found.bounds:
        say("bounds are with all times at their means")
    for name, why in found.left_out.items():
        say(f"{name} is left out: {why}")


def _show_quality(found: League, workloads: list[str]) -> None:
    """Quality in time, and on average, of each policy on the *workloads* where steps may be left out."""
    lines = table(("quality in time, per second; on average", "left"), *((name, "right") for name in workloads))
    for standing in found.standings:
        cells = []
        for own in map(standing.quality.get, workloads):
            mean = f"; {own.mean:.3f}" if own is not None and own.mean is not None else ""
            cells.append(f"{own.in_time.spelled(1.0, 3)}{mean}" if own is not None else "")
        lines.add_row(standing.policy, *cells)
    print_table(lines)
    best = {
        name: max(
            (s for s in found.standings if name in s.quality), key=lambda s: s.quality[name].in_time.mean
        ).policy
        for name in workloads
    }
    for name, policy in best.items():
        say(f"quality in time is highest with {policy} ({name})")
