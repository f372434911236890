"""An engine with LoRA adapters: of how many a step may have requests, and which are on the device.

As in vLLM (0.27: ``v1/core/sched/scheduler.py``, ``max_loras``): a request that waits is passed over while as many
adapters as may be are those of running requests and its own is none of them; those behind it may go first. The
device holds as many adapters; one that is not there is loaded in place of that which was used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from ...request import Request
from ...serving.worker import Loop
from ..batch import Piece
from ..policy import Chunk, TokenView
from ..request import AdapterTask, TokenTask
from .engine import TokenEngine
from .host import LLMWorker


class AdapterView(TokenView):
    """A `TokenView` of an engine whose running requests have `EngineLimits.max_loras` adapters at most."""

    __slots__ = ()

    def allowed(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Those of *chunks* whose tasks run, or may beside the ones that run and those before them."""
        used, most = self.adapters(), self.limits.max_loras
        for chunk in chunks:
            adapter = cast("AdapterTask", chunk[0]).adapter
            if adapter is None or adapter in used or chunk[0] in self.running:
                yield chunk
            elif len(used) < most:
                used.add(adapter)
                yield chunk

    def adapters(self) -> set[str]:
        """The adapters of those who run."""
        found = {cast("AdapterTask", task).adapter for task in self.running}
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


class AdapterEngine(TokenEngine):
    """`TokenEngine` with adapters by classes of requests. *loaded* are those on the device, the one that was used
    longest ago first; each that is brought there counts as moved (`TokenBatch.swapped`)."""

    __slots__ = ("loaded", "of_class")

    kind = AdapterTask
    view: AdapterView

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.of_class = dict(self.view.limits.adapters)
        self.loaded: OrderedDict[str, None] = OrderedDict()

    def task(self, request: Request, now: float) -> TokenTask:
        task = super().task(request, now)
        assert isinstance(task, AdapterTask)
        task.adapter = self.of_class.get(request.class_name)
        return task

    def restart(self) -> None:
        self.loaded.clear()

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        allowed = prefill
        if all(isinstance(chunk[0], AdapterTask) for chunk in prefill):  # else it is told what is wrong
            kept = [*self.view.allowed(prefill)]
            allowed = prefill if len(kept) == len(prefill) else kept
        pieces = super()._admit(allowed, chosen, decode, crowded, now)
        for task, _, _ in pieces:
            self._load(cast("AdapterTask", task))
        return pieces

    def _load(self, task: AdapterTask) -> None:
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
        adapter = cast("AdapterTask", task).adapter
        if adapter is not None and adapter in self.loaded:
            self.loaded.move_to_end(adapter)

    def _release(self, task: TokenTask) -> None:
        super()._release(task)
        self._used(task)

    def finish(self, task: TokenTask, now: float) -> None:
        super().finish(task, now)
        self._used(task)
