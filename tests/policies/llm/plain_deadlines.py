"""`slos-serve` and `slack-admission` told plainly: each looks at all that wait and run at each decision."""

from __future__ import annotations

import math
from typing import Any

from servetwin.core.llm import ALL, Step, TokenSLO, TokenTask, TokenView
from servetwin.core.slo import latest
from servetwin.policies.llm.slack_admission import SlackAdmission, _cuts
from servetwin.policies.llm.slos_serve import SLOsServe

Chunks = list[tuple[TokenTask, int]]


class Plain:
    """What both ask."""

    slo: TokenSLO
    safety: float

    def start(self, view: TokenView) -> None:
        assert view.slo is not None
        self.slo = view.slo

    def due(self, task: TokenTask) -> float:
        return latest(self.slo.deadline(task, task.generated + 1))

    def late(self, task: TokenTask, view: TokenView, now: float) -> bool:
        return now + self.safety * view.estimate_prefill(task.pending) > self.due(task)

    def next_due(self, view: TokenView, now: float) -> float:
        soonest = now + self.safety * view.estimate_decode(view.decoding, view.context) if view.decoding else now
        dues = [self.due(task) for task in view.running if task.decoding]
        return min([due for due in dues if due >= soonest], default=math.inf)

    def fill(self, prompts: list[TokenTask], seconds: float, view: TokenView) -> Chunks:
        def cut(tokens: int) -> Chunks:
            chunks = []
            for task in prompts:
                count = min(tokens, task.pending)
                if count < 1:
                    break
                chunks.append((task, count))
                tokens -= count
            return chunks

        low = 0
        high = max(0, min(sum([task.pending for task in prompts]), view.max_batched_tokens - view.decoding))
        while low < high:
            middle = (low + high + 1) // 2
            if self.safety * view.estimate_step(cut(middle), view.decoding) <= seconds:
                low = middle
            else:
                high = middle - 1
        return cut(low)

    def answer(self, prompts: list[TokenTask], drop: list[TokenTask], view: TokenView, now: float) -> Step:
        chunks = self.fill(prompts, self.next_due(view, now) - now, view)
        chunks = view.admissible(chunks, decode=view.decoding)
        return Step(chunks, ALL, drop=drop)


class PlainSLOsServe(Plain, SLOsServe):
    def decide(self, view: TokenView, now: float) -> Step:
        partly = [task for task in view.running if not task.decoding]
        tasks = [*partly, *view.waiting]
        order = sorted(
            [t for t in tasks if not self.late(t, view, now)],
            key=lambda t: (self.slo.deadline(t, t.generated + 1), t.id),
        )
        late = sorted([t for t in tasks if self.late(t, view, now)], key=lambda t: (t.arrival, t.id))
        drop = [task for task in late if task in view.waiting and not task.generated] if self.drop_late else []
        free = view.free_blocks - view.watermark
        prompts: list[TokenTask] = []
        for task in [*order, *[task for task in late if task not in drop]]:
            runs = task in view.running
            free -= view.blocks_for(task.computed + task.pending) - (view.blocks_for(task.computed) if runs else 0)
            if not runs and (free < 0 or len(prompts) >= view.max_sequences - len(view.running) + len(partly)):
                break
            prompts.append(task)
        prompts.sort(key=lambda task: task not in view.running)
        return self.answer(prompts, drop, view, now)


class PlainSlackAdmission(Plain, SlackAdmission):
    def decide(self, view: TokenView, now: float) -> Step:
        begun = [task for task in view.running if not task.decoding]
        order = sorted([t for t in view.waiting if not self.late(t, view, now)], key=lambda t: (t.pending, t.id))
        late = [task for task in view.waiting if self.late(task, view, now)]
        drop = [task for task in late if not task.generated] if self.drop_late else []
        order += [task for task in late if task not in drop]
        return self.answer(self._begin_beside(begun, order, view, now), drop, view, now)

    def _begin_beside(
        self, begun: list[TokenTask], order: list[TokenTask], view: TokenView, now: float
    ) -> list[TokenTask]:
        slo, safety, seconds = self.slo, self.safety, self.next_due(view, now) - now
        lives = [(task.limit - task.generated, task.computed + task.pending) for task in view.running]
        timely = [task for task in view.running if self.due(task) >= now]
        rooms = [(latest(slo.deadline(task, task.limit)), task.limit - task.generated) for task in timely]
        prompts = [*begun]
        first = min([due for due in map(self.due, begun) if due >= now], default=math.inf)
        decode = safety * view.estimate_decode(view.decoding, view.context) if view.decoding else 0.0
        for task in order:
            if len(lives) >= view.max_sequences:
                break
            left, tokens, due = task.limit - task.generated, task.computed + task.pending, self.due(task)
            own = [(latest(slo.deadline(task, task.limit)), left - 1)] if not self.late(task, view, now) else []
            if lives:
                took = safety * view.estimate_step([(t, t.pending) for t in (*prompts, task)], view.decoding)
                out = now + took + _cuts(took - decode, seconds - decode) * decode
                context = sum([there + more / 2 for more, there in (*lives, (left, tokens))])
                step = safety * view.estimate_decode(len(lives) + 1, int(context))
                if (
                    out > first
                    or (own and out > due)
                    or any(now + took + steps * step > end for end, steps in (*rooms, *own))
                    or not self._fits([*lives, (left, tokens)], view)
                ):
                    continue
            prompts.append(task)
            lives.append((left, tokens))
            rooms += own
            first = min(first, due) if own else first
        return prompts


#: By the name of the policy.
PLAIN: dict[str, Any] = {"slos-serve": PlainSLOsServe, "slack-admission": PlainSlackAdmission}
