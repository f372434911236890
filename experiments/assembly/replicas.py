"""Several devices behind a router: what a deployment with replicas means, spelled out.

A deployment may name several workers for the same modules, on devices of one kind or of several, and it may be
repeated as a whole (*replicas*), each copy on devices of its own. `expanded` spells that out: one entry per worker
and device, each with a name. Experiments stay as short as they were written; what is built from them is expanded.
"""

from __future__ import annotations

from ..spec.experiment import Deployment, Experiment
from ..spec.keys.memory import CardSpec
from ..spec.keys.prices import Price


def expanded(experiment: Experiment) -> Experiment:
    """*experiment* with every worker and device of its deployment named, and one replica."""
    plan = experiment.deployment
    if not plan.repeated:
        return experiment
    names = [w.name or "+".join(w.modules) for w in plan.workers]
    devices: dict[str, str] = {}
    prices: dict[str, Price] = {}
    cards: dict[str, CardSpec] = {}
    workers = []
    taken: set[str] = set()
    for copy in range(1, plan.replicas + 1):
        here = {d: d if copy == 1 else f"{d}.{copy}" for d in plan.devices}
        devices |= {here[d]: profile for d, profile in plan.devices.items()}
        prices |= {here[d]: price for d, price in (plan.prices or {}).items()}
        for card, said in (plan.cards or {}).items():
            cards[card if copy == 1 else f"{card}.{copy}"] = said.renamed(here)
        for worker, base in zip(plan.workers, names, strict=True):
            device = here[worker.device] if worker.device is not None else None
            name = _free(base, device or f"cpu.{copy}", taken)
            taken.add(name)
            workers.append(worker.model_copy(update={"device": device, "name": name}))
    whole = Deployment.model_construct(
        devices=devices,
        workers=workers,
        estimates=plan.estimates,
        replicas=1,
        router=plan.router,
        routers=plan.routers,
        handover=plan.handover,
        prices=prices if plan.prices is not None else None,
        autoscaler=plan.autoscaler,
        faults=plan.faults,
        cards=cards if plan.cards is not None else None,
    )
    return experiment.model_copy(update={"deployment": whole})


def _free(base: str, device: str, taken: set[str]) -> str:
    name, number = base, 1
    while name in taken:
        name = f"{base}@{device}" if number == 1 else f"{base}@{device}#{number}"
        number += 1
    return name
