"""Deadlines and limits of tokens, and which tokens kept them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal, Protocol

import numpy as np

from ..slo import latest, slack
from .metric_blocks import TokenBlock
from .request import TokenTask
from .token_gaps import as_array


class TokenSLO(Protocol):
    """Deadlines of single tokens, as NeuStream defines them; times in seconds, lengths in tokens.

    *prefill_scale* and *decode_scale* are P and D of "P+D" (3+1.5, say), *d0* and *d1* the seconds of a decode step
    alone, per step and per token of context.
    """

    @property
    def prefill_scale(self) -> float: ...
    @property
    def decode_scale(self) -> float: ...
    @property
    def d0(self) -> float: ...
    @property
    def d1(self) -> float: ...

    def for_task(self, task: TokenTask) -> TokenSLO:
        """What holds for *task*, whose class may have deadlines of its own."""

    def alone(self, prompt: int) -> float:
        """Seconds that the prefill of a prompt of that length takes alone."""

    def deadline(self, task: TokenTask, token: int) -> float:
        """When output token number *token* (1 is the first) must be out."""

    def met(self, task: TokenTask) -> bool:
        """Whether *task*, which has just generated its last token, kept this SLO."""


@dataclass(frozen=True)
class StageDeadlines:
    """How a `servetwin.core.serving.budget.Budget` treats an LLM stage: by the deadlines of its tokens, by *slo*."""

    slo: TokenSLO

    def due(self, task: TokenTask) -> float:
        return self.slo.deadline(task, task.generated)

    def begins(self, task: TokenTask, now: float, slack: float) -> None:
        task.arrival, task.budget = now, slack


@dataclass(frozen=True)
class CumulativeSLO:
    """Token j is due at ``arrival + budget + P * B(n) + D * I(n, j - 1)``: a late token can be caught up.

    B(n) is the prefill of n prompt tokens alone, I(n, k) that of k decode steps alone after it:
    ``d0 * k + d1 * (k * n + k * (k + 1) / 2)``. Source: the NeuStream artifact's LLM part.
    """

    prefill_scale: float
    decode_scale: float
    d0: float
    d1: float
    prefill_alone: Callable[[int], float]

    def for_task(self, task: TokenTask) -> CumulativeSLO:
        """What holds for *task*: classes of requests may have deadlines of their own (`TokenSLOByClass`)."""
        return self

    def alone(self, prompt: int) -> float:
        return self.prefill_alone(prompt)

    def decode_alone(self, prompt: int, steps: int) -> float:
        """Seconds of that many decode steps alone, after a prompt of that length."""
        return self.d0 * steps + self.d1 * (steps * prompt + steps * (steps + 1) / 2)

    def deadline(self, task: TokenTask, token: int) -> float:
        prompt, steps = task.prompt, token - 1
        first = task.arrival + task.budget + self.prefill_scale * self.prefill_alone(prompt)
        # `decode_alone`, written out: policies ask for all that run and wait.
        return first + self.decode_scale * (self.d0 * steps + self.d1 * (steps * prompt + steps * (steps + 1) / 2))

    def met(self, task: TokenTask) -> bool:
        """Whether its last token was on time (those before may have been late and caught up)."""
        return task.finished is not None and task.finished <= latest(self.deadline(task, task.generated))


#: Steps 0, 1, 2, ... and what k steps add up of the context, k (k + 1) / 2.
_STEPS = np.arange(4096, dtype=float)
_SUMS = _STEPS * (_STEPS + 1.0) / 2.0


@dataclass(frozen=True)
class TokenLimits:
    """Limits in seconds that a request keeps, or not: ``--goodput`` of ``vllm bench serve``, and one more.

    *ttft*: from sending until the first token. *tpot*: mean gap between tokens, 0 for a single one. *e2el*: from
    sending until the last. *itl*: the longest gap between two tokens, which vLLM's command does not know.
    """

    ttft: float = inf
    tpot: float = inf
    itl: float = inf
    e2el: float = inf

    def hold(self, *, ttft: float, tpot: float, itl: float, e2el: float, at: float = 0.0) -> bool:
        """Whether a request with these latencies, whose last token came out *at* that time, keeps all limits, with
        the tolerance of `servetwin.core.slo`."""
        more = slack(at)
        return (
            ttft <= self.ttft + more
            and tpot <= self.tpot + more
            and itl <= self.itl + more
            and e2el <= self.e2el + more
        )


def task_limits(task: TokenTask, limits: TokenLimits) -> bool:
    """Whether *task*, which has generated all its tokens, kept *limits*."""
    assert task.first_token is not None
    assert task.finished is not None
    sent = sent_at(task)
    gaps = task.generated - 1
    itl = float(np.diff(as_array(task.token_times)).max()) if gaps and limits.itl < inf else 0.0
    tpot = (task.finished - task.first_token) / gaps if gaps else 0.0
    return limits.hold(ttft=task.first_token - sent, tpot=tpot, itl=itl, e2el=task.finished - sent, at=task.finished)


def sent_at(task: TokenTask) -> float:
    """Since when somebody waits for the tokens of *task*: the client's sending, or its coming to a later stage."""
    request = task.request
    return request.arrival if task is request.tasks[0] else task.queued


