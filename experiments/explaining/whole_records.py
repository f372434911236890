"""Whether the records of a run are whole: a file that was cut would make waiting of what is missing.

Its summary counts requests and batches; a request's own times have an order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..validation.comparison.run_files import read_json
from .causes import Cause, Part

#: What is said of a run without a summary.
CUT_OFF = "the run did not come to its end: who was under way then is not among its records"
#: Seconds by which the parts of a request's time may miss its latency: clocks of several processes may differ.
CLOCKS = 1e-3


class Outcomes:
    """Counts how requests ended, while somebody else reads them."""

    def __init__(self) -> None:
        self.found: Counter[str | None] = Counter()

    def of(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """*records*, each counted as it passes."""
        for record in records:
            self.found[record["outcome"]] += 1
            yield record


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in *folder*; None if it did not come to its end. Raises `BadInput`."""
    if not (folder / "summary.json").exists():
        return None
    missing = "the run did not come to its end: it has no summary.json"
    return read_json(folder / "summary.json", missing, divided=False)


def check(folder: Path, summary: Mapping[str, Any], outcomes: Outcomes, batches: Mapping[str, int]) -> None:
    """Raise `BadInput` if the files hold other requests than *summary* counts, or fewer batches of a worker."""
    requests, right = str(folder / "requests.jsonl"), "the whole file"
    count = sum(outcomes.found.values())
    if count != summary["requests"]:
        what = f"it has {count} requests, and summary.json counts {summary['requests']}"
        raise BadInput(what, where=requests, right=right)
    for name in ("met", "late", "dropped", "failed"):
        if outcomes.found[name] != summary[name]:
            what = f"{outcomes.found[name]} requests are {name}, and summary.json counts {summary[name]}"
            raise BadInput(what, where=requests, right="the files of one run")
    for worker, figures in summary["workers"].items():
        sizes: dict[str, int] = figures["batch_sizes"]
        told = sum(sizes.values())
        if batches.get(worker, 0) < told and batches:
            what = f"it has {batches.get(worker, 0)} iterations of {worker}, and summary.json counts {told}"
            raise BadInput(what, where=str(folder / "batches.jsonl"), right=right)


def without_end(parts: Iterable[Part], last: float) -> list[Part]:
    """*parts* of a visit in a run that did not come to its end: nobody can say that a worker ran nothing after its
    *last* recorded batch."""
    idle = (Cause.HELD, Cause.HOST)
    return [replace(p, cause=Cause.UNTOLD) if p.cause in idle and p.start >= last else p for p in parts]


def check_times(folder: Path, number: int, latency: float, parts: float) -> None:
    """Raise `BadInput` if the *parts* of the time of request *number* are not its *latency*: then its record says
    that something ended before it began."""
    if latency < 0.0 or abs(parts - latency) > max(CLOCKS, 1e-9 * abs(latency)):
        what = f"the times of request {number} are in no order: its stages come to {parts:.3f} s of {latency:.3f} s"
        raise BadInput(what, where=str(folder / "requests.jsonl"), right="a record as it was written")
