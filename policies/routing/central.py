"""A central queue, first come, first served: a request is bound when a worker has room (late binding).

No worker has room while a request waits that it could serve, as in the M/M/c queue; so no request waits behind
another while a worker elsewhere has nothing to do.
"""

from __future__ import annotations

from servetwin.core.parameters import at_least
from servetwin.core.routing import Router


class Central(Router):
    """A worker has room as long as it has fewer than *depth* requests, those that run included; by default as many as
    may run there at once. With a smaller depth requests stay movable for longer, and batches become smaller."""

    def __init__(self, depth: int | None = None) -> None:
        if depth is not None:
            at_least(1, "central", depth=depth)
        self.depth = depth
