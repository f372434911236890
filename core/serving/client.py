"""An open-loop client: sends requests at the times at which they arrive, on the executor's clock."""

from __future__ import annotations

from collections.abc import Iterator

from ..request import Request
from .executor import Handle
from .loop import ServingLoop


class Client:
    """Sends *loop* the requests of *source* at their arrival times: an open-loop client on the executor's clock.

    The source is read one request ahead, so a long workload need not be held in memory. *coming* is the request that
    is sent next, *timer* what will send it.
    """

    def __init__(self, loop: ServingLoop, source: Iterator[Request]) -> None:
        self.loop, self.source = loop, source
        self.timer: Handle | None = None
        loop.more_come = lambda: self.coming is not None
        self.wait(next(source, None))

    def wait(self, coming: Request | None) -> None:
        """*coming* is the next to be sent (None: there is none)."""
        self.coming = coming
        self.timer = self.loop.executor.call_at(coming.arrival, self._send) if coming is not None else None

    def _send(self) -> None:
        request = self.coming
        assert request is not None
        # It is known of the next one that it comes, maybe at this very instant, before somebody decides.
        self.wait(next(self.source, None))
        self.loop.arrive(request)


def play(loop: ServingLoop, source: Iterator[Request]) -> None:
    """Send the requests of *source* to *loop* at their arrival times (`Client`)."""
    Client(loop, source)
