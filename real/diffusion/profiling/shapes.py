"""Requests of other shapes than the model's own: the tables of each for a profile, and what they take of a GPU's
memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from servetwin.core import BadInput, Shape
from servetwin.core.arithmetic import float_sum

from ..graph_runner import WIDTH
from ..kind import Kind
from ..networks import OUTPUT
from .profile_writer import modules_of
from .profiler import Profiler

#: Digits after the point, of GiB.
ROUND = 6


def check(kind: Kind, shapes: Sequence[Shape]) -> None:
    """Raise `BadInput` unless *kind* can be measured at each of *shapes*, and they are others than its own."""
    seen = {_key(kind)}
    for shape in shapes:
        key = _key(kind.at(shape, "--shape"))
        if key in seen:
            own = " (it is the model's own)" if key == _key(kind) else ""
            raise BadInput(f"{shape} stands twice{own}", where="--shape", right="each shape once")
        seen.add(key)


def _key(kind: Kind) -> tuple[object, ...]:
    return (*kind.size, kind.frames, kind.rows)


def with_shapes(
    content: Mapping[str, Any], own: Profiler, measured: Sequence[Profiler], memory: Mapping[Shape | None, Any]
) -> dict[str, Any]:
    """The *content* of the profile that *own* took, with what *measured* found of their shapes; and with the *memory*
    of all shapes, if it is known."""
    kind, tables = own.kind, []
    for profiler in measured:
        assert profiler.shape is not None
        sized = kind.at(profiler.shape, "--shape")
        tables.append(
            {
                "size": list(sized.size),
                **({"frames": sized.frames} if sized.frames is not None else {}),
                **({"guidance": sized.rows} if sized.rows != kind.rows else {}),
                "modules": modules_of(sized, profiler.found),
                **({"memory": memory[profiler.shape]} if memory else {}),
            }
        )
    shapes: dict[str, Any] = {"between": "refused", "fixed": list(kind.fixed), "measured": tables}
    if memory:
        networks = own.server.device_slots(own.device).model.networks
        weights = {t.data_ptr(): t.nbytes for n in networks.values() for t in (*n.parameters(), *n.buffers())}
        shapes |= {"weights_gib": round(sum(weights.values()) / 2**30, ROUND), "memory": memory[None]}
    took = {str(profiler.shape): round(float_sum(profiler.took.values()), 2) for profiler in measured}
    return {**content, "took": content["took"] | took, "shapes": shapes}


def memory_of(profiler: Profiler) -> dict[str, Any] | None:
    """What requests of the shape of *profiler* take of a GPU's memory: a slot each, and a batch of each size at most
    while one of its modules is computed. None on a CPU, whose memory nobody counts."""
    shape, kind = profiler.shape, profiler.kind
    slots = profiler.server.device_slots(profiler.device, [shape])
    if not slots.gpu:
        return None
    device, room = slots.device, slots.model.rooms[shape]
    rows = torch.zeros(profiler.limit, WIDTH, device=device)
    rows[:, 0] = torch.arange(profiler.limit, device=device)
    rows[:, 1:5] = 1.0
    sizes, peaks = range(1, profiler.limit + 1), []
    for n in sizes:
        most = 0
        for module, body in room.bodies.items():
            batch = rows[: n if module in (kind.loop, OUTPUT) else min(n, profiler.once)]
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            with torch.no_grad():
                body(batch)
            torch.cuda.synchronize(device)
            most = max(most, torch.cuda.max_memory_allocated(device) - before)
        peaks.append(round(most / 2**30, ROUND))
    slot = round(slots.model.slot_bytes[shape] / 2**30, ROUND)
    return {"slot_gib": slot, "peak": {"batch": list(sizes), "gib": peaks}}
