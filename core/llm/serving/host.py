"""What an engine knows of its worker: the policy, the view, and the host that works between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...pipeline import Stage
from ...serving.worker import Worker
from ..batch import TokenBatch
from ..policy import Step, TokenPolicy, TokenView
from ..speculation import Speculation
from .handover import Handover


@dataclass(frozen=True)
class Host:
    """What an engine's host does between two steps, in seconds, before it asks the policy again.

    *between* gives what handing on the outputs of a step of so many sequences takes, *intake* what taking a request
    in does. Whatever has come until all is done, the policy sees. Measured by
    `servetwin.real.vllm.profiling.measuring.step_grid` as ``step.between`` and ``engine.intake``.

    With *ahead* the host decides a step while the one before it computes (asynchronous scheduling): see
    `servetwin.core.llm.serving.async_engine`. *begins* is then what passes from asking the policy until the step can
    begin on an idle device; while another step computes nothing is seen of it. A step of more than *graph_tokens*
    tokens is launched kernel by kernel, which keeps the host busy for *launch*: only then it hears of the step
    before. One that computes prompts within that is launched as graphs piece by piece, which takes *pieces* seconds.
    *begins_each* and *each* are what it takes longer for each sequence of the step until it can begin, and until it
    is launched.

    Where processes of their own launch steps, one after the other (tensor parallelism), the host only tells them:
    *told* seconds after asking the policy, and *told_each* more for each sequence of the step, it has done that and
    is free to hear of other steps. None: the host launches itself.

    The host keeps the sequences of the last step in tables: *left* is what taking one out takes that runs on but is
    not in this step, *back* what putting one in again does, and *back_token* each token of its context.
    """

    between: Callable[[int], float]
    intake: float
    ahead: bool = False
    begins: float = 0.0
    begins_each: float = 0.0
    launch: float = 0.0
    pieces: float = 0.0
    each: float = 0.0
    left: float = 0.0
    back: float = 0.0
    back_token: float = 0.0
    told: float | None = None
    told_each: float = 0.0
    graph_tokens: int | None = None

    def beginning(self, batch: TokenBatch) -> float:
        """Seconds from asking the policy until *batch* can begin on an idle device."""
        return self.begins + self.begins_each * batch.size + self.regrouping(batch)

    def launching(self, batch: TokenBatch) -> float:
        """Seconds from asking the policy until the host has launched *batch*."""
        begins, most = self.beginning(batch), self.graph_tokens
        if most is None:
            return begins
        taken = self.launch if batch.decode + batch.prefilled > most else self.pieces if batch.prefill else 0.0
        return max(taken + self.each * batch.size + self.regrouping(batch), begins)

    def telling(self, batch: TokenBatch) -> float:
        """Seconds from asking the policy until the host has told the processes that launch *batch*."""
        assert self.told is not None
        return self.told + self.told_each * batch.size

    def regrouping(self, batch: TokenBatch) -> float:
        """Seconds that the host takes for the sequences of *batch* being others than those of the step before."""
        moved = batch.regrouped
        if moved is None:
            return 0.0
        return self.left * moved.left + self.back * moved.back + self.back_token * moved.tokens


@dataclass(frozen=True)
class Stages:
    """The *shares* of a step's time that each stage takes, in order; and what sending a step's activations from one
    to the next takes: *hop* seconds and *hop_each* for every token of the step."""

    shares: Sequence[float]
    hop: float = 0.0
    hop_each: float = 0.0


class LLMWorker(Worker):
    """Serves an LLM stage with a policy that decides step by step.

    With *host* the policy is asked when the host is ready for the next step, else at the end of the last one (what
    lies between two steps then counts, but nobody comes in it, and taking requests in costs nothing).
    """

    answer = Step
    kind = "engine"
    policy: TokenPolicy
    view: TokenView
    #: How its stage's requests get from engines that prefill to engines that decode, if it has such; to be set before
    #: the loop is made.
    handover: Handover | None = None
    #: What it drafts, if it does; to be set before the loop is made.
    speculation: Speculation | None = None
    #: The stages that its steps go through, if there are several; to be set before the loop is made.
    stages: Stages | None = None

    def __init__(
        self, stage: Stage, policy: TokenPolicy, view: TokenView, *, device: str = "gpu0", host: Host | None = None
    ) -> None:
        super().__init__(stage, policy, view, device=device)
        self.host = host

    @property
    def kv_use(self) -> float:
        view = self.view
        return (view.blocks - view.free_blocks) / view.blocks
