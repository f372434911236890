"""Engines with LoRA adapters: of how many a step may have requests, and which are on the device.

As in vLLM (0.27: ``v1/core/sched/scheduler.py``, ``max_loras``): a request that waits is passed over while as many
adapters as may be are those of a step's requests and its own is none of them; those behind it may go first. The
device holds as many adapters; one that is not there is loaded in place of that which was used longest ago. In a
prefix cache each adapter has blocks of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from ...policy import Repeat
from ...request import Request
from ...serving.worker import Loop
from ..batch import Piece
from ..policy import Chunk, TokenView
from ..prefix_cache import AdapterContent, PromptContent
from ..request import Adapted, AdapterTask, TokenTask
from ..speculation import SpeculativeAdapterTask, SpeculativeView
from .async_engine import TokenEngineAhead
from .caching import TokenEngineAheadCaching, TokenEngineCaching
from .engine import TokenEngine
from .host import LLMWorker
from .speculative_engine import SpeculativeEngine, SpeculativeEngineCaching

# What engines that pass over have in common, for type checkers an engine itself.
if TYPE_CHECKING:
    _Base = TokenEngine
else:
    _Base = object


class PassingOver(_Base):
    """An engine that passes over some of those who wait: those behind may go first, those preempted after that may
    not (vLLM keeps whom it passes over in a queue of their own, ahead of all others). *passed* are they, in order."""

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.passed: dict[TokenTask, None] = {}

    def _barred(self) -> Callable[[TokenTask], bool]:
        """Tells of one who waits whether the next step would pass it over."""
        raise NotImplementedError

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        waiting = self.view.waiting
        queue = [*waiting]
        pieces = super()._admit(prefill, chosen, decode, crowded, now)
        for task, _, _ in pieces:
            self.passed.pop(task, None)
        if len(waiting) < len(queue):
            while queue[-1] in waiting:
                queue.pop()
            self.passed.update((task, None) for task in queue if task in waiting)
        return pieces

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        if not self.preempted:
            tokens = sum(count for _, count, _ in pieces) + self._padded(pieces)
            self._pass_over(decode * self.view.limits.tokens_per_decode + tokens)
        super()._launch(decode, context, pieces, chosen, now)

    def _all_decode(self, repeat: Repeat | None, fresh: bool, now: float) -> bool:
        self._pass_over(self.view.decoding * self.view.limits.tokens_per_decode)
        return super()._all_decode(repeat, fresh, now)

    def _padded(self, pieces: Sequence[Piece]) -> int:
        """The tokens of a step with these *pieces* that are there to make requests alike (`TokenView.padding`)."""
        return 0

    def _pass_over(self, tokens: int) -> None:
        """In a step of so many *tokens* those at the head of the queue who are barred are passed over, if it has room
        for more."""
        view = self.view
        most = getattr(self.worker.policy, "tokens_a_step", None) or view.max_batched_tokens
        if view.waiting and tokens < min(most, view.max_batched_tokens) and len(view.running) < view.max_sequences:
            barred = self._barred()
            for task in view.waiting:
                if not barred(task):
                    break
                self.passed[task] = None

    def _preempt(self, task: TokenTask) -> None:
        super()._preempt(task)
        waiting = self.view.waiting
        self.passed = {other: None for other in self.passed if other in waiting and other is not task}
        for other in reversed(self.passed):
            waiting.move_to_end(other, last=False)

    def finish(self, task: TokenTask, now: float) -> None:
        self.passed.pop(task, None)  # one that was preempted while its last token was in flight
        super().finish(task, now)

    def _visit_over(self, task: TokenTask) -> None:
        super()._visit_over(task)
        self.passed.pop(task, None)


class AdapterRule(TokenView):
    """A `TokenView` of an engine whose steps have requests with `EngineLimits.max_loras` adapters at most."""

    if not TYPE_CHECKING:
        __slots__ = ()  # those who are of this kind have them

    spent: Callable[[TokenTask], bool]
    away: Collection[TokenTask]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Whether a task that runs is in no further step, since its last token is in flight.
        self.spent = _never
        #: Tasks whose KV is not here, of an engine that decodes only: admitted, they do not run yet.
        self.away = ()

    def allowed(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Those of *chunks* whose tasks run, or may beside the ones that run and those before them."""
        used, most = self.adapters(), self.limits.max_loras
        for chunk in chunks:
            adapter = cast("Adapted", chunk[0]).adapter
            if adapter is None or adapter in used or chunk[0] in self.running:
                yield chunk
            elif len(used) < most:
                if chunk[0] not in self.away:
                    used.add(adapter)
                yield chunk

    def adapters(self) -> set[str]:
        """The adapters of those who run."""
        found = {cast("Adapted", task).adapter for task in self.running if not self.spent(task)}
        return {adapter for adapter in found if adapter is not None}

    def admissible(self, prefill: Iterable[Chunk], *, decode: int = 0) -> list[Chunk]:
        return super().admissible([*self.allowed(prefill)], decode=decode)

    def fill(
        self,
        tasks: Iterable[TokenTask],
        tokens: int,
        *,
        begun: Iterable[Chunk] = (),
        decode: int = 0,
        chunked: bool = True,
    ) -> list[Chunk]:
        kept = [task for task, _ in self.allowed((task, 0) for task in tasks)]
        return super().fill(kept, tokens, begun=begun, decode=decode, chunked=chunked)


