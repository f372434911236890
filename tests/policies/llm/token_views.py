"""Views of an LLM engine from literals, so that a policy can be asked without a simulation."""

from __future__ import annotations

from itertools import count

from servetwin.core import Module, Pipeline
from servetwin.core.llm import (
    ALL,
    CumulativeSLO,
    EngineLimits,
    Step,
    TokenPolicy,
    TokenRequest,
    TokenSLO,
    TokenTask,
    TokenView,
)

(STAGE,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])


class Engine:
    """An engine's view, and a policy to be asked at it.

    A prefill takes 1 ms a token, a decode step 50 ms, however many decode; the SLO is 3+1.5 of that.
    """

    def __init__(self, policy: TokenPolicy, *, blocks: int = 10_000, slo: TokenSLO | None = None, **limits) -> None:
        self.prefill, self.decode = (lambda tokens: 0.001 * tokens), (lambda context: 0.05)
        self.slo = slo or CumulativeSLO(3.0, 1.5, 0.05, 0.0, lambda n: 0.001 * n)
        self.view = TokenView(
            STAGE,
            EngineLimits(blocks, **limits),
            estimate_prefill=lambda tokens, squares: self.prefill(tokens),
            estimate_decode=lambda batch, context: self.decode(context),
            slo=self.slo,
            name="engine",
        )
        self.policy = policy
        self._ids = count()
        policy.start(self.view)

    def waits(self, prompt: int, *, arrival: float = 0.0, generated: int = 0, computed: int = 0) -> TokenTask:
        """A request in the queue; with *generated* tokens it lost its memory, with *computed* it is on the host."""
        task = self._task(prompt, arrival)
        task.generated, task.computed = generated, computed
        task.preemptions = int(generated > 0)
        self.view.waiting[task] = None
        if generated:
            self.view.waiting.move_to_end(task, last=False)
        return task

    def runs(
        self, prompt: int, generated: int = 1, *, arrival: float = 0.0, computed: int | None = None
    ) -> TokenTask:
        """A request that decodes; with *computed* one whose prompt is partly computed."""
        task = self._task(prompt, arrival)
        if computed is None:
            task.computed, task.generated = prompt + generated - 1, generated
            self.view.decoding += 1
            self.view.context += task.computed
        else:
            task.computed = computed
        self.view.running[task] = None
        self.view.free_blocks -= self.view.blocks_for(task.computed)
        return task

    def decide(self, now: float = 0.0) -> Step:
        return self.policy.decide(self.view, now)

    def says(self, now: float = 0.0) -> tuple[list[tuple[int, int]], bool, list[int]]:
        """(id and tokens of each prefill, whether all decode, ids of those dropped)."""
        step = self.decide(now)
        assert step.decode is ALL or not step.decode
        return [(t.id, n) for t, n in step.prefill], step.decode is ALL, [t.id for t in step.drop]

    def _task(self, prompt: int, arrival: float) -> TokenTask:
        request = TokenRequest(next(self._ids), arrival, {"llm": (prompt, 300)})
        return TokenTask(request, STAGE, arrival, None, prompt, 300)
