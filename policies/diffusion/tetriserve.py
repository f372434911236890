"""TetriServe, for one GPU: time goes in rounds; each is packed so that the fewest requests become late.

Source: "TetriServe: Efficient DiT Serving for Heterogeneous Image Generation" (arXiv 2510.01565), its deadline-aware
scheduling in rounds. There a round hands out the GPUs of a node, and each request has several ways to run: with more
or fewer GPUs, or not at all. A request *survives* a round if after it the rest of its steps could still end in time
at best; the packing seeks the most survivors, and requests that are late at best only get what is left over.

For one GPU the ways are to be in the batch of this round, or not. For each size of the batch it is known how many
steps fit into a round, so who would survive in it and who without it; the places go to those that survive only in it,
then by least slack. Of all sizes that is taken by which the most survive, and among those the one by which the most
steps are done per second. So the packing is exact, where the paper solves a program by group of requests.

- A round is as long as *round_steps* steps of the largest batch; smaller batches, being quicker, do more steps in it.
  It is not interrupted: who comes meanwhile waits for the next. A batch all of which ended sooner ends its round.
- At best means: alone from then on. Who is late even so runs when nobody else is there, oldest first (the paper's
  best-effort lane), or is given up if *drop_late* is on.

Deviations: no sequence parallelism, as there is one GPU; larger batches in its place. Requests are of one resolution.
"""

from __future__ import annotations

from servetwin.core import Batch, Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.policies.diffusion._ends import Ends


class TetriServe(Ends):
    """Packs rounds as long as *round_steps* steps of the largest batch, of *max_batch* requests at most (by default
    the worker's limit). *drop_late*: give up what would be late even alone, instead of serving it last."""

    starves = True  # whom it cannot serve in time any more

    def __init__(self, round_steps: int = 5, max_batch: int | None = None, drop_late: bool = False) -> None:
        at_least(1, "tetriserve", round_steps=round_steps, max_batch=max_batch)
        self.round_steps, self.max_batch, self.drop_late = round_steps, max_batch, drop_late
        self.batch: list[Task] = []  # a new list whenever it changes
        self.todo = 0  # steps that are left of the round

    def start(self, view: WorkerView) -> None:
        super().start(view)
        most = min(self.max_batch or view.limit, view.limit)
        loop = view.stage.loop
        sizes = range(1, most + 1)
        self.seconds = {n: view.estimate(loop, n) if loop else 0.0 for n in sizes}
        span = self.round_steps * self.seconds[most]
        self.steps = {n: max(1, int(span / self.seconds[n] + 1e-9)) if loop else 1 for n in sizes}

    def decide(self, view: WorkerView, now: float) -> Decision:
        self.batch = [task for task in self.batch if task in self.ends]
        if self.todo < 1 or not self.batch:
            return self._round(view, now)
        return Decision(self.batch, (), self._repeat())

    def _round(self, view: WorkerView, now: float) -> Decision:
        """Begin a round."""
        tasks = [task for task in (*view.running, *view.waiting) if task in self.ends]
        live = [task for task in tasks if self.latest_start(task) >= now]
        drop = self.give_up(tasks, now) if self.drop_late and len(live) < len(tasks) else []
        if live:
            self.batch = self._pack(sorted(live, key=lambda task: (self.latest_start(task), task.id)), now)
        else:
            left = [] if self.drop_late else tasks
            self.batch = sorted(left, key=lambda task: (task.arrival, task.id))[: max(self.seconds)]
        if not self.batch:
            return Decision(drop=drop)
        self.todo = self.steps[len(self.batch)]
        return Decision(self.batch, drop, self._repeat())

    def _pack(self, tasks: list[Task], now: float) -> list[Task]:
        """The batch of *tasks* (least slack first) with which the most of them survive the round."""
        best: tuple[int, float, int] = (-1, 0.0, 0)
        chosen: list[Task] = []
        for size in range(1, min(len(tasks), max(self.seconds)) + 1):
            step, count = self.seconds[size], self.steps[size]
            end = now + count * step
            without = {task for task in tasks if self.latest_start(task) >= end}
            saved = [task for task in tasks if task not in without and self._survives(task, now, step, count)]
            pace = size / step if step else float(size)
            value = (len(without) + min(len(saved), size), pace, size)
            if value > best:
                best = value
                first = saved[:size]
                chosen = first + [task for task in tasks if task not in first][: size - len(first)]
        return chosen

    def _survives(self, task: Task, now: float, step: float, count: int) -> bool:
        """Whether *task* can still be in time if it runs *count* steps of that many seconds now."""
        if task.left <= count:
            return now + task.left * step <= self.ends[task]
        return now + count * step <= self.ends[task] - (task.left - count) * self.step

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        super().ended(batch, view, now)
        self.todo -= batch.count

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self) -> Repeat:
        """A round goes on as it began."""
        return Repeat(min(self.todo, self.batch[0].left))