class AdapterView(AdapterRule):
    """`AdapterRule`, and nothing besides."""

    __slots__ = ("away", "spent")


class SpeculativeAdapterView(AdapterRule, SpeculativeView):
    """`AdapterRule` where each that decodes takes several tokens of a step."""

    __slots__ = ("away", "spent")


class Adapting(PassingOver):
    """An engine with adapters by classes of requests. *loaded* are those on the device, the one that was used
    longest ago first; each that is brought there counts as moved (`TokenBatch.swapped`)."""

    kind = AdapterTask
    view: AdapterRule

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        if isinstance(self, TokenEngineAhead):
            self.view.spent = self._spent
        self.of_class = dict(self.view.limits.adapters)
        self.loaded: OrderedDict[str, None] = OrderedDict()

    def task(self, request: Request, now: float) -> TokenTask:
        task = cast("Adapted", super().task(request, now))
        task.adapter = self.of_class.get(request.class_name)
        if task.prompt_content is not None:
            task.prompt_content = self.content_of(request, task.prompt_content)
        return task

    def restart(self) -> None:
        super().restart()
        self.loaded.clear()

    def content_of(self, request: Request, content: PromptContent) -> PromptContent:
        """What *content*, with which the prompt of *request* begins, is in the prefix cache."""
        adapter = self.of_class.get(request.class_name)
        return content if adapter is None else AdapterContent(content, adapter)

    # -- who is admitted, and who is passed over ------------------------------------------------------------

    def _barred(self) -> Callable[[TokenTask], bool]:
        used, most = self.view.adapters(), self.view.limits.max_loras

        def barred(task: TokenTask) -> bool:
            adapter = cast("Adapted", task).adapter
            return len(used) == most and adapter is not None and adapter not in used

        return barred

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        allowed = prefill
        if all(isinstance(chunk[0], Adapted) for chunk in prefill):  # else it is told what is wrong
            kept = [*self.view.allowed(prefill)]
            allowed = prefill if len(kept) == len(prefill) else kept
        pieces = super()._admit(allowed, chosen, decode, crowded, now)
        for task, _, _ in pieces:
            self._load(cast("Adapted", task))
        return pieces

    # -- which adapters are on the device -------------------------------------------------------------------

    def _load(self, task: Adapted) -> None:
        """Have the adapter of *task*, which runs, on the device."""
        adapter, loaded = task.adapter, self.loaded
        if adapter is None or adapter in loaded:
            return
        if len(loaded) == self.view.limits.max_loras:
            used = self.view.adapters()
            del loaded[next(other for other in loaded if other not in used)]
        loaded[adapter] = None
        self.swapped += 1
        task.adapter_loads += 1

    def _used(self, task: TokenTask) -> None:
        """*task* has used its adapter until now."""
        adapter = cast("Adapted", task).adapter
        if adapter is not None and adapter in self.loaded:
            self.loaded.move_to_end(adapter)

    def _release(self, task: TokenTask) -> None:
        super()._release(task)
        self._used(task)

    def finish(self, task: TokenTask, now: float) -> None:
        super().finish(task, now)
        self._used(task)


def _never(task: TokenTask) -> bool:
    return False


class AdapterEngine(Adapting, TokenEngine):
    """`TokenEngine` with adapters."""


class AdapterEngineAhead(Adapting, TokenEngineAhead):
    """`TokenEngineAhead` with adapters."""


class AdapterEngineCaching(Adapting, TokenEngineCaching):
    """`AdapterEngine` with a prefix cache."""


class AdapterEngineAheadCaching(Adapting, TokenEngineAheadCaching):
    """`AdapterEngineAhead` with a prefix cache."""


class SpeculativeAdapterEngine(Adapting, SpeculativeEngine):
    """`SpeculativeEngine` with adapters."""

    kind = SpeculativeAdapterTask  # type: ignore[assignment]
    view: SpeculativeAdapterView


class SpeculativeAdapterEngineCaching(Adapting, SpeculativeEngineCaching):
    """`SpeculativeAdapterEngine` with a prefix cache."""

    kind = SpeculativeAdapterTask  # type: ignore[assignment]
    view: SpeculativeAdapterView

    def _padded(self, pieces: Sequence[Piece]) -> int:
        return self.padded if pieces else 0
