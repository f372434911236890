"""A report as Markdown, for a pull request: its sentences and tables, without figures."""

from __future__ import annotations

from .document import Document, Note, Part, Plots, Table

#: A longer listing is for the page; a pull request would drown in it.
LINES = 60


def markdown(document: Document, made: str) -> str:
    """The text; *made* says at its end by what."""
    out = [f"## {_plain(document.title)}", f"**{_plain(document.question)}** {_plain(document.answer)}"]
    if document.facts:
        out.append(_table(Table([name for name, _ in document.facts], [[value for _, value in document.facts]])))
    for section in document.sections:
        parts = [text for part in section.content if (text := _part(part))]
        if parts:
            out += [f"### {_plain(section.title)}", *parts]
    out.append(f"<sub>{_plain(made)}</sub>")
    return "\n\n".join(out) + "\n"


def _part(part: Part) -> str:
    if isinstance(part, Note):
        return "" if part.of_plots else _plain(part.text)
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Plots):
        return ""
    lines = part.text.rstrip().splitlines()
    fence = "~" * max(3, max((len(line) - len(line.lstrip("~")) for line in lines), default=0) + 1)
    text = f"{fence}\n" + "\n".join(lines[:LINES]) + f"\n{fence}"
    if len(lines) > LINES:
        text += f"\n\n{len(lines) - LINES} more lines are in the page."
    return f"<details><summary>{_plain(part.summary)}</summary>\n\n{text}\n\n</details>" if part.folded else text


def _table(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    text = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    return f"{_plain(table.caption)}\n\n{text}" if table.caption else text


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|") if text != "---" else text


def _plain(text: str) -> str:
    """*text* in which nothing counts as markup, on one line."""
    text = " ".join(text.split())
    for sign in ("\\", "`", "*", "_", "<", "["):
        text = text.replace(sign, f"\\{sign}")
    return text
