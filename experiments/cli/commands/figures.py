"""Commands that draw: ``plot``, ``figures``, ``demo``, ``trace``.

`servetwin.experiments.cli.app` takes them up. What a command needs is imported when it runs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..output.terminal import print_json, print_table, progress, say, steps, table
from .options import AsJson, Jobs

if TYPE_CHECKING:
    from ...validation.score import Scored


def plot(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT", help="The table of a sweep; or run folders, whose latencies are drawn."),
    ],
    out: Annotated[list[Path], typer.Option(help="Figure to write: .pdf, .svg (both vector) or .png (repeatable).")],
    x: Annotated[
        str | None,
        typer.Option(help="Of a sweep: column for the x axis; by default the settings that vary."),
    ] = None,
    y: Annotated[
        str | None,
        typer.Option(
            help="Of a sweep: column for the y axis, e.g. request_goodput or p99_ttft_ms; attainment by default. "
            "Of runs: e2el, ttft, tpot or itl; all by default."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Of a sweep: one line per value of this column, by default policy. Of runs: class or tenant."
        ),
    ] = None,
    width: Annotated[
        Literal["column", "page"] | None,
        typer.Option(help="Width in a two-column paper: one column (3.33 in) or both (7 in); by default as needed."),
    ] = None,
    intervals: Annotated[
        Literal["bars", "band"], typer.Option(help="How 95 % intervals are drawn, where the table has them.")
    ] = "bars",
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Measured runs to lay over a sweep: run folders or a table (repeatable). Measured "
            "runs of the NeuStream paper are laid over by themselves.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a sweep as lines with intervals and measured points, or the latencies of runs as distributions.

    What is drawn is also written as a table beside the figure: NAME.data.csv.
    """
    from ...sweeps.tables import make_folder
    from ...validation.comparison.compare_runs import is_run

    runs = [path for path in results if is_run(path)]
    if (runs and len(runs) < len(results)) or (len(results) > 1 and not runs):
        other = next(path for path in results if path not in runs)
        what = "is no run folder" if runs else "only one table can be drawn at a time, and this is no run folder"
        raise BadInput(what, where=str(other), right="run folders, or the table of one sweep")
    for path in out:
        make_folder(path.parent)
    with _unseen_told():
        if runs:
            for option, given in (("--x", x), ("--measured", measured)):
                if given:
                    raise BadInput("this is for a sweep, and these are runs", where=option, right="to leave it out")
            from ...plotting.latency_plot import draw as draw_runs

            panels, files = draw_runs(runs, *out, y=y, by=by or "run", width=width)
        else:
            from ...plotting.sweep_plot import Asked
            from ...plotting.sweep_plot import draw as draw_sweep

            asked = Asked(x, y or "attainment", by or "policy", width, intervals, tuple(measured or ()))
            panels, files = draw_sweep(results[0], *out, asked=asked)
    if as_json:
        print_json({"panels": panels, "files": [str(path) for path in files]})
        return
    count = "1 panel" if panels == 1 else f"{panels} panels"
    say(f"{count} in {', '.join(map(str, out))}; what is drawn in {files[-1]}")


