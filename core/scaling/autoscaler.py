"""How many replicas a fleet should have: what an autoscaler sees and says.

An `Autoscaler` is asked every so many seconds, or whenever a request comes or ends. It answers with a number of
replicas; bounds, delays and cooldown are the fleet's (`servetwin.core.fleets.fleet`), and so is what starting one
takes. Autoscalers that come along are in `servetwin.policies.scaling`.
"""

from __future__ import annotations

from typing import NamedTuple


class FleetState(NamedTuple):
    """What an autoscaler may see of a fleet: how things stood at *time*, in seconds since the run began.

    *ready* replicas serve, *starting* ones will, *draining* ones only end what they have. *waiting* counts requests
    that have not begun at a worker, on the wire and centrally held ones included, *running* those that have; where a
    request is at several stages at once it counts at each. Over the last *window* seconds (fewer at the beginning):
    *arrived*, *ended* and *met* count requests, and *utilisation* is the share of the time in which the devices of
    replicas that serve computed (0 to 1; 0 if there were none; threads of pools are no devices). *limit* is how many
    requests run at once in one replica at most (in one with a group of devices: on a single device each).
    """

    time: float
    ready: int
    starting: int
    draining: int
    waiting: int
    running: int
    arrived: int
    ended: int
    met: int
    utilisation: float
    window: float
    limit: int

    @property
    def present(self) -> int:
        """All requests that are there."""
        return self.waiting + self.running

    @property
    def on(self) -> int:
        """Replicas that serve, or will."""
        return self.ready + self.starting

    @property
    def attainment(self) -> float | None:
        """The share of the requests that ended in the window that met their SLO; None if none ended."""
        return self.met / self.ended if self.ended else None


class Autoscaler:
    """Says how many replicas there should be. One object serves one fleet; its parameters come by keyword.

    It has no clock, no files and no randomness of its own.
    """

    #: What it is called in messages.
    CALLED = "autoscaler"
    #: Whether its answer changes by time alone: it must then be asked at intervals.
    by_clock = False

    def start(self, least: int, most: int) -> None:
        """The run begins; there will be from *least* to *most* replicas. State begins here, or in ``__init__``."""

    def want(self, fleet: FleetState, now: float) -> int:
        """How many replicas should serve, or be starting, *now*. What is out of bounds is brought within them. With a
        stale view *fleet* is older than *now*."""
        raise NotImplementedError
