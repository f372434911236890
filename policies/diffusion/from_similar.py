"""Requests whose prompt is like an earlier one begin in the middle: the more alike, the later.

After Nirvana (Agarwal et al., NSDI 2024, arXiv 2312.04429): the noise states of earlier images are kept, a request
begins with the state of the most alike prompt, and so skips its first K steps; how many depends on how alike the two
are. What is kept and thrown away (the paper's LCBFU) is not modelled: the experiment states how alike the best kept
state is (``actions.similar``), and the policy is told as the request comes.

A request gets the steps that are left. *skips* are pairs of a similarity and the share of the steps that is skipped
from there on; their numbers are ServeTwin's own. No request gets fewer steps than its stage allows. A real run has no
kept states: there a request runs the schedule of fewer steps from noise, which takes as long and gives another image.

Who runs: those of the least slack (deadline less the work left), an iteration at a time. Whoever would be late even
alone is given up.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import BadInput, Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.core.request import ActingTask
from servetwin.policies.diffusion._ends import Ends

SKIPS = ((0.65, 0.1), (0.75, 0.2), (0.85, 0.3), (0.9, 0.4), (0.95, 0.5))


class FromSimilar(Ends):
    """*skips* are pairs (similarity, share of the steps that is skipped); *max_batch* bounds the batch (None: by the
    worker's limit)."""

    uses_actions = ("similar",)

    def __init__(self, skips: Sequence[Sequence[float]] = SKIPS, max_batch: int | None = None) -> None:
        at_least(1, "from-similar", max_batch=max_batch)
        if any(len(pair) != 2 or not 0.0 <= pair[0] <= 1.0 or not 0.0 <= pair[1] < 1.0 for pair in skips):
            right = "pairs (similarity from 0 to 1, share from 0 to below 1)"
            raise BadInput(f"skips is {[*skips]}", where="from-similar", right=right)
        self.skips, self.max_batch = sorted((pair[0], pair[1]) for pair in skips), max_batch
        self.due: dict[Task, int] = {}  # the steps of those that have not begun

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        super().admit(task, view, now)
        self.due[task] = self.steps(task)
        return True

    def steps(self, task: Task) -> int:
        """The steps that *task* gets."""
        actions = task.stage.actions
        if actions is None or not isinstance(task, ActingTask) or task.similarity is None:
            return task.iterations
        share = max([share for least, share in self.skips if task.similarity >= least], default=0.0)
        return max(actions.fewest(task.asked), task.asked - int(share * task.asked))

    def latest_start(self, task: Task) -> float:
        return self.ends[task] - self.due.get(task, task.left) * self.step

    def decide(self, view: WorkerView, now: float) -> Decision:
        tasks = [*view.running, *view.waiting]
        drop = self.give_up(tasks, now)
        for task in drop:
            self.due.pop(task, None)
        tasks = [task for task in tasks if task in self.ends]
        most = min(self.max_batch or view.limit, view.limit)
        run = tasks
        if len(tasks) > most:
            run = sorted(tasks, key=lambda task: (self.latest_start(task), task.id))[:most]
        word = self._repeat(run) if len(tasks) <= most else None
        begin = {task: self.due.pop(task) for task in run if task in self.due}
        steps = {task: count for task, count in begin.items() if count < task.iterations}
        return Decision(run, drop, word, steps=steps)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        super().removed(task, view, now)
        self.due.pop(task, None)

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, run: list[Task]) -> Repeat | None:
        """Where nobody is left out, all run until one of them ends, or is late."""
        if not run:
            return None
        return Repeat(min(self.due.get(task, task.left) for task in run), self.next_late(run))
