"""What an engine in another process said, for the event loop to let it take effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from servetwin.core import ServeTwinError
from servetwin.core.errors import PolicyFault


class Answer:
    """What an engine said; the event loop lets it take effect."""

    def __init__(self, engine: str, over: Callable[..., None], said: tuple[Any, ...]) -> None:
        self.engine, self.over = engine, over
        self.said = said

    def finish(self) -> None:
        if self.said[0] == "broken":
            whose, _, what = self.said[1].partition(": ")
            if whose == PolicyFault.__name__:
                raise PolicyFault(what)
            raise ServeTwinError(f"the engine of {self.engine} broke: {self.said[1]}")
        self.over(*self.said[1:])
