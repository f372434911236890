"""What a profile file may say. Unknown keys are errors; nothing can be changed after reading.

A profile file (YAML) describes one model on one device. Its tables give seconds by batch size; its costs give what
no table holds. The classes below say what each key means; the files under ``data/`` are examples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator
from servetwin.core import BadInput

from .basics import Count, Fault, Finite, Name, Share, Source, Strict, Text
from .costs import DEVICE, GAP, GAP_OF, HOST, JOIN
from .costs import check as check_costs
from .table import BatchTable, LatencyTable, interpolate
from .tokendata import TokenData

SCHEMA_VERSION = 1

Kind = Literal[
    "scheduler",
    "slo",
    "slo_committed",
    "clockwork",
    "clockwork_slo",
    "measured",
    "all",
    "leaves",
    "starts",
    "overlaps",
    "self_profile",
    "inferred",
]
#: What each kind of table is.
KINDS: dict[Kind, str] = {
    "scheduler": "the table that the scheduler of the measured system used",
    "slo": "the table from which SLOs were computed, where it is another",
    "slo_committed": "the table for SLOs in the driver as published, where the logged runs used another",
    "clockwork": "the table by which Clockwork predicted, where it is another",
    "clockwork_slo": "the table from which Clockwork's driver computed its SLOs, where it is another",
    "measured": "period of an iteration, start to start, with nothing else going on",
    "all": "period of an iteration, all iterations",
    "leaves": "period of an iteration after which a request left",
    "starts": "period of an iteration with which a request began",
    "overlaps": "period of an iteration while the last stage computed",
    "self_profile": "running mean of the host time of one compute call, as the system itself kept it",
    "inferred": "period of an iteration, solved from how long requests stayed (no log of iterations exists)",
}
#: Where a kind that a module does not have is looked up instead.
FALLBACK: dict[Kind, tuple[Kind, ...]] = {
    "slo": ("scheduler",),
    "slo_committed": ("slo", "scheduler"),
    "clockwork": ("scheduler",),
    "clockwork_slo": ("slo", "scheduler"),
}

#: The modules of a language model; their latencies stand under ``tokens``.
TOKEN_MODULES = ("prefill", "decode")

#: The forms in which a cost may be given.
FORMS = ("value", "by_batch", "line", "quantiles", "sessions")

Spread = Literal["p05", "p50", "p95", "p99", "lowest_run", "highest_run"]


class Origin(Strict):
    """Who published the numbers; file names in `Source` are relative to this."""

    repository: Text
    commit: Text | None = None
    licence: Text | None = None
    restated_from: Text | None = None  #: the extract that these numbers went through


class Device(Strict):
    name: Text
    kind: Literal["gpu", "cpu"]
    memory_gib: Finite | None = None
    count: Annotated[StrictInt, Field(ge=1)] = 1  #: how many of them serve one batch together


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


class Table(Lists):
    """Seconds by batch size, one iteration for a loop module. *statistic* says of what (mean, median, ...)."""

    seconds: tuple[Finite, ...]
    statistic: Text
    source: Source
    note: Text | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        fault = LatencyTable.fault(self.batch, self.seconds)
        if fault:
            raise ValueError(fault)
        self._same_length()
        return self


class ModuleProfile(Strict):
    """One module; *rows_per_request* is 2 where classifier-free guidance doubles the rows inside the network."""

    loop: StrictBool = False
    rows_per_request: Annotated[StrictInt, Field(ge=1)] = 1
    tables: Annotated[dict[Kind, Table], Field(min_length=1)]


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


class ProfileFile(Strict):
    """One model on one device."""

    schema_version: Literal[1]
    name: Annotated[StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$")]
    description: Text
    device: Device
    model: Text
    precision: Text
    image: tuple[StrictInt, StrictInt] | None = None  #: height and width in pixels
    batch_counts: Text  #: what "batch" counts
    measured_when: Text
    origin: Origin
    limits_of_data: Text | None = None  #: what is not known, or not to be trusted
    modules: dict[Name, ModuleProfile] = Field(default_factory=dict)
    tokens: TokenData | None = None  #: prefill and decode of a language model
    costs: dict[Name, Cost] = Field(default_factory=dict)
    verdict: tuple[Text, ...] | None = None  #: what was not clean when it was taken (`servetwin.profiles.verdict`)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.modules and self.tokens is None:
            raise ValueError("a profile needs modules, or tokens")
        known = {*self.modules, *(TOKEN_MODULES if self.tokens else ())}
        for name, cost in self.costs.items():
            for module in cost.modules:
                if module not in known:
                    raise ValueError(f"cost {name} names unknown module {module!r}")
        self.check_costs(self.costs)
        return self

    def check_costs(self, names: Mapping[str, Cost]) -> None:
        """Raise `Fault` for the first of the costs *names* that the registry does not know in such a profile."""
        loops = {name: module.loop for name, module in self.modules.items()}
        check_costs(names, loops, tokens=self.tokens is not None)
        for name in self.modules:
            self._check_times(name, names)

    def _check_times(self, module: str, costs: Mapping[str, Cost]) -> None:
        """Raise `Fault` for the first cost by which an iteration of *module*, of any size that its tables hold, would
        take no time or less, or which would be less than nothing itself."""
        sizes: dict[int, float] = {}
        for table in self.modules[module].tables.values():
            for n, seconds in zip(table.batch, table.seconds, strict=True):
                sizes[n] = min(seconds, sizes.get(n, math.inf))
        for name, cost in costs.items():
            at = ("costs", name)
            if cost.line is not None and name.split(".")[0] in (module, "whole"):
                last = cost.line.constant + cost.line.per_request * max(sizes)
                if last < 0.0:
                    what = f"is {last:.3g} {cost.unit} for {max(sizes)} requests"
                    raise Fault(what, (*at, "line", "per_request"), "0 or more")
        join, usual = costs.get(JOIN(module)), costs.get(GAP(module))
        parts = [costs[name] for name in (HOST(module), DEVICE(module)) if name in costs]
        for n, seconds in sorted(sizes.items()):
            if join is not None and join.value is not None and join.value < 0.0:
                alone = max((part.upto(n, hold=True)[n] for part in parts), default=seconds)
                if (left := alone + n * join.value) <= 0.0:
                    each = f"{join.value:g} s for each of {n} that join"
                    what = f"{each} leave {left:.3g} s of the {alone:.3g} s of an iteration"
                    raise Fault(what, ("costs", JOIN(module)), f"more than {-alone / n:.3g}")
            for name, own in ((n, c) for n, c in costs.items() if n.startswith(GAP_OF(module, ""))):
                less = usual.upto(n, hold=True)[n] - own.upto(n, hold=True)[n] if usual is not None else 0.0
                if less >= seconds:
                    what = f"{less:.3g} s less than {GAP(module)}, of an iteration's {seconds:.3g} s"
                    raise Fault(what, ("costs", name), f"less than {seconds:.3g} s below it")


class CostsFile(Strict):
    """Costs kept beside a profile in a file of their own (``<profile>.costs.yaml``): what was calibrated later."""

    schema_version: Literal[1]
    profile: Text
    description: Text
    costs: dict[Name, Cost]
