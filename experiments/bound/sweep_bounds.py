"""``servetwin sweep --bound``: beside each point the most that any schedule could meet, and the share of it.

Points that differ in nothing but their policy have one bound for each seed, that of the same requests in the same
system with all times at their means (docs/explanation/bound.md). A lucky run may pass it where times are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..spec.experiment import Experiment
from ..sweeps.point import Point, Row, title
from ..sweeps.repeat import Repeated, seeded
from ..sweeps.statistics import mean_interval, wilson
from ..workload.seed_effect import are_copies

if TYPE_CHECKING:
    from .most_met import Bound

#: Runs experiments, each by a point of its own, and gives their rows in order.
Runner = Callable[[Sequence[Experiment], Point], list[Row]]


def _most_met(experiment: Experiment) -> Bound:
    from .most_met import most_met  # here, since its solver takes half a second to load, which no other sweep needs

    return most_met(experiment, policies=False)


class Bounded:
    """Gives the bound of an experiment with all times at their means, as a row."""

    tag = "the most that any schedule meets"

    def __call__(self, experiment: Experiment) -> Row:
        found = _most_met(experiment)
        return {"requests": found.requests, "most": found.most, "at_mean": found.at_mean}


def check(experiments: Sequence[Experiment]) -> None:
    """Raise `BadInput` if no bound is known of one of *experiments*."""
    alike = {repr((e.pipeline, e.deployment, e.slo)): e for e in experiments}
    for experiment in alike.values():
        if experiment.workload.recorded is not None:
            continue
        short = experiment.workload.model_copy(update={"requests": 1})
        try:
            _most_met(experiment.model_copy(update={"workload": short}))
        except BadInput as problem:
            what = f"no bound of {title(experiment)}: {problem.what}"
            raise BadInput(what, where="--bound", right=problem.right) from None


def columns(points: Sequence[Repeated], run: Runner, level: float) -> list[Row]:
    """For each of *points* the columns *bound* (as a share of the requests) and *of_bound* (requests met, as a share
    of the bound), means over the seeds, the latter with its interval."""
    wanted: dict[str, Experiment] = {}
    keys = []
    for point in points:
        count = 1 if are_copies(point.rows) else len(point.rows)
        own = [point.experiment, *(seeded(point.experiment, k) for k in range(1, count))]
        keys.append([_without_policy(experiment) for experiment in own])
        for key, experiment in zip(keys[-1], own, strict=True):
            wanted.setdefault(key, experiment)
    found = dict(zip(wanted, run(list(wanted.values()), Bounded()), strict=True))
    return [_columns(point, [found[key] for key in own], level) for point, own in zip(points, keys, strict=True)]


def _without_policy(experiment: Experiment) -> str:
    return experiment.model_dump_json(exclude={"policy"})


def _columns(point: Repeated, bounds: Sequence[Row], level: float) -> Row:
    most = [bound["at_mean"] for bound in bounds]
    sent = sum(bound["requests"] for bound in bounds)
    met = [row["met"] for row in point.rows[: len(bounds)]]
    row: Row = {
        "bound": sum(most) / sent if sent else None,
        "of_bound": None,
        "of_bound_low": None,
        "of_bound_high": None,
    }
    if all(most):
        shares = mean_interval([a / b for a, b in zip(met, most, strict=True)], level)
        row["of_bound"] = shares.mean
        if len(bounds) > 1:
            half = max(shares.half, wilson(sum(met), sent, level).half * sent / sum(most))
            row |= {"of_bound_low": max(0.0, shares.mean - half), "of_bound_high": shares.mean + half}
    return row


def told(rows: Sequence[Row]) -> list[str]:
    """How near the points of *rows* (of a sweep) come to the most that any schedule could meet, in lines: for each
    policy, by workload."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.get("of_bound") is not None:
            found.setdefault(str(row["policy"]), {}).setdefault(str(row["workload"]), []).append(row)
    lines = []
    for policy, places in found.items():
        lines.append(f"{policy}, in % of the most that any schedule could meet:")
        everywhere = [row for own in places.values() for row in own]
        for place, own in ({**places, "all": everywhere} if len(places) > 1 else places).items():
            shares = [100.0 * row["of_bound"] for row in own]
            reached = sum(share >= 100.0 - 1e-9 for share in shares)
            spread = f"mean {float_sum(shares) / len(shares):.1f}, from {min(shares):.1f} to {max(shares):.1f}"
            lines.append(f"  {place}: {spread}; all of it in {reached} of {len(own)} points")
    return lines
