"""What an engine in another process said, for the event loop to let it take effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from servetwin.core import BadInput, ServeTwinError
from servetwin.core.errors import InvariantBroken, PolicyFault

#: Errors that say all that there is to say, whichever process they came from.
TOLD: dict[str, type[ServeTwinError]] = {
    kind.__name__: kind for kind in (PolicyFault, InvariantBroken, BadInput, ServeTwinError)
}


def broken(engine: str, kind: str, what: str) -> ServeTwinError:
    """The error that ended the process of *engine*: its class is called *kind*."""
    if kind in TOLD:
        return TOLD[kind](what)
    return ServeTwinError(f"the engine of {engine} broke: {kind}: {what}")


class Answer:
    """What an engine said of a task that it had; the event loop lets it take effect."""

    def __init__(self, engine: str, over: Callable[..., None], said: tuple[Any, ...]) -> None:
        self.engine, self.over = engine, over
        self.said = said

    def finish(self) -> None:
        if self.said[0] == "broken":
            raise broken(self.engine, *self.said[1:])
        self.over(*self.said[1:])


class Standstill:
    """The policy of an engine waits for arrivals; *arrived* tasks had reached it when it said so."""

    def __init__(self, tell: Callable[[int], None], arrived: int) -> None:
        self.tell, self.arrived = tell, arrived

    def finish(self) -> None:
        self.tell(self.arrived)
