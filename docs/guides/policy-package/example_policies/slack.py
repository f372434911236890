"""Least slack first: whoever must begin soonest to be in time runs next."""

from __future__ import annotations

from typing import Annotated

from servetwin.core import BadInput, Decision, Policy, Task, WorkerView


class SlackFirst(Policy):
    """Forms the batch anew at every iteration; gives up what cannot be in time any more."""

    def __init__(
        self,
        max_batch: Annotated[int, "requests in a batch, at most; the worker may allow fewer"] = 16,
        margin: Annotated[float, "seconds that a request must have left over, else it is given up"] = 0.0,
    ) -> None:
        if max_batch < 1:
            raise BadInput(f"max_batch is {max_batch}", where="example-slack", right="1 or more")
        self.max_batch, self.margin = max_batch, margin

    def decide(self, view: WorkerView, now: float) -> Decision:
        slack = {task: task.deadline - now - view.solo(task) for task in (*view.running, *view.waiting)}
        late = [task for task, left in slack.items() if left < self.margin]

        def urgency(task: Task) -> tuple[float, int]:
            return slack[task], task.id

        tasks = sorted((task for task in slack if task not in late), key=urgency)
        return Decision(tasks[: min(self.max_batch, view.limit)], late)
