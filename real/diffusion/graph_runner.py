"""A module ready to run: eager on the CPU, one captured CUDA graph per shape and batch size on a GPU.

Whoever runs a runner fills the rows of a batch (`GraphRunner.rows`) and launches it (`GraphRunner.launch`): on a GPU
one replay and nothing else. The rows lie in a ring in the host's memory, which the graph reads by itself, from
where a cursor on the device stands. A copy of its own would cost the host 12 us for each batch, and 60 to 110 while
the host is slow, with the device waiting.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from servetwin.core import ServeTwinError, Shape

from .networks import Body

#: Columns of a batch's rows: slot, timestep, scale, keep, add, guidance, back, own, theirs.
WIDTH = 9
#: Batches that can be launched before the first of them is done.
RING = 1024
#: Blocks of pinned memory to ask for until one is of the right device: more than torch keeps of one size.
TRIES = 64


class _Mapped:
    """A tensor in pinned memory, as the device sees it."""

    def __init__(self, pinned: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(pinned.shape),
            "typestr": "<f4",
            "data": (pinned.data_ptr(), False),
            "version": 3,
        }


def _shared_rows(shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros in pinned memory, and the same memory as a tensor on *device*. Raises `ServeTwinError`.

    Pinned memory is known as that of the device that was current when it was pinned. torch keeps what was freed for
    the next who asks, on whatever device; a tensor on another one would be a copy, which the host writes to in vain.
    """
    others = []  # kept until the right one is found, so that it is not given out again
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)  # what is pinned is a device's only if that is in use
        for _ in range(TRIES):
            ring = torch.zeros(*shape, pin_memory=True)
            table = torch.as_tensor(_Mapped(ring), device=device)
            if table.data_ptr() == ring.data_ptr():
                return ring, table
            others.append(ring)
    raise ServeTwinError(f"{device} does not see the host's pinned memory")


class GraphRunner:
    """Runs a module on batches of up to *limit* requests, one at a time: for a single lane (`DeviceSlots.lease`). A
    batch is of one shape, by whose body of *bodies* it runs; its graphs share their memory with those of the others.
    """

    def __init__(
        self,
        name: str,
        bodies: Mapping[Shape | None, Body],
        limit: int,
        device: torch.device,
        *,
        eager: bool,
        priority: int = 0,
    ) -> None:
        self.name = name
        self.bodies = dict(bodies)
        self.limit = limit
        self.limits = dict.fromkeys(self.bodies, 0)  # up to which batch size each shape is warm
        self.gpu = device.type == "cuda"
        self.eager = eager or not self.gpu
        self.device = device
        if self.gpu:
            self._ring, self._table = _shared_rows((RING, limit, WIDTH), device)
        else:
            self._ring = torch.zeros(1, limit, WIDTH)
        self._views: list[np.ndarray] = list(self._ring.numpy())
        self._at = 0  # where the rows of the last launch lie, or of the next one if they are *filled*
        self._filled = False
        self._graphs: dict[tuple[Shape | None, int], torch.cuda.CUDAGraph] = {}
        if self.gpu:
            self._cursor = torch.zeros(1, dtype=torch.long, device=device)
            self._pool = torch.cuda.graph_pool_handle()
            # Libraries keep scratch memory by stream: captured on streams of their own, runners never share any.
            self._stream = torch.cuda.Stream(device, priority=priority)
            self._check()

    def _check(self) -> None:
        """Make sure that the device reads what the host writes."""
        self._ring[-1].fill_(1.0)
        if self._table[-1].sum().item() != self._ring[-1].numel():
            raise ServeTwinError("the GPU does not see the host's pinned memory")
        self._ring[-1].fill_(0.0)

    def rows(self) -> np.ndarray:
        """The rows of the next batch (limit x `WIDTH`), to be filled in before `launch`."""
        if not self._filled:
            self._at = (self._at + 1) % len(self._views)
            self._filled = True
        return self._views[self._at]

    def launch(self, n: int, shape: Shape | None = None) -> None:
        """Run the first *n* of the rows that `rows` gave last, requests of that *shape*, on the current stream."""
        if not self._filled:  # the same ones once more
            last = self._views[self._at]
            self.rows()[:] = last
        self._filled = False
        graph = self._graphs.get((shape, n))
        if graph is not None:
            graph.replay()
        else:
            self._run(n, shape)

    def _run(self, n: int, shape: Shape | None) -> None:
        """What a graph does."""
        body = self.bodies[shape]
        if not self.gpu:
            body(self._ring[0, :n])
            return
        rows = self._table.index_select(0, self._cursor)[0]
        self._cursor.add_(1).remainder_(RING)
        body(rows[:n])

    def warm(self, sizes: Iterable[int], shape: Shape | None = None) -> None:
        """Run every batch size of that *shape* once, and capture its graph: nothing is built or tuned while requests
        are served."""
        sizes = sorted(sizes, reverse=True)  # the largest first: the others then fit into its memory
        rows = self.rows()
        rows[:] = 0.0
        rows[:, 0] = np.arange(self.limit)
        rows[:, 1:5] = (1.0, 1.0, 1.0, 0.0)
        for other in self._views:
            other[:] = rows
        if not self.gpu:
            self._warm(sizes, shape)
            return
        # A capture waits for the current device and frees that one's memory: it must be this runner's.
        with torch.cuda.device(self.device), _no_garbage_collection():
            self._warm(sizes, shape)
            self._cursor.fill_(self._at)  # whatever ran meanwhile
            torch.cuda.synchronize(self.device)

    def _warm(self, sizes: list[int], shape: Shape | None) -> None:
        for n in sizes:
            if (shape, n) in self._graphs:
                continue
            self.limits[shape] = max(self.limits[shape], n)
            if not self.gpu:
                self._run(n, shape)
                continue
            stream = self._stream
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for _ in range(1 if self.eager else 2):
                    self._run(n, shape)
            stream.synchronize()
            if not self.eager:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                    self._run(n, shape)
                self._graphs[shape, n] = graph


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A capture collects garbage before it begins; with what exists set aside that takes no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
