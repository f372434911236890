"""Steps whose prediction would hardly differ from the last one take that again, and the network stands still.

After TeaCache (Liu et al., CVPR 2025, arXiv 2411.19108, section 3.3): how much the network's output changes from one
step to the next is estimated, the estimates add up while steps are skipped, and when the sum reaches a threshold the
network runs again and the sum begins anew. The first step and the last are always computed.

TeaCache estimates the change as it goes, from the network's input as modulated by the timestep's embedding, rescaled
by a polynomial that was fitted for the model. A policy sees no tensors; so the curve is a parameter here: *changes*
says, at equal distances along the schedule, by how much the prediction changes in a step relative to an average step,
and the threshold is in average steps. With every change 1 and a threshold of 1.5 every other step is skipped. Which
steps these are then depends on a request's number of steps alone.

Who runs is for `edf` to say. No request is left with fewer computed steps than its stage allows; where nothing may be
reused, this is `edf`.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import BadInput, Batch, Decision, Policy, Repeat, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import above
from servetwin.core.pipeline import StepActions
from servetwin.policies.diffusion.edf import EDF


class ReuseSteps(Policy):
    """*threshold* is the change, in average steps, at which the network runs again; *changes* are those along the
    schedule, relative to their mean, in straight lines between. *max_batch* and *drop_late* are those of `edf`."""

    uses_actions = ("reuse",)

    def __init__(
        self,
        threshold: float = 1.5,
        changes: Sequence[float] = (1.0,),
        max_batch: int | None = None,
        drop_late: bool = True,
    ) -> None:
        self.who = EDF(max_batch, drop_late)
        above(0, "reuse-steps", threshold=threshold)
        if not changes or min(changes) < 0.0 or not float_sum(changes):
            right = "numbers from 0 on, not all 0"
            raise BadInput(f"changes is {list(changes)}", where="reuse-steps", right=right)
        self.threshold, self.curve = threshold, tuple(changes)
        self.plans: dict[tuple[int, int], tuple[bool, ...]] = {}  # (steps, how many may be skipped) -> which are

    def start(self, view: WorkerView) -> None:
        self.who.start(view)
        self.actions: StepActions | None = view.stage.actions

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        return self.who.admit(task, view, now)

    def decide(self, view: WorkerView, now: float) -> Decision:
        decision = self.who.decide(view, now)
        skipping: list[Task] = []
        if self.actions is not None and self.actions.reuse:
            skipping = [task for task in decision.run if self.plan(task)[task.iterations - task.left]]
        return Decision(decision.run, decision.drop, self._repeat(decision, skipping), reuse=skipping)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self.who.ended(batch, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.who.removed(task, view, now)

    def plan(self, task: Task) -> tuple[bool, ...]:
        """Of each step of *task*, whether it is skipped."""
        steps, actions = task.iterations, self.actions
        most = steps - actions.fewest(steps) if actions is not None else 0
        found = self.plans.get((steps, most))
        if found is None:
            found = self.plans[steps, most] = self._planned(steps, most)
        return found

    def _planned(self, steps: int, most: int) -> tuple[bool, ...]:
        along = [self._change(i / max(1, steps - 1)) for i in range(steps)]
        average = float_sum(along) / steps
        skipped: list[bool] = []
        total = 0.0
        for i, change in enumerate(along):
            total += change / average if average else 0.0
            skip = 0 < i < steps - 1 and total < self.threshold and sum(skipped) < most
            if not skip:
                total = 0.0
            skipped.append(skip)
        return tuple(skipped)

    def _change(self, at: float) -> float:
        """The change at that place of the schedule, from 0 to 1."""
        place = at * (len(self.curve) - 1)
        low = min(int(place), len(self.curve) - 1)
        high = min(low + 1, len(self.curve) - 1)
        return self.curve[low] + (self.curve[high] - self.curve[low]) * (place - low)

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, decision: Decision, skipping: list[Task]) -> Repeat | None:
        """The word of `edf`, as far as nobody of the batch skips a step."""
        word = decision.repeat
        if word is None or skipping:
            return None
        times = word.times
        if self.actions is not None and self.actions.reuse:
            for task in decision.run:
                ahead = self.plan(task)[task.iterations - task.left :]
                times = min(times, next((j for j, skip in enumerate(ahead) if skip), times))
        return Repeat(times, word.limit, word.drift)
