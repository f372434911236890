"""Quality beside goodput in two runs whose policies may leave steps out (`servetwin.core.pipeline.StepActions`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: What is compared: (label, key, digits, unit).
FIGURES = (
    ("quality, mean", "mean_quality", 3, ""),
    ("quality in time, per second", "quality_goodput", 4, "1/s"),
    ("in time with all steps, %", "attainment_at_full_steps", 2, "%"),
    ("steps run, %", "steps_run", 2, "%"),
)


def quality_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of `FIGURES` of a run with this *summary*; empty where its policy could do nothing with steps."""
    own = summary.get("quality")
    if own is None:
        return {}
    full = own["attainment_at_full_steps"]
    return {
        "mean_quality": own["mean_quality"],
        "quality_goodput": own["quality_goodput"],
        "attainment_at_full_steps": None if full is None else 100.0 * full,
        "steps_run": 100.0 * own["steps_run"] / own["steps_asked"] if own["steps_asked"] else None,
    }


def figures(
    first: Mapping[str, Any], second: Mapping[str, Any], pair: Callable[[float | None, float | None], Any]
) -> dict[str, Any]:
    """`quality_of` two summaries, as *pair* puts two numbers side by side; empty where neither has any."""
    a, b = quality_of(first), quality_of(second)
    return {key: pair(a.get(key), b.get(key)) for _, key, *_ in FIGURES} if a or b else {}
