"""What was tried first so that `slack-batch` meets as many as NeuStream where an SLO leaves no room, in vain in some
cells. What came of it in the end, its parameter *tight*, is off in all of these.

Policies for `servetwin sweep tests/policies/slack_batch_tight.yaml`; docs/reports/2026-11-league.md has what came of
it. `slack-batch` leaves out of a batch who has begun, if more is got done per second without it. At an SLO of 1.2
times the latency alone, who waits is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Batch, Task, WorkerView
from servetwin.policies.diffusion.slack_batch import PART, STAYS, SlackBatch

Row = tuple[int, float, Task]  # iterations left, until when they must have ended, whose


class AsItWas(SlackBatch):
    """The rule without *tight*: batches are chosen by what is got done per second, however little slack there is."""

    def __init__(self) -> None:
        super().__init__(tight=0.0)


class Keeps(AsItWas):
    """All that have begun run on; of the others, the latest to come first, those join who end in time and by whom
    nobody becomes late who would not be without them."""

    def _choose(self, tasks: list[Task], view: WorkerView, now: float) -> list[Task]:
        rows: list[Row] = []
        for task in tasks:
            end = self.ends[task]
            if task not in view.running:
                end -= min(self.spare, PART * (end - now - task.left * self.step))
            rows.append((task.left, end, task))
        most = len(self.seconds) - 1
        chosen = _in_order([row for row in rows if row[2] in view.running])[:most]
        timely = self._timely(chosen, now)
        for row in sorted([row for row in rows if row[2] not in view.running], key=lambda row: -row[2].id):
            if len(chosen) == most:
                break
            joined = _in_order([*chosen, row])
            found = self._timely(joined, now)
            if row[2] in found and timely <= found:
                chosen, timely = joined, found
        if not chosen:
            return [max(tasks, key=lambda task: ((self.ends[task] - now) / task.left, -task.id))]
        return [task for _, _, task in chosen]

    def _timely(self, rows: Sequence[Row], now: float) -> set[Task]:
        """Who of *rows*, in the order of their ends, is in time if they are one batch that is left to itself."""
        found: set[Task] = set()
        over, size = 0, len(rows)
        for left, end, task in rows:
            now += (left - over) * self.seconds[size] + self.each
            if now <= end:
                found.add(task)
            over, size = left, size - 1
        return found


class Learns(AsItWas):
    """Learns by how much iterations are quicker than the profile says, as those of Stable Diffusion 256 are."""

    def start(self, view: WorkerView) -> None:
        super().start(view)
        self.profile, self.alone, self.took, self.said = self.seconds, self.step, 0.0, 0.0

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        taken = super().admit(task, view, now)
        self.ends[task] += task.left * (self.alone - self.step)  # what follows is not learned
        return taken

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        if self.looped:
            self.took += now - batch.start
            self.said += batch.iterations * batch.count * self.profile[batch.size]
            first = 100 * self.alone
            pace = min(1.0, (self.took + first) / (self.said + first))
            self.seconds, self.step = [pace * x for x in self.profile], pace * self.alone
            if batch.leaves:
                self.took, self.said = STAYS * self.took, STAYS * self.said
        super().ended(batch, view, now)


class Doubles(AsItWas):
    """What follows at later stages counts twice, since the device goes on with this one meanwhile."""

    def start(self, view: WorkerView) -> None:
        super().start(view)
        self.solo_step, self.after = self.step, dict[Task, float]()

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        self.after[task] = max(0.0, view.solo(task) - task.left * self.solo_step)
        return super().admit(task, view, now)

    def _choose(self, tasks: list[Task], view: WorkerView, now: float) -> list[Task]:
        held, self.ends = self.ends, {task: self.ends[task] - self.after[task] for task in tasks}
        try:
            return super()._choose(tasks, view, now)
        finally:
            self.ends = held


class LearnsAndDoubles(Doubles, Learns):
    """Both."""


class All(Doubles, Learns, Keeps):
    """All three."""


def _in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row[0], row[2].id))
