"""A request of a real diffusion model taken through its modules by hand, for tests of slots and samplers."""

import torch
from servetwin.core import Request


@torch.no_grad()
def begin(slots, number, steps, shape=None):
    """Take a request in, and compute what comes before the loop."""
    progress = slots.take(Request(number, 0.0, 1.0, {slots.kind.loop: steps}, shape=shape))
    for module in slots.kind.modules[: slots.kind.modules.index(slots.kind.loop)]:
        slots.once(module, [progress])
    slots.begin(progress, steps)
    return progress


@torch.no_grad()
def finish(slots, progress):
    """Compute what comes after the loop; gives the image."""
    for module in slots.kind.modules[slots.kind.modules.index(slots.kind.loop) + 1 :]:
        slots.once(module, [progress])
    if "output" in slots.model.bodies:
        slots.once("output", [progress])
    return slots.model.rooms[progress.shape].state["image"][progress.slot].clone()
