"""Shepherd: the largest batch that is still in time; a batch that runs gives way to one a few times its size.

Source: "SHEPHERD: Serving DNNs in the Wild" (NSDI'23), its online serving algorithm (Flex), for one GPU and one
model. Whenever a request arrives or a batch ends:

- Of those that wait, the largest batch is formed all of which would be in time if it began now, earliest deadlines
  first; who would be late even alone is given up.
- An idle GPU runs it. A busy one does so if it is at least *preempt* times as large as the batch that runs, whose
  requests then wait again. 3.03 is the paper's, by which its bound on what any algorithm could do better is least.

Deviations: a batch is interrupted between two denoising steps, and what it has computed is kept (Shepherd stops
between layers, and starts anew); a request leaves when its own steps are done, and *preempt* is reckoned by those
that are left in the batch. The queue is this worker's: where several workers serve a stage, Shepherd has one for all
of a group, which is a router's to give. How groups are planned (Herd) is left out.
"""

from __future__ import annotations

from servetwin.core import Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.policies.diffusion._ends import Ends


class Shepherd(Ends):
    """Runs the largest batches that are in time, *max_batch* at most (by default the worker's limit); *preempt* is
    how many times as large one must be to interrupt another."""

    def __init__(self, max_batch: int | None = None, preempt: float = 3.03) -> None:
        at_least(1, "shepherd", max_batch=max_batch, preempt=preempt)
        self.max_batch, self.preempt_at = max_batch, preempt
        self.batch: list[Task] = []  # a new list whenever it changes

    def start(self, view: WorkerView) -> None:
        super().start(view)
        self.most = min(self.max_batch or view.limit, view.limit)
        loop = view.stage.loop
        self.steps = [view.estimate(loop, n) if loop else 0.0 for n in range(1, self.most + 1)]

    def decide(self, view: WorkerView, now: float) -> Decision:
        ends = self.ends
        batch = self.batch = [task for task in self.batch if task in ends]
        runs = set(batch)
        others = [task for task in (*view.running, *view.waiting) if task in ends and task not in runs]
        late = self.give_up(others, now)
        if late:
            others = [task for task in others if task in ends]
        largest = self._largest(others, now)
        if largest and len(largest) >= self.preempt_at * len(batch):
            others = [*batch, *(task for task in others if task not in largest)]
            self.batch = largest
        if not self.batch:
            return Decision(drop=late)
        return Decision(self.batch, late, self._repeat(others))

    def _largest(self, tasks: list[Task], now: float) -> list[Task]:
        """The largest batch of *tasks* all of which end in time if it begins *now*, by deadline."""
        ends = self.ends
        for size in range(min(len(tasks), self.most), 0, -1):
            step = self.steps[size - 1]
            timely = [task for task in tasks if ends[task] - task.left * step >= now]
            if len(timely) >= size:
                return sorted(timely, key=lambda task: (task.deadline, task.id))[:size]
        return []

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, others: list[Task]) -> Repeat:
        """As long as nobody comes or leaves, time makes the batches that *others* could form only smaller."""
        return Repeat(self.batch[0].left, self.next_late(others))
