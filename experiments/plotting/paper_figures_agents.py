"""Figures 17 and 19: goodput of each agent of a pipeline, and of the whole. Nothing measured can be laid over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..sweeps.point import Row
from .paper_figures import (
    LOOKS,
    OTHER_LOOK,
    STYLE,
    TOKEN_AXES,
    base_of,
    draws_note,
    legend,
    line_with_intervals,
    save,
)

#: Columns of a row -> what the panel's axis says; the agents in the order of the pipeline.
AGENTS = {"codellama_1": "Code Llama 1", "llava": "LLaVA (both)", "codellama_2": "Code Llama 2"}
AXES = {**TOKEN_AXES, "decode_slo": "SLO (x alone)"}


def agents_figure(rows: Sequence[Row], path: Path) -> Path:
    """Draw tokens on time per second of each agent, and requests in time of the pipeline, along each axis."""
    lines = {f"{agent}.token_goodput": f"{title}:\ntokens on time/s" for agent, title in AGENTS.items()}
    lines["request_goodput"] = "whole pipeline:\nrequests in time/s"
    base = base_of(rows, AXES)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(AXES) + 0.5, 1.7 * len(lines) + 0.6), layout="constrained")
        panels = figure.subplots(len(lines), len(AXES), squeeze=False)
        for line, (column, label) in zip(panels, lines.items(), strict=True):
            for panel, axis in zip(line, AXES, strict=True):
                _panel(panel, [r for r in rows if _on(r, axis, base)], axis, column)
                panel.set_ylim(0, 1.06 * max(row[column] for row in rows))
            line[0].set_ylabel(label)
        for panel, title in zip(panels[-1], AXES.values(), strict=True):
            panel.set_xlabel(title)
        legend(figure, panels)
        draws_note(figure, rows)
        save(figure, path)
    return path


def _on(row: Row, axis: str, base: dict[str, float]) -> bool:
    return all(row[other] == base[other] for other in AXES if other != axis)


def _panel(panel: Axes, rows: Sequence[Row], axis: str, column: str) -> None:
    for policy in dict.fromkeys(row["policy"] for row in rows):
        colour, mark = LOOKS.get(policy, OTHER_LOOK)
        own = [row for row in rows if row["policy"] == policy]
        look: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 3, "linewidth": 1.2}
        line_with_intervals(panel, own, axis, column, label=f"{policy}, simulated", **look)
    panel.grid(alpha=0.25, linewidth=0.5)


def first_and_last_figure(rows: Sequence[Row], path: Path) -> Path:
    """Draw first and last tokens on time per second of each agent, as bars."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 2.4), layout="constrained")
        panels = figure.subplots(1, 2, squeeze=False, sharey=True)
        for panel, (kind, title) in zip(
            panels[0], {"prefill": "first tokens on time/s", "decode": "last tokens on time/s"}.items(), strict=True
        ):
            for i, row in enumerate(rows):
                colour, _ = LOOKS.get(row["policy"], OTHER_LOOK)
                places = [x + 0.8 * (i + 0.5) / len(rows) - 0.4 for x in range(len(AGENTS))]
                heights = [row[f"{agent}.{kind}_goodput"] for agent in AGENTS]
                label = f"{row['policy']}, simulated"
                panel.bar(places, heights, 0.8 / len(rows), color=colour, label=label)
                ends = [[row.get(f"{agent}.{kind}_goodput_{end}") for agent in AGENTS] for end in ("low", "high")]
                if all(end is not None for side in ends for end in side):
                    panel.vlines(places, *ends, color="0.2", linewidth=0.8)
            panel.set_xticks(range(len(AGENTS)), AGENTS.values())
            panel.set_title(title, loc="left")
            panel.grid(axis="y", alpha=0.25, linewidth=0.5)
        legend(figure, panels)
        draws_note(figure, rows)
        save(figure, path)
    return path
