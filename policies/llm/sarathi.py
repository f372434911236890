"""Sarathi-Serve: stall-free batches. All that decode go on in every step; prompts fill it up to *chunk* tokens.

Source: "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI'24). Decodes come first, then
prompts that have been begun, then new ones in order of arrival, each as far as the chunk lasts. So no decode waits
for a long prompt, and how long a step takes is bounded by the chunk. A prompt is begun only if the memory lasts for
all of it, and for the rest of those that have been begun.
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Fill, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import at_least


class Sarathi(TokenPolicy):
    """*chunk* is the number of tokens that a step computes at most, decodes included."""

    chunks = True
    speculates = True

    def __init__(self, chunk: int = 512) -> None:
        at_least(1, "sarathi", chunk=chunk)
        self.chunk = self.tokens_a_step = chunk

    def start(self, view: TokenView) -> None:
        self.most = min(self.chunk, view.max_batched_tokens)
        self.each = view.limits.tokens_per_decode
        self.nothing_new = decode_on(self.most)

    def decide(self, view: TokenView, now: float) -> Step:
        running = view.running
        left = self.most - self.each * view.decoding
        prefill: list[tuple[TokenTask, int]] = []
        free = view.free_blocks - view.watermark
        if len(running) > view.decoding:
            for task in running:
                if task.decoding:
                    continue
                pending = task.pending
                free -= view.blocks_for(task.computed + pending) - view.blocks_for(task.computed)
                tokens = min(pending, left)
                if tokens > 0:
                    prefill.append((task, tokens))
                    left -= tokens
        room = view.max_sequences - len(running)
        for task in view.waiting:
            pending = task.pending
            free -= view.blocks_for(task.computed + pending)
            room -= 1
            if left <= 0 or room < 0 or free < 0:
                break
            tokens = min(pending, left)
            prefill.append((task, tokens))
            left -= tokens
        if not prefill:
            return self.nothing_new
        prefill = view.admissible(prefill, decode=view.decoding)
        return Step(prefill, ALL) if prefill else self.nothing_new


# -- speed only -----------------------------------------------------------------------------------------------------


def decode_on(tokens: int) -> Step:
    """All decode, until something changes; and how it goes on with those that come is known as well. (Both promises
    only save time.)"""
    return Step(decode=ALL, repeat=Repeat(sys.maxsize), standing=Fill(tokens, whole_memory=True))
