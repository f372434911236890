"""A group of devices shared out in rounds: each request gets the fewest device-seconds that still meet its deadline.

Source: "TetriServe: Efficient DiT Serving for Heterogeneous Image Generation" (arXiv 2510.01565), sections 4.2.1
(deadline-aware allocation), 4.2.2 (request packing, Algorithm 1) and 4.2.3 (placement, elastic scale-up). At the
beginning of each round

1. each request that can still be in time is given the cheapest plan: how many of its steps on which of at most two
   degrees, so that it ends in time with the fewest device-seconds;
2. a group knapsack over the free devices chooses who runs, each as its plan says or not at all, so that the most
   requests *survive*: could still be in time after the round, at the fastest degree from then on. Of equally many
   survivors more requests that run are better;
3. devices that are left over go to those that were left out (least slack first, by the cheaper degree of their plan),
   then one each to requests that are late even at the fastest degree (oldest first), then to whoever gains most
   from twice as many;
4. a request keeps its devices where it can. Where nobody knows what a change takes it keeps them to the end.

A round is as long as *round_steps* steps of the slowest request at its fastest degree, and a change of devices before
them. Who runs does as many steps as fit into it beside that change; what comes meanwhile waits for the next round,
which begins at once if nothing is left to run.

Deviations: each request runs alone (no selective batching). A plan counts steps as long as a round lets them be, with
the change and what is idle at its end; the paper's cost model does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from servetwin.core import Batch, Decision, Policy, Shape, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import at_least
from servetwin.core.slo import latest
from servetwin.policies.diffusion._degrees import EPSILON, cheapest


class DeadlineDegree(Policy):
    """Rounds of *round_steps* steps. Without *elastic* devices that are left over go to nobody who runs already."""

    names_devices = True
    heeds_shapes = True
    starves = True  # whom it cannot serve in time any more

    def __init__(self, round_steps: int = 5, elastic: bool = True) -> None:
        at_least(1, "deadline-degree", round_steps=round_steps)
        self.round_steps, self.elastic = round_steps, elastic
        self.ends: dict[Task, float] = {}  # when each task's loop here must end
        self.seconds: dict[Shape | None, dict[int, float]] = {}  # of a step by degree, those that pay off
        self.round: dict[Task, tuple[tuple[int, ...], int]] = {}  # devices, steps that are left of the round
        self.until = 0.0  # when the round ends

    def _steps(self, shape: Shape | None, view: WorkerView) -> dict[int, float]:
        """Seconds of a step by degree, ascending; degrees that are no faster than a smaller one are left out."""
        found = self.seconds.get(shape)
        if found is None:
            found = self.seconds[shape] = {}
            modules = [view.stage.loop] if view.stage.loop else view.stage.modules
            for degree in view.group.degrees:
                seconds = float_sum([view.group.estimate(module, 1, degree, shape) for module in modules])
                if not found or seconds < min(found.values()):
                    found[degree] = seconds
        return found

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        own = task.left * self._steps(task.shape, view)[1]
        self.ends[task] = latest(task.deadline) - (view.solo(task) - own)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        free = view.group.free
        found = self._next(view, free)
        if found is None:
            if now < self.until - EPSILON and any(view.group.busy(task) for task in view.running):
                return Decision(idle_until=self.until)
            self._begin(view, now, free)
            found = self._next(view, free)
        return found or Decision()

    def _next(self, view: WorkerView, free: tuple[int, ...]) -> Decision | None:
        """The next step of this round that can begin."""
        for task, (devices, steps) in self.round.items():
            if steps and not view.group.busy(task) and set(devices) <= set(free):
                self.round[task] = (devices, steps - 1)
                return Decision([task], devices=devices)
        return None

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        for task in batch.tasks:
            if not task.left:
                self.removed(task, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.ends.pop(task, None)
        self.round.pop(task, None)

    # -- a round ----------------------------------------------------------------------------------------------

    def _begin(self, view: WorkerView, now: float, free: tuple[int, ...]) -> None:
        """Plan the round that begins *now*."""
        group = view.group
        tasks = [task for task in (*view.running, *view.waiting) if task in self.ends and not group.busy(task)]
        self.round = {}
        if not tasks or not free:
            return
        best = {task: min(self._steps(task.shape, view).values()) for task in tasks}
        span = self.round_steps * max(best.values())
        self.until = now + span + (group.change or 0.0)
        live = sorted(
            (t for t in tasks if now + t.left * best[t] <= self.ends[t]), key=lambda t: self._slack(t, best)
        )
        plans = {task: self._options(task, view, now, span) for task in live}
        degrees = self._pack(live, plans, best, len(free))
        left = len(free) - sum(degrees.values())
        for task in [t for t in live if t not in degrees and plans[t]]:
            degree = min(plans[task])
            if degree <= left:
                degrees[task] = degree
                left -= degree
        for task in sorted((t for t in tasks if t not in plans), key=lambda t: (t.arrival, t.id)):
            devices = group.devices_of(task)
            degree = 1 if group.change is not None or not devices else len(devices)
            if degree <= left:
                degrees[task] = degree
                left -= degree
        if self.elastic:
            self._scale_up(degrees, view, left)
        for task, devices in self._place(degrees, view, free).items():
            fits = math.floor(span / self._at(task, view, len(devices)) + EPSILON)
            self.round[task] = (devices, min(task.left, max(1, fits)))

    def _at(self, task: Task, view: WorkerView, degree: int) -> float:
        """Seconds of a step of *task* on so many devices, also where fewer would do as well."""
        seconds = self._steps(task.shape, view)
        return seconds[max(own for own in seconds if own <= degree)]

    def _slack(self, task: Task, best: dict[Task, float]) -> tuple[float, int]:
        return self.ends[task] - task.left * best[task], task.id

    def _options(self, task: Task, view: WorkerView, now: float, span: float) -> dict[int, int]:
        """The degrees of the cheapest plan by which *task* ends in time, with the steps that it may do at each in a
        round with *span* seconds for steps; at the fastest degree if no plan does."""
        seconds = self._steps(task.shape, view)
        fits = {degree: math.floor(span / step + EPSILON) for degree, step in seconds.items()}
        devices = view.group.devices_of(task)
        if view.group.change is None and devices:  # it stays where it is
            return {len(devices): max(1, math.floor(span / self._at(task, view, len(devices)) + EPSILON))}
        lasts = {degree: (self.until - now) / n for degree, n in fits.items() if n}  # a step, and what is idle
        plan = cheapest(lasts, task.left, self.ends[task] - now) or [max(lasts)]
        return {degree: fits[degree] for degree in plan}

    def _pack(
        self, live: list[Task], plans: dict[Task, dict[int, int]], best: dict[Task, float], devices: int
    ) -> dict[Task, int]:
        """The degree of each that runs, so that the most survive the round (Algorithm 1)."""
        start: tuple[int, int, tuple[tuple[Task, int], ...]] = (0, 0, ())
        found = {0: start}  # by devices that are taken: survivors, those who run, and on how many each
        for task in live:
            after: dict[int, tuple[int, int, tuple[tuple[Task, int], ...]]] = {}
            for degree, steps in ((0, 0), *plans[task].items()):
                lasts = max(0, task.left - steps) * best[task]
                alive = self.until + lasts <= self.ends[task] or (steps >= task.left > 0)
                for taken, (many, run, chosen) in found.items():
                    total = taken + degree
                    value = (many + alive, run + (degree > 0))
                    if total <= devices and (total not in after or value > after[total][:2]):
                        after[total] = (*value, (*chosen, (task, degree)) if degree else chosen)
            found = after
        return dict(max(found.items(), key=lambda item: (item[1][:2], -item[0]))[1][2])

    def _scale_up(self, degrees: dict[Task, int], view: WorkerView, left: int) -> None:
        """Give the *left* devices to those of *degrees* who gain most from twice as many."""
        while left > 0:
            gains = []
            for task, degree in degrees.items():
                seconds = self._steps(task.shape, view)
                stays = view.group.change is None and view.group.devices_of(task)
                if not stays and 2 * degree in seconds and degree <= left:
                    gains.append((self._at(task, view, degree) / seconds[2 * degree], -task.id, task))
            if not gains:
                return
            task = max(gains)[2]
            left -= degrees[task]
            degrees[task] *= 2

    def _place(self, degrees: dict[Task, int], view: WorkerView, free: Iterable[int]) -> dict[Task, tuple[int, ...]]:
        """The devices of each: those that it had, where they are free and as many."""
        there, placed = set(free), {}
        had = {task: view.group.devices_of(task) for task in degrees}
        for task, degree in degrees.items():
            if len(had[task]) == degree and there.issuperset(had[task]):
                placed[task] = had[task]
                there.difference_update(had[task])
        for task, degree in degrees.items():
            if task in placed or degree > len(there) or (view.group.change is None and had[task]):
                continue
            chosen = sorted(there, key=lambda device: (device not in had[task], device))[:degree]
            placed[task] = tuple(sorted(chosen))
            there.difference_update(chosen)
        return placed
