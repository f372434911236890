"""An end-to-end SLO, shared out among the stages of a pipeline.

Without a budget every stage works against the deadline of the whole request. With one each stage has a deadline of
its own: the time at which the request comes to it, plus the slack that it brings along, plus its allowance. What
a stage does not use is slack for the next; what it overdraws is missing there. (The NeuStream artifact carries slack
between agents like this.) So along each way through the graph the deadlines are those of the arrival plus the
allowances so far, and no deadline lies behind that of the request: sharing out makes no time.

At a join the latest deadline of the inputs counts: they are waited for in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Literal, Protocol

from ..arithmetic import float_sum
from ..pipeline import Stage
from ..request import Request, Task
from ..slo import latest

#: Seconds that a stage (by name) gets of a request's SLO.
Allowance = Callable[[Request, str], float]

#: "always"; or only while the stage's "budget" is not overdrawn; or while what is "left" can still be done in time.
Forward = Literal["always", "budget", "left"]


class TokenStage(Protocol):
    """A stage that has deadlines of tokens (`servetwin.core.llm.slo.StageDeadlines`)."""

    def due(self, task: Any) -> float:
        """When the last token that *task* has generated was due."""

    def begins(self, task: Any, now: float, slack: float) -> None:
        """*task* comes there *now*, with that much slack."""


class Budget:
    """Gives the tasks of one run their deadlines, and says who may go on.

    *allowance* gives a stage's share; None leaves each task the deadline of its request. With *carry* off, unused
    slack is lost at each transfer (and so is what was overdrawn). *forward* says which requests go on to the next
    stage: all of them; those whose stage deadline is kept; or those that could still be in time if they were
    served alone from now on, by *left*, the seconds that a task's request still wants after its stage.

    An LLM stage in *tokens* (by name) has no allowance but deadlines of tokens, and its last token's is the stage's.
    How long that is shows only when the last token is out; so the deadline of a request that passes such stages is
    that of its last stage, and whether a stage before was late does not count. *left* then gives minus the slack
    that can still be won.
    """

    def __init__(
        self,
        allowance: Allowance | None,
        *,
        carry: bool = True,
        forward: Forward = "always",
        left: Callable[[Task], float] | None = None,
        tokens: Mapping[str, TokenStage] | None = None,
    ) -> None:
        self.allowance = allowance
        self.carry = carry
        self.forward = forward
        self.left = left
        self.tokens = dict(tokens or {})
        self._late: set[int] = set()  # requests of which a branch ended late
        self._inputs: dict[tuple[int, str], float] = {}  # (request, stage that joins) -> latest deadline so far

    def due(self, task: Task) -> float:
        """The deadline of *task* at its stage; at an LLM stage, of the last token that it has generated."""
        tokens = self.tokens.get(task.stage.name)
        return tokens.due(task) if tokens is not None else task.deadline

    def joins(self, request: Request, stage: str, before: Task | None) -> None:
        """One of the inputs of *stage* is there; others are missing."""
        if before is not None:
            key, due = (request.id, stage), self.due(before)
            self._inputs[key] = max(due, self._inputs.get(key, due))

    def begins(self, task: Task, before: Task | None) -> None:
        """*task* comes from *before* (None: from the client) to its stage now, at ``task.queued``."""
        if self.allowance is None:
            return
        request, stage, now = task.request, task.stage.name, task.queued
        due = request.arrival if before is None else self.due(before)
        if task.stage.inputs > 1:
            due = max(due, self._inputs.pop((request.id, stage), due))
        if not self.carry and before is not None:
            due = now
        tokens = self.tokens.get(stage)
        if tokens is not None:
            tokens.begins(task, now, due - now)
        else:
            task.deadline = min(request.deadline, due + self.allowance(request, stage))

    def passes(self, task: Task, now: float) -> bool:
        """Whether the request of *task*, which is done, may go on to the next stage."""
        if self.tokens:
            task.request.missed = False
        if self.forward == "budget":
            return now <= latest(self.due(task))
        if self.forward == "left" and self.left is not None:
            return now + self.left(task) <= latest(self.due(task) if self.tokens else task.request.deadline)
        return True

    def ends(self, task: Task, now: float) -> None:
        """The request of *task* ends with it, or one of its branches does."""
        request = task.request
        if self.tokens:
            due = self.due(task)
            if now > latest(due):
                self._late.add(request.id)
            request.missed = request.id in self._late
            request.deadline = due if request.deadline == inf else max(due, request.deadline)


class Alone:
    """What requests take alone, by *seconds* per module (an iteration of a loop), along the likely paths of a
    pipeline with these *stages*, in order of the graph."""

    def __init__(self, stages: Sequence[Stage], seconds: Mapping[str, float]) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.entries = [stage for stage in stages if stage.inputs == 0]
        self.seconds = seconds
        self.depth: dict[str, int] = {}  # stages on the longest path from here, this one included
        for stage in reversed(stages):
            self.depth[stage.name] = 1 + max((self.depth[s.name] for s in stage.likely), default=0)
        self.longest = max(self.depth[s.name] for s in self.entries)

    def here(self, request: Request, stage: Stage) -> float:
        """Seconds at *stage*."""
        work = request.work
        return float_sum(work.get(m, 1) * self.seconds[m] for m in stage.modules)

    def after(self, request: Request, stage: Stage) -> float:
        """Seconds from the end of *stage* to the end of the longest path."""
        return max((self.here(request, s) + self.after(request, s) for s in stage.likely), default=0.0)

    def whole(self, request: Request) -> float:
        """Seconds on the longest path through the pipeline."""
        return max(self.here(request, s) + self.after(request, s) for s in self.entries)


def proportional(alone: Alone) -> Allowance:
    """Each stage gets a share of the SLO in proportion to what it takes alone."""

    def allowance(request: Request, stage: str) -> float:
        return request.slo * alone.here(request, alone.stages[stage]) / alone.whole(request)

    return allowance


def equal(alone: Alone) -> Allowance:
    """Each stage gets what it takes alone, and an equal share of the slack."""

    def allowance(request: Request, stage: str) -> float:
        slack = max(0.0, request.slo - alone.whole(request))
        return alone.here(request, alone.stages[stage]) + slack / alone.longest

    return allowance


def fixed(seconds: Mapping[str, float]) -> Allowance:
    """Each stage gets so many *seconds* (by stage)."""
    return lambda _, stage: seconds[stage]
