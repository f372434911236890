"""How long a request is on its way from one device to another: what a profile of the second says of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from servetwin.core import BadInput, Request
from servetwin.profiles import costs

from ...server import Server
from .profile_writer import ROUND, SHARES

#: Requests that are handed over, and how many of the first are not counted.
TIMES, FIRST = 200, 20


def measured_hand_overs(server: Server, source: str, target: str, times: int = TIMES) -> list[float]:
    """Seconds that each of *times* requests took from the device that workers call *source* to *target*, both idle.

    Raises `BadInput` if they are one device.
    """
    here, there = server.device_slots(source), server.device_slots(target)
    if here is there:
        raise BadInput(f"{source} is {target}", right="two devices")
    found = []
    request = Request(0, 0.0, 1.0, {server.kind.loop: 1})
    for number in range(times + FIRST):
        with torch.no_grad():
            here.begin(here.take(request), 1)
            for slots in (here, there):
                if slots.gpu:
                    torch.cuda.synchronize(slots.device)
            seconds = here.hand_over(0, there).seconds()
        there.release(0)
        if number >= FIRST:
            found.append(seconds)
    return found


def with_hand_overs(content: Mapping[str, Any], seconds: Sequence[float], how: str) -> dict[str, Any]:
    """The *content* of a device's profile file with what was measured of requests that come to it from another one;
    *how* says between which."""
    quantiles = [round(float(np.quantile(seconds, p)), ROUND) for p in SHARES]
    cost = {
        "meaning": "from sent by a stage on another device until all of the request is on this one",
        "unit": "seconds",
        "modules": [],
        "value": round(statistics.fmean(seconds), ROUND),
        "quantiles": {"p": list(SHARES), "values": quantiles},
        "samples": len(seconds),
        "how": how,
        "source": {"file": "real/diffusion/profiling/hand_overs.py"},
    }
    return {**content, "costs": {**content.get("costs", {}), costs.BETWEEN_DEVICES(): cost}}
