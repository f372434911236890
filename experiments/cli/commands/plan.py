"""``servetwin plan``: the cheapest fleet that serves a load."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output.terminal import print_figures, print_json, progress, say
from .options import AsJson, Jobs

if TYPE_CHECKING:
    from ...capacity.plan import Fleet, Plan

#: Of more fleets than these only the front is shown, with the answer and what may be cheaper.
MOST = 40


def plan(
    source: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file: load, target, fleets with prices.")],
    out: Annotated[Path | None, typer.Option(help="A table of all fleets tried: .csv or .parquet.")] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Attainment over dollars per hour: .pdf, .svg or .png (needs the extra plots)."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Seeds of each fleet, instead of the plan's.")] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Try all counts, instead of halving between the least and the most.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take runs that are known already from the cache.")
    ] = True,
    as_json: AsJson = False,
    jobs: Jobs = -1,
) -> None:
    """Find the cheapest fleet that holds an attainment: device, count, policy, router; with intervals."""
    from ...capacity import plan as engine
    from ...sweeps import tables
    from ...sweeps.cache import Cache
    from ...sweeps.point import Row, Together, run_all
    from ...validation.envelope import standing

    asked = engine.read(source)
    if seeds is not None:
        asked = asked.model_copy(update={"seeds": seeds})
    if out is not None:
        tables.check_target(out)
    if figure is not None:
        from ...plotting import plan_plot, style

        style.check_ending(figure)
    together = Together()
    with progress("plan") as report, Cache() if cache else nullcontext() as known:

        def run(experiments: Any) -> list[Row]:
            total = len(experiments)
            kept: dict[str, Any] = {"known": known.find, "finished": known.add} if known is not None else {}
            tell = lambda done, share: report(done, total, share)  # noqa: E731
            return run_all(experiments, jobs=jobs, together=together, progress=tell, **kept)

        found = engine.plan(source, run, every=every, asked=asked)
    if out is not None:
        tables.write(out, [fleet.as_row() for fleet in found.fleets])
    files = [*([out] if out is not None else []), *(plan_plot.draw(found, figure) if figure is not None else [])]
    best = found.chosen or found.fleets[-1]
    stands = standing.of(best.point.experiment)
    if as_json:
        print_json({**as_dict(found), "files": [str(f) for f in files], "validity": stands.as_dict()})
        return
    show(found)
    say(f"validity of {best.label}: {stands}")
    for file in files:
        say(f"written: {file}")


def as_dict(found: Plan) -> dict[str, Any]:
    """For ``--json``."""
    chosen, rivals = found.chosen, []
    for fleet, more in found.rivals:
        ends = (more.mean, more.low, more.high) if more is not None else (None, None, None)
        rivals.append({**fleet.as_row(), **dict(zip(("fewer", "fewer_low", "fewer_high"), ends, strict=True))})
    told = {"target": found.target, "seeds": found.seeds, "chosen": chosen.as_row() if chosen is not None else None}
    return {**told, "may_hold": rivals, "fleets": [fleet.as_row() for fleet in found.fleets], **_beside(found)}


def _beside(found: Plan) -> dict[str, Any]:
    return {"prices": found.prices, "notes": found.notes}


def show(found: Plan) -> None:
    """The answer, what could be cheaper, the front if it is known, and how sure it all is."""
    target = f"{100 * found.target:g} %"
    runs = f"{found.seeds} seeds" if found.seeds > 1 else "one run"
    chosen = found.chosen
    if chosen is None:
        say(f"no fleet holds {target} of the requests, by {runs} of each")
    else:
        met = chosen.attainment.spelled(100.0, 2)
        say(f"{chosen.label}: ${chosen.dollars_per_hour:g} an hour, the cheapest that holds {target}")
        say(f"it meets {met} % (95 % interval over {runs}){_per(chosen)}")
    for fleet, fewer in found.rivals:
        met = fleet.attainment.spelled(100.0, 2)
        less = f", {fewer.spelled(100.0, 2)} points fewer on the same requests" if fewer is not None else ""
        say(f"may hold it, too: {fleet.label}, ${fleet.dollars_per_hour:g} an hour: {met} %{less}; more seeds tell")
    if chosen is not None and not found.rivals:
        say("no cheaper fleet of these may hold it")
    told = [chosen, *(fleet for fleet, _ in found.rivals)]
    shown = [f for f in found.fleets if len(found.fleets) <= MOST or f.front or any(f is one for one in told)]
    with_front = any(f.front is not None for f in found.fleets)
    rows = [
        (
            fleet.label,
            f"{fleet.dollars_per_hour:g}",
            fleet.attainment.spelled(100.0, 2),
            fleet.verdict,
            *(["front" if fleet.front else ""] if with_front else []),
        )
        for fleet in shown
    ]
    columns = [("fleet", "left"), ("$ an hour", "right"), ("met, %", "right"), ("target", "left")]
    print_figures([*columns, *([("Pareto", "left")] if with_front else [])], rows)
    if len(shown) < len(found.fleets):
        say(f"and {len(found.fleets) - len(shown)} more that were tried (--out, --json)")
    for price in found.prices:
        say(f"price of {price['fleet']}: {price['device']} ${price['per_hour']:g} an hour: {price['source']}")
    for note in found.notes:
        say(note)


def _per(fleet: Fleet) -> str:
    row = fleet.as_row()
    each = [(row.get("dollars_per_1000_requests"), "1,000 requests")]
    each.append((row.get("dollars_per_million_output_tokens"), "million output tokens"))
    told = "".join(f", ${value:.4g} per {what}" for value, what in each if value is not None)
    busy = row.get("utilisation")
    return told + (f", devices {100 * busy:.0f} % busy" if busy is not None else "")
