"""A module ready to run: eager on the CPU, one captured CUDA graph per batch size on a GPU.

Whoever runs a unit fills the rows of a batch (`Unit.rows`) and launches it (`Unit.launch`): one small copy and one
replay.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .modules import Body

#: Columns of a batch's rows: slot, timestep, scale, keep, add, guidance.
WIDTH = 6
#: Batches that can be launched before the first of them is done.
RING = 1024


class Unit:
    """Runs *body* on batches of up to *limit* requests."""

    def __init__(
        self, name: str, body: Body, limit: int, device: torch.device, *, eager: bool, priority: int = 0
    ) -> None:
        self.name = name
        self.body = body
        self.limit = limit
        self.gpu = device.type == "cuda"
        self.eager = eager or not self.gpu
        self._control = torch.zeros(limit, WIDTH, device=device)
        depth = RING if self.gpu else 1
        self._ring = torch.zeros(depth, limit, WIDTH, pin_memory=self.gpu)
        self._arrays = self._ring.numpy()
        self._entries = list(self._ring)
        self._views: list[np.ndarray] = list(self._arrays)
        self._at = 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if self.gpu:
            self._pool = torch.cuda.graph_pool_handle()
            # Libraries keep scratch memory by stream: captured on streams of their own, units never share any.
            self._stream = torch.cuda.Stream(device, priority=priority)

    def rows(self) -> np.ndarray:
        """The rows of the next batch (limit x `WIDTH`), to be filled in before `launch`."""
        self._at = (self._at + 1) % len(self._views)
        return self._views[self._at]

    def launch(self, n: int) -> None:
        """Run the first *n* of the rows that `rows` gave last, on the current stream."""
        if not self.gpu:
            self.body(self._entries[0][:n])
            return
        self._control.copy_(self._entries[self._at], non_blocking=True)
        graph = self._graphs.get(n)
        if graph is not None:
            graph.replay()
        else:
            self.body(self._control[:n])

    def warm(self, sizes: Sequence[int]) -> None:
        """Run every batch size once, and capture its graph: nothing is built or tuned while requests are served."""
        rows = self.rows()
        rows[:] = 0.0
        rows[:, 0] = np.arange(self.limit)
        rows[:, 1:5] = (1.0, 1.0, 1.0, 0.0)
        with _no_garbage_collection() if self.gpu else contextlib.nullcontext():
            self._warm(sizes)

    def _warm(self, sizes: Sequence[int]) -> None:
        for n in sorted(sizes, reverse=True):  # the largest first: the others then fit into its memory
            if n in self._graphs:
                continue
            if not self.gpu:
                self.launch(n)
                continue
            self._control.copy_(self._entries[self._at])
            stream = self._stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(1 if self.eager else 2):
                    self.body(self._control[:n])
            stream.synchronize()
            if not self.eager:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                    self.body(self._control[:n])
                self._graphs[n] = graph
        if self.gpu:
            torch.cuda.synchronize()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A capture collects garbage before it begins; with what exists set aside that takes no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
