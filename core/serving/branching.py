"""Which path a request takes where its pipeline branches.

The numbers that decide are drawn for each request, module and visit, from the workload's seed: they belong to the
workload, like arrivals and steps. No policy, order of events or time can change them, and nothing that a policy sees
leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..pipeline import Edge, Stage
from ..random_streams import stream
from ..request import Request

#: Requests whose numbers are drawn in one go.
BLOCK = 256
#: Blocks of numbers that are kept.
KEPT = 512


class Branching:
    """Chooses for the requests of one run, of a pipeline with these *stages*."""

    def __init__(self, stages: Iterable[Stage], seed: int) -> None:
        self.seed = seed
        # A module is left once for each time that an edge back was taken, at most, and once more.
        bounds = {b.edge: b.edge.most or 0 for s in stages for b in s.branches}
        self.visits = 1 + sum(bounds.values())
        self._drawn: dict[tuple[str, int], list[list[float]]] = {}
        self._taken: dict[int, dict[Edge, int]] = {}
        self._left: dict[tuple[int, str], int] = {}

    def after(
        self, request: Request, stage: Stage, choose: Callable[[float], bool] | None = None
    ) -> tuple[Sequence[Stage], bool]:
        """Where *request* goes now that it leaves *stage*, and whether by a branch instead of the plain edges. Where
        it is not for chance to say, *choose* is given the number that was drawn, and says whether by the first."""
        visit = self._left.get((request.id, stage.name), 0)
        self._left[request.id, stage.name] = visit + 1
        share = self._number(stage.modules[-1], request.id, visit)
        if choose is not None:
            return ((stage.branches[0].target,), True) if choose(share) else (stage.next, False)
        for branch in stage.branches:
            share -= branch.edge.probability
            if share < 0.0:
                taken = self._taken.setdefault(request.id, {})
                times = taken.get(branch.edge, 0)
                if branch.edge.most is not None and times >= branch.edge.most:
                    break
                taken[branch.edge] = times + 1
                return (branch.target,), True
        return stage.next, False

    def forget(self, request: Request) -> None:
        """*request* has ended."""
        self._taken.pop(request.id, None)
        for task in request.tasks:
            self._left.pop((request.id, task.stage.name), None)

    def _number(self, module: str, request: int, visit: int) -> float:
        block, row = divmod(request, BLOCK)
        numbers = self._drawn.get((module, block))
        if numbers is None:
            source = stream(self.seed, f"way after {module}/{block}")
            if len(self._drawn) >= KEPT:
                del self._drawn[next(iter(self._drawn))]  # should it be wanted again, the same numbers come
            numbers = self._drawn[module, block] = source.random((BLOCK, self.visits)).tolist()
        return numbers[row][min(visit, self.visits - 1)]
