"""What the command line puts on a terminal: tables and sentences on standard output, progress on standard error.

On a terminal lines are folded at its width. In a file or a pipe they are not, there are no colours, and no progress;
``NO_COLOR`` takes colours off a terminal, too. rich is imported when something is shown, so that a command which
shows nothing does not wait for it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from servetwin.core import Recorder

#: Hears how many of how many are done, and which share of their requests met its SLO so far, where that is known.
Report = Callable[..., None]

#: With these in the environment rich writes to a file as to a terminal.
_ASKS_FOR_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")

#: Seconds between two looks at a run under way.
_BETWEEN = 0.2


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"servetwin {version('servetwin')}")
        raise typer.Exit


def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


# -- what came out --------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print *text*, of one line or several; on a terminal, lines that are longer than it is wide are folded."""
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, 20)
        text = "\n".join(part for line in text.split("\n") for part in _folded(line, width))
    typer.echo(text)


def _folded(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    more = {"subsequent_indent": f"{indent}  ", "break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(line, width, **more) or [line]  # type: ignore[arg-type]


def print_json(content: Any) -> None:
    """Print *content*, of a command with ``--json``; numbers that JSON does not have, as null."""
    typer.echo(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(content: Any) -> Any:
    """*content* with None for numbers that JSON does not have."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def table(*columns: tuple[str, Any]) -> Any:
    """A table with these *columns*: their names, and which side their cells are flush with. Names and sentences (on
    the left) may be folded, numbers (on the right) are not."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=justify == "right", overflow="fold")
    return table


def print_table(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a program, which has no width: nothing is cut off or wrapped
        console.width = 1_000_000  # what is measured is never wider than the console
        console.width = max(120, console.measure(table).maximum)
    console.print(table)


def print_figures(columns: Sequence[tuple[str, Any]], rows: Sequence[Sequence[str]]) -> None:
    """Print a `table` of these *columns* with these *rows*, of plain words and figures without ``[`` and ``:``;
    no column is empty.

    In a file or a pipe nothing is folded or coloured, so that a few lines make what rich would, which takes as long
    to load as a short run takes to compute.
    """
    if sys.stdout.isatty() or any(name in os.environ for name in _ASKS_FOR_A_TERMINAL):
        lines = table(*columns)
        for row in rows:
            lines.add_row(*row)
        print_table(lines)
        return
    head = [name for name, _ in columns]
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    total = sum(widths) + 3 * (len(widths) - 1)

    def line(cells: Sequence[str]) -> str:
        sides = [side for _, side in columns]
        return "   ".join(
            c.rjust(w) if side == "right" else c.ljust(w) for c, w, side in zip(cells, widths, sides, strict=True)
        )

    inner = [" " * total, line(head), "─" * total, *map(line, rows), " " * total]
    typer.echo("\n".join(f" {text} " for text in inner))


# -- while it goes --------------------------------------------------------------------------------------


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """A progress bar on a terminal's standard error, with the time left and the attainment so far; nothing
    elsewhere. Call it with how many are done, how many there are, the attainment if it is known, and where it is."""
    with _bar(what) as update:

        def tell(done: int, total: int | None, share: float | None = None, where: str = "") -> None:
            name = f"{what}: {where}" if where else what
            update(description=name, completed=done, total=total, attainment=_told(share))

        yield tell


@contextmanager
def steps() -> Iterator[Callable[..., None]]:
    """As `progress`, for steps that have names: call it with a step's name before the step."""
    with _bar("...") as update:

        def tell(what: str, done: int, total: int | None, share: float | None = None) -> None:
            update(description=what, completed=done, total=total, attainment=_told(share))

        yield tell


@contextmanager
def watching(total: int | None) -> Iterator[Callable[[Recorder], None] | None]:
    """A progress bar for one run of *total* requests: give it the run's recorder, at which it then looks a few times
    a second. None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    watched: list[Recorder] = []
    over = threading.Event()
    with _bar("requests") as update:

        def look() -> None:
            while not over.wait(_BETWEEN):
                if watched:
                    outcomes = {outcome.value: n for outcome, n in watched[0].summary.outcomes.copy().items()}
                    done = sum(outcomes.values())
                    share = outcomes.get("met", 0) / done if done else None
                    update(completed=done, total=total, attainment=_told(share))

        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        try:
            yield watched.append
        finally:
            over.set()
            looker.join()


def _told(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} % met"


@contextmanager
def _bar(what: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[attainment]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, attainment="")
        yield lambda **values: bar.update(task, **values)
