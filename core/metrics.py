"""What a run amounted to, in the words of ``vllm bench serve`` where it has them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from .arithmetic.samples import Distribution, Samples, Shelf
from .group_metrics import Groups, StepQuality
from .policy import Batch
from .request import CUT_OFF, Outcome, Request

T = TypeVar("T")


class Tally(Counter[T]):
    """A `Counter` that counts at the speed of a dict: a plain one writes by way of Python's own ``__delitem__``."""

    __setitem__ = dict.__setitem__
    __delitem__ = dict.__delitem__  # type: ignore[assignment]


#: In a reason: the device of a replica's worker (as in ``llm@gpu0.2``), and numbers.
_REPLICA, _NUMBER = re.compile(r"@[\w.#]*[\w#]"), re.compile(r"\b\d+(\.\d+)?\b")


def _commonest(failures: Mapping[str, int]) -> dict[str, Any]:
    """For which reason most requests failed, and how many: of those in *failures*, where which replica it was makes
    none of its own, nor do numbers. Equals are told by name, for replicas are merged in any order."""
    kinds: dict[str, Counter[str]] = {}
    for said, many in failures.items():
        reason = _REPLICA.sub("", said)
        kinds.setdefault(_NUMBER.sub("", reason), Counter())[reason] += many
    kind = min(kinds.values(), key=lambda found: (-found.total(), min(found)))
    reason, _ = min(kind.items(), key=lambda pair: (-pair[1], pair[0]))
    return {"reason": reason if len(kind) == 1 else f"{reason} (or other numbers)", "requests": kind.total()}


