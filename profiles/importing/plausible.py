"""Whether a time can be that of a step: it is then no time in another unit, and of that model on that device.

A step reads the weights, and what its sequences have in the KV cache, and multiplies each of its tokens with the
weights; no device does that faster than its peak. Nor does a step take seconds that is a hundred times as long.
"""

from __future__ import annotations

from servetwin.core import BadInput

from ..llm.architectures import Architecture
from .devices import KnownDevice

#: Bytes of a number of the weights, and of keys and values.
BYTES = 2
#: The share of the time at the device's peak that a step may take (weights of 4 bits are a quarter of those counted
#: here), how many times as long it may, and seconds that are no long step on whatever device.
LEAST, MOST, SHORT = 0.2, 100.0, 1.0


def at_peak(
    shape: Architecture, device: KnownDevice, devices: int, *, tokens: int, batch: int, per_sequence: int
) -> float:
    """Seconds below which no step of a model of that *shape* can be on so many *devices*: *tokens* of prompts, and
    *batch* sequences with so many tokens each in the KV cache."""
    embeddings = shape.vocabulary * shape.hidden
    used = (shape.experts_per_token or 1) / (shape.experts or 1)  # of the weights, a step of one token at least
    read = max(0.0, shape.parameters - embeddings) * used * BYTES
    if shape.window is None:
        read += batch * per_sequence * shape.kv_bytes_per_token(BYTES)
    multiplied = 2.0 * max(0.0, shape.parameters - 2 * embeddings) * used * (tokens + batch)
    return max(read / device.bandwidth, multiplied / device.flops) / devices


def check_time(seconds: float, least: float, where: str) -> None:
    """Raise `BadInput` where *seconds* cannot be those of a step that takes *least* at its device's peak."""
    if LEAST * least <= seconds and (seconds <= SHORT or seconds <= MOST * least):
        return
    fast = seconds < LEAST * least
    what = f"a step of {seconds:g} s, which takes {least:.3g} s at the peak of device and model"
    right = (
        "the device, model and --tensor-parallel-size that it was measured on" if fast else "seconds, not ms or us"
    )
    raise BadInput(what, where=where, right=right)
