"""A worker that is an LLM engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..invariants.answers import written
from ..worker import Worker
from .async_engine import TokenEngineAhead
from .engine import TokenEngine
from .freed_blocks import TokenEngineAheadKeeping, TokenEngineKeeping

if TYPE_CHECKING:
    from ..loop import ServingLoop
    from ..pipeline import Stage
    from ..policy import Policy
    from ..request import Request, Task
    from .batch import TokenBatch
    from .policy import TokenPolicy, TokenView
    from .request import TokenTask


@dataclass(frozen=True)
class Host:
    """What an engine's host does between two steps, in seconds, before it asks the policy again.

    *between* gives what handing on the outputs of a step of so many sequences takes, *intake* what taking a request
    in does. Whatever has come until all is done, the policy sees. Measured by
    `servetwin.real.vllm.profiling.step_grid` as ``step.between`` and ``engine.intake``.

    With *ahead* the host decides a step while the one before it computes (asynchronous scheduling): see
    `servetwin.core.llm.async_engine`. *begins* is then what passes from asking the policy until the step can begin
    on an idle device; while another step computes nothing is seen of it. A step of more than *graph_tokens* tokens is
    launched kernel by kernel, which keeps the host busy for *launch*: only then it hears of the step before. One that
    computes prompts within that is launched as graphs piece by piece, which takes *pieces* seconds. *each* is what
    all of that takes longer for each sequence of the step.
    """

    between: Callable[[int], float]
    intake: float
    ahead: bool = False
    begins: float = 0.0
    launch: float = 0.0
    pieces: float = 0.0
    each: float = 0.0
    graph_tokens: int | None = None

    def beginning(self, batch: TokenBatch) -> float:
        """Seconds from asking the policy until *batch* can begin on an idle device."""
        return self.begins + self.each * batch.size if self.each else self.begins

    def launching(self, batch: TokenBatch) -> float:
        """Seconds from asking the policy until the host has launched *batch*."""
        begins, most = self.beginning(batch), self.graph_tokens
        if most is None:
            return begins
        taken = self.launch if batch.decode + batch.prefilled > most else self.pieces if batch.prefill else 0.0
        return max(taken + self.each * batch.size, begins)


class TokenWorker(Worker):
    """Serves an LLM stage with one policy, an engine step at a time.

    With *host* the policy is asked when the host is ready for the next step, else at the end of the last one (what
    lies between two steps then counts, but nobody comes in it, and taking requests in costs nothing).
    """

    view: TokenView
    policy: TokenPolicy  # type: ignore[assignment]

    def __init__(
        self, stage: Stage, policy: TokenPolicy, view: TokenView, *, device: str = "gpu0", host: Host | None = None
    ) -> None:
        super().__init__(stage, cast("Policy", policy), view, device=device)
        self.host = host

    def attach(self, loop: ServingLoop) -> None:
        self.loop = loop
        kinds = [TokenEngine, TokenEngineKeeping, TokenEngineAhead, TokenEngineAheadKeeping]
        ahead = self.host is not None and self.host.ahead
        self._engine = kinds[2 * ahead + self.view.limits.keep_freed](loop, self)
        self.receive = cast("Callable[[Task], None]", self._engine.receive)
        self.policy.start(self.shown)

    def task(self, request: Request, now: float) -> Task:
        return self._engine.task(request, now)

    def seconds_alone(self, request: Request, now: float) -> float:
        return self._engine.seconds_alone(request, now)

    def direct(self) -> Callable[[Request], None]:
        self._engine.lean = True
        return self._engine.arrive

    def ring(self) -> None:
        if self.view.in_flight is None and not self._engine.deciding:
            self.loop._call(self)

    def turn(self, settled: bool = False) -> None:
        if self.view.in_flight is None and not self._engine.deciding:
            self._engine.turn(self.loop._now())

    def look_over(self) -> None:
        view = self.view
        if not view.running and (view.free_blocks, view.decoding, view.context) != (view.blocks, 0, 0):
            raise written([self.policy], "free_blocks, decoding or context of its view", "free_blocks", "context")

    def close_books(self) -> None:
        super().close_books()
        self._engine.booked = False
        self._engine.guard = None

    @property
    def resting(self) -> bool:
        """Whether the host is busy between two steps."""
        return self.host is not None and self._engine.deciding

    def withdraw(self, task: Task, now: float) -> None:
        self._engine.withdraw(cast("TokenTask", task), now)

    def clear(self) -> None:
        pass