class Summary:
    """Counts and latencies of a run, gathered as it goes; 8 bytes are kept per finished request, in a temporary file
    where they are many."""

    #: So many requests that finished are in memory with their latencies; beyond that these are put away.
    most = 1 << 19

    def __init__(self) -> None:
        self.held: list[
            dict[str, Any]
        ] = []  # where steps went beyond what was measured, by `servetwin.sim.time.out_of_range`
        self.input: dict[str, Any] = {}  # what is to be said of the requests that were sent: what was cut, say
        self.quality: StepQuality | None = None  # where policies may do something with steps
        self._begin()

    def _begin(self) -> None:
        """Nothing has been counted."""
        self.outcomes: Counter[Outcome] = Tally()
        self.requests = 0
        self.cut_off = 0  # of the failed, those that the end of the run cut off
        self.failures: Counter[str] = Counter()  # of the others that failed: why, and how many
        self.first_arrival: float | None = None
        self.last_arrival = 0.0
        self.last_end = 0.0
        self.e2el = Samples()
        self.sizes: dict[str, Counter[int]] = {}  # worker -> batch size -> iterations (whole batches count once)
        self.groups = Groups()  # by class and tenant, where requests name them

    def arrived(self, request: Request) -> None:
        self.requests += 1
        if self.first_arrival is None:
            self.first_arrival = request.arrival
        self.last_arrival = request.arrival

    def ended(self, request: Request, now: float) -> None:
        self.outcomes[request.outcome] += 1  # type: ignore[index]
        if request.outcome is Outcome.FAILED:
            if request.reason in CUT_OFF:
                self.cut_off += 1
            elif request.reason:
                self.failures[request.reason] += 1
        if request.finished is not None:
            recent = self.e2el.recent
            recent.append(request.finished - request.arrival)
            if len(recent) >= self.most:
                self.put_away()
        if request.class_name or request.tenant:
            for group in self.groups.of(request):
                group.ended(request)
        if self.quality is not None:
            self.quality.ended(request)
        self.last_end = now

    def batch(self, batch: Batch) -> None:
        name = batch.worker[1]
        try:
            self.sizes[name][batch.size] += batch.count
        except KeyError:
            self.sizes[name] = Tally({batch.size: batch.count})

    def merge(self, other: Summary) -> None:
        """Count what *other* counted as well: other requests, which other workers served at the same time. What comes
        of it is what one summary of all of them has, to the last digit. (*input*, *held* and *quality* are left.)"""
        self.outcomes.update(other.outcomes)
        self.requests += other.requests
        self.cut_off += other.cut_off
        self.failures.update(other.failures)
        began = [first for first in (self.first_arrival, other.first_arrival) if first is not None]
        self.first_arrival = min(began, default=None)
        self.last_arrival = max(self.last_arrival, other.last_arrival)
        self.last_end = max(self.last_end, other.last_end)
        self.e2el.merge(other.e2el)
        for worker, sizes in other.sizes.items():
            self.sizes.setdefault(worker, Tally()).update(sizes)
        self.groups.merge(other.groups)
        if len(self.e2el.recent) >= self.most:
            self.put_away()

    def hand_over(self, to: Summary) -> None:
        """Let *to* count what was counted here (`merge`), and begin anew."""
        to.merge(self)
        self._begin()

    def put_away(self) -> None:
        """Keep all latencies so far in a temporary file."""
        shelf = Shelf()
        for samples in self._samples():
            samples.put_away(shelf)

    def _samples(self) -> Iterator[Samples]:
        """All latencies that are kept."""
        yield self.e2el
        yield from self.groups.samples()

    @property
    def met(self) -> int:
        """Requests that finished within their SLO."""
        return self.outcomes[Outcome.MET]

    @property
    def finished(self) -> int:
        """Requests that ran to the end, late ones included."""
        return self.outcomes[Outcome.MET] + self.outcomes[Outcome.LATE]

    @property
    def attainment(self) -> float:
        """The share of all requests that met their SLO; dropped and failed ones count against it."""
        return self.met / self.requests if self.requests else float("nan")

    def mean_batch_size(self, worker: str) -> float:
        """Mean size of the batches of *worker*, each iteration counted once. NaN if it ran none."""
        sizes = self.sizes.get(worker)
        return sum(n * k for n, k in sizes.items()) / sizes.total() if sizes else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """The content of ``summary.json``: counts in requests, rates per second, latencies in milliseconds.

        *duration* runs from the first arrival to the last end, as in ``vllm bench serve``; *arrival_span* to the last
        arrival. Of the failed, *cut_off* counts those that the end of the run cut off, where it did; *failed_most*
        has the commonest reason of the others. *classes*, *tenants* and *fairness* are there where requests name
        classes and tenants, *quality* where policies may do something with steps (`servetwin.core.group_metrics`).
        """
        start = self.first_arrival or 0.0
        duration = self.last_end - start
        out: dict[str, Any] = {"requests": self.requests}
        out.update({o.value: self.outcomes[o] for o in Outcome})
        if self.cut_off:
            out["cut_off"] = self.cut_off
        if self.failures:
            out["failed_most"] = _commonest(self.failures)
        out["finished"] = self.finished
        out["attainment"] = self.attainment if self.requests else None
        out["duration"] = duration
        out["arrival_span"] = self.last_arrival - start
        out["request_throughput"] = self.finished / duration if duration > 0 else None
        out["request_goodput"] = self.met / duration if duration > 0 else None
        names = ("mean_e2el_ms", "median_e2el_ms", "std_e2el_ms", "p90_e2el_ms", "p99_e2el_ms")
        times: list[Any] = [None] * len(names)
        if self.e2el:
            e2el = Distribution(self.e2el, (0.9, 0.99), 1000.0)
            times = [e2el.mean, e2el.median, e2el.std(), *e2el.quantiles]
        out.update(zip(names, times, strict=True))
        out["workers"] = {
            worker: {
                "iterations": sizes.total(),
                "mean_batch_size": self.mean_batch_size(worker),
                "max_batch_size": max(sizes),
                "batch_sizes": {str(n): sizes[n] for n in sorted(sizes)},
            }
            for worker, sizes in self.sizes.items()
        }
        out.update(self.groups.as_dict(duration))
        if self.quality is not None:
            out["quality"] = self.quality.as_dict(self.requests, duration)
        out.update(self.input)
        if self.held:
            out["held"] = self.held
        return out
