"""What a report says, before it is a page or a text: sections of sentences, tables, figures and files.

A figure is a mapping as Plotly takes it (`data`, `layout`). Lines in figures are of `Styles`, which gives each name
the same colour, dash and marker in all of a report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = dict[str, Any]

#: Okabe and Ito's colours, which people with any colour vision tell apart, from dark to light on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F6A00")
#: Dashes and markers tell lines apart in grey. Both have Plotly's names.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")
#: The colour of each way in which a request ends, and the pattern that tells it in grey.
OUTCOMES = {"met": ("#0072B2", ""), "late": ("#E69F00", "/"), "dropped": ("#D55E00", "x"), "failed": ("#000000", ".")}


@dataclass(frozen=True)
class Style:
    """How a line looks."""

    colour: str
    dash: str
    marker: str


@dataclass
class Styles:
    """A style for each name, in the order in which names are first asked for."""

    _known: dict[str, Style] = field(default_factory=dict)
    _given: int = 0

    def of(self, name: str) -> Style:
        n = len(self._known) - self._given
        made = Style(COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)], MARKERS[n % len(MARKERS)])
        return self._known.setdefault(name, made)

    def share(self, name: str, other: str) -> None:
        """Let *name* look as *other* does: the two are in no figure together."""
        self.give(name, self.of(other))

    def give(self, name: str, style: Style) -> None:
        """Let *name* look so; others look as they would without it."""
        self._given += name not in self._known
        self._known[name] = style


@dataclass(frozen=True)
class Note:
    """A paragraph; *of_plots*: about figures, and of no use without them."""

    text: str
    of_plots: bool = False


@dataclass(frozen=True)
class Table:
    """A table of texts; columns whose cells are numbers are set flush right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure with its title, and *says*, a sentence for those who do not see it."""

    title: str
    figure: Figure
    says: str
    wide: bool = False


@dataclass(frozen=True)
class Plots:
    """Figures side by side, with one legend of *lines* (name, and whether it is drawn as a line or as marks alone).
    Beyond *shown* they are folded away under *more*."""

    plots: Sequence[Plot]
    lines: Sequence[tuple[str, str]] = ()
    shown: int = 6
    more: str = "more settings"


@dataclass(frozen=True)
class Listing:
    """A file or command in full; long ones are folded away under *summary*."""

    summary: str
    text: str
    folded: bool = True


Part = Note | Table | Plots | Listing


@dataclass(frozen=True)
class Section:
    title: str
    content: Sequence[Part]


@dataclass(frozen=True)
class Document:
    """A report: what was asked and what came out in one sentence each, figures that sum it up, and sections."""

    title: str
    question: str
    answer: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    styles: Styles


def number(value: float | None, digits: int = 3) -> str:
    """*value* to so many significant *digits*, with no exponent where people would write none; "–" without one."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{min(places, 6)}f}".replace(",", " ")
    return text.rstrip("0").rstrip(".") if "." in text and places > digits else text


def plain(value: float | None) -> str:
    """A setting's *value*, as people give it: 20, 0.5."""
    return "–" if value is None else f"{value:g}"


def percent(share: float | None) -> str:
    """A *share* from 0 to 1 in percent, to a tenth."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def seconds(value: float | None) -> str:
    """*value* seconds, in milliseconds where these are few."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{number(value)} s" if abs(value) >= 1 else f"{number(1e3 * value)} ms"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,}".replace(",", " ") + " " + (one if count == 1 else many or f"{one}s")
