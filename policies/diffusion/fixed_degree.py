"""Whole requests, first come, first served, each on the same number of devices from beginning to end.

What xDiT does on a node (arXiv 2411.01738): *degree* devices compute each step of a request together (sequence
parallelism), and as many requests run side by side as the devices allow. With *by_size* requests of single sizes have
degrees of their own, as TetriServe's baseline RSSP (arXiv 2510.01565, section 6.1) has the best degree of each size.
The oldest request waits until enough devices are free for it, and all that came later wait behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

from servetwin.core import BadInput, Decision, Policy, Shape, Task, WorkerView
from servetwin.core.parameters import at_least


class FixedDegree(Policy):
    """Runs each request alone on *degree* devices; of a size in *by_size* ("2048x2048": 8) on so many. At a worker
    with a single device the degree is 1."""

    names_devices = True
    heeds_shapes = True

    def __init__(self, degree: int = 1, by_size: Mapping[str, int] | None = None) -> None:
        self.degree, self.by_size = degree, dict(by_size or {})
        at_least(1, "fixed-degree", degree=degree, **self.by_size)

    def start(self, view: WorkerView) -> None:
        for degree in (self.degree, *self.by_size.values()):
            if degree not in view.group.degrees and view.group.size > 1:
                what = f"nobody knows what a step takes on {degree} devices of {view.name}"
                right = ", ".join(map(str, view.group.degrees))
                raise BadInput(what, where="policy fixed-degree: degree", right=right)
        sizes = dict.fromkeys(_size(shape) for shape in view.group.shapes)
        for size in self.by_size:
            if size not in sizes and view.group.size > 1:
                right = ", ".join(sizes) or "no by_size: requests have no sizes"
                raise BadInput(
                    f"no request at {view.name} is of {size!r}", where="policy fixed-degree: by_size", right=right
                )

    def decide(self, view: WorkerView, now: float) -> Decision:
        free = view.group.free
        for task in view.waiting:
            degree = self._degree(task) if view.group.size > 1 else 1
            return Decision([task], whole=True, devices=free[:degree]) if degree <= len(free) else Decision()
        return Decision()

    def _degree(self, task: Task) -> int:
        return self.degree if task.shape is None else self.by_size.get(_size(task.shape), self.degree)


def _size(shape: Shape) -> str:
    return f"{shape.height}x{shape.width}"
