"""What a run costs: device-hours, dollars, energy, and how much of the devices it used.

A device is held, and paid for, as long as the run lasts (from the first arrival to the last end, the *duration* of
``summary.json``), whether it computes or not. It is busy while a batch of one of its workers runs on it; several at
once count once. A card that several models share is one device: busy while any of them computes, or weights move. A
device that no worker computes on counts nowhere. A replica that comes and goes is held from the beginning of its
start until it has stopped. Energy is busy seconds at the power of a busy device and the rest at that of an idle one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servetwin.core import Batch, Worker
from servetwin.core.arithmetic import float_sum

from ..spec.experiment import Experiment

HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


class Meter:
    """How long each device computes, by the batches that it hears of. *counted* says which card a device is a model
    of; models of one card count as one."""

    def __init__(self, workers: Sequence[Worker], counted: Mapping[str, str] | None = None) -> None:
        self._counted = counted or {}
        known = self._counted.get
        self._device_of = {worker.name: known(worker.device, worker.device) for worker in workers if worker.device}
        self._spans: dict[str, list[tuple[float, float]]] = {device: [] for device in self._device_of.values()}
        self._sums = dict.fromkeys(self._spans, 0.0)
        served = [*self._device_of.values()]
        self._alone = {device: served.count(device) == 1 for device in self._spans}

    def like(self, workers: Sequence[Worker]) -> Meter:
        """Such a meter of other *workers*."""
        return Meter(workers, self._counted)

    def hearing(self, hear: Callable[[Batch], None]) -> Callable[[Batch], None]:
        """What to call with each batch in place of *hear*."""

        def heard(batch: Batch) -> None:
            device = self._device_of.get(batch.worker.name)
            if device is not None:
                self.add(device, batch.start, batch.end)
            hear(batch)

        return heard

    def add(self, device: str, start: float, end: float) -> None:
        """A batch has run on *device*; those of one device are told in the order of their ends."""
        spans = self._spans[device]
        while spans and spans[-1][1] >= start:
            start = min(start, spans.pop()[0])
        spans.append((start, end))
        if self._alone[device] and len(spans) > 1:  # a worker's batches begin in their order: what was is over
            self._sums[device] += spans[0][1] - spans[0][0]
            del spans[0]

    def busy(self) -> dict[str, float]:
        """Seconds in which each device computed."""
        return {
            device: self._sums[device] + float_sum(e - s for s, e in spans) for device, spans in self._spans.items()
        }


def costs(
    experiment: Experiment,
    summary: dict[str, Any],
    busy: dict[str, float] | None,
    held: dict[str, float] | None = None,
    moving: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What the run of *experiment*, replicas written out, with this *summary* costs; *busy* are the seconds in which
    each device computed, where that is known, and *held* those for which it was held, where that is not all of the
    run. *moving* are those in which weights came to a card that models share: it is busy then, too. What it is
    not known for, or nothing comes of, is None."""
    plan = experiment.deployment
    assert plan.prices is not None
    prices = {unit: plan.prices[unit] for unit in dict.fromkeys(plan.counted.values())}
    length = summary["duration"]
    per_hour = float_sum(price.per_hour for price in prices.values())
    device_seconds, dollars = len(prices) * length, length / HOUR * per_hour
    if held is not None:
        device_seconds = math.fsum(held[device] for device in prices)
        dollars = math.fsum(held[device] / HOUR * price.per_hour for device, price in prices.items())
        per_hour = dollars / (length / HOUR) if length > 0.0 else 0.0
    requests, met = summary["finished"], summary["met"]
    tokens: list[int] = [stage["total_output_tokens"] for stage in summary.get("llm", {}).values()]
    told: dict[str, Any] = {
        "device_hours": device_seconds / HOUR,
        "dollars": dollars,
        "dollars_per_hour": per_hour,
        "dollars_per_1000_requests": 1000.0 * dollars / requests if requests else None,
        "met_per_dollar": met / dollars if dollars else None,
    }
    if tokens:
        told["dollars_per_million_output_tokens"] = 1e6 * dollars / sum(tokens) if sum(tokens) else None
    told["utilisation"] = told["energy_kwh"] = None
    if busy is not None and device_seconds > 0.0:
        on = {device: length if held is None else held[device] for device in prices}
        moved = moving or {}
        computed = {device: min(busy.get(device, 0.0) + moved.get(device, 0.0), on[device]) for device in prices}
        told["utilisation"] = float_sum(computed.values()) / device_seconds
        if moving is not None:
            told["utilisation_by_swaps"] = float_sum(moved.values()) / device_seconds
        powers = {device: price.power for device, price in prices.items()}
        if all(power is not None for power in powers.values()):
            joules = 0.0
            for device, power in powers.items():
                assert power is not None
                joules += computed[device] * power.busy + (on[device] - computed[device]) * power.idle
            told["energy_kwh"] = joules / JOULES_PER_KWH
    return told
