"""Orca: whoever has come joins at the next iteration, if memory lasts for the most that it may ever need.

Source: "Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI'22), Algorithm 1, with one
worker. Each iteration takes requests in order of arrival, those that run among them, up to *max_batch*. A new one is
taken only if the slots that it declares (its prompt and the limit of its output) are free beside those of all that
run; if not, it waits, and so do those after it. So memory never runs out, and nobody is preempted. Prompts run whole,
in one iteration with the decodes of the others (selective batching).

Deviations: the engine gives memory out in blocks, as it is needed, so it is by this rule alone that slots stay free;
a request reserves whole blocks. What could never run is dropped: a prompt longer than a step of the engine, which
Orca does not bound, or a request of more slots than there are.
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import at_least


class Orca(TokenPolicy):
    """Runs *max_batch* requests at once at most; by default as many as the engine allows."""

    whole_prompts = True

    def __init__(self, max_batch: int | None = None) -> None:
        at_least(1, "orca", max_batch=max_batch)
        self.max_batch = max_batch

    def start(self, view: TokenView) -> None:
        self.most = min(self.max_batch or view.max_sequences, view.max_sequences)
        self.slots = view.blocks - max(view.watermark, view.limits.headroom)  # in blocks

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        drop: list[TokenTask] = []
        prefill: list[tuple[TokenTask, int]] = []
        reserved = sum([view.blocks_for(task.prompt + task.limit) for task in view.running])
        for task in view.waiting:
            slots = view.blocks_for(task.prompt + task.limit)
            if slots > self.slots or task.pending > view.max_batched_tokens:
                drop.append(task)
                continue
            reserved += slots
            if len(view.running) + len(prefill) == self.most or reserved > self.slots:
                break
            prefill.append((task, task.pending))
        prefill = view.admissible(prefill, decode=view.decoding)
        if prefill or drop:
            return Step(prefill, ALL, drop=drop)
        return DECODE


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
