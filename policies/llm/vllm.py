"""vLLM 0.5.4: prefill first, first come, first served.

Whenever the head of the queue fits, a step prefills as much of the queue as does, in order and whole; else all that
run decode. What has been swapped out comes back first, beside a decode step. Nothing is dropped but what is too long
for a step. This is the baseline of NeuStream's LLM experiments (`_schedule_default` of that version).
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView


class VLLM(TokenPolicy):
    """Takes no parameters: what vLLM's settings bound, the engine's limits do."""

    speculates = True

    def decide(self, view: TokenView, now: float) -> Step:
        waiting = view.waiting
        if not waiting:
            return DECODE
        prefill: list[tuple[TokenTask, int]] = []
        drop: list[TokenTask] = []
        left = most = view.max_batched_tokens
        for task in waiting:
            if task.preemptions and task.pending == 1:  # its KV is on the host
                if not prefill:
                    swapped = ((t, 1) for t in waiting if t.preemptions and t.pending == 1)
                    prefill = view.admissible(swapped, decode=view.decoding)
                    return Step(prefill, ALL, drop=drop)
                break
            pending = task.pending
            left -= pending
            if left < 0:
                if pending <= most:
                    break
                drop.append(task)
                left += pending
            else:
                prefill.append((task, pending))
        prefill = view.admissible(prefill)
        if prefill:
            return Step(prefill, drop=drop) if drop else Step(prefill)
        return Step(decode=ALL, drop=drop) if drop else DECODE


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes; and as long as those that come are of the ordinary kind, it is known how.
#: (Both promises only save time.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize), standing=True)
