"""What all figures have in common: sizes and fonts of a two-column paper, how lines look, the legend, and a table of
what is drawn.

Text is 7 points at the width at which a figure is printed, so a figure is not to be scaled. PDF files embed fonts as
TrueType, which publishers ask for; PDF and SVG hold lines and letters, no pixels. Equal inputs give equal files.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation
from servetwin.core import BadInput

from ..reporting.document import COLOURS
from ..sweeps import tables

#: Widths in inches: a column of a two-column paper, and both of them.
COLUMN, PAGE = 3.33, 7.0
WIDTHS = {"column": COLUMN, "page": PAGE}
ENDINGS = ("pdf", "svg", "png")
INTERVALS = ("bars", "band")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))

#: Fonts with the letters of Chinese, Japanese and Korean that systems bring along, which matplotlib's own lacks.
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAexGothic", "NanumGothic", "PingFang SC",
    "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "Microsoft YaHei", "SimHei", "Yu Gothic",
    "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip


def fonts() -> list[str]:
    """matplotlib's own font, which is there wherever matplotlib is, and those of `CJK_FONTS` that this machine has,
    of which letters are taken that it lacks."""
    known = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in known)]


STYLE: Any = {
    "font.family": fonts(),
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.labelpad": 2.5,
    "axes.titlepad": 4.0,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.2,
    "lines.markeredgewidth": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "servetwin",
    "text.parse_math": False,  # names are users': a $ in one begins no formula
}
DPI = 220
#: Points that a letter of the font takes per point of its size, at most on average.
_LETTER = 0.58
_GREY = "0.35"


class NoGlyph(UserWarning):
    """There is no font with some of the letters of a figure."""


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in `STYLE`. Of letters that no font has `Sheet.save` tells, once and not at each of them."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        log = logging.getLogger("matplotlib.font_manager")
        level = log.level
        log.setLevel(logging.ERROR)  # fonts that have one weight only
        try:
            yield
        finally:
            log.setLevel(level)


class Drawing(Figure):
    """A figure that notebooks show, also without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=150)
        return content.getvalue()


@dataclass(frozen=True)
class Look:
    """How a line looks; markers tell lines apart where colours do not."""

    colour: str
    marker: str
    dash: Any = "-"

    def dashed(self, marker: str) -> Look:
        """The same colour, told apart by dash and *marker*."""
        return Look(self.colour, marker, DASHES[1])


#: Policies that look the same in all published figures.
KNOWN = {
    "neustream": Look(COLOURS[0], MARKERS[0]),
    "neustream-llm": Look(COLOURS[0], MARKERS[0]),
    "clockwork": Look(COLOURS[1], MARKERS[1]),
    "vllm": Look(COLOURS[1], MARKERS[1]),
}
#: The most that any schedule could meet: the kind of such points, and how their line looks.
BOUND, LIMIT = "bound", Look("0.35", "", (0, (1.0, 1.5)))


