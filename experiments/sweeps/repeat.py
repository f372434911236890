"""The same point with many seeds: means with intervals, as many seeds as it takes, and paired differences.

Every policy sees the same requests under the same seed (common random numbers), so a difference between two
policies is taken seed by seed. Arrivals and steps of published runs are the same for every seed; repeated points
draw them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..spec.experiment import Experiment
from ..workload.seed_effect import are_copies, check_seeds
from .point import Row
from .statistics import LEAST_SEEDS, Interval, attainment_interval, mean_interval, narrow_enough, paired_attainment

#: Runs experiments and gives their rows, in order.
Runner = Callable[[Sequence[Experiment]], list[Row]]


class NothingSent(BadInput):
    """Under one of its seeds a load is empty: there is no share of its requests."""

    def __init__(self, what: str, *, where: str | None = None) -> None:
        super().__init__(what, where=where, right="a load that lasts longer, or a higher rate")


@dataclass
class Repeated:
    """One point, and a row for each of its seeds so far."""

    experiment: Experiment
    rows: list[Row] = field(default_factory=list)

    def attainment(self, level: float) -> Interval:
        """Raises `NothingSent` if one of its runs sends no request."""
        for shift, row in enumerate(self.rows):
            if not row["requests"]:
                where = f"{self.experiment.name}, {self.experiment.policy.name}: workload"
                raise NothingSent(f"no request is sent under seed {self.experiment.seed + shift}", where=where)
        if are_copies(self.rows):  # copies of one run say what it says
            return attainment_interval([self.rows[0]["met"]], [self.rows[0]["requests"]], level)
        met, totals = ([int(r[name]) for r in self.rows] for name in ("met", "requests"))
        return attainment_interval(met, totals, level)

    @property
    def all_send(self) -> bool:
        """Whether requests are sent under each seed."""
        return all(row["requests"] for row in self.rows)

    def summary(self, level: float) -> Row:
        """Means over the seeds, and intervals on attainment, goodput, latencies and quality (`has_interval`).

        Where no request is sent under some seed the attainment is None.
        """
        row: Row = {}
        for name in self.rows[0]:
            values = [r[name] for r in self.rows if r[name] is not None]
            row[name] = float_sum(values) / len(values) if values else None
        goodput = [r["request_goodput"] or 0.0 for r in self.rows]
        several = len(self.rows) > 1 and not are_copies(self.rows)
        for name, found in (
            ("attainment", self.attainment(level) if self.all_send else None),
            ("request_goodput", mean_interval(goodput, level).above(0.0)),
        ):
            row[name] = found.mean if found is not None else None
            row[f"{name}_low"] = found.low if several and found is not None else None
            row[f"{name}_high"] = found.high if several and found is not None else None
        for name in filter(has_interval, self.rows[0]):
            # A run of which nothing is known there (nothing finished, say) would be left out: then nothing is said.
            known = several and all(r[name] is not None for r in self.rows)
            ends = mean_interval([r[name] for r in self.rows], level).above(0.0) if known else None
            row[f"{name}_low"] = ends.low if ends is not None else None
            row[f"{name}_high"] = ends.high if ends is not None else None
        row["seeds"] = len(self.rows) if several else 1
        return row


def has_interval(column: str) -> bool:
    """Whether repeated points have an interval on the mean of *column*, beside attainment and requests in time per
    second: all latencies, tokens in time per second, and quality.

    >>> names = ("p99_ttft_ms", "llava.token_goodput", "request_goodput", "met", "quality_goodput")
    >>> [name for name in names if has_interval(name)]
    ['p99_ttft_ms', 'llava.token_goodput', 'quality_goodput']
    """
    latency = column.endswith("_ms") and column.partition("_")[0] in ("mean", "median", "p90", "p99")
    goodput = column.endswith(("token_goodput", "prefill_goodput", "decode_goodput", "limits_goodput"))
    quality = column in ("mean_quality", "quality_goodput", "attainment_at_full_steps")
    return latency or goodput or quality or column.endswith(".request_goodput")


def seeded(experiment: Experiment, shift: int = 0) -> Experiment:
    """*experiment* with draws that depend on its seed, which is moved on by *shift*."""
    load = experiment.workload
    if load.draws != "seeded":
        experiment = experiment.model_copy(update={"workload": load.model_copy(update={"draws": "seeded"})})
    return experiment.model_copy(update={"seed": experiment.seed + shift}) if shift else experiment


def repeat(
    experiments: Sequence[Experiment],
    run: Runner,
    *,
    seeds: int | None = None,
    until: float | None = None,
    most: int = 100,
    level: float = 0.95,
) -> list[Repeated]:
    """Run each point with *seeds* seeds (its own and those that follow), then on until its attainment is known to
    within *until* (a share; half the interval's width), with *most* seeds at the most.

    All points of a round have the same seeds. Stopping by the interval itself makes it hold a little less often than
    it says; `LEAST_SEEDS` keeps that small.
    """
    first = seeds or (LEAST_SEEDS if until is not None else 1)
    if first < 1 or most < first:
        raise BadInput(f"{first} seeds, but {most} at the most", right="at least one seed, and no more than the most")
    points = [Repeated(seeded(e)) for e in experiments]
    for point in points:
        check_seeds(point.experiment, most if until is not None else first, "--until" if seeds is None else "--seeds")
    wanting = list(points)
    have, more = 0, first
    while wanting and more > 0:
        batch = [seeded(p.experiment, have + k) for p in wanting for k in range(more)]
        rows = run(batch)
        for i, point in enumerate(wanting):
            point.rows += rows[i * more : (i + 1) * more]
        have += more
        wanting = [p for p in wanting if until is not None and not narrow_enough(p.attainment(level), until)]
        more = min(max(1, have // 2), most - have)
    return points


def versus(
    points: Sequence[Repeated], axes: Sequence[Mapping[str, Any]], reference: str, level: float = 0.95
) -> list[Row]:
    """For each point, how its attainment differs from that of the policy *reference* at the same place.

    *axes* are the values of the sweep's axes; points that differ in the policy alone belong together, or else those
    that also differ in what goes with a policy: the variant, the deployment, the system. Raises `BadInput` if a point
    has no partner, or several of that kind, or if there is no other policy. Where no request is sent under some seed
    the difference is None.
    """
    if points and all(point.experiment.policy.name == reference for point in points):
        right = "an axis policy that holds another one too; only policies are compared in pairs"
        raise BadInput(f"all points are of policy {reference!r}", where="--versus", right=right)
    partners: dict[str, list[Repeated]] = {}
    for point, values in zip(points, axes, strict=True):
        if point.experiment.policy.name == reference:
            for place in (_place(values), _place(values, *WITH_POLICY)):
                partners.setdefault(place, []).append(point)
    rows: list[Row] = []
    for point, values in zip(points, axes, strict=True):
        own = partners.get(_place(values)) or partners.get(_place(values, *WITH_POLICY), [])
        partner = own[0] if own and all(p is own[0] for p in own) else None
        if own and partner is None:
            what = f"{len(own)} points of policy {reference!r} could be compared with {point.experiment.policy.name}"
            raise BadInput(what, where="--versus", right="axes that both policies have alike")
        if partner is None:
            raise BadInput(
                f"no point of policy {reference!r} to compare {point.experiment.policy.name} with",
                where="--versus",
                right=f"an axis policy that holds {reference}",
            )
        pairs = list(zip(partner.rows, point.rows, strict=False))
        name = f"attainment_minus_{reference}"
        if not all(a["requests"] for a, _ in pairs):
            rows.append({name: None, f"{name}_low": None, f"{name}_high": None})
            continue
        met, other = ([row["met"] for row in own_rows] for own_rows in zip(*pairs, strict=True))
        gap = paired_attainment(met, other, [a["requests"] for a, _ in pairs], level)
        known = len(pairs) > 1 and not (are_copies(point.rows) and are_copies(partner.rows))
        rows.append(
            {name: gap.mean, f"{name}_low": gap.low if known else None, f"{name}_high": gap.high if known else None}
        )
    return rows


def told_apart(rows: Sequence[Row], reference: str) -> list[str]:
    """What the differences in *rows* (of a sweep, see `versus`) come to, in lines: in how many points of a workload a
    policy meets clearly more or fewer than *reference* (the interval does not hold 0), and by how much, in points of
    attainment."""
    name = f"attainment_minus_{reference}"
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row["policy"] != reference and row.get(name) is not None:
            found.setdefault(str(row["policy"]), {}).setdefault(str(row["workload"]), []).append(row)
    lines = []
    for policy, places in found.items():
        lines.append(f"{policy} beside {reference}, points of attainment:")
        everywhere = [row for own in places.values() for row in own]
        for place, own in {**places, "all": everywhere}.items():
            gaps = [100.0 * row[name] for row in own]
            more = sum((row[f"{name}_low"] or 0.0) > 0.0 for row in own)
            fewer = sum((row[f"{name}_high"] or 0.0) < 0.0 for row in own)
            spread = f"mean {float_sum(gaps) / len(gaps):+.2f}, from {min(gaps):+.1f} to {max(gaps):+.1f}"
            lines.append(f"  {place}: clearly more in {more} of {len(own)}, clearly fewer in {fewer}; {spread}")
    return lines


#: Keys that may go with a policy where systems are compared as wholes.
WITH_POLICY = ("variant", "deployment", "system")


def _place(axes: Mapping[str, Any], *without: str) -> str:
    own = {k: v for k, v in axes.items() if k.split(".")[0] not in ("policy", *without)}
    return repr(sorted((k, repr(v)) for k, v in own.items())) + repr(without)
