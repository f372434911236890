"""A policy of a user's own, for measuring: the shape of which the most requests are finished a second."""

from __future__ import annotations

from servetwin.core import Decision, Policy, Shape, Task, WorkerView


class MostPerSecond(Policy):
    """Gives up who would be late if served alone from now on. Of each shape it takes those that are due first, and
    runs an iteration of the shape whose batch, run to its end, ends the most requests for its time."""

    heeds_shapes = True

    def decide(self, view: WorkerView, now: float) -> Decision:
        there = [*view.running, *view.waiting]
        late = [task for task in there if now + view.solo(task) > task.deadline]
        groups: dict[Shape | None, list[Task]] = {}
        for task in sorted(there, key=lambda task: (task.deadline, task.id)):
            if task not in late:
                groups.setdefault(task.shape, []).append(task)
        if not groups:
            return Decision(drop=late)
        batches = [group[: view.limit_of(shape)] for shape, group in groups.items()]
        return Decision(max(batches, key=lambda batch: self._ended(view, batch)), drop=late)

    def _ended(self, view: WorkerView, batch: list[Task]) -> float:
        """Requests a second."""
        shape, size = batch[0].shape, len(batch)
        seconds = 0.0
        for module in view.stage.modules:
            times = max(task.left for task in batch) if module == view.stage.loop else 1
            seconds += times * view.estimate(module, size, shape)
        return size / seconds
