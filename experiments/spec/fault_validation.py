"""Whether what an experiment says of faults fits together, and what it cannot be said of."""

from __future__ import annotations

from .experiment import Experiment, Misfit
from .keys.faults import FaultSpec

#: The keys that each kind of fault has besides its time and place; in parentheses those that it may have.
KEYS = {
    "fail": ((), ("lasts", "until")),
    "crash": (("restart",), ()),
    "pause": ((), ("lasts", "until")),
    "slow": (("factor",), ("lasts", "until")),
    "late": (("seconds",), ("lasts", "until")),
    "lost": ((), ("lasts", "until")),
}
EXAMPLES = {
    "restart": "restart: {weights: 12, source: ...}",
    "factor": "factor: 3",
    "seconds": "seconds: 0.5",
}


def check(experiment: Experiment) -> None:
    """Raise `Misfit` where faults contradict themselves or another part of *experiment*."""
    said = experiment.deployment.faults
    if said is None:
        return
    path = ("deployment", "faults")
    for i, fault in enumerate(said.script):
        _check_fault((*path, "script", i), fault)
    _check_whole(path, experiment)
    memory = said.out_of_memory
    llms = experiment.pipeline.llms
    if memory is not None and memory.restart is None and llms:
        engines = [w for w in experiment.deployment.workers if w.modules[0] in llms]
        if memory.workers is None or any(w.name in memory.workers for w in engines):
            what = "an engine that runs out of memory does not go on"
            right = "restart: {weights: 12, source: ...}, or the workers of other modules under workers"
            raise Misfit((*path, "out_of_memory", "restart"), what, right)


def _check_whole(path: tuple[str, ...], experiment: Experiment) -> None:
    """Raise `Misfit` if *experiment* has something that is not known to go on after a fault."""
    plan = experiment.deployment
    refused: list[tuple[bool, str, str]] = [
        (plan.autoscaler is not None, "replicas that come and go", "no autoscaler"),
        (plan.handover is not None, "prefill and decode apart", "workers without a role"),
        (any(w.gpus is not None for w in plan.workers), "groups of devices", "no key gpus"),
        (bool(experiment.pipeline.branches), "branches", "a pipeline without branches"),
        (experiment.budget.used, "an SLO that is shared out among stages", "no budget"),
        (
            any(w.engine is not None and w.engine.pipeline_parallel is not None for w in plan.workers),
            "models in stages (pipeline_parallel)",
            "engines without stages",
        ),
    ]
    for there, what, right in refused:
        if there:
            raise Misfit(path, f"faults do not go together with {what}", f"{right}, or no faults")
    devices = [w.device for w in plan.workers if w.modules[0] in experiment.pipeline.llms]
    if len(set(devices)) < len(devices):
        raise Misfit(path, "faults do not go together with engines that share a device", "a device for each engine")


def _check_fault(path: tuple[str | int, ...], fault: FaultSpec) -> None:
    if (fault.device is None) == (fault.worker is None):
        raise Misfit(path, "it happens to a device or to a worker", "one of the keys device and worker")
    if fault.kind == "crash" and fault.worker is None:
        raise Misfit((*path, "device"), "a crash is that of a worker's process", "worker: ..., or kind: fail")
    must, may = KEYS[fault.kind]
    for name in ("lasts", "until", "factor", "seconds", "restart"):
        key, there = "for" if name == "lasts" else name, getattr(fault, name) is not None
        if there and name not in (*must, *may):
            raise Misfit((*path, key), f"a fault of the kind {fault.kind} has no {key}", f"no key {key}")
        if not there and name in must:
            raise Misfit((*path, key), f"a fault of the kind {fault.kind} needs it", EXAMPLES[name])
    if fault.lasts is not None and fault.until is not None:
        raise Misfit((*path, "until"), "it ends by for already", "one of the keys for and until")
    if fault.until is not None and fault.until <= fault.at:
        raise Misfit((*path, "until"), f"{fault.until:g} is not after at, {fault.at:g}", "at < until")
