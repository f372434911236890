"""Figures 17 and 19: goodput of each agent of a pipeline, and of the whole. Nothing measured can be laid over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sweeps.point import Row
from .paper_figures import TOKEN_AXES, base_of, draws_of, line_with_intervals
from .style import Sheet, drawing, look_of

#: Columns of a row -> what the panel's axis says; the agents in the order of the pipeline.
AGENTS = {"codellama_1": "Code Llama 1", "llava": "LLaVA (both)", "codellama_2": "Code Llama 2"}
AXES = {**TOKEN_AXES, "decode_slo": "SLO (× alone)"}


def agents_figure(rows: Sequence[Row]) -> Sheet:
    """Tokens on time per second of each agent, and requests in time of the pipeline, along each axis."""
    lines = {f"{agent}.token_goodput": f"{title}:\ntokens on time/s" for agent, title in AGENTS.items()}
    lines["request_goodput"] = "whole pipeline:\nrequests in time/s"
    base = base_of(rows, AXES)
    policies = [*dict.fromkeys(row["policy"] for row in rows)]
    with drawing():
        sheet = Sheet(len(lines), len(AXES), height=1.25)
        for line, (column, label) in zip(sheet.panels, lines.items(), strict=True):
            for panel, axis in zip(line, AXES, strict=True):
                sheet.describe(panel, label.partition(":")[0], AXES[axis], label, titled=False, edges=True)
                own = [row for row in rows if _on(row, axis, base)]
                for policy in policies:
                    mine = [row for row in own if row["policy"] == policy]
                    line_with_intervals(sheet, panel, policy, look_of(policy, policies), mine, axis, column)
                panel.set_ylim(0, 1.06 * max(row.get(f"{column}_high") or row[column] for row in rows))
        sheet.legend()
        sheet.note(draws_of(rows))
    return sheet


def _on(row: Row, axis: str, base: dict[str, float]) -> bool:
    return all(row[other] == base[other] for other in AXES if other != axis)


def first_and_last_figure(rows: Sequence[Row]) -> Sheet:
    """First and last tokens on time per second of each agent, as bars."""
    policies = [*dict.fromkeys(row["policy"] for row in rows)]
    with drawing():
        sheet = Sheet(1, 2, height=1.6, sharey=True)
        for panel, (kind, title) in zip(
            sheet.panels[0], {"prefill": "first tokens", "decode": "last tokens"}.items(), strict=True
        ):
            sheet.describe(panel, title, "", "on time/s")
            for i, row in enumerate(rows):
                places = [x + 0.8 * (i + 0.5) / len(rows) - 0.4 for x in range(len(AGENTS))]
                heights = [row[f"{agent}.{kind}_goodput"] for agent in AGENTS]
                ends: list[list[Any]] = [
                    [row.get(f"{agent}.{kind}_goodput_{end}") for agent in AGENTS] for end in ("low", "high")
                ]
                known = (ends[0], ends[1]) if all(end is not None for side in ends for end in side) else None
                look = look_of(row["policy"], policies)
                sheet.bars(panel, row["policy"], look, places, [*AGENTS.values()], heights, 0.8 / len(rows), known)
            panel.set_xticks(range(len(AGENTS)), AGENTS.values())
            panel.grid(visible=False, axis="x")
        sheet.legend()
        sheet.note(draws_of(rows))
    return sheet
