"""A cost: a measured term that is no latency table, in one or more of five forms."""

import itertools
import math
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, model_validator
from servetwin.core import BadInput

from .field_types import Count, Finite, Name, Share, Source, Strict, Text
from .latency_table import BatchTable, interpolate

#: The forms in which a cost may be given.
FORMS = ("value", "by_batch", "line", "quantiles", "sessions")

Spread = Literal["p05", "p50", "p95", "p99", "lowest_run", "highest_run"]


class Lists(Strict):
    """Parallel lists by batch size; *spread* holds further statistics of the same samples."""

    batch: tuple[StrictInt, ...]
    samples: tuple[Count, ...] | None = None
    observed_seconds: tuple[Finite, ...] | None = None
    spread: dict[Spread, tuple[Finite, ...]] | None = None

    def _same_length(self) -> None:
        others = {"samples": self.samples, "observed_seconds": self.observed_seconds}
        others |= {f"spread.{k}": v for k, v in (self.spread or {}).items()}
        for key, column in others.items():
            if column is not None and len(column) != len(self.batch):
                raise ValueError(f"{len(self.batch)} batch sizes but {len(column)} entries in {key}")


class ByBatch(Lists):
    """A cost that depends on the batch size. Unlike a latency it may be negative."""

    values: tuple[Finite, ...]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        fault = BatchTable.fault(self.batch, self.values)
        if fault:
            raise ValueError(fault)
        self._same_length()
        return self


class Quantiles(Strict):
    """A distribution: the value below which a share *p* of the samples lies, linear between."""

    p: tuple[Share, ...]
    values: tuple[Finite, ...]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(self.p) != len(self.values):
            raise ValueError(f"{len(self.p)} shares p but {len(self.values)} values")
        if len(self.p) < 2:
            raise ValueError("a distribution needs two quantiles at least")
        if any(a >= b for a, b in zip(self.p, self.p[1:], strict=False)):
            raise ValueError("the shares p must increase")
        if any(a > b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError("the values of quantiles must not decrease")
        return self


class Line(Strict):
    """A cost of *constant* plus *per_request* times the batch size."""

    constant: Finite
    per_request: Finite


class Session(Strict):
    """A value that held from *since* until just before *until*, in the local time of the logs (no time zone)."""

    since: datetime
    until: datetime
    value: Finite

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.since.tzinfo or self.until.tzinfo:
            raise ValueError("the times of a session have no time zone: they are those of the logs")
        if self.since >= self.until:
            raise ValueError("since must come before until")
        return self


class Cost(Strict):
    """A measured term that is no latency table, in one or more of five forms.

    Forms given together describe the same thing: *value* is its mean (or what *statistic* says), *by_batch* or *line*
    its dependence on the batch size, *quantiles* its distribution, *sessions* its value on certain days.
    """

    meaning: Text
    unit: Literal["seconds", "ratio"]
    modules: tuple[Name, ...] = ()  #: whose it is; empty: the whole pipeline's
    value: Finite | None = None
    by_batch: ByBatch | None = None
    line: Line | None = None
    quantiles: Quantiles | None = None
    sessions: Annotated[tuple[Session, ...], Field(min_length=1)] | None = None
    statistic: Text = "mean"
    samples: Count | None = None
    how: Text  #: how it was measured
    source: Source

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.forms:
            raise ValueError(f"a cost needs one of {', '.join(FORMS)}")
        if self.by_batch and self.line:
            raise ValueError("by_batch and line contradict each other: give one")
        if self.by_batch and self.value is not None:
            least, most = min(self.by_batch.values), max(self.by_batch.values)
            if not least - 1e-9 <= self.value <= most + 1e-9:
                what = f"value {self.value:g} lies outside of by_batch's {least:g} to {most:g}, by which it is read"
                raise ValueError(what)
        ranges = sorted(self.sessions or (), key=lambda s: s.since)
        if any(a.until > b.since for a, b in itertools.pairwise(ranges)):
            raise ValueError("two sessions overlap")
        return self

    @property
    def forms(self) -> list[str]:
        """In which forms this cost is given."""
        return [form for form in FORMS if getattr(self, form) is not None]

    def scalar(self, when: datetime | None = None) -> float:
        """The one value, or that of the session which *when* falls in."""
        if when is not None:
            if when.tzinfo is not None:
                raise BadInput(f"the time {when} has a time zone", right="the local time of the logs, without")
            for session in self.sessions or ():
                if session.since <= when < session.until:
                    return session.value
        if self.value is None:
            raise self._lacks("value")
        return self.value

    def table(self, *, name: str = "cost", hold: bool = False) -> BatchTable:
        """The values by batch size, exact and between as in every table."""
        if self.by_batch is None:
            raise self._lacks("by_batch")
        return BatchTable(self.by_batch.batch, self.by_batch.values, name=name, hold=hold)

    def upto(self, n: int, *, name: str = "cost", hold: bool = False) -> list[float]:
        """What the cost is for batches of 1 to *n*, whatever its form; index 0 holds nan."""
        if self.by_batch is not None:
            return self.table(name=name, hold=hold).upto(n)
        if self.line is not None:
            return [math.nan, *(self.line.constant + self.line.per_request * i for i in range(1, n + 1))]
        return [math.nan] + [self.scalar()] * n

    def quantile(self, share: float) -> float:
        """The value below which *share* of the samples lies; outside the known shares the end values hold.

        With a *share* drawn evenly from 0 to 1 it draws from the distribution.
        """
        if self.quantiles is None:
            raise self._lacks("quantiles")
        return interpolate(share, self.quantiles.p, self.quantiles.values)

    def _lacks(self, form: str) -> BadInput:
        return BadInput(f"the cost {self.meaning!r} has no {form}", right=" or ".join(self.forms))