@dataclass(frozen=True)
class TokenDeadlines(CumulativeSLO):
    """NeuStream's deadlines; a request meets them with all its tokens, or (*meets* "last") with its last.

    *limits* decide nothing here: how many requests keep them is reported beside.
    """

    meets: Literal["all", "last"] = "all"
    limits: TokenLimits | None = None
    #: What each token may take longer, by how many came before it, in seconds.
    _longer_contexts: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_longer_contexts", self._weights(_STEPS, _SUMS)[1])

    def for_task(self, task: TokenTask) -> TokenDeadlines:
        return self

    def for_class(self, name: str) -> TokenDeadlines:
        """What holds for requests of the class of that name."""
        return self

    @property
    def counts_tokens(self) -> bool:
        """Whether single tokens have deadlines by which they are counted."""
        return True

    def met(self, task: TokenTask) -> bool:
        """Whether *task* kept this SLO. Of one that has generated all its tokens it notes which were in time: the
        summary asks next."""
        if self.meets == "last":
            return super().met(task)
        count = task.generated
        kept = as_array(task.token_times) <= self._due(task.arrival + task.budget, task.prompt, count, True)
        if task.finished is not None:
            task.known_in_time = self, kept
        return int(np.count_nonzero(kept)) == count

    def told(self, task: TokenTask) -> dict[str, Any]:
        """What records say of it for *task*: its token j is *due* at ``first + (j - 1) each + (j - 1) j / 2 more``,
        of which *meets* counts all, or the last."""
        each = self.decode_scale * (self.d0 + self.d1 * task.prompt)
        return {"due": [self.deadline(task, 1), each, self.decode_scale * self.d1], "meets": self.meets}

    def told_of_block(self, block: TokenBlock) -> dict[str, Any]:
        """As `told`, of all in *block*, which no earlier stage left slack: arrays where they differ."""
        each = self.decode_scale * (self.d0 + self.d1 * block.prompts)
        return {"due": [self.first_due(block), each, self.decode_scale * self.d1], "meets": self.meets}

    def first_due(self, block: TokenBlock) -> np.ndarray:
        """When the first token of each in *block* was due."""
        prompts, which = np.unique(block.prompts, return_inverse=True)
        alone = np.array([self.prefill_scale * self.prefill_alone(prompt) for prompt in prompts.tolist()])
        due: np.ndarray = block.arrival + alone[which]
        return due

    def deadlines(self, task: TokenTask) -> np.ndarray:
        """When each of the tokens that *task* has generated was due, in seconds since the run began."""
        return self._due(task.arrival + task.budget, task.prompt, task.generated, False)

    def _due(self, start: float, prompt: int, count: int, tolerant: bool) -> np.ndarray:
        """When each of *count* tokens after this prompt is due, or (*tolerant*) up to when it is in time."""
        first = start + self.prefill_scale * self.prefill_alone(prompt)
        if tolerant:
            first = first + slack(first)
        steps, longer = (_STEPS, self._longer_contexts) if count <= len(_STEPS) else self._weights(*_longer(count))
        due: np.ndarray = (self.decode_scale * (self.d0 + self.d1 * prompt)) * steps[:count]
        due += first
        due += longer[:count]
        return due

    def _weights(self, steps: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return steps, (self.decode_scale * self.d1) * sums

    def in_time(self, task: TokenTask) -> np.ndarray:
        """Which of the tokens that *task* has generated came by their deadlines."""
        known: tuple[TokenDeadlines, np.ndarray] | None = task.known_in_time
        if known is not None and known[0] is self:
            return known[1]
        due = self._due(task.arrival + task.budget, task.prompt, task.generated, True)
        kept: np.ndarray = as_array(task.token_times) <= due
        return kept


def _longer(count: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(count, dtype=float)
    return steps, steps * (steps + 1.0) / 2.0


@dataclass(frozen=True)
class LimitsSLO(TokenDeadlines):
    """Meets what *limits* say. As deadlines, for policies: *ttft* for the first token, *tpot* for each other."""

    limits: TokenLimits = TokenLimits()

    @classmethod
    def of(cls, limits: TokenLimits) -> LimitsSLO:
        far = 1e12  # a number that can be multiplied by 0
        ttft, tpot = min(limits.ttft, limits.e2el, far), min(limits.tpot, far)
        return cls(1.0, 1.0, tpot, 0.0, lambda _: ttft, limits=limits)

    def met(self, task: TokenTask) -> bool:
        return task_limits(task, self.limits)

    def told(self, task: TokenTask) -> dict[str, Any]:
        """The *limits* in seconds, and since when they count (`sent_at`)."""
        limits = {name: value for name, value in asdict(self.limits).items() if value < inf}
        return {"limits": limits, "sent": sent_at(task)}

    def told_of_block(self, block: TokenBlock) -> dict[str, Any]:
        return {
            "limits": {name: value for name, value in asdict(self.limits).items() if value < inf},
            "sent": block.sent,
        }

    @property
    def counts_tokens(self) -> bool:
        return False


@dataclass(frozen=True)
class TokenSLOByClass(TokenDeadlines):
    """Deadlines, or limits, of single classes of requests: those *by_class*, and *usual* for all others. Its own
    numbers are the usual ones; who reads them by themselves asks `for_task` first."""

    usual: TokenDeadlines | None = None
    by_class: Mapping[str, TokenDeadlines] = field(default_factory=dict)

    @classmethod
    def of(cls, usual: TokenDeadlines, by_class: Mapping[str, TokenDeadlines]) -> TokenSLOByClass:
        scales = usual.prefill_scale, usual.decode_scale, usual.d0, usual.d1
        limits = usual.limits
        if limits is None and any(own.limits is not None for own in by_class.values()):
            limits = TokenLimits()
        return cls(*scales, usual.prefill_alone, usual.meets, limits, usual=usual, by_class=by_class)

    def for_task(self, task: TokenTask) -> TokenDeadlines:
        return self.for_class(task.request.class_name)

    def for_class(self, name: str) -> TokenDeadlines:
        assert self.usual is not None
        return self.by_class.get(name, self.usual)

    def told(self, task: TokenTask) -> dict[str, Any]:
        return self.for_task(task).told(task)

    def deadline(self, task: TokenTask, token: int) -> float:
        return self.for_task(task).deadline(task, token)

    def met(self, task: TokenTask) -> bool:
        return self.for_task(task).met(task)

    def deadlines(self, task: TokenTask) -> np.ndarray:
        return self.for_task(task).deadlines(task)

    def in_time(self, task: TokenTask) -> np.ndarray:
        return self.for_task(task).in_time(task)

    @property
    def counts_tokens(self) -> bool:
        assert self.usual is not None
        return self.usual.counts_tokens
