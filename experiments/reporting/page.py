"""A report as one HTML file that opens without a network: Plotly's script, the figures and the style are in it.

The script is packed, and the browser unpacks it (DecompressionStream: Chrome and Edge 80, Firefox 113, Safari 16.4).
Where that cannot be, the page says so, and its sentences and tables stand without figures.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from servetwin.core import BadInput

from .document import OUTCOMES, Document, Listing, Note, Part, Plot, Plots, Style, Styles, Table

_NUMBER = re.compile(r"^[+−-]?[\d  ,.]+( ?%| ?ms| ?s)?$|^–?$|^none$|^\d+ of \d+$")

#: How dashes look, as SVG has them, and markers as paths around (0, 0).
_DASHED = {"dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3"}
_MARKS = {
    "circle": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "square": "M-3.6,-3.6H3.6V3.6H-3.6Z",
    "diamond": "M0,-5L5,0L0,5L-5,0Z",
    "triangle-up": "M-4.6,3.4L4.6,3.4L0,-4.8Z",
    "triangle-down": "M-4.6,-3.4L4.6,-3.4L0,4.8Z",
    "x": "M-4,-2.4L-2.4,-4L0,-1.6L2.4,-4L4,-2.4L1.6,0L4,2.4L2.4,4L0,1.6L-2.4,4L-4,2.4L-1.6,0Z",
    "cross": "M-1.2,-4.4H1.2V-1.2H4.4V1.2H1.2V4.4H-1.2V1.2H-4.4V-1.2H-1.2Z",
}


@cache
def _packed() -> str:
    """Plotly's script, packed, as text. Raises `BadInput` without the extra."""
    data = plotly_script("; or --markdown, which needs nothing")
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def plotly_script(instead: str = "") -> bytes:
    """Plotly's script. Raises `BadInput` without the extra, with what else would do *instead*."""
    try:
        import plotly
    except ImportError:
        right = f"pip install 'servetwin[report]'{instead}"
        raise BadInput("Plotly is not installed, whose script draws the figures", right=right) from None
    script: bytes = (resources.files(plotly) / "package_data" / "plotly.min.js").read_bytes()
    return script


def page(document: Document, made: str) -> str:
    """The page; *made* says at its foot by what. Raises `BadInput` if Plotly is not there."""
    script = _packed()
    writer = Writer(document.styles)
    links, body = [], []
    for i, section in enumerate(document.sections):
        links.append(f'<a href="#s{i}">{escape(section.title)}</a>')
        parts = "".join(writer.part(part) for part in section.content)
        body.append(f'<section id="s{i}"><h2>{escape(section.title)}</h2>{parts}</section>')
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in document.facts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(document.title)}</title><style>{asset('report.css')}</style></head>\n<body><main>"
        f'<header><h1>{escape(document.title)}</h1><p class="question">{escape(document.question)}</p>'
        f'<p class="answer">{escape(document.answer)}</p><dl class="facts">{facts}</dl></header>'
        f"<nav>{' '.join(links)}</nav>\n{chr(10).join(body)}\n<footer>{escape(made)}</footer></main>\n"
        f'<script type="application/json" id="figures">{_json(writer.figures)}</script>\n'
        f'<script type="text/plain" id="plotly">{script}</script>\n'
        f"<script>{asset('figures.js')}{asset('report.js')}</script>"
        "</body></html>\n"
    )


