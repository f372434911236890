"""vLLM V1: one budget of tokens a step, the running before the waiting, prompts in chunks.

Every running request gets a step: a token if it decodes, as much of its prompt as the budget holds if it does not.
What is left of the budget goes to the head of the queue, first come, first served; a prompt that does not fit whole
is begun with a chunk. The budget is the engine's `max_batched_tokens`, or *budget* if that is less.
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Fill, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import at_least


class VLLMV1(TokenPolicy):
    """*chunked* off: a prompt that does not fit whole waits (as with ``enable_chunked_prefill=False``)."""

    speculates = True

    def __init__(self, budget: int | None = None, chunked: bool = True) -> None:
        at_least(1, "vllm-v1", budget=budget)
        self.tokens_a_step = budget
        self.chunked = chunked
        self.whole_prompts, self.chunks = not chunked, chunked

    def start(self, view: TokenView) -> None:
        self.most = min(self.tokens_a_step or view.max_batched_tokens, view.max_batched_tokens)
        self.each = view.limits.tokens_per_decode
        self.nothing_new = decode_on(self.most, self.chunked)

    def decide(self, view: TokenView, now: float) -> Step:
        running, waiting = view.running, view.waiting
        left = most = self.most - self.each * view.decoding
        prefill: list[tuple[TokenTask, int]] = []
        partly = len(running) - view.decoding
        if partly:
            for task in partly_prefilled(view, partly):
                tokens = min(task.pending, left)
                if tokens <= 0:
                    break
                prefill.append((task, tokens))
                left -= tokens
        if waiting and left > 0 and len(running) < view.max_sequences:
            prefill = view.fill(waiting, most, begun=prefill, decode=view.decoding, chunked=self.chunked)
        if not prefill:
            return self.nothing_new
        return Step(prefill, ALL)


def partly_prefilled(view: TokenView, count: int) -> list[TokenTask]:
    """The *count* running tasks whose prompts are not computed yet, in order; they are the last that were
    admitted."""
    found: list[TokenTask] = []
    for task in reversed(view.running) if count else ():
        if not task.decoding:
            found.append(task)
            if len(found) == count:
                break
    found.reverse()
    return found


# -- speed only -----------------------------------------------------------------------------------------------------


def decode_on(tokens: int, cut: bool) -> Step:
    """All decode, until something changes; and how it goes on with those that come is known as well. (Both promises
    only save time.)"""
    return Step(decode=ALL, repeat=Repeat(sys.maxsize), standing=Fill(tokens, cut))
