"""Batches of whole requests by deadline, each of a size that the SLO allows: what `nexus` and `symphony` share."""

from __future__ import annotations

from bisect import insort

from servetwin.core import Policy, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import latest

#: When the stage must have ended, request id, task, and the size of the batches that its SLO allows.
Item = tuple[float, int, Task, int]


class Windows(Policy):
    """Keeps those that wait in order of deadline. *max_batch* bounds batches (None: by the worker's limit), *safety*
    multiplies what the profile says that a batch takes."""

    def bounds(self, name: str, max_batch: int | None, safety: float) -> None:
        """Take the parameters of the policy of that *name*. Raises `BadInput` if they are none."""
        at_least(1, name, max_batch=max_batch)
        above(0, name, safety=safety)
        self.max_batch, self.safety = max_batch, safety
        self.queue: list[Item] = []

    def start(self, view: WorkerView) -> None:
        self.most = min(self.max_batch or view.limit, view.limit)
        loop, once = view.stage.loop, (*view.stage.before, *view.stage.after)
        sizes = range(1, self.most + 1)
        self.step = [0.0] + [self.safety * view.estimate(loop, n) if loop else 0.0 for n in sizes]
        self.once = [0.0] + [self.safety * float_sum(view.estimate(m, n) for m in once) for n in sizes]

    def seconds(self, steps: int, size: int) -> float:
        """What a batch of that *size* takes whose longest request has so many *steps*."""
        return steps * self.step[size] + self.once[size]

    def size_of(self, steps: int, slo: float) -> int:
        """The largest batch of requests of so many *steps* of which two on end keep the *slo*: who just missed one
        waits for it, and then runs in the next (Nexus, section 4.1)."""
        return max((n for n in range(2, self.most + 1) if 2 * self.seconds(steps, n) <= latest(slo)), default=1)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        later = view.solo(task) - self.seconds(task.left, 1) / self.safety
        end = latest(task.deadline) - later
        insort(self.queue, (end, task.id, task, self.size_of(task.left, task.deadline - task.arrival - later)))
        return True

    def window(self, now: float) -> tuple[list[Item], list[Task]]:
        """The batch to be run *now*, and those before it in the queue, who could not bear a batch of the size that
        they call for, or that is left of it where fewer wait."""
        queue = self.queue
        for first, (end, _, task, size) in enumerate(queue):
            size = min(size, len(queue) - first)
            if end < now + self.seconds(task.left, size):
                continue
            window = [queue[first]]
            for item in queue[first + 1 :]:
                if len(window) == size:
                    break
                # Who has more steps than the first can wait for stays in the queue.
                if item[2].left <= task.left or end >= now + self.seconds(item[2].left, size):
                    window.append(item)
            return window, [late[2] for late in queue[:first]]
        return [], [late[2] for late in queue]

    def leave(self, tasks: list[Task]) -> None:
        """*tasks* have left the queue."""
        gone = set(tasks)
        self.queue = [item for item in self.queue if item[2] not in gone]

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.leave([task])
