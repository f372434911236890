"""A worker whose policy may do something with steps (`servetwin.core.pipeline.StepActions`): give a request fewer of
them when it begins, and let a step take the network's last prediction again.

The worker keeps a policy to what the stage allows. A request whose network has run in the fewest steps that it may
run in is never given less, whoever decided it, and its first step is always computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import PolicyFault
from ..isolation.answers import check_decision, fault, shown, write_fault
from ..pipeline import StepActions
from ..policy import Batch, Decision
from ..request import ActingTask, Request, Task
from .batch_worker import BatchWorker
from .shaped_worker import ShapedWorker


class ActingWorker(BatchWorker):
    """A `BatchWorker` of a stage with actions."""

    acts = True
    #: How alike the most alike prompt is whose states were kept, by the id of a request, if that is known.
    similarity: Callable[[int], float] | None = None

    @property
    def actions(self) -> StepActions:
        found = self.stage.actions
        assert found is not None
        return found

    def task(self, request: Request, now: float) -> Task:
        task = ActingTask(request, self.stage, now, self.place)
        if self.similarity is not None:
            task.similarity = self.similarity(request.id)
        return task

    def choice(self, task: Task, now: float) -> Callable[[float], bool] | None:
        if not self.actions.confidence:
            return None

        def choose(number: float) -> bool:
            assert isinstance(task, ActingTask)
            task.confidence = number
            answer: Any = self.policy.onward(task, self.shown, now)
            if type(answer) is not bool and type(answer).__name__ not in ("bool_", "bool"):  # of NumPy
                raise fault(self.policy, f"onward returned {shown(answer)}", "True or False", "onward")
            task.confidence, task.onward = number, bool(answer)  # whatever it wrote
            return task.onward

        return choose

    def _commit(self, decision: Decision, settled: bool) -> None:
        if decision.steps:
            self._set_steps(decision)
        self.reusing: Sequence[Task] = self._reused(decision) if decision.reuse else ()
        super()._commit(decision, settled)

    def _set_steps(self, decision: Decision) -> None:
        """Give those that begin the steps that *decision* says. Raises `PolicyFault` if they may not have them."""
        steps, waiting = decision.steps, self.view.waiting
        if not isinstance(steps, Mapping):
            check_decision(self.policy, decision)
            return
        for task, count in steps.items():
            if task not in waiting or task not in decision.run:
                what = f"it sets the steps of {shown(task)}, which does not begin with this batch"
                raise fault(self.policy, what, "tasks of run that are waiting")
            assert isinstance(task, ActingTask)
            least, most = self.actions.fewest(task.asked), task.asked
            if type(count) is not int or not least <= count <= most:
                what = f"it sets {shown(count)} steps for {task!r}"
                raise fault(self.policy, what, f"an int from {least} (view.stage.actions.fewest) to {most} (asked)")
            task.iterations = task.left = count
            if self.books is not None:
                self.books.set_steps(task, count)

    def _reused(self, decision: Decision) -> tuple[Task, ...]:
        """Those of *decision* whose network stands still. Raises `PolicyFault` if it may not."""
        if type(decision.reuse) not in (list, tuple):
            check_decision(self.policy, decision)
        if not self.actions.reuse:
            right = f"reuse: true in the experiment's actions of {self.stage.loop}"
            raise fault(self.policy, f"it reuses predictions at {self.name}, where none may be", right)
        if decision.whole or self.view.in_flight is not None:
            what = "it reuses predictions in a batch of whole requests, or ahead of the batch in flight"
            raise fault(self.policy, what, "batches that are re-formed at every step")
        found = tuple(decision.reuse)
        if len(set(found)) < len(found):
            raise self.twice("reuse", found)
        for task in found:
            if task not in decision.run or task not in self.view.running:
                right = "tasks of run that have begun"
                raise fault(self.policy, f"it reuses the prediction of {shown(task)}, which has none here", right)
            assert isinstance(task, ActingTask)
            if task.may_skip < 1:
                least = self.actions.fewest(task.asked)
                what = f"with one more step reused, {task!r} is left with fewer than {least} that are computed"
                raise fault(self.policy, what, "tasks with task.may_skip of 1 or more")
        return found

    def _launch(self, batch: Batch) -> None:
        if self.reusing:
            batch.reused, self.reusing = self.reusing, ()
            batch.times = 1
        super()._launch(batch)

    def _done(self, batch: Batch) -> None:
        for task in batch.reused:
            if task.request.outcome is None:
                assert isinstance(task, ActingTask)
                if self.books is not None and self.books.reused.get(task, 0) != task.reused:
                    raise self._wrote(task)
                task.reused += 1
                if self.books is not None:
                    self.books.reused[task] = task.reused
        super()._done(batch)

    def _let_go(self, batch: Batch, now: float) -> None:
        if self.books is not None:
            for task in batch.tasks:
                if task.left > 0 or not isinstance(task, ActingTask):
                    continue
                if task.reused != self.books.reused.pop(task, 0):
                    raise self._wrote(task)
                if self.similarity is not None and task.similarity != self.similarity(task.id):
                    raise write_fault([self.policy], f"similarity of task {task.id}", "similarity")
        super()._let_go(batch, now)

    def _wrote(self, task: ActingTask) -> PolicyFault:
        return write_fault([self.policy], f"reused of task {task.id}", "reused")


class ActingShapedWorker(ActingWorker, ShapedWorker):
    """The same of a worker whose requests are of several shapes."""
