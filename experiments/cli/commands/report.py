"""``servetwin report``: results as a page that can be sent.

`servetwin.experiments.cli.app` takes it up. What it needs is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from servetwin.core import BadInput

from ..output.terminal import print_json, say
from .options import AsJson, Objective, Windows


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Run folders, folders of them, or tables of sweep, score or compare (.csv, .parquet)."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page, .html; opens without a network.")] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, for a pull request, instead of a page.")
    ] = False,
    target: Annotated[float, typer.Option(help="Attainment that a rate must hold, in %.")] = 90.0,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="START:SECONDS", help="What a closer look at a run shows; else where most requests wait."
        ),
    ] = None,
    windows: Windows = None,
    objective: Objective = None,
    as_json: AsJson = False,
) -> None:
    """Make a report of results: one page with figures, tables, what it stands on and how it is made again."""
    from ...reporting import report as engine

    if (out is None) != as_markdown:
        what = "there is nowhere for the page to go" if out is None else "Markdown is printed, not written"
        raise BadInput(what, where="--out", right="--out report.html, or --markdown, one of the two")
    if as_json and as_markdown:
        raise BadInput("what is printed is Markdown", where="--json", right="--out report.html")
    command = ["servetwin", "report", *map(str, results)]
    command += ["--out", str(out)] if out is not None else ["--markdown"]
    command += ["--target", f"{target:g}"] if target != 90.0 else []
    command += ["--window", window] if window is not None else []
    command += ["--windows", f"{windows:g}"] if windows is not None else []
    command += ["--objective", f"{objective:g}"] if objective is not None else []
    said: dict[str, Any] = {"target": target, "window": window, "by_window": (windows, objective)}
    if out is None:
        typer.echo(engine.as_markdown(results, **said, command=command), nl=False)
        return
    engine.write(results, out, **said, command=command)
    if as_json:
        print_json({"files": [str(out)], "bytes": out.stat().st_size})
        return
    say(f"report in {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")
