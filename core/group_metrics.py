"""Results by class and by tenant, and how evenly tenants were served; and what results are worth where steps may be
left out.

Requests name their class and tenant (`servetwin.core.request.Request`); those that name none are in no group.

>>> jain([1.0, 1.0, 1.0, 1.0]), jain([1.0, 0.0, 0.0, 0.0]), jain([0.0, 0.0])
(1.0, 0.25, None)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .arithmetic import float_sum
from .arithmetic.samples import Distribution, Samples
from .request import ActingTask, Outcome, Request


def jain(shares: Iterable[float]) -> float | None:
    """Jain's fairness index of *shares*: 1 if all have the same, 1 / n if one of n has it all; None if nobody has
    anything. Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource Allocation
    in Shared Computer Systems" (DEC-TR-301, 1984): (sum x)^2 / (n sum x^2)."""
    values = [*shares]
    largest = max(values, default=0.0)
    if not largest:
        return None
    parts = [x / largest for x in values]  # squares of very large or small shares are no numbers
    return float_sum(parts) ** 2 / (len(parts) * float_sum(x * x for x in parts))


class Group:
    """What became of the requests of one class, or of one tenant. 8 bytes are kept per finished request, and 16 more
    where they passed an LLM stage."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.e2el = Samples()
        self.served: Counter[float] = Counter()  # service by the weight of who got it
        self.tokens: Tokens | None = None

    def ended(self, request: Request) -> None:
        self.outcomes[request.outcome] += 1  # type: ignore[index]
        if request.finished is not None:
            self.e2el.recent.append(request.finished - request.arrival)
        self.served[request.weight] += sum([task.service for task in request.tasks])

    def ended_together(self, met: np.ndarray, e2el: np.ndarray, service: np.ndarray, weights: np.ndarray) -> None:
        """Several have ended, one after the other: which of them *met* their SLO, after how many seconds, with what
        service and of what weight."""
        kept = int(np.count_nonzero(met))
        for outcome, many in ((Outcome.MET, kept), (Outcome.LATE, len(met) - kept)):
            if many:
                self.outcomes[outcome] += many
        self.e2el.extend(e2el)
        for weight in set(weights.tolist()):
            self.served[weight] += int(service[weights == weight].sum())

    def merge(self, other: Group) -> None:
        """Count what *other* counted as well."""
        self.outcomes.update(other.outcomes)
        self.e2el.merge(other.e2el)
        self.served.update(other.served)
        if other.tokens is not None:
            self.tokens = self.tokens or Tokens()
            self.tokens.merge(other.tokens)

    @property
    def service(self) -> int:
        """Iterations, or tokens where there are LLM stages, that were computed for its requests."""
        return self.served.total()

    @property
    def entitled(self) -> float:
        """Service over the weight of who got it."""
        return math.fsum(service / weight for weight, service in self.served.items())

    @property
    def attainment(self) -> float:
        """The share of its requests that met their SLO."""
        return self.outcomes[Outcome.MET] / self.outcomes.total()

    def as_dict(self, duration: float) -> dict[str, Any]:
        """Counts in requests, rates per second over *duration* (seconds), latencies in milliseconds. *service* counts
        iterations, or tokens where there are LLM stages: what was computed for whom, in time or not."""
        out: dict[str, Any] = {"requests": self.outcomes.total()}
        out.update({o.value: self.outcomes[o] for o in Outcome})
        out["attainment"] = self.attainment
        out["request_goodput"] = self.outcomes[Outcome.MET] / duration if duration > 0 else None
        out.update(_mean_and_p99("e2el", self.e2el))
        out["service"] = self.service
        if self.tokens is not None:
            out.update(self.tokens.as_dict(duration))
        return out


class Tokens:
    """The same of tokens at LLM stages."""

    def __init__(self) -> None:
        self.output = self.on_time = 0
        self.deadlines = False  # whether tokens have any
        self.ttft, self.tpot = Samples(), Samples()

    def merge(self, other: Tokens) -> None:
        """Count what *other* counted as well."""
        self.output += other.output
        self.on_time += other.on_time
        self.deadlines = self.deadlines or other.deadlines
        self.ttft.merge(other.ttft)
        self.tpot.merge(other.tpot)

    def as_dict(self, duration: float) -> dict[str, Any]:
        out: dict[str, Any] = {"total_output_tokens": self.output}
        if self.deadlines:
            out["on_time_tokens"] = self.on_time
            out["token_goodput"] = self.on_time / duration if duration > 0 else None
        return out | _mean_and_p99("ttft", self.ttft) | _mean_and_p99("tpot", self.tpot)


def _mean_and_p99(name: str, seconds: Samples) -> dict[str, float | None]:
    found = Distribution(seconds, (0.99,), 1000.0) if seconds else None
    return {
        f"mean_{name}_ms": found.mean if found is not None else None,
        f"p99_{name}_ms": found.quantiles[0] if found is not None else None,
    }


class Groups:
    """All groups of a run, by class and by tenant."""

    def __init__(self) -> None:
        self.classes: dict[str, Group] = {}
        self.tenants: dict[str, Group] = {}

    def of(self, request: Request) -> list[Group]:
        """Those that *request* is in."""
        found = []
        if request.class_name:
            found.append(self.classes.get(request.class_name) or self.classes.setdefault(request.class_name, Group()))
        if request.tenant:
            found.append(self.tenants.get(request.tenant) or self.tenants.setdefault(request.tenant, Group()))
        return found

    def merge(self, other: Groups) -> None:
        """Count what *other* counted as well."""
        for own, theirs in ((self.classes, other.classes), (self.tenants, other.tenants)):
            for name, group in theirs.items():
                own.setdefault(name, Group()).merge(group)

    def samples(self) -> Iterator[Samples]:
        """All latencies that are kept."""
        for group in (*self.classes.values(), *self.tenants.values()):
            yield group.e2el
            if group.tokens is not None:
                yield from (group.tokens.ttft, group.tokens.tpot)

    def as_dict(self, duration: float) -> dict[str, Any]:
        """``classes``, ``tenants`` and, of two tenants or more, ``fairness``: Jain's index of their attainments, and
        of the service that each got for its weight."""
        out: dict[str, Any] = {}
        for name, groups in (("classes", self.classes), ("tenants", self.tenants)):
            if groups:
                out[name] = {key: groups[key].as_dict(duration) for key in sorted(groups)}
        if len(self.tenants) > 1:
            tenants = [self.tenants[name] for name in sorted(self.tenants)]
            out["fairness"] = {
                "jain_attainment": jain(group.attainment for group in tenants),
                "jain_service": jain(group.entitled for group in tenants),
            }
        return out


class StepQuality:
    """What became of the steps that requests asked for, and what the results are worth by the experiment's table
    (`servetwin.core.pipeline.StepActions`): a stated model, not something that was seen in images."""

    def __init__(self) -> None:
        self.asked = self.run = self.skipped = 0  # steps of requests that finished
        self.finished = self.full = 0  # requests; those that were in time with every step that they asked for
        self.worth = self.timely = 0.0  # of all that finished, and of those in time

    def ended(self, request: Request) -> None:
        """Count *request*, which has ended. Of several stages with actions the last that it came to tells its
        worth."""
        if request.finished is None:
            return
        worth, skipped = 1.0, 0
        for task in request.tasks:
            if isinstance(task, ActingTask) and task.stage.actions is not None:
                run = task.iterations - task.reused
                self.asked += task.asked
                self.run += run
                skipped += task.asked - run
                worth = task.stage.actions.worth(run, task.asked)
                if task.confidence is not None and not task.onward:
                    worth *= task.stage.actions.kept(task.confidence)
        self.finished += 1
        self.skipped += skipped
        self.worth += worth
        if request.outcome is Outcome.MET:
            self.timely += worth
            self.full += not skipped

    def as_dict(self, requests: int, duration: float) -> dict[str, Any]:
        """*mean_quality* is over the requests that finished, *quality_goodput* the quality of those in time per
        second of *duration*; *attainment_at_full_steps* is the share of all *requests* that were in time with every
        step that they asked for. Steps are those of requests that finished."""
        return {
            "mean_quality": self.worth / self.finished if self.finished else None,
            "quality_goodput": self.timely / duration if duration > 0 else None,
            "attainment_at_full_steps": self.full / requests if requests else None,
            "steps_asked": self.asked,
            "steps_run": self.run,
            "steps_skipped": self.skipped,
        }