@contextmanager
def _unseen_told() -> Iterator[None]:
    """Say in a line, on standard error, which letters of a figure no font has."""
    from ...plotting.style import NoGlyph

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", NoGlyph)
        yield
    for one in told:
        if issubclass(one.category, NoGlyph):
            typer.echo(f"servetwin: {one.message}", err=True)
        else:
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def figures(
    numbers: Annotated[
        list[int] | None,
        typer.Argument(metavar="FIGURES", help="Which: 11, 12, 13, 14, 15, 17, 19; by default all."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures and their data.")] = Path("runs/figures"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="png (default), pdf or svg (repeatable).")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Seeds of Figures 14, 15, 17 and 19, for intervals; else one draw.")
    ] = None,
    bound: Annotated[
        bool,
        typer.Option("--bound", help="Draw the most that any schedule could meet into Figures 11 and 12 (minutes)."),
    ] = False,
    jobs: Jobs = -1,
    as_json: AsJson = False,
) -> None:
    """Draw figures of the NeuStream paper: simulated, with measured points overlaid.

    Beside each figure are the table of its sweep (NAME.csv) and what is drawn (NAME.data.csv).
    """
    from ...plotting import draw_all
    from ...sweeps import tables

    endings = formats or ["png"]
    draw_all.check(numbers or (), endings, seeds, bound=bound)
    tables.make_folder(out)
    with steps() as report:
        more = {"jobs": jobs, "seeds": seeds, "bound": bound}
        files = draw_all.draw_all(out, numbers or (), endings=endings, **more, progress=report)  # type: ignore[arg-type]
    if as_json:
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        say(str(path))


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figure.")] = Path("runs/demo"),
    jobs: Jobs = -1,
    as_json: AsJson = False,
) -> None:
    """Repeat some fifty measured runs in simulation: NeuStream and Clockwork, five workloads on an RTX 4090."""
    from . import demo as engine

    began = time.perf_counter()
    with progress("demo") as report:
        shown = engine.demo(out, jobs=jobs, progress=report)
    took = time.perf_counter() - began
    lines = _compared(shown.scored)
    if as_json:
        found = [{k: v for k, v in line.items() if k != "run"} for line in lines]
        print_json({"runs": found, "seconds": took, "figure": str(shown.figure)})
        return
    gaps = {what: [abs(line["gap"]) for line in lines if line["counted"] == what] for what in ("met", "finished")}
    met, finished = (float_sum(own) / len(own) for own in gaps.values())
    say(
        f"{len(shown.scored)} measured runs simulated in {took:.1f} s: requests served within their SLO are "
        f"{met:.1f} percentage points off on average"
    )
    columns = [("workload", "left"), ("policy", "left"), ("rate", "right")]
    columns += [(name, "right") for name in ("simulated", "measured", "gap, pp")]
    shown_lines = table(*columns)
    last = None
    for line in lines:
        name = line["policy"] if line["counted"] == "met" else f"{line['policy']}, finished"
        if last not in (None, (line["workload"], name)):
            shown_lines.add_section()
        last = (line["workload"], name)
        numbers = (f"{line['simulated']:g}", str(line["measured"]), f"{line['gap']:+.1f}")
        shown_lines.add_row(line["workload"], name, f"{line['rate']:g}", *numbers)
    print_table(shown_lines)
    say("requests of 500; simulated ones are means over 5 draws of the host's noise")
    say(
        f"DiT-S/2 under Clockwork: what was met moved by 73 requests between two measured repeats;\n"
        f"what finished, late or not, is {finished:.1f} points off"
    )
    say(f"figure: {shown.figure}")


def _compared(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """A line for each run and count of it that is shown, in the order of workload and policy."""
    from ...plotting.paper_figures import counts_of

    found: list[dict[str, Any]] = []
    for s in scored:
        for count in counts_of(s.run.workload, s.run.policy):
            gap = s.gap_met if count == "met" else s.gap_finished
            if gap is not None:
                place = {"workload": s.run.workload, "policy": s.run.policy, "rate": s.run.rate, "counted": count}
                found.append({**place, "simulated": s.result[count], "measured": getattr(s.run, count), "gap": gap})
    order = {key: i for i, key in enumerate(dict.fromkeys((f["workload"], f["policy"], f["counted"]) for f in found))}
    return sorted(found, key=lambda f: order[f["workload"], f["policy"], f["counted"]])


def trace(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, e.g. a real run and its simulation.")],
    out: Annotated[Path, typer.Option(help="Output trace file: .json or .json.gz.")],
    as_json: AsJson = False,
) -> None:
    """Write runs as one trace file for ui.perfetto.dev: batches, requests, queues, KV cache use, busy devices."""
    from ...plotting.perfetto import write

    count = write(runs, out)
    if as_json:
        print_json({"events": count, "files": [str(out)]})
        return
    say(f"{count} events in {out}: open it at ui.perfetto.dev")