def look(number: int) -> Look:
    """The look of the line that has this *number*; no two of the first 32 look alike."""
    n = len(COLOURS)
    return Look(COLOURS[number % n], MARKERS[number % len(MARKERS)], DASHES[number // n % len(DASHES)])


def look_of(policy: str, others: Sequence[str]) -> Look:
    """The look of *policy* among *others* in a published figure."""
    if policy in KNOWN:
        return KNOWN[policy]
    new = [name for name in others if name not in KNOWN]
    return look(2 + new.index(policy) if policy in new else 2)


class Sheet:
    """A figure of *rows* by *columns* panels, *width* inches wide, its panels *height* inches high; and what is drawn
    in it. Use it within `drawing`."""

    def __init__(
        self, rows: int, columns: int, *, width: float = PAGE, height: float = 1.3, sharey: bool = False
    ) -> None:
        self.width, self.height, self.columns, self.sharey = width, height, columns, sharey
        self.figure = Drawing(figsize=(width, height * rows + 0.15), layout="constrained")
        cast(Any, self.figure.get_layout_engine()).set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
        self.panels = self.figure.subplots(rows, columns, squeeze=False, sharey=sharey)
        self.points: list[dict[str, Any]] = []  #: what is drawn, a row for each point
        self._names: dict[Axes, tuple[str, str, str]] = {}
        self._entries: dict[str, Any] = {}
        self._kinds: dict[str, Any] = {}

    def describe(self, panel: Axes, name: str, x: str, y: str, *, titled: bool = True, edges: bool = False) -> None:
        """What *panel* shows, and what its axes are called; with *edges* only where it is at the figure's left and
        lower edge. *name* is its title, if it is to be *titled*."""
        self._names[panel] = (name, x, y)
        if titled and name:
            room = 72 * ((self.width - 0.3) / self.columns - (0.05 if self.sharey else 0.25))
            panel.set_title(_wrapped(name, room, mpl.rcParams["axes.titlesize"]), loc="left", fontweight="bold")
        row, column = (int(found[0]) for found in (self.panels == panel).nonzero())
        if not edges or row == len(self.panels) - 1:
            panel.set_xlabel(x)
        if column == 0:
            fitting = max(int(72 * self.height / (_LETTER * mpl.rcParams["axes.labelsize"])), 12)
            panel.set_ylabel("\n".join(line for part in y.split("\n") for line in _folded(part, fitting)))
        panel.grid(alpha=0.25, linewidth=0.4)
        panel.set_axisbelow(True)

    # -- drawing ------------------------------------------------------------------------------------------

    def line(
        self,
        panel: Axes,
        name: str,
        looks: Look,
        x: Sequence[float],
        y: Sequence[float],
        ends: tuple[Sequence[float], Sequence[float]] | None = None,
        *,
        intervals: str = "bars",
        shift: float = 0.0,
        marked: bool = True,
        kind: str = "simulated",
        drawstyle: str = "default",
    ) -> None:
        """A line called *name*, with the *ends* (low, high) of an interval at each point, drawn as one of
        `INTERVALS`. All of it stands *shift* points to the right, so that the bars of several lines do not hide each
        other."""
        own = {"color": looks.colour, "linestyle": looks.dash, "marker": looks.marker if marked else None}
        (drawn,) = panel.plot(x, y, **own, label=name, drawstyle=drawstyle)
        parts: list[Any] = [drawn]
        if ends is not None and intervals == "band":
            parts.append(panel.fill_between(x, *ends, color=looks.colour, alpha=0.18, linewidth=0))
        elif ends is not None:
            parts.append(panel.vlines(x, *ends, color=looks.colour, linewidth=0.7))
        self._move(panel, parts, shift)
        self._entries.setdefault(name, drawn)
        if kind != BOUND:  # which has one line alone, that says so
            self._kinds.setdefault(kind, Line2D([], [], color=_GREY))
        self._keep(panel, name, kind, x, y, ends)

    def limit(self, panel: Axes, most: Mapping[float, float]) -> None:
        """The line that no schedule passes, *most* by place; nothing if none is known."""
        if most:
            places = sorted(most)
            values = [most[place] for place in places]
            self.line(panel, "no schedule more than", LIMIT, places, values, marked=False, kind=BOUND)

    def _move(self, panel: Axes, parts: Sequence[Any], shift: float) -> None:
        """Move *parts* of a *panel* by *shift* points to the right. Limits of axes, which know them by now, stay."""
        for part in parts if shift else ():
            part.set_transform(panel.transData + ScaledTranslation(shift / 72, 0, self.figure.dpi_scale_trans))

    def marks(
        self, panel: Axes, name: str, looks: Look, x: Sequence[float], y: Sequence[float], *, shift: float = 0.0
    ) -> None:
        """Open marks: what was measured of that which the line *name* simulates, as far to the right as it is."""
        if not x:
            return
        open_marks: Any = {"linestyle": "none", "markersize": 5.0, "markerfacecolor": "none", "markeredgewidth": 0.8}
        drawn = panel.plot(x, y, marker=looks.marker, color=looks.colour, zorder=3, clip_on=False, **open_marks)
        self._move(panel, drawn, shift)
        self._kinds["measured"] = Line2D([], [], color=_GREY, marker="o", **open_marks)
        if name not in self._entries:
            self._entries[name] = Line2D([], [], color=looks.colour, marker=looks.marker, **open_marks)
        self._keep(panel, name, "measured", x, y)

    def shade(self, panel: Axes, name: str, grey: str, x: Sequence[float], y: Sequence[float]) -> None:
        """A shaded area below *y*, of what was measured."""
        self._entries.setdefault(name, panel.fill_between(x, y, step="mid", color=grey, linewidth=0))
        self._keep(panel, name, "measured", x, y)

    def bars(
        self,
        panel: Axes,
        name: str,
        looks: Look,
        places: Sequence[float],
        labels: Sequence[str],
        heights: Sequence[float],
        width: float,
        ends: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        """Bars at *places*, which are called *labels*, with the *ends* of an interval at each."""
        drawn = panel.bar(
            places, heights, width, color=looks.colour, hatch=_HATCH.get(looks.marker), edgecolor="white"
        )
        if ends is not None:
            panel.vlines(places, *ends, color="0.2", linewidth=0.8)
        self._entries.setdefault(name, drawn)
        self._keep(panel, name, "simulated", labels, heights, ends)

    def _keep(
        self,
        panel: Axes,
        name: str,
        kind: str,
        x: Sequence[float] | Sequence[str],
        y: Sequence[float],
        ends: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        title, along, up = self._names[panel]
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            point = {"panel": title, "line": name, "kind": kind, "x_name": along, "x": a, "y_name": up, "y": b}
            low, high = (ends[0][i], ends[1][i]) if ends is not None else (None, None)
            self.points.append({**point, "y_low": low, "y_high": high})

    # -- what stands around the panels ----------------------------------------------------------------------

    def legend(self) -> None:
        """One legend for all panels, above them and no wider; the figure grows by its height."""
        entries = dict(self._entries)
        if "measured" in self._kinds:
            entries |= {kind: handle for kind, handle in self._kinds.items() if kind not in entries}
        if not entries:
            return
        renderer = cast(Any, FigureCanvasAgg(self.figure)).get_renderer()
        fitting = int(72 * self.width / (_LETTER * mpl.rcParams["legend.fontsize"])) - 8
        for letters in (*range(fitting, 16, -8), 16):
            labels = ["\n".join(_folded(name, letters)) for name in entries]
            for columns in range(min(len(entries), 6), 0, -1):
                made = self.figure.legend(
                    entries.values(), labels, loc="outside upper center", ncols=columns, frameon=False,
                    columnspacing=1.3, handlelength=2.2, borderaxespad=0.1,
                )  # fmt: skip
                size = made.get_window_extent(renderer)
                if size.width <= 0.98 * self.figure.bbox.width or (letters == 16 and columns == 1):
                    self.figure.set_figheight(self.figure.get_figheight() + size.height / self.figure.dpi)
                    return
                made.remove()

    def note(self, text: str) -> None:
        """A line below the panels: what the figure stands on."""
        size = 6
        lines = _folded(text, int(72 * self.width / (_LETTER * size)))
        self.figure.supxlabel("\n".join(lines), fontsize=size, color=_GREY)
        self.figure.set_figheight(self.figure.get_figheight() + 1.5 * size * len(lines) / 72)

    # -- files ----------------------------------------------------------------------------------------------

    def save(self, *paths: Path) -> list[Path]:
        """Write the figure to *paths*, and what it shows beside each as ``NAME.data.csv``; the files written.

        Raises `BadInput` if a path cannot be written, or its ending is none of `ENDINGS`. Warns (`NoGlyph`) of
        letters that no font of this machine has.
        """
        files = list(paths)
        for path in paths:
            check_ending(path)
            tables.check_plain(path)
        with drawing():
            for path in paths:
                content = self._drawn(path.suffix[1:])
                tables.write_whole(path, lambda to, content=content: to.write_bytes(content))  # type: ignore[misc]
        for path in dict.fromkeys(data_beside(path) for path in paths):
            tables.write(path, self.points, self._columns())
            files.append(path)
        if unseen := self._unseen():
            shown = unseen if len(unseen) <= 12 else f"{unseen[:12]}..."
            right = "a font that has them, Noto Sans CJK, say"
            what = f"no font here has {shown}, drawn as boxes (right would be: {right})"
            warnings.warn(what, NoGlyph, stacklevel=3)
        return files

    def _unseen(self) -> str:
        """The letters of its texts that none of `fonts` has."""
        texts = (found.get_text() for found in self.figure.findobj(Text))
        letters = {ord(letter) for text in texts for letter in text if not letter.isspace()}
        for name in STYLE["font.family"]:
            letters -= get_font(findfont(name)).get_charmap().keys()
        return "".join(map(chr, sorted(letters)))

    def _columns(self) -> list[str]:
        """Those of the columns of `points` in which there is something."""
        names = self.points[0] if self.points else ("line", "x", "y")
        return [name for name in names if any(p[name] not in (None, "") for p in self.points)] or [*names]

    def _drawn(self, ending: str) -> bytes:
        """The figure as a file with that *ending*, in memory: what writes PDF files fails in its own way on a full
        disk."""
        # Without the date or the version of whatever wrote it.
        unsaid: dict[str, dict[str, None]] = {
            "png": {"Software": None},
            "svg": {"Date": None},
            "pdf": {"CreationDate": None},
        }
        content = io.BytesIO()
        self.figure.savefig(content, format=ending, dpi=DPI, metadata=unsaid[ending])
        return content.getvalue()


#: What tells bars apart in grey.
_HATCH = {"s": "////", "^": "....", "D": "xxxx"}


def check_ending(path: Path) -> None:
    """Raise `BadInput` unless the ending of *path* is one of `ENDINGS`."""
    if path.suffix[1:] not in ENDINGS:
        right = " or ".join(f".{ending}" for ending in ENDINGS)
        raise BadInput(f"{path.suffix or 'no ending'} is no kind of figure", where=str(path), right=right)


def data_beside(figure: Path) -> Path:
    """Where the data of a *figure* is."""
    return figure.with_name(f"{figure.stem}.data.csv")


def _folded(text: str, letters: int) -> list[str]:
    """*text* in lines of so many *letters*; it is broken after blanks, and after ``-``, ``_``, ``/`` and ``.`` within
    words, which names of files and settings are made of.

    >>> _folded("my_policy_with_a_long_name.py, shepherd", 20)
    ['my_policy_with_a_', 'long_name.py,', 'shepherd']
    """
    lines = [""]
    for part in re.findall(r"[^\s\-_/.]*[\s\-_/.]?", text):
        if len((lines[-1] + part).rstrip()) > letters and lines[-1]:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]


def _wrapped(text: str, room: float, size: float) -> str:
    """*text* in bold letters of *size* points, in lines of *room* points at the most where words are not longer."""
    bold = FontProperties(family=mpl.rcParams["font.family"], weight="bold")

    def fit(letters: int) -> bool:
        lines = _folded(text, letters)
        return all(TextPath((0, 0), line, size, prop=bold).get_extents().width <= room for line in lines)

    low, high = 8, max(len(text), 8)
    while low < high:  # measuring takes milliseconds, and there are titles of hundreds of letters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(middle) else (low, middle - 1)
    return "\n".join(_folded(text, low))
