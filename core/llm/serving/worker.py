"""A worker that is an LLM engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

from ...isolation.answers import write_fault
from ...pipeline import Stage
from ...policy import Batch
from ...request import Request, Task
from ...serving.worker import Loop
from ..limits import EngineLimits
from ..policy import TokenPolicy, TokenView
from ..request import TokenTask, prompt_of
from ..speculation import SpeculativeView
from .adapter_engine import (
    AdapterEngine,
    AdapterEngineAhead,
    AdapterEngineAheadCaching,
    AdapterEngineCaching,
    AdapterView,
    SpeculativeAdapterEngine,
    SpeculativeAdapterEngineCaching,
    SpeculativeAdapterView,
)
from .async_engine import TokenEngineAhead
from .caching import TokenEngineAheadCaching, TokenEngineCaching
from .engine import TokenEngine
from .freed_blocks import TokenEngineAheadKeeping, TokenEngineKeeping
from .host import Host, LLMWorker
from .pipeline_engine import PipelineEngine, PipelineEngineCaching, PipelineView
from .pools import PrefillEngine, in_role
from .speculative_engine import SpeculativeEngine, SpeculativeEngineCaching

__all__ = ["Host", "TokenWorker"]


#: Engines at which nothing changes but by what `TokenWorker.note_changes` hears of.
NOTING = (TokenEngine, TokenEngineKeeping, TokenEngineCaching)


def kind_of_view(limits: EngineLimits) -> type[TokenView]:
    """The view of an engine with these *limits*, which a `TokenWorker` is to be given."""
    if limits.max_loras:
        return SpeculativeAdapterView if limits.num_speculative_tokens else AdapterView
    if limits.pipeline_parallel_size > 1:
        return PipelineView
    return SpeculativeView if limits.num_speculative_tokens else TokenView


class AloneSteps(dict[int, float]):
    """Seconds of a decode step of one request with so many tokens, as *estimate* tells them."""

    def __init__(self, estimate: Callable[[int, int], float]) -> None:
        super().__init__()
        self.estimate = estimate

    def __missing__(self, context: int) -> float:
        seconds = self[context] = self.estimate(1, context)
        return seconds

    @classmethod
    def of(cls, view: TokenView) -> AloneSteps:
        """Those of the engine of *view*: one for all replicas that estimate by the same table."""
        return _alone_steps(view.estimators()[1])


@lru_cache(maxsize=16)
def _alone_steps(estimate: Callable[[int, int], float]) -> AloneSteps:
    return AloneSteps(estimate)


class TokenWorker(LLMWorker):
    """Serves an LLM stage with one policy, an engine step at a time.

    With the *role* "prefill" it computes prompts and hands them over, with "decode" it decodes what it is handed; the
    stage's *handover* is to be set before the loop is made.
    """

    def __init__(
        self,
        stage: Stage,
        policy: TokenPolicy,
        view: TokenView,
        *,
        device: str = "gpu0",
        host: Host | None = None,
        role: Literal["both", "prefill", "decode"] = "both",
    ) -> None:
        super().__init__(stage, policy, view, device=device, host=host)
        self.alone_steps = AloneSteps.of(view)
        self.role = role
        self.takes_requests = role != "decode"

    def attach(self, loop: Loop) -> None:
        super().attach(loop)
        ahead = self.host is not None and self.host.ahead
        kinds: list[type[TokenEngine]] = [TokenEngine, TokenEngineKeeping, TokenEngineCaching]
        if ahead:
            kinds = [TokenEngineAhead, TokenEngineAheadKeeping, TokenEngineAheadCaching]
        limits = self.view.limits
        if limits.max_loras:
            kinds = [AdapterEngine, AdapterEngine, AdapterEngineCaching]
            if ahead:
                kinds = [AdapterEngineAhead, AdapterEngineAhead, AdapterEngineAheadCaching]
        if limits.pipeline_parallel_size > 1:
            kinds = [PipelineEngine, PipelineEngine, PipelineEngineCaching]
        kind = kinds[2 if limits.enable_prefix_caching else limits.keep_freed]
        if self.role != "both":
            kind = in_role(self.role, kind)
        if self.speculation is not None:
            drafting: tuple[type[TokenEngine], type[TokenEngine]] = SpeculativeEngine, SpeculativeEngineCaching
            if limits.max_loras:
                drafting = SpeculativeAdapterEngine, SpeculativeAdapterEngineCaching
            kind = drafting[limits.enable_prefix_caching]
        self.engine = kind(loop, self)
        self.policy.start(self.shown)

    def serve_alone(self) -> tuple[Callable[[Request, float], Task], Callable[[Any], None]] | None:
        self.engine.lean = True
        return self.engine.task, self.engine.receive

    def task(self, request: Request, now: float) -> Task:
        return self.engine.task(request, now)

    def seconds_alone(self, request: Request, now: float) -> float:
        return self.engine.seconds_alone(request, now)

    @property
    def unsettled(self) -> bool:
        return self.engine.deciding or type(self.engine) not in NOTING

    def note_changes(self, noting: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        # Between the end of a step and the next decision the engine is `deciding`, so that is not heard of.
        self.engine.ended = noting(self.engine.ended)
        self.turn = noting(self.turn)  # type: ignore[method-assign]
        self.receive = noting(self.receive)  # type: ignore[method-assign]
        self.withdraw = noting(self.withdraw)  # type: ignore[method-assign]
        self.restart = noting(self.restart)  # type: ignore[method-assign]
        self.fail = noting(self.fail)  # type: ignore[method-assign]

    def seconds_left(self) -> list[float] | None:
        view = self.view
        if type(view) is not TokenView:
            return None
        batch, steps, engine = view.in_flight, self.alone_steps, self.engine
        over = batch.over(self.loop.now()) if batch is not None and batch.count > 1 else 0
        ticks = engine.ticks.count + over
        running = [task for task in view.running if task.request.outcome is None] if engine.stale else view.running
        found = [
            (left := task.limit - task.base_generated - ticks) * steps[task.prompt + task.limit - left + left // 2]
            if task.ticks is not None  # as `TokenView.solo`, without the calls
            else view.solo(task, over if task.decoding else 0)
            for task in running
        ]
        for tasks in (view.waiting, self.inbox, self.coming):
            found += [view.solo(task) for task in tasks if task.request.outcome is None]
        return found

    def alike(self) -> object:
        view = self.view
        if type(self.engine) is not TokenEngine or type(view) is not TokenView:
            return super().alike()
        return self.stage.name, *view.estimators()

    @property
    def device_count(self) -> int:
        return self.view.limits.pipeline_parallel_size

    @property
    def batches_under_way(self) -> Sequence[Batch]:
        begun = super().batches_under_way
        return [*begun, *self.view.backlog] if begun and self.device_count > 1 else begun

    def finds(self, *, kept: bool = False) -> Callable[[Request], int]:
        cache, stage = self.view.cache, self.stage
        if cache is None:
            return super().finds()
        has = cache.has
        if kept:
            here = frozenset(cache.cached) if cache.host is None else frozenset((*cache.cached, *cache.host.kept))
            has = here.__contains__

        def found(request: Request) -> int:
            prompt, content = prompt_of(request, stage)
            if content is None:
                return 0
            content = cast("TokenEngineCaching", self.engine).content_of(request, content)
            size = cache.size
            blocks = cache.begun(content, min(content.tokens(prompt), prompt - 1) // size, has)
            return size * max(0, blocks - cache.anew)

        return found

    def receive(self, task: Task) -> None:
        self.engine.receive(cast("TokenTask", task))

    def turn(self, settled: bool = False) -> None:
        if self.view.in_flight is None and not self.engine.deciding:
            self.engine.turn(self.loop.now())

    def ring(self) -> None:
        if self.view.in_flight is None and not self.engine.deciding:
            self.loop.call(self)

    def withdraw(self, task: Task, now: float) -> None:
        self.engine.withdraw(cast("TokenTask", task), now)

    def restart(self) -> None:
        self.engine.restart()

    def fail(self, now: float) -> list[Task]:
        lost: list[Any] = self.engine.fail(now)
        self._no_alarm()
        return lost

    def take_up(self, task: Task, lost: Task) -> None:
        self.engine.take_up(cast("TokenTask", task), cast("TokenTask", lost))

    def look_over(self) -> None:
        view = self.view
        if not view.running and (view.free_blocks, view.decoding, view.context) != (view.blocks, 0, 0):
            raise write_fault([self.policy], "free_blocks, decoding or context of its view", "free_blocks", "context")

    def close_books(self) -> None:
        super().close_books()
        self.engine.booked = False
        self.engine.guard = None

    @property
    def resting(self) -> bool:
        """Whether the host is busy between two steps."""
        sending = isinstance(self.engine, PrefillEngine) and self.engine.stands_still
        return sending or (self.host is not None and self.engine.deciding)
