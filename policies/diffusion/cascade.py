"""Two models: the small one serves everybody, and the large one those whose image is not thought good enough.

After DiffServe (Ahmad et al., MLSys 2025, arXiv 2411.15381): a light model answers first, a discriminator says how
confident it is in the image, and only what lies below a threshold goes on to a heavy model. DiffServe sets the
threshold by load, together with batch sizes and the number of GPUs of each model, with an integer program every few
seconds. Here the threshold follows the heavy model's queue at that moment: *threshold* while nobody is in it,
falling in a straight line to 0 when *full* batches of it are there. Batch sizes and GPUs are the deployment's. Nobody
goes on who would be late by it if the heavy model served it alone after those that are there.

Who runs, at either model, is for `edf` to say. The choice is this policy's where the experiment says so
(``actions.confidence``); elsewhere it is `edf`.
"""

from __future__ import annotations

from servetwin.core import Batch, Decision, Policy, Repeat, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import above, at_least
from servetwin.core.request import ActingTask
from servetwin.policies.diffusion.edf import EDF


class Cascade(Policy):
    """*threshold*: below which confidence (0 to 1) a request goes on where there is time; *full*: at how many full
    batches waiting and running at the second model nobody does. *max_batch* and *drop_late* are those of `edf`."""

    uses_actions = ("confidence",)

    def __init__(
        self, threshold: float = 0.6, full: float = 2.0, max_batch: int | None = None, drop_late: bool = True
    ) -> None:
        self.who = EDF(max_batch, drop_late)
        at_least(0, "cascade", threshold=threshold)
        above(0, "cascade", full=full)
        self.threshold, self.full = threshold, full

    def start(self, view: WorkerView) -> None:
        self.who.start(view)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        return self.who.admit(task, view, now)

    def onward(self, task: ActingTask, view: WorkerView, now: float) -> bool:
        target = view.stage.branches[0].target
        there = [peer for peer in view.peers if peer.stage.name == target.name]
        if not there or task.confidence is None:
            return super().onward(task, view, now)
        load = min((peer.waiting + peer.running + peer.on_wire) / peer.limit for peer in there)  # in full batches
        seconds = float_sum(task.asked_of(m) * view.estimate(m, 1) for m in (*target.modules, *target.rest))
        if now + (1.0 + load) * seconds > task.deadline:
            return False
        return task.confidence < self.threshold * max(0.0, 1.0 - load / self.full)

    def decide(self, view: WorkerView, now: float) -> Decision:
        decision = self.who.decide(view, now)
        return Decision(decision.run, decision.drop, self._repeat(decision))

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self.who.ended(batch, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.who.removed(task, view, now)

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, decision: Decision) -> Repeat | None:
        """The word of `edf`."""
        return decision.repeat
