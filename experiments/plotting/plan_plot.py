"""A figure of a plan: attainment over dollars per hour, a line for each kind of fleet, and the front if known."""

from __future__ import annotations

from pathlib import Path

from ..capacity.plan import Plan
from .style import COLUMN, Sheet, check_ending, drawing, look


def draw(plan: Plan, *outs: Path) -> list[Path]:
    """Draw *plan* to *outs*; the files written. Raises `BadInput`."""
    for out in outs:
        check_ending(out)
    lines: dict[tuple[str, str, str], list[int]] = {}
    for place, fleet in enumerate(plan.fleets):
        lines.setdefault((fleet.kind, fleet.policy, fleet.router), []).append(place)
    several = [len({name[i] for name in lines}) > 1 for i in range(3)]
    with drawing():
        sheet = Sheet(1, 1, width=COLUMN, height=2.0)
        panel = sheet.panels.flat[0]
        sheet.describe(panel, "", "fleet (dollars per hour)", "requests that met their SLO (%)", titled=False)
        front = [fleet for fleet in plan.fleets if fleet.front]
        if front:
            shares = [100.0 * fleet.attainment.mean for fleet in front]
            prices = [fleet.dollars_per_hour for fleet in front]
            panel.step(prices, shares, where="post", color="0.75", linewidth=3.0, zorder=0)
        for number, (who, places) in enumerate(lines.items()):
            own = [plan.fleets[place] for place in places]
            shares = [100.0 * fleet.attainment.mean for fleet in own]
            ends = [100.0 * fleet.attainment.low for fleet in own], [100.0 * fleet.attainment.high for fleet in own]
            name = ", ".join(part for part, told in zip(who, several, strict=True) if told and part) or who[0]
            sheet.line(panel, name, look(number), [fleet.dollars_per_hour for fleet in own], shares, ends)
        panel.axhline(100.0 * plan.target, color="0.35", linewidth=0.7, linestyle=(0, (1, 1)))
        panel.set_xlim(left=0)
        sheet.legend()
        grey = "grey: Pareto front; " if front else ""
        sheet.note(f"{grey}dotted: {100 * plan.target:g} %; bars: 95 % intervals over {plan.seeds} seeds")
    return sheet.save(*outs)
