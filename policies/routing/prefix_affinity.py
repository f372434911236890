"""Prefix affinity: prompts that begin alike go to the same worker, as far as its load allows.

The worker is drawn by rendezvous hashing of what the prompt begins with: each worker has a pseudo-random weight for
it, and the highest wins, so nothing is remembered and nothing asked. With a *bound* no worker gets more than *bound*
times its share of the requests that are there; the next highest weight has the rest. Sources: Thaler and Ravishankar,
"Using Name-Based Mappings to Increase Hit Rates" (IEEE/ACM Transactions on Networking 6, 1998); Mirrokni, Thorup and
Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA'18).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from servetwin.core import Request
from servetwin.core.llm import prompt_of
from servetwin.core.parameters import at_least
from servetwin.core.routing import Router, WorkerState


class PrefixAffinity(Router):
    """The first *tokens* of a prompt say where it goes (fewer, if others can have no more of it); where nobody else
    can have any, or the *bound* says so (None: never), the worker with the fewest requests gets it."""

    def __init__(self, tokens: int = 256, bound: float | None = 1.25) -> None:
        at_least(1, "prefix_affinity", tokens=tokens, bound=bound)
        self.tokens, self.bound = tokens, bound

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        prompt, content = prompt_of(request, workers[0].stage)
        present = [worker.present for worker in workers]
        if content is None or not content.tokens(prompt):
            return workers[present.index(min(present))]
        count = -(-min(self.tokens, content.tokens(prompt)) // content.size)
        said = repr(content.ids[:count])

        def weight(place: int) -> bytes:
            return blake2b(f"{workers[place].name} {said}".encode(), digest_size=8).digest()

        places = sorted(range(len(workers)), key=weight, reverse=True)
        if self.bound is None:
            return workers[places[0]]
        most = math.ceil(self.bound * (sum(present) + 1) / len(workers))
        return workers[next((place for place in places if present[place] < most), places[0])]
