"""Cards whose memory several models share: from an experiment to the simulator, and what is told of swaps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput, Worker
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.profiles.llm.architectures import GIB, architecture

from ..spec.experiment import Experiment
from ..spec.keys.memory import CardSpec

if TYPE_CHECKING:
    from servetwin.profiles import Profile
    from servetwin.sim import SimExecutor
    from servetwin.sim.weights import CardMemory, Swap

GB = 1e9
#: Bytes of a weight, by the precision that a profile states.
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0}


def share(
    experiment: Experiment, profiles: Mapping[str, Profile], workers: Sequence[Worker], executor: SimExecutor
) -> None:
    """Let the models of each card of *experiment*, replicas written out, take turns on it. Raises `BadInput` if one
    does not fit, or nobody says how large it is."""
    for name, said in (experiment.deployment.cards or {}).items():
        path = f"deployment.cards.{name}"
        here = [worker for worker in workers if worker.device in said.devices]
        for worker in here:
            if isinstance(worker, TokenWorker) and worker.host is not None:
                what = f"{worker.name} decides a step while another runs, and its card may have gone to another model"
                raise BadInput(what, where="deployment.workers: engine", right="asynchronous: false, and no stages")
        executor.share_card(name, memory_of(path, said, profiles, here))


def memory_of(path: str, said: CardSpec, profiles: Mapping[str, Profile], workers: Sequence[Worker]) -> CardMemory:
    """The memory of the card at *path*, less the KV caches of *workers*, which stay there."""
    from servetwin.sim.weights import CardMemory

    sizes = {device: _weights(path, device, said, profiles[device]) for device in said.devices}
    gib = said.gib if said.gib is not None else _gib(path, said, profiles)
    kv = float_sum(_kv(worker, profiles[worker.device]) for worker in workers if isinstance(worker, TokenWorker))
    room = gib * GIB - kv
    pinned = float_sum(sizes[device] for device in said.pinned)
    caches = f" ({gib:g} GiB less {kv / GB:.4g} GB of KV caches)" if kv else ""
    if len(said.pinned) > 1 and pinned > room:
        each = ", ".join(f"{device} {sizes[device] / GB:.4g}" for device in said.pinned)
        what = f"what is pinned has {pinned / GB:.4g} GB of weights ({each})"
        what = f"{what}, and the card has room for {room / GB:.4g} GB"
        raise BadInput(what + caches, where=f"{path}.pinned", right="a larger card, fewer KV blocks, or fewer models")
    for device, size in sizes.items():
        needed = pinned + (0.0 if device in said.pinned else size)
        if needed > room:
            beside = f" beside what is pinned ({pinned / GB:.4g} GB)" if device not in said.pinned and pinned else ""
            what = f"{device} has {size / GB:.4g} GB of weights{beside}, and the card has room for {room / GB:.4g} GB"
            raise BadInput(what + caches, where=path, right="a larger card, fewer KV blocks, or fewer models")
    first = [*said.pinned, *(said.devices if said.loaded is None else said.loaded)]
    loaded: dict[str, None] = {}
    for device in first:
        if float_sum(sizes[name] for name in {**loaded, device: None}) <= room:
            loaded[device] = None
        elif said.loaded is not None:
            those = ", ".join(f"{name} ({sizes[name] / GB:.4g} GB)" for name in dict.fromkeys(first))
            what = f"{those} do not fit together: the card has room for {room / GB:.4g} GB"
            raise BadInput(what + caches, where=f"{path}.loaded", right="fewer models")
    seconds = {device: size / (said.gb_per_s * GB) for device, size in sizes.items()}
    return CardMemory(room, sizes, seconds, tuple(loaded), frozenset(said.pinned), said.stay)


def _weights(path: str, device: str, said: CardSpec, profile: Profile) -> float:
    """Bytes of the weights of the model *device*."""
    if device in said.weights:
        return said.weights[device] * GB
    each = BYTES.get(profile.data.precision)
    if profile.data.tokens is None or each is None:
        what = f"nobody says how large the weights of {device} are"
        raise BadInput(what, where=f"{path}.weights", right=f"{device}: ..., in GB")
    data = profile.token_data
    return (data.shape or architecture(data.architecture)).parameters * each


def _gib(path: str, said: CardSpec, profiles: Mapping[str, Profile]) -> float:
    """The memory of the card by the profiles of its models."""
    found = {profiles[device].data.device.memory_gib for device in said.devices}
    known = [gib for gib in found if gib is not None]
    if len(found) != 1 or not known:
        what = "the profiles of its models name " + (
            f"cards of {', '.join(f'{gib:g}' for gib in sorted(known))} GiB" if known else "no memory of a card"
        )
        raise BadInput(what, where=f"{path}.gib", right="the card's memory, in GiB")
    return known[0]


def _kv(worker: TokenWorker, profile: Profile) -> float:
    """Bytes of the KV cache of *worker*."""
    data, limits = profile.token_data, worker.view.limits
    model = data.shape or architecture(data.architecture)
    return float(model.kv_bytes_per_token() * limits.block_size * limits.blocks)


def told(swaps: Sequence[Swap]) -> dict[str, Any]:
    """What the summary of a run says of its *swaps*: how many, seconds in which weights came; of each model too."""
    models: dict[str, dict[str, Any]] = {}
    for name in sorted({swap.model for swap in swaps}):
        own = [swap.end - swap.start for swap in swaps if swap.model == name]
        models[name] = {"swaps": len(own), "seconds_swapping": float_sum(own)}
    every = float_sum(swap.end - swap.start for swap in swaps)
    return {"swaps": len(swaps), "seconds_swapping": every, "models": models}


def seconds_moving(swaps: Sequence[Swap], until: float) -> dict[str, float]:
    """Seconds before *until* in which weights came to each card."""
    found: dict[str, list[float]] = {}
    for swap in swaps:
        found.setdefault(swap.card, []).append(max(min(swap.end, until) - swap.start, 0.0))
    return {card: float_sum(seconds) for card, seconds in found.items()}


def write(swaps: Sequence[Swap], folder: Path) -> None:
    """Write *swaps* into ``swaps.jsonl`` in *folder*."""
    lines = [json.dumps(swap._asdict()) for swap in swaps]
    (folder / "swaps.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


def more_than_known(experiment: Experiment, profiles: Mapping[str, Profile]) -> list[str]:
    """A line for each card that is said to have more memory than the profiles of its models name."""
    found = []
    for name, said in (experiment.deployment.cards or {}).items():
        known = [profiles[device].data.device.memory_gib for device in said.devices]
        least = min((gib for gib in known if gib is not None), default=None)
        if said.gib is not None and least is not None and said.gib > least:
            measured = f"its models were measured on a card of {least:g} GiB"
            found.append(f"{name} is said to have {said.gib:g} GiB; {measured}")
    return found


def stands_on(experiment: Experiment) -> list[str]:
    """A line for each card that *experiment* states."""
    return [
        f"weights come to {name} at {said.gb_per_s:g} GB/s, one batch runs there at a time: {said.source}"
        for name, said in (experiment.deployment.cards or {}).items()
    ]
