"""A worker that is an LLM engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from .loop import Worker
from .token_engine import TokenEngine

if TYPE_CHECKING:
    from .loop import ServingLoop
    from .pipeline import Stage
    from .request import Request, Task
    from .seam import Policy
    from .tokens import TokenPolicy, TokenTask, TokenView


class TokenWorker(Worker):
    """Serves an LLM stage with one policy, an engine step at a time."""

    view: TokenView
    policy: TokenPolicy  # type: ignore[assignment]

    def __init__(self, stage: Stage, policy: TokenPolicy, view: TokenView, *, device: str = "gpu0") -> None:
        super().__init__(stage, cast("Policy", policy), view, device=device)

    def attach(self, loop: ServingLoop) -> None:
        self.loop = loop
        self._engine = TokenEngine(loop, self)
        self.receive = cast("Callable[[Task], None]", self._engine.receive)
        self.policy.start(self.view)

    def task(self, request: Request, now: float) -> Task:
        return self._engine.task(request, now)

    def seconds_alone(self, request: Request, now: float) -> float:
        return self._engine.seconds_alone(request, now)

    def direct(self) -> Callable[[Request], None]:
        self._engine.lean = True
        return self._engine.arrive

    def ring(self) -> None:
        if self.view.in_flight is None:
            self._engine.turn(self.loop._now())

    def withdraw(self, task: Task, now: float) -> None:
        self._engine.withdraw(cast("TokenTask", task), now)

    def clear(self) -> None:
        pass