def asset(name: str) -> str:
    """A style or a script of reports."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that may stand in a page: nothing in it ends a script."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


class Writer:
    """Parts of a report as HTML; their figures are gathered."""

    def __init__(self, styles: Styles) -> None:
        self.styles = styles
        self.figures: list[dict[str, Any]] = []

    def part(self, part: Part) -> str:
        if isinstance(part, Note):
            return f"<p>{escape(part.text)}</p>"
        if isinstance(part, Table):
            return _table(part)
        if isinstance(part, Listing):
            text = f"<pre>{escape(part.text)}</pre>"
            if not part.folded:
                return f"<p>{escape(part.summary)}</p>{text}"
            return f"<details><summary>{escape(part.summary)}</summary>{text}</details>"
        return self._plots(part)

    def _plots(self, part: Plots) -> str:
        keys = "".join(f"<li>{self._key(name, kind)}</li>" for name, kind in part.lines)
        legend = f'<ul class="keys">{keys}</ul>' if part.lines else ""
        shown, more = part.plots[: part.shown], part.plots[part.shown :]
        # Two side by side where three would leave one alone.
        alone = "plots" if part.plots[0].wide else "plots single"
        kind = {1: alone, 2: "plots two", 4: "plots two"}.get(len(part.plots), "plots")
        html = f'{legend}<div class="{kind}">{"".join(map(self._plot, shown))}</div>'
        if more:
            folded = "".join(map(self._plot, more))
            html += f'<details><summary>{len(more)} {part.more}</summary><div class="plots">{folded}</div></details>'
        return html

    def _plot(self, plot: Plot) -> str:
        self.figures.append(plot.figure)
        wide = ' class="wide"' if plot.wide else ""
        label = escape(f"{plot.title}: {plot.says}", quote=True)
        canvas = f'<div class="canvas" data-figure="{len(self.figures) - 1}" role="img" aria-label="{label}"></div>'
        return f"<figure{wide}><figcaption>{escape(plot.title)}</figcaption>{canvas}</figure>"

    def _key(self, name: str, kind: str) -> str:
        if kind == "measured":
            mark = swatch(Style("#1f2937", "solid", "circle"), line=False, filled=False)
            return f'<button type="button" disabled>{mark}{escape("open marks: measured")}</button>'
        if kind == "outcome":
            drawn = _outcome(name)
        else:
            drawn = swatch(self.styles.of(name), line=kind == "line", filled=True)
        line = escape(name, quote=True)
        return f'<button type="button" data-line="{line}" aria-pressed="true">{drawn}{escape(name)}</button>'


def swatch(style: Style, *, line: bool, filled: bool) -> str:
    """How a line looks, as a small picture for a legend."""
    dash = f' stroke-dasharray="{_DASHED[style.dash]}"' if style.dash in _DASHED else ""
    drawn = f'<path d="M0,7H38" stroke="{style.colour}" stroke-width="2"{dash}/>' if line else ""
    fill = style.colour if filled else "none"
    mark = f'<path d="{_MARKS[style.marker]}" transform="translate(19,7)" fill="{fill}" stroke="{style.colour}"/>'
    return f'<svg width="38" height="14" aria-hidden="true">{drawn}{mark}</svg>'


def _outcome(name: str) -> str:
    """A bar in the colour of an outcome, with its pattern; or the thin line of waiting."""
    if name not in OUTCOMES:
        return (
            '<svg width="26" height="14" aria-hidden="true">'
            '<path d="M0,7H26" stroke="#9ca3af" stroke-width="2" stroke-dasharray="2 3"/></svg>'
        )
    colour, pattern = OUTCOMES[name]
    over = {
        "/": '<path d="M4,14L14,0M12,14L22,0" stroke="#fff" stroke-width="2"/>',
        "x": '<path d="M4,14L14,0M12,14L22,0M4,0L14,14M12,0L22,14" stroke="#fff" stroke-width="1.5"/>',
        ".": '<g fill="#fff"><circle cx="6" cy="4" r="1.5"/><circle cx="13" cy="9" r="1.5"/>'
        '<circle cx="20" cy="4" r="1.5"/></g>',
    }.get(pattern, "")
    return (
        f'<svg width="26" height="14" aria-hidden="true"><rect width="26" height="14" fill="{colour}"/>{over}</svg>'
    )


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(_NUMBER.match(row[i]) for row in table.rows) for i in range(len(table.columns))
    ]
    flush = [' class="n"' if n else "" for n in numeric]
    head = "".join(f'<th scope="col"{f}>{escape(c)}</th>' for c, f in zip(table.columns, flush, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{f}>{escape(c)}</td>" for c, f in zip(row, flush, strict=True)) + "</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    return f'{caption}<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
