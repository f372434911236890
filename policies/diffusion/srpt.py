"""Shortest remaining processing time, by denoising steps: batches re-formed at every iteration.

Of one server and one job at a time no policy has a lower mean latency (L. Schrage, "A Proof of the Optimality of the
Shortest Remaining Processing Time Discipline", Operations Research 16, 1968). A request's steps are known, so its
remaining time is. Here the *max_batch* requests with the fewest steps left share a batch; one that comes with fewer
takes a place at the next iteration, and whose place it was keeps what it has computed. Equals go in order of arrival.

It knows no deadlines: as the textbook has it nothing is dropped, and long requests may wait for long. With
*drop_late* requests are given up that would be late even if they were served alone from now on.
"""

from __future__ import annotations

import math

from servetwin.core import Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.policies.diffusion._ends import Ends


class SRPT(Ends):
    """Runs the *max_batch* requests with the fewest steps left (by default as many as the worker allows).
    *drop_late*: give up what could not make it even alone."""

    turn = "shortest"
    starves = True  # who has many steps left waits for as long as others come that have few

    def __init__(self, max_batch: int | None = None, drop_late: bool = False) -> None:
        at_least(1, "srpt", max_batch=max_batch)
        self.max_batch = max_batch
        self.drop_late = drop_late

    def decide(self, view: WorkerView, now: float) -> Decision:
        tasks = [*view.running, *view.waiting]
        drop = self.give_up(tasks, now) if self.drop_late else []
        if drop:
            tasks = [task for task in tasks if task in self.ends]
        run = sorted(tasks, key=lambda task: (task.left, task.id))[: self.max_batch or view.limit]
        run = run[: view.limit]
        return Decision(run, drop, self._repeat(run, tasks))

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, run: list[Task], tasks: list[Task]) -> Repeat | None:
        """Who runs gets fewer and fewer steps, and so stays in front, until one of *tasks* is late."""
        if not run:
            return None
        return Repeat(run[0].left, self.next_late(tasks) if self.drop_late else math.inf)
