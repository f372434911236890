"""NeuStream where deadlines leave no room, `slack_batch` elsewhere.

A policy of ServeTwin's own. It decides once, when its worker starts, by the SLO factor of the experiment::

    below *tight*                              NeuStream decides, with its defaults
    otherwise, or where there is no factor     slack_batch decides, with its defaults

`slack_batch` gains by leaving a request out for a while in which others are worth more. With an SLO factor of 1.2 a
request has a fifth of its own time for all that goes wrong, and whoever steps aside is lost: nothing is gained by
choosing, and to keep what has begun, as NeuStream does, meets more in half of the workloads. From 1.5 on there is
room. It was made on the seeds of `slack_batch`; what came of it on others: docs/reports/2026-11-league.md.
"""

from __future__ import annotations

from servetwin.core import Batch, Decision, Policy, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.policies.diffusion.neustream import NeuStream
from servetwin.policies.diffusion.slack_batch import SlackBatch


class SlackOrNeuStream(Policy):
    """*tight* is the SLO factor below which NeuStream decides (0: never)."""

    #: As both do: who bears less may wait for as long as others keep coming.
    starves = True

    def __init__(self, tight: float = 1.35) -> None:
        at_least(0, "slack-or-neustream", tight=tight)
        self.tight = tight

    def start(self, view: WorkerView) -> None:
        no_room = view.slo_factor is not None and view.slo_factor < self.tight
        self.chosen: Policy = NeuStream() if no_room else SlackBatch()
        self.chosen.start(view)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        return self.chosen.admit(task, view, now)

    def decide(self, view: WorkerView, now: float) -> Decision:
        return self.chosen.decide(view, now)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self.chosen.ended(batch, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.chosen.removed(task, view, now)
