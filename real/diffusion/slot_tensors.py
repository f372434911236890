"""The tensors in which requests stand while they are served: as many slots as there may be requests, whatever their
shape.

A slot is as large as the largest shape needs, and each shape sees its own part of it: so a slot can be given to any
request, and requests of several shapes take no more memory than as many of the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from servetwin.core import BadInput, Shape
from torch import Tensor

from .diffusion_model import Slot

#: What a request of one shape has: by name, shape and type of each of its tensors.
SlotLayout = Mapping[str, Slot]


def size(layout: SlotLayout) -> int:
    """Bytes of a request with this *layout*."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def allocate(by_shape: Iterable[SlotLayout], slots: int, device: torch.device) -> dict[str, Tensor]:
    """Zeros for so many *slots*: by name, slots x the most elements that a shape has."""
    most: dict[str, tuple[int, torch.dtype]] = {}
    for layout in by_shape:
        for name, (shape, dtype) in layout.items():
            known, _ = most.get(name, (0, dtype))
            most[name] = max(known, math.prod(shape)), dtype
    return {name: torch.zeros(slots, n, dtype=dtype, device=device) for name, (n, dtype) in most.items()}


def views(whole: Mapping[str, Tensor], layout: SlotLayout) -> dict[str, Tensor]:
    """What requests with this *layout* see of what `allocate` gave: slots x shape, by name."""
    found = {}
    for name, (shape, _) in layout.items():
        tensor = whole[name]
        found[name] = tensor[:, : math.prod(shape)].view(len(tensor), *shape)
    return found


def check_memory(by_shape: Mapping[Shape | None, SlotLayout], slots: int, device: torch.device) -> None:
    """Raise `BadInput` if so many *slots* do not fit into what is free of the memory of *device*."""
    free = free_bytes(device)
    names = dict.fromkeys(name for layout in by_shape.values() for name in layout)
    needed = slots * sum(max(size({n: layout[n]}) for layout in by_shape.values() if n in layout) for n in names)
    if free is None or needed <= free:
        return
    largest = max(by_shape, key=lambda shape: size(by_shape[shape]))
    of = f" of up to {largest}" if largest is not None else ""
    gib, there = needed / 2**30, free / 2**30
    what = f"slots for {slots} requests{of} take {gib:.3g} GiB, and {there:.3g} GiB of {device} are free"
    raise BadInput(what, where="--slots", right="fewer slots, or smaller shapes")


def free_bytes(device: torch.device) -> int | None:
    """What is free of the memory of *device*; None if nobody tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, and free
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
