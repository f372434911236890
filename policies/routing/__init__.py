"""Routers: which of several workers of a stage a request goes to (`servetwin.core.routing` says when one is asked).

A router sees what a real one could know: the queues on each device and its profile, never the future. Requests on
their way to a worker count as much as those in its queue, so a burst sees no stale loads. Where several workers are
equally good they take turns. Begin with `round_robin`.

==================  ======================================================================================
`round_robin`       one after the other
`least_loaded`      the one whose device should have worked off all that is there, and this request, first
`least_violating`   the one where the request does the least harm: the fewest seconds past deadlines
`device_load`       what the last two have in common: how much a device has to do
==================  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from servetwin.core import BadInput, Worker
from servetwin.core.routing import Affine, ByStage, Router
from servetwin.policies.routing.least_loaded import LeastLoaded
from servetwin.policies.routing.least_violating import LeastViolating
from servetwin.policies.routing.round_robin import RoundRobin


def router(name: str, workers: Sequence[Worker], stages: Mapping[str, str] | None = None) -> Router:
    """A new router of this name, for a system of *workers*; *stages* names others, for single stages."""
    try:
        usual = Affine(ROUTERS[name](workers))
        others = {stage: Affine(ROUTERS[other](workers)) for stage, other in (stages or {}).items()}
    except KeyError as error:
        raise BadInput(f"unknown router {error.args[0]!r}", right=", ".join(ROUTERS)) from None
    return ByStage(usual, others) if others else usual


ROUTERS: dict[str, Callable[[Sequence[Worker]], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "least_violating": LeastViolating,
}
