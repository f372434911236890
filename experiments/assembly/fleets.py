"""Replicas that come and go, and devices that fail: the fleet of an experiment with an autoscaler, or its faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from typing import TYPE_CHECKING

from servetwin.core import BadInput
from servetwin.core.faults.faults import Faults
from servetwin.core.faults.schedule import Event, OutOfMemory, Retry, drawn, in_order
from servetwin.core.faults.schedule import Rules as FaultRules
from servetwin.core.fleets.fleet import Fleet, Rules
from servetwin.core.random_streams import stream

from ..registry import autoscaler_registry
from ..registry.catalog import suggest
from ..spec.experiment import Experiment
from ..spec.keys.autoscaler import AutoscalerSpec, StartSpec
from ..spec.keys.faults import FaultSpec, FaultsSpec

if TYPE_CHECKING:
    from servetwin.core import Worker


def make_fleet(spec: AutoscalerSpec, workers: Sequence[Worker], replicas: int, seed: int) -> Fleet:
    """The fleet of *workers*, those of each of so many *replicas* together, as *spec* scales it."""
    size = len(workers) // replicas
    told = spec.model_dump(include={"least", "every", "window", "stale", "up_after", "down_after", "cooldown"})
    initial = spec.least if spec.initial is None else spec.initial
    rules = Rules(most=replicas, initial=initial, **told)
    scaler = autoscaler_registry.make(spec.name, spec.params)
    copies = [workers[place : place + size] for place in range(0, len(workers), size)]
    return Fleet(copies, scaler, rules, _starting(spec.start, seed))


def _starting(spec: StartSpec, seed: int) -> Callable[[int], float]:
    """Seconds that the next start of a replica takes; drawn ones come from a stream of each replica."""
    seconds = spec.seconds
    if spec.draw == "constant":
        return lambda _: seconds
    source = cache(lambda replica: stream(seed, f"starts/{replica}"))
    return lambda replica: seconds * source(replica).standard_exponential()


def refuse(experiment: Experiment, who: str, right: str, *, faults: bool = False) -> None:
    """Raise `BadInput` if replicas of *experiment* come and go, or models share a card, or classes enter single
    modules, or (unless it knows *faults*) devices fail, which *who* does not know; *right* is for the first."""
    if experiment.deployment.cards is not None:
        what = f"{who} knows no cards that several models share"
        raise BadInput(what, where="deployment.cards", right=right.replace("no autoscaler", "no cards"))
    for name, own in experiment.workload.classes.items():
        if own.enters is not None:
            where = f"workload.classes.{name}.enters"
            what = f"{who} knows no classes that enter single modules"
            raise BadInput(what, where=where, right=right.replace("no autoscaler", "no key enters"))
    if experiment.deployment.autoscaler is not None:
        what = f"{who} knows no replicas that come and go"
        raise BadInput(what, where="deployment.autoscaler", right=right)
    if experiment.deployment.faults is not None and not faults:
        what = f"{who} knows no devices that fail"
        raise BadInput(what, where="deployment.faults", right=right.replace("autoscaler", "faults"))


# -- devices that fail ---------------------------------------------------------------------------------------

FAULTS = "deployment.faults"
#: So many names of devices or workers an error lists.
MANY = 8


def make_faults(spec: FaultsSpec, workers: Sequence[Worker], seed: int) -> Faults:
    """What goes wrong with *workers*, replicas written out, as *spec* says. Raises `BadInput` if it names others."""
    able = [worker for worker in workers if worker.kind in ("batch", "engine")]
    script = [_event(i, fault, able, seed) for i, fault in enumerate(spec.script)]
    lines = []
    if spec.drawn is not None:
        known = list(dict.fromkeys(worker.device for worker in able))
        for i, device in enumerate(spec.drawn.devices or known):
            where = f"{FAULTS}.drawn.devices.{i}"
            lines.append(drawn(device, _on(device, able, where), spec.drawn.mtbf, spec.drawn.mttr, seed))
    memory = {}
    if spec.out_of_memory is not None:
        said = spec.out_of_memory
        names = [worker.name for worker in able]
        for i, name in enumerate(said.workers or names):
            _known(name, names, f"{FAULTS}.out_of_memory.workers.{i}", "worker")
            again = said.restart
            if again is None:
                memory[name] = OutOfMemory(said.batch)
            else:
                memory[name] = OutOfMemory(said.batch, again.seconds, again.seconds * _of_process(again))
    retry = None if spec.retry is None else Retry(spec.retry.attempts, spec.retry.backoff_seconds)
    return Faults(workers, in_order(script, *lines), FaultRules(spec.detect_seconds, retry, memory))


def _event(place: int, fault: FaultSpec, workers: Sequence[Worker], seed: int) -> Event:
    where = f"{FAULTS}.script.{place}"
    if fault.device is not None:
        names, what = _on(fault.device, workers, f"{FAULTS}.script.{place}.device"), fault.device
    else:
        assert fault.worker is not None
        _known(fault.worker, [worker.name for worker in workers], f"{where}.worker", "worker")
        names, what = [fault.worker], fault.worker
    until, starting = inf if fault.until is None else fault.until, 0.0
    if fault.lasts is not None:
        until = fault.at + fault.lasts
    if fault.restart is not None:
        took = _restart(fault.restart, place, seed)
        until, starting = fault.at + took, took * _of_process(fault.restart)
    factor, seconds = fault.factor or 1.0, fault.seconds or 0.0
    return Event(fault.at, fault.kind, tuple(names), until, factor, seconds, what, starting)


def _of_process(spec: StartSpec) -> float:
    """The share of a restart in which there is a machine, and its process loads and warms up."""
    return 1.0 - spec.phases["machine"] / spec.seconds if spec.seconds > 0.0 else 0.0


def _restart(spec: StartSpec, place: int, seed: int) -> float:
    """Seconds of a restart; a drawn one comes from a stream of its own."""
    seconds = spec.seconds
    if spec.draw == "exponential":
        seconds *= float(stream(seed, f"restarts/{place}").standard_exponential())
    if seconds <= 0.0:
        right = "seconds for machine, weights or warm_up"
        raise BadInput("a restart takes time", where=f"{FAULTS}.script.{place}.restart", right=right)
    return seconds


def _on(device: str, workers: Sequence[Worker], where: str) -> list[str]:
    _known(device, list(dict.fromkeys(worker.device for worker in workers)), where, "device")
    return [worker.name for worker in workers if worker.device == device]


def _known(name: str, names: Sequence[str], where: str, what: str) -> None:
    if name not in names:
        listed = ", ".join(names[:MANY]) or "only engines, and workers with batches, may"
        right = f"{suggest(name, names)}, say, of {listed}, ..." if len(names) > MANY else listed
        first, _, number = name.rpartition(".")
        if first in names and number.isdigit():
            right += f"; {name} is there with {number} replicas"
        raise BadInput(f"no {what} that may fail is called {name!r}", where=where, right=right)


def faults_stand_on(spec: FaultsSpec | None) -> list[str]:
    """A line for each number of *spec* that nobody measured here, with its source."""
    if spec is None:
        return []
    found = []
    if spec.drawn is not None:
        mean = f"a failure each {spec.drawn.mtbf:g} s of a device, repaired in {spec.drawn.mttr:g} s"
        found.append(f"failures are drawn ({mean} on average): {spec.drawn.source}")
    starts = [(f"a restart of {fault.worker}", fault.restart) for fault in spec.script if fault.restart is not None]
    if spec.out_of_memory is not None and spec.out_of_memory.restart is not None:
        starts.append(("a restart after memory ran out", spec.out_of_memory.restart))
    for what, start in starts:
        phases = ", ".join(f"{n.replace('_', '-')} {seconds:g} s" for n, seconds in start.phases.items() if seconds)
        found.append(f"{what} is stated ({phases}): {start.source}")
    return list(dict.fromkeys(found))  # one that crashes again and again is told of once
