"""``servetwin explain``: why requests of a run were late or dropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from servetwin.core import BadInput

from ..output.terminal import print_json, print_table, say, table

if TYPE_CHECKING:
    from ...explaining.explanation import Explanation


def explain(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, simulated or real.")],
    request: Annotated[
        list[int] | None, typer.Option("--request", metavar="ID", help="The request with that id (repeatable).")
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many that were not met: the latest first, then those dropped before they were due, "
            "the longest served or waiting first; 10 by default.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Why requests of a run were late or dropped: their time by stage and cause, and where they were lost."""
    from ...explaining import explanation

    if request and worst is not None:
        raise BadInput("both are given", where="--request and --worst", right="one of the two")
    found = explanation.explain(folder, requests=list(dict.fromkeys(request or ())), worst=worst)
    if as_json:
        print_json([explanation.as_json(one) for one in found])
    elif request:
        for one in found:
            _show(one)
    elif found:
        _list(found)
    else:
        whole = (folder / "summary.json").exists()
        say("every request of this run was met" if whole else "every request that its records hold was met")


def _show(found: Explanation) -> None:
    from ...explaining import telling

    say(telling.headline(found))
    say(telling.verdict(found))
    lines = table(("", "left"), *((s.worker, "right") for s in found.stages), ("seconds in all", "right"))
    for cause, stages, whole in telling.rows(found):
        lines.add_row(cause, *(f"{seconds:.3f}" if seconds >= 0.0005 else "" for seconds in stages), f"{whole:.3f}")
    print_table(lines)
    for stage in found.stages:
        if said := telling.instead(stage):
            say(said)
        if said := telling.own(stage):
            say(said)
    if said := telling.of_lost(found):
        say(said)
    for note in found.notes:
        say(f"note: {note}")
    say(telling.RULE)


def _list(found: list[Explanation]) -> None:
    from ...explaining import telling

    columns = (("request", "right"), ("outcome", "left"), ("took, s", "right"), ("slack, s", "right"))
    lines = table(*columns, ("lost", "left"), ("most of its time", "left"))
    for one in found:
        slack = f"{one.slack.seconds:+.3f}" if one.slack is not None else "not known"
        lost, most = telling.short_lost(one), telling.most(one)
        lines.add_row(str(one.id), one.outcome, f"{one.latency:.3f}", slack, lost, most)
    print_table(lines)
    for note in dict.fromkeys(note for one in found for note in one.notes):
        say(f"note: {note}")
    say(telling.RULE)
    say(f"more of one of them: --request {found[0].id}")
