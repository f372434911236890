"""``servetwin bound``: the most requests that any schedule could meet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output.terminal import print_json, print_table, say, table
from .options import AsJson, overrides_of

if TYPE_CHECKING:
    from ...bound.most_met import Bound
    from ...bound.schedules import Fresh
    from ...spec.experiment import Experiment
    from ...spec.overrides import Override

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the experiment: --set slo.factor=2.5 (repeatable)."
    ),
]


def bound(
    source: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A workload, a YAML file, or a run folder.")],
    rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    cv: Annotated[float | None, typer.Option(help="Coefficient of variation of the gaps between requests.")] = None,
    slo: Annotated[float | None, typer.Option(help="SLO as a multiple of a request's latency alone.")] = None,
    requests: Annotated[int | None, typer.Option(help="How many requests.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    sets: Sets = None,
    policies: Annotated[
        bool, typer.Option("--policies/--no-policies", help="Serve the requests under known policies, too.")
    ] = True,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="In how many slots time is divided at most: fewer are quicker, and the bound is weaker."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds that the solver may take for each stage.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """The most requests that any schedule could meet, and how near to that known ones come."""
    from ...bound.most_met import most_met

    short = {"rate": rate, "cv": cv, "slo": slo, "requests": requests, "seed": seed}
    experiment, own, served = _asked(source, sets, short)
    found = most_met(experiment, own, slots=slots, seconds=seconds, policies=policies)
    if served is not None:
        found.met["this run"] = served
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)


def _asked(source: str, sets: list[str] | None, short: dict[str, Any]) -> tuple[Experiment, Fresh | None, int | None]:
    """The experiment; the requests of a run folder, where they are not drawn anew; and how many that run met.

    Raises `BadInput` for a run of a language model on real devices: what it did not finish, nobody knows.
    """
    from servetwin.core import BadInput

    from ...registry.catalog import source_of
    from ...spec.loading import load
    from ...spec.overrides import ByOption
    from ...validation.comparison.compare_runs import is_run, read
    from ...validation.replay import folder as replay_folder

    given = [(ByOption(k), v) for k, v in short.items() if v is not None]
    changes: list[Override] = [*given, *overrides_of(sets, short)]
    folder = Path(source)
    if not folder.is_dir() or not is_run(folder):
        return load(source_of(source), changes), None, None
    run = read(folder)
    experiment = load(run.meta.get("experiment", {}), changes)
    if not experiment.pipeline.llms:
        return experiment, lambda: iter(replay_folder.requests_of(folder)), None if changes else run.summary["met"]
    if run.meta.get("kind") != "simulated":
        what = "what a language model would have put out for requests that did not finish is not known"
        raise BadInput(what, where=source, right="a simulated run, or an experiment")
    return experiment, None, None if changes else run.summary["met"]


def _show(found: Bound) -> None:
    say(f"{found.workload}: {found.requests} requests; no schedule meets more than {found.most}")
    if found.noise:
        say(f"  whatever times are drawn; with all times at their means no more than {found.at_mean}")
    told = "a mixed-integer program" if found.method == "exact" else "a relaxation"
    stages = ", ".join(f"{name} {value:.1f}" for name, value in found.stages.items())
    say(f"  by {told}: {stages}")
    if found.best is None:
        return
    lines = table(("schedule", "left"), ("met", "right"), ("of the bound", "right"))
    for name, met in sorted(found.met.items(), key=lambda pair: -pair[1]):
        share = f"{100.0 * met / found.most:.1f} %" if found.most else ""
        lines.add_row(name, str(met), share)
    print_table(lines)
    gap = found.most - found.met[found.best]
    if gap <= 0:
        say(f"{found.best} meets as many as any schedule can")
    else:
        say(f"the best of these is at most {gap} requests from the best possible")
